//! Opens a model directory and puts an engine together.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;

use super::{Engine, EngineParts, ModelRunner, Vocabulary};
use crate::{
    chat_template::ChatTemplate,
    config::EngineConfig,
    device::DtypeChoice,
    error::usage,
    language_model::{LanguageModel, ModelIdentity},
    model::{Decoder, DecoderConfig},
    model_dir,
    tokenizer::Tokenizer,
};

/// Loads a model into an engine. `max_model_len` 0 takes the model's own limit.
///
/// **Errors**: usage, when the model is not found or `max_model_len` exceeds what it was made for; else they name the
/// file at fault.
pub fn load(
    model: &str,
    config: &EngineConfig,
    device: &Device,
    dtype: DtypeChoice,
    max_model_len: usize,
) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(load_engine(model, config, device, dtype, max_model_len)?))
}

/// The same, for callers that stream.
pub fn load_engine(
    model: &str,
    config: &EngineConfig,
    device: &Device,
    dtype: DtypeChoice,
    max_model_len: usize,
) -> Result<Engine<ModelRunner>> {
    check_engine_config(config)?;
    let directory = model_dir::resolve(model)?;
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::load(&directory)?;
    let chat_template = ChatTemplate::load(&directory, &tokenizer)?;
    let decoder = Decoder::load(&directory, device, dtype)
        .with_context(|| format!("cannot load the model in `{}`", directory.display()))?;
    let shape = decoder.config.clone();
    tokenizer.check_fits(shape.vocab_size).with_context(|| format!("`{}`", directory.display()))?;
    let max_model_len = resolve_max_model_len(max_model_len, &shape)?;
    let eos_token_ids = eos_token_ids(&shape, &tokenizer);
    let prefix_token_id =
        tokenizer.bos_token_id().or(tokenizer.eos_token_id()).or(shape.bos_token_id).or(eos_token_ids.first().copied());
    let identity = ModelIdentity {
        name: model.to_owned(),
        hash: hash_model(&directory)?,
        num_parameters: decoder.num_parameters(),
        dtype: dtype_name(dtype, device).to_owned(),
    };
    let runner = ModelRunner::new(decoder, config, max_model_len)?;
    tracing::info!(
        "loaded `{model}` ({} parameters, {}) in {:.1} s",
        identity.num_parameters,
        identity.dtype,
        start.elapsed().as_secs_f64()
    );
    let parts = EngineParts {
        vocabulary: Vocabulary { tokenizer, eos_token_ids },
        chat_template,
        identity,
        prefix_token_id,
        max_model_len,
    };
    Ok(Engine::new(runner, config, parts))
}

fn check_engine_config(config: &EngineConfig) -> Result<()> {
    for (key, value) in [
        ("engine.max_num_seqs", config.max_num_seqs),
        ("engine.max_num_batched_tokens", config.max_num_batched_tokens),
        ("engine.block_size", config.block_size),
    ] {
        if value == 0 {
            return Err(usage(format!("`{key}` is 0; expected at least 1")));
        }
    }
    Ok(())
}

fn resolve_max_model_len(asked: usize, shape: &DecoderConfig) -> Result<usize> {
    let limit = shape.max_position_embeddings;
    if asked > limit {
        return Err(usage(format!("max_model_len is {asked}, but the model was made for {limit} positions")));
    }
    Ok(if asked == 0 { limit } else { asked })
}

/// The configuration's tokens, else the tokenizer's.
fn eos_token_ids(shape: &DecoderConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    if shape.eos_token_ids.is_empty() {
        tokenizer.eos_token_id().into_iter().collect()
    } else {
        shape.eos_token_ids.clone()
    }
}

fn dtype_name(dtype: DtypeChoice, device: &Device) -> &'static str {
    match dtype {
        DtypeChoice::F32 => "f32",
        DtypeChoice::Bf16 => "bf16",
        DtypeChoice::Auto if device.is_cpu() => "f32",
        DtypeChoice::Auto => "bf16",
    }
}

fn hash_model(directory: &Path) -> Result<String> {
    let config = directory.join("config.json");
    let bytes = std::fs::read(&config).with_context(|| format!("cannot read `{}`", config.display()))?;
    Ok(blake3::hash(&bytes).to_hex()[..16].to_string())
}
