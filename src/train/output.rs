//! The trained model as a Hugging Face directory, and what the run says of itself.

use std::path::Path;

use anyhow::{Result, bail};
use glan_kernels::matmul::Precision;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::{Job, model_card::model_card, quantizations, target::Target, trainer::Prepared};
use crate::{
    device::DtypeChoice,
    model::{
        Adapter, Decoder, Microbatch, evaluate_adapted_loss, evaluate_loss, export_sharded, for_pieces, load_adapter,
        save_adapter,
    },
    records::{write_atomic, write_json},
    tokenizer::Tokenizer,
};

/// `train_results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainResults {
    /// Optimizer steps.
    pub global_step: usize,
    /// Passes over the rows.
    pub epoch: f64,
    /// Mean over the steps.
    pub train_loss: f64,
    /// On the validation rows, at the end.
    pub eval_loss: Option<f64>,
    /// The step whose weights these are, where that is not the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<usize>,
    /// Rows trained on.
    pub num_rows: usize,
    /// Rows cut at the longest length.
    pub num_truncated: usize,
    /// Rows left out because nothing in them is trained.
    pub num_without_target: usize,
    /// Tokens of all steps.
    pub num_input_tokens_seen: usize,
    /// Hash of model, data and settings.
    pub run_hash: String,
}

/// Writes `adapter/` (where one was trained), `student/` and `train_results.json`; each model is loaded again and compared
/// before this says done.
pub fn write(job: &Job, prepared: &Prepared, target: &Target, results: &TrainResults) -> Result<()> {
    let merged = match target.adapter() {
        Some(adapter) => write_adapter(job, prepared, adapter)?,
        None => None,
    };
    if target.adapter().is_none() || job.config.train.merge_adapter {
        write_student(job, prepared, merged.as_ref().unwrap_or(&prepared.model), results)?;
    }
    write_json(&job.output.join("train_results.json"), results)
}

/// Writes `student/`.
fn write_student(job: &Job, prepared: &Prepared, model: &Decoder, results: &TrainResults) -> Result<()> {
    let folder = job.output.join("student");
    let dtype = weight_type(model);
    let eos = eos_token_ids(prepared);
    Tokenizer::copy_files(&prepared.directory, &folder)?;
    if let Some(template) = prepared.template.as_ref().filter(|_| prepared.data.has_messages) {
        write_atomic(&folder.join("chat_template.jinja"), template.source().as_bytes())?;
    }
    write_atomic(&folder.join("README.md"), model_card(job, prepared, results)?.as_bytes())?;
    export_sharded(model, &folder, dtype, &eos, job.config.train.max_shard_bytes)?;
    check_written(&folder, model, dtype)?;
    for quantization in quantizations(&job.config.train)? {
        let file = job.output.join(format!("student-{}.gguf", quantization.name()));
        (job.export_gguf)(&folder, &file, quantization)?;
        tracing::info!("wrote `{}` and compared it with `{}`", file.display(), folder.display());
    }
    Ok(())
}

/// Loads the student again and compares it with what was trained, bit for bit.
fn check_written(folder: &Path, model: &Decoder, dtype: Dtype) -> Result<()> {
    let again = Decoder::load(folder, &candle_core::Device::Cpu, DtypeChoice::F32)?;
    let mut start = 0;
    for_pieces(&again.weights.arena, |written| {
        let trained = glan_kernels::to_vec(&model.weights.arena.narrow(0, start, written.len())?)?;
        start += written.len();
        let round = |value: f32| if dtype == Dtype::F32 { value } else { half::bf16::from_f32(value).to_f32() };
        if written.iter().zip(trained).any(|(written, trained)| written.to_bits() != round(trained).to_bits()) {
            bail!("`{}` does not hold the trained weights when loaded again", folder.display());
        }
        Ok(())
    })
}

/// What ends an answer of the student: the template's end of turn, where conversations were trained, and the model's own.
pub fn eos_token_ids(prepared: &Prepared) -> Vec<u32> {
    let mut eos: Vec<u32> = Vec::new();
    let end_of_turn = prepared.template.as_ref().and_then(|template| template.end_of_turn_token(&prepared.tokenizer));
    let end_of_turn = end_of_turn.filter(|_| prepared.data.has_messages);
    for id in end_of_turn.into_iter().chain(prepared.model.config.eos_token_ids.iter().copied()) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    eos
}

/// Writes `adapter/`, reads it back and compares it bit for bit. Where that is asked for, merges it into the student's
/// weights (for a quantised base into unpacked ones, which are returned); the merged model must give the loss that base
/// and adapter give.
fn write_adapter(job: &Job, prepared: &Prepared, adapter: &Adapter) -> Result<Option<Decoder>> {
    let folder = job.output.join("adapter");
    Tokenizer::copy_files(&prepared.directory, &folder)?;
    if let Some(template) = prepared.template.as_ref().filter(|_| prepared.data.has_messages) {
        write_atomic(&folder.join("chat_template.jinja"), template.source().as_bytes())?;
    }
    save_adapter(adapter, &folder, &job.model.model, job.config.train.lora_dropout)?;
    let again = load_adapter(&folder, &prepared.model.config)?;
    if again.shape != adapter.shape || glan_kernels::to_vec(&again.arena)? != glan_kernels::to_vec(&adapter.arena)? {
        bail!("`{}` does not hold the trained adapter when loaded again", folder.display());
    }
    if !job.config.train.merge_adapter {
        return Ok(None);
    }
    let mut batch = Microbatch::default();
    for row in 0..prepared.data.len().min(4) {
        let example = prepared.data.example(row)?;
        batch.push(&example.token_ids, &example.trained);
    }
    let beside = evaluate_adapted_loss(&prepared.model, Some(&again), &batch)?;
    let quantised = prepared.model.weights.blocks().next().is_some();
    let unpacked = quantised.then(|| prepared.model.unpacked()).transpose()?;
    let model = unpacked.as_ref().unwrap_or(&prepared.model);
    again.merge_into(&model.config, &model.layout, &model.weights.arena)?;
    let merged = evaluate_loss(model, &batch)?;
    // Products in another order, and in bf16 the merged matrices rounded; far below what a wrong scale or a missing
    // projection does.
    let tolerance = if model.precision == Precision::Bf16 { 2e-2 } else { 1e-3 };
    if (beside - merged).abs() > tolerance * beside.abs().max(1.0) {
        bail!("the merged student has loss {merged} where base and adapter have {beside}; `{}`", folder.display());
    }
    Ok(unpacked)
}

/// The type that the student's own checkpoint has; bf16 where its products are.
fn weight_type(model: &Decoder) -> Dtype {
    let named = ["torch_dtype", "dtype"].iter().find_map(|key| model.config.raw.get(*key)?.as_str());
    if named == Some("bfloat16") || model.precision == Precision::Bf16 { Dtype::BF16 } else { Dtype::F32 }
}
