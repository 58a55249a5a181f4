//! `glan doctor`.

use anyhow::Result;
use clap::Args;

/// Arguments of `glan doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &DoctorArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}
