//! `glan inspect`: what a model, a data file or a run directory holds. Reads headers and rows, loads no weights.

mod gguf;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    chat_template::ChatTemplate,
    error::usage,
    gguf::is_gguf,
    model::DecoderConfig,
    model_dir, records, row_source, telemetry,
    tokenizer::Tokenizer,
    train::{self, Encoding, Row, RowFormat, RowTokens},
};

/// Arguments of `glan inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A model directory (or `org/name` in the Hugging Face cache), a GGUF file, a run directory, or a .jsonl file.
    #[arg(value_name = "PATH", required_unless_present_any = ["data", "model"], conflicts_with = "data")]
    pub path: Option<String>,
    /// A file of rows.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// With `--data`: show the rows as this model is trained on them. Alone: the model to look at.
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &InspectArgs) -> Result<()> {
    let alone = args.model.as_deref().filter(|_| args.path.is_none() && args.data.is_none());
    let path = args.path.as_deref().or(alone).unwrap_or_default();
    let is_rows = |path: &&str| alone.is_none() && Path::new(path).is_file() && !is_gguf(Path::new(path));
    let data = args.data.clone().or_else(|| Some(path).filter(is_rows).map(PathBuf::from));
    if let Some(data) = data {
        let rows = DataFindings::of(&data, args.model.as_deref())?;
        return show(&rows, args.json, DataFindings::text);
    }
    if args.model.is_some() && alone.is_none() {
        return Err(usage("`--model` goes with `--data FILE`; to look at a model, give its directory alone"));
    }
    let directory = Path::new(path);
    if alone.is_none() && is_run_directory(directory) {
        return show(&RunFindings::of(directory), args.json, RunFindings::text);
    }
    let directory = model_dir::resolve(path)?;
    if is_gguf(&directory) {
        let findings = (ModelFindings::of(path, &directory)?, gguf::GgufFindings::of(&directory)?);
        return show(&gguf::Both::of(&findings), args.json, gguf::Both::text);
    }
    if !directory.join("config.json").is_file() && model_dir::weight_files(&directory)?.is_empty() {
        return Err(usage(format!(
            "`{path}` is neither a model (no `config.json`, no weights) nor a run (no `run.toml`)"
        )));
    }
    show(&ModelFindings::of(path, &directory)?, args.json, ModelFindings::text)
}

fn show<T: Serialize>(findings: &T, as_json: bool, text: impl Fn(&T) -> String) -> Result<()> {
    if as_json {
        telemetry::print_result(serde_json::to_string_pretty(findings)?);
    } else {
        telemetry::print_result(text(findings).trim_end());
    }
    Ok(())
}

/// What a model directory holds.
#[derive(Debug, Serialize)]
struct ModelFindings {
    model: String,
    model_type: Option<String>,
    /// Why this program cannot compute it; `None` when it can.
    unsupported: Option<String>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    weight_files: usize,
    weight_bytes: u64,
    /// Elements of all tensors; `None` where no file says so.
    num_parameters: Option<u64>,
    /// Elements by type.
    dtypes: BTreeMap<String, u64>,
    vocab_size: Option<usize>,
    has_chat_template: bool,
}

impl ModelFindings {
    fn of(name: &str, directory: &Path) -> Result<Self> {
        let config = DecoderConfig::load(directory);
        let raw: Map<String, Value> = match &config {
            Ok(config) => config.raw.clone(),
            Err(_) => records::read_json(&directory.join("config.json")).unwrap_or_default(),
        };
        let files = model_files(directory)?;
        let mut dtypes: BTreeMap<String, u64> = gguf::elements_by_type(directory)?;
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "safetensors")) {
            for tensor in safetensors_header(file)?.into_iter().filter(|(name, _)| name != "__metadata__") {
                let shape = tensor.1["shape"].as_array().cloned().unwrap_or_default();
                let elements = shape.iter().map(|size| size.as_u64().unwrap_or(0)).product::<u64>();
                *dtypes.entry(tensor.1["dtype"].as_str().unwrap_or("?").to_lowercase()).or_default() += elements;
            }
        }
        let mut weight_bytes = 0;
        for file in &files {
            weight_bytes += file.metadata().with_context(|| format!("cannot read `{}`", file.display()))?.len();
        }
        let tokenizer = Tokenizer::load(directory).ok();
        let template = tokenizer.as_ref().and_then(|tokenizer| ChatTemplate::load(directory, tokenizer).ok().flatten());
        let number = |key: &str| raw.get(key).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
        Ok(Self {
            model: name.to_owned(),
            model_type: raw.get("model_type").and_then(Value::as_str).map(str::to_owned),
            unsupported: config.as_ref().err().map(|error| format!("{error:#}")),
            hidden_size: number("hidden_size"),
            num_hidden_layers: number("num_hidden_layers"),
            num_attention_heads: number("num_attention_heads"),
            num_key_value_heads: config.as_ref().ok().map(|config| config.num_key_value_heads),
            max_position_embeddings: number("max_position_embeddings"),
            tie_word_embeddings: config.as_ref().ok().map(|config| config.tie_word_embeddings),
            weight_files: files.len(),
            weight_bytes,
            num_parameters: (!dtypes.is_empty()).then(|| dtypes.values().sum()),
            dtypes,
            vocab_size: tokenizer.as_ref().map(Tokenizer::vocab_size).or_else(|| number("vocab_size")),
            has_chat_template: template.is_some(),
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(out, "{label:<16}{value}");
        };
        let or_unknown = |value: Option<usize>| value.map_or_else(|| "?".into(), |value| value.to_string());
        line("model", self.model.clone());
        line("architecture", self.model_type.clone().unwrap_or_else(|| "?".into()));
        if let Some(reason) = &self.unsupported {
            line("unsupported", reason.clone());
        }
        line(
            "shape",
            format!(
                "{} layers, hidden size {}, {} heads ({} key/value), {} positions{}",
                or_unknown(self.num_hidden_layers),
                or_unknown(self.hidden_size),
                or_unknown(self.num_attention_heads),
                or_unknown(self.num_key_value_heads),
                or_unknown(self.max_position_embeddings),
                if self.tie_word_embeddings == Some(true) { ", tied embeddings" } else { "" }
            ),
        );
        line("parameters", self.num_parameters.map_or_else(|| "?".into(), |count| count.to_string()));
        let dtypes: Vec<String> = self.dtypes.iter().map(|(dtype, count)| format!("{dtype} ({count})")).collect();
        line("dtype", if dtypes.is_empty() { "?".into() } else { dtypes.join(", ") });
        line("weights", format!("{} files, {} bytes", self.weight_files, self.weight_bytes));
        line("vocabulary", or_unknown(self.vocab_size));
        line("chat template", if self.has_chat_template { "yes" } else { "no" }.into());
        out
    }
}

/// The weight files that make up the model: those that its index names, else `model.safetensors`, else all there are.
fn model_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let index: Option<Value> = records::read_json(&directory.join("model.safetensors.index.json")).ok();
    if let Some(map) = index.as_ref().and_then(|index| index["weight_map"].as_object()) {
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        return Ok(names.into_iter().map(|name| directory.join(name)).filter(|file| file.is_file()).collect());
    }
    let single = directory.join("model.safetensors");
    if single.is_file() { Ok(vec![single]) } else { model_dir::weight_files(directory) }
}

/// The header of a safetensors file: tensor names with type and shape.
fn safetensors_header(path: &Path) -> Result<Map<String, Value>> {
    let damaged = || format!("`{}` is not a safetensors file (is the download complete?)", path.display());
    let mut file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).with_context(damaged)?;
    let length = u64::from_le_bytes(length);
    // The file's own size bounds what a damaged length can make us allocate.
    if length > file.metadata().with_context(damaged)?.len() {
        anyhow::bail!(damaged());
    }
    let mut header = vec![0; usize::try_from(length)?];
    file.read_exact(&mut header).with_context(damaged)?;
    serde_json::from_slice(&header).with_context(damaged)
}

/// What a file of rows holds.
#[derive(Debug, Serialize)]
struct DataFindings {
    data: PathBuf,
    rows: usize,
    /// Rows that are conversations, texts (with or without a prompt), neither.
    conversations: usize,
    texts: usize,
    others: usize,
    /// Rows by format.
    formats: BTreeMap<&'static str, usize>,
    /// Lines that are no JSON object.
    damaged: usize,
    columns: BTreeMap<String, usize>,
    tokens: Option<TokenFindings>,
}

/// The rows as a model is trained on them.
#[derive(Debug, Serialize)]
struct TokenFindings {
    model: String,
    tokens: usize,
    trained_tokens: usize,
    /// Rows longer than the model's context.
    truncated: usize,
    /// Rows without a trained token.
    without_target: usize,
    longest: usize,
    /// The first row as the model sees it, what it learns to write between ⟦ and ⟧.
    first: Option<String>,
}

impl DataFindings {
    fn of(path: &Path, model: Option<&str>) -> Result<Self> {
        if !path.is_file() {
            return Err(usage(format!("no file `{}`", path.display())));
        }
        let mut findings = Self {
            data: path.to_owned(),
            rows: 0,
            conversations: 0,
            texts: 0,
            others: 0,
            formats: BTreeMap::new(),
            damaged: 0,
            columns: BTreeMap::new(),
            tokens: None,
        };
        let mut first: Option<Map<String, Value>> = None;
        row_source::for_each_row(path, |_, row| {
            findings.rows += 1;
            let Ok(row) = row else {
                findings.damaged += 1;
                return Ok(());
            };
            for column in row.keys() {
                *findings.columns.entry(column.clone()).or_default() += 1;
            }
            let Some(format) = RowFormat::of(&row) else {
                findings.others += 1;
                return Ok(());
            };
            *findings.formats.entry(format.name()).or_default() += 1;
            let is_text = format == RowFormat::Text || row.get("completion").is_some_and(Value::is_string);
            *(if is_text { &mut findings.texts } else { &mut findings.conversations }) += 1;
            first.get_or_insert(row);
            Ok(())
        })?;
        findings.tokens = model.map(|model| TokenFindings::of(path, model, first)).transpose()?;
        Ok(findings)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{:<16}{}", "data", self.data.display());
        let _ = writeln!(
            out,
            "{:<16}{} ({} conversations, {} texts, {} others, {} damaged)",
            "rows", self.rows, self.conversations, self.texts, self.others, self.damaged
        );
        let formats: Vec<String> = self.formats.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        let _ = writeln!(out, "{:<16}{}", "formats", if formats.is_empty() { "?".into() } else { formats.join(", ") });
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|(name, count)| if *count == self.rows { name.clone() } else { format!("{name} ({count})") })
            .collect();
        let _ = writeln!(out, "{:<16}{}", "columns", columns.join(", "));
        if let Some(tokens) = &self.tokens {
            let _ = writeln!(
                out,
                "{:<16}{}, of which {} are trained; the longest row has {}",
                "tokens", tokens.tokens, tokens.trained_tokens, tokens.longest
            );
            let _ = writeln!(
                out,
                "{:<16}{} rows cut at the model's context, {} without anything to train on",
                "left out", tokens.truncated, tokens.without_target
            );
            if let Some(first) = &tokens.first {
                let _ = writeln!(out, "\nthe first row, trained tokens between ⟦ and ⟧:\n\n{first}");
            }
        }
        out
    }
}

impl TokenFindings {
    fn of(path: &Path, model: &str, first: Option<Map<String, Value>>) -> Result<Self> {
        let directory = model_dir::resolve(model)?;
        let tokenizer = Tokenizer::load(&directory)?;
        let config = DecoderConfig::load(&directory)?;
        let template = train::chat_template(Path::new(""), &directory, &tokenizer)?;
        let encoding = Encoding {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            eos_token_id: config.eos_token_ids.first().copied().or(tokenizer.eos_token_id()),
            max_length: config.max_position_embeddings,
            assistant_only_loss: true,
        };
        let rows = train::read(path, &encoding, &std::env::temp_dir())?;
        let first = first.map(|row| marked(row, &encoding)).transpose()?;
        Ok(Self {
            model: model.to_owned(),
            tokens: rows.num_tokens(),
            trained_tokens: rows.num_trained_tokens(),
            truncated: rows.num_truncated,
            without_target: rows.num_without_target,
            longest: rows.longest(),
            first,
        })
    }
}

/// A row as the model sees it; runs of trained tokens stand between ⟦ and ⟧.
fn marked(row: Map<String, Value>, encoding: &Encoding) -> Result<String> {
    let rendered = encoding.render(&Row::parse(row)?.content)?;
    let RowTokens { token_ids, mut offsets, trained } = encoding.tokens_with_offsets(&rendered)?;
    let mut text = rendered.text;
    // The end-of-sequence token that a text gets is not in the text.
    if let Some(&last) = token_ids.get(offsets.len()) {
        let start = text.len();
        text.push_str(&encoding.tokenizer.token_text(last).unwrap_or_default());
        offsets.push(start..text.len());
    }
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut goes_on = false;
    for (offset, trained) in offsets.into_iter().zip(trained) {
        match runs.last_mut() {
            Some(run) if trained && goes_on => run.end = run.end.max(offset.end),
            _ if trained => runs.push(offset),
            _ => {}
        }
        goes_on = trained;
    }
    let mut out = String::with_capacity(text.len());
    let mut shown = 0;
    for run in runs {
        // A token may begin inside a character; the mark then goes before it.
        let start = char_boundary(&text, run.start.max(shown));
        let end = char_boundary(&text, run.end).max(start);
        let _ = write!(out, "{}⟦{}⟧", &text[shown..start], &text[start..end]);
        shown = end;
    }
    out.push_str(&text[shown..]);
    Ok(out)
}

/// The last place at or before `place` where a character begins.
fn char_boundary(text: &str, place: usize) -> usize {
    (0..=place.min(text.len())).rev().find(|&place| text.is_char_boundary(place)).unwrap_or(0)
}

/// What a run directory holds.
#[derive(Debug, Serialize)]
struct RunFindings {
    run: PathBuf,
    stages: Vec<StageFindings>,
}

#[derive(Debug, Serialize)]
struct StageFindings {
    stage: &'static str,
    state: StageState,
    /// Rows per file.
    rows: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum StageState {
    NotStarted,
    Started,
    Finished,
}

/// Per stage: the file whose presence says that it is finished, and its files of rows.
const STAGES: [(&str, &str, &[&str]); 5] = [
    (
        "generate",
        "generate/stats.json",
        &["subjects.jsonl", "syllabi.jsonl", "questions.jsonl", "answers.jsonl", "rejected.jsonl"],
    ),
    ("curate", "curate/stats.json", &["train.jsonl", "valid.jsonl", "test.jsonl", "rejected.jsonl"]),
    ("train", "train/student/config.json", &["metrics.jsonl"]),
    ("evaluate", "evaluate/comparison.json", &[]),
    ("report", "report.html", &[]),
];

fn is_run_directory(path: &Path) -> bool {
    path.join("run.toml").is_file() || (path.join("generate").is_dir() && !path.join("config.json").exists())
}

impl RunFindings {
    fn of(root: &Path) -> Self {
        let stages = STAGES.map(|(stage, last, files)| {
            let folder = root.join(stage);
            let is_pending = stage == "generate" && has_pending_requests(&root.join(last));
            let state = match (root.join(last).is_file() && !is_pending, folder.is_dir()) {
                (true, _) => StageState::Finished,
                (false, true) => StageState::Started,
                (false, false) => StageState::NotStarted,
            };
            let rows = files.iter().filter_map(|file| Some((*file, count_rows(&folder.join(file))?))).collect();
            StageFindings { stage, state, rows }
        });
        Self { run: root.to_owned(), stages: stages.into() }
    }

    fn text(&self) -> String {
        let mut out = format!("{:<16}{}\n", "run", self.run.display());
        for stage in &self.stages {
            let state = match stage.state {
                StageState::NotStarted => "not started",
                StageState::Started => "started",
                StageState::Finished => "finished",
            };
            // In the order of the pipeline, not of the alphabet.
            let files = STAGES.iter().find(|(name, ..)| *name == stage.stage).map_or(&[][..], |(_, _, files)| files);
            let rows: Vec<String> = files
                .iter()
                .filter_map(|file| Some(format!("{} {}", file.trim_end_matches(".jsonl"), stage.rows.get(file)?)))
                .collect();
            let _ = writeln!(out, "{}", format!("{:<16}{state:<13}{}", stage.stage, rows.join(", ")).trim_end());
        }
        out
    }
}

/// Whether the yield table of `generate` names requests without an outcome.
fn has_pending_requests(stats: &Path) -> bool {
    let Ok(stats) = records::read_json::<Value>(stats) else { return false };
    let steps = stats.as_array().or_else(|| stats["steps"].as_array());
    steps.into_iter().flatten().any(|step| step["pending"].as_u64().unwrap_or(0) > 0)
}

/// Lines of a file that are not blank; `None` when it is missing.
fn count_rows(path: &Path) -> Option<usize> {
    let reader = BufReader::new(File::open(path).ok()?);
    Some(reader.split(b'\n').map_while(Result::ok).filter(|line| !line.trim_ascii().is_empty()).count())
}

#[cfg(test)]
mod tests;
