//! `glan export`: a model as one GGUF file, or as a Hugging Face directory.
//!
//! Nothing is believed that was only written: the new model is opened again and compared with its source, tensor by
//! tensor, text by text and logit by logit, under its temporary name. It takes its own name when all of that held; a
//! failure leaves nothing behind.

mod check;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::{Args, ValueEnum};
use safetensors::Dtype;
use serde::Serialize;

use self::check::Checks;
use crate::{
    chat_template::ChatTemplate,
    device::DtypeChoice,
    error::usage,
    gguf::{self, CHAT_TEMPLATE, is_gguf},
    interrupt,
    model::{self, Decoder, DecoderConfig, GgufPlan, Layout, Quantization},
    model_dir, telemetry,
    tokenizer::Tokenizer,
};

/// Arguments of `glan export`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    glan export --model runs/quick/train/student --output student.gguf --quantization q4_k_m\n  \
    glan export --model student.gguf --output student-hf --format safetensors --dtype bf16")]
pub struct ExportArgs {
    /// Model directory, GGUF file, or `org/name` in the Hugging Face cache.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// The file (gguf) or the directory (safetensors) to write.
    #[arg(long, value_name = "PATH")]
    pub output: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value = "gguf")]
    pub format: Format,
    /// How a GGUF file's matrices are packed. q8_0 by default: half the size of 16 bits, next to nothing lost, and
    /// every program reads it.
    #[arg(long, value_enum)]
    pub quantization: Option<Quantization>,
    /// Type of a directory's weights; that of the source by default.
    #[arg(long, value_enum)]
    pub dtype: Option<ExportDtype>,
    /// Replace what is there.
    #[arg(long)]
    pub force: bool,
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One file for llama.cpp and its relatives.
    Gguf,
    /// A Hugging Face directory.
    Safetensors,
}

/// Type of the weights of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportDtype {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits with more digits and less range.
    F16,
}

impl ExportDtype {
    fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }
}

/// What was written and how it compares.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// Where it lies.
    pub output: PathBuf,
    /// What it is.
    pub format: Format,
    /// How its matrices are packed, of a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Its size.
    pub bytes: u64,
    /// Parameters by type.
    pub parameters: BTreeMap<String, usize>,
    /// The comparison with the source.
    pub checks: Checks,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Runs the command.
pub fn main(args: &ExportArgs) -> Result<()> {
    let exported = run(args)?;
    if args.json {
        telemetry::print_result(serde_json::to_string(&exported)?);
    } else {
        telemetry::print_result(exported.text().trim_end());
    }
    Ok(())
}

/// Writes and compares.
///
/// **Errors**: usage, for arguments that contradict each other and for an output that is there; else what the format
/// cannot hold, or where the written model differs from its source.
pub fn run(args: &ExportArgs) -> Result<Exported> {
    check_args(args)?;
    let source = model_dir::resolve(&args.model)?;
    if same_place(&source, &args.output) {
        return Err(usage(format!("`{}` is the model itself; name another output", args.output.display())));
    }
    let partial = partial_path(&args.output)?;
    remove(&partial)?;
    let made = match args.format {
        Format::Gguf => write_gguf(args, &source, &partial),
        Format::Safetensors => write_directory(args, &source, &partial),
    };
    let renamed = made.and_then(|made| {
        interrupt::check()?;
        if args.force {
            remove(&args.output)?;
        }
        fs::rename(&partial, &args.output)
            .with_context(|| format!("cannot rename `{}` to `{}`", partial.display(), args.output.display()))?;
        Ok(made)
    });
    if renamed.is_err() {
        // The first error is the one to report; what is left of the attempt goes either way.
        let _ = remove(&partial);
    }
    renamed
}

fn check_args(args: &ExportArgs) -> Result<()> {
    let output = args.output.display();
    match args.format {
        Format::Gguf if args.dtype.is_some() => {
            return Err(usage("`--dtype` goes with `--format safetensors`; a GGUF file takes `--quantization`"));
        }
        Format::Gguf if !is_gguf(&args.output) => {
            return Err(usage(format!("`--output {output}` must end in `.gguf`, by which programs know such files")));
        }
        Format::Safetensors if args.quantization.is_some() => {
            return Err(usage("`--quantization` goes with `--format gguf`; a directory takes `--dtype`"));
        }
        Format::Safetensors if is_gguf(&args.output) => {
            return Err(usage(format!("`--output {output}` names a GGUF file, but a directory is to be written")));
        }
        _ => {}
    }
    if args.output.exists() && !args.force {
        return Err(usage(format!("`{output}` is there already; `--force` replaces it")));
    }
    if args.force && args.output.is_dir() && !args.output.join("config.json").is_file() {
        return Err(usage(format!("`{output}` is a directory that holds no model; it is not replaced")));
    }
    Ok(())
}

fn same_place(source: &Path, output: &Path) -> bool {
    matches!((source.canonicalize(), output.canonicalize()), (Ok(source), Ok(output)) if source == output)
}

/// A name beside the output, so that the rename stays on one disk; it keeps the ending, by which a file is known.
fn partial_path(output: &Path) -> Result<PathBuf> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = output.file_name() else { bail!("`{}` names no file", output.display()) };
    fs::create_dir_all(folder).with_context(|| format!("cannot create folder `{}`", folder.display()))?;
    Ok(folder.join(format!(".partial-{}", name.to_string_lossy())))
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path {
        path if path.is_dir() => fs::remove_dir_all(path),
        path if path.exists() => fs::remove_file(path),
        _ => Ok(()),
    };
    removed.with_context(|| format!("cannot remove `{}`", path.display()))
}

/// The values of one tensor of an arena.
fn values_of(arena: &candle_core::Tensor, tensor: &model::NamedTensor) -> Result<Vec<f32>> {
    Ok(glan_kernels::to_vec(&arena.narrow(0, tensor.offset, tensor.len())?)?)
}

fn write_gguf(args: &ExportArgs, source: &Path, partial: &Path) -> Result<Exported> {
    let quantization = args.quantization.unwrap_or(Quantization::Q8_0);
    let config = DecoderConfig::load(source)?;
    let layout = Layout::new(&config);
    let tokenizer = Tokenizer::load(source)?;
    let template = ChatTemplate::load(source, &tokenizer)?;
    let mut plan = GgufPlan::new(&config, &layout, quantization, &model_name(&args.model))?;
    let described = tokenizer.gguf_metadata(config.vocab_size)?;
    plan.metadata.extend(described.metadata);
    plan.notes.extend(described.note);
    name_ends(&mut plan, &config, &tokenizer);
    if let Some(template) = &template {
        plan.metadata.set(CHAT_TEMPLATE, template.source());
    }
    let arena = model::load_arena(source, &layout, DtypeChoice::F32)
        .with_context(|| format!("cannot load the model in `{}`", source.display()))?;
    gguf::write(partial, &plan.metadata, &plan.tensors, |number| {
        interrupt::check()?;
        let values = plan.parameter(number).map(|tensor| values_of(&arena, tensor)).transpose()?;
        plan.pack(number, &values.unwrap_or_default())
    })?;
    let mut parameters: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in &plan.tensors {
        *parameters.entry(tensor.kind.name()).or_default() += tensor.shape.iter().product::<usize>();
    }
    let tensors = check::gguf_tensors(partial, &layout, &arena)?;
    drop(arena);
    let checks = check::model(source, partial, tensors, quantization == Quantization::F32)?;
    Ok(Exported {
        output: args.output.clone(),
        format: args.format,
        quantization: Some(quantization),
        bytes: fs::metadata(partial).map_or(0, |metadata| metadata.len()),
        parameters,
        checks,
        notes: plan.notes,
    })
}

/// The tokens that end a sequence: the tokenizer's own as `eos`, others under the keys that llama.cpp stops at too.
fn name_ends(plan: &mut GgufPlan, config: &DecoderConfig, tokenizer: &Tokenizer) {
    let mut ends = config.eos_token_ids.clone();
    if let Some(eos) = tokenizer.eos_token_id() {
        if !ends.is_empty() && !ends.contains(&eos) {
            plan.notes.push(format!(
                "the tokenizer's `{}` ends a sequence too; the model's configuration does not say so",
                tokenizer.eos_token().unwrap_or_default()
            ));
        }
        ends.retain(|id| *id != eos);
        ends.insert(0, eos);
    }
    let Some(&first) = ends.first() else { return };
    plan.metadata.set("tokenizer.ggml.eos_token_id", first);
    // Always there, so that nobody has to guess by the names of tokens.
    plan.metadata.set("tokenizer.ggml.eot_token_id", ends.get(1).copied().unwrap_or(first));
    if let Some(&third) = ends.get(2) {
        plan.metadata.set("tokenizer.ggml.eom_token_id", third);
    }
    if ends.len() > 3 {
        plan.notes.push(format!("of {} tokens that end a sequence, GGUF has a place for 3", ends.len()));
    }
}

/// What a file calls its model: the last part of its path or name.
fn model_name(model: &str) -> String {
    let name = Path::new(model).file_stem().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "model".to_owned())
}

fn write_directory(args: &ExportArgs, source: &Path, partial: &Path) -> Result<Exported> {
    let decoder = Decoder::load(source, &Device::Cpu, DtypeChoice::F32)
        .with_context(|| format!("cannot load the model in `{}`", source.display()))?;
    let named = ["torch_dtype", "dtype"].iter().find_map(|key| decoder.config.raw.get(*key)?.as_str());
    let dtype = args.dtype.map_or_else(
        || match named {
            Some("bfloat16") => Dtype::BF16,
            Some("float16") => Dtype::F16,
            _ => Dtype::F32,
        },
        ExportDtype::safetensors,
    );
    fs::create_dir_all(partial).with_context(|| format!("cannot create folder `{}`", partial.display()))?;
    Tokenizer::copy_files(source, partial)?;
    model::export(&decoder, partial, dtype, &decoder.config.eos_token_ids)?;
    let config = decoder.config.clone();
    let layout = Layout::new(&config);
    drop(decoder);
    let tensors = check::directory_tensors(source, partial, &layout, dtype)?;
    let checks = check::model(source, partial, tensors, dtype == Dtype::F32)?;
    let mut bytes = 0;
    for file in model_dir::weight_files(partial)? {
        bytes += fs::metadata(&file).map_or(0, |metadata| metadata.len());
    }
    Ok(Exported {
        output: args.output.clone(),
        format: args.format,
        quantization: None,
        bytes,
        parameters: BTreeMap::from([(format!("{dtype:?}"), layout.len)]),
        checks,
        notes: Vec::new(),
    })
}

impl Exported {
    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(out, "{label:<16}{value}");
        };
        let total: usize = self.parameters.values().sum();
        let bits = self.bytes as f64 * 8.0 / total.max(1) as f64;
        let types: Vec<String> = self.parameters.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        line("output", self.output.display().to_string());
        line("size", format!("{} bytes, {bits:.2} bits per parameter, vocabulary included", self.bytes));
        line("parameters", types.join(", "));
        for tensor in &self.checks.tensors {
            line(
                "tensors",
                format!(
                    "{}: {} equal their source within the format; largest |Δ| {:.3e}, relative norm of Δ {:.3e}",
                    tensor.kind, tensor.count, tensor.max_abs_diff, tensor.relative_error
                ),
            );
        }
        let checks = &self.checks;
        line("tokenizer", format!("{} of {} sample texts get the same tokens", checks.texts_equal, checks.texts));
        line(
            "logits",
            format!(
                "{} positions: largest |Δ| {:.4} at logits of up to {:.1}, the best token agrees at {}",
                checks.positions, checks.logits_max_abs_diff, checks.logits_max_abs, checks.top1_agree
            ),
        );
        for note in &self.notes {
            line("note", note.clone());
        }
        out
    }
}
