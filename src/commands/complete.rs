//! `glan complete`: continues prompts from a JSON-lines file.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    cli::ModelArgs,
    config, engine,
    language_model::LanguageModel,
    requests::{self, CompleteJob, Job, Summary, openai::BatchJob},
    telemetry,
};

/// The files' formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `id`, `prompt` or `messages`, and sampling settings in one flat object.
    Glan,
    /// OpenAI's batch API: `custom_id`, `method`, `url` and `body` in, `response` or `error` out.
    OpenaiBatch,
}

/// Arguments of `glan complete`.
#[derive(Debug, Clone, Args)]
pub struct CompleteArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Requests, one JSON object per line: `id`, `prompt` (or `prompt_token_ids`, or `messages`), and sampling settings.
    #[arg(long, value_name = "FILE")]
    pub requests: PathBuf,
    /// Results, in the order of the requests. Run again after a kill, finished rows are kept.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// What the lines of both files look like.
    #[arg(long, value_enum, default_value = "glan")]
    pub format: Format,
    /// Longest sequence in tokens; 0 takes the model's own limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_model_len: usize,
    /// Machine-readable summary on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &CompleteArgs) -> Result<()> {
    let run = match args.format {
        Format::Glan => run_job::<CompleteJob>,
        Format::OpenaiBatch => run_job::<BatchJob>,
    };
    let summary = run(&args.model, args.max_model_len, &args.requests, &args.output)?;
    print_summary(&summary, args.json)
}

/// Runs a file of requests on a model.
pub(super) fn run_job<J: Job>(
    model: &ModelArgs,
    max_model_len: usize,
    requests: &std::path::Path,
    output: &std::path::Path,
) -> Result<Summary> {
    let config = config::load(None, &model.set)?;
    let mut load = || -> Result<Box<dyn LanguageModel>> {
        engine::load(&model.model, &config.engine, &model.device.open()?, model.dtype, max_model_len)
    };
    requests::run::<J>(&mut load, requests, output)
}

/// One line for machines, or one for people.
pub(super) fn print_summary(summary: &Summary, json: bool) -> Result<()> {
    if json {
        telemetry::print_result(serde_json::to_string(summary)?);
    } else {
        let Summary { requests, completed, errors, completion_tokens, seconds, .. } = summary;
        telemetry::print_result(format!(
            "{requests} requests: {completed} answers, {errors} errors, {completion_tokens} tokens in {seconds:.1} s"
        ));
    }
    Ok(())
}
