//! What a run will need: memory by part, operations, time. Known before the first step, so that what cannot fit is
//! refused with what would.

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use glan_kernels::matmul::{Precision, QuantizedWeight, linear};
use serde::Serialize;

use super::{optimizer::Optimizer, target::adapter_shape};
use crate::{
    config::{ActivationCheckpointing, TrainConfig, TrainInit, TrainMethod, TrainPrecision},
    error::usage,
    model::{DecoderConfig, Layout, Projection},
};

/// Bytes of one value.
const F32: usize = 4;
/// Logits that the loss holds at once, as `kernels/src/cross_entropy.rs` cuts them: so many values, or 16 rows.
const LOGIT_VALUES: usize = 1 << 24;

/// The program itself: its code, the tokenizer, a block of rows, packed operands of the products. Measured on a tiny model.
const PROGRAM_BYTES: usize = 48 << 20;

/// Memory of a training run, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// The model, and the adapter.
    pub weights: usize,
    /// Of what is trained.
    pub gradients: usize,
    /// Two moments of what is trained.
    pub optimizer: usize,
    /// What the backward needs of a full micro-batch.
    pub activations: usize,
    /// A chunk of the loss.
    pub logits: usize,
    /// Whatever is trained.
    pub program: usize,
    /// Tokens of the largest micro-batch.
    pub micro_batch_tokens: usize,
    /// Values that are trained.
    pub trained_parameters: usize,
    /// All values of model and adapter.
    pub parameters: usize,
}

impl Forecast {
    /// The forecast for a model of this shape; `longest` is the longest row in tokens.
    pub fn new(config: &DecoderConfig, settings: &TrainConfig, longest: usize) -> Result<Self> {
        let model = Layout::new(config);
        let adapter = match settings.method {
            TrainMethod::Full => None,
            TrainMethod::Lora | TrainMethod::QLora => {
                Some(adapter_shape(settings, config.num_hidden_layers)?.layout(config))
            }
        };
        let parameters = model.len + adapter.as_ref().map_or(0, |adapter| adapter.len);
        let (quantised, blocks) = quantised(config, settings);
        let trained = adapter.as_ref().unwrap_or(&model);
        // Without packing a batch may be smaller than what a micro-batch holds.
        let batch = if settings.packing { usize::MAX } else { settings.train_batch_size.saturating_mul(longest) };
        let tokens = settings.max_tokens_per_micro_batch.min(batch).max(longest);
        let logits = LOGIT_VALUES.max(16 * config.vocab_size).min(tokens * config.vocab_size);
        Ok(Self {
            weights: F32 * (parameters - quantised) + blocks,
            gradients: F32 * trained.len,
            optimizer: Optimizer::bytes(trained, settings.optimizer),
            activations: tokens * activation_bytes_per_token(config, settings),
            logits: F32 * logits,
            program: PROGRAM_BYTES,
            micro_batch_tokens: tokens,
            trained_parameters: trained.len,
            parameters,
        })
    }

    /// All parts.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.program
    }

    /// Refuses what does not fit into `available` bytes, and proposes what would.
    pub fn check(
        &self,
        available: usize,
        config: &DecoderConfig,
        settings: &TrainConfig,
        longest: usize,
    ) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let mut changed = settings.clone();
        let mut proposals = Vec::new();
        let mut try_on = |changed: &TrainConfig, what: String| -> Result<()> {
            let total = Self::new(config, changed, longest)?.total();
            if total <= available {
                proposals.push(format!("{what} ({})", mib(total)));
            }
            Ok(())
        };
        changed.activation_checkpointing = ActivationCheckpointing::Block;
        try_on(&changed, "`train.activation_checkpointing = \"block\"`".into())?;
        for tokens in [2048, 1024, 512].into_iter().filter(|tokens| *tokens < self.micro_batch_tokens) {
            changed.max_tokens_per_micro_batch = tokens;
            try_on(&changed, format!("that with `train.max_tokens_per_micro_batch = {tokens}`"))?;
        }
        if settings.method == TrainMethod::Full {
            changed.method = TrainMethod::Lora;
            try_on(&changed, "all of that with `train.method = \"lora\"`".into())?;
        }
        if settings.method != TrainMethod::QLora && settings.init == TrainInit::Checkpoint {
            changed.method = TrainMethod::QLora;
            try_on(&changed, "all of that with `train.method = \"qlora\"`".into())?;
        }
        let advice = match proposals.first() {
            Some(first) => format!("this would fit: {first}"),
            None => "none of block checkpointing, smaller micro-batches, LoRA and QLoRA would fit either".to_owned(),
        };
        Err(usage(format!("training needs about {}, but {} are free; {advice}", self.text(), mib(available))))
    }

    /// The parts in words.
    pub fn text(&self) -> String {
        format!(
            "{} (weights {}, gradients {}, optimizer {}, activations {} for {} tokens, logits {}, program {})",
            mib(self.total()),
            mib(self.weights),
            mib(self.gradients),
            mib(self.optimizer),
            mib(self.activations),
            self.micro_batch_tokens,
            mib(self.logits),
            mib(self.program)
        )
    }
}

/// Values that are held in blocks, and the blocks' bytes.
fn quantised(config: &DecoderConfig, settings: &TrainConfig) -> (usize, usize) {
    if settings.method != TrainMethod::QLora {
        return (0, 0);
    }
    let shapes = Projection::ALL.map(|projection| projection.shape(config));
    let values: usize = shapes.iter().map(|(out, inner)| out * inner).sum();
    let format = settings.base_quantization.format();
    let bytes: usize = shapes.into_iter().map(|shape| QuantizedWeight::bytes_of(format, shape)).sum();
    (config.num_hidden_layers * values, config.num_hidden_layers * bytes)
}

/// Bytes that a token leaves behind: what [`crate::model`]'s blocks save, and the working set of one backward.
fn activation_bytes_per_token(config: &DecoderConfig, settings: &TrainConfig) -> usize {
    let (c, f) = (config.hidden_size, config.intermediate_size);
    let (query, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let qkv = query + 2 * kv;
    let normed = if config.qk_norm { qkv + config.num_attention_heads + config.num_key_value_heads } else { 0 };
    // x, its norm, qkv, o, lse, h, its norm, gate_up, two rstd.
    let block = 4 * c + qkv + normed + query + config.num_attention_heads + 2 * f + 2;
    // In the backward of one block: swiglu's output and gradient, gate_up's, dqkv, and a few of the hidden size.
    let mut working = 4 * f + qkv + query + 6 * c;
    if settings.method != TrainMethod::Full {
        // A projection's output and gradient beside the fused ones, and its part of the input's gradient.
        working += 2 * f + 2 * c;
    }
    // In bf16 blocks are kept in half the bytes, and the one whose backward runs is in f32 beside.
    let (kept, working) = match settings.precision {
        TrainPrecision::F32 => (F32 * block, F32 * working),
        TrainPrecision::Bf16 => (F32 / 2 * block, F32 * (working + block)),
    };
    let layers = config.num_hidden_layers;
    working
        + match settings.recompute_blocks() {
            0 => layers * kept,
            // The inputs of the groups stay in f32.
            group => layers.div_ceil(group) * F32 * c + group.min(layers) * kept,
        }
}

/// Floating-point operations of training per token, forward and backward, for sequences of `length` tokens.
///
/// Six per trained matrix value, four per frozen one (no weight gradient), the causal half of attention; norms and
/// element-wise work do not count.
pub fn flops_per_token(config: &DecoderConfig, length: usize, adapter_parameters: usize) -> f64 {
    let block: usize = Projection::ALL.iter().map(|projection| projection.shape(config)).map(|(o, i)| o * i).sum();
    let matrices = (config.num_hidden_layers * block + config.vocab_size * config.hidden_size) as f64;
    let attention = (2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length) as f64;
    let per_value = if adapter_parameters > 0 { 4.0 } else { 6.0 };
    per_value * matrices + 6.0 * adapter_parameters as f64 + 3.0 * attention
}

/// Operations per second of a large product on this machine: the peak that utilisation is measured against.
pub fn measured_flops() -> Result<f64> {
    const SIZE: usize = 768;
    let a = Tensor::ones((SIZE, SIZE), candle_core::DType::F32, &Device::Cpu)?;
    let mut best = f64::INFINITY;
    // The best of several: beside other work, few of them run undisturbed.
    for _ in 0..16 {
        let begun = Instant::now();
        linear(&a, &a, None, None, Precision::F32)?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best)
}

/// Memory that is free on this machine, within the limit of its control group; `None` where nothing tells.
pub fn available_bytes() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |text: String| text.trim().parse::<usize>().ok();
    let meminfo = read("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? * 1024;
    let limit = read("/sys/fs/cgroup/memory.max").and_then(number);
    let used = read("/sys/fs/cgroup/memory.current").and_then(number).unwrap_or(0);
    Some(limit.map_or(free, |limit| free.min(limit.saturating_sub(used))))
}

pub(super) fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::OptimizerKind;

    fn shape() -> Result<DecoderConfig> {
        DecoderConfig::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama"))
    }

    #[test]
    fn an_adapter_needs_less_than_full_training_and_checkpointing_less_than_none() -> Result<()> {
        let config = shape()?;
        let full = TrainConfig::default();
        let lora = TrainConfig { method: TrainMethod::Lora, ..full.clone() };
        let block = TrainConfig { activation_checkpointing: ActivationCheckpointing::Block, ..full.clone() };
        let of = |settings: &TrainConfig| Forecast::new(&config, settings, 256);
        let (full, lora, block) = (of(&full)?, of(&lora)?, of(&block)?);
        assert_eq!(full.weights, 4 * Layout::new(&config).len);
        assert_eq!((full.gradients, full.optimizer), (full.weights, 2 * full.weights));
        assert!(lora.weights > full.weights && lora.optimizer == 8 * lora.trained_parameters);
        let qlora = of(&TrainConfig { method: TrainMethod::QLora, ..TrainConfig::default() })?;
        assert!(
            qlora.weights < lora.weights && qlora.optimizer == lora.optimizer && qlora.parameters == lora.parameters
        );
        assert!(block.activations < full.activations && block.optimizer == full.optimizer);
        let precise = TrainConfig::default();
        // With two blocks the one that is in f32 beside the halved ones eats up what they save.
        let deep = DecoderConfig { num_hidden_layers: 8, ..config.clone() };
        let bf16 = TrainConfig { precision: TrainPrecision::Bf16, ..precise.clone() };
        let [bf16, f32] = [&bf16, &precise].map(|settings| Forecast::new(&deep, settings, 256));
        let (bf16, f32) = (bf16?, f32?);
        assert!(bf16.activations < f32.activations && bf16.weights == f32.weights);
        let checkpointing = ActivationCheckpointing::EveryN;
        let every =
            TrainConfig { activation_checkpointing: checkpointing, activation_checkpointing_n: 1, ..precise.clone() };
        assert_eq!(of(&every)?, block);
        let eight = of(&TrainConfig { optimizer: OptimizerKind::Adamw8bit, ..precise })?;
        assert!(eight.optimizer < full.optimizer && eight.gradients == full.gradients);
        Ok(())
    }

    #[test]
    fn what_cannot_fit_is_refused_with_what_would() -> Result<()> {
        let (config, settings) = (shape()?, TrainConfig::default());
        let forecast = Forecast::new(&config, &settings, 100)?;
        forecast.check(forecast.total(), &config, &settings, 100)?;
        let error = forecast.check(forecast.total() - 1, &config, &settings, 100).expect_err("a byte too much");
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("`train.activation_checkpointing = \"block\"`"), "{error}");
        let error = forecast.check(1000, &config, &settings, 100).expect_err("nothing fits");
        assert!(error.to_string().contains("would fit either"), "{error}");
        Ok(())
    }
}
