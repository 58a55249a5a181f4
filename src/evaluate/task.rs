//! What a benchmark is: where its documents lie, how they become prompts and choices, and how an answer is scored.
//!
//! One file per benchmark implements [`Task`]; everything else (prompt assembly, few-shot choice, log-likelihoods,
//! metrics, result files) is common. Names and conventions are lm-evaluation-harness's, so that scores can be compared.

use std::{fmt, path::Path};

use anyhow::Result;
use serde_json::Value;

use super::{arc, gsm8k, primer};
use crate::error::usage;

/// One item of a benchmark, with everything that prompts and scores need.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The row as the benchmark's file holds it.
    pub row: Value,
    /// What is asked (`doc_to_text`).
    pub text: String,
    /// What is right (`doc_to_target`).
    pub target: Target,
    /// What follows the text where the document serves as an example.
    pub shot_answer: String,
    /// The answers to choose from; empty for generative tasks.
    pub choices: Vec<String>,
}

/// The right answer of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The reference text.
    Text(String),
    /// Index of the right choice.
    Choice(usize),
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Text(text) => formatter.write_str(text),
            Target::Choice(index) => write!(formatter, "{index}"),
        }
    }
}

/// The documents of a benchmark.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Split {
    /// The items that are evaluated, in file order.
    pub documents: Vec<Document>,
    /// The items that examples are taken from; never evaluated.
    pub fewshot_pool: Vec<Document>,
}

/// How examples are taken from the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// Drawn anew for every document by Python's generator, seed 1234.
    Default,
    /// The first n, the same for every document.
    FirstN,
}

/// What is asked of the model per document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputType {
    /// The log-likelihood of every choice.
    MultipleChoice,
    /// A greedy continuation.
    GenerateUntil(Generation),
}

impl OutputType {
    /// The name in result files.
    pub fn name(&self) -> &'static str {
        match self {
            OutputType::MultipleChoice => "multiple_choice",
            OutputType::GenerateUntil(_) => "generate_until",
        }
    }
}

/// How far a greedy continuation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Stop strings after a plain-text prompt.
    pub until: &'static [&'static str],
    /// Stop strings after a chat prompt, beside the end of the turn.
    pub until_chat: &'static [&'static str],
    /// Most tokens.
    pub max_gen_toks: usize,
}

impl Generation {
    /// The stop strings for a kind of prompt.
    pub fn stop_strings(&self, chat: bool) -> &'static [&'static str] {
        if chat { self.until_chat } else { self.until }
    }
}

/// The constant part of a task.
#[derive(Debug)]
pub struct TaskSpec {
    /// As users write it.
    pub name: &'static str,
    /// Version of prompts and scoring; scores of different versions do not compare.
    pub version: f64,
    /// Examples before each question, where nothing else is asked for.
    pub num_fewshot: usize,
    /// How examples are taken.
    pub sampler: Sampler,
    /// What is asked of the model.
    pub output_type: OutputType,
    /// Jinja form of the question, for result files.
    pub doc_to_text: &'static str,
    /// Jinja form of the target, for result files.
    pub doc_to_target: &'static str,
    /// Names of the answer filters; each gives a metric column of its own. The first is the headline.
    pub filters: &'static [&'static str],
    /// Metrics per filter. The first is the headline.
    pub metrics: &'static [&'static str],
    /// Files under the data folder, without `.gz`: documents first, then the few-shot pool. Empty: built in.
    pub files: &'static [&'static str],
}

/// A benchmark.
pub trait Task: Sync {
    /// Its constant part.
    fn spec(&self) -> &TaskSpec;

    /// Reads its documents, and the few-shot pool if `with_fewshot`.
    ///
    /// **Errors**: a file that is missing or a row that is damaged; they name the file and the line.
    fn load(&self, data_dir: &Path, with_fewshot: bool) -> Result<Split>;

    /// The answer that a named filter finds in a response. Generative tasks only.
    fn filter(&self, name: &str, response: &str, document: &Document) -> String {
        let _ = (name, document);
        response.to_owned()
    }

    /// Whether a filtered answer equals the reference, after the task's normalisation. Generative tasks only.
    fn exact_match(&self, prediction: &str, reference: &str) -> bool {
        prediction == reference
    }
}

/// Every task, in the order of help texts.
pub fn all() -> [&'static dyn Task; 5] {
    [&primer::Primer, &primer::PrimerMc, &gsm8k::Gsm8k, &arc::ARC_EASY, &arc::ARC_CHALLENGE]
}

/// The task of a name.
///
/// **Errors**: usage, listing the tasks that exist.
pub fn find(name: &str) -> Result<&'static dyn Task> {
    all().into_iter().find(|task| task.spec().name == name).ok_or_else(|| {
        let known: Vec<_> = all().iter().map(|task| task.spec().name).collect();
        usage(format!("there is no task `{name}`; known tasks: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_task_is_a_usage_error_that_lists_the_known_ones() {
        let error = find("hellaswagg").err().expect("there is no such task");
        assert_eq!(crate::error::exit_code(&error), 2);
        for task in all() {
            assert!(error.to_string().contains(task.spec().name), "{error}");
        }
    }

    #[test]
    fn task_names_are_unique_and_every_task_has_a_headline_metric() {
        let mut names: Vec<_> = all().iter().map(|task| task.spec().name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
        assert!(all().iter().all(|task| !task.spec().filters.is_empty() && !task.spec().metrics.is_empty()));
    }
}
