//! Measures what the engine's own work costs and saves, on random weights of 125 M parameters (16 layers of 768, twelve
//! query and four key/value heads of 64, 32,000 tokens):
//!
//! `engine_bench attention`: one layer's attention of 64 decodes behind a common prefix, its blocks shared or each its own
//! `engine_bench prefix [REQUESTS] [LAYERS]`: prompts of 1,024 tokens of which 900 are common, 16 new tokens, cache on and off
//! `engine_bench scheduler [SEQUENCES]`: the share of a decode step that is not the model
//! `engine_bench json TOKENIZER_DIR [SEQUENCES]`: free text and JSON, tokens per second
//!
//! Results go to stdout, one line each. Times depend on the machine; what is promised are the ratios.
#![allow(clippy::print_stdout, reason = "the results")]

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use glan::{
    config::EngineConfig,
    device::DtypeChoice,
    engine::{Engine, EngineParts, ModelRunner, Vocabulary},
    language_model::{Constraint, LanguageModel, ModelIdentity, Prompt, Request, SamplingParams},
    model::{Decoder, DecoderConfig, InferenceDecoder, RopeScaling},
    tokenizer::Tokenizer,
};
use glan_kernels::attention::{self, Heads, PagedRows};

/// Any tokenizer will do where no text is looked at.
const SOME_TOKENIZER: &str = "models/primer-base";
const MAX_MODEL_LEN: usize = 1152;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| match arguments.get(place) {
        Some(text) => text.parse().with_context(|| format!("`{text}` is not a number")),
        None => Ok(default),
    };
    match arguments.first().map(String::as_str) {
        Some("attention") => attention(),
        Some("prefix") => prefix(number(1, 64)?, number(2, 16)?),
        Some("scheduler") => scheduler(number(1, 256)?),
        Some("json") => json(arguments.get(1).context("which tokenizer? name its folder")?, number(2, 32)?),
        _ => bail!("usage: engine_bench attention | prefix [N] [LAYERS] | scheduler [N] | json TOKENIZER_DIR [N]"),
    }
}

fn shape() -> DecoderConfig {
    DecoderConfig {
        model_type: "llama".into(),
        vocab_size: 32_000,
        hidden_size: 768,
        intermediate_size: 2048,
        num_hidden_layers: 16,
        num_attention_heads: 12,
        num_key_value_heads: 4,
        head_dim: 64,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        attention_bias: false,
        attention_output_bias: false,
        qk_norm: false,
        sliding_window: vec![None; 16],
        eos_token_ids: vec![2],
        bos_token_id: None,
        initializer_range: 0.02,
        raw: serde_json::Map::new(),
    }
}

fn engine(config: &EngineConfig, tokenizer: &Path, num_layers: usize) -> Result<Engine<ModelRunner>> {
    let tokenizer = Tokenizer::load(tokenizer)?;
    let vocab_size = tokenizer.vocab_size().max(32_000);
    let shape = DecoderConfig { vocab_size, num_hidden_layers: num_layers, ..shape() };
    let decoder = InferenceDecoder::from_decoder(&Decoder::random(shape, 0)?, DtypeChoice::F32)?;
    let num_blocks = config.max_num_seqs * MAX_MODEL_LEN / config.block_size;
    let runner = ModelRunner::with_blocks(decoder, num_blocks, config.block_size)?;
    let eos_token_ids = tokenizer.eos_token_id().into_iter().collect();
    let identity = ModelIdentity { name: "random".into(), hash: String::new(), num_parameters: 0, dtype: "f32".into() };
    let parts = EngineParts {
        vocabulary: Vocabulary { tokenizer, eos_token_ids },
        chat_template: None,
        identity,
        prefix_token_id: Some(1),
        max_model_len: MAX_MODEL_LEN,
    };
    Ok(Engine::new(runner, config, parts))
}

/// Processor time of this process so far, where the system says so: what is left to compare by on a machine that others
/// use too.
///
/// **Units**: seconds, in steps of 1/100.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets: user and system time are the fields 14 and 15 of the whole line.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Serves the requests; returns the number of new tokens, the seconds and the seconds of processor time.
fn serve(engine: &mut Engine<ModelRunner>, requests: Vec<Request>) -> Result<(usize, f64, f64)> {
    let (start, processor) = (Instant::now(), processor_seconds());
    let mut num_tokens = 0;
    engine.generate(&mut requests.into_iter(), &mut |completion| {
        if let Some(error) = completion.error {
            bail!("request {} failed: {error}", completion.id);
        }
        num_tokens += completion.token_ids.len();
        Ok(())
    })?;
    Ok((num_tokens, start.elapsed().as_secs_f64(), processor_seconds() - processor))
}

fn request(id: usize, prompt: Vec<u32>, max_new_tokens: usize, constraint: Option<Constraint>) -> Request {
    let sampling = SamplingParams {
        max_new_tokens,
        ignore_eos: true,
        constraint,
        temperature: 1.0,
        seed: id as u64,
        ..SamplingParams::default()
    };
    Request { id: id.to_string(), prompt: Prompt::TokenIds(prompt), sampling }
}

/// Deterministic, different tokens.
fn tokens(seed: usize, count: usize) -> Vec<u32> {
    (0..count).map(|place| ((seed * 7919 + place * 104_729) % 1000) as u32 + 3).collect()
}

fn attention() -> Result<()> {
    let (rows, block_size) = (64, 16);
    let heads = Heads { query: 12, key_value: 4, dim: 64, window: None };
    for prefix in [256, 896, 3584] {
        let own = prefix / block_size + 1;
        let num_blocks = rows * own;
        let cache = || Tensor::randn(0f32, 1f32, (num_blocks * block_size, 256), &Device::Cpu);
        let (keys, values, qkv) = (cache()?, cache()?, Tensor::randn(0f32, 1f32, (rows, 20 * 64), &Device::Cpu)?);
        let apart: Vec<Vec<u32>> =
            (0..rows).map(|row| (0..own).map(|block| (row * own + block) as u32).collect()).collect();
        let shared: Vec<Vec<u32>> =
            apart.iter().map(|table| apart[0][..own - 1].iter().chain(table.last()).copied().collect()).collect();
        let mut milliseconds = Vec::new();
        for tables in [&apart, &shared] {
            let sequences: Vec<PagedRows> = tables
                .iter()
                .map(|table| PagedRows { query_len: 1, context_len: prefix + 8, block_table: table })
                .collect();
            let mut best = f64::INFINITY;
            for _ in 0..15 {
                let start = Instant::now();
                attention::paged(&qkv, &keys, &values, &sequences, block_size, &heads)?;
                best = best.min(start.elapsed().as_secs_f64() * 1e3);
            }
            milliseconds.push(best);
        }
        let (apart, shared) = (milliseconds[0], milliseconds[1]);
        println!(
            "attention: {rows} decodes behind {prefix} tokens: apart {apart:.2} ms, shared {shared:.2} ms, {:.1}x",
            apart / shared
        );
    }
    Ok(())
}

fn prefix(num_requests: usize, num_layers: usize) -> Result<()> {
    let requests: Vec<Request> =
        (0..num_requests).map(|id| request(id, [tokens(0, 900), tokens(id + 1, 124)].concat(), 16, None)).collect();
    let mut rates = Vec::new();
    for enable_prefix_caching in [true, false] {
        let config = EngineConfig { enable_prefix_caching, ..EngineConfig::default() };
        let mut engine = engine(&config, Path::new(SOME_TOKENIZER), num_layers)?;
        let (num_tokens, seconds, processor) = serve(&mut engine, requests.clone())?;
        rates.push((num_tokens as f64 / seconds, num_tokens as f64 / processor));
        println!(
            "prefix: caching {enable_prefix_caching}: {num_tokens} new tokens in {seconds:.1} s ({processor:.1} s of processor), {:.1} tokens/s, {:?}",
            num_tokens as f64 / seconds,
            engine.counters()
        );
    }
    println!(
        "prefix: {:.1}x with the cache, {:.1}x per second of processor",
        rates[0].0 / rates[1].0,
        rates[0].1 / rates[1].1
    );
    Ok(())
}

fn scheduler(num_sequences: usize) -> Result<()> {
    let config = EngineConfig { max_num_seqs: num_sequences, ..EngineConfig::default() };
    let mut engine = engine(&config, Path::new(SOME_TOKENIZER), 16)?;
    let requests = (0..num_sequences).map(|id| request(id, tokens(id, 32), 24, None)).collect();
    serve(&mut engine, requests)?;
    let (times, steps) = (engine.step_times(), engine.counters().steps);
    let total = (times.schedule + times.forward + times.sample).as_secs_f64();
    println!(
        "scheduler: {num_sequences} sequences, {steps} steps of {:.1} ms: scheduling {:.3} %, sampling {:.2} %",
        total * 1e3 / steps as f64,
        times.schedule.as_secs_f64() * 100.0 / total,
        times.sample.as_secs_f64() * 100.0 / total
    );
    Ok(())
}

/// A syllabus, much as a stage asks for it.
fn schema() -> Constraint {
    let text = serde_json::json!({"type": "string", "minLength": 1, "maxLength": 40});
    Constraint::JsonSchema(serde_json::json!({
        "type": "object",
        "properties": {
            "level": {"enum": ["beginner", "intermediate", "advanced"]},
            "introduction": text,
            "class_sessions": {"type": "array", "minItems": 8, "items": {
                "type": "object",
                "properties": {
                    "title": text,
                    "description": text,
                    "key_concepts": {"type": "array", "minItems": 3, "maxItems": 6, "items": text},
                },
                "required": ["title", "description", "key_concepts"], "additionalProperties": false,
            }},
        },
        "required": ["level", "introduction", "class_sessions"], "additionalProperties": false,
    }))
}

fn json(tokenizer: &str, num_sequences: usize) -> Result<()> {
    let config = EngineConfig { max_num_seqs: num_sequences, ..EngineConfig::default() };
    let mut rates = Vec::new();
    for constraint in [None, Some(schema())] {
        let mut engine = engine(&config, Path::new(tokenizer), 16)?;
        let name = if constraint.is_some() { "JSON" } else { "free" };
        let requests = (0..num_sequences).map(|id| request(id, tokens(id, 64), 96, constraint.clone())).collect();
        let (num_tokens, seconds, processor) = serve(&mut engine, requests)?;
        rates.push((num_tokens as f64 / seconds, num_tokens as f64 / processor));
        let (times, steps) = (engine.step_times(), engine.counters().steps);
        println!(
            "json: {name}: {num_tokens} tokens in {steps} steps, {:.1} tokens/s; per step {:.1} ms model and masks, {:.2} ms \
             sampling, {:.3} ms scheduling",
            num_tokens as f64 / seconds,
            times.forward.as_secs_f64() * 1e3 / steps as f64,
            times.sample.as_secs_f64() * 1e3 / steps as f64,
            times.schedule.as_secs_f64() * 1e3 / steps as f64
        );
    }
    println!(
        "json: {:.3} of the free rate, {:.3} per second of processor",
        rates[1].0 / rates[0].0,
        rates[1].1 / rates[0].1
    );
    Ok(())
}
