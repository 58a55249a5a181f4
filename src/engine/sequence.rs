//! One sequence: its tokens, how far the cache holds them, and which blocks it owns.
//!
//! The scheduler moves sequences about without knowing what they are for; what the engine keeps about a sequence (its
//! sampler, its stop strings, its scores) rides along as `task`. No tensors here.

use std::ops::Range;

use super::prefix_hash::BlockHash;

/// A prompt and what was added to it.
#[derive(Debug, Clone)]
pub struct Sequence<T> {
    /// Order of arrival; never reused within a run.
    pub id: u64,
    /// Prompt and output.
    pub token_ids: Vec<u32>,
    /// How many of them are the prompt's.
    pub num_prompt_tokens: usize,
    /// How many of them have their keys and values in the cache. Never more than `block_table` has room for.
    pub num_computed_tokens: usize,
    /// Cache blocks in order of position.
    pub block_table: Vec<u32>,
    /// Names of the full blocks of `token_ids`, as far as they were asked for.
    pub block_hashes: Vec<BlockHash>,
    /// An older sequence with the same tokens up to the first wanted logits, for whose first row this one waits.
    pub fork_of: Option<u64>,
    /// First position whose logits are still wanted: the last token of a generation, the scored part of a scoring.
    pub logits_from: usize,
    /// Whether its result is complete; the scheduler then lets it go.
    pub is_finished: bool,
    /// What the engine keeps about it.
    pub task: T,
}

impl<T> Sequence<T> {
    /// A sequence of which nothing is computed yet.
    pub fn new(id: u64, prompt: Vec<u32>, logits_from: usize, task: T) -> Self {
        debug_assert!(logits_from < prompt.len(), "a sequence must want at least one row of logits");
        Self {
            id,
            num_prompt_tokens: prompt.len(),
            token_ids: prompt,
            num_computed_tokens: 0,
            block_table: Vec::new(),
            block_hashes: Vec::new(),
            fork_of: None,
            logits_from,
            is_finished: false,
            task,
        }
    }

    /// The tokens that the first wanted row of logits depends on: what forks have in common.
    pub fn shared_token_ids(&self) -> &[u32] {
        &self.token_ids[..=self.logits_from]
    }

    /// Tokens that wait for their keys and values: the rest of a prefill, or 1 in decode.
    pub fn num_uncomputed_tokens(&self) -> usize {
        self.token_ids.len() - self.num_computed_tokens
    }

    /// The generated tokens.
    pub fn output_token_ids(&self) -> &[u32] {
        &self.token_ids[self.num_prompt_tokens..]
    }

    /// Adds a generated token; its logits are the next ones wanted.
    pub fn push(&mut self, token_id: u32) {
        self.token_ids.push(token_id);
        self.logits_from = self.token_ids.len() - 1;
    }

    /// Positions among the next `query_len` uncomputed tokens whose logits are wanted.
    pub fn logit_positions(&self, query_len: usize) -> Range<usize> {
        let end = self.num_computed_tokens + query_len;
        self.logits_from.clamp(self.num_computed_tokens, end)..end
    }

    /// Takes the task out.
    pub fn into_task(self) -> (Sequence<()>, T) {
        let rest = Sequence {
            id: self.id,
            token_ids: self.token_ids,
            num_prompt_tokens: self.num_prompt_tokens,
            num_computed_tokens: self.num_computed_tokens,
            block_table: self.block_table,
            block_hashes: self.block_hashes,
            fork_of: self.fork_of,
            logits_from: self.logits_from,
            is_finished: self.is_finished,
            task: (),
        };
        (rest, self.task)
    }

    /// Forgets everything computed; the caller has taken the blocks back.
    pub fn reset_computed(&mut self) {
        debug_assert!(self.block_table.is_empty(), "blocks must go home before a sequence is reset");
        self.num_computed_tokens = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_wanted_only_where_a_chunk_reaches_the_last_token() {
        let mut sequence = Sequence::new(0, vec![5; 10], 9, ());
        assert!(sequence.logit_positions(4).is_empty());
        sequence.num_computed_tokens = 8;
        assert_eq!(sequence.logit_positions(2), 9..10);
        sequence.num_computed_tokens = 10;
        sequence.push(7);
        assert_eq!(sequence.num_uncomputed_tokens(), 1);
        assert_eq!(sequence.logit_positions(1), 10..11);
        assert_eq!(sequence.output_token_ids(), [7]);
    }

    #[test]
    fn a_scored_tail_is_wanted_across_chunks() {
        let mut sequence = Sequence::new(0, vec![5; 10], 3, ());
        assert_eq!(sequence.logit_positions(6), 3..6);
        sequence.num_computed_tokens = 6;
        assert_eq!(sequence.logit_positions(4), 6..10);
    }
}
