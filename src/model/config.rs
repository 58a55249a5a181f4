//! `config.json` of Hugging Face decoders: Llama, Mistral, Qwen2 and Qwen3, in both spellings.
//!
//! transformers 5 writes `rope_parameters` and `dtype`; most of the world `rope_theta`, `rope_scaling`, `torch_dtype`.
//! Both are read. A key that changes the arithmetic in a way that this program does not have is an error, never ignored.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::GgufTensors;
use crate::{gguf::is_gguf, records::read_json};

/// Architectures that this program computes.
pub const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

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
    /// Per layer: how many positions back attention reaches, its own included; `None` is all.
    pub sliding_window: Vec<Option<usize>>,
    /// Tokens that end a sequence; `generation_config.json` wins over `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// The file as read, for writing it again.
    pub raw: Map<String, Value>,
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
    /// Reads `config.json` (and `generation_config.json`) of a model directory, or the metadata of a GGUF file.
    ///
    /// **Errors**: name the file, the key and what is supported.
    pub fn load(directory: &Path) -> Result<Self> {
        if is_gguf(directory) {
            let raw = GgufTensors::config_json(directory);
            return raw
                .and_then(|raw| Self::parse(raw, &Map::new()))
                .with_context(|| format!("in `{}`", directory.display()));
        }
        let path = directory.join("config.json");
        if !path.exists() {
            bail!(
                "`{}` has no `config.json`; expected a Hugging Face model directory (config.json, model.safetensors, \
                 tokenizer.json)",
                directory.display()
            );
        }
        let raw: Map<String, Value> = read_json(&path)?;
        let generation = directory.join("generation_config.json");
        let generation: Map<String, Value> = if generation.exists() { read_json(&generation)? } else { Map::new() };
        Self::parse(raw, &generation).with_context(|| format!("in `{}`", path.display()))
    }

    fn parse(raw: Map<String, Value>, generation: &Map<String, Value>) -> Result<Self> {
        let keys = Keys(&raw);
        let model_type = keys.text("model_type").unwrap_or("(none)").to_owned();
        if !MODEL_TYPES.contains(&model_type.as_str()) {
            bail!("unknown architecture: `model_type` is `{model_type}`, supported are {}", MODEL_TYPES.join(", "));
        }
        refuse_what_is_not_computed(&keys)?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_key_value_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        let hidden_size = keys.size("hidden_size")?;
        let head_dim = keys.optional_size("head_dim")?.unwrap_or(hidden_size / num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            bail!("{num_attention_heads} attention heads are not a multiple of {num_key_value_heads} key/value heads");
        }
        if !head_dim.is_multiple_of(2) {
            bail!("`head_dim` is {head_dim}, but rotary embedding needs an even number");
        }
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let bias = keys.flag("attention_bias")?.unwrap_or(false);
        let (rope_theta, rope_scaling) = rope(&keys)?;
        Ok(Self {
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: keys.optional_size("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            // Qwen2 always has biases on q, k and v, and no key for it.
            attention_bias: model_type == "qwen2" || bias,
            attention_output_bias: model_type != "qwen2" && bias,
            qk_norm: model_type == "qwen3",
            sliding_window: sliding_windows(&keys, &model_type, num_hidden_layers)?,
            eos_token_ids: match token_ids(generation, "eos_token_id")? {
                ids if ids.is_empty() => token_ids(&raw, "eos_token_id")?,
                ids => ids,
            },
            bos_token_id: token_ids(&raw, "bos_token_id")?.first().copied(),
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            model_type,
            raw,
        })
    }

    /// Head counts of one layer's attention.
    pub fn heads(&self, layer: usize) -> glan_kernels::attention::Heads {
        glan_kernels::attention::Heads {
            query: self.num_attention_heads,
            key_value: self.num_key_value_heads,
            dim: self.head_dim,
            window: self.sliding_window[layer],
        }
    }
}

/// Typed access to the file's keys; a `null` counts as absent.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key)
            .map(|value| value.as_f64().with_context(|| format!("`{key}` is {value}, expected a number")))
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.value(key)
            .map(|value| value.as_bool().with_context(|| format!("`{key}` is {value}, expected true or false")))
            .transpose()
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        self.value(key)
            .map(|value| {
                value
                    .as_u64()
                    .filter(|&size| size > 0)
                    .and_then(|size| usize::try_from(size).ok())
                    .with_context(|| format!("`{key}` is {value}, expected a whole number above 0"))
            })
            .transpose()
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.with_context(|| format!("`{key}` is missing"))
    }
}

fn refuse_what_is_not_computed(keys: &Keys) -> Result<()> {
    if let Some(act) = keys.text("hidden_act").filter(|&act| act != "silu" && act != "swish") {
        bail!("`hidden_act` is `{act}`, supported is `silu`");
    }
    if keys.flag("mlp_bias")? == Some(true) {
        bail!("`mlp_bias` is true, which is not supported");
    }
    if let Some(factor) = keys.number("partial_rotary_factor")?.filter(|&factor| factor != 1.0) {
        bail!("`partial_rotary_factor` is {factor}, supported is 1");
    }
    if let Some(quantization) = keys.value("quantization_config") {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        bail!("the weights are quantised (`quantization_config`, method `{method}`); use the unquantised checkpoint");
    }
    Ok(())
}

/// Base and scaling of the rotary frequencies, from either spelling.
fn rope(keys: &Keys) -> Result<(f64, RopeScaling)> {
    let empty = Map::new();
    let (name, parameters) = match (keys.value("rope_parameters"), keys.value("rope_scaling")) {
        (Some(Value::Object(map)), _) => ("rope_parameters", map),
        (None, Some(Value::Object(map))) => ("rope_scaling", map),
        (None, None) => ("rope_scaling", &empty),
        (Some(other), _) | (None, Some(other)) => bail!("the rope settings are {other}, expected an object"),
    };
    let scaling = Keys(parameters);
    let theta = match scaling.number("rope_theta")? {
        Some(theta) => theta,
        None => keys.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let need = |key: &str| scaling.number(key)?.with_context(|| format!("`{name}.{key}` is missing"));
    let kind = scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default");
    let rope_scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position_embeddings: scaling.size("original_max_position_embeddings")?,
        },
        other => bail!("`{name}` has type `{other}`, supported are default, linear and llama3"),
    };
    Ok((theta, rope_scaling))
}

/// Which layers see only a window. Mistral: all, when set. Qwen: those that `layer_types` or `max_window_layers` name,
/// when `use_sliding_window` is true.
fn sliding_windows(keys: &Keys, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let used = match model_type {
        "mistral" => true,
        "qwen2" | "qwen3" => keys.flag("use_sliding_window")?.unwrap_or(false),
        _ => false,
    };
    let Some(window) = keys.optional_size("sliding_window")?.filter(|_| used) else { return Ok(vec![None; layers]) };
    if let Some(Value::Array(types)) = keys.value("layer_types").filter(|_| model_type != "mistral") {
        if types.len() != layers {
            bail!("`layer_types` names {} layers, `num_hidden_layers` is {layers}", types.len());
        }
        return Ok(types.iter().map(|kind| (kind == "sliding_attention").then_some(window)).collect());
    }
    let first = if model_type == "mistral" { 0 } else { keys.value("max_window_layers").map_or(28, as_index) };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}

fn as_index(value: &Value) -> usize {
    value.as_u64().and_then(|value| usize::try_from(value).ok()).unwrap_or(usize::MAX)
}

/// A token id, a list of them, or nothing.
fn token_ids(map: &Map<String, Value>, key: &str) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("`{key}` holds {value}, expected a token id"))
    };
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<DecoderConfig> {
        DecoderConfig::parse(serde_json::from_str(json).expect("test JSON"), &Map::new())
    }

    const BASE: &str =
        r#""hidden_size":64,"num_attention_heads":4,"num_hidden_layers":2,"vocab_size":99,"intermediate_size":96"#;

    #[test]
    fn both_spellings_of_rope_agree() -> Result<()> {
        let scaling = r#""rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":64"#;
        let new =
            parse(&format!(r#"{{"model_type":"llama",{BASE},"rope_parameters":{{"rope_theta":5e5,{scaling}}}}}"#))?;
        let old = parse(&format!(r#"{{"model_type":"llama",{BASE},"rope_theta":5e5,"rope_scaling":{{{scaling}}}}}"#))?;
        assert_eq!((new.rope_theta, &new.rope_scaling), (old.rope_theta, &old.rope_scaling));
        assert_eq!(new.rope_theta, 5e5);
        assert!(matches!(new.rope_scaling, RopeScaling::Llama3 { .. }));
        Ok(())
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (extra, expected) in [
            (r#""model_type":"gpt2""#, "gpt2"),
            (r#""model_type":"llama","hidden_act":"gelu""#, "gelu"),
            (r#""model_type":"llama","rope_scaling":{"rope_type":"yarn","factor":2}"#, "yarn"),
            (r#""model_type":"llama","quantization_config":{"quant_method":"gptq"}"#, "gptq"),
            (r#""model_type":"llama","head_dim":7"#, "head_dim"),
            (r#""model_type":"llama","num_key_value_heads":3"#, "multiple"),
            (r#""model_type":"llama","vocab_size":-1"#, "vocab_size"),
        ] {
            let error = parse(&format!("{{{BASE},{extra}}}")).expect_err(expected);
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }

    #[test]
    fn windows_follow_each_family() -> Result<()> {
        let of = |extra: &str| parse(&format!("{{{BASE},{extra}}}")).map(|config| config.sliding_window);
        assert_eq!(of(r#""model_type":"mistral","sliding_window":8"#)?, [Some(8), Some(8)]);
        assert_eq!(of(r#""model_type":"qwen2","sliding_window":8"#)?, [None, None]);
        let qwen = r#""model_type":"qwen2","sliding_window":8,"use_sliding_window":true"#;
        assert_eq!(of(&format!(r#"{qwen},"max_window_layers":1"#))?, [None, Some(8)]);
        let types = r#""layer_types":["sliding_attention","full_attention"]"#;
        assert_eq!(of(&format!("{qwen},{types}"))?, [Some(8), None]);
        Ok(())
    }
}
