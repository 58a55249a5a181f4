//! `glan inspect`.

use anyhow::Result;
use clap::Args;

/// Arguments of `glan inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &InspectArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
