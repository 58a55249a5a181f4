//! The one loop of the stage: work list, requests, results, files.
//!
//! A [`Step`] says what to ask and how to read a reply; [`run_step`] does the rest for all of them: it passes over what
//! is on disk, asks the teacher for what is missing, puts the replies back in order, and writes each as a record or a
//! counted rejection. The work list is an iterator and only requests in flight are held, so memory does not grow with
//! the number of questions.

use std::{cell::RefCell, collections::HashMap, iter};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::{
    Stage,
    ledger::{Decided, Ledger},
    stats::StepStats,
    text::Rejection,
};
use crate::{
    config::SamplingConfig,
    language_model::{Completion, Constraint, FinishReason, Message, Prompt, Request, SamplingParams},
    records::Ordered,
    seed,
    telemetry::Progress,
};

/// One entry of a work list.
#[derive(Debug, Clone)]
pub struct Work<T> {
    /// Id of the record to be made; unique in its work list.
    pub id: String,
    /// Id of what it is made from.
    pub parent: String,
    /// What the request needs.
    pub item: T,
}

/// A work list, made as it is read.
pub type WorkList<'a, T> = Box<dyn Iterator<Item = Result<Work<T>>> + 'a>;

/// A sub-step with one request per record.
pub trait Step {
    /// What one request needs.
    type Item;
    /// What a good reply becomes.
    type Record: Serialize;

    /// The name in `rejected.jsonl`, `usage.jsonl`, `stats.json`, and in every seed and id.
    fn name(&self) -> &'static str;

    /// The file of records.
    fn file(&self) -> &'static str;

    /// Length of the work list.
    fn total(&self) -> usize;

    /// The work list: a pure function of the files before this sub-step, the configuration and the seed.
    fn work(&self) -> Result<WorkList<'_, Self::Item>>;

    /// The conversation of a request.
    fn messages(&self, item: &Self::Item) -> Result<Vec<Message>>;

    /// How replies are drawn; the seed is filled in for each request.
    fn sampling(&self) -> SamplingParams;

    /// Reads a reply.
    fn record(&self, work: &Work<Self::Item>, text: &str) -> Result<Self::Record, Rejection>;

    /// Whether a reply that was cut at `max_new_tokens` is still of use.
    fn keeps_truncated(&self) -> bool {
        false
    }
}

/// Request settings from the configuration's.
pub fn sampling_params(config: &SamplingConfig, constraint: Option<Constraint>) -> SamplingParams {
    SamplingParams {
        max_new_tokens: config.max_new_tokens,
        temperature: config.temperature,
        top_p: config.top_p,
        top_k: config.top_k,
        min_p: config.min_p,
        repetition_penalty: config.repetition_penalty,
        constraint,
        ..SamplingParams::default()
    }
}

/// Does what is left of a sub-step and returns its row of the yield table, which is also added to `stats.json`.
///
/// **Errors**: a yield under `generate.min_yield`, and everything that the teacher or the disk fail with; what was
/// made until then stays.
pub fn run_step<S: Step>(stage: &mut Stage, step: &S) -> Result<StepStats> {
    let mut stats = StepStats::new(step.name(), step.total());
    let result = finish_step(stage, step, &mut stats);
    // The table is written even where the sub-step fails: it says how far it came.
    let saved = stage.add_stats(stats.clone());
    result?;
    saved?;
    Ok(stats)
}

fn finish_step<S: Step>(stage: &mut Stage, step: &S, stats: &mut StepStats) -> Result<()> {
    let mut work = step.work()?;
    let mut ledger = Ledger::open(&stage.folder, step.name(), step.file())?;
    let min_yield = stage.config.generate.min_yield;
    let Some(next) = ledger.resume(&mut work, stats, min_yield)? else { return Ok(()) };
    if stats.decided() > 0 {
        tracing::info!("{}: {} of {} are on disk already", step.name(), stats.decided(), stats.requested);
    }
    serve(stage, step, &mut iter::once(Ok(next)).chain(work), &mut ledger, stats)?;
    ledger.sync()
}

fn serve<S: Step>(
    stage: &mut Stage,
    step: &S,
    work: &mut dyn Iterator<Item = Result<Work<S::Item>>>,
    ledger: &mut Ledger,
    stats: &mut StepStats,
) -> Result<()> {
    let (run_seed, min_yield) = (stage.config.seed, stage.config.generate.min_yield);
    let teacher = stage.teacher()?;
    let sampling = step.sampling();
    // Both closures below touch these two: the iterator puts work in, the callback takes it out.
    let in_flight = RefCell::new(HashMap::<String, (usize, Work<S::Item>)>::new());
    let failure: RefCell<Option<anyhow::Error>> = RefCell::default();
    let request = |position: usize, work: Result<Work<S::Item>>| -> Result<Request> {
        let work = work?;
        let messages = step.messages(&work.item)?;
        let seed = seed::derive(run_seed, step.name(), &work.id);
        let id = work.id.clone();
        let twice = in_flight.borrow_mut().insert(id.clone(), (position, work)).is_some();
        ensure!(!twice, "{}: the id {id} is twice in the work list", step.name());
        Ok(Request { id, prompt: Prompt::Messages(messages), sampling: SamplingParams { seed, ..sampling.clone() } })
    };
    let mut requests = work.enumerate().map_while(|(position, work)| {
        request(position, work).map_err(|error| *failure.borrow_mut() = Some(error)).ok()
    });
    let mut progress = Progress::new(step.name(), stats.decided() as u64, stats.requested as u64);
    let mut ordered = Ordered::default();
    let served = teacher.generate(&mut requests, &mut |completion| {
        let Some((position, work)) = in_flight.borrow_mut().remove(&completion.id) else {
            bail!("{}: a result came for `{}`, which was not asked for", step.name(), completion.id)
        };
        ordered.push(position, decide(step, work, &completion), |decided| {
            ledger.write(&decided)?;
            let reason = decided.outcome.as_ref().err().map(|rejection| rejection.reason);
            stats.count(reason, decided.prompt_tokens, decided.completion_tokens);
            progress.advance(1, &format!("kept {}/{}", stats.kept, stats.decided()));
            stats.check(min_yield, ledger.rejected_file())
        })
    });
    progress.finish();
    served?;
    if let Some(error) = failure.take() {
        return Err(error);
    }
    ensure!(stats.pending == 0, "{}: the teacher left {} requests unanswered", step.name(), stats.pending);
    Ok(())
}

fn decide<S: Step>(step: &S, work: Work<S::Item>, completion: &Completion) -> Decided<S::Record> {
    let outcome = match completion.finish_reason {
        FinishReason::Error => {
            let error = completion.error.as_deref().unwrap_or("no reason was given");
            Err(Rejection::new(if is_about_length(error) { "too_long" } else { "unservable" }, error))
        }
        FinishReason::Length if !step.keeps_truncated() => Err(Rejection::new("truncated", completion.text.as_str())),
        _ => step.record(&work, &completion.text),
    };
    Decided {
        id: work.id,
        parent: work.parent,
        outcome,
        prompt_tokens: completion.prompt_tokens,
        completion_tokens: completion.token_ids.len(),
    }
}

/// The engine refuses a request in words alone; a prompt over the context is the one cause that is worth a name.
fn is_about_length(error: &str) -> bool {
    ["too long", "max_model_len", "context"].iter().any(|words| error.contains(words))
}
