//! The training loop.

use std::{fs::File, path::Path, time::Instant};

use anyhow::{Context, Result};
use candle_core::Device;
use serde::Serialize;

use super::{
    Job,
    accumulate::{Pass, accumulate},
    checkpoint::{self, TrainerState},
    dataset::{self, Dataset},
    forecast::{Forecast, available_bytes, flops_per_token, measured_flops},
    monitor::{Monitor, StepMetrics, check_loss, row_ids},
    optimizer::Optimizer,
    output::{self, TrainResults},
    plan::{Plan, micro_batches},
    samples::Samples,
    schedule::Schedule,
    target::Target,
};
use crate::{
    chat_template::ChatTemplate,
    config::{TrainConfig, TrainInit, TrainMethod},
    error::usage,
    interrupt,
    model::{Adapter, Decoder, DecoderConfig, Microbatch, StepOptions, bytes_of, for_pieces, train_step},
    model_dir, seed,
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
    /// Longest row that the settings allow, in tokens.
    pub max_length: usize,
    /// What the run will need.
    pub forecast: Forecast,
    /// Hash of model, data and settings.
    pub run_hash: String,
    /// Of the training rows' file, and of the validation rows'.
    pub data_hashes: Vec<String>,
}

/// Loads model, tokenizer and rows.
pub fn prepare(job: &Job, device: &Device) -> Result<Prepared> {
    let settings = &job.config.train;
    let directory = model_dir::resolve(&job.model.model)?;
    let mut model = match settings.init {
        _ if settings.method == TrainMethod::QLora => {
            Decoder::load_quantized(&directory, device, settings.base_quantization.format())?
        }
        TrainInit::Checkpoint => Decoder::load(&directory, device, job.model.dtype)?,
        TrainInit::Random => Decoder::random(DecoderConfig::load(&directory)?, job.config.seed)?,
    };
    model.precision = settings.precision();
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
    let data = dataset::read(&job.data, &encoding, &job.output)?;
    let valid = job.valid.as_deref().map(|path| dataset::read(path, &encoding, &job.output)).transpose()?;
    tracing::info!(
        "{} rows, {} tokens, {} of them trained; {} cut at {max_length} tokens, {} without a trained token left out",
        data.len(),
        data.num_tokens(),
        data.num_trained_tokens(),
        data.num_truncated,
        data.num_without_target,
    );
    let longest = if settings.packing { max_length } else { data.longest() };
    let forecast = Forecast::new(&model.config, settings, longest)?;
    tracing::info!("memory: about {}", forecast.text());
    if let Some(available) = available_bytes() {
        // The weights are loaded already.
        forecast.check(available + model.bytes(), &model.config, settings, longest)?;
    }
    let data_hashes = data_hashes(job)?;
    let run_hash = run_hash(job, &model, &data_hashes)?;
    Ok(Prepared { model, tokenizer, template, directory, data, valid, max_length, forecast, run_hash, data_hashes })
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

fn run_hash(job: &Job, model: &Decoder, data_hashes: &[String]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&serde_json::to_vec(&(job.config.seed, &job.config.train))?);
    hasher.update(&serde_json::to_vec(&model.config.raw)?);
    for_pieces(&model.weights.arena, |values| {
        hasher.update(&bytes_of(values, safetensors::Dtype::F32));
        Ok(())
    })?;
    for blocks in model.weights.blocks() {
        blocks.contents(|bytes| _ = hasher.update(bytes));
    }
    data_hashes.iter().for_each(|hash| {
        hasher.update(hash.as_bytes());
    });
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// BLAKE3 hashes of the files of rows.
fn data_hashes(job: &Job) -> Result<Vec<String>> {
    let hash = |path: &std::path::PathBuf| {
        let unreadable = || format!("cannot read `{}`", path.display());
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path).with_context(unreadable)?).with_context(unreadable)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    std::iter::once(&job.data).chain(&job.valid).map(hash).collect()
}

/// Trains from the newest checkpoint (or the start) to the end, and writes the student.
pub fn run(job: &Job, prepared: Prepared) -> Result<TrainResults> {
    let target = Target::new(&prepared.model, &job.config.train, job.config.seed)?;
    let mut run = Run::start(job, prepared, target)?;
    run.steps()?;
    run.end()
}

/// What a run would do and need, without doing it: `glan train --dry-run`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DryRun {
    /// Memory by part, in bytes.
    pub memory: Forecast,
    /// Optimizer steps.
    pub steps: usize,
    /// Rows of one pass.
    pub rows: usize,
    /// Tokens of one pass, and of them those with a loss.
    pub tokens_per_epoch: usize,
    /// See `tokens_per_epoch`.
    pub trained_tokens_per_epoch: usize,
    /// Tokens of all steps.
    pub tokens: usize,
    /// Measured on one step's micro-batch.
    pub tokens_per_second: f64,
    /// For all steps.
    pub seconds: f64,
}

/// Measures one micro-batch and reckons from it; no weight changes and no file is written.
pub fn dry_run(job: &Job, prepared: &Prepared) -> Result<DryRun> {
    let settings = &job.config.train;
    let plan = Plan::new(&prepared.data, settings, prepared.max_length);
    let target = Target::new(&prepared.model, settings, job.config.seed)?;
    let rows = plan.batch_rows(job.config.seed, 0, &mut (0, Vec::new()));
    let batches = micro_batches(&prepared.data, &rows, settings.max_tokens_per_micro_batch);
    let batch = batches.first().context("a step has at least one row")?.load(&prepared.data)?;
    let mut took = f64::INFINITY;
    for _ in 0..2 {
        let begun = Instant::now();
        train_step(&prepared.model, &batch, 1.0, target.trained(), &step_options(settings, 0))?;
        took = took.min(begun.elapsed().as_secs_f64());
    }
    let tokens_per_second = batch.token_ids.len() as f64 / took;
    let tokens_per_epoch = prepared.data.num_tokens();
    let tokens = (tokens_per_epoch as f64 * plan.total_steps as f64 / plan.steps_per_epoch() as f64) as usize;
    Ok(DryRun {
        memory: prepared.forecast.clone(),
        steps: plan.total_steps,
        rows: prepared.data.len(),
        tokens_per_epoch,
        trained_tokens_per_epoch: prepared.data.num_trained_tokens(),
        tokens,
        tokens_per_second,
        seconds: tokens as f64 / tokens_per_second,
    })
}

fn step_options(settings: &TrainConfig, noise_key: u64) -> StepOptions {
    StepOptions {
        lora_dropout: settings.lora_dropout as f32,
        neftune_noise_alpha: settings.neftune_noise_alpha as f32,
        noise_key,
        recompute_blocks: settings.recompute_blocks(),
    }
}

/// A step's passes over the model.
struct ModelPass<'a> {
    model: &'a Decoder,
    target: &'a Target,
    options: StepOptions,
}

impl Pass for ModelPass<'_> {
    fn run(&mut self, batch: &Microbatch, weight: f64) -> Result<f64> {
        train_step(self.model, batch, weight, self.target.trained(), &self.options)
    }

    fn clear(&mut self) -> Result<()> {
        Ok(glan_kernels::fill_zero(self.target.gradients())?)
    }
}

/// A run on its way.
struct Run<'a> {
    job: &'a Job<'a>,
    settings: &'a TrainConfig,
    prepared: Prepared,
    target: Target,
    optimizer: Optimizer,
    plan: Plan,
    schedule: Schedule,
    state: TrainerState,
    monitor: Monitor,
    samples: Option<Samples>,
}

impl<'a> Run<'a> {
    fn start(job: &'a Job, mut prepared: Prepared, mut target: Target) -> Result<Self> {
        let settings = &job.config.train;
        let plan = Plan::new(&prepared.data, settings, prepared.max_length);
        let mut optimizer = Optimizer::new(target.layout(&prepared.model), settings.optimizer)?;
        let mut state = TrainerState {
            run_hash: prepared.run_hash.clone(),
            max_tokens_per_micro_batch: settings.max_tokens_per_micro_batch,
            ..TrainerState::default()
        };
        let needs_best = settings.load_best_model_at_end;
        if let Some((found, arena)) = checkpoint::resume(&job.output, &mut optimizer, &prepared.run_hash, needs_best)? {
            tracing::info!("resuming at step {} of {}", found.global_step, plan.total_steps);
            target.restore(&mut prepared.model, arena)?;
            state = found;
        }
        let length = prepared.data.num_tokens() / prepared.data.len().max(1);
        let adapter = target.adapter().map_or(0, Adapter::num_parameters);
        let flops = (flops_per_token(&prepared.model.config, length, adapter), measured_flops()?);
        let monitor = Monitor::new(&job.output, settings, state.global_step, plan.total_steps, Some(flops))?;
        let schedule = Schedule::new(settings, plan.total_steps);
        let samples = Samples::new(
            &job.output,
            settings,
            state.global_step,
            &prepared.tokenizer,
            prepared.template.as_ref().filter(|_| prepared.data.has_messages),
            prepared.valid.as_ref(),
            output::eos_token_ids(&prepared),
        )?;
        Ok(Self { job, settings, prepared, target, optimizer, plan, schedule, state, monitor, samples })
    }

    fn steps(&mut self) -> Result<()> {
        let mut order = (0, Vec::new());
        while self.state.global_step < self.plan.total_steps && !self.ends_early() {
            self.step(&mut order)?;
            let step = self.state.global_step;
            let last = step == self.plan.total_steps;
            let mut due = self.settings.save_steps > 0 && step.is_multiple_of(self.settings.save_steps);
            if self.settings.eval_steps > 0 && !last && step.is_multiple_of(self.settings.eval_steps) {
                self.evaluate()?;
                due |= self.settings.load_best_model_at_end && self.is_best();
            }
            let stop = interrupt::check();
            if !last && (due || stop.is_err()) {
                self.save()?;
            }
            if !last {
                stop?;
            }
        }
        Ok(())
    }

    fn step(&mut self, order: &mut (usize, Vec<u32>)) -> Result<()> {
        let begun = Instant::now();
        let learning_rate = self.schedule.learning_rate(self.state.global_step);
        let rows = self.plan.batch_rows(self.job.config.seed, self.state.global_step, order);
        let (loss, tokens) = self.accumulate(&rows)?;
        let (parameters, gradients) = (self.target.parameters(&self.prepared.model), self.target.gradients());
        let grad_norm = self.optimizer.update(parameters, gradients, self.settings, learning_rate)?;
        let data = &self.prepared.data;
        check_loss(&mut self.state, self.settings, loss, grad_norm, || row_ids(data, &rows))?;
        self.state.global_step += 1;
        self.state.num_input_tokens_seen += tokens;
        self.state.loss_sum += loss;
        self.state.epoch = self.state.global_step as f64 / self.plan.steps_per_epoch() as f64;
        let last = self.state.global_step == self.plan.total_steps;
        let writes = last || self.state.global_step.is_multiple_of(self.settings.logging_steps.max(1));
        let metrics = StepMetrics { loss, grad_norm, learning_rate, tokens, took: begun.elapsed() };
        self.monitor.step(&self.state, &metrics, writes)
    }

    /// Adds the gradients of one batch; returns the mean loss of its trained tokens and its number of tokens.
    fn accumulate(&mut self, rows: &[usize]) -> Result<(f64, usize)> {
        let step = self.state.global_step.to_string();
        let options = step_options(self.settings, seed::derive(self.job.config.seed, "noise", &step));
        let (data, model) = (&self.prepared.data, &self.prepared.model);
        let mut pass = ModelPass { model, target: &self.target, options };
        let loss = accumulate(&mut pass, data, rows, &mut self.state.max_tokens_per_micro_batch)?;
        Ok((loss, rows.iter().map(|&row| data.row_tokens(row)).sum()))
    }

    /// Lets the student answer the fixed prompts, and measures the validation loss where there are rows for it.
    fn evaluate(&mut self) -> Result<Option<f64>> {
        if let Some(samples) = &mut self.samples {
            let prepared = &self.prepared;
            samples.write(self.state.global_step, &prepared.model, self.target.adapter(), &prepared.tokenizer)?;
        }
        let Some(valid) = &self.prepared.valid else { return Ok(None) };
        let rows: Vec<usize> = (0..valid.len()).collect();
        let mut sum = 0.0;
        for batch in micro_batches(valid, &rows, self.state.max_tokens_per_micro_batch) {
            sum += self.target.evaluate(&self.prepared.model, &batch.load(valid)?)?;
        }
        let eval_loss = sum / valid.num_trained_tokens() as f64;
        self.monitor.evaluation(&self.state, eval_loss)?;
        self.state.last_evaluation = Some((eval_loss, self.state.global_step));
        if self.state.best.is_none_or(|(best, _)| eval_loss < best) {
            self.state.best = Some((eval_loss, self.state.global_step));
            self.state.evaluations_without_improvement = 0;
        } else {
            self.state.evaluations_without_improvement += 1;
        }
        Ok(Some(eval_loss))
    }

    /// Whether no validation loss was lower than the one of this step.
    fn is_best(&self) -> bool {
        self.state.best.is_some_and(|(_, step)| step == self.state.global_step)
    }

    fn ends_early(&self) -> bool {
        let patience = self.settings.early_stopping_patience;
        patience > 0 && self.state.evaluations_without_improvement >= patience
    }

    fn save(&self) -> Result<()> {
        let best = self.state.best.filter(|_| self.settings.load_best_model_at_end).map(|(_, step)| step);
        let keep = checkpoint::Keep { newest: self.settings.save_total_limit, best };
        let arena = self.target.parameters(&self.prepared.model);
        checkpoint::save(&self.job.output, arena, &self.optimizer, &self.state, keep)
    }

    /// The last validation loss, the best weights where they are asked for, and the student.
    fn end(mut self) -> Result<TrainResults> {
        let early = self.ends_early();
        let mut eval_loss = match self.state.last_evaluation {
            Some((loss, step)) if step == self.state.global_step => Some(loss),
            _ => self.evaluate()?,
        };
        let mut best_step = None;
        if let Some((loss, step)) = self.state.best.filter(|_| self.settings.load_best_model_at_end) {
            if step != self.state.global_step {
                let hash = &self.prepared.run_hash;
                let arena = checkpoint::load_arena(&self.job.output, step, &mut self.optimizer, hash)?;
                self.target.restore(&mut self.prepared.model, arena)?;
                best_step = Some(step);
            }
            eval_loss = Some(loss);
        }
        let (tokens, seconds) = self.monitor.finish()?;
        if early {
            tracing::info!("stopped after step {}: the validation loss no longer falls", self.state.global_step);
        }
        let results = TrainResults {
            global_step: self.state.global_step,
            epoch: self.state.epoch,
            train_loss: self.state.loss_sum / self.state.global_step.max(1) as f64,
            eval_loss,
            best_step,
            num_rows: self.prepared.data.len(),
            num_truncated: self.prepared.data.num_truncated,
            num_without_target: self.prepared.data.num_without_target,
            num_input_tokens_seen: self.state.num_input_tokens_seen,
            run_hash: self.prepared.run_hash.clone(),
        };
        // Two moments of every parameter, which the copies that are compared below may need.
        drop(self.optimizer);
        output::write(self.job, &self.prepared, &self.target, &results)?;
        checkpoint::remove_all(&self.job.output)?;
        tracing::info!(
            "trained {} steps, {tokens} tokens in {seconds:.0} s; mean loss {:.4}",
            results.global_step,
            results.train_loss
        );
        Ok(results)
    }
}
