//! What an evaluation asks: the chosen tasks with their documents and prompts, before any model is loaded.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};

use super::{
    documents::Documents,
    fewshot::FewshotSampler,
    prompt::{self, Context, PromptStyle},
    sandbox::Sandbox,
    task::{Document, OutputType, Split, Task, TaskSpec},
    tasks::{self, Group, Named},
};
use crate::error::usage;

/// Items of benchmarks that are often passed on in part; a score over fewer is an estimate and says so.
const WHOLE_SIZES: [(&str, usize); 14] = [
    ("arc_challenge", 1172),
    ("arc_easy", 2376),
    ("bbq", 58_492),
    ("gsm8k", 1319),
    ("hellaswag", 10_042),
    ("hendrycks_math500", 500),
    ("humaneval", 164),
    ("ifeval", 541),
    ("mbpp", 500),
    ("piqa", 1838),
    ("truthfulqa_mc1", 817),
    ("truthfulqa_mc2", 817),
    ("winogender_all", 720),
    ("winogrande", 1267),
];

/// What a plan depends on, beside the tasks' names.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// Folder with the benchmarks' files.
    pub data_dir: PathBuf,
    /// First so many documents of every task; 0 takes all.
    pub limit: usize,
    /// Examples before each question; `None` takes the task's own number.
    pub num_fewshot: Option<usize>,
    /// Form of the prompts.
    pub style: PromptStyle,
}

/// A task with its documents and their prompts.
pub struct PlannedTask {
    /// The benchmark.
    pub task: &'static dyn Task,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// Documents before the limit.
    pub original: usize,
    /// The documents that are evaluated; the index is the `doc_id`.
    pub documents: Documents,
    /// Where examples come from.
    fewshot_pool: Documents,
    /// The examples of each document, as places in the pool. Prompts are put together from them when they are needed:
    /// with examples they are many times the size of the documents.
    shots: Vec<Vec<usize>>,
    style: PromptStyle,
    /// Contexts that were given instead, by document.
    given: Option<Vec<Vec<Context>>>,
}

impl PlannedTask {
    /// Reads a task's documents and assembles their prompts.
    ///
    /// **Errors**: usage, for more examples than the task has; a file that is missing or damaged.
    pub fn new(task: &'static dyn Task, options: &PlanOptions) -> Result<Self> {
        let own = task.spec().num_fewshot;
        let num_fewshot = options.num_fewshot.filter(|_| !task.fixed_fewshot()).unwrap_or(own);
        let split = task.load(&options.data_dir, num_fewshot > 0 && !task.pool_is_test())?;
        plan_task(task, split, num_fewshot, options.limit, &options.style)
    }

    /// Documents with contexts of their own, nothing before them.
    pub fn given(task: &'static dyn Task, documents: Vec<Document>, contexts: Vec<Vec<Context>>) -> Self {
        Self {
            task,
            num_fewshot: 0,
            original: documents.len(),
            shots: vec![Vec::new(); documents.len()],
            documents: documents.into(),
            fewshot_pool: Documents::default(),
            style: PromptStyle::plain(),
            given: Some(contexts),
        }
    }

    /// The constant part of the task.
    pub fn spec(&self) -> &'static TaskSpec {
        self.task.spec()
    }

    /// Requests of a document: one per choice, or one per answer.
    pub fn requests(&self, doc_id: usize) -> usize {
        match self.spec().output_type {
            OutputType::MultipleChoice => self.documents.num_choices(doc_id),
            OutputType::GenerateUntil(_) => self.task.repeats(),
        }
    }

    /// What stands before the answer to a document: one context, or one per choice where choices are contexts.
    pub fn contexts(&self, doc_id: usize) -> Vec<Context> {
        if let Some(given) = &self.given {
            return given[doc_id].clone();
        }
        let shots: Vec<Document> =
            self.shots[doc_id].iter().filter_map(|&index| self.fewshot_pool.get(index)).collect();
        let shots: Vec<&Document> = shots.iter().collect();
        prompt::contexts(self.task, &shots, &self.document(doc_id), &self.style)
    }

    /// One of the plan's documents.
    pub fn document(&self, doc_id: usize) -> Document {
        self.documents.get(doc_id).expect("a document of the plan")
    }

    /// What a score leaves out: items that are not in the file, and those past the limit.
    pub fn partial(&self) -> Option<String> {
        let whole = WHOLE_SIZES.iter().find(|(name, _)| *name == self.spec().name);
        let lacks = whole.filter(|(_, whole)| self.original < *whole);
        let of_file = lacks.map(|(_, whole)| format!("the file holds {} of {whole} items", self.original));
        let evaluated = self.documents.len();
        let of_limit = (evaluated < self.original).then(|| format!("the first {evaluated} of {} items", self.original));
        let parts: Vec<String> = of_file.into_iter().chain(of_limit).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Which of a document's contexts a request has.
    pub fn context_index(&self, idx: usize) -> usize {
        if self.task.multiple_inputs() { idx } else { 0 }
    }
}

/// A task that cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SkippedTask {
    /// Its name.
    pub task: String,
    /// What is missing.
    pub reason: String,
}

/// All questions of an evaluation.
pub struct Plan {
    /// The tasks in the order asked for.
    pub tasks: Vec<PlannedTask>,
    /// Tasks whose data is not there or is damaged, or whose answers cannot be scored here.
    pub skipped: Vec<SkippedTask>,
    /// The groups that were asked for, with the groups within them.
    pub groups: Vec<&'static Group>,
    /// First so many documents of every task; 0 took all.
    pub limit: usize,
    /// Form of the prompts.
    pub style: PromptStyle,
    /// What ends a model's thinking, such as `</think>`: an answer begins after the last of it. Empty: nothing is cut.
    pub think_end_token: String,
    /// Where answers are run that are programs.
    pub sandbox: Option<Arc<Sandbox>>,
}

impl Plan {
    /// Reads the benchmarks and assembles the prompts.
    ///
    /// **Errors**: usage, for an unknown task or more examples than a task has. A task whose data cannot be read is
    /// no error but listed as skipped.
    #[expect(clippy::needless_pass_by_value, reason = "options are made for one plan")]
    pub fn new(names: &[String], options: PlanOptions) -> Result<Self> {
        let mut plan = Self {
            tasks: Vec::new(),
            skipped: Vec::new(),
            groups: Vec::new(),
            limit: options.limit,
            style: options.style.clone(),
            think_end_token: String::new(),
            sandbox: None,
        };
        let mut chosen: Vec<&'static dyn Task> = Vec::new();
        for name in names {
            choose(name, &mut chosen, &mut plan.groups)?;
        }
        for task in chosen {
            match PlannedTask::new(task, &options) {
                Ok(planned) => plan.tasks.push(planned),
                Err(error) if crate::error::exit_code(&error) == 2 => return Err(error),
                Err(error) => {
                    let reason = format!("{error:#}");
                    plan.skipped.push(SkippedTask { task: task.spec().name.to_owned(), reason });
                }
            }
        }
        Ok(plan)
    }

    /// The plan of tasks that were planned by themselves.
    pub fn of(tasks: Vec<PlannedTask>, style: PromptStyle) -> Self {
        let (skipped, groups) = (Vec::new(), Vec::new());
        Self { tasks, skipped, groups, limit: 0, style, think_end_token: String::new(), sandbox: None }
    }

    /// Whether answers of a task are programs.
    pub fn needs_sandbox(&self) -> bool {
        self.tasks.iter().any(|planned| planned.task.program_scores().is_some())
    }

    /// Takes the sandbox that programs are run in; where it could not be had, the tasks that need it are skipped.
    pub fn take_sandbox(&mut self, sandbox: &Result<Arc<Sandbox>>) {
        match sandbox {
            Ok(sandbox) => self.sandbox = Some(Arc::clone(sandbox)),
            Err(error) => {
                let is_program = |planned: &mut PlannedTask| planned.task.program_scores().is_some();
                for planned in self.tasks.extract_if(.., is_program) {
                    let reason = format!("{error:#}");
                    self.skipped.push(SkippedTask { task: planned.spec().name.to_owned(), reason });
                }
            }
        }
    }

    /// Fails where a task cannot be evaluated, for commands that ask for particular tasks.
    pub fn require_all(&self) -> Result<()> {
        match self.skipped.first() {
            None => Ok(()),
            Some(SkippedTask { task, reason }) => Err(usage(format!("task `{task}` cannot be evaluated: {reason}"))),
        }
    }

    /// Whether there is a task of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tasks.iter().any(|planned| planned.spec().name == name)
    }
}

/// Adds a task, or the tasks of a group, that are not chosen yet.
fn choose(name: &str, chosen: &mut Vec<&'static dyn Task>, groups: &mut Vec<&'static Group>) -> Result<()> {
    match tasks::named(name)? {
        Named::Task(task) => {
            if !chosen.iter().any(|other| other.spec().name == task.spec().name) {
                chosen.push(task);
            }
        }
        Named::Group(group) => {
            if !groups.iter().any(|other| other.name == group.name) {
                groups.push(group);
            }
            for member in &group.members {
                choose(member, chosen, groups)?;
            }
        }
    }
    Ok(())
}

fn plan_task(
    task: &'static dyn Task,
    split: Split,
    num_fewshot: usize,
    limit: usize,
    style: &PromptStyle,
) -> Result<PlannedTask> {
    let Split { mut documents, mut fewshot_pool } = split;
    if task.pool_is_test() && num_fewshot > 0 {
        fewshot_pool.clone_from(&documents);
    }
    // Of the evaluated documents, the one that is asked is no example.
    let choosable = fewshot_pool.len().saturating_sub(usize::from(task.pool_is_test()));
    if num_fewshot > choosable {
        return Err(usage(format!(
            "{num_fewshot} examples were asked for, but task `{}` has {} to choose from",
            task.spec().name,
            choosable
        )));
    }
    let original = documents.len();
    if limit > 0 {
        documents.truncate(limit);
    }
    let (documents, fewshot_pool) = (Documents::from(documents), Documents::from(fewshot_pool));
    let mut sampler = FewshotSampler::new(task.spec().sampler, fewshot_pool.len(), num_fewshot);
    let draw = |doc_id| if task.pool_is_test() { sampler.next_but(doc_id) } else { sampler.next_document() };
    let shots = (0..documents.len()).map(draw).collect();
    Ok(PlannedTask { task, num_fewshot, original, documents, fewshot_pool, shots, style: style.clone(), given: None })
}

/// The number of examples that a configuration's `num_fewshot` stands for.
///
/// **Errors**: usage, for a number below -1.
pub fn num_fewshot(configured: i64) -> Result<Option<usize>> {
    match configured {
        -1 => Ok(None),
        _ => usize::try_from(configured).map(Some).context(crate::error::Failure::Usage(format!(
            "evaluate.num_fewshot is {configured}; expected -1 or more"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(num_fewshot: Option<usize>) -> PlanOptions {
        PlanOptions { data_dir: PathBuf::from("nowhere"), limit: 4, num_fewshot, style: PromptStyle::plain() }
    }

    #[test]
    fn a_task_without_data_is_skipped_and_says_which_file_it_needs() -> Result<()> {
        let plan = Plan::new(&["gsm8k".into(), "primer".into(), "primer".into()], options(None))?;
        assert_eq!(plan.tasks.len(), 1);
        assert_eq!(plan.tasks[0].documents.len(), 4);
        assert!(plan.skipped[0].reason.contains("gsm8k/test.jsonl"), "{:?}", plan.skipped);
        let error = plan.require_all().expect_err("a task was skipped");
        assert_eq!(crate::error::exit_code(&error), 2);
        Ok(())
    }

    #[test]
    fn more_examples_than_there_are_is_a_usage_error() {
        let error = Plan::new(&["primer".into()], options(Some(11))).err().expect("primer has 10 examples");
        assert_eq!(crate::error::exit_code(&error), 2);
        assert_eq!(num_fewshot(-1).ok(), Some(None));
        assert_eq!(crate::error::exit_code(&num_fewshot(-2).expect_err("out of range")), 2);
    }

    #[test]
    fn a_limit_makes_a_score_partial() -> Result<()> {
        let mut plan = Plan::new(&["primer".into()], options(None))?;
        let whole = plan.tasks[0].original;
        assert_eq!(plan.tasks[0].partial(), Some(format!("the first 4 of {whole} items")));
        plan.tasks[0].original = 4;
        assert_eq!(plan.tasks[0].partial(), None);
        Ok(())
    }

    #[test]
    fn fixed_examples_stand_before_every_question() -> Result<()> {
        let plan = Plan::new(&["primer".into()], options(Some(2)))?;
        let texts: Vec<_> = (0..plan.tasks[0].documents.len())
            .map(|doc_id| match &plan.tasks[0].contexts(doc_id)[0] {
                Context::Text(text) => text.split("\n\n").map(str::to_owned).collect::<Vec<_>>(),
                Context::Messages(_) => panic!("a plain style gives text"),
            })
            .collect();
        assert!(texts.iter().all(|parts| parts.len() == 3 && parts[..2] == texts[0][..2]));
        Ok(())
    }
}
