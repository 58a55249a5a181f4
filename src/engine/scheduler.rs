//! Which sequences take part in the next step, and with how many tokens.
//!
//! Continuous batching with chunked prefill: every step serves the running sequences oldest first (one token of decode,
//! or the next piece of a prompt), then admits waiting ones in the order of their arrival while seats, tokens and blocks
//! last. When the pool is out of blocks the youngest running sequence is preempted: it loses its blocks, goes back to
//! the head of the queue and is computed again later. The oldest is never preempted by others and can always have the
//! whole pool, so every sequence finishes.
//!
//! No token is computed twice while it is cached. A sequence enters with the blocks of its beginning that are in the
//! pool; a block counts as being there from the moment at which a step is to fill it, since a step writes all keys and
//! values before it reads any. A sequence that equals the one before it up to the first wanted logits (the answers of
//! one prompt, the continuations of one context) is its fork: it waits in its seat for the leader's row, takes those
//! behind it too as long as the tokens are the same, then goes on from the leader's blocks. The last one may be half
//! full; whoever writes to it first while others own it takes a copy. A sequence that parts from a cached one within a
//! block copies the block and goes on behind the tokens that they have in common; while that block is only promised by
//! the step, it waits for the next one rather than compute them again.
//!
//! **Source**: Yu et al., "Orca" (2022), iteration-level scheduling; Agrawal et al., "Sarathi-Serve" (2024), chunked
//! prefill; Kwon et al., "PagedAttention" (2023), copy-on-write; names as in vLLM.

use std::{collections::VecDeque, ops::Range};

use super::{block_pool::BlockPool, cached::Cached, prefix_hash, sequence::Sequence};

/// The share of a block that must be promised for a sequence to wait a step for it.
const MIN_PROMISED_SHARE: usize = 4;

/// The bounds of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most sequences that hold a seat.
    pub max_num_seqs: usize,
    /// Most tokens of one step, prefill chunks and decodes together.
    pub max_num_batched_tokens: usize,
    /// Most rows of logits of one step: what bounds their memory, `rows * V` floats.
    pub max_logit_rows: usize,
    /// Whether sequences share the blocks of equal beginnings.
    pub enable_prefix_caching: bool,
}

/// A running sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// Index into [`Scheduler::running`].
    pub index: usize,
    /// Tokens computed in this step; at least 1.
    pub query_len: usize,
}

/// Which of a step's rows of logits a running sequence takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// Index into [`Scheduler::running`].
    pub index: usize,
    /// At least one row.
    pub rows: Range<usize>,
}

/// What was saved and what was lost since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps.
    pub steps: u64,
    /// Prompt tokens whose keys and values were computed, those computed again after a preemption included.
    pub computed_prompt_tokens: u64,
    /// Tokens that were found in the cache, or taken over from a sequence with the same prompt.
    pub prefix_cache_hit_tokens: u64,
    /// How often a sequence lost its blocks to an older one.
    pub preemptions: u64,
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
    /// Sequences that were complete when they came; they need neither seat nor step.
    complete: Vec<Sequence<T>>,
    /// Blocks to be copied before the step that was scheduled last, from and to, in this order.
    copies: Vec<(u32, u32)>,
    counters: Counters,
}

impl<T> Scheduler<T> {
    /// An idle scheduler.
    pub fn new(limits: SchedulerLimits, pool: BlockPool) -> Self {
        assert!(
            limits.max_num_seqs > 0 && limits.max_num_batched_tokens > 0 && limits.max_logit_rows > 0,
            "every limit of the scheduler must be at least 1"
        );
        Self {
            limits,
            pool,
            waiting: VecDeque::new(),
            running: Vec::new(),
            complete: Vec::new(),
            copies: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Queues a sequence. Its id must be larger than all before, and the whole of it must fit the pool.
    pub fn add(&mut self, mut sequence: Sequence<T>) {
        if sequence.is_finished {
            self.complete.push(sequence);
            return;
        }
        debug_assert!(self.pool.blocks_for(sequence.token_ids.len()) <= self.pool.num_blocks());
        let last = self.waiting.back().or(self.running.last());
        debug_assert!(last.is_none_or(|last| last.id < sequence.id));
        if self.limits.enable_prefix_caching
            && let Some(last) = last
            && last.logits_from == sequence.logits_from
            && last.shared_token_ids() == sequence.shared_token_ids()
        {
            sequence.fork_of = last.fork_of.or(Some(last.id));
        }
        self.waiting.push_back(sequence);
    }

    /// Whether one more request would find a seat: requests are pulled only then, so that no backlog piles up here.
    pub fn has_seat(&self) -> bool {
        self.running.len() + self.waiting.len() + self.complete.len() < self.limits.max_num_seqs
    }

    /// Whether nothing waits, runs, or is complete and not taken.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.complete.is_empty()
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

    /// [`BlockPool::keep_idle`].
    pub fn keep_idle(&mut self, max_idle: usize) {
        self.pool.keep_idle(max_idle);
    }

    /// The pool, to look at.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// What was saved and what was lost since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Chooses the next step and allocates its blocks. Empty only when nothing waits or runs; entries ascend by index.
    ///
    /// Before the step is computed the blocks of [`Scheduler::copies`] must be copied.
    pub fn schedule(&mut self) -> Vec<Scheduled> {
        self.copies.clear();
        self.pool.begin_step();
        let mut step = Step {
            scheduled: Vec::new(),
            tokens: self.limits.max_num_batched_tokens,
            logit_rows: self.limits.max_logit_rows,
        };
        let preempted = self.schedule_running(&mut step);
        if !preempted {
            self.admit(&mut step);
        }
        let is_empty = self.waiting.is_empty() && self.running.is_empty();
        debug_assert!(!step.scheduled.is_empty() || is_empty, "a step without work would never end");
        self.counters.steps += u64::from(!is_empty);
        step.scheduled
    }

    /// Blocks to be copied before the step that was scheduled last: from, to, one after the other.
    pub fn copies(&self) -> &[(u32, u32)] {
        &self.copies
    }

    /// Notes that a scheduled step was computed, and says who takes which rows of its logits (ascending by index):
    /// every sequence its own, a fork those of its leader as far as their tokens are equal. From the leader's blocks it
    /// then goes on, unless the fork before it goes on with the same token: then it becomes a fork of that one.
    pub fn advance(&mut self, scheduled: &[Scheduled]) -> Vec<Advance> {
        let mut advances = Vec::with_capacity(scheduled.len());
        let mut num_rows = 0;
        for share in scheduled {
            let sequence = &mut self.running[share.index];
            let num_wanted = sequence.logit_positions(share.query_len).len();
            sequence.num_computed_tokens += share.query_len;
            if num_wanted == 0 {
                continue;
            }
            let rows = num_rows..num_rows + num_wanted;
            num_rows = rows.end;
            let first_row = rows.start;
            advances.push(Advance { index: share.index, rows });
            let (older, younger) = self.running.split_at_mut(share.index + 1);
            let leader = &older[share.index];
            let is_fork = |fork: &&mut Sequence<T>| {
                fork.fork_of == Some(leader.id) && fork.block_table.is_empty() && fork.logits_from == leader.logits_from
            };
            // Who went on before: its id, from where, and with which token. At first the leader itself, if its chunk
            // ended within what it is to compute.
            let goes_on =
                |sequence: &Sequence<T>, at: usize| sequence.token_ids.get(at).map(|&token_id| (at, token_id));
            let mut before = goes_on(leader, leader.num_computed_tokens).map(|place| (leader.id, place));
            for (fork, index) in younger.iter_mut().take_while(is_fork).zip(share.index + 1..) {
                let num_shared = num_common(leader, fork);
                advances.push(Advance { index, rows: first_row..first_row + num_shared - fork.logits_from });
                let place = goes_on(fork, num_shared);
                if let Some((id, _)) = before.filter(|&(_, other)| place == Some(other)) {
                    fork.fork_of = Some(id);
                    continue;
                }
                before = place.map(|place| (fork.id, place));
                fork.block_table = self.pool.share_table(&leader.block_table[..self.pool.blocks_for(num_shared)]);
                fork.num_computed_tokens = num_shared;
                fork.fork_of = None;
                self.counters.prefix_cache_hit_tokens += num_shared as u64;
            }
        }
        advances
    }

    /// Gives every running sequence its share, oldest first; returns whether one lost its blocks.
    fn schedule_running(&mut self, step: &mut Step) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() {
            if !self.is_held(index) {
                if self.running[index].block_table.is_empty() {
                    self.find_cached(index);
                }
                let query_len = step.share(&self.running[index]);
                if query_len > 0 {
                    while !self.grow(index, query_len) {
                        preempted = true;
                        self.preempt_youngest();
                        if index == self.running.len() {
                            return true;
                        }
                    }
                    self.take(step, index, query_len);
                }
            }
            index += 1;
        }
        preempted
    }

    /// Whether a fork still waits for its leader's row. One whose leader has gone or gone on leads the forks behind it.
    fn is_held(&mut self, index: usize) -> bool {
        let Some(leader) = self.running[index].fork_of else { return false };
        if self.is_ahead(leader, self.running[index].logits_from) {
            return true;
        }
        let (older, younger) = self.running.split_at_mut(index + 1);
        older[index].fork_of = None;
        follow(leader, older[index].id, younger.iter_mut().chain(&mut self.waiting));
        false
    }

    /// Whether the sequence `leader` runs and is yet to be given the logits of `position`.
    fn is_ahead(&self, leader: u64, position: usize) -> bool {
        let found = self.running.binary_search_by_key(&leader, |sequence| sequence.id);
        found.is_ok_and(|at| self.running[at].logits_from == position && !self.running[at].is_finished)
    }

    /// Seats waiting sequences in order while seats, tokens and blocks last.
    fn admit(&mut self, step: &mut Step) {
        while self.running.len() < self.limits.max_num_seqs {
            let Some(mut next) = self.waiting.pop_front() else { break };
            if next.fork_of.is_some_and(|leader| self.is_ahead(leader, next.logits_from)) {
                self.running.push(next);
                continue;
            }
            if let Some(leader) = next.fork_of.take() {
                follow(leader, next.id, self.waiting.iter_mut());
            }
            let cached = Cached::find(&self.limits, &self.pool, &mut next);
            if cached.num_promised >= self.pool.block_size().div_ceil(MIN_PROMISED_SHARE) {
                // It waits in its seat for the block that this step fills, and others work meanwhile.
                self.running.push(next);
                continue;
            }
            if !self.enter(&mut next, &cached, step) {
                self.waiting.push_front(next);
                break;
            }
            let query_len = step.share(&next);
            self.running.push(next);
            let index = self.running.len() - 1;
            let fits = self.grow(index, query_len);
            debug_assert!(fits, "free blocks were counted when it entered");
            self.take(step, index, query_len);
        }
    }

    /// Gives a waiting sequence what is cached of its beginning, if it can take part in the step.
    fn enter(&mut self, sequence: &mut Sequence<T>, cached: &Cached, step: &Step) -> bool {
        // A sequence enters only when all that is known of it fits, or it would soon be thrown out again.
        let num_missing = self.pool.blocks_for(sequence.token_ids.len()) - cached.num_blocks;
        if num_missing > self.pool.num_free() - cached.num_free {
            return false;
        }
        sequence.num_computed_tokens = cached.num_tokens(self.pool.block_size());
        if step.share(sequence) == 0 {
            sequence.num_computed_tokens = 0;
            return false;
        }
        self.share(sequence, cached);
        true
    }

    /// The same for a sequence that has a seat, where it waited as a fork.
    fn find_cached(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        let cached = Cached::find(&self.limits, &self.pool, &mut sequence);
        self.share(&mut sequence, &cached);
        self.running.insert(index, sequence);
    }

    /// Gives a sequence without blocks those that were found for it, and a copy of the last when only a part of it is
    /// the same.
    fn share(&mut self, sequence: &mut Sequence<T>, cached: &Cached) {
        let whole = cached.num_blocks * self.pool.block_size();
        self.pool.share_cached(&mut sequence.block_table, &sequence.block_hashes[..cached.num_blocks]);
        sequence.num_computed_tokens = whole;
        if let Some(part) = cached.part
            && self.pool.grow(&mut sequence.block_table, whole + part.num_tokens)
        {
            sequence.num_computed_tokens += part.num_tokens;
            self.copies.push((part.block, sequence.block_table[cached.num_blocks]));
        }
        self.counters.prefix_cache_hit_tokens += sequence.num_computed_tokens as u64;
    }

    /// Sees to room for the next `query_len` tokens that nobody else owns. All or nothing.
    fn grow(&mut self, index: usize, query_len: usize) -> bool {
        let sequence = &mut self.running[index];
        let end = sequence.num_computed_tokens + query_len;
        let first = sequence.num_computed_tokens / self.pool.block_size();
        let shared = sequence.block_table.get_mut(first).filter(|block| self.pool.num_owners(**block) > 1);
        let num_missing = usize::from(shared.is_some());
        if let Some(block) = shared {
            let more = self.pool.blocks_for(end).saturating_sub(first + 1);
            if num_missing + more > self.pool.num_free() {
                return false;
            }
            let from = *block;
            self.pool.split_off(block);
            self.copies.push((from, *block));
        } else if let Some(&block) = sequence.block_table.get(first) {
            // It may be known as what its leader wrote behind the common part.
            self.pool.forget_from(block, sequence.num_computed_tokens % self.pool.block_size());
        }
        self.pool.grow(&mut sequence.block_table, end)
    }

    /// Enters a share into the step. Its full blocks are known from here on: who comes later in this step may use them.
    fn take(&mut self, step: &mut Step, index: usize, query_len: usize) {
        let sequence = &mut self.running[index];
        step.take(index, query_len, sequence);
        let (start, end) = (sequence.num_computed_tokens, sequence.num_computed_tokens + query_len);
        let prompt = start.min(sequence.num_prompt_tokens)..end.min(sequence.num_prompt_tokens);
        self.counters.computed_prompt_tokens += prompt.len() as u64;
        let block_size = self.pool.block_size();
        let ends_prompt = end == sequence.num_prompt_tokens;
        if self.limits.enable_prefix_caching && (ends_prompt || start / block_size < end / block_size) {
            prefix_hash::extend(&mut sequence.block_hashes, &sequence.token_ids, block_size);
            let parent = |block: usize| block.checked_sub(1).map(|before| sequence.block_hashes[before]);
            for block in start / block_size..end / block_size {
                let token_ids = &sequence.token_ids[block * block_size..(block + 1) * block_size];
                self.pool.remember(sequence.block_table[block], sequence.block_hashes[block], parent(block), token_ids);
            }
            if ends_prompt && !end.is_multiple_of(block_size) {
                let last = end / block_size;
                let token_ids = &sequence.token_ids[last * block_size..end];
                self.pool.remember_part(sequence.block_table[last], parent(last), token_ids);
            }
        }
    }

    fn preempt_youngest(&mut self) {
        let mut youngest = self.running.pop().expect("only called while a sequence runs");
        self.pool.release(&mut youngest.block_table);
        youngest.reset_computed();
        self.counters.preemptions += 1;
        self.waiting.push_front(youngest);
    }

    /// Hands finished sequences out and takes their blocks back, keeping the order of the rest.
    pub fn take_finished(&mut self) -> Vec<Sequence<T>> {
        let mut finished = std::mem::take(&mut self.complete);
        for mut sequence in self.running.extract_if(.., |sequence| sequence.is_finished) {
            self.pool.release(&mut sequence.block_table);
            finished.push(sequence);
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
        let num_before = self.waiting.len() + self.complete.len();
        self.waiting.retain(|sequence| sequence.id != id);
        self.complete.retain(|sequence| sequence.id != id);
        self.waiting.len() + self.complete.len() < num_before
    }

    /// Drops everything, as after an error; all blocks come home. When something was under way the cached blocks are
    /// forgotten too: the last step may not have filled those that it promised.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.complete.clear();
        if self.running.is_empty() {
            return;
        }
        for mut sequence in self.running.drain(..) {
            self.pool.release(&mut sequence.block_table);
        }
        self.pool.forget_all();
    }
}

/// How many tokens of a fork its leader has computed; at least those up to the first wanted logits.
fn num_common<T>(leader: &Sequence<T>, fork: &Sequence<T>) -> usize {
    let from = fork.logits_from + 1;
    let more = leader.token_ids[from..leader.num_computed_tokens].iter().zip(&fork.token_ids[from..]);
    from + more.take_while(|(one, other)| one == other).count()
}

/// Makes the next of `sequences` that followed `old` follow `new`.
fn follow<'a, T: 'a>(old: u64, new: u64, sequences: impl Iterator<Item = &'a mut Sequence<T>>) {
    sequences.take_while(|sequence| sequence.fork_of == Some(old)).for_each(|sequence| sequence.fork_of = Some(new));
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
