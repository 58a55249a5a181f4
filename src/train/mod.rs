//! Stage 3, `train`: rows to a student.
//!
//! *Reads* `curate/train.jsonl` and `valid.jsonl` and the student's model directory. *Writes* `train/metrics.jsonl`,
//! `train/samples.jsonl`, `train/checkpoint-N/`, and at the end `train/student/` (a Hugging Face directory), `train/train_results.json` and, where an
//! adapter was trained, `train/adapter/` (PEFT's format).
//! *Rejects* nothing: rows cut or left out are counted. *Resumes* at the newest whole checkpoint; on the CPU in f32 the
//! student's weights are byte-identical whether the run was interrupted or not.

mod accumulate;
mod arena_file;
mod checkpoint;
mod dataset;
mod forecast;
mod model_card;
mod monitor;
mod optimizer;
mod output;
mod plan;
mod rows;
mod samples;
mod schedule;
mod selftest;
mod target;
mod tensorboard;
mod token_file;
mod trainer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

pub use self::{
    checkpoint::TrainerState,
    dataset::{Dataset, Encoding, Example, Rendered, RowTokens, read},
    forecast::{Forecast, flops_per_token, measured_flops},
    optimizer::Optimizer,
    output::TrainResults,
    rows::{Row, RowContent, RowFormat},
    schedule::Schedule,
    selftest::{Check, run as selftest},
    target::{Target, adapter_shape},
    trainer::{DryRun, chat_template},
};
use crate::{
    cli::StageArgs,
    config::{Config, ModelConfig, TrainConfig, TrainMethod},
    error::{Failure, usage},
    model::Quantization,
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
    /// Say what the run would need (memory by part, tokens, time) and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Writes a model directory as a GGUF file, and compares the two: the exporter is a command's, above this stage.
pub type GgufExporter = fn(&Path, &Path, Quantization) -> Result<()>;

/// What one training run reads and writes.
struct Job<'a> {
    config: &'a Config,
    export_gguf: GgufExporter,
    model: ModelConfig,
    data: PathBuf,
    valid: Option<PathBuf>,
    output: PathBuf,
    /// Whether the stages before made the rows.
    is_stage: bool,
}

/// `glan train`.
pub fn main(args: &TrainArgs, export_gguf: GgufExporter) -> Result<()> {
    let mut config = args.stage.load_config()?;
    let results = match (&args.model, &args.data, &args.output) {
        (Some(model), Some(data), Some(output)) => {
            if !data.is_file() {
                return Err(usage(format!("`--data {}`: no such file", data.display())));
            }
            config.student.model.clone_from(model);
            let job = Job {
                config: &config,
                export_gguf,
                model: config.student.clone(),
                data: data.clone(),
                valid: args.valid.clone(),
                output: output.clone(),
                is_stage: false,
            };
            if args.dry_run {
                return forecast_run(&job, args.stage.json);
            }
            train(&job)?
        }
        _ => {
            if args.stage.config.is_none() {
                return Err(usage(
                    "`glan train` needs a configuration (`-c FILE`), or `--model`, `--data` and `--output`",
                ));
            }
            let run_dir = RunDir::open(&args.stage.run_dir_path(), &config)?;
            if args.dry_run {
                return forecast_run(&stage_job(&config, &run_dir, export_gguf)?, args.stage.json);
            }
            run(&config, &run_dir, export_gguf)?
        }
    };
    if args.stage.json {
        telemetry::print_result(serde_json::to_string(&results)?);
    }
    Ok(())
}

/// Runs the stage on a run directory.
pub fn run(config: &Config, run_dir: &RunDir, export_gguf: GgufExporter) -> Result<TrainResults> {
    train(&stage_job(config, run_dir, export_gguf)?)
}

fn stage_job<'a>(config: &'a Config, run_dir: &RunDir, export_gguf: GgufExporter) -> Result<Job<'a>> {
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
    Ok(Job {
        config,
        export_gguf,
        model: config.student.clone(),
        data,
        valid,
        output: run_dir.stage("train"),
        is_stage: true,
    })
}

fn forecast_run(job: &Job, as_json: bool) -> Result<()> {
    check(job)?;
    let found = trainer::dry_run(job, &trainer::prepare(job, &job.config.device.open_for_training()?)?)?;
    if as_json {
        telemetry::print_result(serde_json::to_string(&found)?);
        return Ok(());
    }
    telemetry::print_result(format!(
        "{:<16}{} of {} rows ({} tokens a pass, {} of them trained)\n{:<16}{} in all, about {} at {:.0} tokens/s\n\
         {:<16}{}\n{:<16}{} of {}",
        "steps",
        found.steps,
        found.rows,
        found.tokens_per_epoch,
        found.trained_tokens_per_epoch,
        "tokens",
        found.tokens,
        monitor::duration(found.seconds),
        found.tokens_per_second,
        "memory",
        found.memory.text(),
        "trained",
        found.memory.trained_parameters,
        found.memory.parameters,
    ));
    Ok(())
}

fn check(job: &Job) -> Result<()> {
    if job.model.model.is_empty() {
        return Err(usage("no student is named: set `student.model` to a directory or `org/name`"));
    }
    quantizations(&job.config.train).map(|_| ())
}

/// What `train.export_gguf` names.
///
/// **Errors**: usage, where it names something else.
fn quantizations(settings: &TrainConfig) -> Result<Vec<Quantization>> {
    if !settings.export_gguf.is_empty() && settings.method != TrainMethod::Full && !settings.merge_adapter {
        return Err(usage(
            "`train.export_gguf` needs the merged student; set train.merge_adapter = true, or leave it out",
        ));
    }
    let of = |name: &String| {
        Quantization::from_str(name, false).map_err(|_| {
            let known: Vec<String> = Quantization::value_variants().iter().map(|known| known.name()).collect();
            usage(format!("`train.export_gguf` names `{name}`; expected some of {}", known.join(", ")))
        })
    };
    settings.export_gguf.iter().map(of).collect()
}

fn train(job: &Job) -> Result<TrainResults> {
    check(job)?;
    // The tokenised rows lie there while the run lives.
    fs::create_dir_all(&job.output).with_context(|| format!("cannot create `{}`", job.output.display()))?;
    let device = job.config.device.open_for_training()?;
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
