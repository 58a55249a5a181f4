//! The decoder against transformers (fixtures of `scripts/make_fixtures.py`, see their PROVENANCE.md), and against
//! itself bit for bit.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use glan::{
    config::{LrSchedule, OptimizerKind, TrainConfig},
    device::DtypeChoice,
    model::{
        Decoder, InferenceDecoder, KvCache, Microbatch, PagedBatch, PagedSequence, Weights, evaluate_loss,
        loss_and_gradients,
    },
    train::{Optimizer, Schedule},
};
use serde::Deserialize;

use crate::tolerance;

/// The fixtures' names.
pub const FAMILIES: [&str; 8] =
    ["llama", "llama3", "llama_sharded", "llama_bf16", "mistral", "mistral_sliding", "qwen2", "qwen3"];

/// What transformers computed.
#[derive(Deserialize)]
pub struct Expected {
    pub prompts: Vec<Vec<u32>>,
    pub logits: Vec<Vec<Vec<f32>>>,
    pub greedy: Vec<Vec<u32>>,
    score: Vec<ExpectedScore>,
    eos_token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct ExpectedScore {
    context_ids: Vec<u32>,
    continuation_ids: Vec<u32>,
    token_logprobs: Vec<f64>,
}

#[derive(Deserialize)]
pub struct TrainExpected {
    pub sequences: Vec<Sequence>,
    pub num_trained_tokens: usize,
    pub optimizer: OptimizerSettings,
    pub steps: Vec<Step>,
    pub final_loss: f64,
    pub parameters_after: std::collections::BTreeMap<String, After>,
}

#[derive(Deserialize)]
pub struct Sequence {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
}

#[derive(Deserialize)]
pub struct OptimizerSettings {
    pub base_lr: f64,
    pub warmup_steps: usize,
    pub total_steps: usize,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
}

#[derive(Deserialize)]
pub struct Step {
    pub lr: f64,
    pub loss: f64,
    pub grad_norm: f64,
}

#[derive(Deserialize)]
pub struct After {
    pub l2: f64,
}

pub fn fixture(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(family)
}

pub fn load(family: &str) -> Decoder {
    Decoder::load(&fixture(family), &Device::Cpu, DtypeChoice::F32).unwrap()
}

pub fn load_packed(family: &str, dtype: DtypeChoice) -> InferenceDecoder {
    InferenceDecoder::load(&fixture(family), &Device::Cpu, dtype).unwrap()
}

pub fn read<T: for<'a> Deserialize<'a>>(family: &str, file: &str) -> T {
    glan::records::read_json(&fixture(family).join(file)).unwrap()
}

/// Runs `tokens` from position `start` on through one sequence's cache; logits of all rows.
pub fn step(model: &InferenceDecoder, cache: &mut KvCache, tokens: &[u32], start: usize) -> Vec<Vec<f32>> {
    let end = start + tokens.len();
    // A scattered table: block i of the sequence is block 7i mod P of the pool.
    let table: Vec<u32> = (0..end.div_ceil(cache.block_size)).map(|i| (i * 7 % cache.num_blocks) as u32).collect();
    let slot = |position: usize| {
        table[position / cache.block_size] * cache.block_size as u32 + (position % cache.block_size) as u32
    };
    let batch = PagedBatch {
        token_ids: tokens.to_vec(),
        positions: (start as u32..end as u32).collect(),
        slot_mapping: (start..end).map(slot).collect(),
        sequences: vec![PagedSequence { query_len: tokens.len(), context_len: end, block_table: table.clone() }],
        logit_rows: (0..tokens.len() as u32).collect(),
    };
    let logits = model.forward_paged(&batch, cache).unwrap();
    logits.chunks(model.config.vocab_size).map(<[f32]>::to_vec).collect()
}

pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[test]
fn logits_and_greedy_continuations_equal_transformers() {
    for family in FAMILIES {
        let (model, expected): (_, Expected) = (load_packed(family, DtypeChoice::F32), read(family, "expected.json"));
        let mut eos = model.config.eos_token_ids.clone();
        eos.sort_unstable();
        assert_eq!(eos, expected.eos_token_ids, "{family}");
        for ((prompt, logits), greedy) in expected.prompts.iter().zip(&expected.logits).zip(&expected.greedy) {
            let mut cache = model.kv_cache(16, 8).unwrap();
            let got = step(&model, &mut cache, prompt, 0);
            for (got, expected) in got[got.len() - logits.len()..].iter().zip(logits) {
                tolerance::close(family, got, expected, tolerance::LOGITS);
            }
            let mut next = argmax(got.last().unwrap());
            for (i, expected) in greedy.iter().enumerate() {
                assert_eq!(next, *expected, "{family}: token {i}");
                next = argmax(&step(&model, &mut cache, &[next], prompt.len() + i)[0]);
            }
        }
    }
}

#[test]
fn scores_equal_transformers_in_the_packed_form_too() {
    for family in FAMILIES {
        let (model, expected): (_, Expected) = (load(family), read(family, "expected.json"));
        for score in &expected.score {
            let tokens = [&score.context_ids[..], &score.continuation_ids[..]].concat();
            let trained: Vec<bool> = (0..tokens.len()).map(|i| i >= score.context_ids.len()).collect();
            let mut batch = Microbatch::default();
            // A neighbour in the same pack must not be seen.
            batch.push(&[5, 6, 7], &[false; 3]);
            batch.push(&tokens, &trained);
            let sum: f64 = score.token_logprobs.iter().sum();
            let got = -evaluate_loss(&model, &batch).unwrap();
            assert!((got - sum).abs() < 1e-4 * sum.abs().max(1.0), "{family}: {got} against {sum}");
        }
    }
}

#[test]
fn a_rows_logits_have_the_same_bits_at_any_number_of_rows_and_any_cut_of_the_prompt() {
    for (family, dtype) in FAMILIES.into_iter().flat_map(|it| [(it, DtypeChoice::F32), (it, DtypeChoice::Bf16)]) {
        let model = load_packed(family, dtype);
        let tokens: Vec<u32> = (0..31).map(|i| (i * 13 + 5) % 90).collect();
        let bits = |rows: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
            rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
        };
        let whole = bits(step(&model, &mut model.kv_cache(16, 8).unwrap(), &tokens, 0));
        for cut in [1, 2, 3, 8, 31] {
            let mut cache = model.kv_cache(16, 8).unwrap();
            for (chunk, expected) in tokens.chunks(cut).zip(whole.chunks(cut)) {
                let start = tokens.len() - (tokens.len() - (chunk.as_ptr() as usize - tokens.as_ptr() as usize) / 4);
                assert_eq!(bits(step(&model, &mut cache, chunk, start)), expected, "{family}: cut every {cut}");
            }
        }
    }
}

#[test]
fn sequences_have_the_bits_that_they_have_alone_when_a_step_is_wider_than_the_layers_take_at_once() {
    for (family, dtype) in [("mistral_sliding", DtypeChoice::F32), ("qwen3", DtypeChoice::Bf16)] {
        let model = load_packed(family, dtype);
        let tokens: Vec<u32> = (0..31).map(|i| (i * 17 + 3) % 90).collect();
        let alone = step(&model, &mut model.kv_cache(16, 8).unwrap(), &tokens, 0);
        let mut batch = PagedBatch::default();
        for sequence in 0..20u32 {
            batch.token_ids.extend(&tokens);
            batch.positions.extend(0..31);
            batch.slot_mapping.extend(sequence * 32..sequence * 32 + 31);
            let block_table = (sequence * 4..sequence * 4 + 4).collect();
            batch.sequences.push(PagedSequence { query_len: 31, context_len: 31, block_table });
            batch.logit_rows.push(sequence * 31 + 30);
        }
        let logits = model.forward_paged(&batch, &mut model.kv_cache(80, 8).unwrap()).unwrap();
        let last: Vec<u32> = alone[30].iter().map(|logit| logit.to_bits()).collect();
        for row in logits.chunks(model.config.vocab_size) {
            assert_eq!(row.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>(), last, "{family}");
        }
    }
}

#[test]
fn bf16_halves_the_weights_and_stays_near_f32() {
    for family in FAMILIES {
        let (f32, bf16) = (load_packed(family, DtypeChoice::F32), load_packed(family, DtypeChoice::Bf16));
        assert!(bf16.weight_bytes() * 2 <= f32.weight_bytes() + f32.weight_bytes() / 50, "{family}");
        let tokens: Vec<u32> = (0..31).map(|i| (i * 13 + 5) % 90).collect();
        let run = |model: &InferenceDecoder| step(model, &mut model.kv_cache(16, 8).unwrap(), &tokens, 0).concat();
        tolerance::close_norm(family, &run(&bf16), &run(&f32), tolerance::BF16_LOGITS);
    }
}

pub fn training_batch(expected: &TrainExpected) -> Microbatch {
    let mut batch = Microbatch::default();
    for sequence in &expected.sequences {
        let trained: Vec<bool> = sequence.labels.iter().map(|label| *label >= 0).collect();
        batch.push(&sequence.input_ids, &trained);
    }
    assert_eq!(batch.targets.len(), expected.num_trained_tokens);
    batch
}

pub fn zero_gradients(model: &Decoder) -> Weights {
    let arena = Tensor::zeros(model.layout.len, DType::F32, &Device::Cpu).unwrap();
    Weights::new(&model.config, &model.layout, arena).unwrap()
}

#[test]
fn loss_and_every_gradient_equal_pytorch_and_reach_every_parameter() {
    for family in ["llama", "qwen2", "qwen3"] {
        let (model, expected): (_, TrainExpected) = (load(family), read(family, "train_expected.json"));
        let batch = training_batch(&expected);
        let gradients = zero_gradients(&model);
        let loss = loss_and_gradients(&model, &batch, 1.0 / expected.num_trained_tokens as f64, &gradients).unwrap();
        assert!((loss - expected.steps[0].loss).abs() < 1e-5, "{family}: {loss} against {}", expected.steps[0].loss);
        let file = std::fs::read(fixture(family).join("gradients.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let got = glan_kernels::to_vec(&gradients.arena).unwrap();
        for tensor in model.layout.tensors.iter() {
            let got = &got[tensor.offset..tensor.offset + tensor.len()];
            assert!(got.iter().any(|value| *value != 0.0), "{family}: no gradient reaches {}", tensor.name);
            let view = file.tensor(&tensor.name).unwrap();
            let expected: Vec<f32> =
                view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
            tolerance::close_relative(&format!("{family} {}", tensor.name), got, &expected, tolerance::GRADIENT);
        }
    }
}

#[test]
fn packed_and_accumulated_batches_give_the_gradients_of_the_whole() {
    let (model, expected): (_, TrainExpected) = (load("qwen3"), read("qwen3", "train_expected.json"));
    let weight = 1.0 / expected.num_trained_tokens as f64;
    let (whole, parts) = (zero_gradients(&model), zero_gradients(&model));
    let loss = loss_and_gradients(&model, &training_batch(&expected), weight, &whole).unwrap();
    let mut sum = 0.0;
    for sequence in &expected.sequences {
        let mut batch = Microbatch::default();
        let trained: Vec<bool> = sequence.labels.iter().map(|label| *label >= 0).collect();
        batch.push(&sequence.input_ids, &trained);
        sum += loss_and_gradients(&model, &batch, weight, &parts).unwrap();
    }
    assert!((loss - sum).abs() < 1e-6);
    let (whole, parts) = (glan_kernels::to_vec(&whole.arena).unwrap(), glan_kernels::to_vec(&parts.arena).unwrap());
    tolerance::close_relative("accumulated", &parts, &whole, 1e-5);
}

pub fn train_config(settings: &OptimizerSettings) -> TrainConfig {
    TrainConfig {
        learning_rate: settings.base_lr,
        lr_scheduler_type: LrSchedule::Cosine,
        warmup_steps: settings.warmup_steps,
        adam_beta1: settings.beta1,
        adam_beta2: settings.beta2,
        adam_epsilon: settings.eps,
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.max_grad_norm,
        ..TrainConfig::default()
    }
}

#[test]
fn ten_adamw_steps_equal_pytorch() {
    for family in ["llama", "qwen2", "qwen3"] {
        let (model, expected): (_, TrainExpected) = (load(family), read(family, "train_expected.json"));
        let config = train_config(&expected.optimizer);
        let schedule = Schedule::new(&config, expected.optimizer.total_steps);
        let mut optimizer = Optimizer::new(&model.layout, OptimizerKind::Adamw).unwrap();
        let gradients = zero_gradients(&model);
        let batch = training_batch(&expected);
        let weight = 1.0 / expected.num_trained_tokens as f64;
        for (i, step) in expected.steps.iter().enumerate() {
            let loss = loss_and_gradients(&model, &batch, weight, &gradients).unwrap();
            assert!((loss - step.loss).abs() < 1e-4, "{family} step {i}: loss {loss} against {}", step.loss);
            assert!((schedule.learning_rate(i) - step.lr).abs() < 1e-12);
            let norm = optimizer.update(&model.weights.arena, &gradients.arena, &config, step.lr).unwrap();
            assert!((norm / step.grad_norm - 1.0).abs() < 1e-3, "{family} step {i}: {norm} against {}", step.grad_norm);
        }
        let last = evaluate_loss(&model, &batch).unwrap() * weight;
        assert!((last - expected.final_loss).abs() < 1e-3, "{family}: {last} against {}", expected.final_loss);
        let values = glan_kernels::to_vec(&model.weights.arena).unwrap();
        for tensor in model.layout.tensors.iter() {
            let part = &values[tensor.offset..tensor.offset + tensor.len()];
            let norm = part.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let expected = expected.parameters_after[&tensor.name].l2;
            assert!((norm / expected - 1.0).abs() < 1e-3, "{family} {}: {norm} against {expected}", tensor.name);
        }
    }
}
