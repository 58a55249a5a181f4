//! Did it help: base and student on the same items, paired.
//!
//! Works on the sample files alone, so that a comparison can be made again from what a run left behind.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    Verdict,
    compare_results::scores,
    paired::{Change, Paired, check_items},
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
    /// The same, corrected by Holm's method for all rows of the table.
    pub p_holm: f64,
    /// What it comes to.
    pub change: Change,
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
    /// 95 % interval of the tuned model's share.
    pub tuned_ci95: [f64; 2],
    /// Exact McNemar test of tuned against base.
    pub p_value: f64,
    /// The same, corrected by Holm's method for all disciplines.
    pub p_holm: f64,
    /// What it comes to.
    pub change: Change,
}

impl Comparison {
    /// The rows of the table that are worse than before, one line each. Disciplines are not among them: a gate on many
    /// small groups would rarely open.
    pub fn regressions(&self) -> Vec<String> {
        let worse = self.tasks.iter().filter(|row| row.change == Change::Worse);
        worse
            .map(|row| {
                let (base, tuned) = (100.0 * row.base, 100.0 * row.tuned);
                format!("{} {} went from {base:.1}% to {tuned:.1}% (p {:.2e})", row.task, row.metric, row.p_holm)
            })
            .collect()
    }
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
    let (mut tasks, mut higher_is_better) = (Vec::new(), Vec::new());
    for task in compared {
        let spec = task.spec();
        let name = spec.name;
        for filter in spec.filters {
            for metric in spec.metrics {
                let Some((base, tuned)) = paired_scores(evaluations, name, filter, metric)? else { continue };
                let key = format!("{metric},{filter}");
                let mut random = seed::stream(run_seed, "evaluate", &format!("bootstrap {name} {key}"));
                let paired = Paired::new(&base, &tuned, bootstrap_iters, &mut random);
                tasks.push(TaskComparison {
                    task: name.to_owned(),
                    base: paired.first.0,
                    base_stderr: paired.first.1,
                    base_fewshot: evaluations.base_fewshot.and_then(|finished| finished.number(name, &key)),
                    tuned: paired.second.0,
                    tuned_stderr: paired.second.1,
                    p_value: paired.p_value,
                    p_holm: 1.0,
                    change: Change::NoDifference,
                    n: paired.n,
                    difference_ci95: paired.difference_ci95,
                    metric: key,
                });
                higher_is_better.push(task.higher_is_better(metric));
            }
        }
    }
    let corrected = stats::holm(&tasks.iter().map(|row| row.p_value).collect::<Vec<_>>());
    for ((row, p_holm), higher_is_better) in tasks.iter_mut().zip(corrected).zip(higher_is_better) {
        row.p_holm = p_holm;
        row.change = Change::of(row.tuned - row.base, p_holm, higher_is_better);
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
type Scores = (Vec<f64>, Vec<f64>);

/// The two models in messages.
const MODELS: [&str; 2] = ["the base model", "the tuned model"];

/// Base and tuned scores of the same items; `None` for a metric that single documents have no number for.
fn paired_scores(evaluations: &Evaluations, task: &str, filter: &str, metric: &str) -> Result<Option<Scores>> {
    let base = evaluations.base.samples(task, filter)?;
    let tuned = evaluations.tuned.samples(task, filter)?;
    check_items(task, MODELS, &base, &tuned)?;
    Ok(scores(&base, metric).zip(scores(&tuned, metric)))
}

fn by_discipline(evaluations: &Evaluations, task: &dyn Task) -> Result<Vec<DisciplineComparison>> {
    let spec = task.spec();
    let task = spec.name;
    let (filter, metric) = (spec.filters[0], spec.metrics[0]);
    let (base, tuned) = (evaluations.base.samples(task, filter)?, evaluations.tuned.samples(task, filter)?);
    check_items(task, MODELS, &base, &tuned)?;
    let mut groups: BTreeMap<&str, Scores> = BTreeMap::new();
    for (base, tuned) in base.iter().zip(&tuned) {
        let Some(discipline) = base["doc"]["discipline"].as_str() else { continue };
        let group = groups.entry(discipline).or_default();
        group.0.push(base[metric].as_f64().unwrap_or(0.0));
        group.1.push(tuned[metric].as_f64().unwrap_or(0.0));
    }
    let p_values: Vec<f64> = groups.values().map(|(base, tuned)| stats::paired_p_value(base, tuned)).collect();
    let corrected = stats::holm(&p_values);
    let row = |(((discipline, (base, tuned)), p_value), p_holm): (((&str, Scores), f64), f64)| {
        let (n, (base, _), (tuned, _)) = (base.len(), stats::mean_stderr(&base), stats::mean_stderr(&tuned));
        DisciplineComparison {
            discipline: discipline.to_owned(),
            n,
            base,
            tuned,
            tuned_ci95: stats::wilson95(tuned, n),
            p_value,
            p_holm,
            change: Change::of(tuned - base, p_holm, true),
        }
    };
    Ok(groups.into_iter().zip(p_values).zip(corrected).map(row).collect())
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
}
