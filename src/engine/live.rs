//! The engine driven from outside: requests join the running batch at any time and leave it early when nobody waits.
//!
//! [`super::Engine`]'s own loop pulls requests from an iterator and ends when it is idle; a server cannot work so.
//! Here the caller owns the loop: [`Live::submit`], [`Live::step`], [`Live::cancel`], in any order, on one thread. It is
//! the same engine underneath, so an answer has the bits that `glan complete` gives it.

use std::{collections::HashMap, ops::Range, sync::Arc};

use anyhow::Result;

use super::{Engine, Runner, Task, Vocabulary, grammar_cache::GrammarCache};
use crate::{
    chat_template::ChatTemplate,
    language_model::{Completion, LanguageModel, ModelIdentity, Request, TokenLogprob},
    tokenizer::Tokenizer,
};

/// An engine that takes requests one by one.
pub struct Live<R> {
    engine: Engine<R>,
    /// Per sequence: what its events have told already.
    told: HashMap<u64, Told>,
    prompt_tokens: u64,
    generation_tokens: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    num_tokens: usize,
    num_logprobs: usize,
    num_text_bytes: usize,
}

/// What a step brought for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It has new tokens.
    Progress {
        /// Which sequence.
        sequence_id: u64,
        /// New tokens, since the last event.
        num_tokens: usize,
        /// Text that has become final; empty unless the request is streamed.
        text: String,
        /// Log-probabilities of the new tokens; empty unless asked for, and unless the request is streamed.
        logprobs: Vec<TokenLogprob>,
    },
    /// It is complete. Its last event.
    Finished {
        /// Which sequence.
        sequence_id: u64,
        /// The whole answer.
        completion: Completion,
        /// The end of its text, which no `Progress` has told.
        rest: String,
    },
}

/// What the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences with a seat.
    pub num_running: usize,
    /// Sequences without.
    pub num_waiting: usize,
    /// Blocks of the key/value cache that sequences own.
    pub num_blocks_used: usize,
    /// Blocks in all.
    pub num_blocks: usize,
    /// How often a sequence lost its blocks to an older one, so far.
    pub num_preemptions: u64,
    /// Tokens of prompts read, so far; a prompt counts once per answer.
    pub prompt_tokens: u64,
    /// Tokens generated, so far.
    pub generation_tokens: u64,
}

impl<R: Runner> Live<R> {
    /// Takes an idle engine.
    pub fn new(mut engine: Engine<R>) -> Self {
        // Nobody knows what comes next: a conversation may go on after an hour.
        engine.scheduler.keep_idle(usize::MAX);
        debug_assert!(engine.scheduler.is_idle(), "the sequences of another loop would have nobody to tell");
        Self { engine, told: HashMap::new(), prompt_tokens: 0, generation_tokens: 0 }
    }

    /// Queues a request and returns the ids of its sequences, one per answer in order. Ids ascend over all requests.
    ///
    /// **Errors**: what is wrong with the request; nothing of it is queued then.
    pub fn submit(&mut self, request: &Request, is_streamed: bool) -> Result<Range<u64>> {
        let first = self.engine.next_sequence_id;
        self.engine.admit_request(request, is_streamed)?;
        Ok(first..self.engine.next_sequence_id)
    }

    /// Drops a sequence and frees its blocks; it has no more events. Does nothing when it is finished.
    pub fn cancel(&mut self, sequence_id: u64) {
        self.engine.scheduler.cancel(sequence_id);
        self.told.remove(&sequence_id);
    }

    /// Drops all sequences.
    pub fn clear(&mut self) {
        self.engine.scheduler.clear();
        self.told.clear();
    }

    /// Whether a step would have nothing to do.
    pub fn is_idle(&self) -> bool {
        self.engine.scheduler.is_idle()
    }

    /// One forward pass; events oldest sequence first.
    ///
    /// **Errors**: those of the device. All sequences are dropped then, and the engine can go on with others.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        if let Err(error) = self.engine.compute() {
            self.clear();
            return Err(error);
        }
        let mut events = Vec::new();
        for sequence in self.engine.scheduler.running_mut() {
            let sequence_id = sequence.id;
            let num_output = sequence.output_token_ids().len();
            let Task::Generate(generation) = &mut sequence.task else { continue };
            let told = self.told.entry(sequence_id).or_default();
            let num_tokens = num_output - told.num_tokens;
            if num_tokens == 0 {
                continue;
            }
            if told.num_tokens == 0 {
                self.prompt_tokens += sequence.num_prompt_tokens as u64;
            }
            self.generation_tokens += num_tokens as u64;
            let (mut text, mut logprobs) = (String::new(), Vec::new());
            if generation.is_streamed() {
                generation.take_shown().clone_into(&mut text);
                logprobs = generation.logprobs()[told.num_logprobs..].to_vec();
            }
            told.num_tokens = num_output;
            told.num_logprobs += logprobs.len();
            told.num_text_bytes += text.len();
            events.push(Event::Progress { sequence_id, num_tokens, text, logprobs });
        }
        for sequence in self.engine.scheduler.take_finished() {
            let (sequence, task) = sequence.into_task();
            let Task::Generate(generation) = task else { continue };
            let completion = generation.into_completion(&sequence, self.tokenizer());
            let told = self.told.remove(&sequence.id).unwrap_or_default();
            // An answer that was forced as a whole has never run.
            if told.num_tokens == 0 {
                self.prompt_tokens += sequence.num_prompt_tokens as u64;
            }
            self.generation_tokens += (sequence.output_token_ids().len() - told.num_tokens) as u64;
            let rest = completion.text.get(told.num_text_bytes..).unwrap_or_default().to_owned();
            events.push(Event::Finished { sequence_id: sequence.id, completion, rest });
        }
        Ok(events)
    }

    /// What the engine is doing now.
    pub fn load(&self) -> Load {
        let scheduler = &self.engine.scheduler;
        let pool = scheduler.pool();
        Load {
            num_running: scheduler.running().len(),
            num_waiting: scheduler.num_waiting(),
            num_blocks_used: pool.num_blocks() - pool.num_free(),
            num_blocks: pool.num_blocks(),
            num_preemptions: scheduler.counters().preemptions,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
        }
    }

    /// The engine's compiled constraints, to compile new ones elsewhere before a request brings them.
    pub fn grammars(&self) -> Arc<GrammarCache> {
        Arc::clone(&self.engine.grammars)
    }

    /// How ids become text, and which ids end an output.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.engine.vocabulary
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.engine.tokenizer()
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.engine.chat_template()
    }

    /// Most tokens of one sequence.
    pub fn max_model_len(&self) -> usize {
        self.engine.max_model_len()
    }

    /// What records say of the model.
    pub fn identity(&self) -> &ModelIdentity {
        self.engine.identity()
    }
}
