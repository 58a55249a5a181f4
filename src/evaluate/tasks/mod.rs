//! Every benchmark that can be asked for by name: single tasks, groups of them, and a user's own.
//!
//! One file per family. What families share is in `definition` (a task said in data) and `filters` (finding answers).

pub mod agieval;
pub mod arc;
pub mod bbh;
mod bbh_answers;
mod bbq;
mod bias;
mod code;
mod commonsense;
pub mod definition;
pub mod filters;
mod glan;
mod gsm8k;
pub mod ifeval;
pub mod latex;
pub mod math;
mod mbpp;
pub mod minerva;
mod mmlu;
mod own;
mod stereoset;
mod truthfulqa;

use std::{
    path::Path,
    sync::{LazyLock, Mutex},
};

use anyhow::Result;

pub use self::code::extract_code;
use super::{primer, task::Task};
use crate::error::usage;

/// Several tasks under one name, with one number for all of them.
#[derive(Debug)]
pub struct Group {
    /// As users write it.
    pub name: &'static str,
    /// As tables show it.
    pub alias: &'static str,
    /// Version of the group.
    pub version: f64,
    /// Its tasks and groups.
    pub members: Vec<&'static str>,
    /// Metric and filter of each number.
    pub metrics: Vec<(&'static str, &'static str)>,
    /// Whether a task counts by its number of documents, or all alike.
    pub weight_by_size: bool,
}

impl Group {
    /// A group with one number, weighted by size.
    pub fn new(
        name: &'static str,
        version: f64,
        members: Vec<&'static str>,
        metric: &'static str,
        filter: &'static str,
    ) -> Self {
        Self { name, alias: name, version, members, metrics: vec![(metric, filter)], weight_by_size: true }
    }
}

/// What a name stands for.
#[derive(Clone, Copy)]
pub enum Named {
    /// A task.
    Task(&'static dyn Task),
    /// A group of tasks.
    Group(&'static Group),
}

static TASKS: LazyLock<Vec<Box<dyn Task>>> = LazyLock::new(|| {
    let mut tasks: Vec<Box<dyn Task>> = vec![Box::new(primer::Primer), Box::new(primer::PrimerMc)];
    tasks.extend(gsm8k::tasks());
    tasks.extend(arc::tasks());
    tasks.extend(math::tasks());
    tasks.extend(minerva::tasks());
    tasks.extend(mmlu::tasks());
    tasks.extend(bbh::tasks());
    tasks.extend(agieval::tasks());
    tasks.extend(commonsense::tasks());
    tasks.extend(truthfulqa::tasks());
    tasks.extend(code::tasks());
    tasks.extend(mbpp::tasks());
    tasks.extend(ifeval::tasks());
    tasks.extend(bias::tasks());
    tasks.extend(bbq::tasks());
    tasks.extend(stereoset::tasks());
    tasks.extend(glan::tasks());
    tasks
});

static GROUPS: LazyLock<Vec<Group>> = LazyLock::new(|| {
    let mut groups = Vec::new();
    groups.extend(math::groups());
    groups.extend(mmlu::groups());
    groups.extend(bbh::groups());
    groups.extend(agieval::groups());
    groups.extend(glan::groups());
    groups
});

/// Users' own tasks that were read, by path; they live as long as the program.
static OWN: Mutex<Vec<(String, &'static dyn Task)>> = Mutex::new(Vec::new());

/// Every task of the program.
pub fn all() -> impl Iterator<Item = &'static dyn Task> {
    TASKS.iter().map(|task| &**task)
}

/// Every group of the program.
pub fn groups() -> impl Iterator<Item = &'static Group> {
    GROUPS.iter()
}

/// The task or group of a name; the name of a `.toml` file is a task of the user's.
///
/// **Errors**: usage, naming what there is; what is wrong with a user's file.
pub fn named(name: &str) -> Result<Named> {
    if let Some(task) = all().find(|task| task.spec().name == name) {
        return Ok(Named::Task(task));
    }
    if let Some(group) = groups().find(|group| group.name == name) {
        return Ok(Named::Group(group));
    }
    if name.ends_with(".toml") {
        return own_task(name).map(Named::Task);
    }
    Err(usage(format!("there is no task `{name}`; known tasks and groups: {}", overview().join(", "))))
}

/// The task of a name.
///
/// **Errors**: usage, for a group or a name that nothing has.
pub fn find(name: &str) -> Result<&'static dyn Task> {
    match named(name)? {
        Named::Task(task) => Ok(task),
        Named::Group(_) => Err(usage(format!("`{name}` is a group of tasks; expected a single one"))),
    }
}

fn own_task(path: &str) -> Result<&'static dyn Task> {
    let mut known = OWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, task)) = known.iter().find(|(other, _)| other == path) {
        return Ok(*task);
    }
    let task: &'static dyn Task = Box::leak(own::read(Path::new(path))?.boxed());
    if all().any(|other| other.spec().name == task.spec().name) {
        return Err(usage(format!(
            "`{path}`: there is a task `{}` already; give this one another name",
            task.spec().name
        )));
    }
    known.push((path.to_owned(), task));
    Ok(task)
}

/// Groups, and the tasks that are in none.
fn overview() -> Vec<&'static str> {
    let is_member = |name: &str| groups().any(|group| group.members.contains(&name));
    let tasks = all().map(|task| task.spec().name);
    let groups = groups().map(|group| group.name);
    groups.chain(tasks).filter(|name| !is_member(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_unknown_task_is_a_usage_error_that_lists_groups_and_single_tasks() {
        let error = find("hellaswagg").err().expect("there is no such task");
        assert_eq!(crate::error::exit_code(&error), 2);
        for name in ["primer", "hellaswag", "mmlu", "bbh", "gsm8k"] {
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(!error.to_string().contains("mmlu_anatomy"), "{error}");
    }

    #[test]
    fn names_are_unique_members_exist_and_every_task_has_a_headline_metric() {
        let names: Vec<_> = all().map(|task| task.spec().name).chain(groups().map(|group| group.name)).collect();
        let unique: BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        for group in groups() {
            for member in &group.members {
                assert!(unique.contains(member), "{} has no `{member}`", group.name);
            }
        }
        assert!(all().all(|task| !task.spec().filters.is_empty() && !task.spec().metrics.is_empty()));
    }
}
