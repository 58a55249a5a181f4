//! Stage 3, `train`: rows to a student.
//!
//! *Reads* `curate/train.jsonl` and `valid.jsonl` and the student's model directory. *Writes* `train/metrics.jsonl`,
//! `train/checkpoint-N/`, and at the end `train/student/` (a Hugging Face directory) and `train/train_results.json`.
//! *Rejects* nothing: rows cut or left out are counted. *Resumes* at the newest whole checkpoint; on the CPU in f32 the
//! student's weights are byte-identical whether the run was interrupted or not.

mod checkpoint;
mod dataset;
mod optimizer;
mod output;
mod rows;
mod schedule;
mod trainer;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

pub use self::{
    checkpoint::TrainerState,
    dataset::{Dataset, Encoding, Example, Rendered, read},
    optimizer::Optimizer,
    output::TrainResults,
    rows::{Row, RowContent, RowFormat},
    schedule::Schedule,
    trainer::chat_template,
};
use crate::{
    cli::StageArgs,
    config::{Config, ModelConfig},
    error::{Failure, usage},
    records::read_json,
    run_dir::RunDir,
    telemetry,
};

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
    /// Measure the validation loss on this file of rows.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub valid: Option<PathBuf>,
    /// Where checkpoints and the trained model go.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub output: Option<PathBuf>,
}

/// What one training run reads and writes.
struct Job<'a> {
    config: &'a Config,
    model: ModelConfig,
    data: PathBuf,
    valid: Option<PathBuf>,
    output: PathBuf,
}

/// `glan train`.
pub fn main(args: &TrainArgs) -> Result<()> {
    let mut config = args.stage.load_config()?;
    let results = match (&args.model, &args.data, &args.output) {
        (Some(model), Some(data), Some(output)) => {
            if !data.is_file() {
                return Err(usage(format!("`--data {}`: no such file", data.display())));
            }
            config.student.model.clone_from(model);
            let job = Job {
                config: &config,
                model: config.student.clone(),
                data: data.clone(),
                valid: args.valid.clone(),
                output: output.clone(),
            };
            train(&job)?
        }
        _ => {
            if args.stage.config.is_none() {
                return Err(usage(
                    "`glan train` needs a configuration (`-c FILE`), or `--model`, `--data` and `--output`",
                ));
            }
            let run_dir = RunDir::open(&args.stage.run_dir_path(), &config)?;
            run(&config, &run_dir)?
        }
    };
    if args.stage.json {
        telemetry::print_result(serde_json::to_string(&results)?);
    }
    Ok(())
}

/// Runs the stage on a run directory.
pub fn run(config: &Config, run_dir: &RunDir) -> Result<TrainResults> {
    let data = run_dir.stage_file("curate", "train.jsonl");
    if !data.exists() {
        return Err(Failure::MissingInput(format!(
            "`{}` is missing; make it with `glan curate -c FILE --run-dir {}`",
            data.display(),
            run_dir.root().display()
        ))
        .into());
    }
    let valid = run_dir.stage_file("curate", "valid.jsonl");
    let valid = valid.metadata().is_ok_and(|file| file.len() > 0).then_some(valid);
    train(&Job { config, model: config.student.clone(), data, valid, output: run_dir.stage("train") })
}

fn train(job: &Job) -> Result<TrainResults> {
    if job.model.model.is_empty() {
        return Err(usage("no student is named: set `student.model` to a directory or `org/name`"));
    }
    let device = job.config.device.open()?;
    let prepared = trainer::prepare(job, &device)?;
    let results_file = job.output.join("train_results.json");
    if let Some(results) = finished(&results_file, &prepared.run_hash)? {
        tracing::info!("training is finished already, loss {:.4}", results.train_loss);
        return Ok(results);
    }
    trainer::run(job, prepared)
}

/// The results of an earlier, finished run of the same job.
fn finished(path: &Path, run_hash: &str) -> Result<Option<TrainResults>> {
    if !path.exists() {
        return Ok(None);
    }
    let results: TrainResults = read_json(path)?;
    if results.run_hash != run_hash {
        let folder = path.parent().unwrap_or(path);
        bail!(
            "`{}` holds a model trained with other settings or other data; give another output folder, or remove it to \
             train again",
            folder.display()
        );
    }
    Ok(Some(results))
}
