//! `glan complete`.

use anyhow::Result;
use clap::Args;

/// Arguments of `glan complete`.
#[derive(Debug, Clone, Args)]
pub struct CompleteArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &CompleteArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
