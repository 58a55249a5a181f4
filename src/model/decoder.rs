//! The decoder with its parameters in one f32 arena: what training works on, and what is exported.
//!
//! Its forward and backward are in [`super::train_step`]; inference packs its weights instead
//! ([`super::InferenceDecoder`]).

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use glan_kernels::matmul::Precision;
use rand::Rng;

use super::{DecoderConfig, Layout, Weights, layer::Pass, loader, peft, rope};
use crate::{device::DtypeChoice, seed};

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
