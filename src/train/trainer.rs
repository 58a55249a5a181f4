//! The training loop.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use candle_core::Device;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{
    Job,
    checkpoint::{self, TrainerState},
    dataset::{self, Dataset},
    optimizer::Optimizer,
    output::{self, TrainResults},
    schedule::Schedule,
};
use crate::{
    chat_template::ChatTemplate,
    config::TrainInit,
    error::usage,
    interrupt,
    model::{Decoder, DecoderConfig, Microbatch, evaluate_loss, loss_and_gradients},
    model_dir,
    records::{JsonlWriter, read_partial_jsonl, write_atomic},
    seed,
    telemetry::Progress,
    tokenizer::Tokenizer,
};

/// Everything that is read before the first step.
pub struct Prepared {
    pub model: Decoder,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub directory: std::path::PathBuf,
    pub data: Dataset,
    pub valid: Option<Dataset>,
    /// Hash of model, data and settings.
    pub run_hash: String,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct MetricsRow {
    step: usize,
    epoch: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grad_norm: Option<f64>,
    tokens: usize,
}

/// Loads model, tokenizer and rows.
pub fn prepare(job: &Job, device: &Device) -> Result<Prepared> {
    let settings = &job.config.train;
    let directory = model_dir::resolve(&job.model.model)?;
    let model = match settings.init {
        TrainInit::Checkpoint => Decoder::load(&directory, device, job.model.dtype)?,
        TrainInit::Random => Decoder::random(DecoderConfig::load(&directory)?, job.config.seed)?,
    };
    let tokenizer = Tokenizer::load(&directory)?;
    tokenizer.check_fits(model.config.vocab_size)?;
    let template = chat_template(&settings.chat_template, &directory, &tokenizer)?;
    let context = model.config.max_position_embeddings;
    let max_length = if settings.max_length == 0 { context } else { settings.max_length.min(context) };
    let eos = model.config.eos_token_ids.first().copied().or(tokenizer.eos_token_id());
    let encoding = dataset::Encoding {
        tokenizer: &tokenizer,
        template: template.as_ref(),
        eos_token_id: eos,
        max_length,
        assistant_only_loss: settings.assistant_only_loss,
    };
    let data = dataset::read(&job.data, &encoding)?;
    let valid = job.valid.as_deref().map(|path| dataset::read(path, &encoding)).transpose()?;
    tracing::info!(
        "{} rows, {} tokens, {} of them trained; {} cut at {max_length} tokens, {} without a trained token left out",
        data.examples.len(),
        data.num_tokens(),
        data.num_trained_tokens(),
        data.num_truncated,
        data.num_without_target,
    );
    let run_hash = run_hash(job, &model)?;
    Ok(Prepared { model, tokenizer, template, directory, data, valid, run_hash })
}

/// The template that conversations are rendered with: the configured file, else the model's own, else the plain one.
pub fn chat_template(file: &Path, directory: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    if !file.as_os_str().is_empty() {
        let source = std::fs::read_to_string(file)
            .map_err(|error| usage(format!("`train.chat_template`: cannot read `{}`: {error}", file.display())))?;
        return Ok(Some(ChatTemplate::new(source, tokenizer)?));
    }
    match ChatTemplate::load(directory, tokenizer)? {
        Some(template) => Ok(Some(template)),
        None if tokenizer.eos_token().is_some() => {
            tracing::info!("the model has no chat template; conversations use the plain one of configs/chat_templates");
            let source = include_str!("../../configs/chat_templates/plain.jinja");
            Ok(Some(ChatTemplate::new(source.to_owned(), tokenizer)?))
        }
        None => Ok(None),
    }
}

fn run_hash(job: &Job, model: &Decoder) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&serde_json::to_vec(&(job.config.seed, &job.config.train))?);
    hasher.update(&serde_json::to_vec(&model.config.raw)?);
    for value in glan_kernels::to_vec(&model.weights.arena)? {
        hasher.update(&value.to_le_bytes());
    }
    for path in std::iter::once(&job.data).chain(&job.valid) {
        hasher.update(&std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?);
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// How the rows are cut into steps.
struct Plan {
    rows: usize,
    batch: usize,
    total_steps: usize,
}

impl Plan {
    fn steps_per_epoch(&self) -> usize {
        self.rows.div_ceil(self.batch)
    }

    /// The rows of step `step` (from 0): every epoch has its own order.
    fn batch_rows(&self, run_seed: u64, step: usize, order: &mut (usize, Vec<usize>)) -> Vec<usize> {
        let (epoch, at) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if order.1.is_empty() || order.0 != epoch {
            let mut rows: Vec<usize> = (0..self.rows).collect();
            rows.shuffle(&mut seed::stream(run_seed, "train", &format!("epoch-{epoch}")));
            *order = (epoch, rows);
        }
        order.1[at * self.batch..((at + 1) * self.batch).min(self.rows)].to_vec()
    }
}

/// Trains from the newest checkpoint (or the start) to the end, and writes the student.
pub fn run(job: &Job, mut prepared: Prepared) -> Result<TrainResults> {
    let settings = &job.config.train;
    let rows = prepared.data.examples.len();
    let mut plan = Plan { rows, batch: settings.train_batch_size.min(rows), total_steps: 0 };
    plan.total_steps = match settings.max_steps {
        0 => (plan.steps_per_epoch() as f64 * settings.num_train_epochs).ceil() as usize,
        steps => steps,
    };
    let schedule = Schedule::new(settings, plan.total_steps);
    let mut optimizer = Optimizer::new(&prepared.model)?;
    let fresh = TrainerState {
        global_step: 0,
        epoch: 0.0,
        loss_sum: 0.0,
        num_input_tokens_seen: 0,
        run_hash: prepared.run_hash.clone(),
        file_hashes: Default::default(),
    };
    let mut state = match checkpoint::resume(&job.output, &mut prepared.model, &mut optimizer, &prepared.run_hash)? {
        Some(state) => {
            tracing::info!("resuming at step {} of {}", state.global_step, plan.total_steps);
            state
        }
        None => fresh,
    };
    let metrics_file = job.output.join("metrics.jsonl");
    let mut metrics = reopen_metrics(&metrics_file, state.global_step)?;
    let mut progress = Progress::new("train", state.global_step as u64, plan.total_steps as u64);
    let mut order = (0, Vec::new());
    let started = Instant::now();
    let mut busy = (Duration::ZERO, 0usize);
    while state.global_step < plan.total_steps {
        let step_started = Instant::now();
        let learning_rate = schedule.learning_rate(state.global_step);
        let rows = plan.batch_rows(job.config.seed, state.global_step, &mut order);
        let (loss, tokens) = accumulate(&prepared, &optimizer, &rows, settings.max_tokens_per_micro_batch)?;
        let grad_norm = optimizer.update(&prepared.model, settings, learning_rate)?;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(diverged(&prepared, &rows, state.global_step, loss, grad_norm));
        }
        state.global_step += 1;
        state.num_input_tokens_seen += tokens;
        state.loss_sum += loss;
        state.epoch = state.global_step as f64 / plan.steps_per_epoch() as f64;
        let last = state.global_step == plan.total_steps;
        if last || state.global_step.is_multiple_of(settings.logging_steps.max(1)) {
            metrics.write(&MetricsRow {
                step: state.global_step,
                epoch: state.epoch,
                loss: Some(loss),
                eval_loss: None,
                learning_rate: Some(learning_rate),
                grad_norm: Some(grad_norm),
                tokens: state.num_input_tokens_seen,
            })?;
        }
        if settings.eval_steps > 0 && !last && state.global_step.is_multiple_of(settings.eval_steps) {
            log_validation(&prepared, &state, settings.max_tokens_per_micro_batch, &mut metrics)?;
        }
        busy = (busy.0 + step_started.elapsed(), busy.1 + tokens);
        progress.advance(1, &format!("loss {loss:.3} · {:.0} tokens/s", busy.1 as f64 / busy.0.as_secs_f64()));
        let stop = interrupt::check();
        let due = settings.save_steps > 0 && state.global_step.is_multiple_of(settings.save_steps);
        if !last && (due || stop.is_err()) {
            checkpoint::save(&job.output, &prepared.model, &optimizer, &state, settings.save_total_limit)?;
        }
        if !last {
            stop?;
        }
    }
    progress.finish();
    let eval_loss = log_validation(&prepared, &state, settings.max_tokens_per_micro_batch, &mut metrics)?;
    metrics.sync()?;
    let results = TrainResults {
        global_step: state.global_step,
        epoch: state.epoch,
        train_loss: state.loss_sum / state.global_step.max(1) as f64,
        eval_loss,
        num_rows: prepared.data.examples.len(),
        num_truncated: prepared.data.num_truncated,
        num_without_target: prepared.data.num_without_target,
        num_input_tokens_seen: state.num_input_tokens_seen,
        run_hash: prepared.run_hash.clone(),
    };
    output::write(job, &prepared, &results)?;
    checkpoint::remove_all(&job.output)?;
    tracing::info!(
        "trained {} steps, {} tokens in {:.0} s; mean loss {:.4}",
        results.global_step,
        busy.1,
        started.elapsed().as_secs_f64(),
        results.train_loss
    );
    Ok(results)
}

/// Adds the gradients of one batch, micro-batch by micro-batch; returns the mean loss of its trained tokens and its
/// number of tokens.
fn accumulate(prepared: &Prepared, optimizer: &Optimizer, rows: &[usize], max_tokens: usize) -> Result<(f64, usize)> {
    let batches = pack(&prepared.data, rows, max_tokens);
    let trained: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    let weight = 1.0 / trained as f64;
    let mut loss = 0.0;
    for batch in &batches {
        loss += loss_and_gradients(&prepared.model, batch, weight, &optimizer.gradients)?;
    }
    Ok((loss, batches.iter().map(|batch| batch.token_ids.len()).sum()))
}

/// Packs rows, in order, into micro-batches of at most `max_tokens` (a longer row stands alone).
fn pack(data: &Dataset, rows: &[usize], max_tokens: usize) -> Vec<Microbatch> {
    let mut batches: Vec<Microbatch> = Vec::new();
    for &row in rows {
        let example = &data.examples[row];
        let fits = batches.last().is_some_and(|batch| batch.token_ids.len() + example.token_ids.len() <= max_tokens);
        if !fits {
            batches.push(Microbatch::default());
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(&example.token_ids, &example.trained);
        }
    }
    batches
}

fn log_validation(
    prepared: &Prepared,
    state: &TrainerState,
    max_tokens: usize,
    metrics: &mut JsonlWriter,
) -> Result<Option<f64>> {
    let Some(valid) = &prepared.valid else { return Ok(None) };
    let rows: Vec<usize> = (0..valid.examples.len()).collect();
    let mut sum = 0.0;
    for batch in pack(valid, &rows, max_tokens) {
        sum += evaluate_loss(&prepared.model, &batch)?;
    }
    let eval_loss = sum / valid.num_trained_tokens() as f64;
    tracing::info!("step {}: validation loss {eval_loss:.4}", state.global_step);
    metrics.write(&MetricsRow {
        step: state.global_step,
        epoch: state.epoch,
        loss: None,
        eval_loss: Some(eval_loss),
        learning_rate: None,
        grad_norm: None,
        tokens: state.num_input_tokens_seen,
    })?;
    Ok(Some(eval_loss))
}

/// The metrics file, cut back to the step that training goes on from.
fn reopen_metrics(path: &Path, step: usize) -> Result<JsonlWriter> {
    let mut kept = Vec::new();
    for row in read_partial_jsonl::<MetricsRow>(path)?.iter().filter(|row| row.step <= step) {
        serde_json::to_writer(&mut kept, row)?;
        kept.push(b'\n');
    }
    write_atomic(path, &kept)?;
    JsonlWriter::append(path)
}

fn diverged(prepared: &Prepared, rows: &[usize], step: usize, loss: f64, grad_norm: f64) -> anyhow::Error {
    let ids: Vec<&str> = rows.iter().take(8).map(|&row| prepared.data.examples[row].id.as_str()).collect();
    anyhow::anyhow!(
        "step {step}: loss {loss}, gradient norm {grad_norm}; the last checkpoint is kept. Lower \
         `train.learning_rate`, or look at the rows of this batch: {}{}",
        ids.join(", "),
        if rows.len() > 8 { ", …" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_row_once_in_its_own_order() {
        let plan = Plan { rows: 10, batch: 4, total_steps: 6 };
        let mut order = (0, Vec::new());
        let epochs: Vec<Vec<usize>> = (0..2)
            .map(|epoch| (0..3).flat_map(|at| plan.batch_rows(7, epoch * 3 + at, &mut order)).collect())
            .collect();
        assert_ne!(epochs[0], epochs[1]);
        for mut rows in epochs {
            rows.sort_unstable();
            assert_eq!(rows, (0..10).collect::<Vec<_>>());
        }
        // Jumping straight into the second epoch, as a resume does, gives the same batch.
        assert_eq!(plan.batch_rows(7, 4, &mut (0, Vec::new())), plan.batch_rows(7, 4, &mut order));
    }
}
