//! `glan improve`: measure, find the weak disciplines, generate more of them, train again, measure again.
//!
//! Round N lives in `RUN/round-N/`, a run directory of its own that every command takes. It begins as a copy of what the
//! run before it generated, so the run itself stays as it was; its extra pairs are curated together with the old
//! ones, and the student is trained from the start on all of them. A kill at any point is mended by the same command.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::pipeline;
use crate::{
    cli::StageArgs,
    config::Config,
    device::Device,
    error::usage,
    evaluate::{self, Improvement, WeakNodes},
    records, report,
    run_dir::RunDir,
    telemetry::print_result,
};

/// Arguments of `glan improve`.
#[derive(Debug, Clone, Args)]
pub struct ImproveArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Rounds in all, those that are finished included.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rounds: usize,
    /// Exit with code 4 where a round made a task, the weak or the other disciplines significantly worse.
    #[arg(long)]
    pub fail_on_regression: bool,
}

/// A finished round.
#[derive(Debug, Serialize)]
struct Round {
    round: usize,
    run_dir: PathBuf,
    report: PathBuf,
    improvement: Improvement,
}

/// `glan improve`.
///
/// **Errors**: those of the stages; a regression, where that was asked for.
pub fn main(args: &ImproveArgs) -> Result<()> {
    let config = pipeline::load_config(&args.stage, "improve")?;
    if args.rounds == 0 {
        return Err(usage("--rounds is 0, but must be at least 1"));
    }
    config.device.open_for_training()?;
    let device = Device::Cpu;
    pipeline::check(&config)?;
    let run_dir = RunDir::open(&args.stage.run_dir_path(), &config)?;
    pipeline::run_stages(&config, &run_dir, &device, None)?;
    let mut rounds: Vec<Round> = Vec::new();
    let mut stopped = None;
    for round in 1..=args.rounds {
        let before = rounds.last().map_or(run_dir.root(), |last| last.run_dir.as_path()).to_owned();
        match run_round(&config, &before, &run_dir.root().join(format!("round-{round}")), &device, round)? {
            Some(finished) => rounds.push(finished),
            None => {
                stopped = Some(format!("round {round}: no discipline is weak by the rule of `[improve]`"));
                break;
            }
        }
    }
    if args.stage.json {
        print_result(json!({"run_dir": run_dir.root(), "rounds": rounds, "stopped": stopped}));
    } else {
        for round in &rounds {
            print_result(format!("round {}\n{}", round.round, evaluate::table::improvement(&round.improvement)));
            print_result(format!("report: {}\n", round.report.display()));
        }
        if let Some(stopped) = stopped {
            print_result(stopped);
        }
    }
    let regressions = || {
        let of = |round: &Round| round.improvement.regressions();
        Ok(rounds.iter().flat_map(of).collect())
    };
    pipeline::gate(args.fail_on_regression, regressions)
}

/// One round after the run at `before`; `None` when nothing there is weak.
fn run_round(config: &Config, before: &Path, root: &Path, device: &Device, round: usize) -> Result<Option<Round>> {
    let weak_file = root.join("weak_nodes.json");
    if !weak_file.is_file() {
        let found = before.join("evaluate/weak_nodes.json");
        let weak: WeakNodes = records::read_json(&found)?;
        if !weak.nodes.iter().any(|node| node.is_weak) {
            return Ok(None);
        }
        let bytes = fs::read(&found).with_context(|| format!("cannot read `{}`", found.display()))?;
        records::write_atomic(&weak_file, &bytes)?;
    }
    let run_dir = RunDir::open(root, config)?;
    copy_once(&[(before.join("generate"), "")], &run_dir.stage("generate"))?;
    // The base model is the same and so are the items: its answers need not be made again.
    let base = ["base", "base_fewshot"].map(|name| (before.join("evaluate").join(name), name));
    copy_once(&base, &run_dir.stage("evaluate"))?;
    tracing::info!("round {round} in `{}`", root.display());
    pipeline::run_stages(config, &run_dir, device, Some(&weak_file))?;
    let improvement = pipeline::stage_of("improve", || {
        let found = evaluate::improvement(config, before, &run_dir, &weak_file)?;
        Ok((format!("{}; {}", found.weak.sentence("weak"), found.others.sentence("others")), found))
    })?;
    // Once more, with what the round did.
    let report = report::run(config, &run_dir)?;
    Ok(Some(Round { round, run_dir: root.to_owned(), report, improvement }))
}

/// Copies folders (those that are there) to places under `target`, unless `target` is there already; it appears whole
/// or not at all.
fn copy_once(folders: &[(PathBuf, &str)], target: &Path) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let partial = target.with_extension("partial");
    let context = || format!("cannot copy to `{}` (is the disk full?)", partial.display());
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(context)?;
    }
    fs::create_dir_all(&partial).with_context(context)?;
    for (from, name) in folders.iter().filter(|(from, _)| from.is_dir()) {
        let to = partial.join(name);
        fs::create_dir_all(&to).with_context(context)?;
        for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
            let path = entry.with_context(context)?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                fs::copy(&path, to.join(name)).with_context(context)?;
            }
        }
    }
    fs::rename(&partial, target).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_made_once_whole_and_without_what_an_earlier_try_left() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (from, target) = (folder.path().join("from"), folder.path().join("to/generate"));
        fs::create_dir_all(&from)?;
        fs::write(from.join("a.jsonl"), "one")?;
        fs::create_dir_all(folder.path().join("to/generate.partial"))?;
        fs::write(folder.path().join("to/generate.partial/torn"), "x")?;
        let copy = || copy_once(&[(from.clone(), "base"), (folder.path().join("missing"), "base_fewshot")], &target);
        copy()?;
        assert_eq!(fs::read_to_string(target.join("base/a.jsonl"))?, "one");
        assert!(!target.join("torn").exists() && !target.join("base_fewshot").exists());
        fs::write(from.join("a.jsonl"), "two")?;
        copy()?;
        assert_eq!(fs::read_to_string(target.join("base/a.jsonl"))?, "one");
        Ok(())
    }
}
