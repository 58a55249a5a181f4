//! Stage 3, `train`: rows to a student.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{cli::StageArgs, config::Config, run_dir::RunDir};

/// Arguments of `glan train`.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Train this model instead of the configuration's student.
    #[arg(long, value_name = "DIR", requires_all = ["data", "output"])]
    pub model: Option<String>,
    /// Train on this file of rows instead of a run's.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub data: Option<PathBuf>,
    /// Where checkpoints and the trained model go.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub output: Option<PathBuf>,
}

/// `glan train`.
pub fn main(args: &TrainArgs) -> Result<()> {
    let _ = args;
    anyhow::bail!("not here yet")
}

/// Runs the stage on a run directory.
pub fn run(config: &Config, run_dir: &RunDir) -> Result<()> {
    let _ = (config, run_dir);
    anyhow::bail!("not here yet")
}
