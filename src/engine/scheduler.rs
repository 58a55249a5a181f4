//! Which sequences take part in the next step, and with how many tokens.
//!
//! Continuous batching with chunked prefill: every step serves the running sequences oldest first (one token of decode,
//! or the next piece of a prompt), then admits waiting ones in the order of their arrival while seats, tokens and blocks
//! last. When the pool is out of blocks the youngest running sequence is preempted: it loses its blocks, goes back to
//! the head of the queue and is computed again later. The oldest is never preempted by others and can always have the
//! whole pool, so every sequence finishes.
//!
//! **Source**: Yu et al., "Orca" (2022), iteration-level scheduling; Agrawal et al., "Sarathi-Serve" (2024), chunked
//! prefill; names as in vLLM.

use std::collections::VecDeque;

use super::{block_pool::BlockPool, sequence::Sequence};

/// The bounds of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most sequences that hold a seat.
    pub max_num_seqs: usize,
    /// Most tokens of one step, prefill chunks and decodes together.
    pub max_num_batched_tokens: usize,
    /// Most rows of logits of one step: what bounds their memory, `rows * V` floats.
    pub max_logit_rows: usize,
}

/// A running sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// Index into [`Scheduler::running`].
    pub index: usize,
    /// Tokens computed in this step; at least 1.
    pub query_len: usize,
}

/// The queue, the seats and the pool.
#[derive(Debug)]
pub struct Scheduler<T> {
    limits: SchedulerLimits,
    pool: BlockPool,
    /// Sequences without blocks, in order of arrival, all younger than the running ones.
    waiting: VecDeque<Sequence<T>>,
    /// Sequences with a seat, oldest first.
    running: Vec<Sequence<T>>,
    num_preemptions: u64,
}

impl<T> Scheduler<T> {
    /// An idle scheduler.
    pub fn new(limits: SchedulerLimits, pool: BlockPool) -> Self {
        assert!(
            limits.max_num_seqs > 0 && limits.max_num_batched_tokens > 0 && limits.max_logit_rows > 0,
            "every limit of the scheduler must be at least 1"
        );
        Self { limits, pool, waiting: VecDeque::new(), running: Vec::new(), num_preemptions: 0 }
    }

    /// Queues a sequence. Its id must be larger than all before, and the whole of it must fit the pool.
    pub fn add(&mut self, sequence: Sequence<T>) {
        debug_assert!(self.pool.blocks_for(sequence.token_ids.len()) <= self.pool.num_blocks());
        debug_assert!(self.waiting.back().or(self.running.last()).is_none_or(|last| last.id < sequence.id));
        self.waiting.push_back(sequence);
    }

    /// Whether one more request would find a seat: requests are pulled only then, so that no backlog piles up here.
    pub fn has_seat(&self) -> bool {
        self.running.len() + self.waiting.len() < self.limits.max_num_seqs
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The sequences with a seat, oldest first.
    pub fn running(&self) -> &[Sequence<T>] {
        &self.running
    }

    /// The same, to be advanced after a forward pass.
    pub fn running_mut(&mut self) -> &mut [Sequence<T>] {
        &mut self.running
    }

    /// Sequences that hold no seat: not begun, or preempted.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The pool, to look at.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// How often a sequence lost its blocks to an older one.
    pub fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    /// Chooses the next step and allocates its blocks. Empty only when idle; entries ascend by index.
    pub fn schedule(&mut self) -> Vec<Scheduled> {
        let mut step = Step {
            scheduled: Vec::new(),
            tokens: self.limits.max_num_batched_tokens,
            logit_rows: self.limits.max_logit_rows,
        };
        let preempted = self.schedule_running(&mut step);
        if !preempted {
            self.admit(&mut step);
        }
        debug_assert!(!step.scheduled.is_empty() || self.is_idle(), "a step without work would never end");
        step.scheduled
    }

    /// Gives every running sequence its share, oldest first; returns whether one lost its blocks.
    fn schedule_running(&mut self, step: &mut Step) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() {
            let query_len = step.share(&self.running[index]);
            if query_len > 0 {
                while !self.grow(index, query_len) {
                    preempted = true;
                    self.preempt_youngest();
                    if index == self.running.len() {
                        return true;
                    }
                }
                step.take(index, query_len, &self.running[index]);
            }
            index += 1;
        }
        preempted
    }

    /// Seats waiting sequences in order while seats, tokens and blocks last.
    fn admit(&mut self, step: &mut Step) {
        while self.running.len() < self.limits.max_num_seqs {
            let Some(next) = self.waiting.front() else { break };
            let query_len = step.share(next);
            // A sequence enters only when all that is known of it fits, or it would soon be thrown out again.
            if query_len == 0 || self.pool.blocks_for(next.token_ids.len()) > self.pool.num_free() {
                break;
            }
            let next = self.waiting.pop_front().expect("looked at just above");
            self.running.push(next);
            let index = self.running.len() - 1;
            let fits = self.grow(index, query_len);
            debug_assert!(fits, "free blocks were counted just above");
            step.take(index, query_len, &self.running[index]);
        }
    }

    fn grow(&mut self, index: usize, query_len: usize) -> bool {
        let sequence = &mut self.running[index];
        self.pool.grow(&mut sequence.block_table, sequence.num_computed_tokens + query_len)
    }

    fn preempt_youngest(&mut self) {
        let mut youngest = self.running.pop().expect("only called while a sequence runs");
        self.pool.release(&mut youngest.block_table);
        youngest.reset_computed();
        self.num_preemptions += 1;
        self.waiting.push_front(youngest);
    }

    /// Hands finished sequences out and takes their blocks back, keeping the order of the rest.
    pub fn take_finished(&mut self) -> Vec<Sequence<T>> {
        let mut finished: Vec<_> = self.running.extract_if(.., |sequence| sequence.is_finished).collect();
        for sequence in &mut finished {
            self.pool.release(&mut sequence.block_table);
        }
        finished
    }

    /// Drops one sequence, whether it waits or runs; its blocks come home. `false` when it is not here (any more).
    ///
    /// Between steps only: the shares of [`Scheduler::schedule`] are indices into the running sequences.
    pub fn cancel(&mut self, id: u64) -> bool {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            self.pool.release(&mut sequence.block_table);
            return true;
        }
        let waiting = self.waiting.iter().position(|sequence| sequence.id == id);
        waiting.and_then(|index| self.waiting.remove(index)).is_some()
    }

    /// Drops everything, as after an error; all blocks come home.
    pub fn clear(&mut self) {
        self.waiting.clear();
        for mut sequence in self.running.drain(..) {
            self.pool.release(&mut sequence.block_table);
        }
    }
}

/// What is left of a step's budgets while it is put together.
struct Step {
    scheduled: Vec<Scheduled>,
    tokens: usize,
    logit_rows: usize,
}

impl Step {
    /// Tokens that a sequence may compute within what is left.
    fn share<T>(&self, sequence: &Sequence<T>) -> usize {
        let without_logits = sequence.logits_from.saturating_sub(sequence.num_computed_tokens);
        sequence.num_uncomputed_tokens().min(self.tokens).min(without_logits + self.logit_rows)
    }

    fn take<T>(&mut self, index: usize, query_len: usize, sequence: &Sequence<T>) {
        self.tokens -= query_len;
        self.logit_rows -= sequence.logit_positions(query_len).len();
        self.scheduled.push(Scheduled { index, query_len });
    }
}
