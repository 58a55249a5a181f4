//! `glan score`.

use anyhow::Result;
use clap::Args;

/// Arguments of `glan score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &ScoreArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
