//! The decoder's training face: loss and gradients of packed conversations.

use anyhow::Result;
use glan_kernels::{cross_entropy, embedding, rms_norm};

use super::{
    Decoder, Weights,
    layer::{self, Saved},
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

/// Loss of a micro-batch, `weight · Σ` over its trained tokens, adding `d loss / d parameter` to `gradients`.
///
/// With `weight` = 1 / (trained tokens of the whole batch) neither packing nor the cut into micro-batches changes the
/// result beyond rounding.
pub fn loss_and_gradients(model: &Decoder, batch: &Microbatch, weight: f64, gradients: &Weights) -> Result<f64> {
    let mut saved: Vec<Saved> = Vec::with_capacity(model.weights.layers.len());
    let x = forward(model, batch, Some(&mut saved))?; // [N, C]
    let eps = model.config.rms_norm_eps;
    let rows = embedding::forward(&x, &batch.trained_rows)?; // [rows, C]
    let (normed, rstd) = rms_norm::forward(&rows, &model.weights.norm, eps)?;
    let head = &model.weights.lm_head;
    let out = cross_entropy::forward_backward(&normed, head, &batch.targets, weight, &gradients.lm_head)?;
    let drows = rms_norm::backward(&out.dx, &rows, &model.weights.norm, &rstd, &gradients.norm, None)?;
    let mut dx = x.zeros_like()?;
    embedding::backward(&dx, &drows, &batch.trained_rows)?;
    drop(x);
    let pass = model.pass(&batch.positions);
    for i in (0..model.weights.layers.len()).rev() {
        // Dropped block by block: the activations' memory shrinks as the backward goes.
        let Some(saved) = saved.pop() else { anyhow::bail!("a block saved nothing") };
        let (weights, gradients) = (&model.weights.layers[i], &gradients.layers[i]);
        dx = layer::backward(&dx, &saved, weights, gradients, &model.config.heads(i), &pass, &batch.cu_seqlens)?;
    }
    embedding::backward(&gradients.embed_tokens, &dx, &batch.token_ids)?;
    Ok(out.loss)
}

/// Sum of the trained tokens' losses (natural logarithm), without gradients.
pub fn evaluate_loss(model: &Decoder, batch: &Microbatch) -> Result<f64> {
    let x = forward(model, batch, None)?;
    let rows = embedding::forward(&x, &batch.trained_rows)?;
    let (normed, _) = rms_norm::forward(&rows, &model.weights.norm, model.config.rms_norm_eps)?;
    let losses = cross_entropy::losses(&normed, &model.weights.lm_head, &batch.targets)?;
    Ok(losses.into_iter().map(f64::from).sum())
}

fn forward(model: &Decoder, batch: &Microbatch, mut saved: Option<&mut Vec<Saved>>) -> Result<candle_core::Tensor> {
    let pass = model.pass(&batch.positions);
    let mut x = embedding::forward(&model.weights.embed_tokens, &batch.token_ids)?;
    for (i, weights) in model.weights.layers.iter().enumerate() {
        x = layer::forward(&x, weights, &model.config.heads(i), &pass, &batch.cu_seqlens, saved.as_deref_mut())?;
    }
    Ok(x)
}
