//! One number for several tasks: the rows of groups in a results file.

use serde_json::{Map, Value, json};

use super::{
    plan::{Plan, PlannedTask},
    stats,
    tasks::{self, Group, Named},
};

/// A row per group of the plan that has a task with results.
pub fn rows(plan: &Plan, results: &Map<String, Value>) -> Map<String, Value> {
    let row = |group: &&'static Group| Some((group.name.to_owned(), row(group, plan, results)?));
    plan.groups.iter().filter_map(row).collect()
}

fn row(group: &Group, plan: &Plan, results: &Map<String, Value>) -> Option<Value> {
    let names = leaves(group);
    let members: Vec<&PlannedTask> = plan.tasks.iter().filter(|planned| names.contains(&planned.spec().name)).collect();
    if members.is_empty() {
        return None;
    }
    let mut out = Map::new();
    out.insert("name".into(), json!(group.name));
    out.insert("alias".into(), json!(group.alias));
    out.insert("sample_len".into(), json!(members.iter().map(|planned| planned.documents.len()).sum::<usize>()));
    let samples: Map<String, Value> =
        members.iter().map(|planned| (planned.spec().name.to_owned(), json!(planned.documents.len()))).collect();
    out.insert("sample_count".into(), Value::Object(samples));
    // A group that lacks some of its tasks is another number than the harness's.
    let missing: Vec<&str> =
        names.into_iter().filter(|name| !members.iter().any(|planned| planned.spec().name == *name)).collect();
    if !missing.is_empty() {
        out.insert("missing".into(), json!(missing));
    }
    let partial: Vec<&str> =
        members.iter().filter(|planned| planned.partial().is_some()).map(|planned| planned.spec().name).collect();
    if !partial.is_empty() {
        out.insert("partial".into(), json!(partial));
    }
    for (metric, filter) in &group.metrics {
        let (key, stderr_key) = (format!("{metric},{filter}"), format!("{metric}_stderr,{filter}"));
        let with_metric = |planned: &&PlannedTask| {
            let numbers = &results.get(planned.spec().name)?;
            Some((numbers[&key].as_f64()?, numbers[&stderr_key].as_f64(), planned.documents.len()))
        };
        let parts: Vec<(f64, Option<f64>, usize)> = members.iter().filter_map(with_metric).collect();
        if parts.is_empty() {
            continue;
        }
        let values: Vec<f64> = parts.iter().map(|part| part.0).collect();
        let sizes: Vec<usize> = parts.iter().map(|part| part.2).collect();
        let equal = vec![1; sizes.len()];
        let stderrs: Option<Vec<f64>> = parts.iter().map(|part| part.1).collect();
        let stderr = stderrs.and_then(|stderrs| stats::pooled_stderr(&stderrs, &sizes));
        out.insert(key, json!(stats::weighted_mean(&values, if group.weight_by_size { &sizes } else { &equal })));
        out.insert(stderr_key, stderr.map_or(json!("N/A"), |stderr| json!(stderr)));
    }
    Some(Value::Object(out))
}

/// The tasks of a group and of the groups within it.
fn leaves(group: &Group) -> Vec<&'static str> {
    let mut names = Vec::new();
    for member in &group.members {
        match tasks::named(member) {
            Ok(Named::Group(inner)) => names.extend(leaves(inner)),
            _ => names.push(*member),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::evaluate::{plan::PlanOptions, prompt::PromptStyle};

    static PAIR: std::sync::LazyLock<Group> = std::sync::LazyLock::new(|| Group {
        name: "pair",
        alias: "pair",
        version: 1.0,
        members: vec!["primer", "primer_mc", "gsm8k"],
        metrics: vec![("acc", "none")],
        weight_by_size: true,
    });

    #[test]
    fn a_group_weighs_its_tasks_and_names_those_that_are_missing() -> Result<()> {
        let options = PlanOptions { data_dir: "".into(), limit: 4, num_fewshot: None, style: PromptStyle::plain() };
        let mut plan = Plan::new(&["primer".into(), "primer_mc".into()], options)?;
        plan.tasks[0].documents.truncate(1);
        plan.groups.push(&PAIR);
        let results = json!({
            "primer": {"acc,none": 1.0, "acc_stderr,none": 0.1},
            "primer_mc": {"acc,none": 0.5, "acc_stderr,none": "N/A"},
        });
        let rows = rows(&plan, results.as_object().expect("an object"));
        let row = &rows["pair"];
        assert_eq!(row["acc,none"], 0.6);
        assert_eq!(row["acc_stderr,none"], "N/A");
        assert_eq!(row["missing"], json!(["gsm8k"]));
        assert_eq!(row["sample_len"], 5);
        Ok(())
    }
}
