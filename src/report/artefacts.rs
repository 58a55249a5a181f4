//! Reads what the other stages left in a run directory. Everything may be missing or half-written: the page says so
//! instead of failing.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{records, run_dir::RunDir};

/// Calls `take` for every line that is a JSON value; a torn or damaged line is passed over. Returns how many lines were
/// read, or `None` when the file is missing.
pub fn each_row(path: &Path, mut take: impl FnMut(usize, Value)) -> Option<usize> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).ok()?);
    let (mut line, mut count) = (Vec::new(), 0);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).ok()? == 0 {
            return Some(count);
        }
        if let Ok(value) = serde_json::from_slice(&line) {
            take(count, value);
            count += 1;
        }
    }
}

/// Number of records of a file; `None` when it is missing.
pub fn count_rows(path: &Path) -> Option<usize> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).ok()?);
    let (mut line, mut count) = (Vec::new(), 0);
    while reader.read_until(b'\n', &mut line).ok()? > 0 {
        count += usize::from(!line.trim_ascii().is_empty());
        line.clear();
    }
    Some(count)
}

/// A JSON file, when it is there and whole.
pub fn json(path: &Path) -> Option<Value> {
    records::read_json(path).ok()
}

/// `evaluate/comparison.json`, as far as the page uses it. Scores are fractions.
#[derive(Debug, Clone, Deserialize)]
pub struct Comparison {
    /// The headline.
    pub verdict: Verdict,
    /// One row per task and metric.
    #[serde(default)]
    pub tasks: Vec<Task>,
    /// The headline task by discipline.
    #[serde(default)]
    pub by_discipline: Vec<Discipline>,
    /// Tasks that could not be evaluated.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
}

/// The headline.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// Its task.
    pub task: String,
    /// Before training.
    pub base: f64,
    /// Before training, with examples.
    pub base_fewshot: Option<f64>,
    /// After training.
    pub tuned: f64,
    /// Paired test of tuned against base.
    pub p_value: f64,
}

/// One metric of one task.
#[derive(Debug, Clone, Deserialize)]
pub struct Task {
    /// Its name.
    pub task: String,
    /// Metric and filter.
    pub metric: String,
    /// Before training.
    pub base: f64,
    /// Its standard error.
    pub base_stderr: Option<f64>,
    /// Before training, with examples.
    pub base_fewshot: Option<f64>,
    /// After training.
    pub tuned: f64,
    /// Its standard error.
    pub tuned_stderr: Option<f64>,
    /// Paired test of tuned against base.
    pub p_value: f64,
    /// The same, corrected for the number of rows.
    pub p_holm: Option<f64>,
    /// `better`, `worse` or `no_difference`.
    pub change: Option<String>,
    /// Items.
    pub n: usize,
}

/// One discipline of the headline task.
#[derive(Debug, Clone, Deserialize)]
pub struct Discipline {
    /// Its name.
    pub discipline: String,
    /// Items.
    pub n: usize,
    /// Before training.
    pub base: f64,
    /// After training.
    pub tuned: f64,
}

/// A task that could not be evaluated.
#[derive(Debug, Clone, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub task: String,
    /// Why.
    pub reason: String,
}

impl Comparison {
    /// The comparison of a run, when it is there and whole.
    pub fn load(run_dir: &RunDir) -> Option<Self> {
        records::read_json(&run_dir.stage_file("evaluate", "comparison.json")).ok()
    }

    /// Metric and filter of the headline.
    pub fn headline(&self) -> Option<&Task> {
        self.tasks.iter().find(|row| row.task == self.verdict.task)
    }
}

/// One line of `train/metrics.jsonl`.
#[derive(Debug, Clone, Deserialize)]
pub struct Metrics {
    /// Optimizer steps so far.
    pub step: f64,
    /// Passes over the data so far.
    #[serde(default)]
    pub epoch: f64,
    /// Mean over the trained tokens of the batch.
    pub loss: Option<f64>,
    /// The same on the validation rows.
    pub eval_loss: Option<f64>,
    /// Of this step.
    pub learning_rate: Option<f64>,
    /// Trained tokens so far.
    #[serde(default)]
    pub tokens: f64,
}

/// The metrics of a run; empty when there are none.
pub fn metrics(run_dir: &RunDir) -> Vec<Metrics> {
    let mut rows = Vec::new();
    each_row(&run_dir.stage_file("train", "metrics.jsonl"), |_, value| rows.extend(serde_json::from_value(value)));
    rows
}

/// Number of leaves of `generate/taxonomy.json`: objects with a name and no list of children.
pub fn count_disciplines(taxonomy: &Value) -> usize {
    let mut leaves = 0;
    let mut open = vec![taxonomy];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(values) => open.extend(values),
            Value::Object(object) => {
                let children: Vec<&Value> = object.values().filter(|value| value.is_array()).collect();
                leaves += usize::from(children.is_empty() && object.contains_key("name"));
                open.extend(children);
            }
            Value::String(_) if value != taxonomy => leaves += 1,
            _ => {}
        }
    }
    leaves
}

/// One evaluated item under one filter.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What was asked.
    pub question: String,
    /// The right answer.
    pub target: String,
    /// What the model answered, as it was scored.
    pub answer: String,
    /// Whether that counts as right.
    pub is_right: bool,
}

/// The items of a task as one model answered them, by position; empty when there are none.
///
/// `metric` is `NAME,FILTER` as in `comparison.json`.
pub fn samples(run_dir: &RunDir, model: &str, task: &str, metric: &str) -> BTreeMap<u64, Sample> {
    let (name, filter) = metric.split_once(',').unwrap_or((metric, "none"));
    let mut samples = BTreeMap::new();
    let Some(path) = samples_file(&run_dir.stage("evaluate").join(model), task) else { return samples };
    each_row(&path, |number, row| {
        if row["filter"].as_str().is_some_and(|other| other != filter) {
            return;
        }
        let doc = &row["doc"];
        let question = ["question", "query", "problem", "prompt"]
            .iter()
            .find_map(|key| doc[*key].as_str())
            .map_or_else(|| doc.to_string(), str::to_owned);
        let choices = doc["choices"].as_array().or_else(|| doc["choices"]["text"].as_array());
        let (target, answer) = match choices {
            Some(choices) => (choice(choices, &row["target"]), choice(choices, &likeliest(&row["filtered_resps"]))),
            None => (plain(&row["target"]), first_text(&row["resps"]).unwrap_or_else(|| plain(&row["filtered_resps"]))),
        };
        let is_right = row[name].as_f64().is_some_and(|score| score > 0.5);
        samples.insert(row["doc_id"].as_u64().unwrap_or(number as u64), Sample { question, target, answer, is_right });
    });
    samples
}

/// The latest `samples_TASK_DATE.jsonl` of a folder.
fn samples_file(folder: &Path, task: &str) -> Option<PathBuf> {
    let prefix = format!("samples_{task}_");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // `primer` is also the beginning of `primer_mc`; a date begins with a digit.
        name.strip_prefix(&prefix).is_some_and(|date| date.starts_with(|char: char| char.is_ascii_digit()))
            && name.ends_with(".jsonl")
    });
    files.sort();
    files.pop()
}

/// A choice by its index, given as a number or as text.
fn choice(choices: &[Value], index: &Value) -> String {
    let at = index.as_u64().or_else(|| index.as_str()?.parse().ok());
    at.and_then(|at| choices.get(usize::try_from(at).ok()?)).map_or_else(|| plain(index), plain)
}

/// Which of the `[log-likelihood, is_greedy]` pairs is the largest.
fn likeliest(responses: &Value) -> Value {
    let score = |response: &Value| match &response[0] {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let Some(responses) = responses.as_array() else { return Value::Null };
    let best = responses
        .iter()
        .enumerate()
        .filter_map(|(index, response)| Some((index, score(response)?)))
        .max_by(|left, right| left.1.total_cmp(&right.1));
    best.map_or(Value::Null, |(index, _)| Value::from(index))
}

fn first_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => values.iter().find_map(first_text),
        _ => None,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
