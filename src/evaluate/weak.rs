//! Weak nodes: the disciplines of the taxonomy in which the student falls behind, and the training rows behind them.
//!
//! A discipline is weak if its items are answered worse than all others by `improve.margin`, on at least
//! `improve.min_items` items, and if chance is no explanation: Fisher's exact test against the other items, corrected by
//! Benjamini and Hochberg's method (`improve.max_false_discovery`), which fits where several are picked and one wrong
//! pick costs little. Only the selection items count here. The held-out ones are for measuring what more data did
//! ([`mod@super::improvement`]): whoever is picked for a low score scores higher on other items without any change.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{results::Finished, stats, task::Task};
use crate::{
    config::{Config, ImproveConfig},
    records::{self, JsonlReader},
    run_dir::RunDir,
    seed,
};

/// `evaluate/weak_nodes.json`; `glan generate --weak` reads `nodes[].discipline` and `nodes[].extra_questions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeakNodes {
    /// The headline task.
    pub task: String,
    /// Its metric and filter, such as `exact_match,none`.
    pub metric: String,
    /// Root of the choice of selection items.
    pub seed: u64,
    /// The rule, as it was configured.
    pub rule: ImproveConfig,
    /// Selection items.
    pub n: usize,
    /// The tuned model's score on them.
    pub tuned: f64,
    /// The training rows behind the weak nodes, one per line with discipline, subject, id and parent; in this folder.
    pub rows_file: String,
    /// Every discipline that has items, lowest score first. Empty where the task's items name none.
    pub nodes: Vec<Node>,
}

/// One discipline. Scores are shares of its selection items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub discipline: String,
    /// Whether the rule picks it.
    pub is_weak: bool,
    /// Selection items.
    pub n: usize,
    /// Base model.
    pub base: f64,
    /// Tuned model.
    pub tuned: f64,
    /// 95 % interval of it.
    pub tuned_ci95: [f64; 2],
    /// Tuned model on the other disciplines' items.
    pub others: f64,
    /// One-sided exact test: as low as this by chance.
    pub p_value: f64,
    /// The same, corrected for the number of disciplines.
    pub q_value: f64,
    /// Questions that were generated for it.
    pub questions: usize,
    /// Training rows that are left of them.
    pub rows: usize,
    /// Questions to add; 0 unless it is weak.
    pub extra_questions: usize,
}

/// A row of `weak_rows.jsonl`, and what is read of a training row.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct RowOrigin {
    discipline: String,
    subject: String,
    id: String,
    parent: String,
}

/// One item's score by two models.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The discipline it names.
    pub discipline: String,
    /// Whether it is there to choose by, not to measure by.
    pub is_selection: bool,
    /// Score by the first model.
    pub first: f64,
    /// Score by the second.
    pub second: f64,
}

/// The items of a task that name a discipline, with both models' scores. The models answered the same items.
pub fn items(first: &[Value], second: &[Value], metric: &str, run_seed: u64, selection_fraction: f64) -> Vec<Item> {
    let mut groups: BTreeMap<&str, Vec<(u64, usize)>> = BTreeMap::new();
    for (place, row) in first.iter().enumerate() {
        let Some(discipline) = row["doc"]["discipline"].as_str() else { continue };
        let hash = row["doc_hash"].as_str().unwrap_or_default();
        groups.entry(discipline).or_default().push((seed::derive(run_seed, "evaluate.selection", hash), place));
    }
    let score = |row: &Value| row[metric].as_f64().unwrap_or(0.0);
    let mut items = Vec::new();
    for (discipline, mut members) in groups {
        // A share of every discipline, in an order that only the items themselves and the seed decide.
        members.sort_unstable();
        let chosen = (members.len() as f64 * selection_fraction).ceil() as usize;
        items.extend(members.into_iter().enumerate().map(|(rank, (_, place))| Item {
            discipline: discipline.to_owned(),
            is_selection: rank < chosen,
            first: score(&first[place]),
            second: score(&second[place]),
        }));
    }
    items
}

/// Writes `weak_nodes.json` and `weak_rows.jsonl` for the task that the verdict speaks of.
pub fn write(config: &Config, run_dir: &RunDir, task: &dyn Task, base: &Finished, tuned: &Finished) -> Result<()> {
    const ROWS_FILE: &str = "weak_rows.jsonl";
    let spec = task.spec();
    let (filter, metric) = (spec.filters[0], spec.metrics[0]);
    let (before, after) = (base.samples(spec.name, filter)?, tuned.samples(spec.name, filter)?);
    let rule = config.improve.clone();
    let mut items = items(&before, &after, metric, config.seed, rule.selection_fraction);
    items.retain(|item| item.is_selection);
    let train = run_dir.stage_file("curate", "train.jsonl");
    let questions = count_rows(&run_dir.stage_file("generate", "questions.jsonl"))?;
    let counts = Counts { questions, rows: count_rows(&train)?, num_questions: config.generate.num_questions };
    let nodes = choose(&items, &rule, &counts);

    let mut lines = Vec::new();
    let is_weak = |discipline: &str| nodes.iter().any(|node| node.is_weak && node.discipline == discipline);
    if train.is_file() && nodes.iter().any(|node| node.is_weak) {
        for row in JsonlReader::<RowOrigin>::open(&train)? {
            let row = row?;
            if is_weak(&row.discipline) {
                serde_json::to_writer(&mut lines, &row)?;
                lines.push(b'\n');
            }
        }
    }
    records::write_atomic(&run_dir.stage_file("evaluate", ROWS_FILE), &lines)?;
    let weak = WeakNodes {
        task: spec.name.to_owned(),
        metric: format!("{metric},{filter}"),
        seed: config.seed,
        n: items.len(),
        tuned: mean(items.iter().map(|item| item.second)),
        rows_file: ROWS_FILE.to_owned(),
        rule,
        nodes,
    };
    records::write_json(&run_dir.stage_file("evaluate", "weak_nodes.json"), &weak)
}

/// How much of each discipline the run has.
struct Counts {
    questions: BTreeMap<String, usize>,
    rows: BTreeMap<String, usize>,
    num_questions: usize,
}

fn choose(items: &[Item], rule: &ImproveConfig, counts: &Counts) -> Vec<Node> {
    let mut groups: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
    for item in items {
        groups.entry(&item.discipline).or_default().push(item);
    }
    let is_right = |item: &&Item| item.second > 0.5;
    let (all, all_right) = (items.len(), items.iter().filter(is_right).count());
    // Where the run generated its data, the even share is that of the disciplines which it has.
    let disciplines = if counts.questions.is_empty() { groups.len() } else { counts.questions.len() };
    let even = counts.num_questions as f64 / disciplines.max(1) as f64;
    let mut nodes: Vec<Node> = groups
        .into_iter()
        .map(|(discipline, group)| {
            let (n, right) = (group.len(), group.iter().copied().filter(|item| is_right(item)).count());
            let count = |counts: &BTreeMap<String, usize>| counts.get(discipline).copied().unwrap_or(0);
            Node {
                discipline: discipline.to_owned(),
                is_weak: false,
                n,
                base: mean(group.iter().map(|item| item.first)),
                tuned: right as f64 / n as f64,
                tuned_ci95: stats::wilson95(right as f64 / n as f64, n),
                others: (all_right - right) as f64 / (all - n).max(1) as f64,
                p_value: stats::fisher_lower(right, n, all_right, all),
                q_value: 1.0,
                questions: count(&counts.questions),
                rows: count(&counts.rows),
                extra_questions: 0,
            }
        })
        .collect();
    let q_values = stats::benjamini_hochberg(&nodes.iter().map(|node| node.p_value).collect::<Vec<_>>());
    for (node, q_value) in nodes.iter_mut().zip(q_values) {
        node.q_value = q_value;
        // A benchmark's disciplines that the taxonomy lacks can be weak, but nothing can be generated for them.
        let can_grow = counts.questions.is_empty() || node.questions > 0;
        node.is_weak = can_grow
            && node.n >= rule.min_items
            && node.tuned <= node.others - rule.margin
            && q_value <= rule.max_false_discovery;
        if node.is_weak {
            node.extra_questions = ((even * rule.growth).ceil() as usize).max(1);
        }
    }
    nodes.sort_by(|a, b| a.tuned.total_cmp(&b.tuned).then(a.discipline.cmp(&b.discipline)));
    nodes
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    stats::mean_stderr(&values.collect::<Vec<_>>()).0
}

/// Rows of a file per discipline; a missing file has none.
pub fn count_rows(path: &Path) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    if !path.is_file() {
        return Ok(counts);
    }
    for row in JsonlReader::<RowOrigin>::open(path)? {
        *counts.entry(row?.discipline).or_default() += 1;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `(discipline, items, of them right)`.
    fn made_up(groups: &[(&str, usize, usize)]) -> Vec<Item> {
        let group = |&(discipline, n, right): &(&str, usize, usize)| {
            let item = |place| Item {
                discipline: discipline.to_owned(),
                is_selection: true,
                first: 0.0,
                second: f64::from(u8::from(place < right)),
            };
            (0..n).map(item).collect::<Vec<_>>()
        };
        groups.iter().flat_map(group).collect()
    }

    fn counts(names: &[&str]) -> Counts {
        let of = |number: usize| names.iter().map(|name| ((*name).to_owned(), number)).collect();
        Counts { questions: of(100), rows: of(90), num_questions: 400 }
    }

    #[test]
    fn weak_is_far_below_the_others_on_enough_items_and_not_by_chance() {
        let items = made_up(&[
            ("far below", 20, 8),
            ("by chance", 20, 17),
            ("few items", 6, 0),
            ("strong", 40, 38),
            ("not ours", 20, 5),
        ]);
        let nodes =
            choose(&items, &ImproveConfig::default(), &counts(&["far below", "by chance", "few items", "strong"]));
        let weak: Vec<_> = nodes.iter().filter(|node| node.is_weak).collect();
        assert_eq!(weak.len(), 1, "{nodes:#?}");
        assert_eq!((weak[0].discipline.as_str(), weak[0].n, weak[0].rows), ("far below", 20, 90));
        // Twice the even share of 400 questions over 4 disciplines.
        assert_eq!(weak[0].extra_questions, 200);
        assert!(nodes.iter().all(|node| node.is_weak || node.extra_questions == 0));
        assert!(nodes.is_sorted_by(|a, b| a.tuned <= b.tuned));
    }

    #[test]
    fn disciplines_that_are_all_alike_are_rarely_weak() {
        use rand::Rng;
        let mut random = seed::stream(0, "test", "alike");
        let names: Vec<String> = (0..15).map(|number| format!("{number:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rounds_with_a_pick = (0..200)
            .filter(|_| {
                let groups: Vec<_> = names
                    .iter()
                    .map(|name| (*name, 20, (0..20).filter(|_| random.random::<f64>() < 0.85).count()))
                    .collect();
                choose(&made_up(&groups), &ImproveConfig::default(), &counts(&names)).iter().any(|node| node.is_weak)
            })
            .count();
        // A false discovery rate of 0.2 where nothing is to be discovered: at most a fifth, and four deviations.
        assert!(rounds_with_a_pick <= 40 + 23, "{rounds_with_a_pick} of 200");
    }

    #[test]
    fn selection_items_are_a_share_of_every_discipline_and_follow_the_seed() {
        let rows: Vec<Value> = (0..60)
            .map(|id| json!({"doc": {"discipline": format!("d{}", id % 3)}, "doc_hash": format!("h{id}"), "acc": 1.0}))
            .chain([json!({"doc": {}, "doc_hash": "none", "acc": 1.0})])
            .collect();
        let chosen = |seed, fraction| items(&rows, &rows, "acc", seed, fraction);
        let half = chosen(0, 0.5);
        assert_eq!(half.len(), 60);
        for discipline in ["d0", "d1", "d2"] {
            let of = half.iter().filter(|item| item.discipline == discipline);
            assert_eq!(of.filter(|item| item.is_selection).count(), 10);
        }
        assert_eq!(half, chosen(0, 0.5));
        assert_eq!(chosen(0, 0.01).iter().filter(|item| item.is_selection).count(), 3);
    }
}
