//! The command line: what was typed. Thin: every command is one call into the library.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{
    commands, config, curate,
    device::{DeviceKind, DtypeChoice},
    error, evaluate, generate, interrupt, telemetry, train,
};

/// Taxonomy to instruction data to a fine-tuned, measured student: GLAN (arXiv 2402.13064) on one workstation, offline.
#[derive(Debug, Parser)]
#[command(name = "glan", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more.
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Log errors alone.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole pipeline: generate, curate, train, evaluate, report.
    Run(RunArgs),
    /// Stage 1: taxonomy to question-answer pairs.
    Generate(GenerateArgs),
    /// Stage 2: pairs to training rows (or: your own JSONL with --data).
    Curate(curate::CurateArgs),
    /// Stage 3: rows to a student (or: any model on any data with --model and --data).
    Train(train::TrainArgs),
    /// Stage 4: base and student on the same items (or: any model with --model and --tasks).
    Evaluate(evaluate::EvaluateArgs),
    /// Stage 5: one self-contained HTML page.
    Report(StageArgs),
    /// The closed loop: find weak disciplines, generate more of them, train again, measure.
    Improve(commands::improve::ImproveArgs),
    /// Continue prompts from a JSONL file.
    Complete(commands::complete::CompleteArgs),
    /// Log-likelihoods of continuations from a JSONL file.
    Score(commands::score::ScoreArgs),
    /// Serve a model over HTTP with OpenAI's API.
    Serve(commands::serve::ServeArgs),
    /// Look at, review and extend the taxonomy that everything is made from.
    Taxonomy(commands::taxonomy::TaxonomyArgs),
    /// Talk to a model.
    Chat(commands::chat::ChatArgs),
    /// What a model, a data file or a run directory holds.
    Inspect(commands::inspect::InspectArgs),
    /// Write a model as one GGUF file or as a Hugging Face directory, and check what was written.
    Export(commands::export::ExportArgs),
    /// Download a model into the Hugging Face cache.
    Fetch(commands::fetch::FetchArgs),
    /// Measure how fast this machine is.
    Bench(commands::bench::BenchArgs),
    /// What this machine and this binary can do.
    Doctor(commands::doctor::DoctorArgs),
    /// Check the trainer's arithmetic on this machine: finite differences, equivalences, PyTorch's loss curve.
    Selftest(commands::selftest::SelftestArgs),
    /// Inside of the code sandbox; started by `glan evaluate`.
    #[command(hide = true)]
    SandboxChild(evaluate::sandbox::ChildArgs),
}

/// What every stage command takes.
#[derive(Debug, Clone, Args)]
pub struct StageArgs {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run directory; `runs/` and the configuration's name by default.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Override a configuration key, such as `train.learning_rate=1e-4`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `glan run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Exit with code 4 where the student is significantly worse than the base model on a task.
    #[arg(long)]
    pub fail_on_regression: bool,
}

/// Arguments of `glan generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub run: StageArgs,
    /// Add pairs for the weak disciplines of this file (`evaluate/weak_nodes.json` of a run) to what is there.
    #[arg(long, value_name = "FILE")]
    pub weak: Option<PathBuf>,
    /// Stop after this step: `taxonomy` has the teacher build one, `generate/taxonomy.toml`, for you to edit; the run goes by it
    /// from then on.
    #[arg(long, value_name = "STEP", value_parser = ["taxonomy"], conflicts_with_all = ["weak", "shard", "only", "pilot", "merge"])]
    pub stage: Option<String>,
    /// Do part I of N of the questions and answers (I from 0); any number of such processes may share a run directory.
    #[arg(long, value_name = "I/N", conflicts_with = "weak")]
    pub shard: Option<generate::Shard>,
    /// Draw one branch of a finished run anew, such as "Mathematics > Algebra" (names of a field, sub-field, discipline or
    /// subject, from above to below); everything else stays as it is.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["shard", "weak"])]
    pub only: Option<String>,
    /// Stop after a pilot, and say how many pairs, tokens and hours the run will be. What it asked is part of the run.
    #[arg(long, conflicts_with_all = ["shard", "weak", "only"])]
    pub pilot: bool,
    /// Put the parts of all shards together, byte for byte as one process would have written them.
    #[arg(long, conflicts_with_all = ["weak", "shard", "only", "pilot"])]
    pub merge: bool,
    /// Write the pending requests of the step that is next as lines of OpenAI's batch API, at most 50,000, and stop.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["weak", "shard", "only", "pilot", "merge", "stage"])]
    pub export_batch: Option<PathBuf>,
    /// Read the batch API's answers back by their `custom_id`; what is missing or failed stays pending.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["weak", "shard", "only", "pilot", "merge", "stage", "export_batch"])]
    pub import_batch: Option<PathBuf>,
}

impl StageArgs {
    /// The resolved configuration: of `--config`, else of the run directory that is named.
    pub fn load_config(&self) -> Result<config::Config> {
        let saved = self.run_dir.as_ref().map(|folder| folder.join("run.toml")).filter(|path| path.is_file());
        config::load(self.config.as_ref().or(saved.as_ref()).map(PathBuf::as_path), &self.set)
    }

    /// The run directory: as given, else `runs/` and the configuration file's stem.
    pub fn run_dir_path(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| {
            let stem = self.config.as_deref().and_then(Path::file_stem).unwrap_or_default();
            Path::new("runs").join(if stem.is_empty() { "default".as_ref() } else { stem })
        })
    }
}

/// How a model is loaded by the commands that take one.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model directory, GGUF file, or `org/name` in the Hugging Face cache.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Type of the weights.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: DtypeChoice,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceKind,
    /// Override an `engine` key, such as `engine.max_num_seqs=8`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Parses, runs, prints the error chain on stderr, and returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before any thread is started: what follows is for single-threaded processes.
    if let Command::SandboxChild(args) = &cli.command {
        return ExitCode::from(evaluate::sandbox::child_main(args));
    }
    telemetry::install(cli.verbose, cli.quiet);
    interrupt::install();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            telemetry::print_error(&failure);
            ExitCode::from(error::exit_code(&failure))
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => commands::pipeline::run(&args),
        Command::Curate(args) => commands::pipeline::curate(&args),
        Command::Generate(args) => commands::generate::main(&args),
        Command::Train(args) => commands::pipeline::train(&args),
        Command::Evaluate(args) => commands::pipeline::evaluate(&args),
        Command::Report(args) => commands::pipeline::report(&args),
        Command::Improve(args) => commands::improve::main(&args),
        Command::Complete(args) => commands::complete::main(&args),
        Command::Score(args) => commands::score::main(&args),
        Command::Serve(args) => commands::serve::main(&args),
        Command::Taxonomy(args) => commands::taxonomy::main(&args),
        Command::Chat(args) => commands::chat::main(&args),
        Command::Inspect(args) => commands::inspect::main(&args),
        Command::Export(args) => commands::export::main(&args),
        Command::Fetch(args) => commands::fetch::main(&args),
        Command::Bench(args) => commands::bench::main(&args),
        Command::Doctor(args) => commands::doctor::main(&args),
        Command::Selftest(args) => commands::selftest::main(&args),
        Command::SandboxChild(_) => unreachable!("`main` has run it before"),
    }
}
