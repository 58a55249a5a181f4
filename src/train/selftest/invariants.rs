//! Ways to compute the same thing, on a shipped model with two layers: each must give what the other gives. The reference
//! curve is PyTorch's (`tests/fixtures/models/PROVENANCE.md`).

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use glan_kernels::{
    cross_entropy,
    matmul::{Precision, linear},
    to_vec,
};
use safetensors::Dtype;
use serde::Deserialize;

use super::{Check, bits, distance, normal};
use crate::{
    config::{LrSchedule, OptimizerKind, TrainConfig},
    device::DtypeChoice,
    model::{
        Adapter, AdapterShape, Decoder, Microbatch, Projection, StepOptions, Trained, Weights, evaluate_adapted_loss,
        evaluate_loss, export, load_adapter, save_adapter, train_step,
    },
    train::{Optimizer, TrainerState, checkpoint},
};

/// Sums in another order; the difference is a few units in the last place of f32.
const ROUNDING: f64 = 1e-5;
/// Products in another order, and a loss that hangs on all of them.
const MERGED: f64 = 1e-4;
/// Finite differences of a whole model in f32.
const DIFFERENCES: f64 = 5e-3;
/// Ten steps against PyTorch: rounding grows with the steps.
const CURVE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    sequences: Vec<Sequence>,
    num_trained_tokens: usize,
    optimizer: Settings,
    steps: Vec<Step>,
    final_loss: f64,
}

#[derive(Deserialize)]
struct Sequence {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

#[derive(Deserialize)]
struct Settings {
    base_lr: f64,
    warmup_steps: usize,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
}

#[derive(Deserialize)]
struct Step {
    lr: f64,
    loss: f64,
    grad_norm: f64,
}

/// The model and the curve that are built into the program.
pub struct Shipped {
    model: Decoder,
    device: Device,
    reference: Reference,
}

impl Shipped {
    /// Reads them as a model directory is read.
    pub fn load(device: &Device) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        fs::write(
            folder.path().join("config.json"),
            include_bytes!("../../../tests/fixtures/models/llama/config.json"),
        )?;
        let weights = include_bytes!("../../../tests/fixtures/models/llama/model.safetensors");
        fs::write(folder.path().join("model.safetensors"), weights)?;
        let reference = include_bytes!("../../../tests/fixtures/models/llama/train_expected.json");
        Ok(Self {
            model: Decoder::load(folder.path(), device, DtypeChoice::F32)?,
            device: device.clone(),
            reference: serde_json::from_slice(reference)?,
        })
    }

    /// The model with weights of its own.
    fn copy(&self) -> Result<Decoder> {
        let folder = tempfile::tempdir()?;
        self.save(&self.model, folder.path())?;
        Decoder::load(folder.path(), &self.device, DtypeChoice::F32)
    }

    fn save(&self, model: &Decoder, folder: &Path) -> Result<()> {
        export(model, folder, Dtype::F32, &[2])
    }

    /// PyTorch's sequences as one micro-batch.
    fn batch(&self) -> Microbatch {
        let mut batch = Microbatch::default();
        for sequence in &self.reference.sequences {
            batch.push(&sequence.input_ids, &sequence.labels.iter().map(|label| *label >= 0).collect::<Vec<_>>());
        }
        batch
    }

    /// Eight conversations of several lengths.
    fn conversations(&self) -> Vec<(Vec<u32>, Vec<bool>)> {
        let vocabulary = self.model.config.vocab_size as u32;
        (0..8u32)
            .map(|row| {
                let len = 5 + 7 * row % 23;
                let ids = (0..len).map(|i| 3 + (row * 31 + i * i * 7) % (vocabulary - 3)).collect();
                (ids, (0..len).map(|i| i >= 3 && (i + row) % 5 != 0).collect())
            })
            .collect()
    }

    fn adapter(&self, use_dora: bool, use_rslora: bool) -> Result<Adapter> {
        let layers = 0..self.model.config.num_hidden_layers;
        let targets = layers.flat_map(|layer| Projection::ALL.map(|projection| (layer, projection))).collect();
        let shape = AdapterShape { r: 4, lora_alpha: 6.0, use_rslora, use_dora, targets };
        let fresh = Adapter::new(&self.model.config, &self.model.weights, shape, 1)?;
        // A fresh B is zero, and a zero B hides most mistakes.
        let noise = normal(fresh.layout.len, "adapter");
        let values = to_vec(&fresh.arena)?.iter().zip(noise).map(|(value, noise)| value + 0.1 * noise).collect();
        let arena = Tensor::from_vec(values, fresh.layout.len, &Device::Cpu)?;
        Adapter::from_arena(&self.model.config, fresh.shape, arena)
    }

    /// Loss and all gradients of micro-batches.
    fn full(&self, batches: &[Microbatch], weight: f64, options: &StepOptions) -> Result<(f64, Vec<f32>)> {
        let gradients = gradients(&self.model)?;
        let mut loss = 0.0;
        for batch in batches {
            loss += train_step(&self.model, batch, weight, Trained::Full(&gradients), options)?;
        }
        Ok((loss, to_vec(&gradients.arena)?))
    }

    /// Loss and an adapter's gradients.
    fn adapted(&self, adapter: &Adapter, batch: &Microbatch, options: &StepOptions) -> Result<(f64, Vec<f32>)> {
        let gradients = Adapter::zeros(&self.model.config, adapter.shape.clone())?;
        let trained = Trained::Adapter { adapter, gradients: &gradients };
        let loss = train_step(&self.model, batch, 1.0, trained, options)?;
        Ok((loss, to_vec(&gradients.arena)?))
    }
}

fn gradients(model: &Decoder) -> Result<Weights> {
    let zeros = Tensor::zeros(model.layout.len, DType::F32, &Device::Cpu)?;
    Weights::new(&model.config, &model.layout, zeros)
}

fn relative(found: f64, wanted: f64) -> f64 {
    ((found - wanted) / wanted).abs()
}

/// The larger of two errors; what is no number stays.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Calls `take` with a check of each invariant.
pub fn run(shipped: &Shipped, take: &mut impl FnMut(Check)) {
    take(Check::of("finite differences: the whole model", DIFFERENCES, || full_differences(shipped)));
    take(Check::of("finite differences: LoRA in the model", DIFFERENCES, || adapter_differences(shipped, false)));
    take(Check::of("finite differences: DoRA's magnitudes", DIFFERENCES, || adapter_differences(shipped, true)));
    take(Check::of("packed rows = the conversations alone", ROUNDING, || packed(shipped)));
    take(Check::of("accumulation 1 x 8 = 8 x 1", ROUNDING, || accumulated(shipped)));
    take(Check::of("checkpointing = none, full", 0.0, || checkpointed(shipped)));
    take(Check::of("checkpointing = none, DoRA", 0.0, || checkpointed_adapter(shipped)));
    take(Check::of("chunked loss = plain", ROUNDING, chunked_loss));
    for (name, use_dora, use_rslora) in [
        ("LoRA merged = beside", false, false),
        ("rsLoRA merged = beside", false, true),
        ("DoRA merged = beside", true, false),
    ] {
        take(Check::of(name, MERGED, || merged(shipped, use_dora, use_rslora)));
    }
    take(Check::of("model saved and loaded", 0.0, || saved(shipped)));
    take(Check::of("adapter saved and loaded", 0.0, || saved_adapter(shipped)));
    take(Check::of("training resumed = never stopped", 0.0, || resumed(shipped)));
    take(Check::of("ten AdamW steps = PyTorch", CURVE, || reference_curve(shipped)));
}

/// `⟨gradient, v⟩` against the loss at `± h·v`, relative to the gradient's norm times that of `v` over `√P`.
fn differences(gradient: &[f32], v: &[f32], loss: impl Fn(f64) -> Result<f64>) -> Result<f64> {
    const STEP: f64 = 2e-3;
    let near = (loss(STEP)? - loss(-STEP)?) / (2.0 * STEP);
    let far = (loss(2.0 * STEP)? - loss(-2.0 * STEP)?) / (4.0 * STEP);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let moved = v.iter().filter(|value| **value != 0.0).count() as f64;
    let scale = (dot(gradient, gradient) * dot(v, v) / moved).sqrt();
    Ok(((4.0 * near - far) / 3.0 - dot(gradient, v)).abs() / scale)
}

fn moved(values: &[f32], v: &[f32], h: f64) -> Result<Tensor> {
    let values: Vec<f32> = values.iter().zip(v).map(|(value, v)| value + (h * f64::from(*v)) as f32).collect();
    Ok(Tensor::from_vec(values, v.len(), &Device::Cpu)?)
}

fn full_differences(shipped: &Shipped) -> Result<f64> {
    let (batch, values) = (shipped.batch(), to_vec(&shipped.model.weights.arena)?);
    let (_, gradient) = shipped.full(std::slice::from_ref(&batch), 1.0, &StepOptions::default())?;
    let mut model = shipped.copy()?;
    let mut worst = 0.0;
    for direction in 0..3 {
        let v: Vec<f32> = normal(values.len(), &format!("full-{direction}")).iter().map(|v| 0.1 * v).collect();
        let cell = std::cell::RefCell::new(&mut model);
        let error = differences(&gradient, &v, |h| {
            let mut model = cell.borrow_mut();
            model.weights = Weights::new(&model.config, &model.layout, moved(&values, &v, h)?)?;
            evaluate_loss(&model, &batch)
        })?;
        worst = worse(worst, error);
    }
    Ok(worst)
}

/// DoRA counts its norm as a constant, so its magnitudes alone have the derivative that differences show.
fn adapter_differences(shipped: &Shipped, use_dora: bool) -> Result<f64> {
    let (batch, adapter) = (shipped.batch(), shipped.adapter(use_dora, false)?);
    let (_, mut gradient) = shipped.adapted(&adapter, &batch, &StepOptions::default())?;
    let values = to_vec(&adapter.arena)?;
    let mut worst = 0.0;
    for direction in 0..3 {
        let mut v = normal(values.len(), &format!("adapter-{direction}"));
        for tensor in adapter.layout.tensors.iter().filter(|it| use_dora && !it.name.ends_with("magnitude_vector")) {
            v[tensor.offset..tensor.offset + tensor.len()].fill(0.0);
            gradient[tensor.offset..tensor.offset + tensor.len()].fill(0.0);
        }
        let error = differences(&gradient, &v, |h| {
            let adapter = Adapter::from_arena(&shipped.model.config, adapter.shape.clone(), moved(&values, &v, h)?)?;
            evaluate_adapted_loss(&shipped.model, Some(&adapter), &batch)
        })?;
        worst = worse(worst, error);
    }
    Ok(worst)
}

fn packed(shipped: &Shipped) -> Result<f64> {
    let (mut together, mut alone) = (Microbatch::default(), Vec::new());
    for (ids, trained) in shipped.conversations() {
        together.push(&ids, &trained);
        let mut batch = Microbatch::default();
        batch.push(&ids, &trained);
        alone.push(batch);
    }
    let (loss, found) = shipped.full(&[together], 0.1, &StepOptions::default())?;
    let (wanted_loss, wanted) = shipped.full(&alone, 0.1, &StepOptions::default())?;
    Ok(worse(relative(loss, wanted_loss), distance(&found, &wanted)))
}

/// With NEFTune's noise, which must not depend on the cut.
fn accumulated(shipped: &Shipped) -> Result<f64> {
    let options = StepOptions { neftune_noise_alpha: 5.0, noise_key: 3, ..StepOptions::default() };
    let (mut whole, mut parts, mut first_token) = (Microbatch::default(), Vec::new(), 0);
    for (ids, trained) in shipped.conversations() {
        whole.push(&ids, &trained);
        let mut part = Microbatch { first_token, ..Microbatch::default() };
        part.push(&ids, &trained);
        first_token += ids.len();
        parts.push(part);
    }
    let (loss, found) = shipped.full(&[whole], 0.1, &options)?;
    let (wanted_loss, wanted) = shipped.full(&parts, 0.1, &options)?;
    Ok(worse(relative(loss, wanted_loss), distance(&found, &wanted)))
}

fn checkpointed(shipped: &Shipped) -> Result<f64> {
    let again = StepOptions { recompute_blocks: 1, ..StepOptions::default() };
    let batch = [shipped.batch()];
    let (found, wanted) = (shipped.full(&batch, 1.0, &again)?, shipped.full(&batch, 1.0, &StepOptions::default())?);
    Ok(worse(relative(found.0, wanted.0), bits(&found.1, &wanted.1)))
}

fn checkpointed_adapter(shipped: &Shipped) -> Result<f64> {
    let plain = StepOptions { lora_dropout: 0.2, noise_key: 4, ..StepOptions::default() };
    let (adapter, batch) = (shipped.adapter(true, false)?, shipped.batch());
    let found = shipped.adapted(&adapter, &batch, &StepOptions { recompute_blocks: 1, ..plain })?;
    let wanted = shipped.adapted(&adapter, &batch, &plain)?;
    Ok(worse(relative(found.0, wanted.0), bits(&found.1, &wanted.1)))
}

/// Rows of more than one chunk, against logits as a whole and sums in f64.
fn chunked_loss() -> Result<f64> {
    const ROWS: usize = 600;
    const HIDDEN: usize = 8;
    const VOCABULARY: usize = 32_000;
    let tensor =
        |shape: (usize, usize), name: &str| Tensor::from_vec(normal(shape.0 * shape.1, name), shape, &Device::Cpu);
    let (x, w) = (tensor((ROWS, HIDDEN), "x")?, tensor((VOCABULARY, HIDDEN), "w")?);
    let targets: Vec<u32> = (0..ROWS as u32).map(|row| row * 53 % VOCABULARY as u32).collect();
    let found = cross_entropy::forward_backward_frozen(&x, &w, &targets, 1.0, Precision::F32)?;
    let logits = to_vec(&linear(&x, &w, None, None, Precision::F32)?)?;
    let weights = to_vec(&w)?;
    let (mut loss, mut dx) = (0.0, Vec::with_capacity(ROWS * HIDDEN));
    for (row, target) in logits.chunks_exact(VOCABULARY).zip(&targets) {
        let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let exponentials: Vec<f64> = row.iter().map(|logit| (f64::from(*logit) - most).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        loss += sum.ln() + most - f64::from(row[*target as usize]);
        let mut gradient = [0f64; HIDDEN];
        for (index, (exponential, w)) in exponentials.iter().zip(weights.chunks_exact(HIDDEN)).enumerate() {
            let share = exponential / sum - f64::from(u8::from(index == *target as usize));
            gradient.iter_mut().zip(w).for_each(|(sum, w)| *sum += share * f64::from(*w));
        }
        dx.extend(gradient.map(|value| value as f32));
    }
    Ok(worse(relative(found.loss, loss), distance(&to_vec(&found.dx)?, &dx)))
}

fn merged(shipped: &Shipped, use_dora: bool, use_rslora: bool) -> Result<f64> {
    let (adapter, batch, model) = (shipped.adapter(use_dora, use_rslora)?, shipped.batch(), shipped.copy()?);
    let beside = evaluate_adapted_loss(&model, Some(&adapter), &batch)?;
    ensure!(relative(evaluate_loss(&model, &batch)?, beside) > 1e-2, "the adapter changes nothing");
    adapter.merge_into(&model.config, &model.layout, &model.weights.arena)?;
    Ok(relative(evaluate_loss(&model, &batch)?, beside))
}

fn saved(shipped: &Shipped) -> Result<f64> {
    Ok(bits(&to_vec(&shipped.copy()?.weights.arena)?, &to_vec(&shipped.model.weights.arena)?))
}

fn saved_adapter(shipped: &Shipped) -> Result<f64> {
    let (folder, adapter) = (tempfile::tempdir()?, shipped.adapter(true, true)?);
    save_adapter(&adapter, folder.path(), "base", 0.0)?;
    let again = load_adapter(folder.path(), &shipped.model.config)?;
    ensure!(again.shape == adapter.shape, "the adapter has another shape when it is loaded");
    Ok(bits(&to_vec(&again.arena)?, &to_vec(&adapter.arena)?))
}

/// Six steps at a stretch, and three, a checkpoint, and three.
fn resumed(shipped: &Shipped) -> Result<f64> {
    let (config, batch, folder) = (TrainConfig::default(), shipped.batch(), tempfile::tempdir()?);
    let steps = |model: &Decoder, optimizer: &mut Optimizer| -> Result<()> {
        let gradients = gradients(model)?;
        for _ in 0..3 {
            train_step(model, &batch, 0.1, Trained::Full(&gradients), &StepOptions::default())?;
            optimizer.update(&model.weights.arena, &gradients.arena, &config, 1e-3)?;
        }
        Ok(())
    };
    let (whole, mut optimizer) = (shipped.copy()?, Optimizer::new(&shipped.model.layout, OptimizerKind::Adamw)?);
    steps(&whole, &mut optimizer)?;
    let state = TrainerState { global_step: 3, run_hash: "selftest".into(), ..TrainerState::default() };
    let keep = checkpoint::Keep { newest: 1, best: None };
    checkpoint::save(folder.path(), &whole.weights.arena, &optimizer, &state, keep)?;
    steps(&whole, &mut optimizer)?;
    let (mut resumed, mut optimizer) = (shipped.copy()?, Optimizer::new(&shipped.model.layout, OptimizerKind::Adamw)?);
    let found = checkpoint::resume(folder.path(), &mut optimizer, "selftest", false)?;
    let (_, arena) = found.context("no checkpoint was found")?;
    resumed.weights = Weights::new(&resumed.config, &resumed.layout, arena)?;
    steps(&resumed, &mut optimizer)?;
    Ok(bits(&to_vec(&resumed.weights.arena)?, &to_vec(&whole.weights.arena)?))
}

fn reference_curve(shipped: &Shipped) -> Result<f64> {
    let (reference, batch, model) = (&shipped.reference, shipped.batch(), shipped.copy()?);
    let settings = &reference.optimizer;
    let config = TrainConfig {
        learning_rate: settings.base_lr,
        lr_scheduler_type: LrSchedule::Cosine,
        warmup_steps: settings.warmup_steps,
        adam_beta1: settings.beta1,
        adam_beta2: settings.beta2,
        adam_epsilon: settings.eps,
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.max_grad_norm,
        ..TrainConfig::default()
    };
    let schedule = crate::train::Schedule::new(&config, reference.steps.len());
    let (mut optimizer, gradients) = (Optimizer::new(&model.layout, OptimizerKind::Adamw)?, gradients(&model)?);
    let weight = 1.0 / reference.num_trained_tokens as f64;
    let mut worst = 0.0;
    for (index, step) in reference.steps.iter().enumerate() {
        let rate = schedule.learning_rate(index);
        ensure!((rate - step.lr).abs() < 1e-12, "step {index} has rate {rate}, PyTorch's has {}", step.lr);
        let loss = train_step(&model, &batch, weight, Trained::Full(&gradients), &StepOptions::default())?;
        let norm = optimizer.update(&model.weights.arena, &gradients.arena, &config, rate)?;
        // Norms before clipping show the gradients' errors, ten times those of the loss.
        worst = worse(worst, worse(relative(loss, step.loss), 0.1 * relative(norm, step.grad_norm)));
    }
    Ok(worse(worst, relative(evaluate_loss(&model, &batch)? * weight, reference.final_loss)))
}
