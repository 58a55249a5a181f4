//! Runs the model on a batch: the decoder and its paged cache. The only file of the engine that holds tensors.

use std::path::Path;

use anyhow::Result;
use glan_kernels::gpu::Float;
use half::bf16;

use super::memory;
use crate::{
    config::EngineConfig,
    device::{Device, DtypeChoice},
    model::{DecoderConfig, GpuCache, GpuDecoder, InferenceDecoder, KvCache, PagedBatch},
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

/// A decoder where it was loaded.
pub enum AnyDecoder {
    /// On the processor.
    Cpu(InferenceDecoder),
    /// On a GPU, in f32
    GpuF32(GpuDecoder<f32>),
    /// or bf16.
    GpuBf16(GpuDecoder<bf16>),
}

impl AnyDecoder {
    /// Loads a model onto a device; `DtypeChoice::Auto` is f32 on the processor and bf16 on a GPU.
    pub fn load(directory: &Path, device: &Device, dtype: DtypeChoice) -> Result<Self> {
        Ok(match (device, dtype) {
            (Device::Cpu, _) => Self::Cpu(InferenceDecoder::load(directory, &candle_core::Device::Cpu, dtype)?),
            (Device::Gpu(gpu), DtypeChoice::F32) => Self::GpuF32(GpuDecoder::load(directory, gpu)?),
            (Device::Gpu(gpu), _) => Self::GpuBf16(GpuDecoder::load(directory, gpu)?),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        match self {
            Self::Cpu(decoder) => &decoder.config,
            Self::GpuF32(decoder) => &decoder.config,
            Self::GpuBf16(decoder) => &decoder.config,
        }
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.num_parameters(),
            Self::GpuF32(decoder) => decoder.num_parameters(),
            Self::GpuBf16(decoder) => decoder.num_parameters(),
        }
    }
}

/// A decoder with its cache.
pub struct ModelRunner(Box<dyn Runner>);

impl ModelRunner {
    /// Makes the cache, once and for all: room for every seat at full length within a quarter of the processor's memory, or what
    /// the weights leave of a GPU's, and always for one whole sequence.
    pub fn on_device(decoder: AnyDecoder, config: &EngineConfig, max_model_len: usize) -> Result<Self> {
        match decoder {
            AnyDecoder::Cpu(decoder) => Self::new(decoder, config, max_model_len),
            AnyDecoder::GpuF32(decoder) => Self::on_gpu(decoder, config, max_model_len),
            AnyDecoder::GpuBf16(decoder) => Self::on_gpu(decoder, config, max_model_len),
        }
    }

    /// On the processor.
    pub fn new(decoder: InferenceDecoder, config: &EngineConfig, max_model_len: usize) -> Result<Self> {
        let num_blocks =
            checked_blocks(config, max_model_len, cache_token_bytes(&decoder.config), cache_budget_bytes());
        Self::with_blocks(decoder, num_blocks, config.block_size)
    }

    /// A cache of exactly `num_blocks` blocks of `block_size` tokens, on the processor.
    pub fn with_blocks(decoder: InferenceDecoder, num_blocks: usize, block_size: usize) -> Result<Self> {
        let cache = decoder.kv_cache(num_blocks, block_size)?;
        Ok(Self(Box::new(OnCpu { decoder, cache })))
    }

    fn on_gpu<F: Float>(decoder: GpuDecoder<F>, config: &EngineConfig, max_model_len: usize) -> Result<Self> {
        // A tenth is left for activations and logits.
        let budget = decoder.gpu().free_bytes()? / 10 * 9;
        let num_blocks = checked_blocks(config, max_model_len, decoder.cache_token_bytes(), budget);
        let cache = decoder.kv_cache(num_blocks, config.block_size)?;
        Ok(Self(Box::new(OnGpu { decoder, cache })))
    }
}

impl Runner for ModelRunner {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn num_blocks(&self) -> usize {
        self.0.num_blocks()
    }

    fn block_size(&self) -> usize {
        self.0.block_size()
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        self.0.copy_blocks(copies)
    }

    fn forward(&mut self, batch: &PagedBatch, logits: &mut Vec<f32>) -> Result<()> {
        self.0.forward(batch, logits)
    }
}

struct OnCpu {
    decoder: InferenceDecoder,
    cache: KvCache,
}

impl Runner for OnCpu {
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

struct OnGpu<F> {
    decoder: GpuDecoder<F>,
    cache: GpuCache<F>,
}

impl<F: Float> Runner for OnGpu<F> {
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
        *logits = self.decoder.forward_paged(batch, &mut self.cache)?;
        Ok(())
    }
}

/// [`num_cache_blocks`], logged.
fn checked_blocks(config: &EngineConfig, max_model_len: usize, token_bytes: usize, budget_bytes: usize) -> usize {
    let block_bytes = token_bytes * config.block_size;
    let num_blocks = num_cache_blocks(config, max_model_len, block_bytes, budget_bytes);
    tracing::debug!(
        "key/value cache: {num_blocks} blocks of {} tokens, {} MiB",
        config.block_size,
        (num_blocks * block_bytes) >> 20
    );
    num_blocks
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
