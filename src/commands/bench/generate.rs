//! `glan bench generate`: prefill and decode rates of the engine on random token ids.
//!
//! The whole way is measured: scheduler, model, sampler. Each repeat generates one token for the batch and then
//! `--new-tokens`; the first is the prefill, the difference the decode. Prompts are new in every run, so that no cache
//! of an earlier one helps. Rates are the best of the repeats; those per processor second, on one thread, hardly depend
//! on what else the machine does.

use std::{fmt::Write, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rand::Rng;
use serde::Serialize;

use super::process;
use crate::{
    cli::ModelArgs,
    config,
    engine::{self, Engine, ModelRunner},
    error::usage,
    language_model::{Constraint, LanguageModel, Prompt, Request, SamplingParams},
    records::read_json,
    seed, telemetry,
};

/// Arguments of `glan bench generate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  glan bench generate --model DIR --batch 1,8,32 --prompt-tokens 128 --new-tokens 128
  glan bench generate --model DIR --batch 32 --dtype bf16 --threads 1 --json
  glan bench generate --model DIR --batch 32 --prompt-tokens 512 --shared-prefix 448 --prefix-cache off")]
pub struct GenerateArgs {
    /// The model: `config.json` and weights are enough, a tokenizer is used where there is one.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Sequences at once; several batches are measured one after the other.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,8,32")]
    pub batch: Vec<usize>,
    /// Tokens of each prompt.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub prompt_tokens: usize,
    /// Tokens that each sequence generates; at least 2.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub new_tokens: usize,
    /// How many tokens at the beginning of the prompts are the same in the whole batch.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub shared_prefix: usize,
    /// Whether sequences share the cache blocks of equal prefixes (`engine.enable_prefix_caching`).
    #[arg(long, value_enum, default_value = "on")]
    pub prefix_cache: Switch,
    /// Hold the output to this JSON schema; sequences then end where it is complete.
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// Threads; 0 is one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Runs, of which the best counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeats: usize,
    /// One JSON object per batch on stdout.
    #[arg(long)]
    pub json: bool,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// One batch's result. Tokens per second count new tokens in decode, prompt tokens in prefill.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    program: &'static str,
    version: &'static str,
    task: &'static str,
    model: String,
    params_total: usize,
    dtype: String,
    device: &'static str,
    threads: usize,
    batch: usize,
    prompt: usize,
    new: usize,
    shared_prefix: usize,
    prefix_cache: bool,
    json_schema: bool,
    repeats: usize,
    /// Tokens generated in a run; less than `batch · new` only under a schema.
    generated: usize,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    out_tok_s_e2e: f64,
    s_prefill: f64,
    s_total: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_tok_per_cpu_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_tok_per_cpu_s: Option<f64>,
    /// High-water mark after loading.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_mib: Option<f64>,
    rss_resettable: bool,
}

/// Runs the command.
pub fn main(args: &GenerateArgs) -> Result<()> {
    check(args)?;
    let mut config = config::load(None, &args.model.set)?;
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    config.engine.max_num_seqs = config.engine.max_num_seqs.max(largest);
    config.engine.enable_prefix_caching = args.prefix_cache == Switch::On;
    let constraint = match &args.json_schema {
        Some(path) => Some(Constraint::JsonSchema(read_json(path)?)),
        None => None,
    };
    if args.threads > 0 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads);
        pool.build_global().context("cannot set the number of threads")?;
    }
    let length = args.prompt_tokens + args.new_tokens;
    let device = args.model.device.open()?;
    let mut engine =
        engine::load_engine_with_any_tokenizer(&args.model.model, &config.engine, &device, args.model.dtype, length)?;
    ensure!(engine.vocab_size() > 1, "the model's vocabulary has {} tokens", engine.vocab_size());
    let device = if device.is_cpu() { "cpu" } else { "cuda" };
    let mut bench = Bench { args, engine: &mut engine, device, constraint, num_runs: 0 };
    let mut rows = Vec::new();
    for &batch in &args.batch {
        let measured = bench.measure(batch)?;
        if args.json {
            telemetry::print_result(serde_json::to_string(&measured)?);
        }
        rows.push(measured);
    }
    if !args.json {
        telemetry::print_result(table(&rows).trim_end());
    }
    Ok(())
}

fn check(args: &GenerateArgs) -> Result<()> {
    if args.batch.contains(&0) {
        return Err(usage("`--batch` has a 0; expected numbers of at least 1, such as `--batch 1,8,32`"));
    }
    for (name, value, least) in
        [("prompt-tokens", args.prompt_tokens, 1), ("new-tokens", args.new_tokens, 2), ("repeats", args.repeats, 1)]
    {
        if value < least {
            return Err(usage(format!("`--{name}` is {value}; expected at least {least}")));
        }
    }
    if args.shared_prefix > args.prompt_tokens {
        return Err(usage(format!(
            "`--shared-prefix` is {}; expected at most `--prompt-tokens`, {}",
            args.shared_prefix, args.prompt_tokens
        )));
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a GenerateArgs,
    engine: &'a mut Engine<ModelRunner>,
    device: &'static str,
    constraint: Option<Constraint>,
    /// Every run has prompts of its own.
    num_runs: usize,
}

/// One run: how long it took and what came of it.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    cpu_seconds: Option<f64>,
    generated: usize,
}

impl Bench<'_> {
    fn measure(&mut self, batch: usize) -> Result<Measured> {
        let args = self.args;
        self.run(batch, args.new_tokens.min(8))?;
        let rss_resettable = process::reset_peak_rss();
        let (mut prefills, mut totals) = (Vec::new(), Vec::new());
        for _ in 0..args.repeats {
            prefills.push(self.run(batch, 1)?);
            totals.push(self.run(batch, args.new_tokens)?);
        }
        let (prefill, total) = (best(&prefills), best(&totals));
        let generated = total.generated;
        let decoded = generated.saturating_sub(batch) as f64;
        let rate = |tokens: f64, seconds: f64| if seconds > 0.0 { tokens / seconds } else { f64::NAN };
        let prompt_tokens = (batch * args.prompt_tokens) as f64;
        let identity = self.engine.identity();
        Ok(Measured {
            program: "glan",
            version: env!("CARGO_PKG_VERSION"),
            task: "generate",
            model: args.model.model.clone(),
            params_total: identity.num_parameters,
            dtype: identity.dtype.clone(),
            device: self.device,
            threads: rayon::current_num_threads(),
            batch,
            prompt: args.prompt_tokens,
            new: args.new_tokens,
            shared_prefix: args.shared_prefix,
            prefix_cache: args.prefix_cache == Switch::On,
            json_schema: self.constraint.is_some(),
            repeats: args.repeats,
            generated,
            prefill_tok_s: round(rate(prompt_tokens, prefill.seconds)),
            decode_tok_s: round(rate(decoded, total.seconds - prefill.seconds)),
            out_tok_s_e2e: round(rate(generated as f64, total.seconds)),
            s_prefill: prefill.seconds,
            s_total: total.seconds,
            prefill_tok_per_cpu_s: prefill.cpu_seconds.map(|seconds| round(rate(prompt_tokens, seconds))),
            decode_tok_per_cpu_s: total
                .cpu_seconds
                .zip(prefill.cpu_seconds)
                .map(|(total, prefill)| round(rate(decoded, total - prefill))),
            peak_rss_mib: process::peak_rss_mib().map(round),
            rss_resettable,
        })
    }

    /// Generates `new_tokens` for `batch` random prompts.
    fn run(&mut self, batch: usize, new_tokens: usize) -> Result<Run> {
        let mut requests = self.requests(batch, new_tokens).into_iter();
        self.num_runs += 1;
        let (start, cpu_start) = (Instant::now(), process::cpu_seconds());
        let mut generated = 0;
        self.engine.generate(&mut requests, &mut |completion| {
            if let Some(error) = completion.error {
                bail!("a sequence failed: {error}");
            }
            generated += completion.token_ids.len();
            Ok(())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu_seconds = cpu_start.and_then(|start| Some(process::cpu_seconds()? - start));
        if self.constraint.is_none() {
            ensure!(generated == batch * new_tokens, "{generated} tokens came, expected {}", batch * new_tokens);
        }
        Ok(Run { seconds, cpu_seconds, generated })
    }

    fn requests(&self, batch: usize, new_tokens: usize) -> Vec<Request> {
        let vocab_size = self.engine.vocab_size() as u32;
        let mut random = seed::stream(0, "bench", &self.num_runs.to_string());
        let mut tokens =
            |count: usize| -> Vec<u32> { (0..count).map(|_| random.random_range(1..vocab_size)).collect() };
        let shared = tokens(self.args.shared_prefix);
        let sampling = SamplingParams {
            max_new_tokens: new_tokens,
            ignore_eos: true,
            constraint: self.constraint.clone(),
            ..SamplingParams::default()
        };
        (0..batch)
            .map(|index| {
                let own = tokens(self.args.prompt_tokens - self.args.shared_prefix);
                let prompt = Prompt::TokenIds([&shared[..], &own].concat());
                Request { id: index.to_string(), prompt, sampling: sampling.clone() }
            })
            .collect()
    }
}

/// The least time of each clock; a schema may end sequences at other lengths, so the run with the best rate counts.
fn best(runs: &[Run]) -> Run {
    let per_token = |run: &Run| run.seconds / run.generated.max(1) as f64;
    let fastest = runs.iter().min_by(|a, b| per_token(a).total_cmp(&per_token(b))).expect("there is a run");
    let same_length = runs.iter().filter(|run| run.generated == fastest.generated);
    let cpu_seconds = same_length.filter_map(|run| run.cpu_seconds).min_by(f64::total_cmp);
    Run { cpu_seconds, ..*fastest }
}

/// To a tenth: more digits would be noise.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn table(rows: &[Measured]) -> String {
    let mut text = String::new();
    let mut line = |cells: [String; 7]| {
        let [batch, rest @ ..] = cells;
        let rest: String = rest.iter().map(|cell| format!("{cell:>16}")).collect();
        writeln!(text, "{batch:>6}{rest}").expect("a string takes all text");
    };
    if let Some(first) = rows.first() {
        line(
            ["batch", "prefill tok/s", "decode tok/s", "end to end", "prefill/cpu s", "decode/cpu s", "peak MiB"]
                .map(str::to_owned),
        );
        for row in rows {
            let optional = |value: Option<f64>| value.map_or("unknown".to_owned(), |value| value.to_string());
            line([
                row.batch.to_string(),
                row.prefill_tok_s.to_string(),
                row.decode_tok_s.to_string(),
                row.out_tok_s_e2e.to_string(),
                optional(row.prefill_tok_per_cpu_s),
                optional(row.decode_tok_per_cpu_s),
                optional(row.peak_rss_mib),
            ]);
        }
        writeln!(
            text,
            "`{}`, {} parameters in {}, {} threads, prompts of {} tokens ({} shared), {} new, best of {}",
            first.model,
            first.params_total,
            first.dtype,
            first.threads,
            first.prompt,
            first.shared_prefix,
            first.new,
            first.repeats
        )
        .expect("a string takes all text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_run_per_token_counts_with_the_least_processor_time_of_its_length() {
        let run = |seconds, cpu, generated| Run { seconds, cpu_seconds: Some(cpu), generated };
        let best = best(&[run(2.0, 1.0, 10), run(1.5, 3.0, 10), run(1.0, 0.5, 2)]);
        assert_eq!((best.seconds, best.cpu_seconds, best.generated), (1.5, Some(1.0), 10));
    }
}
