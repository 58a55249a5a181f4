//! A user's own benchmark: one TOML file, spelled as lm-evaluation-harness spells its YAML, and JSON lines beside it.
//!
//! Templates are Jinja with undefined names as errors. A template that is just the name of a field is that field.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use minijinja::{Environment, UndefinedBehavior};
use serde::Deserialize;
use serde_json::Value;

use super::{
    definition::{Definition, ExactMatch, leak, with},
    filters::{Extract, Filter, INVALID, Step, python_regex},
};
use crate::{
    error::usage,
    evaluate::{
        data,
        prompt::FEWSHOT_DELIMITER,
        task::{Document, Sampler, Split, Target},
    },
};

/// What the file may say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnTask {
    task: String,
    /// Documents, relative to the TOML file.
    dataset_file: PathBuf,
    /// Examples; without them examples come from the documents.
    fewshot_file: Option<PathBuf>,
    doc_to_text: String,
    doc_to_target: Value,
    doc_to_choice: Option<Value>,
    #[serde(default = "generate_until")]
    output_type: String,
    #[serde(default)]
    num_fewshot: usize,
    fewshot_delimiter: Option<String>,
    target_delimiter: Option<String>,
    #[serde(default)]
    description: String,
    gen_prefix: Option<String>,
    generation_kwargs: Option<Value>,
    #[serde(default)]
    filter_list: Vec<OwnFilter>,
    #[serde(default)]
    metric_list: Vec<OwnMetric>,
    #[serde(default)]
    fewshot_config: FewshotConfig,
    #[serde(default = "one")]
    repeats: usize,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnFilter {
    name: String,
    filter: Vec<OwnStep>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "function", rename_all = "snake_case", deny_unknown_fields)]
enum OwnStep {
    Regex {
        regex_pattern: String,
        #[serde(default)]
        group_select: i64,
        fallback: Option<String>,
    },
    RemoveWhitespace,
    Lowercase,
    Uppercase,
    TakeFirst,
    TakeFirstK {
        k: usize,
    },
    MajorityVote,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnMetric {
    metric: String,
    #[serde(default)]
    ignore_case: bool,
    #[serde(default)]
    ignore_punctuation: bool,
    #[serde(default)]
    ignore_numbers: bool,
    #[serde(default)]
    regexes_to_ignore: Vec<String>,
    #[serde(default = "mean")]
    aggregation: String,
    #[serde(default = "yes")]
    higher_is_better: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FewshotConfig {
    #[serde(default)]
    sampler: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    version: f64,
}

impl Default for Metadata {
    fn default() -> Self {
        Self { version: 1.0 }
    }
}

fn generate_until() -> String {
    "generate_until".to_owned()
}

fn mean() -> String {
    "mean".to_owned()
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

/// Reads a user's task.
///
/// **Errors**: usage, naming the file and what is wrong in it. Documents are read later.
pub fn read(path: &Path) -> Result<Definition> {
    let refuse = |what: String| usage(format!("`{}`: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let own: OwnTask = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    definition(&own, folder).map_err(|error| refuse(format!("{error:#}")))
}

fn definition(own: &OwnTask, folder: &Path) -> Result<Definition> {
    if own.repeats == 0 {
        bail!("`repeats` is 0; expected at least 1");
    }
    let sampler = match own.fewshot_config.sampler.as_str() {
        "" | "default" => Sampler::Default,
        "first_n" => Sampler::FirstN,
        other => bail!("there is no sampler `{other}`; expected `default` or `first_n`"),
    };
    let is_choosing = match own.output_type.as_str() {
        "multiple_choice" => true,
        "generate_until" => false,
        other => bail!("there is no output type `{other}`; expected `multiple_choice` or `generate_until`"),
    };
    if is_choosing && own.doc_to_choice.is_none() {
        bail!("a multiple-choice task needs `doc_to_choice`");
    }
    let templates = Templates::new(own)?;
    let (dataset, fewshot) = (folder.join(&own.dataset_file), own.fewshot_file.as_ref().map(|file| folder.join(file)));
    let pool_is_test = fewshot.is_none();
    let load = move |_: &Path, with_fewshot: bool| {
        let read = |file: &Path| -> Result<Vec<Document>> {
            let name = file.display().to_string();
            data::documents(data::read_rows(Path::new(""), &name)?, &name, |row| templates.document(row))
        };
        let fewshot_pool = match fewshot.as_deref().filter(|_| with_fewshot) {
            Some(file) => read(file)?,
            None => Vec::new(),
        };
        Ok(Split { documents: read(&dataset)?, fewshot_pool })
    };
    let mut task = if is_choosing {
        Definition::multiple_choice(&own.task, own.metadata.version, load)
    } else {
        Definition::generative(&own.task, own.metadata.version, kwargs(own)?, load)
    };
    task = task.shots(own.num_fewshot, sampler);
    task.pool_is_test = pool_is_test;
    task.repeats = own.repeats;
    task.spec.doc_to_text = leak(own.doc_to_text.clone());
    task.spec.doc_to_target = leak(own.doc_to_target.to_string());
    task.spec.files = Box::leak(Box::new([leak(own.dataset_file.display().to_string())]));
    if let Some(delimiter) = &own.target_delimiter {
        task.target_delimiter = delimiter.clone().into();
    }
    if let Some(delimiter) = &own.fewshot_delimiter {
        task.fewshot_delimiter = delimiter.clone().into();
    }
    // Rendered with every document when it is read, so that a name that is not there is an error with a line.
    task.description = Some(Box::new(|document| document.row[DESCRIPTION].as_str().unwrap_or_default().to_owned()));
    if own.gen_prefix.is_some() {
        task.gen_prefix = Some(Box::new(|document| document.row[GEN_PREFIX].as_str().unwrap_or_default().to_owned()));
    }
    if !own.filter_list.is_empty() {
        let filters: Vec<Filter> = own.filter_list.iter().map(filter).collect::<Result<_>>()?;
        task = task.filtered(filters);
    }
    scored(task, &own.metric_list, is_choosing)
}

/// Keys under which a document's rendered description and the beginning of its answer are kept.
const DESCRIPTION: &str = "glan_description";
const GEN_PREFIX: &str = "glan_gen_prefix";

/// Settings with the harness's defaults: greedy, until a blank line, 256 tokens.
fn kwargs(own: &OwnTask) -> Result<Value> {
    let mut kwargs = own.generation_kwargs.clone().unwrap_or_else(|| serde_json::json!({}));
    let Some(settings) = kwargs.as_object() else { bail!("`generation_kwargs` is {kwargs}; expected a table") };
    const KNOWN: [&str; 5] = ["until", "max_gen_toks", "do_sample", "temperature", "top_p"];
    if let Some(unknown) = settings.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        bail!("`generation_kwargs.{unknown}` is unknown; expected one of {}", KNOWN.join(", "));
    }
    match &kwargs["until"] {
        Value::Array(stops) if stops.iter().all(Value::is_string) => {}
        Value::String(stop) => kwargs = with(kwargs.clone(), "until", vec![stop.clone()]),
        Value::Null => {
            let stop = own.fewshot_delimiter.as_deref().unwrap_or(FEWSHOT_DELIMITER);
            kwargs = with(kwargs.clone(), "until", vec![stop.to_owned()]);
        }
        other => bail!("`generation_kwargs.until` is {other}; expected a list of strings"),
    }
    Ok(kwargs)
}

fn filter(own: &OwnFilter) -> Result<Filter> {
    let step = |step: &OwnStep| -> Result<Step> {
        Ok(match step {
            OwnStep::Regex { regex_pattern, group_select, fallback } => Step::Regex(Extract {
                regex: Arc::new(python_regex(regex_pattern)?),
                group_select: *group_select,
                fallback: fallback.clone().unwrap_or_else(|| INVALID.to_owned()),
            }),
            OwnStep::RemoveWhitespace => Step::RemoveWhitespace,
            OwnStep::Lowercase => Step::Lowercase,
            OwnStep::Uppercase => Step::Uppercase,
            OwnStep::TakeFirst => Step::TakeFirst,
            OwnStep::TakeFirstK { k } => Step::TakeFirstK(*k),
            OwnStep::MajorityVote => Step::MajorityVote,
        })
    };
    Ok(Filter::new(leak(own.name.clone()), own.filter.iter().map(step).collect::<Result<_>>()?))
}

fn scored(mut task: Definition, metrics: &[OwnMetric], is_choosing: bool) -> Result<Definition> {
    let known: &[&str] = if is_choosing { &["acc", "acc_norm", "acc_bytes"] } else { &["exact_match"] };
    for metric in metrics {
        if !known.contains(&metric.metric.as_str()) {
            bail!("there is no metric `{}` for this output type; expected one of {}", metric.metric, known.join(", "));
        }
        if metric.aggregation != "mean" || !metric.higher_is_better {
            bail!("`{}`: expected aggregation = \"mean\" and higher_is_better = true", metric.metric);
        }
    }
    if let Some(metric) = metrics.iter().find(|metric| metric.metric == "exact_match") {
        task.exact_match = ExactMatch {
            regexes_to_ignore: metric.regexes_to_ignore.iter().map(|it| python_regex(it)).collect::<Result<_>>()?,
            ignore_case: metric.ignore_case,
            ignore_punctuation: metric.ignore_punctuation,
            ignore_numbers: metric.ignore_numbers,
        };
    }
    if is_choosing && !metrics.is_empty() {
        let names: Vec<&'static str> =
            known.iter().filter(|name| metrics.iter().any(|metric| metric.metric == **name)).copied().collect();
        task.spec.metrics = Box::leak(names.into_boxed_slice());
    }
    Ok(task)
}

/// The templates of a task.
struct Templates {
    environment: Environment<'static>,
    /// As they are written, by what they make.
    sources: BTreeMap<&'static str, Value>,
}

impl Templates {
    fn new(own: &OwnTask) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let mut sources = BTreeMap::new();
        sources.insert("doc_to_text", Value::from(own.doc_to_text.clone()));
        sources.insert("doc_to_target", own.doc_to_target.clone());
        sources.insert("description", Value::from(own.description.clone()));
        if let Some(choices) = &own.doc_to_choice {
            sources.insert("doc_to_choice", choices.clone());
        }
        if let Some(prefix) = &own.gen_prefix {
            sources.insert("gen_prefix", Value::from(prefix.clone()));
        }
        for (name, source) in &sources {
            if let Value::String(source) = source {
                let added = environment.add_template_owned(*name, source.clone());
                added.with_context(|| format!("`{name}` is no template"))?;
            }
        }
        Ok(Self { environment, sources })
    }

    /// What a template makes of a row; a field, a number or a list where it is one.
    fn value(&self, name: &'static str, row: &Value) -> Result<Value> {
        match &self.sources[name] {
            Value::String(source) => match row.get(source) {
                Some(field) => Ok(field.clone()),
                None => {
                    let template = self.environment.get_template(name)?;
                    let text = template.render(row).with_context(|| format!("`{name}`"))?;
                    Ok(Value::from(text))
                }
            },
            written => Ok(written.clone()),
        }
    }

    fn text(&self, name: &'static str, row: &Value) -> Result<String> {
        match self.value(name, row)? {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            other => bail!("`{name}` gives {other}; expected text"),
        }
    }

    fn choices(&self, row: &Value) -> Result<Vec<String>> {
        if !self.sources.contains_key("doc_to_choice") {
            return Ok(Vec::new());
        }
        let found = match self.value("doc_to_choice", row)? {
            Value::String(text) => self.listed(row).with_context(|| format!("`doc_to_choice` gives `{text}`"))?,
            other => other,
        };
        serde_json::from_value(found).context("`doc_to_choice`: expected a list of strings")
    }

    /// The list that a template of one expression stands for.
    fn listed(&self, row: &Value) -> Result<Value> {
        let source = self.sources["doc_to_choice"].as_str().unwrap_or_default().trim();
        let expression = source.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        let expression = expression.context("expected a list, the name of a field, or one `{{ expression }}`")?;
        let value = self.environment.compile_expression(expression)?.eval(row)?;
        Ok(serde_json::to_value(value)?)
    }

    fn document(&self, mut row: Value) -> Result<Document> {
        let text = self.text("doc_to_text", &row)?;
        let choices = self.choices(&row)?;
        let target = self.target(&row, &choices)?;
        let shot_answer = match &target {
            Target::Text(text) => text.clone(),
            Target::Choice(index) => choices[*index].clone(),
            Target::Choices(indices) => indices.first().map(|index| choices[*index].clone()).unwrap_or_default(),
        };
        let description = self.text("description", &row)?;
        let gen_prefix =
            if self.sources.contains_key("gen_prefix") { Some(self.text("gen_prefix", &row)?) } else { None };
        if let Some(fields) = row.as_object_mut() {
            if !description.is_empty() {
                fields.insert(DESCRIPTION.to_owned(), description.into());
            }
            if let Some(prefix) = gen_prefix {
                fields.insert(GEN_PREFIX.to_owned(), prefix.into());
            }
        }
        Ok(Document { row, text, target, shot_answer, choices })
    }

    fn target(&self, row: &Value, choices: &[String]) -> Result<Target> {
        let value = self.value("doc_to_target", row)?;
        if choices.is_empty() {
            return match value {
                Value::String(text) => Ok(Target::Text(text)),
                Value::Number(number) => Ok(Target::Text(number.to_string())),
                other => bail!("`doc_to_target` gives {other}; expected text or a number"),
            };
        }
        let index = |value: &Value| -> Result<usize> {
            let found = match value {
                Value::Number(number) => number.as_u64().map(|index| index as usize),
                Value::String(text) => text.parse().ok().or_else(|| choices.iter().position(|choice| choice == text)),
                _ => None,
            };
            match found.filter(|index| *index < choices.len()) {
                Some(index) => Ok(index),
                None => {
                    bail!("`doc_to_target` gives {value}; expected one of the {} choices or its index", choices.len())
                }
            }
        };
        match &value {
            Value::Array(indices) => Ok(Target::Choices(indices.iter().map(index).collect::<Result<_>>()?)),
            other => index(other).map(Target::Choice),
        }
    }
}

#[cfg(test)]
mod tests;
