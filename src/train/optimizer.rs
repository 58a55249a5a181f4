//! AdamW over an arena, with weight decay on matrices only and clipping by global norm.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use glan_kernels::{adamw, fill_zero};

use crate::{config::TrainConfig, model::Layout};

/// Optimizer state of an arena: that of a model, or of an adapter.
pub struct Optimizer {
    /// First moments, `[P]`.
    pub first: Tensor,
    /// Second moments, `[P]`.
    pub second: Tensor,
    /// Steps taken.
    pub step: usize,
    /// Consecutive values `(offset, len)` with the same decay.
    runs: Vec<(usize, usize, bool)>,
}

impl Optimizer {
    /// Fresh state for an arena of this layout.
    pub fn new(layout: &Layout) -> Result<Self> {
        let zeros = || Tensor::zeros(layout.len, DType::F32, &Device::Cpu);
        let mut runs: Vec<(usize, usize, bool)> = Vec::new();
        for tensor in layout.tensors.iter() {
            match runs.last_mut() {
                Some((_, len, decays)) if *decays == tensor.decays() => *len += tensor.len(),
                _ => runs.push((tensor.offset, tensor.len(), tensor.decays())),
            }
        }
        Ok(Self { first: zeros()?, second: zeros()?, step: 0, runs })
    }

    /// Clips, updates `parameters [P]` in place, clears `gradients [P]`. Returns the norm before clipping.
    pub fn update(
        &mut self,
        parameters: &Tensor,
        gradients: &Tensor,
        config: &TrainConfig,
        learning_rate: f64,
    ) -> Result<f64> {
        let norm = adamw::norm(gradients)?;
        let clips = config.max_grad_norm > 0.0 && norm > config.max_grad_norm;
        self.step += 1;
        for &(offset, len, decays) in &self.runs {
            let view = |tensor: &Tensor| tensor.narrow(0, offset, len);
            let with = adamw::AdamW {
                learning_rate,
                beta1: config.adam_beta1,
                beta2: config.adam_beta2,
                eps: config.adam_epsilon,
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                step: self.step,
                gradient_scale: if clips { config.max_grad_norm / norm } else { 1.0 },
            };
            adamw::step(&view(parameters)?, &view(gradients)?, &view(&self.first)?, &view(&self.second)?, &with)?;
        }
        fill_zero(gradients)?;
        Ok(norm)
    }
}
