//! Result files in the layout of lm-evaluation-harness, so that its tools and readers work on them.
//!
//! `results_DATE.json` is written last and atomically: where it stands, the evaluation is finished. Dates appear in
//! the file names and under `date` alone.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    fewshot::FEWSHOT_SEED,
    groups,
    inputs::Inputs,
    metrics::{self, Scored},
    plan::{Plan, PlannedTask},
    programs, prompt,
    responses::{Answers, TokenCounts},
    sandbox::Outcome,
    task::{Measure, OutputType, Sampler},
};
use crate::{
    language_model::LanguageModel,
    records::{self, read_jsonl},
    seed,
};

/// A finished evaluation of one model.
#[derive(Debug, Clone)]
pub struct Finished {
    folder: PathBuf,
    /// As in the file names.
    date: String,
    /// The results file.
    pub results: Value,
}

impl Finished {
    /// The evaluation of this hash in a model's folder, if it is finished.
    pub fn find(folder: &Path, evaluation_hash: &str) -> Option<Self> {
        let mut dates = dates(folder);
        dates.sort_unstable();
        dates.into_iter().rev().find_map(|date| {
            let results: Value = records::read_json(&folder.join(format!("results_{date}.json"))).ok()?;
            let finished = Self { folder: folder.to_owned(), date, results };
            let is_same = finished.results["evaluation_hash"] == json!(evaluation_hash);
            (is_same && finished.tasks().all(|task| finished.samples_path(task).is_file())).then_some(finished)
        })
    }

    /// The evaluation that ended with this results file.
    ///
    /// **Errors**: the file cannot be read or is not named as this program and the harness name it.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let date = name.strip_prefix("results_").and_then(|name| name.strip_suffix(".json"));
        let date = date.with_context(|| format!("`{}` is not named results_DATE.json", path.display()))?.to_owned();
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { folder, date, results: records::read_json(path)? })
    }

    /// The latest evaluation in a model's folder.
    pub fn latest(folder: &Path) -> Option<Result<Self>> {
        let date = dates(folder).into_iter().max()?;
        Some(Self::open(&folder.join(format!("results_{date}.json"))))
    }

    /// The tasks that were evaluated.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.results["versions"].as_object().into_iter().flat_map(Map::keys).map(String::as_str)
    }

    /// A number of a task, such as `acc,none`.
    pub fn number(&self, task: &str, key: &str) -> Option<f64> {
        self.results["results"][task][key].as_f64()
    }

    /// The rows of a task under one filter, in the order of its documents.
    pub fn samples(&self, task: &str, filter: &str) -> Result<Vec<Value>> {
        Ok(self.all_samples(task)?.into_iter().filter(|row| row["filter"] == json!(filter)).collect())
    }

    /// The rows of a task under all filters.
    pub fn all_samples(&self, task: &str) -> Result<Vec<Value>> {
        read_jsonl(&self.samples_path(task))
    }

    fn samples_path(&self, task: &str) -> PathBuf {
        self.folder.join(format!("samples_{task}_{}.jsonl", self.date))
    }

    /// The results file's path.
    pub fn path(&self) -> PathBuf {
        self.folder.join(format!("results_{}.json", self.date))
    }
}

/// The dates in the names of a folder's results files.
fn dates(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(name.strip_prefix("results_")?.strip_suffix(".json")?.to_owned())
        })
        .collect()
}

/// The date as file names have it, and the seconds since 1970.
pub fn now() -> (String, f64) {
    // ISO 8601 local time with ":" made fit for file names, as in the harness.
    let date = jiff::Zoned::now().strftime("%Y-%m-%dT%H-%M-%S%.6f").to_string();
    (date, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}

/// Removes the results and samples of earlier evaluations, so that a run's folder holds one of each.
pub fn remove_earlier(folder: &Path, date: &str) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = (name.starts_with("results_") && name.ends_with(".json"))
            || (name.starts_with("samples_") && name.ends_with(".jsonl"));
        if is_ours && !name.contains(date) {
            std::fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove `{}`", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Identifies an evaluation: the model and every prompt, choice and target. A finished one of the same hash is reused.
pub fn evaluation_hash(plan: &Plan, model_key: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add(model_key);
    add(&format!("{:?} {:?}", plan.style, plan.skipped));
    if !plan.think_end_token.is_empty() {
        add(&plan.think_end_token);
    }
    if let Some(sandbox) = &plan.sandbox {
        add(&sandbox.description().to_string());
    }
    for planned in &plan.tasks {
        add(&format!("{:?} {} {}", planned.spec(), planned.num_fewshot, planned.original));
        if let Some(kwargs) = planned.task.generation_kwargs() {
            add(&format!("{kwargs} {}", planned.task.repeats()));
        }
        for (doc_id, document) in planned.documents.iter().enumerate() {
            add(&format!("{:?} {:?} {:?}", planned.contexts(doc_id), document.choices, document.target));
        }
    }
    seed::record_id(&[&hasher.finalize().to_hex()])
}

/// A model's name as a folder name, as the harness makes it.
pub fn sanitized(name: &str) -> String {
    let mut out = String::new();
    let mut in_run = false;
    for character in name.chars() {
        let replaced = "\"<>:/|\\?*[]".contains(character);
        match (replaced, in_run) {
            (true, false) => out.push_str("__"),
            (true, true) => {}
            (false, _) => out.push(character),
        }
        in_run = replaced;
    }
    out
}

/// Scores all answers and writes samples and results. `replace` removes what earlier evaluations left in the folder.
pub fn write(
    plan: &Plan,
    answers: &Answers,
    folder: &Path,
    evaluation_hash: &str,
    model: &dyn LanguageModel,
    seconds: f64,
    replace: bool,
) -> Result<Finished> {
    let date = now().0;
    let inputs = Inputs::of(model);
    let mut results = Map::new();
    let mut task_hashes = Map::new();
    for (index, planned) in plan.tasks.iter().enumerate() {
        let name = planned.spec().name;
        let mut numbers: Vec<(String, Vec<Measure>)> = Vec::new();
        let mut hashes = Sha256::new();
        let outcomes = programs::run(plan, planned, &answers.responses[index])?;
        records::write_atomic_with(&folder.join(format!("samples_{name}_{date}.jsonl")), |file| {
            for (doc_id, document) in planned.documents.iter().enumerate() {
                let responses = &answers.responses[index][doc_id];
                let outcomes = outcomes.get(doc_id).map_or(&[][..], Vec::as_slice);
                let contexts = inputs.rendered(planned, doc_id)?;
                for scored in metrics::score(planned, &document, responses, outcomes)? {
                    let row = sample_row(plan, planned, doc_id, &contexts, responses, &scored);
                    for key in ["doc_hash", "prompt_hash", "target_hash"] {
                        hashes.update(row[key].as_str().unwrap_or_default());
                    }
                    add_numbers(&mut numbers, &scored);
                    serde_json::to_writer(&mut *file, &row)?;
                    file.write_all(b"\n")?;
                }
            }
            Ok(())
        })?;
        task_hashes.insert(name.into(), json!(hex(hashes)));
        results.insert(name.into(), task_results(planned, &numbers));
    }
    for skipped in &plan.skipped {
        results.insert(skipped.task.clone(), json!({"alias": skipped.task, "skipped": skipped.reason}));
    }
    let groups = groups::rows(plan, &results);
    let mut file = head(plan, results, groups);
    file.insert("tokens".into(), token_counts(plan, answers));
    file.append(&mut tail(plan, model, evaluation_hash, task_hashes, seconds)?);
    let finished = Finished { folder: folder.to_owned(), date, results: Value::Object(file) };
    records::write_json(&finished.path(), &finished.results)?;
    if replace {
        remove_earlier(folder, &finished.date)?;
    }
    Ok(finished)
}

/// Files the metrics of one document under one filter.
fn add_numbers(numbers: &mut Vec<(String, Vec<Measure>)>, scored: &Scored) {
    for (metric, value) in &scored.metrics {
        let key = format!("{metric},{}", scored.filter);
        match numbers.iter_mut().find(|(existing, _)| *existing == key) {
            Some((_, values)) => values.push(value.clone()),
            None => numbers.push((key, vec![value.clone()])),
        }
    }
}

/// What every task cost, and all of them together.
fn token_counts(plan: &Plan, answers: &Answers) -> Value {
    let per_task = |(planned, counts): (&PlannedTask, &TokenCounts)| (planned.spec().name.to_owned(), json!(counts));
    let tasks: Map<String, Value> = plan.tasks.iter().zip(&answers.tokens).map(per_task).collect();
    let total = answers.tokens.iter().fold(TokenCounts::default(), |sum, counts| TokenCounts {
        requests: sum.requests + counts.requests,
        tokens_needed: sum.tokens_needed + counts.tokens_needed,
        tokens_computed: sum.tokens_computed + counts.tokens_computed,
    });
    json!({"tasks": tasks, "total": total})
}

fn task_results(planned: &PlannedTask, numbers: &[(String, Vec<Measure>)]) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), json!(planned.spec().name));
    out.insert("alias".into(), json!(planned.task.alias()));
    if let Some(partial) = planned.partial() {
        out.insert("partial".into(), json!(partial));
    }
    for (key, values) in numbers {
        let (metric, filter) = key.split_once(',').unwrap_or((key, "none"));
        let (value, stderr) = planned.task.aggregate(metric, &planned.documents, values);
        out.insert("sample_len".into(), json!(values.len()));
        out.insert(key.clone(), json!(value));
        out.insert(format!("{metric}_stderr,{filter}"), stderr.map_or(json!("N/A"), |stderr| json!(stderr)));
    }
    Value::Object(out)
}

fn sample_row(
    plan: &Plan,
    planned: &PlannedTask,
    doc_id: usize,
    contexts: &[String],
    responses: &[super::responses::Response],
    scored: &Scored,
) -> Map<String, Value> {
    let document = planned.document(doc_id);
    let target = document.target.to_string();
    let mut arguments = Map::new();
    match planned.spec().output_type {
        OutputType::GenerateUntil(_) => {
            let kwargs = generation_kwargs(plan, planned);
            arguments.insert("gen_args_0".into(), json!({"arg_0": contexts[0], "arg_1": kwargs}));
        }
        OutputType::MultipleChoice => {
            for idx in 0..document.choices.len() {
                let context = &contexts[planned.context_index(idx)];
                let continuation = prompt::continuation(planned.task, &document, idx, &plan.style);
                arguments.insert(format!("gen_args_{idx}"), json!({"arg_0": context, "arg_1": continuation}));
            }
        }
    }
    let mut row = Map::new();
    row.insert("doc_id".into(), json!(doc_id));
    row.insert("doc".into(), document.row.clone());
    row.insert("target".into(), json!(target));
    row.insert("arguments".into(), Value::Object(arguments));
    // One list per request, with one entry per repeat.
    let said = responses.iter().map(metrics::response_value);
    let resps: Vec<Value> = match planned.spec().output_type {
        OutputType::GenerateUntil(_) => vec![said.collect()],
        OutputType::MultipleChoice => said.map(|value| json!([value])).collect(),
    };
    row.insert("resps".into(), Value::Array(resps));
    row.insert("filtered_resps".into(), scored.filtered.clone());
    row.insert("filter".into(), json!(scored.filter));
    if !scored.outcomes.is_empty() {
        row.insert("verdicts".into(), scored.outcomes.iter().map(Outcome::to_value).collect());
    }
    row.insert("metrics".into(), scored.metrics.iter().map(|(name, _)| json!(name)).collect());
    row.insert("doc_hash".into(), json!(sha256(&format!("{:#}", document.row))));
    row.insert("prompt_hash".into(), json!(sha256(&contexts[0])));
    row.insert("target_hash".into(), json!(sha256(&target)));
    for (name, value) in &scored.metrics {
        row.insert((*name).into(), value.to_value());
    }
    row
}

fn generation_kwargs(plan: &Plan, planned: &PlannedTask) -> Value {
    if let Some(kwargs) = planned.task.generation_kwargs() {
        return kwargs.clone();
    }
    match planned.spec().output_type {
        OutputType::GenerateUntil(generation) => json!({
            "until": generation.stop_strings(plan.style.chat),
            "do_sample": false,
            "temperature": 0.0,
            "max_gen_toks": generation.max_gen_toks,
        }),
        OutputType::MultipleChoice => Value::Null,
    }
}

/// Lower-case hexadecimal SHA-256 of a text.
pub fn sha256(text: &str) -> String {
    hex(Sha256::new_with_prefix(text))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything about the tasks.
fn head(plan: &Plan, mut results: Map<String, Value>, mut groups: Map<String, Value>) -> Map<String, Value> {
    let mut sorted: Vec<&PlannedTask> = plan.tasks.iter().collect();
    sorted.sort_by_key(|planned| planned.spec().name);
    let per_task = |value: &dyn Fn(&PlannedTask) -> Value| -> Value {
        sorted.iter().map(|planned| (planned.spec().name.to_owned(), value(planned))).collect::<Map<_, _>>().into()
    };
    let mut out = Map::new();
    let shown = groups.clone();
    results.append(&mut groups);
    out.insert("results".into(), Value::Object(results));
    if !shown.is_empty() {
        out.insert("groups".into(), Value::Object(shown));
    }
    let mut subtasks: Map<String, Value> =
        plan.groups.iter().map(|group| (group.name.to_owned(), json!(group.members))).collect();
    subtasks.extend(plan.tasks.iter().map(|planned| (planned.spec().name.to_owned(), json!([]))));
    out.insert("group_subtasks".into(), Value::Object(subtasks));
    out.insert("configs".into(), per_task(&|planned| task_config(plan, planned)));
    out.insert("versions".into(), per_task(&|planned| json!(planned.spec().version)));
    out.insert("n-shot".into(), per_task(&|planned| json!(planned.num_fewshot)));
    let better = |planned: &PlannedTask| {
        let better = |metric: &&str| ((*metric).to_owned(), json!(planned.task.higher_is_better(metric)));
        planned.spec().metrics.iter().map(better).collect::<Map<_, _>>().into()
    };
    out.insert("higher_is_better".into(), per_task(&better));
    let samples = |planned: &PlannedTask| json!({"original": planned.original, "effective": planned.documents.len()});
    out.insert("n-samples".into(), per_task(&samples));
    out
}

fn task_config(plan: &Plan, planned: &PlannedTask) -> Value {
    let spec = planned.spec();
    let mut out = Map::new();
    out.insert("task".into(), json!(spec.name));
    out.insert("data_files".into(), json!(spec.files));
    out.insert("doc_to_text".into(), json!(spec.doc_to_text));
    out.insert("doc_to_target".into(), json!(spec.doc_to_target));
    if spec.output_type == OutputType::MultipleChoice {
        out.insert("doc_to_choice".into(), json!("choices"));
    }
    // A description speaks of the subject, the same for all its documents, or of the document.
    let description = planned.documents.get(0).map(|document| planned.task.description(&document));
    out.insert("description".into(), json!(description.unwrap_or_default()));
    out.insert("target_delimiter".into(), json!(planned.task.target_delimiter()));
    out.insert("fewshot_delimiter".into(), json!(planned.task.fewshot_delimiter()));
    let sampler = if spec.sampler == Sampler::FirstN { "first_n" } else { "default" };
    out.insert("fewshot_config".into(), json!({"sampler": sampler}));
    out.insert("num_fewshot".into(), json!(planned.num_fewshot));
    let aggregated = |metric: &&str| json!({"metric": metric, "aggregation": "mean", "higher_is_better": planned.task.higher_is_better(metric)});
    out.insert("metric_list".into(), spec.metrics.iter().map(aggregated).collect());
    out.insert("output_type".into(), json!(spec.output_type.name()));
    if spec.output_type != OutputType::MultipleChoice {
        out.insert("generation_kwargs".into(), generation_kwargs(plan, planned));
        out.insert("filter_list".into(), spec.filters.iter().map(|filter| json!({"name": filter})).collect());
    }
    out.insert("repeats".into(), json!(planned.task.repeats()));
    out.insert("should_decontaminate".into(), json!(false));
    out.insert("metadata".into(), json!({"version": spec.version}));
    Value::Object(out)
}

/// Everything about the model and the program.
fn tail(
    plan: &Plan,
    model: &dyn LanguageModel,
    evaluation_hash: &str,
    task_hashes: Map<String, Value>,
    seconds: f64,
) -> Result<Map<String, Value>> {
    let identity = model.identity();
    let tokenizer = model.tokenizer();
    let token = |id: Option<u32>| -> Result<Value> {
        id.map_or(Ok(Value::Null), |id| Ok(json!([tokenizer.decode(&[id], false)?, id.to_string()])))
    };
    let template = model.chat_template().filter(|_| plan.style.chat).map(|template| template.source());
    let mut out = Map::new();
    let mut add = |key: &str, value: Value| out.insert(key.into(), value);
    add(
        "config",
        json!({
            "model": "glan",
            "model_args": {"pretrained": identity.name, "dtype": identity.dtype},
            "model_num_parameters": identity.num_parameters,
            "model_dtype": identity.dtype,
            "model_sha": identity.hash,
            "batch_size": "auto",
            "limit": if plan.limit == 0 { Value::Null } else { json!(plan.limit) },
            "bootstrap_iters": 0,
            "gen_kwargs": {},
            "think_end_token": if plan.think_end_token.is_empty() { Value::Null } else { json!(plan.think_end_token) },
            "random_seed": 0,
            "numpy_seed": 1234,
            "torch_seed": 1234,
            "fewshot_seed": FEWSHOT_SEED,
        }),
    );
    if let Some(sandbox) = &plan.sandbox {
        add("code_sandbox", sandbox.description());
    }
    add("git_hash", Value::Null);
    add("date", json!(now().1));
    add("glan_version", json!(env!("CARGO_PKG_VERSION")));
    add("evaluation_hash", json!(evaluation_hash));
    add("tokenizer_eos_token", token(tokenizer.eos_token_id())?);
    add("tokenizer_bos_token", token(tokenizer.bos_token_id())?);
    add("eot_token_id", json!(tokenizer.eos_token_id()));
    add("max_length", json!(model.max_model_len()));
    add("task_hashes", Value::Object(task_hashes));
    add("model_source", json!("glan"));
    add("model_name", json!(identity.name));
    add("model_name_sanitized", json!(sanitized(&identity.name)));
    add("system_instruction", json!(plan.style.system_instruction));
    add("system_instruction_sha", json!(plan.style.system_instruction.as_deref().map(sha256)));
    add("fewshot_as_multiturn", json!(plan.style.fewshot_as_multiturn));
    add("chat_template", json!(template));
    add("chat_template_sha", json!(template.map(sha256)));
    add("total_evaluation_time_seconds", json!(format!("{seconds:.3}")));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_becomes_a_folder_name_as_in_the_harness() {
        assert_eq!(sanitized("org/name"), "org__name");
        assert_eq!(sanitized("/a//b:c\"?*d"), "__a__b__c__d");
    }

    #[test]
    fn document_hashes_are_those_of_pythons_json() {
        // hashlib.sha256(json.dumps({"question": "é?", "choices": ["a", "b"], "answer": 1}, indent=2,
        // ensure_ascii=False).encode()).hexdigest()
        let row = json!({"question": "é?", "choices": ["a", "b"], "answer": 1});
        assert_eq!(sha256(&format!("{row:#}")), "72917867648d15b07492738a4ab160cd9af365d5a74d929b8e7014d83d457461");
    }
}
