//! Two models on the same items: one test, its interval, and what it comes to once there are many.
//!
//! Every table of comparisons is one family of tests and is corrected by Holm's method, not by Benjamini and
//! Hochberg's: a table serves as a gate, where one false alarm stops a build, and its rows (metrics of one task, tasks
//! of one model) depend on one another in ways that Holm need not know.

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::stats;
use crate::error::usage;

/// Below this a corrected p-value counts as a difference.
pub const SIGNIFICANT: f64 = 0.05;

/// What a comparison comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The second model is better, and not by chance.
    Better,
    /// The second model is worse, and not by chance: a regression.
    Worse,
    /// Chance would do.
    NoDifference,
}

impl Change {
    /// The verdict on a difference `second - first`.
    pub fn of(difference: f64, corrected_p_value: f64, higher_is_better: bool) -> Self {
        match (corrected_p_value < SIGNIFICANT, (difference > 0.0) == higher_is_better) {
            (false, _) => Change::NoDifference,
            (true, true) => Change::Better,
            (true, false) => Change::Worse,
        }
    }

    /// As people read it.
    pub fn text(self) -> &'static str {
        match self {
            Change::Better => "better",
            Change::Worse => "worse",
            Change::NoDifference => "no difference",
        }
    }
}

/// One comparison on its own. Scores are means over the items.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    /// Items.
    pub n: usize,
    /// Score of the first model and its standard error.
    pub first: (f64, Option<f64>),
    /// Score of the second model and its standard error.
    pub second: (f64, Option<f64>),
    /// 95 % bootstrap interval of `second - first`.
    pub difference_ci95: Option<[f64; 2]>,
    /// Exact McNemar test; for scores that are not 0 or 1 the sign test, which is the same count.
    pub p_value: f64,
}

impl Paired {
    /// Compares the scores of the same items.
    pub fn new(first: &[f64], second: &[f64], bootstrap_iters: usize, random: &mut ChaCha8Rng) -> Self {
        Self {
            n: first.len(),
            first: stats::mean_stderr(first),
            second: stats::mean_stderr(second),
            difference_ci95: stats::paired_bootstrap(first, second, bootstrap_iters, random),
            p_value: stats::paired_p_value(first, second),
        }
    }

    /// `second - first`.
    pub fn difference(&self) -> f64 {
        self.second.0 - self.first.0
    }
}

/// The two models must have answered the same documents. `names` stand for them in the message.
///
/// **Errors**: usage, naming the task and the first item that differs.
pub fn check_items(task: &str, names: [&str; 2], first: &[Value], second: &[Value]) -> Result<()> {
    let [a, b] = names;
    if let Some((first, second)) =
        first.iter().zip(second).find(|(first, second)| first["doc_hash"] != second["doc_hash"])
    {
        return Err(usage(format!(
            "task `{task}`: {a} and {b} were asked different things, first at item {}: {} and {}; \
             compare evaluations of the same items",
            first["doc_id"],
            shown(&first["doc"]),
            shown(&second["doc"]),
        )));
    }
    if first.len() != second.len() {
        return Err(usage(format!(
            "task `{task}`: {a} has {} items and {b} {}; the first that only one of them has is item {}; \
             evaluate both with the same limit",
            first.len(),
            second.len(),
            first.len().min(second.len())
        )));
    }
    Ok(())
}

fn shown(document: &Value) -> String {
    const MOST: usize = 100;
    let text = document.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_that_differ_are_named_with_their_task() {
        let rows = |hashes: &[&str]| -> Vec<Value> {
            let row = |(id, hash): (usize, &&str)| json!({"doc_id": id, "doc_hash": hash, "doc": {"question": hash}});
            hashes.iter().enumerate().map(row).collect()
        };
        let check = |a: &[&str], b: &[&str]| check_items("t", ["A", "B"], &rows(a), &rows(b));
        assert!(check(&["a", "b"], &["a", "b"]).is_ok());
        let error = check(&["a", "b"], &["a", "c"]).expect_err("the second differs");
        assert_eq!(crate::error::exit_code(&error), 2);
        for part in ["task `t`", "item 1", "\"b\"", "\"c\""] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        let error = check(&["a", "b"], &["a"]).expect_err("one is shorter");
        assert!(error.to_string().contains("A has 2 items and B 1"), "{error}");
    }

    #[test]
    fn a_change_needs_a_small_p_value_and_knows_which_way_is_good() {
        assert_eq!(Change::of(0.1, 0.01, true), Change::Better);
        assert_eq!(Change::of(0.1, 0.01, false), Change::Worse);
        assert_eq!(Change::of(-0.1, 0.01, true), Change::Worse);
        assert_eq!(Change::of(-0.1, 0.05, true), Change::NoDifference);
    }
}
