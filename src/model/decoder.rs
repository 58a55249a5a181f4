//! The decoder's inference face.

use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};

use super::DecoderConfig;
use crate::device::DtypeChoice;

/// A decoder-only transformer.
pub struct Decoder {
    /// Its shape.
    pub config: DecoderConfig,
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
    /// Loads weights from a Hugging Face directory.
    pub fn load(directory: &Path, device: &Device, dtype: DtypeChoice) -> Result<Self> {
        let _ = (device, dtype);
        Ok(Self { config: DecoderConfig::load(directory)? })
    }

    /// An empty cache of `num_blocks` blocks for this model.
    pub fn kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache> {
        Ok(KvCache { layers: Vec::new(), block_size, num_blocks })
    }

    /// One step over the paged cache: writes the rows' keys and values, attends, and returns the logits of
    /// `batch.logit_rows` as f32, `[rows, V]` row-major on the host.
    ///
    /// A row's bits depend only on its sequence's tokens up to it, never on the other rows or on where a prompt is cut.
    pub fn forward_paged(&self, batch: &PagedBatch, cache: &mut KvCache) -> Result<Vec<f32>> {
        let _ = (batch, cache);
        Ok(Vec::new())
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        0
    }
}
