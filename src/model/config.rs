//! `config.json` of Hugging Face decoders: Llama, Mistral, Qwen2 and Qwen3, in both spellings.

use std::path::Path;

use anyhow::Result;

/// The shape of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// `V`
    pub vocab_size: usize,
    /// `C`
    pub hidden_size: usize,
    /// `F`
    pub intermediate_size: usize,
    /// `L`
    pub num_hidden_layers: usize,
    /// `H`
    pub num_attention_heads: usize,
    /// `K`
    pub num_key_value_heads: usize,
    /// `D`
    pub head_dim: usize,
    /// Longest position plus one.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether the output projection of attention has a bias (Llama's `attention_bias` alone).
    pub attention_output_bias: bool,
    /// Whether q and k are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Per layer: how many positions back attention reaches; `None` is all.
    pub sliding_window: Vec<Option<usize>>,
    /// Tokens that end a sequence; `generation_config.json` wins over `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
}

/// How rotary frequencies are stretched beyond the trained length.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Ramp's low end.
        low_freq_factor: f64,
        /// Ramp's high end.
        high_freq_factor: f64,
        /// Length that the model was first trained at.
        original_max_position_embeddings: usize,
    },
}

impl DecoderConfig {
    /// Reads `config.json` (and `generation_config.json`) of a model directory.
    ///
    /// **Errors**: name the file, the key and what is supported.
    pub fn load(directory: &Path) -> Result<Self> {
        anyhow::bail!("cannot read `{}`", directory.display())
    }
}
