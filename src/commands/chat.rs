//! `glan chat`.

use anyhow::Result;
use clap::Args;

/// Arguments of `glan chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &ChatArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
