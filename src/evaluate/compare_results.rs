//! `glan evaluate --compare A B`: two results, wherever they came from, on the same items.
//!
//! Works on result and sample files alone, this program's or lm-evaluation-harness's (`--log_samples`).

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    paired::{Change, Paired, check_items},
    results::Finished,
    stats,
};
use crate::{error::usage, seed};

/// Two evaluations side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultsComparison {
    /// Results file of the first.
    pub a: PathBuf,
    /// Results file of the second.
    pub b: PathBuf,
    /// One row per task, metric and filter that both have numbers of single documents for.
    pub tasks: Vec<ComparedRow>,
    /// Tasks that only the first has.
    pub only_in_a: Vec<String>,
    /// Tasks that only the second has.
    pub only_in_b: Vec<String>,
}

/// One metric of one task. Scores are means over the items; `delta` is `b - a`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparedRow {
    /// The task's name.
    pub task: String,
    /// Metric and filter, such as `acc,none`.
    pub metric: String,
    /// Items.
    pub n: usize,
    /// Score of the first.
    pub a: f64,
    /// Its standard error.
    pub a_stderr: Option<f64>,
    /// Score of the second.
    pub b: f64,
    /// Its standard error.
    pub b_stderr: Option<f64>,
    /// Second minus first.
    pub delta: f64,
    /// Its 95 % bootstrap interval.
    pub delta_ci95: Option<[f64; 2]>,
    /// Exact McNemar test.
    pub p_value: f64,
    /// The same, corrected by Holm's method for all rows.
    pub p_holm: f64,
    /// What it comes to.
    pub change: Change,
}

/// Compares two evaluations.
///
/// **Errors**: usage, where a path has no results or several, where no task is in both, and where a task's items
/// differ.
pub fn compare_results(a: &Path, b: &Path, run_seed: u64, bootstrap_iters: usize) -> Result<ResultsComparison> {
    let (first, second) = (find(a)?, find(b)?);
    let names = [a.display().to_string(), b.display().to_string()];
    let names = [format!("`{}`", names[0]), format!("`{}`", names[1])];
    let has = |finished: &Finished, task: &str| finished.tasks().any(|other| other == task);
    let mut rows = Vec::new();
    for task in first.tasks().filter(|task| has(&second, task)) {
        let (a, b) = (first.all_samples(task)?, second.all_samples(task)?);
        for filter in filters(&a) {
            let of_filter =
                |rows: &[Value]| rows.iter().filter(|row| row["filter"] == filter).cloned().collect::<Vec<_>>();
            let (a, b) = (of_filter(&a), of_filter(&b));
            check_items(task, [&names[0], &names[1]], &a, &b)?;
            for metric in a[0]["metrics"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let Some((a, b)) = scores(&a, metric).zip(scores(&b, metric)) else { continue };
                let key = format!("{metric},{}", filter.as_str().unwrap_or("none"));
                let mut random = seed::stream(run_seed, "evaluate", &format!("bootstrap {task} {key}"));
                rows.push((task.to_owned(), key, Paired::new(&a, &b, bootstrap_iters, &mut random)));
            }
        }
    }
    if rows.is_empty() {
        let list = |finished: &Finished| finished.tasks().collect::<Vec<_>>().join(", ");
        return Err(usage(format!(
            "{} and {} have no task with scores of single items in common: [{}] and [{}]",
            names[0],
            names[1],
            list(&first),
            list(&second)
        )));
    }
    let corrected = stats::holm(&rows.iter().map(|(_, _, paired)| paired.p_value).collect::<Vec<_>>());
    let higher_is_better = |task: &str, key: &str| {
        let metric = key.split_once(',').map_or(key, |(metric, _)| metric);
        first.results["higher_is_better"][task][metric].as_bool().unwrap_or(true)
    };
    let row = |((task, metric, paired), p_holm): ((String, String, Paired), f64)| ComparedRow {
        n: paired.n,
        a: paired.first.0,
        a_stderr: paired.first.1,
        b: paired.second.0,
        b_stderr: paired.second.1,
        delta: paired.difference(),
        delta_ci95: paired.difference_ci95,
        p_value: paired.p_value,
        p_holm,
        change: Change::of(paired.difference(), p_holm, higher_is_better(&task, &metric)),
        task,
        metric,
    };
    let lacks = |one: &Finished, other: &Finished| {
        one.tasks().filter(|task| !has(other, task)).map(str::to_owned).collect::<Vec<_>>()
    };
    Ok(ResultsComparison {
        tasks: rows.into_iter().zip(corrected).map(row).collect(),
        only_in_a: lacks(&first, &second),
        only_in_b: lacks(&second, &first),
        a: first.path(),
        b: second.path(),
    })
}

impl ResultsComparison {
    /// What stands in the way of a gate, one line each: rows that are worse, and tasks that the second lacks.
    pub fn regressions(&self) -> Vec<String> {
        let worse = self.tasks.iter().filter(|row| row.change == Change::Worse).map(|row| {
            format!("{} {} went from {:.4} to {:.4} (p {:.2e})", row.task, row.metric, row.a, row.b, row.p_holm)
        });
        worse.chain(self.only_in_a.iter().map(|task| format!("{task} is not in `{}`", self.b.display()))).collect()
    }
}

/// Scores by one metric; `None` where single documents have no number for it. Truth values (the harness has some) are 1 and 0.
pub fn scores(rows: &[Value], metric: &str) -> Option<Vec<f64>> {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_bool().map(|right| f64::from(u8::from(right))));
    rows.iter().map(|row| number(&row[metric])).collect()
}

fn filters(rows: &[Value]) -> Vec<Value> {
    let mut filters: Vec<Value> = Vec::new();
    for row in rows {
        if !filters.contains(&row["filter"]) {
            filters.push(row["filter"].clone());
        }
    }
    filters
}

/// The evaluation that a path stands for: a results file, a folder with one (the latest, where there are several), a
/// folder whose only sub-folder has one, or a run directory, which stands for its tuned model.
pub fn find(path: &Path) -> Result<Finished> {
    if path.is_file() {
        return Finished::open(path);
    }
    if !path.is_dir() {
        return Err(usage(format!("`{}`: no such file or folder", path.display())));
    }
    for folder in [path.to_owned(), path.join("evaluate/tuned")] {
        if let Some(found) = Finished::latest(&folder) {
            return found;
        }
    }
    let entries =
        std::fs::read_dir(path).map_err(|error| usage(format!("cannot read `{}`: {error}", path.display())))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let mut found: Vec<(PathBuf, Finished)> = Vec::new();
    for folder in folders {
        if let Some(finished) = Finished::latest(&folder) {
            found.push((folder, finished?));
        }
    }
    match found.len() {
        1 => Ok(found.remove(0).1),
        0 => Err(usage(format!(
            "`{}` holds no results_DATE.json; name a results file, its folder, or a run directory that is evaluated",
            path.display()
        ))),
        _ => {
            let names = found.iter().map(|(folder, _)| json!(folder).to_string()).collect::<Vec<_>>().join(", ");
            Err(usage(format!("`{}` holds results of several models: {names}; name one of them", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::exit_code;

    /// A results file and its samples: 40 items of `t`, of which the first `right` are right.
    fn write(folder: &Path, right: usize, question: &str, lower_is_better: bool) -> Result<()> {
        fs::create_dir_all(folder)?;
        let results = json!({"versions": {"t": 1}, "higher_is_better": {"t": {"acc": !lower_is_better}}});
        fs::write(folder.join("results_2026-01-01.json"), results.to_string())?;
        let row = |id: usize| {
            json!({"doc_id": id, "doc": {"question": format!("{question} {id}")}, "doc_hash": format!("{question} {id}"),
                   "filter": "none", "metrics": ["acc", "parts"], "acc": f64::from(u8::from(id < right)), "parts": [1, 2]})
        };
        let lines: String = (0..40).map(|id| format!("{}\n", row(id))).collect();
        fs::write(folder.join("samples_t_2026-01-01.jsonl"), lines)?;
        Ok(())
    }

    #[test]
    fn a_worse_model_is_a_regression_and_a_metric_of_parts_is_left_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (a, b) = (folder.path().join("out/a"), folder.path().join("b"));
        write(&a, 30, "q", false)?;
        write(&b, 10, "q", false)?;
        // The only model of a folder stands for it.
        let found = compare_results(&folder.path().join("out"), &b, 0, 200)?;
        let [row] = found.tasks.as_slice() else { panic!("{found:?}") };
        assert_eq!((row.n, row.a, row.b, row.change), (40, 0.75, 0.25, Change::Worse));
        assert!((row.p_value - 0.5f64.powi(19)).abs() < 1e-12 && row.p_holm == row.p_value);
        let [low, high] = row.delta_ci95.expect("there were resamples");
        assert!(low < -0.5 && -0.5 < high && high < -0.3, "{low} {high}");
        assert_eq!(found.regressions().len(), 1);
        assert!(compare_results(&b, &a, 0, 200)?.regressions().is_empty());
        assert_eq!(
            compare_results(&b, &b.join("results_2026-01-01.json"), 0, 9)?.tasks[0].change,
            Change::NoDifference
        );
        Ok(())
    }

    #[test]
    fn a_metric_that_should_fall_is_better_when_it_falls() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write(&a, 30, "q", true)?;
        write(&b, 10, "q", true)?;
        assert_eq!(compare_results(&a, &b, 0, 9)?.tasks[0].change, Change::Better);
        Ok(())
    }

    #[test]
    fn what_cannot_be_compared_is_a_usage_error_that_says_why() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (a, b, none) = (folder.path().join("x/a"), folder.path().join("x/b"), folder.path().join("none"));
        write(&a, 30, "q", false)?;
        write(&b, 30, "other", false)?;
        fs::create_dir_all(&none)?;
        for (first, second, said) in [
            (&a, &b, "task `t`"),
            (&a, &folder.path().join("x"), "several models"),
            (&a, &none, "no results_DATE.json"),
            (&a, &folder.path().join("missing"), "no such file or folder"),
        ] {
            let error = compare_results(first, second, 0, 9).expect_err("not comparable");
            assert_eq!(exit_code(&error), 2, "{error:#}");
            assert!(error.to_string().contains(said), "{said}: {error}");
        }
        Ok(())
    }
}
