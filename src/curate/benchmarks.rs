//! The texts of evaluation items, read from any folder of benchmark files.
//!
//! The reader knows no benchmark by name: it walks `.jsonl`, `.json`, `.csv` and `.tsv` files (each also as `.gz`) and
//! `.parquet` files, as they lie in a folder or in the Hugging Face cache (`hub/datasets--…`, whose links it follows), and
//! takes every string whose key says that it is what a model is asked ([`QUESTION_KEYS`]), so that a new benchmark
//! dropped into the folder is covered at once. Where no key says so, every string of a few words is taken; a table
//! without such a heading has none, and its first row is an item. Every file counts, training splits and few-shot
//! examples too.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::normalize::item_words;
use crate::row_source;

/// Keys (in lower case) under which benchmarks keep what is asked.
const QUESTION_KEYS: [&str; 30] = [
    "question",
    "query",
    "prompt",
    "problem",
    "ctx",
    "ctx_a",
    "context",
    "passage",
    "sentence",
    "goal",
    "text",
    "input",
    "instruction",
    "stem",
    "premise",
    "hypothesis",
    "sent_more",
    "sent_less",
    "description",
    "question_stem",
    "story",
    "article",
    "background",
    "dialogue",
    "support",
    "questions",
    "prompts",
    "turns",
    "content",
    "final_question",
];
/// Keys of shared background, which is no question of its own and so never joined with the answer.
const BACKGROUND_KEYS: [&str; 9] =
    ["context", "passage", "ctx_a", "description", "story", "article", "background", "dialogue", "support"];
/// Words from which on a string without such a key, in an object without any, is what is asked.
const MIN_UNKNOWN_WORDS: usize = 5;
/// Keys under which benchmarks keep the answer, or its place among the choices.
const ANSWER_KEYS: [&str; 11] = [
    "answer",
    "answerkey",
    "target",
    "solution",
    "canonical_solution",
    "code",
    "best answer",
    "output",
    "label",
    "gold",
    "response",
];
/// Keys of the choices that a number or a letter refers to.
const CHOICE_KEYS: [&str; 7] =
    ["choices", "options", "endings", "answers", "mc1_targets", "mc2_targets", "alternatives"];
/// Keys that hold one choice each.
const SINGLE_CHOICE_KEYS: [&str; 20] = [
    "a", "b", "c", "d", "e", "option1", "option2", "option3", "option4", "option5", "opa", "opb", "opc", "opd", "sol1",
    "sol2", "ans0", "ans1", "ans2", "ans3",
];

/// One text of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchmarkText {
    /// File name relative to the folder, or the name of a built-in set.
    pub source: String,
    /// Position of the item in its file, from 0.
    pub index: usize,
    /// What is asked.
    pub question: String,
    /// The right answer, where the file tells.
    pub answer: Option<String>,
    /// All choices, where the item has some.
    pub choices: Vec<String>,
}

impl BenchmarkText {
    fn plain(source: &str, index: usize, question: &str) -> Self {
        Self { source: source.to_owned(), index, question: question.to_owned(), answer: None, choices: Vec::new() }
    }
}

/// Hands every text of every benchmark file under `folder` to `take`, in order of path.
///
/// Files that hold no such text are skipped; a damaged line or file is named in a warning and skipped, because a
/// benchmark that cannot be read cannot be evaluated either.
///
/// **Errors**: usage, when the folder is not there.
pub fn read_folder(folder: &Path, take: &mut dyn FnMut(BenchmarkText) -> Result<()>) -> Result<usize> {
    let mut files = Vec::new();
    list_files(folder, &mut files)?;
    files.sort();
    let mut read = 0;
    for path in files {
        let source = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let name = source.strip_suffix(".gz").unwrap_or(&source).to_owned();
        let extension = name.rsplit('.').next().unwrap_or_default().to_lowercase();
        let outcome = match extension.as_str() {
            "jsonl" => read_jsonl(&path, &source, take),
            "json" => read_json(&path, &source, take),
            "csv" => read_table(&path, &source, ',', take),
            "tsv" => read_table(&path, &source, '\t', take),
            "parquet" => read_parquet(&path, &source, take),
            _ => continue,
        };
        outcome?;
        read += 1;
    }
    Ok(read)
}

/// The texts of a JSON-lines file that is already in memory.
pub fn parse_jsonl(source: &str, content: &str) -> Vec<BenchmarkText> {
    let mut texts = Vec::new();
    for (index, line) in content.lines().enumerate() {
        if let Ok(value) = serde_json::from_str::<Value>(line) {
            walk(&value, source, &mut |_| index, &mut |text| texts.push(text));
        }
    }
    texts
}

/// Opens a file, unpacking it when it is gzip by its first bytes.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let is_gzip =
        reader.fill_buf().with_context(|| format!("cannot read `{}`", path.display()))?.starts_with(&[0x1f, 0x8b]);
    if is_gzip {
        return Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(reader))));
    }
    Ok(Box::new(reader))
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        crate::error::usage(format!("cannot read the benchmarks folder `{}`: {error}", folder.display()))
    })?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list `{}`", folder.display()))?.path();
        if path.is_dir() {
            list_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn read_jsonl(path: &Path, source: &str, take: &mut dyn FnMut(BenchmarkText) -> Result<()>) -> Result<()> {
    let mut reader = open(path)?;
    let mut line = Vec::new();
    for index in 0.. {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.trim_ascii().is_empty() => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("benchmark `{source}` cannot be read past line {}: {error}", index + 1);
                break;
            }
        }
        match serde_json::from_slice(&line) {
            Ok(value) => walk_into(&value, source, &mut |_| index, take)?,
            Err(error) => tracing::warn!("benchmark `{source}` line {} is skipped: {error}", index + 1),
        }
    }
    Ok(())
}

fn read_parquet(path: &Path, source: &str, take: &mut dyn FnMut(BenchmarkText) -> Result<()>) -> Result<()> {
    let mut outcome = Ok(());
    let read = row_source::for_each_row(path, |place, row| {
        // Positions count from 0 here.
        let index = place.number() - 1;
        match row {
            Ok(row) => outcome = walk_into(&Value::Object(row), source, &mut |_| index, take),
            Err(error) => tracing::warn!("benchmark `{source}` row {} is skipped: {error}", index + 1),
        }
        anyhow::ensure!(outcome.is_ok(), "the reader is stopped");
        Ok(())
    });
    outcome?;
    if let Err(error) = read {
        tracing::warn!("benchmark `{source}` is skipped: {error:#}");
    }
    Ok(())
}

fn read_json(path: &Path, source: &str, take: &mut dyn FnMut(BenchmarkText) -> Result<()>) -> Result<()> {
    match serde_json::from_reader(open(path)?) {
        Ok(value) => walk_into(&value, source, &mut |count| count, take),
        Err(error) => {
            tracing::warn!("benchmark `{source}` is skipped: {error}");
            Ok(())
        }
    }
}

fn read_table(
    path: &Path,
    source: &str,
    separator: char,
    take: &mut dyn FnMut(BenchmarkText) -> Result<()>,
) -> Result<()> {
    let mut content = String::new();
    if let Err(error) = open(path)?.read_to_string(&mut content) {
        tracing::warn!("benchmark `{source}` is skipped: {error}");
        return Ok(());
    }
    let mut rows = parse_table(content.trim_start_matches('\u{feff}'), separator);
    let is_heading = |cell: &String| QUESTION_KEYS.contains(&cell.trim().to_lowercase().as_str());
    let is_long = |cell: &String| item_words(cell) >= MIN_UNKNOWN_WORDS;
    let header = match rows.first() {
        // MMLU's own files: a question and its choices in every row, the first one included.
        Some(first) if !first.iter().any(is_heading) => {
            let is_mostly_long = |&column: &usize| {
                2 * rows.iter().filter(|row| row.get(column).is_some_and(is_long)).count() > rows.len()
            };
            let question = (0..first.len()).find(is_mostly_long).unwrap_or(0);
            let name = |column: usize| match column == question {
                true => "question".to_owned(),
                false => format!("option{}", column.saturating_sub(question)),
            };
            (0..first.len()).map(name).collect()
        }
        _ => {
            if rows.is_empty() {
                Vec::new()
            } else {
                rows.remove(0)
            }
        }
    };
    for (index, row) in rows.into_iter().enumerate() {
        let object: Map<String, Value> = header.iter().cloned().zip(row.into_iter().map(Value::String)).collect();
        walk_into(&Value::Object(object), source, &mut |_| index, take)?;
    }
    Ok(())
}

/// Rows of a separated table; quoted cells may hold separators, line ends and doubled quotes (RFC 4180).
fn parse_table(content: &str, separator: char) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut is_quoted = false;
    let mut chars = content.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                cell.push('"');
                chars.next();
            }
            '"' if is_quoted || cell.is_empty() => is_quoted = !is_quoted,
            '\n' if !is_quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            '\r' if !is_quoted => {}
            _ if char == separator && !is_quoted => row.push(std::mem::take(&mut cell)),
            _ => cell.push(char),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows
}

fn walk_into(
    value: &Value,
    source: &str,
    index_of: &mut dyn FnMut(usize) -> usize,
    take: &mut dyn FnMut(BenchmarkText) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    walk(value, source, index_of, &mut |text| {
        if outcome.is_ok() {
            outcome = take(text);
        }
    });
    outcome
}

/// Finds every object with a question in a JSON value. `index_of` turns the count of such objects into an item index.
fn walk(value: &Value, source: &str, index_of: &mut dyn FnMut(usize) -> usize, take: &mut dyn FnMut(BenchmarkText)) {
    let mut count = 0;
    // With each value: whether it is part of an item whose question is known.
    let mut open = vec![(value, false)];
    while let Some((value, is_part)) = open.pop() {
        match value {
            // The stack is last in, first out.
            Value::Array(values) => open.extend(values.iter().rev().map(|value| (value, is_part))),
            Value::Object(object) => {
                let is_item = take_object(object, is_part, source, index_of(count), take);
                count += usize::from(is_item);
                // Choices and answers are texts of an item, not items.
                let is_nested = |(key, value): &(&String, &Value)| {
                    (value.is_array() || value.is_object()) && !is_choice_or_answer(key)
                };
                let nested = object.iter().rev().filter(is_nested);
                open.extend(nested.map(|(_, value)| (value, is_part || is_item)));
            }
            Value::String(text) if !is_part && item_words(text) >= MIN_UNKNOWN_WORDS => {
                take(BenchmarkText::plain(source, index_of(count), text));
                count += 1;
            }
            _ => {}
        }
    }
}

fn take_object(
    object: &Map<String, Value>,
    is_part: bool,
    source: &str,
    index: usize,
    take: &mut dyn FnMut(BenchmarkText),
) -> bool {
    let (mut answer, mut choices) = (None, None);
    let mut found = false;
    for (key, value) in object {
        let key = key.to_lowercase();
        if !QUESTION_KEYS.contains(&key.as_str()) {
            continue;
        }
        // MT-Bench keeps the turns of a conversation as a list.
        let questions = match value {
            Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
            value => value.as_str().into_iter().collect::<Vec<_>>(),
        };
        for question in questions.into_iter().filter(|question| !question.is_empty()) {
            found = true;
            let is_background = BACKGROUND_KEYS.contains(&key.as_str());
            let answer = if is_background { None } else { answer.get_or_insert_with(|| find_answer(object)).clone() };
            // Winogrande and its kin leave a blank for the answer.
            if let Some(answer) = answer.as_deref().filter(|_| question.contains(" _ ")) {
                take(BenchmarkText::plain(source, index, &question.replace(" _ ", &format!(" {answer} "))));
            }
            let choices = choices.get_or_insert_with(|| find_choices(object)).clone();
            take(BenchmarkText { answer, choices, ..BenchmarkText::plain(source, index, question) });
        }
    }
    if found || is_part {
        return found;
    }
    for (_, value) in object.iter().filter(|(key, _)| !is_choice_or_answer(key)) {
        if let Some(text) = value.as_str().filter(|text| item_words(text) >= MIN_UNKNOWN_WORDS) {
            found = true;
            take(BenchmarkText::plain(source, index, text));
        }
    }
    found
}

fn is_choice_or_answer(key: &str) -> bool {
    let key = key.to_lowercase();
    CHOICE_KEYS.contains(&key.as_str()) || ANSWER_KEYS.contains(&key.as_str())
}

/// The choices of an item: a list of texts, of objects with a text or of labels and texts, or a key for each.
fn find_choices(object: &Map<String, Value>) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let text_of = |value: &Value| value.as_str().or_else(|| value.get("text")?.as_str()).map(str::to_owned);
        match value {
            Value::Array(values) => values.iter().filter_map(text_of).collect(),
            Value::Object(object) => match object.get("text") {
                Some(Value::Array(values)) => values.iter().filter_map(text_of).collect(),
                // Named choices (`{"A": "…"}`), or choices as keys with whether they are right (TruthfulQA).
                _ if object.values().all(Value::is_string) => object.values().filter_map(text_of).collect(),
                _ => object.keys().cloned().collect(),
            },
            _ => Vec::new(),
        }
    };
    let listed = object.iter().filter(|(key, _)| CHOICE_KEYS.contains(&key.to_lowercase().as_str()));
    let choices: Vec<String> =
        listed.map(|(_, value)| texts(value)).find(|texts| !texts.is_empty()).unwrap_or_else(|| {
            let single = object.iter().filter(|(key, _)| SINGLE_CHOICE_KEYS.contains(&key.to_lowercase().as_str()));
            single.filter_map(|(_, value)| value.as_str().map(str::to_owned)).collect()
        });
    choices.into_iter().map(|choice| without_label(&choice).to_owned()).collect()
}

/// A choice without the letter in front: `(A) so`, `B. so`.
fn without_label(choice: &str) -> &str {
    let label = choice.trim_start().trim_start_matches('(');
    let mut chars = label.chars();
    match (chars.next(), chars.next()) {
        (Some('A'..='J'), Some(')' | '.' | ':')) if !chars.as_str().trim().is_empty() => chars.as_str().trim_start(),
        _ => choice,
    }
}

/// The right answer as text: the answer's own string, or the choice that its number or letter points at.
fn find_answer(object: &Map<String, Value>) -> Option<String> {
    let field = |name: &str| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let answer = ANSWER_KEYS.iter().find_map(|key| field(key).filter(|value| !value.is_null()))?;
    let position = match answer {
        Value::Number(number) => usize::try_from(number.as_u64()?).ok(),
        Value::String(text) => match text.trim().as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
            [digit @ b'1'..=b'9'] if object.contains_key("option1") => {
                return field(&format!("option{}", char::from(*digit)))?.as_str().map(str::to_owned);
            }
            _ => return Some(text.clone()),
        },
        _ => return None,
    };
    find_choices(object).get(position?).cloned()
}
