//! What a round of the closed loop did: the student before and after it on the items that nobody was chosen by.
//!
//! Two questions were asked beforehand, so each has its own test at 5 %: did the weak disciplines, pooled, get better,
//! and did the others, pooled, stay as they were. Single disciplines have few items; their intervals are there to be
//! read, not to be counted as findings.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    compare_results::{self, ComparedRow},
    paired::{Change, Paired, check_items},
    stats,
    weak::{self, Item, WeakNodes},
};
use crate::{config::Config, records, run_dir::RunDir, seed};

/// `evaluate/improvement.json` of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Improvement {
    /// The task.
    pub task: String,
    /// Its metric and filter.
    pub metric: String,
    /// The weak disciplines together, on held-out items.
    pub weak: GroupChange,
    /// The other disciplines together, on held-out items.
    pub others: GroupChange,
    /// Every discipline, on held-out items; those that were weakest come first.
    pub nodes: Vec<NodeChange>,
    /// Every task on all its items; `a` is before, `b` after. Corrected by Holm's method.
    pub tasks: Vec<ComparedRow>,
}

/// Several disciplines before and after. Scores are shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupChange {
    /// Held-out items.
    pub n: usize,
    /// Before the round.
    pub before: f64,
    /// After it.
    pub after: f64,
    /// 95 % bootstrap interval of the difference.
    pub difference_ci95: Option<[f64; 2]>,
    /// Exact McNemar test.
    pub p_value: f64,
    /// What it comes to.
    pub change: Change,
}

/// One discipline before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeChange {
    /// Its name.
    pub discipline: String,
    /// Whether the round was for it.
    pub is_weak: bool,
    /// Held-out items.
    pub n: usize,
    /// Before the round.
    pub before: f64,
    /// 95 % interval of it.
    pub before_ci95: [f64; 2],
    /// After it.
    pub after: f64,
    /// 95 % interval of it.
    pub after_ci95: [f64; 2],
    /// Exact McNemar test, uncorrected.
    pub p_value: f64,
    /// Training rows before the round.
    pub rows_before: usize,
    /// Training rows after it.
    pub rows_after: usize,
}

/// Compares the student of the run at `before` with that of `run_dir`, for which `weak_file` asked for more data, and
/// writes `improvement.json`.
///
/// **Errors**: usage, where the two were not asked the same items.
pub fn improvement(config: &Config, before: &Path, run_dir: &RunDir, weak_file: &Path) -> Result<Improvement> {
    let weak: WeakNodes = records::read_json(weak_file)?;
    let (metric, filter) = weak.metric.split_once(',').context("a metric is named with its filter")?;
    let tuned = [before.join("evaluate/tuned"), run_dir.stage_file("evaluate", "tuned")];
    let [first, second] = [compare_results::find(&tuned[0])?, compare_results::find(&tuned[1])?];
    let (first, second) = (first.samples(&weak.task, filter)?, second.samples(&weak.task, filter)?);
    check_items(&weak.task, ["the student before", "the student after"], &first, &second)?;
    let mut items = weak::items(&first, &second, metric, weak.seed, weak.rule.selection_fraction);
    items.retain(|item| !item.is_selection);
    let is_weak = |name: &str| weak.nodes.iter().any(|node| node.is_weak && node.discipline == name);
    let (of_weak, of_others): (Vec<Item>, Vec<Item>) =
        items.iter().cloned().partition(|item| is_weak(&item.discipline));
    let group = |name: &str, items: &[Item]| {
        let mut random = seed::stream(config.seed, "evaluate", &format!("bootstrap improvement {name}"));
        let (first, second) = scores(items);
        GroupChange::new(&Paired::new(&first, &second, config.evaluate.bootstrap_iters, &mut random))
    };
    let rows_before = weak::count_rows(&before.join("curate/train.jsonl"))?;
    let rows_after = weak::count_rows(&run_dir.stage_file("curate", "train.jsonl"))?;
    let mut by_discipline: BTreeMap<&str, Vec<Item>> = BTreeMap::new();
    for item in &items {
        by_discipline.entry(&item.discipline).or_default().push(item.clone());
    }
    let of_node = |node: &weak::Node| {
        let (first, second) = scores(by_discipline.get(node.discipline.as_str())?);
        let (n, (before, _), (after, _)) = (first.len(), stats::mean_stderr(&first), stats::mean_stderr(&second));
        Some(NodeChange {
            discipline: node.discipline.clone(),
            is_weak: node.is_weak,
            n,
            before,
            before_ci95: stats::wilson95(before, n),
            after,
            after_ci95: stats::wilson95(after, n),
            p_value: stats::paired_p_value(&first, &second),
            rows_before: rows_before.get(&node.discipline).copied().unwrap_or(0),
            rows_after: rows_after.get(&node.discipline).copied().unwrap_or(0),
        })
    };
    let tasks = compare_results::compare_results(&tuned[0], &tuned[1], config.seed, config.evaluate.bootstrap_iters)?;
    let found = Improvement {
        task: weak.task.clone(),
        metric: weak.metric.clone(),
        weak: group("weak", &of_weak),
        others: group("others", &of_others),
        nodes: weak.nodes.iter().filter_map(of_node).collect(),
        tasks: tasks.tasks,
    };
    records::write_json(&run_dir.stage_file("evaluate", "improvement.json"), &found)?;
    Ok(found)
}

fn scores(items: &[Item]) -> (Vec<f64>, Vec<f64>) {
    items.iter().map(|item| (item.first, item.second)).unzip()
}

impl GroupChange {
    fn new(paired: &Paired) -> Self {
        Self {
            n: paired.n,
            before: paired.first.0,
            after: paired.second.0,
            difference_ci95: paired.difference_ci95,
            p_value: paired.p_value,
            change: Change::of(paired.difference(), paired.p_value, true),
        }
    }

    /// In words.
    pub fn sentence(&self, what: &str) -> String {
        let Self { n, before, after, p_value, change, .. } = self;
        let interval = self.difference_ci95.map_or_else(String::new, |[low, high]| {
            format!(", 95% interval of the difference {:+.1} to {:+.1} points", 100.0 * low, 100.0 * high)
        });
        format!(
            "{what}: {:.1}% before, {:.1}% after on {n} held-out items (p = {p_value:.2e}{interval}): {}",
            100.0 * before,
            100.0 * after,
            change.text()
        )
    }
}

impl Improvement {
    /// What stands in the way of a gate, one line each.
    pub fn regressions(&self) -> Vec<String> {
        let worse = self.tasks.iter().filter(|row| row.change == Change::Worse);
        let mut found: Vec<String> =
            worse.map(|row| format!("{} {} went from {:.4} to {:.4}", row.task, row.metric, row.a, row.b)).collect();
        for (name, group) in [("weak disciplines", &self.weak), ("other disciplines", &self.others)] {
            if group.change == Change::Worse {
                found.push(group.sentence(name));
            }
        }
        found
    }
}
