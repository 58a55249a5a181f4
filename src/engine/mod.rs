//! Batched inference: continuous batching over a paged key/value cache.
//!
//! Five nouns. A [`sequence`] is a prompt and what was added to it; the [`block_pool`] says who owns which cache block;
//! the [`scheduler`] chooses each step's sequences; the [`model_runner`] runs the model on the [`batch`]; the
//! [`sampler`] turns logits into tokens. `Engine::step` is all five in one breath.
//!
//! Requests are pulled a window ahead of the seats ([`prefix_order`]), so a backlog may be longer than memory. On the CPU in f32 a row's bits
//! depend on its own tokens alone, hence so does every record: `max_num_seqs`, `max_num_batched_tokens`, preemption and
//! the neighbours change when an answer comes, never what it is.

mod admission;
pub mod batch;
pub mod block_pool;
mod cached;
pub mod generation;
pub mod grammar;
pub mod grammar_cache;
pub mod live;
mod loader;
pub mod memory;
pub mod model_runner;
pub mod output_text;
pub mod part_index;
pub mod prefix_hash;
mod prefix_order;
pub mod sampler;
pub mod scheduler;
pub mod scoring;
pub mod sequence;

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod model_based_tests;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
pub(crate) mod test_support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rayon::prelude::*;

use self::{
    block_pool::BlockPool,
    generation::Generation,
    grammar_cache::GrammarCache,
    prefix_order::InPrefixOrder,
    scheduler::{Counters, Scheduler, SchedulerLimits},
    scoring::Scoring,
    sequence::Sequence,
};
pub use self::{
    generation::Vocabulary,
    loader::{load, load_engine, load_engine_with_any_tokenizer},
    model_runner::{ModelRunner, Runner},
};
use crate::{
    chat_template::ChatTemplate,
    config::EngineConfig,
    interrupt,
    language_model::{Completion, LanguageModel, ModelIdentity, Request, Score, ScoreRequest},
    model::PagedBatch,
    tokenizer::Tokenizer,
};

/// Tokens of finished sequences that are kept in the cache, or as many as the longest sequence has. Offline, requests come in
/// an order in which equal beginnings meet, so more would only take memory; [`live`] keeps what there is room for.
const IDLE_TOKENS: usize = 8192;

/// Rows of logits of one step at most, unless there are more seats: at 150,000 tokens of vocabulary these are 300 MB.
const MAX_LOGIT_ROWS: usize = 512;

/// What a sequence is for.
enum Task {
    /// Answer a request.
    Generate(Box<Generation>),
    /// Score a continuation.
    Score(Scoring),
}

/// Work that comes in.
enum Incoming {
    Generate { request: Request, is_streamed: bool },
    Score(ScoreRequest),
}

/// What comes out of a step.
enum Outcome {
    /// Text of a streamed answer that has become final.
    Text(String),
    Completion(Completion),
    Score(Score),
}

/// A model that serves many requests at once.
pub struct Engine<R> {
    runner: R,
    scheduler: Scheduler<Task>,
    vocabulary: Vocabulary,
    chat_template: Option<ChatTemplate>,
    grammars: Arc<GrammarCache>,
    identity: ModelIdentity,
    /// Stands in for an empty prompt or context: BOS, else EOS.
    prefix_token_id: Option<u32>,
    /// Never more than the whole pool holds, so the oldest sequence can always run to its end.
    max_model_len: usize,
    /// Whether requests are also put in an order in which equal beginnings meet.
    enable_prefix_caching: bool,
    next_sequence_id: u64,
    /// Those of the last step; kept for their memory.
    logits: Vec<f32>,
    times: StepTimes,
}

/// Where the time of all steps so far went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Choosing sequences, allocating blocks, flattening the batch.
    pub schedule: Duration,
    /// The model, and the masks of constraints beside it.
    pub forward: Duration,
    /// Drawing tokens, watching for stop strings, forced tokens.
    pub sample: Duration,
}

/// What an engine is made of, beside its runner.
pub struct EngineParts {
    /// Ids to text and back.
    pub vocabulary: Vocabulary,
    /// The model's chat template, if any.
    pub chat_template: Option<ChatTemplate>,
    /// What records say of the model.
    pub identity: ModelIdentity,
    /// Stands in for an empty prompt or context: BOS, else EOS.
    pub prefix_token_id: Option<u32>,
    /// Longest sequence in tokens.
    pub max_model_len: usize,
}

impl<R: Runner> Engine<R> {
    /// An idle engine.
    pub fn new(runner: R, config: &EngineConfig, parts: EngineParts) -> Self {
        let limits = SchedulerLimits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_logit_rows: MAX_LOGIT_ROWS.max(config.max_num_seqs),
            enable_prefix_caching: config.enable_prefix_caching,
        };
        let mut pool = BlockPool::new(runner.num_blocks(), runner.block_size());
        pool.keep_idle(pool.blocks_for(IDLE_TOKENS.max(parts.max_model_len)));
        let max_model_len = parts.max_model_len.min(runner.num_blocks() * runner.block_size());
        Self {
            runner,
            scheduler: Scheduler::new(limits, pool),
            vocabulary: parts.vocabulary,
            chat_template: parts.chat_template,
            grammars: Arc::default(),
            identity: parts.identity,
            prefix_token_id: parts.prefix_token_id,
            max_model_len,
            enable_prefix_caching: config.enable_prefix_caching,
            next_sequence_id: 0,
            logits: Vec::new(),
            times: StepTimes::default(),
        }
    }

    /// Tokens of the model's vocabulary, padding included.
    pub fn vocab_size(&self) -> usize {
        self.runner.vocab_size()
    }

    /// What prefix caching saved and what preemption lost since the start.
    pub fn counters(&self) -> Counters {
        self.scheduler.counters()
    }

    /// Where the time of all steps so far went.
    pub fn step_times(&self) -> StepTimes {
        self.times
    }

    /// Serves one request, with its text as it becomes final. Stop strings are never shown, not even their beginning.
    pub fn generate_streaming(
        &mut self,
        request: Request,
        on_text: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Vec<Completion>> {
        let mut completions = Vec::new();
        let mut incoming = std::iter::once(Incoming::Generate { request, is_streamed: true });
        self.serve(&mut incoming, &mut |outcome| match outcome {
            Outcome::Text(text) => on_text(&text),
            Outcome::Completion(completion) => {
                completions.push(completion);
                Ok(())
            }
            Outcome::Score(_) => unreachable!("no scoring was sent"),
        })?;
        Ok(completions)
    }

    /// Serves everything that comes in; afterwards the engine is idle, whether it went well or not.
    fn serve(
        &mut self,
        incoming: &mut dyn Iterator<Item = Incoming>,
        deliver: &mut dyn FnMut(Outcome) -> Result<()>,
    ) -> Result<()> {
        let served = self.serve_until_idle(incoming, deliver);
        self.scheduler.clear();
        served
    }

    fn serve_until_idle(
        &mut self,
        incoming: &mut dyn Iterator<Item = Incoming>,
        deliver: &mut dyn FnMut(Outcome) -> Result<()>,
    ) -> Result<()> {
        let mut incoming = InPrefixOrder::new(incoming, self.enable_prefix_caching);
        loop {
            interrupt::check()?;
            if self.scheduler.has_seat()
                && let Some(work) = incoming.next()
            {
                self.admit(work).into_iter().try_for_each(&mut *deliver)?;
                continue;
            }
            if self.scheduler.is_idle() {
                return Ok(());
            }
            self.step()?.into_iter().try_for_each(&mut *deliver)?;
        }
    }

    /// One forward pass and what follows from it.
    fn step(&mut self) -> Result<Vec<Outcome>> {
        self.compute()?;
        Ok(self.collect_outcomes())
    }

    /// One forward pass; what came of it is with the sequences. After an error the scheduler must be cleared.
    fn compute(&mut self) -> Result<()> {
        let start = Instant::now();
        let scheduled = self.scheduler.schedule();
        let batch = batch::build(&scheduled, self.scheduler.running(), self.runner.block_size());
        if scheduled.is_empty() {
            // Whatever is here was complete when it came.
            return Ok(());
        }
        let is_scheduled = Instant::now();
        self.runner.copy_blocks(self.scheduler.copies())?;
        let mut logits = std::mem::take(&mut self.logits);
        self.forward_beside_masks(&batch, &mut logits)?;
        let num_logits = batch.logit_rows.len() * self.runner.vocab_size();
        ensure!(logits.len() == num_logits, "the model returned {} logits instead of {num_logits}", logits.len());
        let is_computed = Instant::now();
        self.advance(&scheduled, &logits);
        self.logits = logits;
        self.times.schedule += is_scheduled - start;
        self.times.forward += is_computed - is_scheduled;
        self.times.sample += is_computed.elapsed();
        Ok(())
    }

    /// The forward pass; meanwhile whatever threads it leaves idle find out which tokens the constraints allow next.
    fn forward_beside_masks(&mut self, batch: &PagedBatch, logits: &mut Vec<f32>) -> Result<()> {
        let Self { runner, scheduler, .. } = self;
        let tasks = scheduler.running_mut().iter_mut().map(|sequence| &mut sequence.task);
        let constrained: Vec<&mut Generation> = tasks
            .filter_map(|task| match task {
                Task::Generate(generation) if generation.wants_mask() => Some(generation.as_mut()),
                _ => None,
            })
            .collect();
        if constrained.is_empty() {
            return runner.forward(batch, logits);
        }
        let masks = || constrained.into_par_iter().with_max_len(1).for_each(Generation::prepare_mask);
        rayon::join(|| runner.forward(batch, logits), masks).0
    }

    /// Hands every sequence its rows of logits; in parallel, since no sequence looks at another.
    fn advance(&mut self, scheduled: &[scheduler::Scheduled], logits: &[f32]) {
        let vocab_size = self.runner.vocab_size();
        let mut advances = self.scheduler.advance(scheduled).into_iter().peekable();
        let mut work = Vec::with_capacity(advances.len());
        for (index, sequence) in self.scheduler.running_mut().iter_mut().enumerate() {
            if let Some(advance) = advances.next_if(|advance| advance.index == index) {
                work.push((sequence, &logits[advance.rows.start * vocab_size..advance.rows.end * vocab_size]));
            }
        }
        let vocabulary = &self.vocabulary;
        work.into_par_iter()
            .with_max_len(1)
            .for_each(|(sequence, rows)| take_rows(sequence, rows, vocab_size, vocabulary));
    }

    /// Streamed text and finished results, oldest sequence first.
    fn collect_outcomes(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for sequence in self.scheduler.running_mut() {
            outcomes.extend(shown_text(&mut sequence.task));
        }
        for mut sequence in self.scheduler.take_finished() {
            // What was complete when it came has shown nothing yet.
            outcomes.extend(shown_text(&mut sequence.task));
            let (sequence, task) = sequence.into_task();
            outcomes.push(match task {
                Task::Generate(generation) => {
                    Outcome::Completion(generation.into_completion(&sequence, &self.vocabulary.tokenizer))
                }
                Task::Score(scoring) => Outcome::Score(scoring.into_score()),
            });
        }
        outcomes
    }
}

/// Text of a streamed answer that has become final since the last call.
fn shown_text(task: &mut Task) -> Option<Outcome> {
    let Task::Generate(generation) = task else { return None };
    if !generation.is_streamed() {
        return None;
    }
    let text = generation.take_shown();
    (!text.is_empty()).then(|| Outcome::Text(text.to_owned()))
}

/// Advances one sequence by the rows of logits that it wanted.
fn take_rows(sequence: &mut Sequence<Task>, rows: &[f32], vocab_size: usize, vocabulary: &Vocabulary) {
    let num_output = sequence.output_token_ids().len();
    match &mut sequence.task {
        Task::Generate(generation) => {
            let token_ids = generation.next_tokens(rows, num_output, vocabulary);
            sequence.is_finished = generation.is_finished();
            token_ids.into_iter().for_each(|token_id| sequence.push(token_id));
        }
        Task::Score(scoring) => {
            scoring.take_rows(rows, vocab_size);
            sequence.is_finished = scoring.is_finished();
            // Should the sequence be preempted now, these rows are not asked for again.
            sequence.logits_from += rows.len() / vocab_size;
        }
    }
}

impl<R: Runner> LanguageModel for Engine<R> {
    fn computed_prompt_tokens(&self) -> u64 {
        self.counters().computed_prompt_tokens
    }

    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        let mut incoming = requests.map(|request| Incoming::Generate { request, is_streamed: false });
        self.serve(&mut incoming, &mut |outcome| match outcome {
            Outcome::Completion(completion) => on_result(completion),
            Outcome::Text(_) | Outcome::Score(_) => unreachable!("neither streams nor scorings were sent"),
        })
    }

    fn score(
        &mut self,
        requests: &mut dyn Iterator<Item = ScoreRequest>,
        on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        self.serve(&mut requests.map(Incoming::Score), &mut |outcome| match outcome {
            Outcome::Score(score) => on_result(score),
            Outcome::Text(_) | Outcome::Completion(_) => unreachable!("only scorings were sent"),
        })
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.vocabulary.tokenizer
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}
