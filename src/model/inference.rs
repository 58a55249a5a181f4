//! The decoder for inference: packed weights, and one step over the paged cache.
//!
//! Its arithmetic is that of [`super::layer`], but nothing is kept for a backward, and the matrices are packed once at
//! load ([`glan_kernels::matmul::PackedWeight`]) in f32 or bf16. Activations, norms, biases and the cache are f32.

use std::{borrow::Cow, path::Path};

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use glan_kernels::{
    attention::{self, Heads, PagedRows, Rotary},
    embedding,
    matmul::{Input, PackedWeight, WeightDtype},
};

use super::{
    Decoder, DecoderConfig, Layout, NamedTensor,
    loader::{self, TensorSource},
    peft, rope as rope_tables,
};
use crate::device::DtypeChoice;

/// Rows that go through the layers together at most: beyond, the activations of a layer leave the processor's cache and
/// the allocator's, and reading the weights once more costs less than that.
const MAX_ROWS: usize = 512;

/// Keys and values of all layers, in blocks of `block_size` tokens (`Z`).
///
/// Slot `block * Z + offset` holds one token; how its numbers lie within the block is the kernels' affair. The tensors are
/// made once; block 0 is an ordinary block.
pub struct KvCache {
    /// Per layer: keys and values, each `[P * Z, K * D]` in f32.
    pub layers: Vec<(Tensor, Tensor)>,
    /// `Z`
    pub block_size: usize,
    /// `P`
    pub num_blocks: usize,
    /// What the last step wrote into.
    room: Option<Room>,
}

impl KvCache {
    /// Copies whole blocks in every layer, from and to, one after the other.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        if !copies.is_empty() {
            for (keys, values) in &self.layers {
                attention::copy_blocks(keys, copies, self.block_size)?;
                attention::copy_blocks(values, copies, self.block_size)?;
            }
        }
        Ok(())
    }
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

/// A decoder-only transformer, ready to generate and to score.
pub struct InferenceDecoder {
    /// Its shape.
    pub config: DecoderConfig,
    num_parameters: usize,
    embed_tokens: PackedWeight, // [V, C]
    layers: Vec<PackedLayer>,
    norm: Tensor, // [C]
    /// `[V, C]`; none where the embedding is the head.
    lm_head: Option<PackedWeight>,
    cos: Tensor, // [max positions, D/2]
    sin: Tensor, // [max positions, D/2]
}

/// One block's weights.
struct PackedLayer {
    input_norm: Tensor,       // [C]
    qkv: PackedWeight,        // [(H + 2K)·D, C]
    qkv_bias: Option<Tensor>, // [(H + 2K)·D]
    qk_norm: Option<(Tensor, Tensor)>,
    o: PackedWeight,        // [C, H·D]
    o_bias: Option<Tensor>, // [C]
    post_norm: Tensor,      // [C]
    gate_up: PackedWeight,  // [2F, C]
    down: PackedWeight,     // [C, F]
}

impl InferenceDecoder {
    /// Loads weights from a Hugging Face directory, a GGUF file or a PEFT adapter; `DtypeChoice::Bf16` holds the matrices in bf16.
    ///
    /// **Errors**: a missing, truncated or ill-shaped file, by name.
    pub fn load(directory: &Path, device: &Device, dtype: DtypeChoice) -> Result<Self> {
        if !device.is_cpu() {
            bail!("this build computes on the CPU only");
        }
        if peft::adapter_base(directory)?.is_some() {
            return Self::from_decoder(&Decoder::load(directory, device, DtypeChoice::F32)?, dtype);
        }
        let config = DecoderConfig::load(directory)?;
        let layout = Layout::new(&config);
        Self::from_source(config, &layout, loader::open(directory, &layout)?.as_ref(), dtype)
    }

    /// Packs the parameters of a decoder that was trained or made in this process.
    pub fn from_decoder(decoder: &Decoder, dtype: DtypeChoice) -> Result<Self> {
        let values = glan_kernels::to_vec(&decoder.weights.arena)?;
        Self::from_source(decoder.config.clone(), &decoder.layout, &Arena(&values), dtype)
    }

    fn from_source(
        config: DecoderConfig,
        layout: &Layout,
        source: &dyn TensorSource,
        dtype: DtypeChoice,
    ) -> Result<Self> {
        let dtype = if dtype == DtypeChoice::Bf16 { WeightDtype::Bf16 } else { WeightDtype::F32 };
        let matrix = |first: &str, count: usize| pack(source, layout.neighbours(first, count)?, dtype);
        let vector = |first: &str, count: usize| stack(source, layout.neighbours(first, count)?);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let matrix = |name: &str, count: usize| matrix(&format!("model.layers.{layer}.{name}"), count);
                let vector = |name: &str, count: usize| vector(&format!("model.layers.{layer}.{name}"), count);
                let when = |on: bool, name: &str, count: usize| on.then(|| vector(name, count)).transpose();
                let q_norm = when(config.qk_norm, "self_attn.q_norm.weight", 1)?;
                Ok(PackedLayer {
                    input_norm: vector("input_layernorm.weight", 1)?,
                    qkv: matrix("self_attn.q_proj.weight", 3)?,
                    qkv_bias: when(config.attention_bias, "self_attn.q_proj.bias", 3)?,
                    qk_norm: q_norm.zip(when(config.qk_norm, "self_attn.k_norm.weight", 1)?),
                    o: matrix("self_attn.o_proj.weight", 1)?,
                    o_bias: when(config.attention_output_bias, "self_attn.o_proj.bias", 1)?,
                    post_norm: vector("post_attention_layernorm.weight", 1)?,
                    gate_up: matrix("mlp.gate_proj.weight", 2)?,
                    down: matrix("mlp.down_proj.weight", 1)?,
                })
            })
            .collect::<Result<_>>()?;
        let (cos, sin) = rope_tables::tables(&config, config.max_position_embeddings)?;
        Ok(Self {
            num_parameters: layout.len,
            embed_tokens: matrix("model.embed_tokens.weight", 1)?,
            layers,
            norm: vector("model.norm.weight", 1)?,
            lm_head: if config.tie_word_embeddings { None } else { Some(matrix("lm_head.weight", 1)?) },
            cos,
            sin,
            config,
        })
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// Bytes of the matrices as they are held.
    pub fn weight_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        let all = layers.flatten().chain([&self.embed_tokens]).chain(&self.lm_head);
        all.map(PackedWeight::bytes).sum()
    }

    /// An empty cache of `num_blocks` blocks for this model.
    pub fn kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache> {
        let shape = (num_blocks * block_size, self.config.num_key_value_heads * self.config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let layers =
            (0..self.config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<Vec<_>>>()?;
        Ok(KvCache { layers, block_size, num_blocks, room: None })
    }

    /// [`Self::forward_paged_into`] memory of its own.
    pub fn forward_paged(&self, batch: &PagedBatch, cache: &mut KvCache) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        self.forward_paged_into(batch, cache, &mut logits)?;
        Ok(logits)
    }

    /// One step over the paged cache: writes the rows' keys and values, attends, and leaves the logits of
    /// `batch.logit_rows` as f32 in `logits`, `[rows, V]` row-major on the host, in place of what it held.
    ///
    /// A row's bits depend only on its sequence's tokens up to it, never on the other rows or on where a prompt is cut.
    pub fn forward_paged_into(&self, batch: &PagedBatch, cache: &mut KvCache, logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        // On a thread of the pool, so that none of the many parallel parts below has to wake one from outside.
        rayon::scope(|_| pieces(batch, MAX_ROWS).iter().try_for_each(|piece| self.step(piece, cache, logits)))
    }

    fn step(&self, batch: &PagedBatch, cache: &mut KvCache, logits: &mut Vec<f32>) -> Result<()> {
        let sequences: Vec<PagedRows> = batch
            .sequences
            .iter()
            .map(|sequence| PagedRows {
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                block_table: &sequence.block_table,
            })
            .collect();
        let num_rows = batch.token_ids.len();
        let config = &self.config;
        let kept = cache.room.take().filter(|room| room.num_rows >= num_rows);
        let kept = kept.map_or_else(|| Room::new(config, num_rows.next_power_of_two()), Ok)?;
        let room = kept.first(num_rows)?;
        cache.room = Some(kept);
        let cache = &*cache;
        let mut x = self.embed_tokens.gather(&batch.token_ids)?; // [N, C]
        for (i, weights) in self.layers.iter().enumerate() {
            self.attend(&x, weights, &config.heads(i), batch, &sequences, (cache, i), &room)?;
            let is_last = i + 1 == self.layers.len();
            if is_last && batch.logit_rows.len() < num_rows {
                // The keys and values are written; beyond them only rows whose logits are wanted matter any more.
                if batch.logit_rows.is_empty() {
                    return Ok(());
                }
                let rows = &batch.logit_rows;
                x = embedding::forward(&x, rows)?;
                self.after_attention(&x, &embedding::forward(&room.o, rows)?, weights, &room)?;
            } else {
                self.after_attention(&x, &room.o, weights, &room)?;
            }
        }
        let normed = Input::RmsNorm { x: &x, w: &self.norm, eps: config.rms_norm_eps }; // [rows, C]
        Ok(self.lm_head.as_ref().unwrap_or(&self.embed_tokens).append_to(normed, logits)?)
    }

    /// A block up to its attention, from `x [N, C]` to `room.o`; the rows' keys and values are written on the way.
    #[allow(clippy::too_many_arguments, reason = "a block's weights, its rows and its memory")]
    fn attend(
        &self,
        x: &Tensor,
        weights: &PackedLayer,
        heads: &Heads,
        batch: &PagedBatch,
        sequences: &[PagedRows],
        (cache, layer): (&KvCache, usize),
        room: &Room,
    ) -> Result<()> {
        let eps = self.config.rms_norm_eps;
        let normed = Input::RmsNorm { x, w: &weights.input_norm, eps };
        weights.qkv.forward_into(normed, weights.qkv_bias.as_ref(), &room.qkv)?;
        let rotary = Rotary {
            qk_norm: weights.qk_norm.as_ref().map(|(q_norm, k_norm)| (q_norm, k_norm, eps)),
            cos: &self.cos,
            sin: &self.sin,
            positions: &batch.positions,
        };
        let (keys, values) = &cache.layers[layer];
        let cache_of_layer = (keys, values);
        attention::write_cache(&room.qkv, Some(rotary), cache_of_layer, &batch.slot_mapping, cache.block_size, heads)?;
        Ok(attention::paged_into(&room.qkv, cache_of_layer, sequences, cache.block_size, heads, &room.o)?)
    }

    /// The rest of a block, added to `x [N, C]` in place, from `o [N, H·D]`.
    fn after_attention(&self, x: &Tensor, o: &Tensor, weights: &PackedLayer, room: &Room) -> Result<()> {
        let eps = self.config.rms_norm_eps;
        weights.o.add_to(Input::Rows(o), weights.o_bias.as_ref(), x)?;
        let gate_up = room.gate_up.narrow(0, 0, x.dim(0)?)?; // [N, 2F]
        weights.gate_up.forward_into(Input::RmsNorm { x, w: &weights.post_norm, eps }, None, &gate_up)?;
        Ok(weights.down.add_to(Input::SwiGlu(&gate_up), None, x)?)
    }
}

/// What the blocks of a step write into, one after the other, and those of the next step again: fresh memory costs as much
/// as a pass over it.
struct Room {
    num_rows: usize,
    qkv: Tensor,     // [N, (H + 2K)·D]
    o: Tensor,       // [N, H·D]
    gate_up: Tensor, // [N, 2F]
}

impl Room {
    fn new(config: &DecoderConfig, num_rows: usize) -> Result<Self> {
        let empty = |width: usize| Tensor::zeros((num_rows, width), DType::F32, &Device::Cpu);
        let heads = config.heads(0);
        let (qkv, o) = (empty(heads.qkv_width())?, empty(heads.query * heads.dim)?);
        Ok(Self { num_rows, qkv, o, gate_up: empty(2 * config.intermediate_size)? })
    }

    /// Its first rows.
    fn first(&self, num_rows: usize) -> Result<Self> {
        let first = |whole: &Tensor| whole.narrow(0, 0, num_rows);
        Ok(Self { num_rows, qkv: first(&self.qkv)?, o: first(&self.o)?, gate_up: first(&self.gate_up)? })
    }
}

/// Parameters that are in memory already, `[P]`.
struct Arena<'a>(&'a [f32]);

impl TensorSource for Arena<'_> {
    fn read_rows(&self, tensor: &NamedTensor, first_row: usize, values: &mut [f32]) -> Result<()> {
        let start = tensor.offset + first_row * tensor.shape[1..].iter().product::<usize>();
        values.copy_from_slice(&self.0[start..start + values.len()]);
        Ok(())
    }
}

/// A batch cut into pieces of at most `max_rows` rows, in order, so that every piece finds the keys and values of the
/// ones before it in the cache.
fn pieces(batch: &PagedBatch, max_rows: usize) -> Vec<Cow<'_, PagedBatch>> {
    let rows = batch.token_ids.len();
    if rows <= max_rows {
        return vec![Cow::Borrowed(batch)];
    }
    let piece = |start: usize| {
        let end = rows.min(start + max_rows);
        let mut sequences = Vec::new();
        let mut first = 0;
        for sequence in &batch.sequences {
            let (from, to) = (start.max(first), end.min(first + sequence.query_len));
            if from < to {
                let left_out = first + sequence.query_len - to;
                sequences.push(PagedSequence {
                    query_len: to - from,
                    context_len: sequence.context_len - left_out,
                    block_table: sequence.block_table.clone(),
                });
            }
            first += sequence.query_len;
        }
        let wanted = batch.logit_rows.iter().filter(|&&row| (start..end).contains(&(row as usize)));
        Cow::Owned(PagedBatch {
            token_ids: batch.token_ids[start..end].to_vec(),
            positions: batch.positions[start..end].to_vec(),
            slot_mapping: batch.slot_mapping[start..end].to_vec(),
            sequences,
            logit_rows: wanted.map(|row| row - start as u32).collect(),
        })
    };
    (0..rows).step_by(max_rows).map(piece).collect()
}

/// Matrices of one width, one above the other, packed.
fn pack(source: &dyn TensorSource, parts: &[NamedTensor], dtype: WeightDtype) -> Result<PackedWeight> {
    let inner = parts[0].shape[1];
    let out = parts.iter().map(|part| part.shape[0]).sum();
    PackedWeight::pack((out, inner), dtype, |mut first, mut rows| {
        // A panel may begin in one matrix and end in the next.
        for part in parts {
            let count = part.shape[0].saturating_sub(first).min(rows.len() / inner);
            let (here, rest) = rows.split_at_mut(count * inner);
            if count > 0 {
                source.read_rows(part, first, here)?;
            }
            rows = rest;
            first = (first + count).saturating_sub(part.shape[0]);
        }
        Ok(())
    })
}

/// Vectors one after the other.
fn stack(source: &dyn TensorSource, parts: &[NamedTensor]) -> Result<Tensor> {
    let mut values = Vec::new();
    for part in parts {
        let start = values.len();
        values.resize(start + part.len(), 0.0);
        source.read_rows(part, 0, &mut values[start..])?;
    }
    let len = values.len();
    Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_batch_in_order_with_the_context_up_to_their_end() {
        let sequence = |query_len, context_len| PagedSequence { query_len, context_len, block_table: vec![7] };
        let batch = PagedBatch {
            token_ids: (10..17).collect(),
            positions: vec![4, 0, 1, 2, 3, 8, 9],
            slot_mapping: (20..27).collect(),
            sequences: vec![sequence(1, 5), sequence(4, 4), sequence(2, 10)],
            logit_rows: vec![0, 4, 6],
        };
        let pieces = pieces(&batch, 3);
        let spans: Vec<Vec<(usize, usize)>> = pieces
            .iter()
            .map(|piece| piece.sequences.iter().map(|it| (it.query_len, it.context_len)).collect())
            .collect();
        assert_eq!(spans, [vec![(1, 5), (2, 2)], vec![(2, 4), (1, 9)], vec![(1, 10)]]);
        assert_eq!(
            pieces.iter().map(|piece| piece.logit_rows.clone()).collect::<Vec<_>>(),
            [vec![0], vec![1], vec![0]]
        );
        let joined: Vec<u32> = pieces.iter().flat_map(|piece| piece.token_ids.clone()).collect();
        assert_eq!(joined, batch.token_ids);
        let joined: Vec<u32> = pieces.iter().flat_map(|piece| piece.slot_mapping.clone()).collect();
        assert_eq!(joined, batch.slot_mapping);
        assert_eq!(pieces[1].positions, [2, 3, 8]);
    }

    #[test]
    fn a_panel_may_hold_the_end_of_one_matrix_and_the_beginning_of_the_next() {
        struct Counting;
        impl TensorSource for Counting {
            fn read_rows(&self, tensor: &NamedTensor, first_row: usize, values: &mut [f32]) -> Result<()> {
                let first = tensor.offset + first_row * tensor.shape[1];
                values.iter_mut().zip(first..).for_each(|(value, number)| *value = number as f32);
                Ok(())
            }
        }
        let part = |rows: usize, offset| NamedTensor { name: "w".into(), shape: vec![rows, 3], offset };
        let parts = [part(20, 0), part(5, 60), part(30, 75)];
        let packed = pack(&Counting, &parts, WeightDtype::F32).unwrap();
        let rows = packed.gather(&(0..55).collect::<Vec<u32>>()).unwrap().flatten_all().unwrap();
        assert_eq!(rows.to_vec1::<f32>().unwrap(), (0..165).map(|it| it as f32).collect::<Vec<_>>());
    }
}
