//! Runs the model on a batch: the decoder and its paged cache. The only file of the engine that holds tensors.

use anyhow::Result;

use super::memory;
use crate::{
    config::EngineConfig,
    model::{DecoderConfig, InferenceDecoder, KvCache, PagedBatch},
};

/// Something that turns a batch into logits. [`ModelRunner`] in earnest, a toy with a checkable cache in the tests.
pub trait Runner: Send {
    /// `V`
    fn vocab_size(&self) -> usize;

    /// Blocks of the cache (`P`).
    fn num_blocks(&self) -> usize;

    /// Tokens per block (`Z`).
    fn block_size(&self) -> usize;

    /// Copies whole blocks of the cache, from and to, one after the other.
    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()>;

    /// One step: writes the rows' keys and values, and leaves the logits of `batch.logit_rows` in `logits` in place of
    /// those of the step before, whose memory is used again.
    ///
    /// **Shapes**: `[rows, V]`, row-major.
    fn forward(&mut self, batch: &PagedBatch, logits: &mut Vec<f32>) -> Result<()>;
}

/// A decoder with its cache.
pub struct ModelRunner {
    decoder: InferenceDecoder,
    cache: KvCache,
}

impl ModelRunner {
    /// Makes the cache, once and for all: room for every seat at full length within a quarter of the memory, and always
    /// for one whole sequence.
    pub fn new(decoder: InferenceDecoder, config: &EngineConfig, max_model_len: usize) -> Result<Self> {
        let block_bytes = cache_token_bytes(&decoder.config) * config.block_size;
        let num_blocks = num_cache_blocks(config, max_model_len, block_bytes, cache_budget_bytes());
        tracing::debug!(
            "key/value cache: {num_blocks} blocks of {} tokens, {} MiB",
            config.block_size,
            (num_blocks * block_bytes) >> 20
        );
        Self::with_blocks(decoder, num_blocks, config.block_size)
    }

    /// A cache of exactly `num_blocks` blocks of `block_size` tokens.
    pub fn with_blocks(decoder: InferenceDecoder, num_blocks: usize, block_size: usize) -> Result<Self> {
        let cache = decoder.kv_cache(num_blocks, block_size)?;
        Ok(Self { decoder, cache })
    }

    /// The decoder.
    pub fn decoder(&self) -> &InferenceDecoder {
        &self.decoder
    }
}

impl Runner for ModelRunner {
    fn vocab_size(&self) -> usize {
        self.decoder.config.vocab_size
    }

    fn num_blocks(&self) -> usize {
        self.cache.num_blocks
    }

    fn block_size(&self) -> usize {
        self.cache.block_size
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        self.cache.copy_blocks(copies)
    }

    fn forward(&mut self, batch: &PagedBatch, logits: &mut Vec<f32>) -> Result<()> {
        self.decoder.forward_paged_into(batch, &mut self.cache, logits)
    }
}

/// Bytes of one token in the cache: keys and values in every layer, in f32.
pub fn cache_token_bytes(config: &DecoderConfig) -> usize {
    2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size_of::<f32>()
}

/// A quarter of the memory: the weights, the logits and whatever else runs on a workstation share the rest.
fn cache_budget_bytes() -> usize {
    const UNKNOWN_MEMORY_BYTES: u64 = 8 << 30;
    usize::try_from(memory::total_bytes().unwrap_or(UNKNOWN_MEMORY_BYTES) / 4).unwrap_or(usize::MAX)
}

/// Blocks of the cache: enough for `max_num_seqs` sequences of `max_model_len` tokens, bounded by the budget, but never
/// less than one whole sequence. A small pool costs preemptions, never an answer.
fn num_cache_blocks(config: &EngineConfig, max_model_len: usize, block_bytes: usize, budget_bytes: usize) -> usize {
    let one_sequence = max_model_len.div_ceil(config.block_size);
    let wanted = one_sequence.saturating_mul(config.max_num_seqs);
    // Slots are 32-bit numbers.
    let addressable = u32::MAX as usize / config.block_size;
    wanted.min(budget_bytes / block_bytes.max(1)).max(one_sequence).min(addressable).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_holds_all_seats_within_the_budget_and_always_one_sequence() {
        let config = EngineConfig { max_num_seqs: 4, block_size: 16, ..EngineConfig::default() };
        assert_eq!(num_cache_blocks(&config, 100, 1000, usize::MAX), 4 * 7);
        assert_eq!(num_cache_blocks(&config, 100, 1000, 10_000), 10);
        assert_eq!(num_cache_blocks(&config, 100, 1000, 10), 7);
    }
}
