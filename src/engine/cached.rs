//! What the pool holds of a sequence's beginning.

use super::{block_pool::BlockPool, part_index::Part, prefix_hash, scheduler::SchedulerLimits, sequence::Sequence};

/// What is cached of a sequence's beginning.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cached {
    /// Whole blocks.
    pub num_blocks: usize,
    /// How many of these nobody owns.
    pub num_free: usize,
    /// A filled block that begins like the tokens behind them.
    pub part: Option<Part>,
    /// Tokens more that a block has in common which this step is to fill.
    pub num_promised: usize,
}

impl Cached {
    /// Looks a sequence up. Nothing from the first wanted logits on counts: that row has to be computed.
    pub fn find<T>(limits: &SchedulerLimits, pool: &BlockPool, sequence: &mut Sequence<T>) -> Self {
        if !limits.enable_prefix_caching {
            return Self::default();
        }
        let block_size = pool.block_size();
        prefix_hash::extend(&mut sequence.block_hashes, &sequence.token_ids, block_size);
        let (num_blocks, num_free) = pool.longest_cached(&sequence.block_hashes[..sequence.logits_from / block_size]);
        let parent = num_blocks.checked_sub(1).map(|last| sequence.block_hashes[last]);
        let rest = &sequence.token_ids[num_blocks * block_size..sequence.logits_from];
        let (part, promised) = pool.longest_part(parent, &rest[..rest.len().min(block_size)]);
        let num_tokens = |part: Option<Part>| part.map_or(0, |part| part.num_tokens);
        Self { num_blocks, num_free, part, num_promised: num_tokens(promised).saturating_sub(num_tokens(part)) }
    }

    pub fn num_tokens(&self, block_size: usize) -> usize {
        self.num_blocks * block_size + self.part.map_or(0, |part| part.num_tokens)
    }
}
