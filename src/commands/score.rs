//! `glan score`: log-likelihoods of continuations from a JSON-lines file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::complete::{print_summary, run_job};
use crate::{cli::ModelArgs, requests::ScoreJob};

/// Arguments of `glan score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Requests, one JSON object per line: `id`, `context` and `continuation` (or both as `_token_ids`).
    #[arg(long, value_name = "FILE")]
    pub requests: PathBuf,
    /// Results, in the order of the requests. Run again after a kill, finished rows are kept.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Longest sequence in tokens; 0 takes the model's own limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_model_len: usize,
    /// Machine-readable summary on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &ScoreArgs) -> Result<()> {
    let summary = run_job::<ScoreJob>(&args.model, args.max_model_len, &args.requests, &args.output)?;
    print_summary(&summary, args.json)
}
