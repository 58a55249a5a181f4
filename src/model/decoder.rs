//! The decoder's inference face: weights, tables, and one step over the paged cache.

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use glan_kernels::{attention::PagedRows, embedding, matmul::linear, rms_norm, to_vec};
use rand::Rng;

use super::{
    DecoderConfig, Layout, Weights,
    layer::{self, Context, Pass},
    loader, peft, rope,
};
use crate::{device::DtypeChoice, seed};

/// A decoder-only transformer.
pub struct Decoder {
    /// Its shape.
    pub config: DecoderConfig,
    /// Where its tensors lie.
    pub layout: Layout,
    /// Its parameters.
    pub weights: Weights,
    pub(super) cos: Tensor, // [max positions, D/2]
    pub(super) sin: Tensor, // [max positions, D/2]
}

/// Keys and values of all layers, in blocks of `block_size` tokens (`Z`).
///
/// Slot `block * Z + offset` holds one token. The tensors are made once; block 0 is an ordinary block.
pub struct KvCache {
    /// Per layer: keys and values, each `[P * Z, K * D]` in f32.
    pub layers: Vec<(Tensor, Tensor)>,
    /// `Z`
    pub block_size: usize,
    /// `P`
    pub num_blocks: usize,
}

/// One sequence's share of a step.
#[derive(Debug, Clone)]
pub struct PagedSequence {
    /// How many rows of the batch are this sequence's (a prefill chunk, or 1 for decode). Rows of a sequence are
    /// consecutive and follow the order of `PagedBatch::sequences`.
    pub query_len: usize,
    /// Tokens in the cache after this step, the new ones included.
    pub context_len: usize,
    /// Its blocks, in order of position.
    pub block_table: Vec<u32>,
}

/// Everything that one forward pass of the engine needs. Flat: `N` rows, no padding.
#[derive(Debug, Clone, Default)]
pub struct PagedBatch {
    /// `[N]`
    pub token_ids: Vec<u32>,
    /// `[N]` position of each row in its sequence.
    pub positions: Vec<u32>,
    /// `[N]` cache slot into which each row's key and value go.
    pub slot_mapping: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub sequences: Vec<PagedSequence>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl Decoder {
    /// Loads weights from a Hugging Face directory, or from that of a PEFT adapter (with its base, merged).
    ///
    /// **Errors**: a missing, truncated or ill-shaped file, by name.
    pub fn load(directory: &Path, device: &Device, dtype: DtypeChoice) -> Result<Self> {
        if !device.is_cpu() {
            bail!("this build computes on the CPU only");
        }
        // The directory of a PEFT adapter stands for its base with the adapter merged.
        let base = peft::adapter_base(directory)?;
        let weights = base.as_deref().unwrap_or(directory);
        let config = DecoderConfig::load(weights)?;
        let layout = Layout::new(&config);
        let arena = loader::load_arena(weights, &layout, dtype)?;
        if base.is_some() {
            peft::load_adapter(directory, &config)?.merge_into(&config, &layout, &arena)?;
        }
        Self::from_arena(config, layout, arena)
    }

    /// Random weights: normal with the configuration's `initializer_range` (residual projections divided by
    /// `sqrt(2L)`, as GPT-2), norms 1, biases 0. Every tensor has its own stream of the seed.
    pub fn random(config: DecoderConfig, run_seed: u64) -> Result<Self> {
        let layout = Layout::new(&config);
        let mut values = vec![0f32; layout.len];
        for tensor in layout.tensors.iter() {
            let values = &mut values[tensor.offset..tensor.offset + tensor.len()];
            if tensor.name.ends_with("norm.weight") {
                values.fill(1.0);
            } else if tensor.decays() {
                let residual = tensor.name.contains("o_proj") || tensor.name.contains("down_proj");
                let depth = if residual { (2.0 * config.num_hidden_layers as f64).sqrt() } else { 1.0 };
                fill_normal(
                    values,
                    config.initializer_range / depth,
                    &mut seed::stream(run_seed, "init", &tensor.name),
                );
            }
        }
        let arena = Tensor::from_vec(values, layout.len, &Device::Cpu)?;
        Self::from_arena(config, layout, arena)
    }

    fn from_arena(config: DecoderConfig, layout: Layout, arena: Tensor) -> Result<Self> {
        let (cos, sin) = rope::tables(&config, config.max_position_embeddings)?;
        let weights = Weights::new(&config, &layout, arena)?;
        Ok(Self { config, layout, weights, cos, sin })
    }

    /// An empty cache of `num_blocks` blocks for this model.
    pub fn kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache> {
        let shape = (num_blocks * block_size, self.config.num_key_value_heads * self.config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let layers =
            (0..self.config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<Vec<_>>>()?;
        Ok(KvCache { layers, block_size, num_blocks })
    }

    /// One step over the paged cache: writes the rows' keys and values, attends, and returns the logits of
    /// `batch.logit_rows` as f32, `[rows, V]` row-major on the host.
    ///
    /// A row's bits depend only on its sequence's tokens up to it, never on the other rows or on where a prompt is cut.
    pub fn forward_paged(&self, batch: &PagedBatch, cache: &mut KvCache) -> Result<Vec<f32>> {
        let sequences: Vec<PagedRows> = batch
            .sequences
            .iter()
            .map(|sequence| PagedRows {
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                block_table: &sequence.block_table,
            })
            .collect();
        let pass = self.pass(&batch.positions);
        let mut x = embedding::forward(&self.weights.embed_tokens, &batch.token_ids)?; // [N, C]
        for (i, weights) in self.weights.layers.iter().enumerate() {
            let context = Context::Paged {
                keys: &cache.layers[i].0,
                values: &cache.layers[i].1,
                slots: &batch.slot_mapping,
                sequences: &sequences,
                block_size: cache.block_size,
            };
            x = layer::forward(&x, weights, &self.config.heads(i), &pass, &context, None)?;
        }
        if batch.logit_rows.is_empty() {
            return Ok(Vec::new());
        }
        let x = embedding::forward(&x, &batch.logit_rows)?; // [rows, C]
        let (x, _) = rms_norm::forward(&x, &self.weights.norm, self.config.rms_norm_eps)?;
        Ok(to_vec(&linear(&x, &self.weights.lm_head, None, None)?)?)
    }

    pub(super) fn pass<'a>(&'a self, positions: &'a [u32]) -> Pass<'a> {
        Pass { positions, cos: &self.cos, sin: &self.sin, eps: self.config.rms_norm_eps }
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.layout.len
    }
}

/// Box-Muller normal numbers.
fn fill_normal(values: &mut [f32], deviation: f64, random: &mut impl Rng) {
    for pair in values.chunks_mut(2) {
        let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt() * deviation;
        let (sin, cos) = (random.random::<f64>() * std::f64::consts::TAU).sin_cos();
        for (value, part) in pair.iter_mut().zip([cos, sin]) {
            *value = (radius * part) as f32;
        }
    }
}
