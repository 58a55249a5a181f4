//! Asks the model every question of a plan, and keeps each answer on disk as soon as its turn comes.
//!
//! `responses.jsonl` holds one line per request, in the order of the plan. Each line carries a hash of the model and
//! the whole request, so an interrupted evaluation goes on where it stopped and an answer to another question, or of
//! another model, is never taken.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    plan::{Plan, PlannedTask},
    prompt::{self, Context},
    task::{Generation, OutputType, Task},
};
use crate::{
    chat_template::encode_prompt,
    error::usage,
    language_model::{Completion, FinishReason, LanguageModel, Prompt, Request, SamplingParams, Score, ScoreRequest},
    records::{self, JsonlWriter, Ordered},
    requests::encode_pair,
    seed,
    telemetry::Progress,
};

/// The file of a model's folder that answers are kept in.
const FILE: &str = "responses.jsonl";

/// Requests that are tokenised ahead of the model.
const REQUESTS_AHEAD: usize = 4096;

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

/// All answers to a plan.
pub struct Answers {
    /// Rendered contexts, `[task][doc_id]`; one, or one per choice where the choices are contexts.
    pub contexts: Rendered,
    /// Answers, `[task][doc_id][idx]`.
    pub responses: Vec<Vec<Vec<Response>>>,
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

/// Contexts as text, `[task][doc_id][choice]`.
pub type Rendered = Vec<Vec<Vec<String>>>;

/// One request of the work list.
struct Asked {
    task: usize,
    doc_id: usize,
    idx: usize,
    hash: String,
}

/// Asks whatever `folder` does not hold yet.
///
/// **Errors**: usage, when chat prompts are asked for and the model has no template; those of the model; interruption,
/// with every answer so far on disk.
pub fn answer(plan: &Plan, folder: &Path, model_key: &str, model: &mut dyn LanguageModel) -> Result<Answers> {
    let contexts = render(plan, model)?;
    let work = work_list(plan, &contexts, model_key);
    let path = folder.join(FILE);
    let mut book = Book::open(&path, plan, &work)?;
    for task in 0..plan.tasks.len() {
        let pending: Vec<usize> =
            (0..work.len()).filter(|&at| work[at].task == task && book.responses[at].is_none()).collect();
        for positions in pending.chunks(REQUESTS_AHEAD) {
            ask(plan, &contexts, &work, positions, model, &mut book)?;
        }
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
    Ok(Answers { contexts, responses: nested })
}

/// The text before every answer.
fn render(plan: &Plan, model: &dyn LanguageModel) -> Result<Rendered> {
    let render_document = |contexts: &Vec<Context>| contexts.iter().map(|it| render_one(it, model)).collect();
    plan.tasks.iter().map(|planned| planned.contexts.iter().map(render_document).collect()).collect()
}

/// The text before an answer: as it stands, or rendered by the model's chat template.
///
/// **Errors**: usage, when the model has no template.
pub fn render_one(context: &Context, model: &dyn LanguageModel) -> Result<String> {
    let messages = match context {
        Context::Text(text) => return Ok(text.clone()),
        Context::Messages(messages) => messages,
    };
    let Some(template) = model.chat_template() else {
        return Err(usage(format!(
            "`{}` has no chat template; leave out --apply-chat-template (evaluate.apply_chat_template = false)",
            model.identity().name
        )));
    };
    let open = context.open_answer();
    // A template that refuses a system turn is given the conversation without it.
    let rendered = template.render(messages, open.is_none()).or_else(|error| {
        let rest: Vec<_> = messages.iter().filter(|turn| turn.role != "system").cloned().collect();
        if rest.len() == messages.len() { Err(error) } else { template.render(&rest, open.is_none()) }
    })?;
    match open {
        None => Ok(rendered),
        Some(answer) => prompt::left_open(&rendered, answer)
            .with_context(|| format!("the chat template does not write the answer's beginning `{answer}`")),
    }
}

fn work_list(plan: &Plan, contexts: &Rendered, model_key: &str) -> Vec<Asked> {
    let mut work = Vec::new();
    for (task, planned) in plan.tasks.iter().enumerate() {
        for (doc_id, document) in planned.documents.iter().enumerate() {
            for idx in 0..planned.requests(doc_id) {
                let context = contexts[task][doc_id][planned.context_index(idx)].as_str();
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
                    OutputType::MultipleChoice => prompt::continuation(planned.task, document, idx, &plan.style),
                };
                let hash = seed::record_id(&[model_key, planned.spec().output_type.name(), context, &wanted]);
                work.push(Asked { task, doc_id, idx, hash });
            }
        }
    }
    work
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
        let first = old.iter().zip(work).take_while(|(line, asked)| line.request_hash == asked.hash).count();
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
            if let Some(response) = known.get(&asked.hash) {
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
            request_hash: asked.hash.clone(),
            response,
        };
        let writer = &mut self.writer;
        self.ordered.push(position - self.first, line, |line| writer.write(&line))?;
        self.progress.advance(1, "");
        Ok(())
    }
}

/// Asks the requests at `positions`, all of one task.
fn ask(
    plan: &Plan,
    contexts: &Rendered,
    work: &[Asked],
    positions: &[usize],
    model: &mut dyn LanguageModel,
    book: &mut Book,
) -> Result<()> {
    let Some(planned) = positions.first().map(|&position| &plan.tasks[work[position].task]) else { return Ok(()) };
    match planned.spec().output_type {
        OutputType::GenerateUntil(generation) => {
            let stop = generation.stop_strings(plan.style.chat);
            let requests = positions
                .iter()
                .map(|&position| {
                    let asked = &work[position];
                    let text = &contexts[asked.task][asked.doc_id][0];
                    let sampling = sampling_params(planned.task, generation, stop, asked.idx);
                    generation_request(position, planned.context(asked.doc_id, asked.idx), text, sampling, model)
                })
                .collect::<Result<Vec<_>>>()?;
            model.generate(&mut requests.into_iter(), &mut |completion| {
                let position = position_of(&completion.id)?;
                book.put(plan, work, position, generated(completion, &plan.think_end_token, stop))
            })
        }
        OutputType::MultipleChoice => {
            let mut requests = Vec::with_capacity(positions.len());
            for &position in positions {
                let asked = &work[position];
                let choice = choice_text(plan, planned, asked);
                let context = &contexts[asked.task][asked.doc_id][planned.context_index(asked.idx)];
                match score_request(position, context, &choice, model)? {
                    Ok(request) => requests.push(request),
                    Err(error) => book.put(plan, work, position, Response::Failed { error })?,
                }
            }
            model.score(&mut requests.into_iter(), &mut |score| {
                let position = position_of(&score.id)?;
                book.put(plan, work, position, scored(score))
            })
        }
    }
}

fn choice_text(plan: &Plan, planned: &PlannedTask, asked: &Asked) -> String {
    prompt::continuation(planned.task, &planned.documents[asked.doc_id], asked.idx, &plan.style)
}

fn position_of(id: &str) -> Result<usize> {
    id.parse().with_context(|| format!("the model answered an unknown request `{id}`"))
}

/// A prompt that does not fit keeps its end, as in the harness: room for the answer comes first.
fn generation_request(
    position: usize,
    context: &Context,
    text: &str,
    mut sampling: SamplingParams,
    model: &dyn LanguageModel,
) -> Result<Request> {
    let limit = model.max_model_len();
    sampling.max_new_tokens = sampling.max_new_tokens.min(limit / 2).max(1);
    let is_chat = matches!(context, Context::Messages(_));
    let tokenizer = model.tokenizer();
    let ids = if is_chat { encode_prompt(tokenizer, text)? } else { tokenizer.encode(text, true)? };
    let prompt = match context {
        _ if ids.len() + sampling.max_new_tokens > limit => {
            let keep = limit.saturating_sub(sampling.max_new_tokens).max(1).min(ids.len());
            Prompt::TokenIds(ids[ids.len() - keep..].to_vec())
        }
        Context::Text(text) => Prompt::Text(text.clone()),
        // Rendered here: the engine would close an answer that is left open, and knows no way round a refused turn.
        Context::Messages(_) => Prompt::TokenIds(ids),
    };
    Ok(Request { id: position.to_string(), prompt, sampling })
}

/// Context and choice as token ids, cut on the left to the model's length.
fn score_request(
    position: usize,
    context: &str,
    choice: &str,
    model: &dyn LanguageModel,
) -> Result<Result<ScoreRequest, String>> {
    let (mut context_token_ids, continuation_token_ids) = encode_pair(model.tokenizer(), context, choice)?;
    if continuation_token_ids.is_empty() {
        return Ok(Err(format!("the choice `{choice}` has no token of its own")));
    }
    let excess = (context_token_ids.len() + continuation_token_ids.len()).saturating_sub(model.max_model_len());
    context_token_ids.drain(..excess.min(context_token_ids.len()));
    Ok(Ok(ScoreRequest { id: position.to_string(), context_token_ids, continuation_token_ids }))
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
    fn a_prompt_that_is_too_long_keeps_its_end_and_room_for_the_answer() -> Result<()> {
        let mut model = ScriptedModel::new(answers_right)?;
        model.max_model_len = 50;
        let generation = Generation { until: &["\n"], until_chat: &[], max_gen_toks: 20 };
        let text = format!("{}end", "x".repeat(200));
        let sampling = sampling_params(&crate::evaluate::primer::Primer, generation, &["\n"], 0);
        let request = generation_request(0, &Context::Text(text.clone()), &text, sampling, &model)?;
        let Prompt::TokenIds(ids) = request.prompt else { panic!("a cut prompt is token ids") };
        assert_eq!((ids.len(), request.sampling.max_new_tokens), (30, 20));
        assert!(model.tokenizer().decode(&ids, false)?.ends_with("end"));
        let score = score_request(0, &text, " choice", &model)?.expect("the choice has tokens");
        assert_eq!(score.context_token_ids.len() + score.continuation_token_ids.len(), 50);
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
