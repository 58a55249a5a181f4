//! `glan fetch`.

use anyhow::Result;
use clap::Args;

/// Arguments of `glan fetch`.
#[derive(Debug, Clone, Args)]
pub struct FetchArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &FetchArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
