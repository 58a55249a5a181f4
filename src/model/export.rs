//! Writes a Hugging Face model directory.

use std::{borrow::Cow, path::Path};

use anyhow::{Context, Result};
use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};

use super::{Decoder, DecoderConfig, NamedTensor};
use crate::records::{write_atomic, write_json};

/// Writes `config.json` (in the older, widely read spelling), `generation_config.json` and `model.safetensors`.
///
/// `dtype` is `f32`, `bf16` or `f16`; `eos_token_ids` end a sequence. Tokenizer files are copied by the caller.
pub fn export(model: &Decoder, directory: &Path, dtype: Dtype, eos_token_ids: &[u32]) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    write_config(&model.config, directory, dtype, eos_token_ids)?;
    let values = glan_kernels::to_vec(&model.weights.arena)?;
    let tensors = model.layout.tensors.iter().map(|tensor| {
        let part = &values[tensor.offset..tensor.offset + tensor.len()];
        (tensor.name.clone(), Part { tensor, values: part, dtype })
    });
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).context("cannot serialise the weights")?;
    write_atomic(&directory.join("model.safetensors"), &bytes)
}

/// Writes `config.json` and `generation_config.json` alone.
pub fn write_config(config: &DecoderConfig, directory: &Path, dtype: Dtype, eos_token_ids: &[u32]) -> Result<()> {
    let mut raw = older_spelling(config.raw.clone());
    let dtype = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        _ => "bfloat16",
    };
    raw.insert("torch_dtype".into(), dtype.into());
    raw.insert("eos_token_id".into(), one_or_list(eos_token_ids));
    write_json(&directory.join("config.json"), &raw)?;
    let mut generation = Map::new();
    if let Some(bos) = config.bos_token_id {
        generation.insert("bos_token_id".into(), bos.into());
    }
    generation.insert("eos_token_id".into(), one_or_list(eos_token_ids));
    write_json(&directory.join("generation_config.json"), &generation)
}

fn one_or_list(ids: &[u32]) -> Value {
    if let [id] = ids { json!(id) } else { json!(ids) }
}

/// `rope_parameters` → `rope_theta` and `rope_scaling`; `dtype` → `torch_dtype`.
fn older_spelling(mut raw: Map<String, Value>) -> Map<String, Value> {
    raw.shift_remove("dtype");
    if let Some(Value::Object(mut rope)) = raw.shift_remove("rope_parameters") {
        if let Some(theta) = rope.shift_remove("rope_theta") {
            raw.insert("rope_theta".into(), theta);
        }
        let default = rope.get("rope_type").is_none_or(|kind| kind == "default");
        raw.insert("rope_scaling".into(), if default { Value::Null } else { Value::Object(rope) });
    }
    raw
}

struct Part<'a> {
    tensor: &'a NamedTensor,
    values: &'a [f32],
    dtype: Dtype,
}

impl View for Part<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.dtype {
            Dtype::F32 => self.values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::F16 => self.values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            _ => self.values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.values.len() * if self.dtype == Dtype::F32 { 4 } else { 2 }
    }
}
