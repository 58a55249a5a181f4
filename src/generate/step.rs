//! The one loop of the stage: work list, requests, results, files.
//!
//! A [`Step`] says what to ask and how to read a reply; [`run_step`] does the rest for all of them: it passes over what
//! is on disk, asks the teacher for what is missing, puts the replies back in order, and writes each as a record or a
//! counted rejection. The work list is an iterator and only requests in flight are held, so memory does not grow with
//! the number of questions.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    iter,
    ops::Range,
    path::PathBuf,
};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::{
    Role, Stage,
    ledger::{Decided, Ledger, is_retried},
    pilot, shards,
    spare::{Answered, Spare},
    stats::StepStats,
    text::{Rejection, template_marker},
};
use crate::{
    config::SamplingConfig,
    language_model::{Completion, Constraint, FinishReason, LanguageModel, Message, Prompt, Request, SamplingParams},
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

/// How shards divide a sub-step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every shard needs all of it: each does its part and whatever part nobody is at.
    Together,
    /// Each does its part.
    Apart,
    /// The work list is the shard's own already.
    Own,
}

/// What is done of a sub-step in one go, and where it is written.
#[derive(Debug, Clone)]
pub struct Part {
    /// The folder of the files.
    pub folder: PathBuf,
    /// Positions in the work list.
    pub range: Range<usize>,
}

/// A sub-step with one request per record.
pub trait Step {
    /// What one request needs.
    type Item;
    /// What a good reply becomes.
    type Record: Serialize;

    /// The name in `rejected.jsonl`, `usage.jsonl`, `stats.json`, and in every seed and id.
    fn name(&self) -> &'static str;

    /// The name in the seeds of its requests.
    fn seed_name(&self) -> &'static str {
        self.name()
    }

    /// The file of records.
    fn file(&self) -> &'static str;

    /// Length of the work list.
    fn total(&self) -> usize;

    /// The work list: a pure function of the files before this sub-step, the configuration and the seed.
    fn work(&self) -> Result<WorkList<'_, Self::Item>>;

    /// A range of it.
    fn work_in(&self, range: Range<usize>) -> Result<WorkList<'_, Self::Item>> {
        Ok(Box::new(self.work()?.skip(range.start).take(range.len())))
    }

    /// How shards divide it.
    fn split(&self) -> Split {
        Split::Together
    }

    /// Which model is asked.
    fn role(&self) -> Role {
        Role::Teacher
    }

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
    let result = match stage.shard {
        None => {
            let part = Part { folder: stage.folder.clone(), range: 0..step.total() };
            finish_part(stage, step, &part, &mut stats)
        }
        Some(shard) => shards::run_step(stage, step, shard, &mut stats),
    };
    // The table is written even where the sub-step fails: it says how far it came.
    let saved = stage.add_stats(stats.clone());
    result?;
    saved?;
    Ok(stats)
}

/// Does what is left of a part, counting into `stats`.
pub fn finish_part<S: Step>(stage: &mut Stage, step: &S, part: &Part, stats: &mut StepStats) -> Result<()> {
    let mut work = step.work_in(part.range.clone())?;
    let mut ledger = Ledger::open(&part.folder, step.name(), step.file())?;
    let config = &stage.config.generate;
    // Greedy text comes out the same however often it is asked for.
    let max_attempts = if step.sampling().temperature > 0.0 { config.max_attempts } else { 1 };
    let (next, mut spare) = ledger.resume(&mut work, stats, config.min_yield, max_attempts)?;
    if let Some(next) = next {
        spare.add_pilot(pilot::rows(stage, step.name(), step.file())?);
        if stats.decided() > 0 {
            tracing::info!("{}: {} of {} are on disk already", step.name(), stats.decided(), stats.requested);
        }
        let min_yield = config.min_yield;
        let mut book = Book { ledger: &mut ledger, stats, min_yield, ordered: Ordered::default(), progress: None };
        let work = Box::new(iter::once(Ok(next)).chain(work));
        serve(stage, step, work, (&mut book, &mut spare), max_attempts)?;
        book.finish(step.name())?;
    }
    ledger.set_aside(spare)?;
    ledger.sync()
}

/// Where results go: into line, then to disk and into the yield table.
struct Book<'a, R> {
    ledger: &'a mut Ledger,
    stats: &'a mut StepStats,
    min_yield: f64,
    ordered: Ordered<Entry<R>>,
    progress: Option<Progress>,
}

/// A result on its way to disk.
enum Entry<R> {
    /// The teacher's.
    New(Decided<R>),
    /// One that was there already.
    Again(Answered),
}

impl<R: Serialize> Book<'_, R> {
    fn put(&mut self, position: usize, entry: Entry<R>) -> Result<()> {
        let Self { ledger, stats, min_yield, ordered, progress } = self;
        ordered.push(position, entry, |entry| {
            match &entry {
                Entry::New(decided) => {
                    ledger.write(decided)?;
                    let reason = decided.outcome.as_ref().err().map(|rejection| rejection.reason);
                    stats.count(reason, decided.prompt_tokens, decided.completion_tokens);
                }
                Entry::Again(answered) => {
                    ledger.write_again(answered)?;
                    stats.count(answered.reason().as_deref(), answered.prompt_tokens, answered.completion_tokens);
                }
            }
            if let Some(progress) = progress {
                progress.advance(1, &format!("kept {}/{}", stats.kept, stats.decided()));
            }
            stats.check(*min_yield, ledger.rejected_file())
        })
    }

    fn finish(self, step: &str) -> Result<()> {
        if let Some(progress) = self.progress {
            progress.finish();
        }
        ensure!(self.stats.pending == 0, "{step}: the teacher left {} requests unanswered", self.stats.pending);
        Ok(())
    }
}

/// A request that is not answered for good.
struct Asking<T> {
    position: usize,
    work: Work<T>,
    /// This one included.
    attempt: usize,
    /// Tokens of the prompts and completions of earlier attempts.
    tokens: (usize, usize),
    /// What came of the attempt before this one.
    rejected: Option<Answered>,
}

/// Some requests have no answer yet: a file of answers had none, or a remote teacher failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{left} requests of `{step}` have no answer yet; what was answered is kept, run the same command again to go on"
)]
pub struct Unanswered {
    /// The sub-step.
    pub step: &'static str,
    /// How many.
    pub left: usize,
}

/// Takes what is known from `spare` and asks the teacher for the rest.
fn serve<S: Step>(
    stage: &mut Stage,
    step: &S,
    work: WorkList<S::Item>,
    (book, spare): (&mut Book<S::Record>, &mut Spare),
    max_attempts: usize,
) -> Result<()> {
    let mut backlog = Backlog {
        step,
        run_seed: stage.config.seed,
        max_attempts,
        sampling: step.sampling(),
        work: work.enumerate(),
        spare,
        book,
        in_flight: HashMap::new(),
        again: VecDeque::new(),
    };
    // Looked for before the teacher is loaded: everything may be there.
    let Some(first) = backlog.request()? else { return Ok(()) };
    let (done, all) = (backlog.book.stats.decided() as u64, backlog.book.stats.requested as u64);
    backlog.book.progress = Some(Progress::new(step.name(), done, all));
    let teacher = stage.model(step.role())?;
    let backlog = RefCell::new(backlog);
    let asked = ask(teacher, &backlog, first);
    // Also when the teacher failed: what it had answered is not asked again.
    let left = backlog.into_inner().save()?;
    asked?;
    if left > 0 { Err(Unanswered { step: step.name(), left }.into()) } else { Ok(()) }
}

/// Hands the backlog to the teacher, and once more for requests that came back to be asked again when no other was left.
fn ask<S: Step>(teacher: &mut dyn LanguageModel, backlog: &RefCell<Backlog<S>>, first: Request) -> Result<()> {
    let mut first = Some(first);
    while first.is_some() {
        let mut failure = None;
        let mut requests = iter::from_fn(|| match first.take() {
            Some(first) => Some(first),
            None => backlog.borrow_mut().request().unwrap_or_else(|error| {
                failure = Some(error);
                None
            }),
        });
        teacher.generate(&mut requests, &mut |completion| backlog.borrow_mut().settle(&completion))?;
        if let Some(error) = failure {
            return Err(error);
        }
        let mut backlog = backlog.borrow_mut();
        if !backlog.in_flight.is_empty() {
            break;
        }
        first = backlog.request()?;
    }
    Ok(())
}

/// What is left of a work list. The iterator of requests and the callback of results both work on it.
struct Backlog<'a, 'b, S: Step> {
    step: &'a S,
    run_seed: u64,
    max_attempts: usize,
    sampling: SamplingParams,
    work: iter::Enumerate<WorkList<'a, S::Item>>,
    spare: &'a mut Spare,
    book: &'a mut Book<'b, S::Record>,
    in_flight: HashMap<String, Asking<S::Item>>,
    /// Those to be asked again.
    again: VecDeque<Asking<S::Item>>,
}

impl<S: Step> Backlog<'_, '_, S> {
    /// What is to be asked next; what is known on the way is put into the book.
    fn next(&mut self) -> Result<Option<Asking<S::Item>>> {
        if let Some(asking) = self.again.pop_front() {
            return Ok(Some(asking));
        }
        for (position, work) in self.work.by_ref() {
            let work = work?;
            let known = if self.spare.is_empty() { None } else { self.spare.take(&work.id)? };
            let Some(known) = known else {
                return Ok(Some(Asking { position, work, attempt: 1, tokens: (0, 0), rejected: None }));
            };
            match known.reason() {
                Some(reason) if is_retried(&reason, known.attempts(), self.max_attempts) => {
                    let (attempt, tokens) = (known.attempts() + 1, (known.prompt_tokens, known.completion_tokens));
                    return Ok(Some(Asking { position, work, attempt, tokens, rejected: Some(known) }));
                }
                _ => self.book.put(position, Entry::Again(known))?,
            }
        }
        Ok(None)
    }

    fn request(&mut self) -> Result<Option<Request>> {
        let Some(asking) = self.next()? else { return Ok(None) };
        let prompt = Prompt::Messages(self.step.messages(&asking.work.item)?);
        let id = asking.work.id.clone();
        let seed = seed_of(self.run_seed, self.step.seed_name(), &id, asking.attempt);
        let twice = self.in_flight.insert(id.clone(), asking).is_some();
        ensure!(!twice, "{}: the id {id} is twice in the work list", self.step.name());
        Ok(Some(Request { id, prompt, sampling: SamplingParams { seed, ..self.sampling.clone() } }))
    }

    /// Takes a result: into the book, or back into the queue.
    fn settle(&mut self, completion: &Completion) -> Result<()> {
        let step = self.step;
        let Some(asking) = self.in_flight.remove(&completion.id) else {
            bail!("{}: a result came for `{}`, which was not asked for", step.name(), completion.id)
        };
        let (position, attempts) = (asking.position, asking.attempt);
        let tokens = (asking.tokens.0 + completion.prompt_tokens, asking.tokens.1 + completion.token_ids.len());
        let outcome = outcome(step, &asking.work, completion);
        let is_again =
            outcome.as_ref().is_err_and(|rejection| is_retried(rejection.reason, attempts, self.max_attempts));
        let (id, parent) = (asking.work.id.clone(), asking.work.parent.clone());
        let (prompt_tokens, completion_tokens) = tokens;
        let decided = Decided { id, parent, outcome, attempts, prompt_tokens, completion_tokens };
        if is_again {
            let rejected = Some(decided.into_answered(step.name())?);
            self.again.push_back(Asking { attempt: attempts + 1, tokens, rejected, ..asking });
            return Ok(());
        }
        self.book.put(position, Entry::New(decided))
    }

    /// Keeps what was answered and cannot be written yet, as a request before it has no answer. Returns how many have none.
    fn save(self) -> Result<usize> {
        let name = self.step.name();
        let mut rows = Vec::new();
        for entry in self.book.ordered.drain() {
            // Known ones are still where they came from.
            if let Entry::New(decided) = entry {
                rows.push(decided.into_answered(name)?);
            }
        }
        let left = self.in_flight.len();
        // An attempt that was no use counts, though the one after it has no answer.
        rows.extend(self.in_flight.into_values().chain(self.again).filter_map(|asking| asking.rejected));
        self.spare.add(&mut rows.into_iter().map(Ok))?;
        Ok(left)
    }
}

/// The seed of an attempt; that of the first depends on the record alone.
fn seed_of(run_seed: u64, step: &str, id: &str, attempt: usize) -> u64 {
    if attempt == 1 {
        seed::derive(run_seed, step, id)
    } else {
        seed::derive(run_seed, step, &format!("{id} {attempt}"))
    }
}

/// What became of a request.
fn outcome<S: Step>(step: &S, work: &Work<S::Item>, completion: &Completion) -> Result<S::Record, Rejection> {
    match completion.finish_reason {
        FinishReason::Error => {
            let error = completion.error.as_deref().unwrap_or("no reason was given");
            Err(Rejection::new(if is_about_length(error) { "too_long" } else { "unservable" }, error))
        }
        FinishReason::Length if !step.keeps_truncated() => Err(Rejection::new("truncated", completion.text.as_str())),
        _ if template_marker(&completion.text).is_some() => {
            Err(Rejection::new("template_marker", completion.text.as_str()))
        }
        _ => step.record(work, &completion.text),
    }
}

/// The engine refuses a request in words alone; a prompt over the context is the one cause that is worth a name.
fn is_about_length(error: &str) -> bool {
    ["too long", "max_model_len", "context"].iter().any(|words| error.contains(words))
}
