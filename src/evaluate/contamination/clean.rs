//! Scores without the items that came up in the training data: what the decontamination of `curate` found and took out.
//!
//! The rows it took out were not trained on, so these items are suspects, not proof: a score that falls without them
//! says that the data came close to the benchmark in other rows too.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
    sync::LazyLock,
};

use anyhow::Result;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    evaluate::{compare::Evaluations, data, primer, stats, task::Task},
    records,
};

/// How `curate/rejected.jsonl` names a leaked item: file (or built-in set), its number from 0, the words that match.
static EVIDENCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"^(?s)(.+?) item (\d+)(?: with other numbers)?: ""#).expect("a constant pattern compiles")
});

/// A line of `curate/rejected.jsonl`, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Rejected {
    reason: String,
    evidence: String,
}

/// One metric of one task on all of its items and on the clean ones. Scores are fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CleanScore {
    /// The task.
    pub task: String,
    /// Metric and filter, such as `acc,none`.
    pub metric: String,
    /// All items.
    pub n: usize,
    /// Items that no training row came close to.
    pub n_clean: usize,
    /// Base model, all items.
    pub base: f64,
    /// Base model, clean items; `None` without any.
    pub base_clean: Option<f64>,
    /// Tuned model, all items.
    pub tuned: f64,
    /// Tuned model, clean items; `None` without any.
    pub tuned_clean: Option<f64>,
}

/// Benchmark items that rejected rows came close to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeakedItems {
    /// Their rows as the benchmarks' files hold them.
    rows: HashSet<String>,
    /// How many were named.
    pub named: usize,
    /// How many of these could not be found in the benchmarks' files.
    pub not_found: usize,
}

impl LeakedItems {
    /// Reads the evidence of a run's rejected rows; none where there is no such file.
    ///
    /// **Errors**: the file cannot be read.
    pub fn read(rejected: &Path, data_dir: &Path) -> Result<Self> {
        let mut named: BTreeSet<(String, usize)> = BTreeSet::new();
        if rejected.is_file() {
            let rows: Vec<Rejected> = records::read_jsonl(rejected)?;
            for row in rows.iter().filter(|row| row.reason == "contaminated") {
                let found =
                    EVIDENCE.captures(&row.evidence).and_then(|it| Some((it[1].to_owned(), it[2].parse().ok()?)));
                named.extend(found);
            }
        }
        let mut files: HashMap<String, Vec<Option<Value>>> = HashMap::new();
        let mut leaked = Self { named: named.len(), ..Self::default() };
        for (source, index) in named {
            let items = files.entry(source.clone()).or_insert_with(|| items(&source, data_dir));
            match items.get(index).and_then(Option::as_ref) {
                Some(row) => _ = leaked.rows.insert(row.to_string()),
                None => leaked.not_found += 1,
            }
        }
        Ok(leaked)
    }

    /// Whether a document is one of them.
    fn holds(&self, document: &Value) -> bool {
        self.rows.contains(&document.to_string())
    }
}

/// The items of a benchmark's file at their numbers; nothing where it cannot be read.
fn items(source: &str, data_dir: &Path) -> Vec<Option<Value>> {
    let lines = |text: &str| text.split('\n').map(|line| serde_json::from_str(line).ok()).collect();
    let name = source.strip_suffix(".gz").unwrap_or(source);
    let table = |delimiter| {
        let rows = data::read_table(data_dir, name, delimiter).unwrap_or_default();
        rows.into_iter().map(|(_, row)| Some(row)).collect()
    };
    match name.rsplit('.').next() {
        _ if name == "primer" => lines(primer::PRIMER_JSONL),
        _ if name == "primer_mc" => lines(primer::PRIMER_MC_JSONL),
        Some("jsonl") => data::read_text(data_dir, name).map(|text| lines(&text)).unwrap_or_default(),
        Some("json") => match data::read_json(data_dir, name) {
            Ok(Value::Array(items)) => items.into_iter().map(Some).collect(),
            // One list under some key, as BIG-bench Hard's `examples`.
            Ok(Value::Object(object)) => {
                let list = object.into_iter().find_map(|(_, value)| match value {
                    Value::Array(items) => Some(items),
                    _ => None,
                });
                list.unwrap_or_default().into_iter().map(Some).collect()
            }
            _ => Vec::new(),
        },
        Some("csv") => table(','),
        Some("tsv") => table('\t'),
        _ => Vec::new(),
    }
}

/// Scores of every task with and without the leaked items, of tasks that hold any.
///
/// Plain means over documents; metrics that single documents have no number for are left out.
pub fn scores(tasks: &[&'static dyn Task], evaluations: &Evaluations, leaked: &LeakedItems) -> Result<Vec<CleanScore>> {
    let mut rows = Vec::new();
    for spec in tasks.iter().map(|task| task.spec()) {
        for filter in spec.filters {
            let base = evaluations.base.samples(spec.name, filter)?;
            let tuned = evaluations.tuned.samples(spec.name, filter)?;
            let is_clean: Vec<bool> = base.iter().map(|row| !leaked.holds(&row["doc"])).collect();
            if is_clean.iter().all(|is_clean| *is_clean) {
                continue;
            }
            for metric in spec.metrics {
                let numbers = |rows: &[Value]| rows.iter().map(|row| row[*metric].as_f64()).collect::<Option<Vec<_>>>();
                let (Some(base), Some(tuned)) = (numbers(&base), numbers(&tuned)) else { continue };
                let clean = |scores: &[f64]| {
                    let kept = scores.iter().zip(&is_clean).filter(|(_, is_clean)| **is_clean);
                    let kept: Vec<f64> = kept.map(|(score, _)| *score).collect();
                    (!kept.is_empty()).then(|| stats::mean_stderr(&kept).0)
                };
                rows.push(CleanScore {
                    task: spec.name.to_owned(),
                    metric: format!("{metric},{filter}"),
                    n: base.len(),
                    n_clean: is_clean.iter().filter(|is_clean| **is_clean).count(),
                    base_clean: clean(&base),
                    tuned_clean: clean(&tuned),
                    base: stats::mean_stderr(&base).0,
                    tuned: stats::mean_stderr(&tuned).0,
                });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leaked_items_are_found_in_files_of_every_kind() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("bbh"))?;
        // A blank line counts: items are numbered by lines.
        std::fs::write(path("a.jsonl"), "{\"question\": \"zero\"}\n\n{\"question\": \"two\"}\n")?;
        std::fs::write(
            path("bbh/b.json"),
            json!({"canary": "x", "examples": [{"input": "p"}, {"input": "q"}]}).to_string(),
        )?;
        std::fs::write(path("c.tsv"), "sentence\tlabel\nfirst\t0\nsecond\t1\n")?;
        let evidence = [
            "a.jsonl.gz item 2: \"two\"",
            "a.jsonl.gz item 2 with other numbers: \"two\"",
            "bbh/b.json item 1: \"q\"",
            "c.tsv item 0: \"first\"",
            "primer item 0: \"…\"",
            "a.jsonl.gz item 9: \"nowhere\"",
        ];
        let lines: Vec<String> = evidence
            .iter()
            .map(|evidence| json!({"id": "x", "reason": "contaminated", "evidence": evidence}))
            .chain([json!({"id": "x", "reason": "quality", "evidence": "a.jsonl item 0: \"no\""})])
            .map(|row| row.to_string() + "\n")
            .collect();
        std::fs::write(path("rejected.jsonl"), lines.concat())?;
        let leaked = LeakedItems::read(&path("rejected.jsonl"), folder.path())?;
        assert_eq!((leaked.named, leaked.not_found, leaked.rows.len()), (5, 1, 4));
        for row in [json!({"question": "two"}), json!({"input": "q"}), json!({"sentence": "first", "label": "0"})] {
            assert!(leaked.holds(&row), "{row}");
        }
        assert!(!leaked.holds(&json!({"question": "zero"})));
        assert_eq!(LeakedItems::read(&path("nowhere.jsonl"), folder.path())?, LeakedItems::default());
        Ok(())
    }
}
