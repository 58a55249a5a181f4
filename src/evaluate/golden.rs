//! Does this program ask and score as lm-evaluation-harness does? Compares with files that the harness itself made.
//!
//! `prompts.json` holds requests, `scoring.json` answers and their scores, `ifeval.json` verdicts on instructions. A `?`
//! in a file agrees with anything.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    metrics,
    plan::{PlanOptions, PlannedTask},
    prompt::{self, Context, PromptStyle},
    responses::Response,
    stats,
    task::OutputType,
    tasks::{self, minerva},
};
use crate::{error::usage, language_model::Message};

mod verdicts;

/// How many of a kind agree, and how the others differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Compared.
    pub compared: usize,
    /// Equal.
    pub agree: usize,
    /// What differs, case by case.
    pub differences: Vec<String>,
}

impl Tally {
    fn count(&mut self, found: Result<(), String>) {
        self.compared += 1;
        match found {
            Ok(()) => self.agree += 1,
            Err(difference) => self.differences.push(difference),
        }
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Agreement {
    /// Requests: contexts, continuations, generation settings and targets.
    pub prompts: Tally,
    /// Answers found and their metrics.
    pub scores: Tally,
    /// Verdicts on instructions.
    pub verdicts: Tally,
    /// What could not be compared, and why.
    pub left_out: Vec<String>,
}

impl Agreement {
    /// Whether nothing differs.
    pub fn is_whole(&self) -> bool {
        [&self.prompts, &self.scores, &self.verdicts].iter().all(|tally| tally.agree == tally.compared)
    }

    /// The counts in a line, then the first differences.
    pub fn summary(&self, differences: usize) -> String {
        let count = |tally: &Tally, what: &str| format!("{} of {} {what}", tally.agree, tally.compared);
        let mut lines = vec![format!(
            "{}, {}, {} agree",
            count(&self.prompts, "prompts"),
            count(&self.scores, "scores"),
            count(&self.verdicts, "verdicts")
        )];
        lines.extend(self.left_out.iter().cloned());
        let found = [&self.prompts, &self.scores, &self.verdicts].map(|tally| tally.differences.iter());
        let found: Vec<&String> = found.into_iter().flat_map(|it| it.take(differences)).collect();
        lines.extend(found.into_iter().map(|difference| format!("- {difference}")));
        lines.join("\n")
    }
}

/// Compares prompts, scores and verdicts with the files of a folder.
///
/// **Errors**: usage, for a folder without any of the files; files that are damaged.
pub fn check(golden: &Path, benchmarks: &Path) -> Result<Agreement> {
    let mut agreement = Agreement::default();
    let mut bench = Bench { data_dir: benchmarks.to_owned(), planned: HashMap::new() };
    if let Some(file) = read(golden, "prompts.json", &mut agreement)? {
        for case in list(&file, "prompts")? {
            compare_prompts(case, &mut bench, &mut agreement.prompts);
        }
    }
    if let Some(file) = read(golden, "scoring.json", &mut agreement)? {
        for row in list(&file, "generation")? {
            agreement.scores.count(compare_generation(row, &mut bench).map_err(|it| format!("{}: {it}", place(row))));
        }
        for row in list(&file, "multiple_choice")? {
            agreement.scores.count(compare_choice(row, &mut bench).map_err(|it| format!("{}: {it}", place(row))));
        }
        compare_tables(&file, &mut agreement.scores)?;
    }
    if let Some(file) = read(golden, "ifeval.json", &mut agreement)? {
        verdicts::compare(&file, benchmarks, &mut agreement.verdicts)?;
    }
    if [&agreement.prompts, &agreement.scores, &agreement.verdicts].iter().all(|tally| tally.compared == 0) {
        return Err(usage(format!(
            "`{}` holds nothing to compare: expected prompts.json, scoring.json or ifeval.json (or .gz of them)",
            golden.display()
        )));
    }
    Ok(agreement)
}

fn read(folder: &Path, name: &str, agreement: &mut Agreement) -> Result<Option<Value>> {
    match super::data::locate(folder, name) {
        Ok(_) => super::data::read_json(folder, name).map(Some),
        Err(_) => {
            agreement.left_out.push(format!("`{name}` is not there"));
            Ok(None)
        }
    }
}

/// A list that may be left out.
fn list<'a>(file: &'a Value, key: &str) -> Result<&'a [Value]> {
    match &file[key] {
        Value::Null => Ok(&[]),
        Value::Array(rows) => Ok(rows),
        _ => anyhow::bail!("expected a list under `{key}`"),
    }
}

fn place(row: &Value) -> String {
    format!("{} document {}", row["task"].as_str().unwrap_or("?"), row["doc_id"])
}

/// Planned tasks, each made once.
struct Bench {
    data_dir: std::path::PathBuf,
    planned: HashMap<String, Result<PlannedTask, String>>,
}

impl Bench {
    fn plan(
        &mut self,
        task: &str,
        num_fewshot: Option<usize>,
        limit: usize,
        style: PromptStyle,
    ) -> Result<&PlannedTask, String> {
        let key = format!("{task} {num_fewshot:?} {limit} {style:?}");
        let plan = || {
            let options = PlanOptions { data_dir: self.data_dir.clone(), limit, num_fewshot, style };
            let task = tasks::find(task)
                .map_err(|error| error.to_string().split(';').next().unwrap_or_default().to_owned())?;
            PlannedTask::new(task, &options).map_err(|error| format!("{error:#}"))
        };
        self.planned.entry(key).or_insert_with(plan).as_ref().map_err(Clone::clone)
    }
}

/// Whether a value is as it is in the file: numbers to twelve digits, NaN as null, "?" as anything.
fn agrees(ours: &Value, golden: &Value) -> bool {
    match (ours, golden) {
        (_, Value::String(text)) if text == "?" => true,
        (Value::Number(_), Value::Number(_)) => match (ours.as_f64(), golden.as_f64()) {
            (Some(ours), Some(golden)) => (ours - golden).abs() <= 1e-12 + 1e-12 * golden.abs(),
            _ => false,
        },
        (Value::Array(ours), Value::Array(golden)) => {
            ours.len() == golden.len() && ours.iter().zip(golden).all(|(ours, golden)| agrees(ours, golden))
        }
        (Value::Object(ours), Value::Object(golden)) => {
            ours.len() == golden.len()
                && golden.iter().all(|(key, golden)| ours.get(key).is_some_and(|ours| agrees(ours, golden)))
        }
        _ => ours == golden,
    }
}

fn compared(what: &str, ours: &Value, golden: &Value) -> Result<(), String> {
    if agrees(ours, golden) {
        return Ok(());
    }
    if let (Value::String(ours), Value::String(golden)) = (ours, golden) {
        // Long texts differ in one place; what stands around it is enough to see why.
        let same = ours.chars().zip(golden.chars()).take_while(|(ours, golden)| ours == golden).count();
        let around = |text: &str| -> String { text.chars().skip(same.saturating_sub(20)).take(60).collect() };
        return Err(format!(
            "{what} differs after {same} characters: {:?} instead of {:?}",
            around(ours),
            around(golden)
        ));
    }
    Err(format!("{what} is {ours} instead of {golden}"))
}

fn compare_prompts(case: &Value, bench: &mut Bench, tally: &mut Tally) {
    let task = case["task"].as_str().unwrap_or_default();
    let requests = case["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let style = PromptStyle {
        chat: !case["chat_template"].is_null(),
        fewshot_as_multiturn: case["fewshot_as_multiturn"].as_bool().unwrap_or(false),
        system_instruction: case["system_instruction"].as_str().map(str::to_owned),
    };
    let limit =
        requests.iter().filter_map(|request| request["doc_id"].as_u64()).max().map_or(1, |last| last as usize + 1);
    let limit = limit.max(case["targets"].as_array().map_or(0, Vec::len));
    let num_fewshot = case["num_fewshot"].as_u64().map(|number| number as usize);
    let planned = match bench.plan(task, num_fewshot, limit, style.clone()) {
        Ok(planned) => planned,
        Err(error) => {
            requests.iter().for_each(|_| tally.count(Err(format!("{task}: {error}"))));
            return;
        }
    };
    // What holds for the whole case holds, or fails, for each of its requests.
    let whole = compare_case(case, planned, num_fewshot);
    for request in requests {
        let place = format!("{task} document {} request {}", request["doc_id"], request["idx"]);
        let found = whole.clone().and_then(|()| compare_request(request, planned, &style));
        tally.count(found.map_err(|difference| format!("{place}: {difference}")));
    }
}

fn compare_case(case: &Value, planned: &PlannedTask, num_fewshot: Option<usize>) -> Result<(), String> {
    let spec = planned.spec();
    let version = case["version"].as_str().and_then(|text| text.parse::<f64>().ok()).or(case["version"].as_f64());
    if let Some(version) = version {
        compared("version", &spec.version.into(), &version.into())?;
    }
    compared("output_type", &spec.output_type.name().into(), &case["output_type"])?;
    if let Some(number) = num_fewshot {
        compared("num_fewshot", &planned.num_fewshot.into(), &number.into())?;
    }
    if !case["num_docs"].is_null() {
        compared("num_docs", &planned.original.into(), &case["num_docs"])?;
    }
    let targets = case["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (doc_id, golden) in targets.iter().enumerate() {
        let Some(document) = planned.documents.get(doc_id) else {
            return Err(format!("there is no document {doc_id}"));
        };
        compared(&format!("target of document {doc_id}"), &document.target.to_value(), golden)?;
    }
    Ok(())
}

fn compare_request(request: &Value, planned: &PlannedTask, style: &PromptStyle) -> Result<(), String> {
    let index = |key: &str| request[key].as_u64().map(|index| index as usize).ok_or(format!("the case has no `{key}`"));
    let (doc_id, idx) = (index("doc_id")?, index("idx")?);
    if doc_id >= planned.documents.len() || idx >= planned.requests(doc_id) {
        return Err("there is no such request".to_owned());
    }
    let text = match &planned.contexts(doc_id)[planned.context_index(idx)] {
        Context::Text(text) => text.clone(),
        Context::Messages(messages) => chatml(messages),
    };
    compared("context", &text.into(), &request["args"][0])?;
    match planned.spec().output_type {
        OutputType::GenerateUntil(_) => match planned.task.generation_kwargs() {
            Some(kwargs) => compared("generation settings", kwargs, &request["args"][1]),
            None => Err("the task names no generation settings".to_owned()),
        },
        OutputType::MultipleChoice => {
            let choice = prompt::continuation(planned.task, &planned.document(doc_id), idx, style);
            compared("continuation", &choice.into(), &request["args"][1])
        }
    }
}

/// The template that the prompts of the files are rendered with; an answer that is begun is left open.
fn chatml(messages: &[Message]) -> String {
    let (open, closed) = match messages {
        [closed @ .., last] if last.role == "assistant" => (Some(last), closed),
        _ => (None, messages),
    };
    let turns: String =
        closed.iter().map(|turn| format!("<|im_start|>{}\n{}<|im_end|>\n", turn.role, turn.content)).collect();
    let answer = open.map_or("", |turn| turn.content.as_str());
    format!("{turns}<|im_start|>assistant\n{answer}")
}

/// A document and its responses, scored under every filter.
fn scored(row: &Value, bench: &mut Bench, responses: &[Response]) -> Result<(Value, Vec<metrics::Scored>), String> {
    let task = row["task"].as_str().ok_or("the row names no task")?;
    let doc_id = row["doc_id"].as_u64().ok_or("the row has no `doc_id`")? as usize;
    let planned = bench.plan(task, Some(0), 0, PromptStyle::plain())?;
    let document = planned.documents.get(doc_id).ok_or_else(|| format!("there is no document {doc_id}"))?;
    let scored = metrics::score(planned, &document, responses, &[]).map_err(|error| format!("{error:#}"))?;
    Ok((document.target.to_value(), scored))
}

fn compare_generation(row: &Value, bench: &mut Bench) -> Result<(), String> {
    let texts: Vec<String> = match &row["response"] {
        Value::Array(texts) => texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect(),
        text => vec![text.as_str().ok_or("the row has no `response`")?.to_owned()],
    };
    let responses: Vec<Response> = texts.into_iter().map(|text| Response::Generated { text }).collect();
    let (target, scored) = scored(row, bench, &responses)?;
    compared("target", &target, &row["target"])?;
    let filter = row["filter"].as_str().ok_or("the row names no filter")?;
    let found = scored.iter().find(|scored| scored.filter == filter);
    let found = found.ok_or_else(|| format!("the task has no filter `{filter}`"))?;
    if row["filtered"].is_string() {
        let first = found.filtered[0].clone();
        compared(&format!("{filter} of {}", row["response"]), &first, &row["filtered"])?;
    }
    compare_metrics(found, row)
}

fn compare_choice(row: &Value, bench: &mut Bench) -> Result<(), String> {
    let sums = row["loglikelihoods"].as_array().ok_or("the row has no `loglikelihoods`")?;
    let responses: Option<Vec<Response>> =
        sums.iter().map(|sum| Some(Response::Scored { logprob: sum.as_f64()?, is_greedy: false })).collect();
    let (_, scored) = scored(row, bench, &responses.ok_or("a log-likelihood is no number")?)?;
    compare_metrics(&scored[0], row)
}

fn compare_metrics(found: &metrics::Scored, row: &Value) -> Result<(), String> {
    let golden = row["metrics"].as_object().ok_or("the row has no `metrics`")?;
    for (name, golden) in golden {
        let ours = found.metrics.iter().find(|(metric, _)| metric == name);
        let (_, measure) = ours.ok_or_else(|| format!("the task has no metric `{name}`"))?;
        let what = if row["response"].is_null() { name.clone() } else { format!("{name} of {}", row["response"]) };
        compared(&what, &measure.to_value(), golden)?;
    }
    match found.metrics.iter().find(|(metric, _)| !golden.contains_key(*metric)) {
        Some((metric, _)) => Err(format!("the metric `{metric}` is ours alone")),
        None => Ok(()),
    }
}

type Normaliser = fn(&str) -> Option<String>;

/// Tables of inputs and outputs of single functions, and the standard errors.
fn compare_tables(file: &Value, tally: &mut Tally) -> Result<()> {
    let tables: [(&str, Normaliser); 4] = [
        ("mbpp_extract_code", |input| Some(tasks::extract_code(input))),
        ("minerva_normalize_final_answer", |input| Some(minerva::normalise(input))),
        ("minerva_get_unnormalized_answer", |input| Some(minerva::stated_answer(input))),
        ("hendrycks_strip_string", |input| tasks::math::strip_string(input).ok()),
    ];
    for (name, function) in tables {
        for row in list(file, name)? {
            let input = row["input"].as_str().with_context(|| format!("`{name}`: expected a string under `input`"))?;
            let ours = function(input).map_or(Value::Null, Value::String);
            tally.count(compared(&format!("{name} of {input:?}"), &ours, &row["output"]));
        }
    }
    let errors = &file["stderr"];
    let numbers = |case: &Value, key: &str| -> Vec<f64> {
        case[key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let sizes = |case: &Value| numbers(case, "sizes").into_iter().map(|size| size as usize).collect::<Vec<_>>();
    let case = &errors["mean_stderr"];
    if !case.is_null() {
        let ours = stats::mean_stderr(&numbers(case, "items")).1;
        tally.count(compared("mean_stderr", &ours.into(), &case["value"]));
    }
    let case = &errors["pooled"];
    if !case.is_null() {
        let ours = stats::pooled_stderr(&numbers(case, "stderrs"), &sizes(case));
        tally.count(compared("pooled standard error", &ours.into(), &case["value"]));
    }
    let case = &errors["weighted"];
    if !case.is_null() {
        let ours = stats::weighted_mean(&numbers(case, "values"), &sizes(case));
        tally.count(compared("weighted mean", &ours.into(), &case["value"]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{evaluate::shared_fixtures, records};

    #[test]
    fn a_question_mark_agrees_with_anything_and_other_values_only_with_themselves() {
        assert!(agrees(&json!(1.0), &json!("?")));
        assert!(agrees(&json!([1, "x"]), &json!([1.0, "?"])));
        assert!(agrees(&json!(0), &json!(0.0)));
        assert!(agrees(&json!(f64::NAN), &json!(null)));
        assert!(!agrees(&json!({"a": 1}), &json!({"a": 1, "b": 2})));
        assert!(!agrees(&json!("1"), &json!(1)));
        let difference = compared("context", &json!("abc def"), &json!("abc xyz")).expect_err("they differ");
        assert!(difference.contains("after 4 characters"), "{difference}");
    }

    #[test]
    fn a_case_that_differs_is_counted_and_shown() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let row = json!({
            "task": "no_such_task", "doc_id": 0, "target": "18", "response": "18", "filter": "none", "filtered": "18",
            "metrics": {"exact_match": 1.0},
        });
        let file = json!({
            "generation": [row],
            "hendrycks_strip_string": [{"input": "0.5", "output": "\\frac{1}{2}"}, {"input": "0.5", "output": "0.5"}],
        });
        records::write_json(&folder.path().join("scoring.json"), &file)?;
        let agreement = check(folder.path(), Path::new("nowhere"))?;
        assert!(!agreement.is_whole());
        let summary = agreement.summary(5);
        assert!(summary.starts_with("0 of 0 prompts, 1 of 3 scores, 0 of 0 verdicts agree\n"), "{summary}");
        assert!(summary.contains("there is no task `no_such_task`"), "{summary}");
        let empty = tempfile::tempdir()?;
        let error = check(empty.path(), Path::new("nowhere")).expect_err("there is nothing to compare");
        assert_eq!(crate::error::exit_code(&error), 2);
        Ok(())
    }

    /// Catches: any prompt, draw, delimiter, stop string, filter, metric or normaliser that is not the harness's.
    #[test]
    fn everything_agrees_with_the_harness() -> Result<()> {
        let Some(benchmarks) = shared_fixtures::benchmarks() else {
            crate::telemetry::print_result("skipped: no folder of benchmarks");
            return Ok(());
        };
        let agreement = check(&benchmarks.join("golden"), &benchmarks)?;
        assert!(agreement.is_whole(), "{}", agreement.summary(20));
        assert!(agreement.prompts.compared >= 100 && agreement.scores.compared >= 200, "{}", agreement.summary(0));
        Ok(())
    }
}
