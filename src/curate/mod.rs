//! Stage 2, `curate`: pairs to training rows.
//!
//! *Reads* `generate/answers.jsonl` (or any file of conversations with `--data`) and the benchmarks of
//! `evaluate.data_dir`. *Writes* `curate/train.jsonl`, `valid.jsonl`, `test.jsonl`, `rejected.jsonl`, `scores.jsonl`
//! ([`columns`]), `audit.json` ([`audit`]), `dataset/` and `stats.json`, in the order of the input, byte for byte the same
//! on every run. *Rejects*, in this order and each with its evidence: `format`, `length`, `quality` ([`filter`]),
//! `threshold` ([`columns`]), `contaminated` ([`decontaminate`]), `exact_duplicate` and `near_duplicate` ([`dedup`]),
//! and where asked for `semantic_duplicate` ([`semantic_duplicates`]), `quota` and `held_out`; a damaged line is such a rejection too. *Resumes* by starting over: files appear only when they are whole.

mod arithmetic;
pub mod audit;
pub mod benchmarks;
pub mod columns;
pub mod decontaminate;
pub mod dedup;
mod export;
pub mod filter;
pub mod lexicon;
pub mod minhash;
pub mod model_columns;
mod ngram_table;
pub mod normalize;
mod pass;
mod plan;
pub mod row_words;
pub mod rows;
pub mod semantic_duplicates;
pub mod split;
mod whole_items;
mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

pub use self::model_columns::Role;
pub use self::pass::{Audit, CurateStats, NearDuplicateStats, SplitCounts};
use self::{
    benchmarks::BenchmarkText,
    decontaminate::{BenchmarkIndex, IndexBuilder},
    pass::Source,
    rows::RowFormat,
};
use crate::{
    cli::StageArgs,
    config::{Config, CurateConfig},
    error::{Failure, usage},
    language_model::{LanguageModel, TextEncoder},
    run_dir::RunDir,
    seed, telemetry,
};

/// Benchmarks inside the binary: name and JSON lines.
const BUILT_IN_BENCHMARKS: [(&str, &str); 2] = [
    ("primer", include_str!("../../benchmarks/primer/primer.jsonl")),
    ("primer_mc", include_str!("../../benchmarks/primer/primer_mc.jsonl")),
];

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

/// `glan curate`; `models` loads those that the configuration names.
pub fn main(args: &CurateArgs, config: &Config, models: &mut dyn Models) -> Result<()> {
    if args.benchmarks.is_some() && !config.curate.decontaminate {
        return Err(usage("`--benchmarks` was given, but `curate.decontaminate` is false; drop one of the two"));
    }
    let folder = args.benchmarks.as_deref().or_else(|| configured_folder(config));
    let stats = match (&args.data, &args.output) {
        (Some(data), Some(output)) => curate_file(config, folder, data, output, models)?,
        _ => {
            let run_dir = RunDir::open(&args.stage.run_dir_path(), config)?;
            curate_run(config, folder, &run_dir, models)?
        }
    };
    if args.stage.json {
        telemetry::print_result(serde_json::to_string_pretty(&stats)?);
    } else {
        telemetry::print_result(summary(&stats));
    }
    Ok(())
}

/// Runs the stage on a run directory.
///
/// **Errors**: the answers are missing ([`Failure::MissingInput`]); the benchmarks folder is (usage); the disk fails.
pub fn run(config: &Config, run_dir: &RunDir, models: &mut dyn Models) -> Result<()> {
    let stats = curate_run(config, configured_folder(config), run_dir, models)?;
    tracing::info!("curate: {}", summary(&stats));
    Ok(())
}

fn configured_folder(config: &Config) -> Option<&Path> {
    Some(config.evaluate.data_dir.as_path()).filter(|folder| !folder.as_os_str().is_empty())
}

fn curate_run(
    config: &Config,
    folder: Option<&Path>,
    run_dir: &RunDir,
    models: &mut dyn Models,
) -> Result<CurateStats> {
    let answers = run_dir.stage_file("generate", "answers.jsonl");
    if !answers.is_file() {
        return Err(Failure::MissingInput(format!(
            "`{}` is missing; make it with `glan generate -c CONFIG --run-dir {}`",
            answers.display(),
            run_dir.root().display()
        ))
        .into());
    }
    let index = benchmark_index(config, folder)?;
    let output = run_dir.stage("curate");
    let provenance = provenance(run_dir, config.seed)?;
    let curate = &config.curate;
    model_columns::measure(&answers, RowFormat::Pairs, &output, curate, &mut |role| models.language_model(role))?;
    let encoder = encoder(curate, models)?;
    let source = Source { path: &answers, format: RowFormat::Pairs, provenance: &provenance };
    let stats = pass::curate(&source, &output, curate, config.seed, index.as_ref(), encoder.as_deref())?;
    warn_when_empty(&stats, &output);
    Ok(stats)
}

fn curate_file(
    config: &Config,
    folder: Option<&Path>,
    data: &Path,
    output: &Path,
    models: &mut dyn Models,
) -> Result<CurateStats> {
    if !data.is_file() {
        return Err(usage(format!("`--data {}` is not a file", data.display())));
    }
    for name in
        ["train.jsonl", "valid.jsonl", "test.jsonl", "rejected.jsonl", "scores.jsonl", "ifd.jsonl", "judge_score.jsonl"]
    {
        let target = output.join(name);
        if target.exists() && target.canonicalize()? == data.canonicalize()? {
            return Err(usage(format!(
                "`--output {}` would overwrite the file of `--data`; choose another folder",
                output.display()
            )));
        }
    }
    let index = benchmark_index(config, folder)?;
    let curate = &config.curate;
    model_columns::measure(data, RowFormat::Messages, output, curate, &mut |role| models.language_model(role))?;
    let encoder = encoder(curate, models)?;
    let source = Source { path: data, format: RowFormat::Messages, provenance: &Value::Null };
    let stats = pass::curate(&source, output, curate, config.seed, index.as_ref(), encoder.as_deref())?;
    warn_when_empty(&stats, output);
    Ok(stats)
}

/// What the stage asks for when the configuration names it.
pub trait Models {
    /// Loads the model that measures a column.
    fn language_model(&mut self, role: Role) -> Result<Box<dyn LanguageModel>>;

    /// Loads the encoder of [`semantic_duplicates`].
    fn encoder(&mut self) -> Result<Box<dyn TextEncoder>>;
}

fn encoder(config: &CurateConfig, models: &mut dyn Models) -> Result<Option<Box<dyn TextEncoder>>> {
    if config.encoder_model.is_empty() { Ok(None) } else { Ok(Some(models.encoder()?)) }
}

/// What all rows of a run have in common: which weights wrote them, with which prompts and which seed.
fn provenance(run_dir: &RunDir, seed: u64) -> Result<Value> {
    let file = |name: &str| -> Result<Option<Vec<u8>>> {
        let path = run_dir.stage_file("generate", name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    };
    let teacher = file("teacher.json")?.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let teacher = teacher.unwrap_or_default();
    let prompts = file("prompts.json")?.map(|bytes| seed::record_id(&["prompts", &String::from_utf8_lossy(&bytes)]));
    Ok(json!({
        "stage": "answers", "teacher": teacher["name"], "teacher_hash": teacher["hash"], "prompt_version": prompts,
        "seed": seed,
    }))
}

/// Everything that rows must not hold: the built-in benchmarks and those of a folder. `None` when that is off.
fn benchmark_index(config: &Config, folder: Option<&Path>) -> Result<Option<BenchmarkIndex>> {
    if !config.curate.decontaminate {
        return Ok(None);
    }
    let n = config.curate.decontaminate_ngram;
    let mut builder = IndexBuilder::new(n);
    for text in built_in_benchmarks() {
        builder.add(&text);
    }
    if let Some(folder) = folder {
        let files = benchmarks::read_folder(folder, &mut |text| {
            builder.add(&text);
            crate::interrupt::check()?;
            Ok(())
        })?;
        if files == 0 {
            tracing::warn!(
                "the benchmarks folder `{}` holds no .jsonl, .json, .csv, .tsv or .parquet file; nothing of it is compared",
                folder.display()
            );
        }
    }
    let index = builder.build();
    let counts = index.counts();
    tracing::info!("comparing with {} benchmark texts ({} n-grams of {n} words)", counts.texts, counts.ngrams);
    Ok(Some(index))
}

/// The texts of the benchmarks inside the binary.
pub fn built_in_benchmarks() -> Vec<BenchmarkText> {
    BUILT_IN_BENCHMARKS.iter().flat_map(|(name, content)| benchmarks::parse_jsonl(name, content)).collect()
}

fn warn_when_empty(stats: &CurateStats, output: &Path) {
    if stats.splits.train == 0 {
        tracing::warn!(
            "no training row is left of {} ({}); see `{}`",
            stats.rows_in,
            summary(stats),
            output.join("rejected.jsonl").display()
        );
    }
}

/// One line for people.
fn summary(stats: &CurateStats) -> String {
    let CurateStats { rows_in, kept, splits, .. } = stats;
    let mut line =
        format!("kept {kept} of {rows_in} rows (train {}, valid {}, test {})", splits.train, splits.valid, splits.test);
    let reasons: Vec<String> = stats
        .rejected
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if !reasons.is_empty() {
        line.push_str("; rejected: ");
        line.push_str(&reasons.join(", "));
    }
    line
}

#[cfg(test)]
mod benchmarks_tests;
#[cfg(test)]
mod decontaminate_tests;
#[cfg(test)]
mod dedup_tests;
#[cfg(test)]
mod model_columns_tests;
#[cfg(test)]
mod planted_tests;
#[cfg(test)]
mod tests;
