//! A benchmark said in data: templates, delimiters, settings, filters and metrics, with a function where data ends.
//!
//! Definitions live as long as the program, so the names that are put together at its start are leaked once.

use std::{borrow::Cow, path::Path};

use anyhow::Result;
use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::filters::{Filter, constant};
use crate::evaluate::documents::Documents;
use crate::evaluate::task::{
    Document, Generation, Measure, OutputType, Sampler, ScorePrograms, Scores, Split, Task, TaskSpec,
};

/// Most tokens where a task names no number.
const DEFAULT_MAX_GEN_TOKS: usize = 256;

type Load = Box<dyn Fn(&Path, bool) -> Result<Split> + Send + Sync>;
type Render = Box<dyn Fn(&Document) -> String + Send + Sync>;
/// Scores choices by their sums of log-probabilities.
pub type ScoreChoices = fn(&Document, &[f64]) -> Scores;
/// Scores filtered answers.
pub type ScoreAnswers = fn(&Document, &[String]) -> Result<Scores>;
/// One number, and its standard error, for a metric over all documents.
pub type Aggregate = fn(&str, &Documents, &[Measure]) -> (f64, Option<f64>);

/// What the functions of a task may replace.
#[derive(Clone, Copy, Default)]
pub struct Scoring {
    /// Instead of `acc` and `acc_norm`.
    pub choices: Option<ScoreChoices>,
    /// Instead of `exact_match`.
    pub answers: Option<ScoreAnswers>,
    /// Instead of the mean.
    pub aggregate: Option<Aggregate>,
    /// Answers are programs, which are run.
    pub programs: Option<ScorePrograms>,
}

/// How an answer and its reference are made equal before they are compared.
#[derive(Debug, Clone, Default)]
pub struct ExactMatch {
    /// Deleted from both, in order.
    pub regexes_to_ignore: Vec<Regex>,
    /// Letters are made small.
    pub ignore_case: bool,
    /// ASCII punctuation is deleted.
    pub ignore_punctuation: bool,
    /// Digits are deleted.
    pub ignore_numbers: bool,
}

impl ExactMatch {
    /// Letters and punctuation do not matter.
    pub fn loose() -> Self {
        Self { ignore_case: true, ignore_punctuation: true, ..Self::default() }
    }

    /// Letters do not matter, and constant patterns are deleted.
    pub fn without(patterns: &[&str]) -> Self {
        let regexes_to_ignore = patterns.iter().map(|pattern| constant(pattern)).collect();
        Self { regexes_to_ignore, ignore_case: true, ..Self::default() }
    }

    /// A text as it is compared.
    pub fn normalise(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for regex in &self.regexes_to_ignore {
            text = Cow::Owned(regex.replace_all(&text, "").into_owned());
        }
        let text = if self.ignore_case { text.to_lowercase() } else { text.into_owned() };
        let is_ignored = |character: char| {
            (self.ignore_punctuation && character.is_ascii_punctuation())
                || (self.ignore_numbers && character.is_ascii_digit())
        };
        text.chars().filter(|&character| !is_ignored(character)).collect()
    }
}

/// A benchmark.
pub struct Definition {
    /// Its constant part.
    pub spec: TaskSpec,
    /// Shown instead of the name.
    pub alias: Option<&'static str>,
    /// Opens the prompt.
    pub description: Option<Render>,
    /// Between a question and its answer.
    pub target_delimiter: Cow<'static, str>,
    /// After an example.
    pub fewshot_delimiter: Cow<'static, str>,
    /// Opens the answer.
    pub gen_prefix: Option<Render>,
    /// Choices are contexts.
    pub multiple_inputs: bool,
    /// The number of examples cannot be changed.
    pub fixed_fewshot: bool,
    /// Examples come from the evaluated documents.
    pub pool_is_test: bool,
    /// Answers per document.
    pub repeats: usize,
    /// Generation settings as the task names them.
    pub generation_kwargs: Option<Value>,
    /// The filters, as many as the specification names.
    pub filters: Vec<Filter>,
    /// Comparison of answers.
    pub exact_match: ExactMatch,
    /// Scoring beyond `exact_match`, `acc` and `acc_norm`.
    pub scoring: Scoring,
    /// Metrics of which less is better.
    pub lower_is_better: &'static [&'static str],
    /// Reads the documents.
    pub load: Load,
}

/// Puts a string where constants live.
pub fn leak(text: impl Into<String>) -> &'static str {
    Box::leak(text.into().into_boxed_str())
}

fn leak_all<T: 'static>(list: Vec<T>) -> &'static [T] {
    Box::leak(list.into_boxed_slice())
}

impl Definition {
    fn new(name: &str, version: f64, output_type: OutputType, load: Load) -> Self {
        Self {
            spec: TaskSpec {
                name: leak(name),
                version,
                num_fewshot: 0,
                sampler: Sampler::Default,
                output_type,
                doc_to_text: "",
                doc_to_target: "",
                filters: &["none"],
                metrics: &["acc", "acc_norm"],
                files: &[],
            },
            alias: None,
            description: None,
            target_delimiter: Cow::Borrowed(crate::evaluate::prompt::TARGET_DELIMITER),
            fewshot_delimiter: Cow::Borrowed(crate::evaluate::prompt::FEWSHOT_DELIMITER),
            gen_prefix: None,
            multiple_inputs: false,
            fixed_fewshot: false,
            pool_is_test: false,
            repeats: 1,
            generation_kwargs: None,
            filters: Vec::new(),
            exact_match: ExactMatch::default(),
            scoring: Scoring::default(),
            lower_is_better: &[],
            load,
        }
    }

    /// A task that chooses, scored by `acc` and `acc_norm` until told otherwise.
    pub fn multiple_choice(
        name: &str,
        version: f64,
        load: impl Fn(&Path, bool) -> Result<Split> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, version, OutputType::MultipleChoice, Box::new(load))
    }

    /// A task that writes, scored by `exact_match` on the whole answer until told otherwise.
    ///
    /// `kwargs` are the settings as the task names them: `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_p`.
    pub fn generative(
        name: &str,
        version: f64,
        kwargs: Value,
        load: impl Fn(&Path, bool) -> Result<Split> + Send + Sync + 'static,
    ) -> Self {
        let texts = kwargs["until"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let until = leak_all(texts.map(leak).collect());
        let max_gen_toks = kwargs["max_gen_toks"].as_u64().map_or(DEFAULT_MAX_GEN_TOKS, |most| most as usize);
        let generation = Generation { until, until_chat: until, max_gen_toks };
        let mut task = Self::new(name, version, OutputType::GenerateUntil(generation), Box::new(load));
        task.generation_kwargs = Some(kwargs);
        task.spec.metrics = &["exact_match"];
        task.filtered(vec![Filter::none()])
    }

    /// With these filters.
    pub fn filtered(mut self, filters: Vec<Filter>) -> Self {
        self.spec.filters = leak_all(filters.iter().map(|filter| filter.name).collect());
        self.filters = filters;
        self
    }

    /// With these metrics; the first is the headline.
    pub fn scored_by(mut self, metrics: &'static [&'static str], scoring: Scoring) -> Self {
        self.spec.metrics = metrics;
        self.scoring = scoring;
        self
    }

    /// With so many examples, taken so.
    pub fn shots(mut self, num_fewshot: usize, sampler: Sampler) -> Self {
        self.spec.num_fewshot = num_fewshot;
        self.spec.sampler = sampler;
        self
    }

    /// Always without examples.
    pub fn zero_shot(mut self) -> Self {
        self.fixed_fewshot = true;
        self.spec.num_fewshot = 0;
        self
    }

    /// With this text before the prompt.
    pub fn described(mut self, description: String) -> Self {
        self.description = Some(Box::new(move |_| description.clone()));
        self
    }

    /// With templates for result files, and the files that are read.
    pub fn documented(
        mut self,
        doc_to_text: &'static str,
        doc_to_target: &'static str,
        files: &'static [&'static str],
    ) -> Self {
        self.spec.doc_to_text = doc_to_text;
        self.spec.doc_to_target = doc_to_target;
        self.spec.files = files;
        self
    }

    /// For the registry.
    pub fn boxed(self) -> Box<dyn Task> {
        Box::new(self)
    }
}

impl Task for Definition {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn load(&self, data_dir: &Path, with_fewshot: bool) -> Result<Split> {
        (self.load)(data_dir, with_fewshot)
    }

    fn program_scores(&self) -> Option<ScorePrograms> {
        self.scoring.programs
    }

    fn description(&self, document: &Document) -> String {
        self.description.as_ref().map(|render| render(document)).unwrap_or_default()
    }

    fn target_delimiter(&self) -> &str {
        &self.target_delimiter
    }

    fn fewshot_delimiter(&self) -> &str {
        &self.fewshot_delimiter
    }

    fn gen_prefix(&self, document: &Document) -> Option<String> {
        self.gen_prefix.as_ref().map(|render| render(document))
    }

    fn multiple_inputs(&self) -> bool {
        self.multiple_inputs
    }

    fn fixed_fewshot(&self) -> bool {
        self.fixed_fewshot
    }

    fn pool_is_test(&self) -> bool {
        self.pool_is_test
    }

    fn repeats(&self) -> usize {
        self.repeats
    }

    fn generation_kwargs(&self) -> Option<&Value> {
        self.generation_kwargs.as_ref()
    }

    fn answers(&self, filter: &str, responses: &[String], document: &Document) -> Vec<String> {
        match self.filters.iter().find(|known| known.name == filter) {
            Some(filter) => filter.apply(responses, document),
            None => Vec::new(),
        }
    }

    fn exact_match(&self, prediction: &str, reference: &str) -> bool {
        self.exact_match.normalise(prediction) == self.exact_match.normalise(reference)
    }

    fn score_answers(&self, answers: &[String], document: &Document) -> Result<Scores> {
        if let Some(score) = self.scoring.answers {
            return score(document, answers);
        }
        let reference = document.target.to_string();
        let right = answers.first().is_some_and(|answer| self.exact_match(answer, &reference));
        Ok(vec![(self.spec.metrics[0], Measure::of(right))])
    }

    fn score_choices(&self, document: &Document, sums: &[f64]) -> Scores {
        match self.scoring.choices {
            Some(score) => score(document, sums),
            None => crate::evaluate::metrics::accuracies(self.spec.metrics, document, sums),
        }
    }

    fn aggregate(&self, metric: &str, documents: &Documents, values: &[Measure]) -> (f64, Option<f64>) {
        match self.scoring.aggregate {
            Some(aggregate) => aggregate(metric, documents, values),
            None => mean(values),
        }
    }

    fn higher_is_better(&self, metric: &str) -> bool {
        !self.lower_is_better.contains(&metric)
    }

    fn alias(&self) -> &str {
        self.alias.unwrap_or(self.spec.name)
    }
}

/// Mean and standard error of the numbers.
pub fn mean(values: &[Measure]) -> (f64, Option<f64>) {
    let numbers: Vec<f64> = values.iter().filter_map(Measure::number).collect();
    crate::evaluate::stats::mean_stderr(&numbers)
}

/// Greedy decoding up to stop strings, as most tasks write it.
pub fn greedy(until: &[&str]) -> Value {
    json!({"until": until, "do_sample": false, "temperature": 0.0})
}

/// Settings with one more.
pub fn with(mut kwargs: Value, key: &str, value: impl Into<Value>) -> Value {
    match kwargs.as_object_mut() {
        Some(settings) => {
            settings.insert(key.to_owned(), value.into());
            kwargs
        }
        None => Value::Object(Map::from_iter([(key.to_owned(), value.into())])),
    }
}
