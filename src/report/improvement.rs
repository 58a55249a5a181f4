//! The closed loop's section: a round's disciplines before and after, the weak ones marked.

use serde::{Deserialize, Serialize};

use super::charts::grouped;
use crate::{records, run_dir::RunDir};

/// `evaluate/improvement.json`, as far as the page uses it. Scores are shares.
#[derive(Debug, Deserialize)]
struct Improvement {
    task: String,
    weak: Group,
    others: Group,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Group {
    n: usize,
    before: f64,
    after: f64,
    difference_ci95: Option<[f64; 2]>,
    p_value: f64,
    change: String,
}

#[derive(Debug, Deserialize)]
struct Node {
    discipline: String,
    is_weak: bool,
    n: usize,
    before: f64,
    before_ci95: [f64; 2],
    after: f64,
    after_ci95: [f64; 2],
    p_value: f64,
    rows_before: usize,
    rows_after: usize,
}

/// What the template needs.
#[derive(Debug, Serialize)]
pub struct Section {
    task: String,
    groups: Vec<GroupRow>,
    nodes: Vec<NodeRow>,
}

#[derive(Debug, Serialize)]
struct GroupRow {
    sentence: String,
    class: &'static str,
}

#[derive(Debug, Serialize)]
struct NodeRow {
    discipline: String,
    is_weak: bool,
    rows: String,
    n: String,
    before: String,
    before_interval: String,
    before_width: String,
    after: String,
    after_interval: String,
    after_width: String,
    is_better: bool,
    p_value: String,
}

/// The section of a round; `None` where the run is none, or not measured yet.
pub fn section(run_dir: &RunDir) -> Option<Section> {
    let found: Improvement = records::read_json(&run_dir.stage_file("evaluate", "improvement.json")).ok()?;
    let groups = [("The weak disciplines", &found.weak), ("The other disciplines", &found.others)];
    Some(Section {
        task: found.task,
        groups: groups.map(|(name, group)| group_row(name, group)).into(),
        nodes: found.nodes.iter().map(node_row).collect(),
    })
}

fn group_row(name: &str, group: &Group) -> GroupRow {
    let verdict = match group.change.as_str() {
        "better" => "better",
        "worse" => "worse",
        _ => "not clearly different",
    };
    let interval = group.difference_ci95.map_or_else(String::new, |[low, high]| {
        format!("; the difference lies between {:+.1} and {:+.1} points", 100.0 * low, 100.0 * high)
    });
    let sentence = format!(
        "{name}, together: {:.1} % before, {:.1} % after on {} held-out items, {verdict} (p {}{interval}).",
        100.0 * group.before,
        100.0 * group.after,
        grouped(group.n),
        super::page::p_value(group.p_value)
    );
    let class = match verdict {
        "better" => "good",
        "worse" => "bad",
        _ => "",
    };
    GroupRow { sentence, class }
}

fn node_row(node: &Node) -> NodeRow {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let width = |share: f64| format!("{:.1}", 100.0 * share.clamp(0.0, 1.0));
    let interval = |[low, high]: [f64; 2]| format!("{:.0}–{:.0}", 100.0 * low, 100.0 * high);
    NodeRow {
        discipline: node.discipline.clone(),
        is_weak: node.is_weak,
        rows: format!("{} → {}", grouped(node.rows_before), grouped(node.rows_after)),
        n: grouped(node.n),
        before: percent(node.before),
        before_interval: interval(node.before_ci95),
        before_width: width(node.before),
        after: percent(node.after),
        after_interval: interval(node.after_ci95),
        after_width: width(node.after),
        is_better: node.after >= node.before,
        p_value: super::page::p_value(node.p_value).trim_start_matches("= ").to_owned(),
    }
}
