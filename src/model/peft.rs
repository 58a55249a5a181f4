//! Adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Which projections have an adapter is read off the tensors, not off `target_modules` (a list, a pattern or a word).
//! A setting that changes the arithmetic in a way that [`super::lora`] does not have is an error, never ignored.

use std::{borrow::Cow, collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Map, Value, json};

use super::{Adapter, AdapterShape, DecoderConfig, Projection};
use crate::{
    model_dir,
    records::{read_json, write_atomic, write_json},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The directory of the base model, where `directory` holds an adapter and no model of its own.
///
/// **Errors**: the base that `base_model_name_or_path` names is not there.
pub fn adapter_base(directory: &Path) -> Result<Option<std::path::PathBuf>> {
    let path = directory.join(CONFIG);
    if !path.is_file() || directory.join("config.json").exists() {
        return Ok(None);
    }
    let config: Map<String, Value> = read_json(&path)?;
    let Some(base) = config.get("base_model_name_or_path").and_then(Value::as_str) else {
        bail!(
            "`{}` has no `base_model_name_or_path`; expected the directory or name of the base model",
            path.display()
        );
    };
    let found = model_dir::resolve(base)
        .with_context(|| format!("the base model of the adapter in `{}`", directory.display()))?;
    Ok(Some(found))
}

/// Reads an adapter for a model of this shape.
///
/// **Errors**: name the file and the setting or tensor that does not fit.
pub fn load_adapter(directory: &Path, config: &DecoderConfig) -> Result<Adapter> {
    let path = directory.join(CONFIG);
    let settings: Map<String, Value> = read_json(&path)?;
    let mut shape = read_settings(&settings).with_context(|| format!("in `{}`", path.display()))?;
    let path = directory.join(WEIGHTS);
    let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("`{}` is not a whole safetensors file ({} bytes)", path.display(), bytes.len()))?;
    read_tensors(&tensors, &mut shape, config).with_context(|| format!("in `{}`", path.display()))
}

fn read_settings(settings: &Map<String, Value>) -> Result<AdapterShape> {
    let text = |key: &str| settings.get(key).and_then(Value::as_str);
    if text("peft_type") != Some("LORA") {
        bail!("`peft_type` is {}, supported is \"LORA\"", settings.get("peft_type").unwrap_or(&Value::Null));
    }
    for key in UNSUPPORTED {
        let value = settings.get(key).unwrap_or(&Value::Null);
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::String(word) => key == "bias" && word == "none",
            Value::Bool(true) | Value::Number(_) => false,
        };
        if !is_off {
            bail!("`{key}` is {value}, which is not supported");
        }
    }
    if let Some(init @ ("pissa" | "olora" | "corda" | "loftq" | "lora_ga")) = text("init_lora_weights") {
        bail!(
            "`init_lora_weights` is `{init}`: the adapter belongs to a changed base (convert it to plain LoRA in peft)"
        );
    }
    let r = settings.get("r").and_then(Value::as_u64).unwrap_or(0);
    let Some(lora_alpha) = settings.get("lora_alpha").and_then(Value::as_f64).filter(|_| r > 0) else {
        bail!("expected `r` above 0 and a number `lora_alpha`");
    };
    let flag = |key: &str| settings.get(key) == Some(&Value::Bool(true));
    let (use_rslora, use_dora) = (flag("use_rslora"), flag("use_dora"));
    Ok(AdapterShape { r: usize::try_from(r)?, lora_alpha, use_rslora, use_dora, targets: Vec::new() })
}

/// Settings that must be off: each changes what is computed.
const UNSUPPORTED: [&str; 13] = [
    "bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
];

fn read_tensors(tensors: &SafeTensors, shape: &mut AdapterShape, config: &DecoderConfig) -> Result<Adapter> {
    let mut targets = BTreeSet::new();
    let mut unknown = Vec::new();
    for name in tensors.names() {
        match target(name) {
            Some(target) => drop(targets.insert(target)),
            None => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        bail!("tensor `{}` belongs to no projection of a decoder block", unknown[0]);
    }
    shape.targets = targets.into_iter().collect();
    if let Some((layer, _)) = shape.targets.iter().find(|(layer, _)| *layer >= config.num_hidden_layers) {
        bail!("the adapter speaks of layer {layer}, the model has {}", config.num_hidden_layers);
    }
    let layout = shape.layout(config);
    let mut values = Vec::with_capacity(layout.len);
    for expected in layout.tensors.iter() {
        let Ok(view) = tensors.tensor(&expected.name) else { bail!("there is no tensor `{}`", expected.name) };
        if view.shape() != expected.shape {
            let name = &expected.name;
            bail!("`{name}` has shape {:?}, but base model and `r` ask for {:?}", view.shape(), expected.shape);
        }
        let bytes = view.data();
        match view.dtype() {
            Dtype::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Dtype::BF16 => {
                values.extend(bytes.as_chunks::<2>().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()));
            }
            Dtype::F16 => {
                values.extend(bytes.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()));
            }
            other => bail!("`{}` has type {other:?}, supported are F32, BF16 and F16", expected.name),
        }
    }
    let arena = Tensor::from_vec(values, layout.len, &Device::Cpu)?;
    Adapter::from_arena(config, shape.clone(), arena)
}

/// Layer and projection of a tensor's name.
fn target(name: &str) -> Option<(usize, Projection)> {
    let rest = name.strip_prefix("base_model.model.model.layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    let projection = Projection::ALL.into_iter().find(|projection| {
        rest.strip_prefix(projection.path())
            .is_some_and(|part| matches!(part, ".lora_A.weight" | ".lora_B.weight" | ".lora_magnitude_vector"))
    })?;
    Some((layer.parse().ok()?, projection))
}

/// Writes an adapter as PEFT reads it, in f32.
///
/// `base` is what `base_model_name_or_path` names; `lora_dropout` is kept for those who train on.
pub fn save_adapter(adapter: &Adapter, directory: &Path, base: &str, lora_dropout: f64) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    let values = glan_kernels::to_vec(&adapter.arena)?;
    let tensors = adapter.layout.tensors.iter().map(|tensor| {
        let values = &values[tensor.offset..tensor.offset + tensor.len()];
        (tensor.name.clone(), F32 { shape: &tensor.shape, values })
    });
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).context("cannot serialise the adapter")?;
    write_atomic(&directory.join(WEIGHTS), &bytes)?;
    let shape = &adapter.shape;
    let modules: BTreeSet<Projection> = shape.targets.iter().map(|(_, projection)| *projection).collect();
    let modules: Vec<&str> = modules.into_iter().map(Projection::name).collect();
    let layers: BTreeSet<usize> = shape.targets.iter().map(|(layer, _)| *layer).collect();
    let all_layers = layers.last().is_none_or(|last| layers.len() == last + 1);
    // PEFT's alpha is an integer by its type, but it takes a fraction; whole numbers are written as such.
    let alpha = if shape.lora_alpha.fract() == 0.0 { json!(shape.lora_alpha as i64) } else { json!(shape.lora_alpha) };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": null,
        "inference_mode": true,
        "r": shape.r,
        "lora_alpha": alpha,
        "lora_dropout": lora_dropout,
        "target_modules": modules,
        "layers_to_transform": if all_layers { Value::Null } else { json!(layers) },
        "use_rslora": shape.use_rslora,
        "use_dora": shape.use_dora,
        "init_lora_weights": true,
        "bias": "none",
        "fan_in_fan_out": false,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    });
    write_json(&directory.join(CONFIG), &config)
}

struct F32<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for F32<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_change_the_arithmetic_are_refused_by_name() -> Result<()> {
        let plain = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "rank_pattern": {}});
        let with = |key: &str, value: Value| {
            let mut settings = plain.as_object().cloned().unwrap_or_default();
            settings.insert(key.to_owned(), value);
            read_settings(&settings)
        };
        assert_eq!(with("use_rslora", json!(true))?.scale(), 16.0 / 8f64.sqrt());
        assert_eq!(with("use_rslora", json!(false))?.scale(), 2.0);
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"q_proj": 4})),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("r", json!(0)),
        ] {
            let error = with(key, value).expect_err(key).to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
        Ok(())
    }

    #[test]
    fn names_are_read_as_layer_and_projection() {
        let name = "base_model.model.model.layers.11.mlp.down_proj.lora_A.weight";
        assert_eq!(target(name), Some((11, Projection::Down)));
        for name in [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight",
        ] {
            assert_eq!(target(name), None, "{name}");
        }
    }
}
