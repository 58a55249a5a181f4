//! Batched inference: continuous batching over a paged key/value cache.
//!
//! Five nouns. A [`sequence`] is a prompt and what was added to it; the [`block_pool`] says who owns which cache block;
//! the [`scheduler`] chooses each step's sequences; the [`model_runner`] runs the model on the [`batch`]; the
//! [`sampler`] turns logits into tokens. `Engine::step` is all five in one breath.
//!
//! Requests are pulled only when a seat is free, so a backlog may be longer than memory. On the CPU in f32 a row's bits
//! depend on its own tokens alone, hence so does every record: `max_num_seqs`, `max_num_batched_tokens`, preemption and
//! the neighbours change when an answer comes, never what it is.

mod admission;
pub mod batch;
pub mod block_pool;
pub mod generation;
pub mod grammar;
pub mod grammar_cache;
pub mod live;
mod loader;
pub mod memory;
pub mod model_runner;
pub mod output_text;
pub mod sampler;
pub mod scheduler;
pub mod scoring;
pub mod sequence;

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
pub(crate) mod test_support;

use std::sync::Arc;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use self::{
    block_pool::BlockPool,
    generation::Generation,
    grammar_cache::GrammarCache,
    scheduler::{Scheduler, SchedulerLimits},
    scoring::Scoring,
    sequence::Sequence,
};
pub use self::{
    generation::Vocabulary,
    loader::{load, load_engine},
    model_runner::{ModelRunner, Runner},
};
use crate::{
    chat_template::ChatTemplate,
    config::EngineConfig,
    interrupt,
    language_model::{Completion, LanguageModel, ModelIdentity, Request, Score, ScoreRequest},
    tokenizer::Tokenizer,
};

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
    next_sequence_id: u64,
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
        };
        let pool = BlockPool::new(runner.num_blocks(), runner.block_size());
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
            next_sequence_id: 0,
        }
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
        let mut incoming = incoming.fuse();
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

    /// One forward pass; what came of it is with the sequences.
    fn compute(&mut self) -> Result<()> {
        let scheduled = self.scheduler.schedule();
        let batch = batch::build(&scheduled, self.scheduler.running(), self.runner.block_size());
        let logits = self.runner.forward(&batch)?;
        self.advance(&scheduled, &logits)
    }

    /// Hands every scheduled sequence its rows of logits; in parallel, since no sequence looks at another.
    fn advance(&mut self, scheduled: &[scheduler::Scheduled], logits: &[f32]) -> Result<()> {
        let vocab_size = self.runner.vocab_size();
        let mut shares = scheduled.iter().peekable();
        let mut rest = logits;
        let mut work = Vec::with_capacity(scheduled.len());
        for (index, sequence) in self.scheduler.running_mut().iter_mut().enumerate() {
            let Some(share) = shares.next_if(|share| share.index == index) else { continue };
            let num_rows = sequence.logit_positions(share.query_len).len();
            ensure!(
                rest.len() >= num_rows * vocab_size,
                "the model returned {} logits, too few for the batch",
                logits.len()
            );
            let (rows, remaining) = rest.split_at(num_rows * vocab_size);
            rest = remaining;
            sequence.num_computed_tokens += share.query_len;
            work.push((sequence, rows));
        }
        let vocabulary = &self.vocabulary;
        work.into_par_iter().with_max_len(1).for_each(|(sequence, rows)| {
            if !rows.is_empty() {
                take_rows(sequence, rows, vocab_size, vocabulary);
            }
        });
        Ok(())
    }

    /// Streamed text and finished results, oldest sequence first.
    fn collect_outcomes(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for sequence in self.scheduler.running_mut() {
            if let Task::Generate(generation) = &mut sequence.task
                && generation.is_streamed()
                && let text = generation.take_shown()
                && !text.is_empty()
            {
                outcomes.push(Outcome::Text(text.to_owned()));
            }
        }
        for sequence in self.scheduler.take_finished() {
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

/// Advances one sequence by the rows of logits that it wanted.
fn take_rows(sequence: &mut Sequence<Task>, rows: &[f32], vocab_size: usize, vocabulary: &Vocabulary) {
    let num_output = sequence.output_token_ids().len();
    match &mut sequence.task {
        Task::Generate(generation) => {
            let token_id = generation.next_token(rows, num_output, vocabulary);
            sequence.is_finished = generation.is_finished();
            if let Some(token_id) = token_id {
                sequence.push(token_id);
            }
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
