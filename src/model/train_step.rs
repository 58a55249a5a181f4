//! The decoder's training face: loss and gradients of packed conversations.

use anyhow::{Result, bail};
use candle_core::Tensor;
use glan_kernels::{
    cross_entropy, embedding,
    matmul::Precision,
    noise::{Noise, add_uniform},
    rms_norm,
};

use super::{
    Adapter, Decoder, Weights,
    layer::{self, Context, Saved},
};

/// Conversations packed one after another; attention stays inside each, positions restart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Microbatch {
    /// `[N]`
    pub token_ids: Vec<u32>,
    /// `[N]`
    pub positions: Vec<u32>,
    /// Sequence starts and the end, `[0, …, N]`.
    pub cu_seqlens: Vec<usize>,
    /// Rows whose next token is trained, ascending.
    pub trained_rows: Vec<u32>,
    /// The next token of each trained row.
    pub targets: Vec<u32>,
    /// Tokens of the same step in the micro-batches before this one; noise depends on it.
    pub first_token: usize,
}

impl Microbatch {
    /// Appends one conversation; `trained[i]` says whether token `i` is something that the model learns to write.
    pub fn push(&mut self, token_ids: &[u32], trained: &[bool]) {
        debug_assert_eq!(token_ids.len(), trained.len());
        let start = self.token_ids.len();
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        for i in 1..token_ids.len() {
            if trained[i] {
                self.trained_rows.push((start + i - 1) as u32);
                self.targets.push(token_ids[i]);
            }
        }
        self.token_ids.extend_from_slice(token_ids);
        self.positions.extend(0..token_ids.len() as u32);
        self.cu_seqlens.push(self.token_ids.len());
    }
}

/// What a pass adds to.
#[derive(Clone, Copy)]
pub enum Trained<'a> {
    /// The gradients of every parameter.
    Full(&'a Weights),
    /// An adapter beside frozen parameters, and its gradients.
    Adapter {
        /// Its values.
        adapter: &'a Adapter,
        /// The gradients, in the same layout.
        gradients: &'a Adapter,
    },
}

/// What a training pass does beside forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepOptions {
    /// Share of the adapters' inputs that is zeroed.
    pub lora_dropout: f32,
    /// NEFTune's α; 0 is off.
    pub neftune_noise_alpha: f32,
    /// Names the noise of this step.
    pub noise_key: u64,
    /// Keep the input of every so many blocks alone, and compute those blocks again in the backward; 0 keeps all. Changes
    /// no bit of the gradients.
    pub recompute_blocks: usize,
}

/// Loss of a micro-batch, `weight · Σ` over its trained tokens, adding `d loss / d parameter` to `gradients`.
///
/// With `weight` = 1 / (trained tokens of the whole batch) neither packing nor the cut into micro-batches changes the
/// result beyond rounding.
pub fn loss_and_gradients(model: &Decoder, batch: &Microbatch, weight: f64, gradients: &Weights) -> Result<f64> {
    train_step(model, batch, weight, Trained::Full(gradients), &StepOptions::default())
}

/// [`loss_and_gradients`] for all parameters or an adapter, with noise and recomputation.
pub fn train_step(
    model: &Decoder,
    batch: &Microbatch,
    weight: f64,
    trained: Trained,
    options: &StepOptions,
) -> Result<f64> {
    let step =
        Step { model, batch, trained, options, noise: Noise { key: options.noise_key, first_row: batch.first_token } };
    let mut kept = Kept { inputs: Vec::new(), saved: Vec::new() };
    let x = step.forward(&mut kept)?; // [N, C]
    let eps = model.config.rms_norm_eps;
    let rows = embedding::forward(&x, &batch.trained_rows)?; // [rows, C]
    let (normed, rstd) = rms_norm::forward(&rows, &model.weights.norm, eps)?;
    let (head, precision) = (&model.weights.lm_head, model.precision);
    let (out, norm) = match trained {
        Trained::Full(gradients) => (
            cross_entropy::forward_backward(&normed, head, &batch.targets, weight, &gradients.lm_head, precision)?,
            gradients.norm.clone(),
        ),
        Trained::Adapter { .. } => (
            cross_entropy::forward_backward_frozen(&normed, head, &batch.targets, weight, precision)?,
            model.weights.norm.zeros_like()?,
        ),
    };
    let drows = rms_norm::backward(&out.dx, &rows, &model.weights.norm, &rstd, &norm, None)?;
    let mut dx = x.zeros_like()?;
    embedding::backward(&dx, &drows, &batch.trained_rows)?;
    drop(x);
    // Below the lowest layer with something to train no gradient is wanted.
    let (first, below) = match trained {
        Trained::Full(_) => (0, true),
        Trained::Adapter { adapter, .. } => (adapter.first_layer(), false),
    };
    for index in (first..model.weights.layers.len()).rev() {
        match step.backward(index, &dx, &mut kept, below || index > first)? {
            Some(of_input) => dx = of_input,
            None => break,
        }
    }
    if let Trained::Full(gradients) = trained {
        embedding::backward(&gradients.embed_tokens, &dx, &batch.token_ids)?;
    }
    Ok(out.loss)
}

/// What the blocks leave behind for the backward, which takes it away: its memory shrinks as the backward goes.
struct Kept {
    /// The inputs of the first block of each group that is computed again.
    inputs: Vec<Tensor>,
    /// Of the blocks whose backward comes next.
    saved: Vec<Saved>,
}

/// One pass forth and back.
struct Step<'a> {
    model: &'a Decoder,
    batch: &'a Microbatch,
    trained: Trained<'a>,
    options: &'a StepOptions,
    noise: Noise,
}

impl<'a> Step<'a> {
    fn forward(&self, kept: &mut Kept) -> Result<Tensor> {
        let mut x = embedding::forward(&self.model.weights.embed_tokens, &self.batch.token_ids)?;
        self.add_neftune(&x)?;
        let group = self.options.recompute_blocks;
        for index in 0..self.model.weights.layers.len() {
            if group > 0 && index.is_multiple_of(group) {
                kept.inputs.push(x.clone());
            }
            x = self.block(index, &x, (group == 0).then_some(&mut kept.saved))?;
        }
        Ok(x)
    }

    /// One block; what it saves is held in bf16 where that is the precision.
    fn block(&self, index: usize, x: &Tensor, mut saved: Option<&mut Vec<Saved>>) -> Result<Tensor> {
        let adapter = match self.trained {
            Trained::Full(_) => None,
            Trained::Adapter { adapter, .. } => Some(adapter.layer(index, self.dropout(), self.model.precision)),
        };
        let context = Context { cu_seqlens: &self.batch.cu_seqlens, adapter };
        let (pass, heads) = (self.model.pass(&self.batch.positions), self.model.config.heads(index));
        let weights = &self.model.weights.layers[index];
        let y = layer::forward(x, weights, &heads, &pass, &context, saved.as_deref_mut())?;
        if let Some(saved) = saved
            && self.model.precision == Precision::Bf16
            && let Some(last) = saved.pop()
        {
            saved.push(last.narrow()?);
        }
        Ok(y)
    }

    fn backward(&self, index: usize, dy: &Tensor, kept: &mut Kept, wants_input: bool) -> Result<Option<Tensor>> {
        if kept.saved.is_empty()
            && let Some(mut x) = kept.inputs.pop()
        {
            for again in index - index % self.options.recompute_blocks..=index {
                x = self.block(again, &x, Some(&mut kept.saved))?;
            }
        }
        let Some(mut saved) = kept.saved.pop() else { bail!("block {index} saved nothing") };
        let precision = self.model.precision;
        if precision == Precision::Bf16 {
            saved = saved.widen()?;
        }
        let gradients = match self.trained {
            Trained::Full(gradients) => layer::Gradients::Full(&gradients.layers[index], precision),
            Trained::Adapter { adapter, gradients } => layer::Gradients::Adapter(
                adapter.layer(index, self.dropout(), precision),
                gradients.layer_gradients(index),
            ),
        };
        let (pass, heads) = (self.model.pass(&self.batch.positions), self.model.config.heads(index));
        let weights = &self.model.weights.layers[index];
        let cu_seqlens = &self.batch.cu_seqlens;
        Ok(layer::backward(dy, &saved, weights, &gradients, &heads, &pass, cu_seqlens, wants_input)?)
    }

    fn dropout(&self) -> Option<(f32, Noise)> {
        (self.options.lora_dropout > 0.0).then_some((self.options.lora_dropout, self.noise))
    }

    /// NEFTune: noise of at most `α / √(tokens · C)` on the embeddings of each sequence.
    fn add_neftune(&self, x: &Tensor) -> Result<()> {
        if self.options.neftune_noise_alpha == 0.0 {
            return Ok(());
        }
        let hidden = self.model.config.hidden_size;
        let mut magnitudes = Vec::with_capacity(self.batch.token_ids.len());
        for bounds in self.batch.cu_seqlens.windows(2) {
            let len = bounds[1] - bounds[0];
            let magnitude = self.options.neftune_noise_alpha / ((len * hidden) as f32).sqrt();
            magnitudes.resize(bounds[1], magnitude);
        }
        // A key of its own, beside those of the layers' masks.
        Ok(add_uniform(x, &magnitudes, self.noise.with(u64::MAX))?)
    }
}

/// Sum of the trained tokens' losses (natural logarithm), without gradients.
pub fn evaluate_loss(model: &Decoder, batch: &Microbatch) -> Result<f64> {
    evaluate_adapted_loss(model, None, batch)
}

/// [`evaluate_loss`] with an adapter beside the parameters; no noise, no dropout.
pub fn evaluate_adapted_loss(model: &Decoder, adapter: Option<&Adapter>, batch: &Microbatch) -> Result<f64> {
    let pass = model.pass(&batch.positions);
    let mut x = embedding::forward(&model.weights.embed_tokens, &batch.token_ids)?;
    for (i, weights) in model.weights.layers.iter().enumerate() {
        let adapter = adapter.map(|adapter| adapter.layer(i, None, model.precision));
        let context = Context { cu_seqlens: &batch.cu_seqlens, adapter };
        x = layer::forward(&x, weights, &model.config.heads(i), &pass, &context, None)?;
    }
    let rows = embedding::forward(&x, &batch.trained_rows)?;
    let (normed, _) = rms_norm::forward(&rows, &model.weights.norm, model.config.rms_norm_eps)?;
    let losses = cross_entropy::losses(&normed, &model.weights.lm_head, &batch.targets, model.precision)?;
    Ok(losses.into_iter().map(f64::from).sum())
}
