//! The decoder with its parameters in one f32 arena: what training works on, and what is exported.
//!
//! Its forward and backward are in [`super::train_step`]; inference packs its weights instead
//! ([`super::InferenceDecoder`]).

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use glan_kernels::{
    lora,
    matmul::{BlockFormat, Precision, QuantizedWeight},
};
use rand::Rng;

use super::{
    DecoderConfig, Layout, Weights,
    layer::Pass,
    loader,
    matrix::{self, Matrix},
    peft, rope,
};
use crate::{device::DtypeChoice, error::usage, seed};

/// A decoder-only transformer.
pub struct Decoder {
    /// Its shape.
    pub config: DecoderConfig,
    /// Where its tensors lie.
    pub layout: Layout,
    /// Its parameters.
    pub weights: Weights,
    /// What its products multiply: with bf16, the parameters above are the f32 masters.
    pub precision: Precision,
    pub(super) cos: Tensor, // [max positions, D/2]
    pub(super) sin: Tensor, // [max positions, D/2]
}

impl Decoder {
    /// Loads weights from a Hugging Face directory, a GGUF file, or the directory of a PEFT adapter (with its base,
    /// merged).
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

    /// Loads weights as [`load`](Self::load) does, the blocks' matrices quantised: room for an adapter beside them, not for
    /// training them. Never holds more than one of their tensors in f32.
    ///
    /// **Errors**: as `load`; the directory of an adapter; rows that the format's blocks do not fill.
    pub fn load_quantized(model: &Path, device: &Device, format: BlockFormat) -> Result<Self> {
        if !device.is_cpu() {
            bail!("this build computes on the CPU only");
        }
        if peft::adapter_base(model)?.is_some() {
            bail!(usage(format!(
                "`{}` is an adapter; a quantised base is a model of its own: merge it first",
                model.display()
            )));
        }
        let config = DecoderConfig::load(model)?;
        let (layout, weights) = matrix::load(model, &config, format)?;
        let (cos, sin) = rope::tables(&config, config.max_position_embeddings)?;
        Ok(Self { config, layout, weights, precision: Precision::F32, cos, sin })
    }

    /// The same model in f32, every tensor of its own memory: what an adapter can be merged into.
    pub fn unpacked(&self) -> Result<Self> {
        let layout = Layout::new(&self.config);
        let arena = Tensor::zeros(layout.len, DType::F32, &Device::Cpu)?;
        let weights = Weights::new(&self.config, &layout, arena.clone())?;
        for tensor in self.layout.tensors.iter() {
            let to = &layout.neighbours(&tensor.name, 1)?[0];
            let values = self.weights.arena.narrow(0, tensor.offset, tensor.len())?;
            arena.narrow(0, to.offset, to.len())?.flatten_all()?.slice_set(&values, 0, 0)?;
        }
        for (from, to) in self.weights.layers.iter().zip(&weights.layers) {
            let pairs = [(&from.qkv, &to.qkv), (&from.o, &to.o), (&from.gate_up, &to.gate_up), (&from.down, &to.down)];
            for (from, to) in pairs {
                if let Matrix::Blocks(from) = from {
                    lora::add_columns(to.dense()?, 0, &from.rows(0, from.dims().0)?, &[1.0])?;
                }
            }
        }
        let precision = self.precision;
        Ok(Self { precision, ..Self::from_arena(self.config.clone(), layout, arena)? })
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
        Ok(Self { config, layout, weights, precision: Precision::F32, cos, sin })
    }

    pub(super) fn pass<'a>(&'a self, positions: &'a [u32]) -> Pass<'a> {
        let (cos, sin, eps) = (&self.cos, &self.sin, self.config.rms_norm_eps);
        Pass { positions, cos, sin, eps, precision: self.precision }
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.layout.len + self.weights.blocks().map(|blocks| blocks.dims().0 * blocks.dims().1).sum::<usize>()
    }

    /// Bytes of the parameters.
    pub fn bytes(&self) -> usize {
        size_of::<f32>() * self.layout.len + self.weights.blocks().map(QuantizedWeight::bytes).sum::<usize>()
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
