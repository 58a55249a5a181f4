//! What a decoder becomes in a GGUF file: keys, tensors, and the type of each.

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use super::{ROPE_FREQS, is_permuted, permuted_row, rope_factors, tensor_name};
use crate::{
    gguf::{Metadata, TensorPlan, TensorType, quantize},
    model::{DecoderConfig, Layout, NamedTensor, RopeScaling},
};

/// How the matrices of a file are packed; vectors are f32 in every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// 32 bits, nothing lost.
    F32,
    /// 16 bits, 11 of them significant.
    F16,
    /// 16 bits, 8 of them significant, the range of f32.
    Bf16,
    /// 8.5 bits per weight, blocks of 32.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 6.6 bits per weight, blocks of 256.
    #[value(name = "q6_k")]
    #[serde(rename = "q6_k")]
    Q6K,
    /// 5.5 bits per weight, the sensitive matrices in Q6_K.
    #[value(name = "q5_k_m")]
    #[serde(rename = "q5_k_m")]
    Q5KM,
    /// 4.5 bits per weight, the sensitive matrices in Q6_K.
    #[value(name = "q4_k_m")]
    #[serde(rename = "q4_k_m")]
    Q4KM,
    /// 4.5 bits per weight, blocks of 32; the oldest of them.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl Quantization {
    /// The word that names it on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// llama.cpp's number of this mixture, `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    fn base(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::BF16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q6K => TensorType::Q6K,
            Self::Q5KM => TensorType::Q5K,
            Self::Q4KM => TensorType::Q4K,
            Self::Q4_0 => TensorType::Q4_0,
        }
    }

    /// The type of one tensor, before its row length is looked at.
    ///
    /// **Source**: `llama_tensor_get_type` of llama.cpp, without an importance matrix.
    fn wanted(self, config: &DecoderConfig, tensor: &NamedTensor) -> TensorType {
        if tensor.shape.len() < 2 {
            return TensorType::F32;
        }
        let name = tensor.name.as_str();
        let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let is_plain = matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0);
        if name == head && !is_plain {
            return TensorType::Q6K;
        }
        let sensitive = name.ends_with("v_proj.weight") || name.ends_with("down_proj.weight");
        if matches!(self, Self::Q4KM | Self::Q5KM) && sensitive && uses_more_bits(config, name) {
            return TensorType::Q6K;
        }
        self.base()
    }
}

/// The first and the last eighth of the layers, and every third between.
fn uses_more_bits(config: &DecoderConfig, name: &str) -> bool {
    let layers = config.num_hidden_layers;
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    let Some(layer) = layer.and_then(|layer| layer.parse::<usize>().ok()) else { return false };
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The type that llama.cpp falls back on where rows are no whole number of blocks.
fn fitting(kind: TensorType, row: usize) -> TensorType {
    let fits = |kind: TensorType| kind.block().is_some_and(|(len, _)| row.is_multiple_of(len));
    let next = match kind {
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        TensorType::Q6K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    match (fits(kind), fits(next)) {
        (true, _) => kind,
        (false, true) => next,
        (false, false) => TensorType::F16,
    }
}

/// A file that is to be written: where each tensor comes from and how it is packed.
pub struct GgufPlan {
    /// `general.…` and the architecture's keys; the tokenizer's are added by the caller.
    pub metadata: Metadata,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorPlan>,
    /// What the reader of the file should know.
    pub notes: Vec<String>,
    sources: Vec<Source>,
    architecture: &'static str,
    head_dim: usize,
}

enum Source {
    Parameter(NamedTensor),
    Values(Vec<f32>),
}

impl GgufPlan {
    /// Plans the file of a model; `name` becomes `general.name`.
    ///
    /// **Errors**: what the format has no place for, such as windows on some layers only.
    pub fn new(config: &DecoderConfig, layout: &Layout, quantization: Quantization, name: &str) -> Result<Self> {
        let architecture = match config.model_type.as_str() {
            "qwen2" => "qwen2",
            "qwen3" => "qwen3",
            _ => "llama",
        };
        let mut plan = Self {
            metadata: Metadata::default(),
            tensors: Vec::new(),
            notes: Vec::new(),
            sources: Vec::new(),
            architecture,
            head_dim: config.head_dim,
        };
        plan.describe(config, quantization, name)?;
        if let Some(divisors) = rope_factors::divisors(&config.rope_scaling, config.rope_theta, config.head_dim) {
            plan.push(ROPE_FREQS.into(), vec![divisors.len()], TensorType::F32, Source::Values(divisors));
        }
        let mut fallbacks: Vec<String> = Vec::new();
        for tensor in layout.tensors.iter() {
            let Some(name) = tensor_name(&tensor.name) else { bail!("`{}` has no name in GGUF files", tensor.name) };
            let wanted = quantization.wanted(config, tensor);
            let kind = fitting(wanted, tensor.shape.last().copied().unwrap_or(1));
            if kind != wanted {
                let blocks = wanted.block().map_or(0, |(len, _)| len);
                let row = tensor.shape.last().copied().unwrap_or(1);
                let note = format!(
                    "rows of {row} values are no multiple of {blocks}: {} instead of {}",
                    kind.name(),
                    wanted.name()
                );
                if !fallbacks.contains(&note) {
                    fallbacks.push(note);
                }
            }
            plan.push(name, tensor.shape.clone(), kind, Source::Parameter(tensor.clone()));
        }
        plan.notes.extend(fallbacks);
        Ok(plan)
    }

    fn push(&mut self, name: String, shape: Vec<usize>, kind: TensorType, source: Source) {
        self.tensors.push(TensorPlan { name, shape, kind });
        self.sources.push(source);
    }

    fn describe(&mut self, config: &DecoderConfig, quantization: Quantization, name: &str) -> Result<()> {
        let metadata = &mut self.metadata;
        metadata.set("general.architecture", self.architecture);
        metadata.set("general.type", "model");
        metadata.set("general.name", name);
        metadata.set("general.file_type", quantization.file_type());
        metadata.set("general.quantization_version", 2u32);
        let key = |name: &str| format!("{}.{name}", self.architecture);
        for (name, size) in [
            ("block_count", config.num_hidden_layers),
            ("context_length", config.max_position_embeddings),
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
            ("rope.dimension_count", config.head_dim),
            ("vocab_size", config.vocab_size),
        ] {
            metadata.set(&key(name), size);
        }
        metadata.set(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
        metadata.set(&key("rope.freq_base"), config.rope_theta);
        if let RopeScaling::Linear { factor } = config.rope_scaling {
            metadata.set(&key("rope.scaling.type"), "linear");
            metadata.set(&key("rope.scaling.factor"), factor);
        }
        match config.sliding_window.first().copied().flatten() {
            _ if config.sliding_window.windows(2).any(|pair| pair[0] != pair[1]) => {
                bail!("only some layers have a sliding window, which GGUF files of `{}` cannot say", self.architecture);
            }
            None => {}
            Some(window) => {
                metadata.set(&key("attention.sliding_window"), window);
                self.notes.push(format!(
                    "the model attends to the last {window} tokens; this program reads that from the file, llama.cpp \
                     ignores it for `{}`",
                    self.architecture
                ));
            }
        }
        Ok(())
    }

    /// The parameter behind tensor `number`; `None` for one that is computed.
    pub fn parameter(&self, number: usize) -> Option<&NamedTensor> {
        match &self.sources[number] {
            Source::Parameter(tensor) => Some(tensor),
            Source::Values(_) => None,
        }
    }

    /// The packed bytes of tensor `number`; `values` are those of [`GgufPlan::parameter`].
    ///
    /// **Errors**: a value that the type cannot hold.
    pub fn pack(&self, number: usize, values: &[f32]) -> Result<Vec<u8>> {
        let plan = &self.tensors[number];
        let row = plan.shape.last().copied().unwrap_or(1);
        match &self.sources[number] {
            Source::Values(values) => quantize(plan.kind, values, row),
            Source::Parameter(tensor) if is_permuted(self.architecture, &tensor.name) => {
                let width = values.len() / tensor.shape[0].max(1);
                let mut permuted = vec![0f32; values.len()];
                for (at, values) in values.chunks(width).enumerate() {
                    let to = permuted_row(at, self.head_dim) * width;
                    permuted[to..to + width].copy_from_slice(values);
                }
                quantize(plan.kind, &permuted, row)
            }
            Source::Parameter(_) => quantize(plan.kind, values, row),
        }
    }
}
