//! Opens a model directory and puts an engine together.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    Engine, EngineParts, ModelRunner, Vocabulary, memory,
    model_runner::{AnyDecoder, cache_token_bytes},
};
use crate::{
    chat_template::ChatTemplate,
    config::EngineConfig,
    device::{Device, DtypeChoice},
    error::usage,
    language_model::{LanguageModel, ModelIdentity},
    model::{DecoderConfig, adapter_base},
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
    assemble(model, config, device, dtype, max_model_len, |directory, _| {
        let tokenizer = Tokenizer::load(directory)?;
        let chat_template = ChatTemplate::load(directory, &tokenizer)?;
        Ok((tokenizer, chat_template))
    })
}

/// The same for models whose texts nobody reads: a missing `tokenizer.json` is made up.
pub fn load_engine_with_any_tokenizer(
    model: &str,
    config: &EngineConfig,
    device: &Device,
    dtype: DtypeChoice,
    max_model_len: usize,
) -> Result<Engine<ModelRunner>> {
    assemble(model, config, device, dtype, max_model_len, |directory, shape| {
        let is_there = directory.join("tokenizer.json").is_file();
        let tokenizer = if is_there { Tokenizer::load(directory)? } else { Tokenizer::synthetic(shape.vocab_size)? };
        Ok((tokenizer, None))
    })
}

fn assemble(
    model: &str,
    config: &EngineConfig,
    device: &Device,
    dtype: DtypeChoice,
    max_model_len: usize,
    texts: impl FnOnce(&Path, &DecoderConfig) -> Result<(Tokenizer, Option<ChatTemplate>)>,
) -> Result<Engine<ModelRunner>> {
    check_engine_config(config)?;
    let directory = model_dir::resolve(model)?;
    let start = std::time::Instant::now();
    // An adapter may come without a tokenizer of its own.
    let base = adapter_base(&directory)?;
    let shape = DecoderConfig::load(base.as_ref().unwrap_or(&directory))?;
    let folder = base.as_ref().filter(|_| !directory.join("tokenizer.json").exists()).unwrap_or(&directory);
    let (tokenizer, chat_template) = texts(folder, &shape)?;
    let decoder = AnyDecoder::load(&directory, device, dtype)
        .with_context(|| format!("cannot load the model in `{}`", directory.display()))?;
    let shape = decoder.config().clone();
    tokenizer.check_fits(shape.vocab_size).with_context(|| format!("`{}`", directory.display()))?;
    let max_model_len = resolve_max_model_len(max_model_len, &shape, memory::total_bytes())?;
    let eos_token_ids = eos_token_ids(&shape, &tokenizer);
    let prefix_token_id =
        tokenizer.bos_token_id().or(tokenizer.eos_token_id()).or(shape.bos_token_id).or(eos_token_ids.first().copied());
    let identity = ModelIdentity {
        name: model.to_owned(),
        hash: model_dir::hash_model(&directory)?,
        num_parameters: decoder.num_parameters(),
        dtype: dtype_name(dtype, device).to_owned(),
    };
    let runner = ModelRunner::on_device(decoder, config, max_model_len)?;
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

/// What was asked for, else the model's own limit, cut to what half of the memory can hold as one sequence's cache: a
/// model made for 131,072 positions should still load on a laptop.
fn resolve_max_model_len(asked: usize, shape: &DecoderConfig, memory_bytes: Option<u64>) -> Result<usize> {
    let limit = shape.max_position_embeddings;
    if asked > limit {
        return Err(usage(format!("max_model_len is {asked}, but the model was made for {limit} positions")));
    }
    if asked > 0 {
        return Ok(asked);
    }
    let affordable = memory_bytes.map_or(limit as u64, |bytes| bytes / 2 / cache_token_bytes(shape).max(1) as u64);
    let affordable = usize::try_from(affordable).unwrap_or(limit).max(1);
    if affordable < limit {
        tracing::warn!(
            "the model was made for {limit} positions, but half of the memory holds {affordable}; \
             set max_model_len to choose another length"
        );
    }
    Ok(limit.min(affordable))
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::RopeScaling;

    pub(in crate::engine) fn shape() -> DecoderConfig {
        DecoderConfig {
            model_type: "llama".into(),
            vocab_size: 100,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            max_position_embeddings: 1000,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: true,
            attention_bias: false,
            attention_output_bias: false,
            qk_norm: false,
            sliding_window: vec![None; 2],
            eos_token_ids: vec![2],
            bos_token_id: None,
            initializer_range: 0.02,
            raw: serde_json::Map::new(),
        }
    }

    #[test]
    fn the_length_is_what_was_asked_for_or_what_model_and_memory_allow() {
        let shape = shape();
        assert_eq!(cache_token_bytes(&shape), 2 * 2 * 2 * 16 * 4);
        assert_eq!(resolve_max_model_len(0, &shape, None).unwrap(), 1000);
        assert_eq!(resolve_max_model_len(0, &shape, Some(1 << 40)).unwrap(), 1000);
        assert_eq!(resolve_max_model_len(0, &shape, Some(512 * 2 * 300)).unwrap(), 300);
        assert_eq!(resolve_max_model_len(700, &shape, Some(1)).unwrap(), 700, "an explicit length is kept");
        let error = resolve_max_model_len(1001, &shape, None).unwrap_err();
        assert!(error.to_string().contains("1001") && error.to_string().contains("1000"), "{error}");
        assert_eq!(crate::error::exit_code(&error), 2);
    }

    #[test]
    fn sizes_of_zero_are_usage_errors() {
        for zero in [
            EngineConfig { max_num_seqs: 0, ..EngineConfig::default() },
            EngineConfig { max_num_batched_tokens: 0, ..EngineConfig::default() },
            EngineConfig { block_size: 0, ..EngineConfig::default() },
        ] {
            assert_eq!(crate::error::exit_code(&check_engine_config(&zero).unwrap_err()), 2);
        }
        assert!(check_engine_config(&EngineConfig::default()).is_ok());
    }
}
