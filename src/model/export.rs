//! Writes a Hugging Face model directory.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{
    Decoder, DecoderConfig, NamedTensor,
    tensor_file::{Entry, bytes_per_value, write_tensors},
};
use crate::records::write_json;

/// Hugging Face's limit for a file of weights.
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// [`export_sharded`] with files of at most [`MAX_SHARD_BYTES`].
pub fn export(model: &Decoder, directory: &Path, dtype: Dtype, eos_token_ids: &[u32]) -> Result<()> {
    export_sharded(model, directory, dtype, eos_token_ids, MAX_SHARD_BYTES)
}

/// Writes `config.json` (in the older, widely read spelling), `generation_config.json` and `model.safetensors`; where that
/// would be above `max_shard_bytes`, `model-00001-of-N.safetensors` and so on with `model.safetensors.index.json`. Files of
/// weights that were there before are removed.
///
/// `dtype` is `f32`, `bf16` or `f16`; `eos_token_ids` end a sequence. Tokenizer files are copied by the caller.
pub fn export_sharded(
    model: &Decoder,
    directory: &Path,
    dtype: Dtype,
    eos_token_ids: &[u32],
    max_shard_bytes: usize,
) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    remove_weights(directory)?;
    write_config(&model.config, directory, dtype, eos_token_ids)?;
    let size = bytes_per_value(dtype)?;
    let shards = shards(&model.layout.tensors, |tensor| size * tensor.len(), max_shard_bytes);
    let metadata = Map::from_iter([("format".to_owned(), json!("pt"))]);
    let mut weight_map = BTreeMap::new();
    for (index, tensors) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            several => format!("model-{:05}-of-{several:05}.safetensors", index + 1),
        };
        let mut entries = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let values = model.weights.arena.narrow(0, tensor.offset, tensor.len())?;
            entries.push(Entry { name: &tensor.name, shape: &tensor.shape, values });
        }
        write_tensors(&directory.join(&file), &entries, dtype, &metadata)?;
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), file.clone())));
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": size * model.layout.len}, "weight_map": weight_map});
        write_json(&directory.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Tensors, in order, cut into files of at most `limit` bytes; a larger one has a file of its own.
fn shards(tensors: &[NamedTensor], bytes: impl Fn(&NamedTensor) -> usize, limit: usize) -> Vec<Vec<&NamedTensor>> {
    let mut shards: Vec<Vec<&NamedTensor>> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        let bytes = bytes(tensor);
        match shards.last_mut() {
            Some(shard) if filled + bytes <= limit => {
                shard.push(tensor);
                filled += bytes;
            }
            _ => {
                shards.push(vec![tensor]);
                filled = bytes;
            }
        }
    }
    shards
}

/// An earlier attempt may have been cut otherwise, and every file of weights that lies there would be read.
fn remove_weights(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read folder `{}`", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) {
            fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{device::DtypeChoice, model::load_arena};

    #[test]
    fn a_model_above_the_limit_is_cut_into_files_that_load_to_the_same_bits() -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        let model = Decoder::load(&root, &Device::Cpu, DtypeChoice::F32)?;
        let (folder, values) = (tempfile::tempdir()?, glan_kernels::to_vec(&model.weights.arena)?);
        let mut names = Vec::new();
        for (limit, least) in [(60_000, 3), (usize::MAX, 1), (1, model.layout.tensors.len())] {
            export_sharded(&model, folder.path(), Dtype::F32, &[2], limit)?;
            names = fs::read_dir(folder.path())?
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<_>>()?;
            let files = names.iter().filter(|name| name.ends_with(".safetensors")).count();
            assert!(if least > 1 { files >= least } else { files == 1 }, "{limit}: {names:?}");
            assert_eq!(names.iter().any(|name| name.ends_with("index.json")), files > 1);
            let again = load_arena(folder.path(), &model.layout, DtypeChoice::F32)?;
            assert_eq!(glan_kernels::to_vec(&again)?, values, "{limit}");
        }
        let count = model.layout.tensors.len();
        assert!(names.contains(&format!("model-{count:05}-of-{count:05}.safetensors")), "{names:?}");
        Ok(())
    }
}
