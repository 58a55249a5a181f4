//! Did it help: base and student on the same items, paired.
//!
//! Works on the sample files alone, so that a comparison can be made again from what a run left behind.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Verdict,
    plan::SkippedTask,
    results::Finished,
    stats,
    task::{OutputType, Task},
};
use crate::seed;

/// `comparison.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The headline.
    pub verdict: Verdict,
    /// One row per task and metric; a task's headline metric comes first.
    pub tasks: Vec<TaskComparison>,
    /// The headline task by discipline, where its documents name one.
    pub by_discipline: Vec<DisciplineComparison>,
    /// Tasks that were asked for and could not be evaluated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedTask>,
}

/// One metric of one task. Scores are fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskComparison {
    /// The task's name.
    pub task: String,
    /// Metric and filter, such as `acc,none`.
    pub metric: String,
    /// Base model without extra examples.
    pub base: f64,
    /// Its standard error.
    pub base_stderr: Option<f64>,
    /// Base model with examples, where that was run.
    pub base_fewshot: Option<f64>,
    /// Tuned model.
    pub tuned: f64,
    /// Its standard error.
    pub tuned_stderr: Option<f64>,
    /// Exact McNemar test of tuned against base.
    pub p_value: f64,
    /// Items.
    pub n: usize,
    /// 95 % bootstrap interval of tuned minus base.
    pub difference_ci95: Option<[f64; 2]>,
}

/// One discipline of the headline task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DisciplineComparison {
    /// Its name.
    pub discipline: String,
    /// Items.
    pub n: usize,
    /// Base model.
    pub base: f64,
    /// Tuned model.
    pub tuned: f64,
}

/// The finished evaluations of a run.
pub struct Evaluations<'a> {
    /// Student before training.
    pub base: &'a Finished,
    /// The same with examples.
    pub base_fewshot: Option<&'a Finished>,
    /// Student after training.
    pub tuned: &'a Finished,
}

/// Compares the models on tasks that were evaluated, in the order of the configuration.
pub fn compare(
    compared: &[&'static dyn Task],
    skipped: &[SkippedTask],
    evaluations: &Evaluations,
    run_seed: u64,
    bootstrap_iters: usize,
) -> Result<Comparison> {
    let mut tasks = Vec::new();
    for task in compared {
        let spec = task.spec();
        let name = spec.name;
        for filter in spec.filters {
            for metric in spec.metrics {
                let Some((base, tuned)) = paired_scores(evaluations, name, filter, metric)? else { continue };
                let key = format!("{metric},{filter}");
                let mut random = seed::stream(run_seed, "evaluate", &format!("bootstrap {name} {key}"));
                let (base_mean, base_stderr) = stats::mean_stderr(&base);
                let (tuned_mean, tuned_stderr) = stats::mean_stderr(&tuned);
                tasks.push(TaskComparison {
                    task: name.to_owned(),
                    base: base_mean,
                    base_stderr,
                    base_fewshot: evaluations.base_fewshot.and_then(|finished| finished.number(name, &key)),
                    tuned: tuned_mean,
                    tuned_stderr,
                    p_value: stats::paired_p_value(&base, &tuned),
                    n: base.len(),
                    difference_ci95: stats::paired_bootstrap(&base, &tuned, bootstrap_iters, &mut random),
                    metric: key,
                });
            }
        }
    }
    let headline = headline(compared)?;
    let name = headline.spec().name;
    let Some(row) = tasks.iter().find(|row| row.task == name) else {
        bail!("task `{name}` has no metric of single documents")
    };
    let verdict = Verdict {
        task: row.task.clone(),
        base: row.base,
        base_fewshot: row.base_fewshot,
        tuned: row.tuned,
        p_value: row.p_value,
    };
    let by_discipline = by_discipline(evaluations, headline)?;
    Ok(Comparison { verdict, tasks, by_discipline, skipped: skipped.to_vec() })
}

/// The task that the verdict speaks of: the first generative one, else the first.
pub fn headline(tasks: &[&'static dyn Task]) -> Result<&'static dyn Task> {
    let is_generative = |task: &&&'static dyn Task| matches!(task.spec().output_type, OutputType::GenerateUntil(_));
    match tasks.iter().find(is_generative).or(tasks.first()) {
        Some(task) => Ok(*task),
        None => bail!("there is no task to compare the models on"),
    }
}

/// Scores by the base and the tuned model of the same items.
type Paired = (Vec<f64>, Vec<f64>);

/// Base and tuned scores of the same items; `None` for a metric that single documents have no number for.
fn paired_scores(evaluations: &Evaluations, task: &str, filter: &str, metric: &str) -> Result<Option<Paired>> {
    let base = evaluations.base.samples(task, filter)?;
    let tuned = evaluations.tuned.samples(task, filter)?;
    check_pairs(task, &base, &tuned)?;
    let score = |row: &Value| row[metric].as_f64();
    let base: Option<Vec<f64>> = base.iter().map(score).collect();
    let tuned: Option<Vec<f64>> = tuned.iter().map(score).collect();
    Ok(base.zip(tuned))
}

/// The two models must have answered the same documents.
fn check_pairs(task: &str, base: &[Value], tuned: &[Value]) -> Result<()> {
    if base.len() != tuned.len() {
        bail!("task `{task}`: base answered {} items and tuned {}; they must be the same", base.len(), tuned.len());
    }
    match base.iter().zip(tuned).find(|(base, tuned)| base["doc_hash"] != tuned["doc_hash"]) {
        None => Ok(()),
        Some((base, _)) => bail!("task `{task}`: base and tuned differ in document {}", base["doc_id"]),
    }
}

fn by_discipline(evaluations: &Evaluations, task: &dyn Task) -> Result<Vec<DisciplineComparison>> {
    let spec = task.spec();
    let task = spec.name;
    let (filter, metric) = (spec.filters[0], spec.metrics[0]);
    let (base, tuned) = (evaluations.base.samples(task, filter)?, evaluations.tuned.samples(task, filter)?);
    check_pairs(task, &base, &tuned)?;
    let mut groups: BTreeMap<&str, DisciplineComparison> = BTreeMap::new();
    for (base, tuned) in base.iter().zip(&tuned) {
        let Some(discipline) = base["doc"]["discipline"].as_str() else { continue };
        let group = groups.entry(discipline).or_insert_with(|| DisciplineComparison {
            discipline: discipline.to_owned(),
            n: 0,
            base: 0.0,
            tuned: 0.0,
        });
        group.n += 1;
        group.base += base[metric].as_f64().unwrap_or(0.0);
        group.tuned += tuned[metric].as_f64().unwrap_or(0.0);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    for group in &mut groups {
        group.base /= group.n as f64;
        group.tuned /= group.n as f64;
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tasks;

    #[test]
    fn the_headline_is_the_first_generative_task_else_the_first() -> Result<()> {
        let named = |names: &[&str]| -> Result<String> {
            let tasks: Vec<_> = names.iter().map(|name| tasks::find(name)).collect::<Result<_>>()?;
            Ok(headline(&tasks)?.spec().name.to_owned())
        };
        assert_eq!(named(&["primer_mc", "gsm8k", "primer"])?, "gsm8k");
        assert_eq!(named(&["arc_easy", "primer_mc"])?, "arc_easy");
        assert!(named(&[]).is_err());
        Ok(())
    }

    #[test]
    fn models_that_answered_other_items_are_not_compared() {
        let rows = |hashes: &[&str]| -> Vec<Value> {
            hashes.iter().map(|hash| serde_json::json!({"doc_id": 0, "doc_hash": hash})).collect()
        };
        assert!(check_pairs("t", &rows(&["a", "b"]), &rows(&["a", "b"])).is_ok());
        assert!(check_pairs("t", &rows(&["a", "b"]), &rows(&["a", "c"])).is_err());
        assert!(check_pairs("t", &rows(&["a", "b"]), &rows(&["a"])).is_err());
    }
}
