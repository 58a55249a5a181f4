//! What a benchmark is: where its documents lie, how they become prompts and choices, and how an answer is scored.
//!
//! `primer` and the definitions of `tasks/` implement [`Task`]; everything else (prompt assembly, few-shot choice,
//! log-likelihoods, result files) is common. Names and conventions are lm-evaluation-harness's, so that scores can be
//! compared.

use std::{fmt, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    documents::Documents,
    prompt::{FEWSHOT_DELIMITER, TARGET_DELIMITER},
    stats,
};

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
    /// The answers to choose from, or the contexts where [`Task::multiple_inputs`]; empty for generative tasks.
    pub choices: Vec<String>,
}

/// The right answer of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The reference text.
    Text(String),
    /// Index of the right choice.
    Choice(usize),
    /// Indices of all choices that count as right.
    Choices(Vec<usize>),
}

impl Target {
    /// Whether a choice is right.
    pub fn accepts(&self, choice: usize) -> bool {
        match self {
            Target::Text(_) => false,
            Target::Choice(index) => *index == choice,
            Target::Choices(indices) => indices.contains(&choice),
        }
    }

    /// As result files hold it before it is made a string.
    pub fn to_value(&self) -> Value {
        match self {
            Target::Text(text) => json!(text),
            Target::Choice(index) => json!(index),
            Target::Choices(indices) => json!(indices),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Text(text) => formatter.write_str(text),
            Target::Choice(index) => write!(formatter, "{index}"),
            // As Python prints a list.
            Target::Choices(indices) => write!(formatter, "{indices:?}"),
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

/// The score of one document by one metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Measure {
    /// A number, averaged over documents where the task does not say otherwise.
    Number(f64),
    /// Several numbers that only the task's own aggregation knows how to read. NaN stands for "does not apply".
    Numbers(Vec<f64>),
}

impl Measure {
    /// 1 or 0.
    pub fn of(right: bool) -> Self {
        Self::Number(f64::from(u8::from(right)))
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Measure::Number(value) => Some(*value),
            Measure::Numbers(_) => None,
        }
    }

    /// As result files hold it: NaN is null.
    pub fn to_value(&self) -> Value {
        match self {
            Measure::Number(value) => json!(value),
            Measure::Numbers(values) => json!(values),
        }
    }
}

/// Scores by metric.
pub type Scores = Vec<(&'static str, Measure)>;

/// Scores of a document whose answers are programs, by which of them passed.
pub type ScorePrograms = fn(&[bool]) -> Scores;

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
pub trait Task: Send + Sync {
    /// Its constant part.
    fn spec(&self) -> &TaskSpec;

    /// Reads its documents, and the few-shot pool if `with_fewshot`.
    ///
    /// **Errors**: a file that is missing or a row that is damaged; they name the file and the line.
    fn load(&self, data_dir: &Path, with_fewshot: bool) -> Result<Split>;

    /// How answers are scored that are programs: each is run with the target after it. `None`: they are none.
    fn program_scores(&self) -> Option<ScorePrograms> {
        None
    }

    /// What opens the prompt; it brings its own blank line.
    fn description(&self, document: &Document) -> String {
        let _ = document;
        String::new()
    }

    /// Stands between a question and its answer, and before a continuation.
    fn target_delimiter(&self) -> &str {
        TARGET_DELIMITER
    }

    /// Stands after every example.
    fn fewshot_delimiter(&self) -> &str {
        FEWSHOT_DELIMITER
    }

    /// What every answer begins with; the model goes on from there.
    fn gen_prefix(&self, document: &Document) -> Option<String> {
        let _ = document;
        None
    }

    /// Whether the choices are contexts, all with the target's text as their continuation.
    fn multiple_inputs(&self) -> bool {
        false
    }

    /// Whether the number of examples stays the task's own whatever is asked for.
    fn fixed_fewshot(&self) -> bool {
        false
    }

    /// Whether examples come from the evaluated documents themselves, less the one that is asked.
    fn pool_is_test(&self) -> bool {
        false
    }

    /// Answers per document. Generative tasks only.
    fn repeats(&self) -> usize {
        1
    }

    /// The generation settings that the task names, as in result files; `None` for those of the specification.
    fn generation_kwargs(&self) -> Option<&Value> {
        None
    }

    /// The answer that a named filter finds in a response. Generative tasks only.
    fn filter(&self, name: &str, response: &str, document: &Document) -> String {
        let _ = (name, document);
        response.to_owned()
    }

    /// The same for all answers to a document; usually one remains. Generative tasks only.
    fn answers(&self, filter: &str, responses: &[String], document: &Document) -> Vec<String> {
        responses.iter().take(1).map(|response| self.filter(filter, response, document)).collect()
    }

    /// Whether a filtered answer equals the reference, after the task's normalisation. Generative tasks only.
    fn exact_match(&self, prediction: &str, reference: &str) -> bool {
        prediction == reference
    }

    /// Scores what a filter left of the answers. Generative tasks only.
    ///
    /// **Errors**: the answers could not be judged.
    fn score_answers(&self, answers: &[String], document: &Document) -> Result<Scores> {
        let reference = document.target.to_string();
        let right = answers.first().is_some_and(|answer| self.exact_match(answer, &reference));
        Ok(vec![(self.spec().metrics[0], Measure::of(right))])
    }

    /// Scores the choices by the sums of their log-probabilities. Multiple choice only.
    fn score_choices(&self, document: &Document, sums: &[f64]) -> Scores {
        super::metrics::accuracies(self.spec().metrics, document, sums)
    }

    /// One number for a metric over all documents, and its standard error where it has one.
    fn aggregate(&self, metric: &str, documents: &Documents, values: &[Measure]) -> (f64, Option<f64>) {
        let _ = (metric, documents);
        let numbers: Vec<f64> = values.iter().filter_map(Measure::number).collect();
        stats::mean_stderr(&numbers)
    }

    /// Whether more of a metric is better.
    fn higher_is_better(&self, metric: &str) -> bool {
        let _ = metric;
        true
    }

    /// What result files show instead of the name; subjects of a group are shown without the group's name.
    fn alias(&self) -> &str {
        self.spec().name
    }
}
