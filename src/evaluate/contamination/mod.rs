//! Contamination: has a model seen the benchmarks that it is measured with?
//!
//! Two views of it. [`losses`]: the loss on training and test splits of benchmarks (the paper's table 3). [`clean`]:
//! every score once more without the items that `curate` found in the generated data. Both go into
//! `evaluate/contamination.json`.

mod clean;
mod losses;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use self::{clean::CleanScore, losses::SplitLosses};
use self::{clean::LeakedItems, losses::Texts};
use super::{EvaluateArgs, Role, RoleLoader, compare::Evaluations, judge::Side, table::align, task::Task};
use crate::{config::Config, error::usage, language_model::LanguageModel, records, run_dir::RunDir, seed};

/// The file of results.
const FILE: &str = "contamination.json";

/// `contamination.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contamination {
    /// One row per benchmark and model.
    pub losses: Vec<SplitLosses>,
    /// One row per task and metric, of tasks with leaked items.
    pub scores: Vec<CleanScore>,
    /// Benchmark items that rejected training rows came close to.
    pub leaked_items: usize,
    /// Those of them that the benchmarks' files no longer hold.
    pub leaked_items_not_found: usize,
    /// Identifies the texts and the models of `losses`.
    pub evaluation_hash: String,
}

/// A check under way.
pub struct Check {
    texts: Vec<Texts>,
    folder: PathBuf,
    hash: String,
    /// Seed and resamples of the bootstrap.
    bootstrap: (u64, usize),
    losses: Vec<SplitLosses>,
    /// Whether models are to be asked at all.
    pub is_open: bool,
}

impl Check {
    fn new(texts: Vec<Texts>, folder: PathBuf, config: &Config, keys: &[&str]) -> Self {
        let bootstrap = (config.seed, config.evaluate.bootstrap_iters);
        let settings = format!("{bootstrap:?} {texts:?}");
        let hash = seed::record_id(&[keys, &[settings.as_str()]].concat());
        let is_open = !texts.is_empty();
        Self { texts, folder, hash, bootstrap, losses: Vec::new(), is_open }
    }

    /// Takes one model's losses.
    ///
    /// **Errors**: those of the model; interruption, with every answer so far on disk.
    pub fn measure(&mut self, side: Side, model: &mut dyn LanguageModel) -> Result<()> {
        let side = side.name();
        let folder = self.folder.join("contamination").join(side);
        self.losses.extend(losses::measure(&self.texts, side, &folder, model, self.bootstrap)?);
        Ok(())
    }

    fn write(mut self, scores: Vec<CleanScore>, leaked: &LeakedItems) -> Result<Contamination> {
        // Models next to one another, benchmark by benchmark; base comes before tuned.
        self.losses.sort_by(|a, b| (&a.benchmark, &a.model).cmp(&(&b.benchmark, &b.model)));
        let contamination = Contamination {
            losses: self.losses,
            scores,
            leaked_items: leaked.named,
            leaked_items_not_found: leaked.not_found,
            evaluation_hash: self.hash,
        };
        records::write_json(&self.folder.join(FILE), &contamination)?;
        Ok(contamination)
    }
}

/// The check of a run. Where `evaluate.contamination_items` is 0, or its losses are on disk, no model is asked.
///
/// **Errors**: a damaged benchmark row.
pub fn of_run(config: &Config, run_dir: &RunDir, base_key: &str, tuned_key: &str) -> Result<Check> {
    let evaluate = &config.evaluate;
    let texts = match evaluate.contamination_items {
        0 => Vec::new(),
        items => losses::texts(&evaluate.data_dir, items)?,
    };
    if texts.is_empty() && evaluate.contamination_items > 0 {
        tracing::warn!("no losses are compared: evaluate.data_dir holds no benchmark with a test and a training file");
    }
    let mut check = Check::new(texts, run_dir.stage("evaluate"), config, &[base_key, tuned_key]);
    let earlier = records::read_json::<Contamination>(&check.folder.join(FILE)).ok();
    if let Some(earlier) = earlier.filter(|earlier| check.is_open && earlier.evaluation_hash == check.hash) {
        check.losses = earlier.losses;
        check.is_open = false;
    }
    Ok(check)
}

/// Sets the clean scores beside the losses and writes both.
///
/// **Errors**: the rejected rows or the samples cannot be read.
pub fn finish(
    check: Check,
    config: &Config,
    run_dir: &RunDir,
    tasks: &[&'static dyn Task],
    evaluations: &Evaluations,
) -> Result<Contamination> {
    let leaked = LeakedItems::read(&run_dir.stage_file("curate", "rejected.jsonl"), &config.evaluate.data_dir)?;
    if leaked.not_found > 0 {
        tracing::warn!("{} of {} leaked items are not in the benchmarks' files", leaked.not_found, leaked.named);
    }
    check.write(clean::scores(tasks, evaluations, &leaked)?, &leaked)
}

/// `glan evaluate --contamination --model A [--against B]`: the losses alone.
///
/// **Errors**: usage, where no benchmark with two splits is there.
pub fn run_models(args: &EvaluateArgs, output: &Path, config: &Config, load: &mut RoleLoader) -> Result<Contamination> {
    let data_dir = args.data.clone().unwrap_or_default();
    let texts = losses::texts(&data_dir, args.limit.unwrap_or(0))?;
    if texts.is_empty() {
        return Err(usage(format!(
            "`--data {}` holds no benchmark with a test and a training file, such as gsm8k/test.jsonl and \
             gsm8k/train.jsonl",
            data_dir.display()
        )));
    }
    let mut check = Check::new(texts, output.to_owned(), config, &[]);
    if args.against.is_some() {
        check.measure(Side::Base, load(Role::Base)?.as_mut())?;
    }
    check.measure(Side::Tuned, load(Role::Tuned)?.as_mut())?;
    check.write(Vec::new(), &LeakedItems::default())
}

impl Contamination {
    /// For people; empty where there is nothing to tell.
    pub fn table(&self) -> String {
        let mut parts = Vec::new();
        if !self.losses.is_empty() {
            let header =
                ["benchmark", "model", "test loss", "train loss", "delta", "95 %", "delta %", "n test", "n train"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(self.losses.iter().map(|row| {
                let interval =
                    row.delta_ci95.map_or_else(|| "-".into(), |[low, high]| format!("{low:+.3} to {high:+.3}"));
                vec![
                    row.benchmark.clone(),
                    row.model.clone(),
                    format!("{:.3}", row.test_loss),
                    format!("{:.3}", row.train_loss),
                    format!("{:+.3}", row.delta),
                    interval,
                    format!("{:+.2}", row.delta_percent),
                    row.test_items.to_string(),
                    row.train_items.to_string(),
                ]
            }));
            parts.push(align(&rows, 2).join("\n"));
        }
        if !self.scores.is_empty() {
            let header = ["task", "metric", "n", "base", "tuned", "n clean", "base clean", "tuned clean"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            let percent = |score: f64| format!("{:.1}%", 100.0 * score);
            let clean = |score: Option<f64>| score.map_or_else(|| "-".to_owned(), percent);
            rows.extend(self.scores.iter().map(|row| {
                vec![
                    row.task.clone(),
                    row.metric.strip_suffix(",none").unwrap_or(&row.metric).to_owned(),
                    row.n.to_string(),
                    percent(row.base),
                    percent(row.tuned),
                    row.n_clean.to_string(),
                    clean(row.base_clean),
                    clean(row.tuned_clean),
                ]
            }));
            parts.push(align(&rows, 2).join("\n"));
        }
        parts.join("\n\n")
    }
}
