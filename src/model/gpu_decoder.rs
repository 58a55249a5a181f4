//! The decoder on a GPU, for inference: weights in f32 or bf16 and one step over a paged cache there.
//!
//! Its arithmetic is that of [`super::inference`] on other buffers; in bf16 activations and the cache are rounded too, sums stay f32.
//! Only token ids go to the device, only logits come back. Not yet run on a GPU: the tests run it on a device that the host
//! plays.

use std::path::Path;

use anyhow::{Result, bail};
use glan_kernels::{
    attention::{Heads, PagedRows},
    gpu::{
        Array, Float, Gpu,
        attention::{self, PagedWork},
        cache::{self, Cache, Places},
        embedding::{self, Tokens},
        matmul, rms_norm,
        rope::Tables,
        swiglu,
    },
};

use super::{
    DecoderConfig, Layout, NamedTensor, PagedBatch,
    loader::{self, TensorSource},
    peft, rope as rope_tables,
};

/// A decoder-only transformer on a GPU. `F` is the type of weights, activations and cache.
pub struct GpuDecoder<F> {
    /// Its shape.
    pub config: DecoderConfig,
    num_parameters: usize,
    gpu: Gpu,
    embed_tokens: Array<F>, // [V, C]
    layers: Vec<GpuLayer<F>>,
    norm: Array<F>, // [C]
    /// `[V, C]`; none where the embedding is the head.
    lm_head: Option<Array<F>>,
    tables: Tables,
}

/// One block's weights.
struct GpuLayer<F> {
    input_norm: Array<F>,       // [C]
    qkv: Array<F>,              // [(H + 2K)·D, C]
    qkv_bias: Option<Array<F>>, // [(H + 2K)·D]
    qk_norm: Option<(Array<F>, Array<F>)>,
    o: Array<F>,              // [C, H·D]
    o_bias: Option<Array<F>>, // [C]
    post_norm: Array<F>,      // [C]
    gate_up: Array<F>,        // [2F, C]
    down: Array<F>,           // [C, F]
}

/// Keys and values of all layers on a GPU.
pub struct GpuCache<F> {
    layers: Vec<Cache<F>>,
    /// `Z`
    pub block_size: usize,
    /// `P`
    pub num_blocks: usize,
}

impl<F: Float> GpuCache<F> {
    /// Copies whole blocks in every layer, from and to, one after the other.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        for layer in &self.layers {
            layer.copy_blocks(copies)?;
        }
        Ok(())
    }
}

impl<F: Float> GpuDecoder<F> {
    /// Loads weights from a Hugging Face directory or a GGUF file onto a device.
    ///
    /// **Errors**: a missing, truncated or ill-shaped file, by name; an adapter (merge it first); a full memory.
    pub fn load(directory: &Path, gpu: &Gpu) -> Result<Self> {
        if peft::adapter_base(directory)?.is_some() {
            bail!(
                "`{}` is an adapter, which does not run on a GPU by itself yet; merge it with `glan export`",
                directory.display()
            );
        }
        let config = DecoderConfig::load(directory)?;
        let layout = Layout::new(&config);
        let source = loader::open(directory, &layout)?;
        Self::from_source(config, &layout, source.as_ref(), gpu)
    }

    fn from_source(config: DecoderConfig, layout: &Layout, source: &dyn TensorSource, gpu: &Gpu) -> Result<Self> {
        let stacked = |first: &str, count: usize| stack::<F>(gpu, source, layout.neighbours(first, count)?);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let part = |name: &str, count: usize| stacked(&format!("model.layers.{layer}.{name}"), count);
                let when = |on: bool, name: &str, count: usize| on.then(|| part(name, count)).transpose();
                let q_norm = when(config.qk_norm, "self_attn.q_norm.weight", 1)?;
                Ok(GpuLayer {
                    input_norm: part("input_layernorm.weight", 1)?,
                    qkv: part("self_attn.q_proj.weight", 3)?,
                    qkv_bias: when(config.attention_bias, "self_attn.q_proj.bias", 3)?,
                    qk_norm: q_norm.zip(when(config.qk_norm, "self_attn.k_norm.weight", 1)?),
                    o: part("self_attn.o_proj.weight", 1)?,
                    o_bias: when(config.attention_output_bias, "self_attn.o_proj.bias", 1)?,
                    post_norm: part("post_attention_layernorm.weight", 1)?,
                    gate_up: part("mlp.gate_proj.weight", 2)?,
                    down: part("mlp.down_proj.weight", 1)?,
                })
            })
            .collect::<Result<_>>()?;
        let (cos, sin) = rope_tables::tables(&config, config.max_position_embeddings)?;
        let upload = |table| Ok::<_, anyhow::Error>(Array::from_slice(gpu, &glan_kernels::to_vec(table)?)?);
        Ok(Self {
            num_parameters: layout.len,
            gpu: gpu.clone(),
            embed_tokens: stacked("model.embed_tokens.weight", 1)?,
            layers,
            norm: stacked("model.norm.weight", 1)?,
            lm_head: if config.tie_word_embeddings { None } else { Some(stacked("lm_head.weight", 1)?) },
            tables: Tables { cos: upload(&cos)?, sin: upload(&sin)?, half: config.head_dim / 2 },
            config,
        })
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes of one token in the cache: keys and values in every layer.
    pub fn cache_token_bytes(&self) -> usize {
        let config = &self.config;
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size_of::<F>()
    }

    /// An empty cache of `num_blocks` blocks for this model.
    pub fn kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<GpuCache<F>> {
        let layers = (0..self.config.num_hidden_layers)
            .map(|layer| Ok(Cache::new(&self.gpu, num_blocks, block_size, &self.config.heads(layer))?))
            .collect::<Result<_>>()?;
        Ok(GpuCache { layers, block_size, num_blocks })
    }

    /// One step over the paged cache: writes the rows' keys and values, attends, and returns the logits of
    /// `batch.logit_rows` as f32, `[rows, V]` row-major on the host.
    pub fn forward_paged(&self, batch: &PagedBatch, cache: &mut GpuCache<F>) -> Result<Vec<f32>> {
        let (config, gpu) = (&self.config, &self.gpu);
        let (num_rows, hidden) = (batch.token_ids.len(), config.hidden_size);
        let tokens = Tokens::new(gpu, &batch.token_ids, config.vocab_size, false)?;
        let places = Places::new(gpu, &batch.positions, &batch.slot_mapping, &self.tables)?;
        let works = self.works(batch, cache)?;
        let mut x = Array::uninit(gpu, num_rows * hidden)?; // [N, C]
        embedding::forward(&x, &self.embed_tokens, &tokens)?;
        for (i, weights) in self.layers.iter().enumerate() {
            let heads = config.heads(i);
            let (_, work) = works.iter().find(|(window, _)| *window == heads.window).expect("one per window");
            let mut o = self.attend(&x, weights, &heads, (&cache.layers[i], &places, work))?;
            if i + 1 == self.layers.len() && batch.logit_rows.len() < num_rows {
                // The keys and values are written; beyond them only rows whose logits are wanted matter any more.
                if batch.logit_rows.is_empty() {
                    gpu.synchronize()?;
                    return Ok(Vec::new());
                }
                x = self.rows(&x, num_rows, &batch.logit_rows)?;
                o = self.rows(&o, num_rows, &batch.logit_rows)?;
            }
            self.after_attention(&x, &o, weights, &heads)?;
        }
        let normed = Array::uninit(gpu, x.len())?;
        rms_norm::forward(&normed, None, &x, None, &self.norm, config.rms_norm_eps as f32)?;
        let logits = Array::<F>::uninit(gpu, x.len() / hidden * config.vocab_size)?;
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        matmul::linear(&logits, &normed, head, None, (config.vocab_size, hidden), false)?;
        Ok(logits.to_vec()?.into_iter().map(Float::to_f32).collect())
    }

    /// The attention's plan for each window that a layer has; the same for all layers of that window.
    fn works(&self, batch: &PagedBatch, cache: &GpuCache<F>) -> Result<Vec<(Option<usize>, PagedWork)>> {
        let sequences: Vec<PagedRows> = batch
            .sequences
            .iter()
            .map(|sequence| PagedRows {
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                block_table: &sequence.block_table,
            })
            .collect();
        let mut works: Vec<(Option<usize>, PagedWork)> = Vec::new();
        for layer in 0..self.layers.len() {
            let heads = self.config.heads(layer);
            if works.iter().all(|(window, _)| *window != heads.window) {
                let work = PagedWork::new(&self.gpu, &sequences, cache.block_size, cache.num_blocks, &heads)?;
                works.push((heads.window, work));
            }
        }
        Ok(works)
    }

    /// A block up to its attention: `x [N, C]` → `[N, H·D]`; the rows' keys and values are written on the way.
    fn attend(
        &self,
        x: &Array<F>,
        weights: &GpuLayer<F>,
        heads: &Heads,
        (cache, places, work): (&Cache<F>, &Places, &PagedWork),
    ) -> Result<Array<F>> {
        let (gpu, hidden, eps) = (&self.gpu, self.config.hidden_size, self.config.rms_norm_eps as f32);
        let num_rows = x.len() / hidden;
        let normed = Array::uninit(gpu, x.len())?;
        rms_norm::forward(&normed, None, x, None, &weights.input_norm, eps)?;
        let qkv = Array::uninit(gpu, num_rows * heads.qkv_width())?;
        let shape = (heads.qkv_width(), hidden);
        matmul::linear(&qkv, &normed, &weights.qkv, weights.qkv_bias.as_ref(), shape, false)?;
        let qk_norm = weights.qk_norm.as_ref().map(|(q_norm, k_norm)| (q_norm, k_norm, eps));
        cache::write(&qkv, cache, qk_norm, &self.tables, places, heads)?;
        let o = Array::uninit(gpu, num_rows * heads.query * heads.dim)?;
        attention::paged(&o, &qkv, cache, work, heads)?;
        Ok(o)
    }

    /// The rest of a block, added to `x [N, C]` in place, from `o [N, H·D]`.
    fn after_attention(&self, x: &Array<F>, o: &Array<F>, weights: &GpuLayer<F>, heads: &Heads) -> Result<()> {
        let (gpu, config, eps) = (&self.gpu, &self.config, self.config.rms_norm_eps as f32);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let num_rows = x.len() / hidden;
        let normed = Array::uninit(gpu, x.len())?;
        let shape = (hidden, heads.query * heads.dim);
        if weights.o_bias.is_some() {
            let added = Array::uninit(gpu, x.len())?;
            matmul::linear(&added, o, &weights.o, weights.o_bias.as_ref(), shape, false)?;
            rms_norm::forward(&normed, None, x, Some((&added, x)), &weights.post_norm, eps)?;
        } else {
            matmul::linear(x, o, &weights.o, None, shape, true)?;
            rms_norm::forward(&normed, None, x, None, &weights.post_norm, eps)?;
        }
        let gate_up = Array::uninit(gpu, num_rows * 2 * inner)?;
        matmul::linear(&gate_up, &normed, &weights.gate_up, None, (2 * inner, hidden), false)?;
        let activated = Array::uninit(gpu, num_rows * inner)?;
        swiglu::forward(&activated, &gate_up, inner)?;
        Ok(matmul::linear(x, &activated, &weights.down, None, (hidden, inner), true)?)
    }

    /// Some rows of `x [N, width]`.
    fn rows(&self, x: &Array<F>, num_rows: usize, rows: &[u32]) -> Result<Array<F>> {
        let picked = Array::uninit(&self.gpu, x.len() / num_rows * rows.len())?;
        embedding::forward(&picked, x, &Tokens::new(&self.gpu, rows, num_rows, false)?)?;
        Ok(picked)
    }
}

/// Matrices of one width one above the other, or vectors one after the other, on the device.
fn stack<F: Float>(gpu: &Gpu, source: &dyn TensorSource, parts: &[NamedTensor]) -> Result<Array<F>> {
    let array = Array::uninit(gpu, parts.iter().map(NamedTensor::len).sum())?;
    let mut start = 0;
    for part in parts {
        let mut values = vec![0f32; part.len()];
        source.read_rows(part, 0, &mut values)?;
        let values: Vec<F> = values.into_iter().map(F::from_f32).collect();
        array.view(start..start + part.len())?.write(&values)?;
        start += part.len();
    }
    Ok(array)
}
