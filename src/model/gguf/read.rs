//! Reads configuration and tensors of a GGUF file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::{ARCHITECTURES, ROPE_FREQS, is_permuted, permuted_row, rope_factors, tensor_name};
use crate::{
    gguf::{GgufFile, Metadata, TensorInfo, TensorType},
    model::{Layout, NamedTensor, RopeScaling},
};

/// Texts of tokens that end a turn, where a file does not name them; llama.cpp stops at these too.
///
/// **Source**: `llama_vocab::impl::load` of llama.cpp.
const TURN_ENDS: [&str; 6] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>"];

/// Beyond any model's sizes; keeps products of damaged ones within 64 bits.
const MAX_SIZE: usize = 1 << 24;

/// The tensors of a GGUF file under their Hugging Face names, in Hugging Face's order of rows.
pub struct GgufTensors {
    file: GgufFile,
    architecture: String,
    head_dim: usize,
}

impl GgufTensors {
    /// Opens a file.
    ///
    /// **Errors**: as [`GgufFile::open`]; an architecture that is not known.
    pub fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let keys = Keys::of(&file).with_context(|| format!("in `{}`", path.display()))?;
        let (architecture, head_dim) = (keys.architecture.to_owned(), keys.head_dim()?);
        Ok(Self { file, architecture, head_dim })
    }

    /// The tensor's place in the file, if the file has it.
    ///
    /// **Errors**: another shape than the configuration asks for.
    pub fn find(&self, tensor: &NamedTensor) -> Result<Option<&TensorInfo>> {
        let Some(info) = tensor_name(&tensor.name).and_then(|name| self.file.tensor(&name)) else { return Ok(None) };
        if info.shape != tensor.shape {
            bail!(
                "tensor `{}` of `{}` has shape {:?}, but the metadata ask for {:?}",
                info.name,
                self.file.path.display(),
                info.shape,
                tensor.shape
            );
        }
        Ok(Some(info))
    }

    /// Whole rows of a tensor in f32 (slices along its first dimension), from `first` on.
    ///
    /// **Errors**: a tensor or a row that the file does not have; a type that is not known.
    pub fn read_rows(&self, tensor: &NamedTensor, first: usize, out: &mut [f32]) -> Result<()> {
        let info = self.find(tensor)?;
        let info = info.with_context(|| format!("`{}` has no tensor `{}`", self.file.path.display(), tensor.name))?;
        if !is_permuted(&self.architecture, &tensor.name) {
            return self.file.read_rows(info, first, out);
        }
        if !tensor.shape[0].is_multiple_of(self.head_dim) {
            bail!("tensor `{}` has {} rows, which heads of {} do not fill", info.name, tensor.shape[0], self.head_dim);
        }
        out.par_chunks_mut(tensor.len() / tensor.shape[0])
            .enumerate()
            .try_for_each(|(row, out)| self.file.read_rows(info, permuted_row(first + row, self.head_dim), out))
    }

    /// The blocks of a tensor in Hugging Face's order of rows, where the file holds them in this type.
    ///
    /// **Errors**: as [`read_rows`](Self::read_rows).
    pub fn read_blocks(&self, tensor: &NamedTensor, kind: TensorType) -> Result<Option<Vec<u8>>> {
        let Some(info) = self.find(tensor)?.filter(|info| info.kind == kind) else { return Ok(None) };
        let bytes = self.file.bytes(info);
        let rows = tensor.shape[0];
        if !is_permuted(&self.architecture, &tensor.name) {
            return Ok(Some(bytes.to_vec()));
        }
        if !rows.is_multiple_of(self.head_dim) {
            bail!("tensor `{}` has {rows} rows, which heads of {} do not fill", info.name, self.head_dim);
        }
        let width = bytes.len() / rows;
        let row = |row: usize| &bytes[permuted_row(row, self.head_dim) * width..][..width];
        Ok(Some((0..rows).flat_map(row).copied().collect()))
    }

    /// Checks that every tensor of `layout` is there with its shape.
    ///
    /// **Errors**: a tensor that is missing or has another shape.
    pub fn check(&self, layout: &Layout) -> Result<()> {
        let mut missing = Vec::new();
        for tensor in layout.tensors.iter() {
            if self.find(tensor)?.is_none() {
                missing.push(tensor_name(&tensor.name).unwrap_or_else(|| tensor.name.clone()));
            }
        }
        if let Some(first) = missing.first() {
            bail!(
                "`{}` lacks {} of {} tensors that its metadata ask for, such as `{first}`",
                self.file.path.display(),
                missing.len(),
                layout.tensors.len()
            );
        }
        Ok(())
    }

    /// The `config.json` that this model would have.
    ///
    /// **Errors**: name the key: missing, of another type, or of a value that this program does not compute.
    pub fn config_json(path: &Path) -> Result<Map<String, Value>> {
        let file = GgufFile::open(path)?;
        Keys::of(&file)?.config_json()
    }
}

/// A file's keys under its architecture's prefix.
struct Keys<'a> {
    file: &'a GgufFile,
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn of(file: &'a GgufFile) -> Result<Self> {
        let metadata = &file.header.metadata;
        let architecture = metadata.text("general.architecture")?.context("`general.architecture` is missing")?;
        if !ARCHITECTURES.contains(&architecture) {
            bail!(
                "unknown architecture: `general.architecture` is `{architecture}`, supported are {}",
                ARCHITECTURES.join(", ")
            );
        }
        if let Some(parts) = metadata.unsigned("split.count")?.filter(|&parts| parts > 1) {
            bail!("the model is split into {parts} files; put them together with `llama-gguf-split --merge`");
        }
        Ok(Self { file, metadata, architecture })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A size; of an array with one entry per layer, the entry that all have.
    fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let number = match self.metadata.get(&key) {
            Some(crate::gguf::Value::Integers(numbers)) => match numbers.first() {
                Some(first) if numbers.iter().all(|number| number == first) => u64::try_from(*first).ok(),
                _ => bail!("`{key}` differs from layer to layer, which is not supported"),
            },
            _ => self.metadata.unsigned(&key)?,
        };
        match number {
            Some(number) => match usize::try_from(number).ok().filter(|&size| size > 0 && size < MAX_SIZE) {
                Some(size) => Ok(Some(size)),
                None => bail!("`{key}` is {number}, expected a whole number above 0 and below {MAX_SIZE}"),
            },
            None => Ok(None),
        }
    }

    fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?.with_context(|| format!("`{}` is missing", self.key(name)))
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.float(&self.key(name))
    }

    fn head_dim(&self) -> Result<usize> {
        let (hidden, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = self.optional_size("attention.key_length")?.unwrap_or(hidden / heads);
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = self.optional_size(name)?.filter(|&other| other != head_dim) {
                bail!("`{}` is {other} while heads have {head_dim} values, which is not supported", self.key(name));
            }
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("heads have {head_dim} values, but rotary embedding needs an even number above 0");
        }
        if heads * head_dim >= MAX_SIZE {
            bail!("{heads} heads of {head_dim} values are more than any model has");
        }
        Ok(head_dim)
    }

    fn config_json(&self) -> Result<Map<String, Value>> {
        if let Some(experts) = self.metadata.unsigned(&self.key("expert_count"))?.filter(|&experts| experts > 0) {
            bail!("the model has {experts} experts, which is not supported");
        }
        let layers = self.size("block_count")?;
        if layers > self.file.header.tensors.len() {
            bail!(
                "`{}` is {layers}, but the file has {} tensors",
                self.key("block_count"),
                self.file.header.tensors.len()
            );
        }
        let window = self.optional_size("attention.sliding_window")?;
        let model_type = if self.architecture == "llama" && window.is_some() { "mistral" } else { self.architecture };
        let heads = self.size("attention.head_count")?;
        let embedding = self.file.tensor("token_embd.weight").context("tensor `token_embd.weight` is missing")?;
        let theta = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let head_dim = self.head_dim()?;
        let mut config = json!({
            "architectures": [class(model_type)],
            "model_type": model_type,
            "hidden_act": "silu",
            "vocab_size": embedding.shape[0],
            "hidden_size": self.size("embedding_length")?,
            "intermediate_size": self.size("feed_forward_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.optional_size("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.size("context_length")?,
            "rms_norm_eps": self.float("attention.layer_norm_rms_epsilon")?
                .with_context(|| format!("`{}` is missing", self.key("attention.layer_norm_rms_epsilon")))?,
            "rope_theta": theta,
            "rope_scaling": self.rope_scaling(theta, head_dim)?,
            "attention_bias": self.file.tensor("blk.0.attn_q.bias").is_some(),
            "tie_word_embeddings": self.file.tensor("output.weight").is_none(),
            "bos_token_id": self.metadata.unsigned("tokenizer.ggml.bos_token_id")?,
            "eos_token_id": self.eos_token_ids()?,
            "torch_dtype": if embedding.kind == TensorType::BF16 { "bfloat16" } else { "float32" },
        });
        if let Some(window) = window {
            config["sliding_window"] = json!(window);
            config["use_sliding_window"] = json!(true);
            config["max_window_layers"] = json!(0);
        }
        match config {
            Value::Object(map) => Ok(map),
            _ => unreachable!("an object was written"),
        }
    }

    fn rope_scaling(&self, theta: f64, head_dim: usize) -> Result<Value> {
        if let Some(info) = self.file.tensor(ROPE_FREQS) {
            let mut divisors = vec![0f32; info.shape.iter().product()];
            self.file.read(info, &mut divisors)?;
            return match rope_factors::scaling(&divisors, theta, head_dim) {
                Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings,
                }) => Ok(json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                })),
                Some(_) => Ok(Value::Null),
                None => bail!("tensor `{ROPE_FREQS}` does not hold the ramp of Llama 3, which is the one supported"),
            };
        }
        let key = self.key("rope.scaling.type");
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.float("rope.scale_linear")?,
        };
        Ok(match (self.metadata.text(&key)?, factor) {
            (Some("none"), _) | (None, None) => Value::Null,
            (None | Some("linear"), Some(factor)) if factor == 1.0 || factor == 0.0 => Value::Null,
            (None | Some("linear"), Some(factor)) => json!({"rope_type": "linear", "factor": factor}),
            (Some("linear"), None) => bail!("`{}` is missing", self.key("rope.scaling.factor")),
            (Some(other), _) => bail!("`{key}` is `{other}`, supported are none and linear"),
        })
    }

    /// `eos_token_id` and what else ends a turn.
    fn eos_token_ids(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ids.extend(self.metadata.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?);
        }
        if self.metadata.get("tokenizer.ggml.eot_token_id").is_none() {
            let tokens = self.metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
            let ends = tokens.iter().enumerate().filter(|(_, token)| TURN_ENDS.contains(&token.as_str()));
            ids.extend(ends.map(|(id, _)| id as u64));
        }
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(*id));
        Ok(ids)
    }
}

/// transformers' name of the model's class.
fn class(model_type: &str) -> &'static str {
    match model_type {
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        _ => "LlamaForCausalLM",
    }
}
