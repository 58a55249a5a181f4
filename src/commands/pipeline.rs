//! `glan run`, and the stage commands that need a model loaded for them: the only place where verbs meet the engine.

use anyhow::Result;

use crate::{cli::StageArgs, evaluate::EvaluateArgs};

/// `glan run`: every stage that is not finished yet, in order.
pub fn run(args: &StageArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}

/// `glan generate`.
pub fn generate(args: &StageArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}

/// `glan evaluate`.
pub fn evaluate(args: &EvaluateArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}

/// `glan report`.
pub fn report(args: &StageArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
