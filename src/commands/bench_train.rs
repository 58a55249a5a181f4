//! `glan bench train`: speed of fine-tuning on random tokens, in full rows.
//!
//! The numbers are named as the usual PyTorch scripts name theirs, so that both can stand in one table. A directory with
//! `config.json` and safetensors is enough; no tokenizer is read and nothing is written.

use std::{path::Path, time::Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use rand::Rng;
use serde::Serialize;

use crate::{
    config::{BaseQuantization, OptimizerKind, TrainConfig, TrainMethod, TrainPrecision},
    device::{DeviceKind, DtypeChoice},
    error::usage,
    model::{Adapter, Decoder, Microbatch, StepOptions, train_step},
    model_dir, seed, telemetry,
    train::{Optimizer, Target, flops_per_token, measured_flops},
};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchMethod {
    /// All weights.
    Full,
    /// Adapters on all projections.
    Lora,
    /// The same beside quantised matrices.
    Qlora,
}

/// Arguments of `glan bench train`.
#[derive(Debug, Clone, Args)]
pub struct BenchTrainArgs {
    /// Model directory, or `org/name` in the Hugging Face cache.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// What is trained.
    #[arg(long, value_enum, default_value = "full")]
    pub method: BenchMethod,
    /// qlora: how the frozen matrices are held.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "nf4")]
    pub base_quantization: BaseQuantization,
    /// Rank of the adapters.
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub lora_r: usize,
    /// Rows per step.
    #[arg(long, value_name = "ROWS", default_value_t = 4)]
    pub batch: usize,
    /// Tokens per row.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub seq: usize,
    /// Steps before the clock runs.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: usize,
    /// Steps that are timed.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub steps: usize,
    /// What products multiply; bf16 keeps f32 master weights and optimizer state.
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: TrainPrecision,
    /// How the optimizer holds its moments.
    #[arg(long, value_enum, default_value = "adamw")]
    pub optimizer: OptimizerKind,
    /// Threads; 0 is one per processor.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct BenchTrain {
    peer: &'static str,
    task: &'static str,
    model: String,
    mode: &'static str,
    dtype: TrainPrecision,
    optimizer: OptimizerKind,
    device: &'static str,
    batch: usize,
    seq: usize,
    threads: usize,
    lora_r: usize,
    params_total: usize,
    params_trainable: usize,
    tok_s_best: f64,
    tok_s_median: f64,
    /// Tokens per second of processor time, all threads together; `None` where the system does not tell.
    tok_per_cpu_s_best: Option<f64>,
    ms_step_best: f64,
    warmup_s: f64,
    gflop_per_token: f64,
    tflops_best: f64,
    /// Of the rate of one large product on this machine, measured beside.
    mfu: f64,
    first_loss: f64,
    last_loss: f64,
    peak_rss_mib: Option<f64>,
}

/// Runs the command.
pub fn main(args: &BenchTrainArgs) -> Result<()> {
    if args.batch == 0 || args.steps == 0 || args.seq < 2 {
        return Err(usage("`--batch` and `--steps` must be at least 1, `--seq` at least 2"));
    }
    if args.threads > 0 {
        rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    }
    let found = measure(args, &model_dir::resolve(&args.model)?)?;
    if args.json {
        telemetry::print_result(serde_json::to_string(&found)?);
    } else {
        telemetry::print_result(format!(
            "{:.0} tokens/s at best, {:.0} in the median ({} of {} parameters trained, {} threads, MFU {:.0} %, loss {:.3})",
            found.tok_s_best,
            found.tok_s_median,
            found.params_trainable,
            found.params_total,
            found.threads,
            100.0 * found.mfu,
            found.last_loss
        ));
    }
    Ok(())
}

fn measure(args: &BenchTrainArgs, directory: &Path) -> Result<BenchTrain> {
    let device = DeviceKind::Cpu.open_for_training()?;
    let mut model = match args.method {
        BenchMethod::Qlora => Decoder::load_quantized(directory, &device, args.base_quantization.format())?,
        BenchMethod::Full | BenchMethod::Lora => Decoder::load(directory, &device, DtypeChoice::F32)?,
    };
    reset_peak_rss();
    if args.seq > model.config.max_position_embeddings {
        let longest = model.config.max_position_embeddings;
        return Err(usage(format!("`--seq {}` is longer than the model's {longest} positions", args.seq)));
    }
    let settings = TrainConfig {
        method: match args.method {
            BenchMethod::Full => TrainMethod::Full,
            BenchMethod::Lora => TrainMethod::Lora,
            BenchMethod::Qlora => TrainMethod::QLora,
        },
        base_quantization: args.base_quantization,
        lora_r: args.lora_r,
        lora_alpha: 2.0 * args.lora_r as f64,
        weight_decay: 0.01,
        max_grad_norm: 0.0,
        precision: args.dtype,
        optimizer: args.optimizer,
        ..TrainConfig::default()
    };
    model.precision = settings.precision();
    let target = Target::new(&model, &settings, 0)?;
    let mut optimizer = Optimizer::new(target.layout(&model), settings.optimizer)?;
    let batches: Vec<Microbatch> = (0..4).map(|index| random_batch(args, model.config.vocab_size, index)).collect();
    let mut step = |index: usize| -> Result<f64> {
        let batch = &batches[index % batches.len()];
        let weight = 1.0 / batch.targets.len() as f64;
        let loss = train_step(&model, batch, weight, target.trained(), &StepOptions::default())?;
        optimizer.update(target.parameters(&model), target.gradients(), &settings, 1e-3)?;
        Ok(loss)
    };
    let peak_before = measured_flops()?;
    let begun = Instant::now();
    let mut losses = (0..args.warmup).map(&mut step).collect::<Result<Vec<_>>>()?;
    let warmup_s = begun.elapsed().as_secs_f64();
    let (mut seconds, mut cpu_seconds) = (Vec::new(), Vec::new());
    for index in 0..args.steps {
        let (begun, cpu) = (Instant::now(), process_seconds());
        losses.push(step(index)?);
        seconds.push(begun.elapsed().as_secs_f64());
        cpu_seconds.extend(process_seconds().zip(cpu).map(|(end, start)| end - start));
    }
    let peak = measured_flops()?.max(peak_before);
    let tokens = (args.batch * args.seq) as f64;
    let adapter = target.adapter().map_or(0, Adapter::num_parameters);
    let flops = flops_per_token(&model.config, args.seq, adapter);
    seconds.sort_by(f64::total_cmp);
    // The clock has ticks of 10 ms, so processor time is taken over all steps together.
    let cpu: f64 = cpu_seconds.iter().sum();
    Ok(BenchTrain {
        peer: "glan",
        task: "train",
        model: args.model.clone(),
        mode: match args.method {
            BenchMethod::Full => "full",
            BenchMethod::Lora => "lora",
            BenchMethod::Qlora => "qlora",
        },
        dtype: args.dtype,
        optimizer: args.optimizer,
        device: "cpu",
        batch: args.batch,
        seq: args.seq,
        threads: rayon::current_num_threads(),
        lora_r: if adapter > 0 { args.lora_r } else { 0 },
        params_total: model.num_parameters() + adapter,
        params_trainable: target.layout(&model).len,
        tok_s_best: tokens / seconds[0],
        tok_s_median: tokens / seconds[seconds.len() / 2],
        tok_per_cpu_s_best: (cpu > 0.0).then(|| tokens * args.steps as f64 / cpu),
        ms_step_best: 1e3 * seconds[0],
        warmup_s,
        gflop_per_token: flops / 1e9,
        tflops_best: flops * tokens / seconds[0] / 1e12,
        mfu: flops * tokens / seconds[0] / peak,
        first_loss: losses[0],
        last_loss: losses[losses.len() - 1],
        peak_rss_mib: peak_rss_mib(),
    })
}

/// Full rows of random tokens, every one of them trained.
fn random_batch(args: &BenchTrainArgs, vocabulary: usize, index: usize) -> Microbatch {
    let mut random = seed::stream(1, "bench", &index.to_string());
    let mut batch = Microbatch::default();
    for _ in 0..args.batch {
        let row: Vec<u32> = (0..args.seq).map(|_| random.random_range(0..vocabulary as u32)).collect();
        batch.push(&row, &vec![true; args.seq]);
    }
    batch
}

/// Processor time of this process, from `/proc/self/stat` (fields 14 and 15, in ticks of 1/100 s).
fn process_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, in brackets, may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / 100.0)
}

/// Forgets the most memory held so far, so that what loading took (the mapped files) does not count; where the system
/// does not allow that, it does.
fn reset_peak_rss() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!("the peak of the memory counts from the start: {error}");
    }
}

fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_methods_are_measured_on_weights_alone_and_the_loss_moves() -> Result<()> {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        for (method, mode, dtype, optimizer) in [
            (BenchMethod::Full, "full", TrainPrecision::F32, OptimizerKind::Adamw),
            (BenchMethod::Full, "full", TrainPrecision::Bf16, OptimizerKind::Adamw8bit),
            (BenchMethod::Lora, "lora", TrainPrecision::F32, OptimizerKind::Adamw),
            (BenchMethod::Lora, "lora", TrainPrecision::Bf16, OptimizerKind::Adamw),
            (BenchMethod::Qlora, "qlora", TrainPrecision::F32, OptimizerKind::Adamw),
        ] {
            let args = BenchTrainArgs {
                model: model.display().to_string(),
                method,
                lora_r: 2,
                batch: 2,
                seq: 16,
                warmup: 1,
                steps: 2,
                dtype,
                optimizer,
                base_quantization: BaseQuantization::Nf4,
                threads: 0,
                json: true,
            };
            let found = measure(&args, &model)?;
            assert_eq!(found.mode, mode);
            assert!(found.tok_s_best >= found.tok_s_median && found.tok_s_median > 0.0);
            assert!(found.first_loss.is_finite() && found.first_loss != found.last_loss);
            assert_eq!(found.params_trainable < found.params_total, method != BenchMethod::Full);
            assert!(measure(&BenchTrainArgs { seq: 100_000, ..args }, &model).is_err());
        }
        Ok(())
    }
}
