//! Asks the model every question of a plan, and keeps each answer on disk as soon as its turn comes.
//!
//! `responses.jsonl` holds one line per request, in the order of the plan. Each line carries a hash of the model and
//! the whole request, so an interrupted evaluation goes on where it stopped and an answer to another question, or of
//! another model, is never taken.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    path::Path,
};

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    inputs::Inputs,
    plan::{Plan, PlannedTask},
    prefix_tree::PrefixTree,
    prompt,
    task::{Generation, OutputType, Task},
};
use crate::{
    language_model::{Completion, FinishReason, LanguageModel, SamplingParams, Score, ScoreRequest},
    records::{self, JsonlWriter, Ordered},
    seed,
    telemetry::Progress,
};

/// The file of a model's folder that answers are kept in.
const FILE: &str = "responses.jsonl";

/// Scorings that are made at a time, by all threads: with examples that is long work beside a small model. No more of them
/// are held than the model looks ahead.
const SCORINGS_AT_A_TIME: usize = 128;

/// What the model said to one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// A continuation, cut at the first stop string.
    Generated {
        /// Its text.
        text: String,
    },
    /// The likelihood of a choice.
    Scored {
        /// Sum of natural-log probabilities.
        logprob: f64,
        /// Whether every token was the likeliest.
        is_greedy: bool,
    },
    /// The request could not be served; it counts as a wrong answer.
    Failed {
        /// Why.
        error: String,
    },
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ResponseLine {
    task: String,
    doc_id: usize,
    idx: usize,
    request_hash: String,
    #[serde(flatten)]
    response: Response,
}

/// What a task cost in tokens that the model read, of the requests that were not on disk already. Tokens that the model
/// wrote are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Requests that were asked.
    pub requests: u64,
    /// Distinct beginnings of what they make the model read: the least that can be computed.
    pub tokens_needed: u64,
    /// Tokens that were computed.
    pub tokens_computed: u64,
}

/// All answers to a plan.
pub struct Answers {
    /// Answers, `[task][doc_id][idx]`.
    pub responses: Vec<Vec<Vec<Response>>>,
    /// What each task cost.
    pub tokens: Vec<TokenCounts>,
}

impl Answers {
    /// Number of requests that could not be served, and why the first one could not.
    pub fn failures(&self) -> (usize, Option<&str>) {
        let mut errors = self.responses.iter().flatten().flatten().filter_map(|response| match response {
            Response::Failed { error } => Some(error.as_str()),
            _ => None,
        });
        let first = errors.next();
        (usize::from(first.is_some()) + errors.count(), first)
    }
}

/// One request of the work list.
struct Asked {
    task: usize,
    doc_id: usize,
    idx: usize,
    /// A [`seed::record_id`] as a number: there is one per request.
    hash: u64,
}

impl Asked {
    fn hash(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

/// Asks whatever `folder` does not hold yet.
///
/// **Errors**: usage, when chat prompts are asked for and the model has no template; those of the model; interruption,
/// with every answer so far on disk.
pub fn answer(plan: &Plan, folder: &Path, model_key: &str, model: &mut dyn LanguageModel) -> Result<Answers> {
    let inputs = Inputs::of(model);
    let work = work_list(plan, &inputs, model_key)?;
    let path = folder.join(FILE);
    let mut book = Book::open(&path, plan, &work)?;
    let mut tokens = Vec::with_capacity(plan.tasks.len());
    for task in 0..plan.tasks.len() {
        let pending: Vec<usize> =
            (0..work.len()).filter(|&at| work[at].task == task && book.responses[at].is_none()).collect();
        let computed_before = model.computed_prompt_tokens();
        let mut needed = PrefixTree::new();
        ask((plan, &work, &pending), &inputs, model, &mut needed, &mut book)?;
        tokens.push(TokenCounts {
            requests: pending.len() as u64,
            tokens_needed: needed.len() as u64,
            tokens_computed: model.computed_prompt_tokens() - computed_before,
        });
    }
    let Book { writer, progress, responses, .. } = book;
    writer.sync()?;
    progress.finish();
    let mut nested: Vec<Vec<Vec<Response>>> =
        plan.tasks.iter().map(|planned| vec![Vec::new(); planned.documents.len()]).collect();
    for (asked, response) in work.iter().zip(responses) {
        let place = || format!("{} document {}", plan.tasks[asked.task].spec().name, asked.doc_id);
        let response = response.with_context(|| format!("the model gave no answer to {}", place()))?;
        nested[asked.task][asked.doc_id].push(response);
    }
    Ok(Answers { responses: nested, tokens })
}

fn work_list(plan: &Plan, inputs: &Inputs, model_key: &str) -> Result<Vec<Asked>> {
    let mut work = Vec::new();
    for (task, planned) in plan.tasks.iter().enumerate() {
        for (doc_id, document) in planned.documents.iter().enumerate() {
            let contexts = inputs.rendered(planned, doc_id)?;
            for idx in 0..planned.requests(doc_id) {
                let context = contexts[planned.context_index(idx)].as_str();
                let wanted = match planned.spec().output_type {
                    OutputType::GenerateUntil(generation) => {
                        let stop = generation.stop_strings(plan.style.chat);
                        // What is drawn at random depends on the draw; a greedy answer is the same whichever it is.
                        let sampling = sampling_params(planned.task, generation, stop, idx);
                        let drawn = if sampling.temperature > 0.0 {
                            format!(" {} {} {idx}", sampling.temperature, sampling.top_p)
                        } else {
                            String::new()
                        };
                        format!("{stop:?} {}{drawn}{}", generation.max_gen_toks, plan.think_end_token)
                    }
                    OutputType::MultipleChoice => prompt::continuation(planned.task, &document, idx, &plan.style),
                };
                let hash = seed::record_id(&[model_key, planned.spec().output_type.name(), context, &wanted]);
                let hash = u64::from_str_radix(&hash, 16).context("a record id is a hexadecimal number")?;
                work.push(Asked { task, doc_id, idx, hash });
            }
        }
    }
    Ok(work)
}

/// How answer `idx` to a document is written; a seed of its own makes each answer another draw.
fn sampling_params(task: &dyn Task, generation: Generation, stop: &[&str], idx: usize) -> SamplingParams {
    let number = |key: &str| task.generation_kwargs().and_then(|kwargs| kwargs[key].as_f64());
    let does_sample = task.generation_kwargs().is_some_and(|kwargs| kwargs["do_sample"] == true);
    SamplingParams {
        max_new_tokens: generation.max_gen_toks,
        temperature: if does_sample { number("temperature").unwrap_or(1.0) as f32 } else { 0.0 },
        top_p: number("top_p").filter(|_| does_sample).unwrap_or(1.0) as f32,
        seed: idx as u64,
        stop: stop.iter().map(|&text| text.to_owned()).collect(),
        ..SamplingParams::default()
    }
}

/// The answers so far, in memory and on disk.
struct Book {
    writer: JsonlWriter,
    /// Lines that wait for their predecessors.
    ordered: Ordered<ResponseLine>,
    /// Requests whose lines were on disk, at the front of the work list.
    first: usize,
    responses: Vec<Option<Response>>,
    progress: Progress,
}

impl Book {
    /// Takes over every line that answers a request of the work list. Lines stay in the order of the list.
    fn open(path: &Path, plan: &Plan, work: &[Asked]) -> Result<Self> {
        let old: Vec<ResponseLine> = records::read_partial_jsonl(path).unwrap_or_else(|error| {
            tracing::warn!("{error:#}; the answers are asked for again");
            Vec::new()
        });
        let first = old.iter().zip(work).take_while(|(line, asked)| line.request_hash == asked.hash()).count();
        let mut responses: Vec<Option<Response>> = work.iter().map(|_| None).collect();
        for (slot, line) in responses.iter_mut().zip(&old[..first]) {
            *slot = Some(line.response.clone());
        }
        let writer = if first == old.len() {
            JsonlWriter::append(path)?
        } else {
            let mut kept = Vec::new();
            for line in &old[..first] {
                serde_json::to_writer(&mut kept, line)?;
                kept.push(b'\n');
            }
            records::write_atomic(path, &kept)?;
            JsonlWriter::append(path)?
        };
        let progress = Progress::new("evaluate", first as u64, work.len() as u64);
        let mut book = Self { writer, ordered: Ordered::default(), first, responses, progress };
        let known: HashMap<String, Response> =
            old.into_iter().skip(first).map(|line| (line.request_hash, line.response)).collect();
        for (position, asked) in work.iter().enumerate().skip(first) {
            if let Some(response) = known.get(&asked.hash()) {
                book.put(plan, work, position, response.clone())?;
            }
        }
        Ok(book)
    }

    fn put(&mut self, plan: &Plan, work: &[Asked], position: usize, response: Response) -> Result<()> {
        let asked = &work[position];
        self.responses[position] = Some(response.clone());
        let line = ResponseLine {
            task: plan.tasks[asked.task].spec().name.to_owned(),
            doc_id: asked.doc_id,
            idx: asked.idx,
            request_hash: asked.hash(),
            response,
        };
        let writer = &mut self.writer;
        self.ordered.push(position - self.first, line, |line| writer.write(&line))?;
        self.progress.advance(1, "");
        Ok(())
    }
}

/// Asks the requests at `positions` of the work list, all of one task; what they make the model read goes to `needed` too.
///
/// They are made while the model answers, so that a benchmark's prompts are never all in memory.
fn ask(
    (plan, work, positions): (&Plan, &[Asked], &[usize]),
    inputs: &Inputs,
    model: &mut dyn LanguageModel,
    needed: &mut PrefixTree,
    book: &mut Book,
) -> Result<()> {
    let Some(planned) = positions.first().map(|&position| &plan.tasks[work[position].task]) else { return Ok(()) };
    let book = RefCell::new(book);
    // Why there are no more requests, where it is not their end.
    let mut failure = None;
    match planned.spec().output_type {
        OutputType::GenerateUntil(generation) => {
            let stop = generation.stop_strings(plan.style.chat);
            let request = |&position: &usize| {
                let Asked { doc_id, idx, .. } = work[position];
                let context = planned.contexts(doc_id).swap_remove(0);
                let sampling = sampling_params(planned.task, generation, stop, idx);
                let made = inputs.generation_request(position, context, sampling);
                let (request, input) = made.map_err(|error| failure = Some(error)).ok()?;
                needed.insert(&input);
                Some(request)
            };
            model.generate(&mut positions.iter().map_while(request), &mut |completion| {
                let position = position_of(&completion.id)?;
                book.borrow_mut().put(plan, work, position, generated(completion, &plan.think_end_token, stop))
            })?;
        }
        OutputType::MultipleChoice => {
            let mut parts = positions.chunks(SCORINGS_AT_A_TIME);
            let mut ready = VecDeque::new();
            let mut more = || -> Result<Option<ScoreRequest>> {
                while ready.is_empty()
                    && let Some(positions) = parts.next()
                {
                    for (position, request) in score_requests(plan, work, positions, inputs)? {
                        match request {
                            Ok(request) => {
                                needed.insert(&inputs.model_input(&request));
                                ready.push_back(request);
                            }
                            Err(error) => {
                                book.borrow_mut().put(plan, work, position, Response::Failed { error })?;
                            }
                        }
                    }
                }
                Ok(ready.pop_front())
            };
            let mut requests = std::iter::from_fn(|| {
                more().unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                })
            });
            model.score(&mut requests, &mut |score| {
                let position = position_of(&score.id)?;
                book.borrow_mut().put(plan, work, position, scored(score))
            })?;
        }
    }
    failure.map_or(Ok(()), Err)
}

/// A request, or why there is none.
type Prepared = (usize, Result<ScoreRequest, String>);

/// The requests at `positions`, tokenised by all threads.
fn score_requests(plan: &Plan, work: &[Asked], positions: &[usize], inputs: &Inputs) -> Result<Vec<Prepared>> {
    let documents: Vec<&[usize]> = positions.chunk_by(|&one, &other| work[one].doc_id == work[other].doc_id).collect();
    // Templates stay on this thread.
    let contexts: Vec<Vec<String>> = documents
        .iter()
        .map(|positions| inputs.rendered(&plan.tasks[work[positions[0]].task], work[positions[0]].doc_id))
        .collect::<Result<_>>()?;
    let prepare = |(&positions, contexts): (&&[usize], &Vec<String>)| -> Result<Vec<Prepared>> {
        let prepare = |&position: &usize| {
            let asked = &work[position];
            let planned = &plan.tasks[asked.task];
            let context = &contexts[planned.context_index(asked.idx)];
            let choice = choice_text(plan, planned, asked);
            Ok((position, inputs.score_request(position, context, &choice)?))
        };
        positions.iter().map(prepare).collect()
    };
    let prepared: Vec<Vec<Prepared>> = documents.par_iter().zip(&contexts).map(prepare).collect::<Result<_>>()?;
    Ok(prepared.into_iter().flatten().collect())
}

fn choice_text(plan: &Plan, planned: &PlannedTask, asked: &Asked) -> String {
    prompt::continuation(planned.task, &planned.document(asked.doc_id), asked.idx, &plan.style)
}

fn position_of(id: &str) -> Result<usize> {
    id.parse().with_context(|| format!("the model answered an unknown request `{id}`"))
}

/// The answer: what stands after the last end of thinking, up to the first stop string.
fn generated(completion: Completion, think_end_token: &str, stop: &[&str]) -> Response {
    if completion.finish_reason == FinishReason::Error {
        return Response::Failed { error: completion.error.unwrap_or_else(|| "no reason given".into()) };
    }
    let mut text = completion.text;
    if let Some((_, answer)) = text.rsplit_once(think_end_token).filter(|_| !think_end_token.is_empty()) {
        text = answer.trim_start().to_owned();
    }
    for stop in stop {
        if let Some(position) = text.find(stop) {
            text.truncate(position);
        }
    }
    Response::Generated { text }
}

fn scored(score: Score) -> Response {
    match score.error {
        Some(error) => Response::Failed { error },
        // JSON has no infinities, and a NaN would win every comparison in the harness.
        None if !score.logprob.is_finite() => {
            Response::Failed { error: format!("the log-likelihood is {}", score.logprob) }
        }
        None => Response::Scored { logprob: score.logprob, is_greedy: score.is_greedy },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{
        plan::PlanOptions,
        prompt::PromptStyle,
        scripted::{ScriptedModel, answers_right},
    };

    fn plan(tasks: &[&str], limit: usize) -> Result<Plan> {
        let tasks: Vec<String> = tasks.iter().map(|&task| task.to_owned()).collect();
        let options = PlanOptions { data_dir: "".into(), limit, num_fewshot: None, style: PromptStyle::plain() };
        Plan::new(&tasks, options)
    }

    #[test]
    fn a_kill_after_any_answer_leaves_a_file_that_is_completed_to_the_same_bytes() -> Result<()> {
        let plan = plan(&["primer", "primer_mc"], 3)?;
        let whole = tempfile::tempdir()?;
        answer(&plan, whole.path(), "m", &mut ScriptedModel::new(answers_right)?)?;
        let expected = std::fs::read_to_string(whole.path().join(FILE))?;
        assert_eq!(expected.lines().count(), 3 + 3 * 4);
        for kill_after in 0..15 {
            let folder = tempfile::tempdir()?;
            let mut model = ScriptedModel::new(answers_right)?;
            model.fail_after = Some(kill_after);
            assert!(answer(&plan, folder.path(), "m", &mut model).is_err());
            let mut model = ScriptedModel::new(answers_right)?;
            answer(&plan, folder.path(), "m", &mut model)?;
            assert_eq!(std::fs::read_to_string(folder.path().join(FILE))?, expected, "killed after {kill_after}");
            assert!(model.served <= 15 - kill_after.min(1), "killed after {kill_after}: {} asked again", model.served);
        }
        Ok(())
    }

    #[test]
    fn answers_of_another_model_are_asked_for_again_and_a_longer_plan_keeps_the_old_ones() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let served = |plan: &Plan, key: &str| -> Result<usize> {
            let mut model = ScriptedModel::new(answers_right)?;
            answer(plan, folder.path(), key, &mut model)?;
            Ok(model.served)
        };
        assert_eq!(served(&plan(&["primer"], 3)?, "m")?, 3);
        assert_eq!(served(&plan(&["primer"], 3)?, "m")?, 0);
        assert_eq!(served(&plan(&["primer_mc", "primer"], 5)?, "m")?, 5 * 4 + 2);
        assert_eq!(served(&plan(&["primer"], 3)?, "other")?, 3);
        Ok(())
    }

    #[test]
    fn thinking_is_cut_before_the_stop_strings_are_looked_for() {
        let said = |text: &str, think_end_token: &str| {
            let completion = Completion { text: text.into(), error: None, ..Completion::failed("0", "") };
            let completion = Completion { finish_reason: FinishReason::Stop, ..completion };
            generated(completion, think_end_token, &["\n\n", "Q:"])
        };
        let text = |text: &str| Response::Generated { text: text.into() };
        assert_eq!(said("<think>a</think>b\n\nc</think>\n\n 42\n\nmore", "</think>"), text("42"));
        assert_eq!(said(" 42 Q: more", "</think>"), text(" 42 "));
        assert_eq!(said("<think>a</think> 42", ""), text("<think>a</think> 42"));
    }

    #[test]
    fn a_request_that_cannot_be_served_is_an_answer_that_counts_as_wrong() {
        let failed = generated(Completion::failed("0", "too long"), "", &[]);
        assert_eq!(failed, Response::Failed { error: "too long".into() });
        let score =
            Score { id: "0".into(), logprob: f64::NAN, is_greedy: false, token_logprobs: Vec::new(), error: None };
        assert!(matches!(scored(score), Response::Failed { .. }));
    }
}
