//! A toy model whose answers depend on every token that it can read back through a paged cache.
//!
//! Logits are a hash of the whole history, read through the block table: a wrong slot, a stale block or a forgotten
//! token gives other tokens, so an engine that agrees with the naive loop has its tables right.

use anyhow::{Result, bail, ensure};

use super::{Engine, EngineParts, Runner, Vocabulary};
use crate::{config::EngineConfig, language_model::ModelIdentity, model::PagedBatch, tokenizer::toy};

/// A little more than the toy tokenizer has, as real models pad theirs.
pub const VOCAB_SIZE: usize = 280;
/// `<|endoftext|>` of the toy tokenizer.
pub const EOS: u32 = 259;

/// Hashes histories to logits.
#[derive(Debug, Clone, Copy)]
pub struct ToyModel {
    /// Raises the logit of the end-of-sequence token.
    pub eos_bonus: f32,
}

impl ToyModel {
    /// Logits after a history `[V]`.
    pub fn logits(&self, history: &[u32]) -> Vec<f32> {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for &token_id in history {
            hash = (hash ^ u64::from(token_id)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        let mut logits: Vec<f32> = (0..VOCAB_SIZE as u64)
            .map(|token_id| {
                let mixed = (hash ^ token_id.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
                (mixed >> 40) as f32 / (1 << 24) as f32 * 8.0
            })
            .collect();
        logits[EOS as usize] += self.eos_bonus;
        logits
    }
}

/// The toy model behind a cache that remembers which token lies in which slot.
pub struct ToyRunner {
    /// The model.
    pub model: ToyModel,
    /// Per slot: token and position written last.
    slots: Vec<Option<(u32, u32)>>,
    block_size: usize,
    /// The most rows, sequences and logit rows that one batch had.
    pub largest: (usize, usize, usize),
}

impl Runner for ToyRunner {
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn num_blocks(&self) -> usize {
        self.slots.len() / self.block_size
    }

    fn block_size(&self) -> usize {
        self.block_size
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        for &(from, to) in copies {
            let from = from as usize * self.block_size;
            self.slots.copy_within(from..from + self.block_size, to as usize * self.block_size);
        }
        Ok(())
    }

    fn forward(&mut self, batch: &PagedBatch, logits: &mut Vec<f32>) -> Result<()> {
        for row in 0..batch.token_ids.len() {
            self.slots[batch.slot_mapping[row] as usize] = Some((batch.token_ids[row], batch.positions[row]));
        }
        self.largest.0 = self.largest.0.max(batch.token_ids.len());
        self.largest.1 = self.largest.1.max(batch.sequences.len());
        self.largest.2 = self.largest.2.max(batch.logit_rows.len());
        logits.clear();
        let mut first_row = 0;
        for sequence in &batch.sequences {
            let rows = first_row..first_row + sequence.query_len;
            for row in rows.filter(|&row| batch.logit_rows.contains(&(row as u32))) {
                let position = batch.positions[row] as usize;
                ensure!(position < sequence.context_len, "row {row} lies past its context");
                logits.extend(self.model.logits(&self.history(&sequence.block_table, position)?));
            }
            first_row += sequence.query_len;
        }
        Ok(())
    }
}

impl ToyRunner {
    /// The tokens up to `position`, read back through the block table.
    fn history(&self, block_table: &[u32], position: usize) -> Result<Vec<u32>> {
        (0..=position)
            .map(|place| {
                let slot = block_table[place / self.block_size] as usize * self.block_size + place % self.block_size;
                match self.slots[slot] {
                    Some((token_id, written)) if written as usize == place => Ok(token_id),
                    other => bail!("slot {slot} holds {other:?}, not position {place}"),
                }
            })
            .collect()
    }
}

/// What a toy engine is made of.
#[derive(Debug, Clone)]
pub struct Toy {
    pub eos_bonus: f32,
    pub num_blocks: usize,
    pub block_size: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub max_model_len: usize,
    pub enable_prefix_caching: bool,
}

impl Default for Toy {
    fn default() -> Self {
        Self {
            eos_bonus: 1.0,
            num_blocks: 64,
            block_size: 4,
            max_num_seqs: 8,
            max_num_batched_tokens: 32,
            max_model_len: 60,
            enable_prefix_caching: true,
        }
    }
}

impl Toy {
    /// The engine.
    pub fn engine(&self) -> Engine<ToyRunner> {
        let runner = ToyRunner {
            model: ToyModel { eos_bonus: self.eos_bonus },
            slots: vec![None; self.num_blocks * self.block_size],
            block_size: self.block_size,
            largest: (0, 0, 0),
        };
        let config = EngineConfig {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            block_size: self.block_size,
            enable_prefix_caching: self.enable_prefix_caching,
            ..EngineConfig::default()
        };
        let parts = EngineParts {
            vocabulary: Vocabulary { tokenizer: toy::byte_level(None, "<|endoftext|>"), eos_token_ids: vec![EOS] },
            chat_template: None,
            identity: ModelIdentity {
                name: "toy".into(),
                hash: "0".repeat(16),
                num_parameters: 0,
                dtype: "f32".into(),
            },
            prefix_token_id: Some(EOS),
            max_model_len: self.max_model_len,
        };
        Engine::new(runner, &config, parts)
    }
}
