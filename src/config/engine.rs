//! `[engine]`: how batched inference uses the machine. Nothing here may change a record on the CPU in f32.

use serde::{Deserialize, Serialize};

/// Continuous batching over a paged cache (vLLM's names).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Most sequences that are decoded together.
    pub max_num_seqs: usize,
    /// Most tokens of one step, prefill chunks and decodes together.
    pub max_num_batched_tokens: usize,
    /// Tokens per block of the key/value cache.
    pub block_size: usize,
    /// Whether requests with the same beginning share its keys and values, and are served next to one another.
    pub enable_prefix_caching: bool,
    /// One fixed order of summation whatever the batch. Always on for f32 on the CPU.
    pub batch_invariant: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            block_size: 16,
            enable_prefix_caching: true,
            batch_invariant: true,
        }
    }
}
