//! LoRA, rsLoRA and DoRA against PEFT (fixtures of `scripts/make_fixtures.py --peft-out`), and `glan train` with adapters.

use std::{fs, path::PathBuf};

use candle_core::Device;
use glan::{
    config::{OptimizerKind, TrainConfig},
    device::DtypeChoice,
    model::{
        Adapter, Decoder, InferenceDecoder, Microbatch, PagedBatch, PagedSequence, StepOptions, Trained, Weights,
        evaluate_adapted_loss, evaluate_loss, load_adapter, loss_and_gradients, save_adapter, train_step,
    },
    train::Optimizer,
};
use serde::Deserialize;

use crate::{
    support::{glan, root},
    tolerance,
};

const CASES: [&str; 3] = ["lora", "rslora", "dora"];

#[derive(Deserialize)]
struct Expected {
    base: String,
    sequences: Vec<Sequence>,
    num_trained_tokens: usize,
    prompt: Vec<u32>,
    logits: Vec<f32>,
    learning_rate: f64,
    max_grad_norm: f64,
    steps: Vec<Step>,
    final_loss: f64,
}

#[derive(Deserialize)]
struct Sequence {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    grad_norm: f64,
}

fn fixture(case: &str) -> PathBuf {
    root().join("tests/fixtures/peft").join(case)
}

fn load(case: &str) -> (Decoder, Adapter, Expected, Microbatch) {
    let expected: Expected = glan::records::read_json(&fixture(case).join("expected.json")).unwrap();
    let base = root().join("tests/fixtures/models").join(&expected.base);
    let model = Decoder::load(&base, &Device::Cpu, DtypeChoice::F32).unwrap();
    let adapter = load_adapter(&fixture(case), &model.config).unwrap();
    let mut batch = Microbatch::default();
    for sequence in &expected.sequences {
        let trained: Vec<bool> = sequence.labels.iter().map(|label| *label >= 0).collect();
        batch.push(&sequence.input_ids, &trained);
    }
    assert_eq!(batch.targets.len(), expected.num_trained_tokens);
    (model, adapter, expected, batch)
}

fn values(tensor: &candle_core::Tensor) -> Vec<f32> {
    glan_kernels::to_vec(tensor).unwrap()
}

fn gradients(
    model: &Decoder,
    adapter: &Adapter,
    batch: &Microbatch,
    weight: f64,
    options: &StepOptions,
) -> (f64, Adapter) {
    let gradients = Adapter::zeros(&model.config, adapter.shape.clone()).unwrap();
    let trained = Trained::Adapter { adapter, gradients: &gradients };
    let loss = train_step(model, batch, weight, trained, options).unwrap();
    (loss, gradients)
}

#[test]
fn what_peft_saved_gives_its_logits_when_loaded_as_a_model() {
    // The fixtures name their bases relative to the repository, where the tests run.
    for case in CASES {
        let (base, adapter, expected, batch) = load(case);
        let model = Decoder::load(&fixture(case), &Device::Cpu, DtypeChoice::F32).unwrap();
        let len = expected.prompt.len();
        let paged = PagedBatch {
            token_ids: expected.prompt.clone(),
            positions: (0..len as u32).collect(),
            slot_mapping: (0..len as u32).collect(),
            sequences: vec![PagedSequence { query_len: len, context_len: len, block_table: (0..8).collect() }],
            logit_rows: vec![len as u32 - 1],
        };
        let served = InferenceDecoder::load(&fixture(case), &Device::Cpu, DtypeChoice::F32).unwrap();
        let logits = served.forward_paged(&paged, &mut served.kv_cache(8, 8).unwrap()).unwrap();
        tolerance::close(case, &logits, &expected.logits, tolerance::LOGITS);
        // Merged or beside the frozen weights: the same loss, and not that of the base alone.
        let (merged, beside) =
            (evaluate_loss(&model, &batch).unwrap(), evaluate_adapted_loss(&base, Some(&adapter), &batch).unwrap());
        assert!((merged - beside).abs() < 1e-4 * beside, "{case}: {merged} against {beside}");
        assert!((evaluate_loss(&base, &batch).unwrap() - beside).abs() > 0.1, "{case}");
    }
}

#[test]
fn loss_and_every_gradient_of_an_adapter_equal_pefts() {
    for case in CASES {
        let (model, adapter, expected, batch) = load(case);
        let weight = 1.0 / expected.num_trained_tokens as f64;
        let (loss, found) = gradients(&model, &adapter, &batch, weight, &StepOptions::default());
        assert!((loss - expected.steps[0].loss).abs() < 1e-5, "{case}: {loss} against {}", expected.steps[0].loss);
        let file = fs::read(fixture(case).join("gradients.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(file.names().len(), adapter.layout.tensors.len());
        let found = values(&found.arena);
        for tensor in adapter.layout.tensors.iter() {
            let view = file.tensor(&tensor.name).unwrap();
            let wanted: Vec<f32> =
                view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
            let found = &found[tensor.offset..tensor.offset + tensor.len()];
            tolerance::close_relative(&format!("{case} {}", tensor.name), found, &wanted, tolerance::GRADIENT);
        }
    }
}

#[test]
fn adamw_steps_on_an_adapter_equal_pefts_and_leave_the_base_alone() {
    for case in CASES {
        let (model, adapter, expected, batch) = load(case);
        let before = values(&model.weights.arena);
        let config = TrainConfig { weight_decay: 0.0, max_grad_norm: expected.max_grad_norm, ..TrainConfig::default() };
        let mut optimizer = Optimizer::new(&adapter.layout, OptimizerKind::Adamw).unwrap();
        let weight = 1.0 / expected.num_trained_tokens as f64;
        for (i, step) in expected.steps.iter().enumerate() {
            let (loss, found) = gradients(&model, &adapter, &batch, weight, &StepOptions::default());
            assert!((loss - step.loss).abs() < 1e-4, "{case} step {i}: {loss} against {}", step.loss);
            let norm = optimizer.update(&adapter.arena, &found.arena, &config, expected.learning_rate).unwrap();
            assert!((norm / step.grad_norm - 1.0).abs() < 1e-3, "{case} step {i}: {norm} against {}", step.grad_norm);
        }
        let last = evaluate_adapted_loss(&model, Some(&adapter), &batch).unwrap() * weight;
        assert!((last - expected.final_loss).abs() < 1e-3, "{case}: {last} against {}", expected.final_loss);
        assert_eq!(values(&model.weights.arena), before, "{case}");
    }
}

#[test]
fn a_written_adapter_reads_back_to_the_bit_and_a_wrong_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for case in CASES {
        let (model, adapter, ..) = load(case);
        save_adapter(&adapter, folder.path(), "base", 0.0).unwrap();
        let again = load_adapter(folder.path(), &model.config).unwrap();
        assert_eq!(again.shape, adapter.shape);
        assert_eq!(values(&again.arena), values(&adapter.arena));
    }
    let (model, ..) = load("lora");
    let error = format!("{:#}", load_adapter(&fixture("dora"), &model.config).expect_err("another base"));
    assert!(error.contains("adapter_model.safetensors") && error.contains("has shape"), "{error}");
}

#[test]
fn computing_blocks_again_changes_no_bit_of_loss_and_gradients() {
    let noisy = StepOptions { lora_dropout: 0.2, neftune_noise_alpha: 5.0, noise_key: 9, recompute_blocks: 0 };
    for case in CASES {
        let (model, adapter, _, batch) = load(case);
        for options in [StepOptions::default(), noisy] {
            let again = StepOptions { recompute_blocks: 1, ..options };
            let (kept, made) =
                (gradients(&model, &adapter, &batch, 0.1, &options), gradients(&model, &adapter, &batch, 0.1, &again));
            assert_eq!(kept.0.to_bits(), made.0.to_bits());
            assert_eq!(values(&kept.1.arena), values(&made.1.arena), "{case}");
        }
        let full = |options: &StepOptions| {
            let zeros = model.weights.arena.zeros_like().unwrap();
            let gradients = Weights::new(&model.config, &model.layout, zeros).unwrap();
            let loss = train_step(&model, &batch, 0.1, Trained::Full(&gradients), options).unwrap();
            (loss.to_bits(), values(&gradients.arena))
        };
        let plain = model.weights.arena.zeros_like().unwrap();
        let plain = Weights::new(&model.config, &model.layout, plain).unwrap();
        let loss = loss_and_gradients(&model, &batch, 0.1, &plain).unwrap();
        let recomputed = full(&StepOptions { recompute_blocks: 1, ..StepOptions::default() });
        assert_eq!(recomputed, (loss.to_bits(), values(&plain.arena)), "{case}");
    }
}

#[test]
fn noise_differs_by_its_key_and_not_by_the_cut_into_micro_batches() {
    let (model, adapter, expected, whole) = load("lora");
    let options = StepOptions { lora_dropout: 0.3, neftune_noise_alpha: 5.0, noise_key: 1, recompute_blocks: 0 };
    let (loss, found) = gradients(&model, &adapter, &whole, 0.1, &options);
    let mut sum = 0.0;
    let parts = Adapter::zeros(&model.config, adapter.shape.clone()).unwrap();
    let mut first_token = 0;
    for sequence in &expected.sequences {
        let mut batch = Microbatch { first_token, ..Microbatch::default() };
        let trained: Vec<bool> = sequence.labels.iter().map(|label| *label >= 0).collect();
        batch.push(&sequence.input_ids, &trained);
        first_token += sequence.input_ids.len();
        let trained = Trained::Adapter { adapter: &adapter, gradients: &parts };
        sum += train_step(&model, &batch, 0.1, trained, &options).unwrap();
    }
    assert!((loss - sum).abs() < 1e-5 * loss, "{loss} against {sum}");
    tolerance::close_relative("noisy", &values(&parts.arena), &values(&found.arena), 1e-5);
    let other = gradients(&model, &adapter, &whole, 0.1, &StepOptions { noise_key: 2, ..options }).0;
    let silent = gradients(&model, &adapter, &whole, 0.1, &StepOptions::default()).0;
    assert!((other - loss).abs() > 1e-4 && (silent - loss).abs() > 1e-4, "{loss} {other} {silent}");
}

/// `glan train` on the llama fixture, with these settings.
pub fn train(folder: &std::path::Path, output: &str, sets: &[&str]) -> crate::support::Outcome {
    let model = root().join("tests/fixtures/models/llama").to_string_lossy().into_owned();
    let mut arguments: Vec<String> =
        ["train", "--model", &model, "--data", "rows.jsonl", "--valid", "rows.jsonl", "--output", output]
            .map(String::from)
            .to_vec();
    for set in sets {
        arguments.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    glan(folder, &arguments)
}

pub fn rows(folder: &std::path::Path) {
    let row = |i: usize| {
        let (a, b, c) = (3 + i % 80, 3 + (i * 7) % 80, 3 + (i * 13) % 80);
        format!("{{\"id\":\"row-{i}\",\"prompt\":\"t{a} t{b}\",\"completion\":\" t{c} t{a}\"}}\n")
    };
    fs::write(folder.join("rows.jsonl"), (0..24).map(row).collect::<String>()).unwrap();
}

#[test]
fn adapters_are_trained_written_merged_and_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    rows(folder);
    let settings = [
        "train.method=lora",
        "train.use_dora=true",
        "train.lora_r=4",
        "train.lora_dropout=0.1",
        "train.learning_rate=2e-2",
        "train.train_batch_size=2",
        "train.packing=true",
        "train.max_length=40",
        "train.max_steps=60",
        "train.report_to=tensorboard",
        "train.activation_checkpointing=block",
    ];
    train(folder, "a", &settings).expect_code(0).expect_stderr(&["packed 24 rows into"]);
    train(folder, "b", &settings).expect_code(0);
    for file in ["adapter/adapter_model.safetensors", "student/model.safetensors", "metrics.jsonl"] {
        assert!(
            fs::read(folder.join("a").join(file)).unwrap() == fs::read(folder.join("b").join(file)).unwrap(),
            "{file}"
        );
    }
    let metrics = fs::read_to_string(folder.join("a/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64())
        .collect();
    assert!(losses.last().unwrap() < &(0.7 * losses[0]), "{losses:?}");
    assert_eq!(fs::read_dir(folder.join("a/tensorboard")).unwrap().count(), 1);
    // The adapter's directory and the merged student are the same model.
    let load = |name: &str| Decoder::load(&folder.join("a").join(name), &Device::Cpu, DtypeChoice::F32).unwrap();
    assert_eq!(values(&load("adapter").weights.arena), values(&load("student").weights.arena));
    train(folder, "c", &["train.method=lora", "train.lora_target_modules=[\"lm_head\"]"])
        .expect_code(2)
        .expect_stderr(&["train.lora_target_modules", "all-linear"]);
}

#[test]
fn training_ends_early_with_the_best_weights_when_the_validation_loss_rises() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    rows(folder);
    // A rate this high makes the loss rise after the first steps.
    let settings = [
        "train.learning_rate=0.3",
        "train.lr_scheduler_type=constant",
        "train.train_batch_size=4",
        "train.max_steps=200",
        "train.eval_steps=1",
        "train.early_stopping_patience=4",
        "train.load_best_model_at_end=true",
        "train.max_grad_norm=0",
    ];
    train(folder, "out", &settings).expect_code(0).expect_stderr(&["stopped after step"]);
    let results: serde_json::Value = glan::records::read_json(&folder.join("out/train_results.json")).unwrap();
    let (last, best) = (results["global_step"].as_u64().unwrap(), results["best_step"].as_u64().unwrap());
    assert_eq!(last, best + 4, "{results}");
    let metrics = fs::read_to_string(folder.join("out/metrics.jsonl")).unwrap();
    let evaluations: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["eval_loss"].as_f64())
        .collect();
    assert_eq!(evaluations.len() as u64, last);
    let least = evaluations.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(results["eval_loss"].as_f64().unwrap(), least);
}
