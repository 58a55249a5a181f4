//! Stage 2, `curate`: pairs to training rows.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{cli::StageArgs, config::Config, run_dir::RunDir};

/// Arguments of `glan curate`.
#[derive(Debug, Clone, Args)]
pub struct CurateArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Curate this file of rows `{"id", "messages"}` instead of a run's pairs.
    #[arg(long, value_name = "FILE", requires = "output")]
    pub data: Option<PathBuf>,
    /// Where the result of --data goes.
    #[arg(long, value_name = "DIR", requires = "data")]
    pub output: Option<PathBuf>,
    /// Folder of benchmarks to decontaminate against.
    #[arg(long, value_name = "DIR")]
    pub benchmarks: Option<PathBuf>,
}

/// `glan curate`.
pub fn main(args: &CurateArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}

/// Runs the stage on a run directory.
pub fn run(config: &Config, run_dir: &RunDir) -> Result<()> {
    let _ = (config, run_dir);
    anyhow::bail!("not here yet")
}
