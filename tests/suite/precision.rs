//! Training in less memory or time: bf16 products, 8-bit moments, blocks that are computed again.

use std::fs;

use candle_core::{Device, Tensor};
use glan::{
    config::OptimizerKind,
    device::DtypeChoice,
    model::{
        Adapter, Decoder, DecoderConfig, Microbatch, StepOptions, Trained, Weights, evaluate_loss, export,
        loss_and_gradients, train_step,
    },
    train::{Optimizer, adapter_shape},
};
use glan_kernels::{
    matmul::{BlockFormat, Precision},
    to_vec,
};
use serde::Deserialize;

use crate::{
    adapters::{rows, train},
    parity::{TrainExpected, fixture, load, read, train_config, training_batch, zero_gradients},
    support::{glan, root},
    tolerance,
};

/// Ten steps by PyTorch in bf16 (`scripts/make_bf16_reference.py`).
#[derive(Deserialize)]
struct Bf16Expected {
    losses: Vec<f64>,
    gradient_error: f64,
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|it| f64::from(it).powi(2)).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// The losses of the fixture's steps.
fn losses(model: &Decoder, expected: &TrainExpected, kind: OptimizerKind) -> Vec<f64> {
    let config = train_config(&expected.optimizer);
    let mut optimizer = Optimizer::new(&model.layout, kind).unwrap();
    let (gradients, batch) = (zero_gradients(model), training_batch(expected));
    let weight = 1.0 / expected.num_trained_tokens as f64;
    let step = |step: &crate::parity::Step| {
        let loss = loss_and_gradients(model, &batch, weight, &gradients).unwrap();
        optimizer.update(&model.weights.arena, &gradients.arena, &config, step.lr).unwrap();
        loss
    };
    expected.steps.iter().map(step).collect()
}

#[test]
fn in_bf16_gradients_are_no_further_from_f32_than_pytorchs_and_ten_losses_stay_near() {
    let file = fs::read_to_string(root().join("tests/fixtures/bf16_training.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&file).unwrap();
    for family in ["llama", "qwen2", "qwen3"] {
        let theirs: Bf16Expected = serde_json::from_value(file[family].clone()).unwrap();
        let (mut model, expected): (_, TrainExpected) = (load(family), read(family, "train_expected.json"));
        let (exact, got, batch) = (zero_gradients(&model), zero_gradients(&model), training_batch(&expected));
        let weight = 1.0 / expected.num_trained_tokens as f64;
        loss_and_gradients(&model, &batch, weight, &exact).unwrap();
        model.precision = Precision::Bf16;
        let loss = loss_and_gradients(&model, &batch, weight, &got).unwrap();
        let evaluated = evaluate_loss(&model, &batch).unwrap() * weight;
        assert!((loss - evaluated).abs() < 1e-6, "the loss without gradients is another: {loss} {evaluated}");
        let error = relative_error(&to_vec(&got.arena).unwrap(), &to_vec(&exact.arena).unwrap());
        assert!(error > 1e-4 && error <= theirs.gradient_error, "{family}: {error} against {}", theirs.gradient_error);
        for (i, loss) in losses(&model, &expected, OptimizerKind::Adamw).into_iter().enumerate() {
            for (what, other) in [("f32", expected.steps[i].loss), ("PyTorch in bf16", theirs.losses[i])] {
                let off = (loss / other - 1.0).abs();
                assert!(off < tolerance::BF16_LOSS, "{family} step {i}: {loss} against {other} of {what}");
            }
        }
    }
}

#[test]
fn with_8_bit_moments_ten_losses_stay_near_those_of_f32_moments() {
    for family in ["llama", "qwen2", "qwen3"] {
        let expected: TrainExpected = read(family, "train_expected.json");
        let got = losses(&load(family), &expected, OptimizerKind::Adamw8bit);
        assert!(got.iter().zip(&expected.steps).any(|(loss, step)| (loss - step.loss).abs() > 1e-5), "nothing differs");
        for (i, (loss, step)) in got.into_iter().zip(&expected.steps).enumerate() {
            let off = (loss / step.loss - 1.0).abs();
            assert!(off < tolerance::MOMENTS_8BIT_LOSS, "{family} step {i}: {loss} against {}", step.loss);
        }
    }
}

/// A random model of the llama fixture's shape, but for these sizes.
fn random_model(sizes: &[(&str, usize)]) -> Decoder {
    let folder = tempfile::tempdir().unwrap();
    let file = fs::read_to_string(fixture("llama").join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&file).unwrap();
    for (key, size) in sizes {
        config[*key] = (*size).into();
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Decoder::random(DecoderConfig::load(folder.path()).unwrap(), 7).unwrap()
}

/// Three conversations over the fixture's vocabulary.
fn conversations() -> Microbatch {
    let mut batch = Microbatch::default();
    for row in 0..3u32 {
        let ids: Vec<u32> = (0..9 + row).map(|i| 3 + (i * 7 + row * 31) % 90).collect();
        batch.push(&ids, &vec![true; ids.len()]);
    }
    batch
}

#[test]
fn computing_groups_of_blocks_again_changes_no_bit_in_either_precision() {
    // Groups of two and three have a shorter last one.
    let (mut model, batch) = (random_model(&[("num_hidden_layers", 5)]), conversations());
    let settings = glan::config::TrainConfig::default();
    let shape = adapter_shape(&settings, model.config.num_hidden_layers).unwrap();
    let adapter = Adapter::new(&model.config, &model.weights, shape.clone(), 3).unwrap();
    let mut found = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        model.precision = precision;
        let pass = |group: usize| {
            let options = StepOptions { lora_dropout: 0.1, recompute_blocks: group, ..StepOptions::default() };
            let full = Weights::new(&model.config, &model.layout, model.weights.arena.zeros_like().unwrap()).unwrap();
            let loss = train_step(&model, &batch, 0.1, Trained::Full(&full), &options).unwrap();
            let gradients = Adapter::zeros(&model.config, shape.clone()).unwrap();
            let beside = Trained::Adapter { adapter: &adapter, gradients: &gradients };
            let adapted = train_step(&model, &batch, 0.1, beside, &options).unwrap();
            let bits = [&full.arena, &gradients.arena].map(|it| to_vec(it).unwrap());
            (loss.to_bits(), adapted.to_bits(), bits)
        };
        let kept = pass(0);
        assert!(kept.2.iter().all(|gradients| gradients.iter().any(|value| *value != 0.0)));
        for group in [1, 2, 3, 5, 9] {
            assert!(pass(group) == kept, "groups of {group} in {precision:?}");
        }
        found.push(kept);
    }
    assert!(found[0] != found[1], "bf16 changed nothing");
}

#[test]
fn a_bf16_run_with_8_bit_moments_goes_on_to_the_same_weights_and_writes_them_in_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    rows(folder);
    let common = [
        "train.precision=bf16",
        "train.optimizer=adamw_8bit",
        "train.activation_checkpointing=every_n",
        "train.learning_rate=1e-3",
        "train.train_batch_size=4",
        "train.max_steps=12",
    ];
    for method in ["full", "lora"] {
        let method_key = format!("train.method={method}");
        let sets = [&common[..], &[&method_key, "train.save_steps=5"]].concat();
        let output = |name: &str| folder.join(format!("{method}-{name}"));
        train(folder, &format!("{method}-whole"), &sets).expect_code(0);
        let killed = output("killed");
        let mut child = crate::support::glan_command(folder)
            .args(["train", "--model"])
            .arg(root().join("tests/fixtures/models/llama"))
            .args(["--data", "rows.jsonl", "--valid", "rows.jsonl", "--output"])
            .arg(&killed)
            .args(sets.iter().flat_map(|set| ["--set", set]))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !killed.join("checkpoint-5").exists() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        train(folder, &format!("{method}-killed"), &sets).expect_code(0);
        let weights = |name: &str| fs::read(output(name).join("student/model.safetensors")).unwrap();
        assert!(weights("whole") == weights("killed"), "{method}: other weights after a kill");
        let bytes = weights("whole");
        let student = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(student.tensors().iter().all(|(_, view)| view.dtype() == safetensors::Dtype::BF16));
        let config = fs::read_to_string(output("whole").join("student/config.json")).unwrap();
        assert!(config.contains("\"bfloat16\""), "{config}");
        Decoder::load(&output("whole").join("student"), &Device::Cpu, DtypeChoice::F32).unwrap();
    }
    let lines = |name: &str| fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    assert_eq!(lines("full-whole"), lines("full-killed"));
}

/// Loss and gradients of an adapter with values of its own in every factor.
fn adapted(model: &Decoder, use_dora: bool) -> (f64, Vec<f32>) {
    let settings = glan::config::TrainConfig { use_dora, lora_r: 4, ..glan::config::TrainConfig::default() };
    let shape = adapter_shape(&settings, model.config.num_hidden_layers).unwrap();
    let adapter = Adapter::new(&model.config, &model.weights, shape.clone(), 3).unwrap();
    let values = to_vec(&adapter.arena).unwrap().into_iter().enumerate();
    let values: Vec<f32> = values.map(|(i, value)| value + 0.02 * (i as f32).sin()).collect();
    let arena = Tensor::new(values, &Device::Cpu).unwrap();
    let adapter = Adapter::from_arena(&model.config, shape.clone(), arena).unwrap();
    let gradients = Adapter::zeros(&model.config, shape).unwrap();
    let beside = Trained::Adapter { adapter: &adapter, gradients: &gradients };
    let loss = train_step(model, &conversations(), 0.1, beside, &StepOptions::default()).unwrap();
    (loss, to_vec(&gradients.arena).unwrap())
}

#[test]
fn an_adapter_over_a_quantised_base_has_the_gradients_of_one_over_the_unpacked_base() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [("hidden_size", 256), ("intermediate_size", 512), ("num_key_value_heads", 4), ("head_dim", 64)];
    let plain = random_model(&sizes);
    export(&plain, folder.path(), safetensors::Dtype::F32, &[2]).unwrap();
    let mut distances = Vec::new();
    for format in [BlockFormat::Q8_0, BlockFormat::Nf4, BlockFormat::Q4K] {
        let mut model = Decoder::load_quantized(folder.path(), &Device::Cpu, format).unwrap();
        let mut unpacked = model.unpacked().unwrap();
        assert_eq!(model.num_parameters(), plain.num_parameters());
        let dense = Decoder::load(folder.path(), &Device::Cpu, DtypeChoice::F32).unwrap().bytes();
        assert!(model.bytes() < dense / if format == BlockFormat::Q8_0 { 3 } else { 5 }, "{format:?}");
        for precision in [Precision::F32, Precision::Bf16] {
            (model.precision, unpacked.precision) = (precision, precision);
            for use_dora in [false, true] {
                let (got, expected) = (adapted(&model, use_dora), adapted(&unpacked, use_dora));
                // The same bits where both go through the same tiles; elsewhere sums in another order.
                assert!((got.0 / expected.0 - 1.0).abs() < 1e-6);
                tolerance::close_norm(&format!("{format:?} {precision:?}"), &got.1, &expected.1, 1e-5);
                let batch = conversations();
                let losses = [&model, &unpacked].map(|model| evaluate_loss(model, &batch).unwrap());
                assert!((losses[0] / losses[1] - 1.0).abs() < 1e-6);
            }
        }
        let values = [&unpacked, &plain].map(|model| to_vec(&model.weights.arena).unwrap());
        distances.push(relative_error(&values[0], &values[1]));
        let zeros = model.weights.arena.zeros_like().unwrap();
        assert!(Weights::new(&model.config, &model.layout, zeros).is_err(), "a quantised base has room for gradients");
    }
    // 8 bits are near, 4 bits are not, and none is the plain matrix.
    assert!(0.0 < distances[0] && distances[0] < 0.01, "{distances:?}");
    assert!(distances[1..].iter().all(|distance| (0.02..0.15).contains(distance)), "{distances:?}");
}

#[test]
fn the_blocks_of_a_gguf_file_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sizes = [("hidden_size", 64), ("intermediate_size", 96), ("head_dim", 16)];
    export(&random_model(&sizes), folder, safetensors::Dtype::F32, &[2]).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("llama").join(name), folder.join(name)).unwrap();
    }
    glan(folder, &["export", "--model", ".", "--output", "base.gguf", "--quantization", "q8_0"]).expect_code(0);
    let file = folder.join("base.gguf");
    let expected = Decoder::load(&file, &Device::Cpu, DtypeChoice::F32).unwrap();
    let got = Decoder::load_quantized(&file, &Device::Cpu, BlockFormat::Q8_0).unwrap().unpacked().unwrap();
    assert!(to_vec(&got.weights.arena).unwrap() == to_vec(&expected.weights.arena).unwrap());
}

#[test]
fn qlora_trains_writes_its_adapter_and_merges_it_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    rows(folder);
    let common = ["train.method=qlora", "train.learning_rate=1e-2", "train.train_batch_size=4", "train.max_steps=20"];
    for (output, more) in [("merged", "train.lora_r=4"), ("alone", "train.merge_adapter=false")] {
        train(folder, output, &[&common[..], &[more, "train.logging_steps=1"]].concat()).expect_code(0);
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        let metrics = fs::read_to_string(folder.join(output).join("metrics.jsonl")).unwrap();
        let lines: Vec<f64> = metrics.lines().filter(|line| line.contains("\"loss\"")).map(loss).collect();
        assert!(lines[lines.len() - 1] < lines[0], "{lines:?}");
        assert!(folder.join(output).join("adapter/adapter_model.safetensors").is_file());
    }
    assert!(folder.join("merged/student/model.safetensors").is_file() && !folder.join("alone/student").exists());
    train(folder, "refused", &["train.method=qlora", "train.base_quantization=q8_0"])
        .expect_code(2)
        .expect_stderr(&["rows of 48 values", "`train.base_quantization`"]);
    train(folder, "random", &["train.method=qlora", "train.init=random"])
        .expect_code(2)
        .expect_stderr(&["`train.init`"]);
}
