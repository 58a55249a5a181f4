//! The texts of evaluation items, read from any folder of benchmark files.
//!
//! The reader knows no benchmark by name: it walks `.jsonl`, `.json`, `.csv` and `.tsv` files (each also as `.gz`) and
//! takes every string whose key says that it is what a model is asked ([`QUESTION_KEYS`]), so that a new benchmark
//! dropped into the folder is covered at once. Every file counts, training splits and few-shot examples too.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

/// Keys (in lower case) under which benchmarks keep what is asked.
const QUESTION_KEYS: [&str; 21] = [
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
];
/// Keys of shared background, which is no question of its own and so never joined with the answer.
const BACKGROUND_KEYS: [&str; 5] = ["context", "passage", "ctx_a", "description", "story"];
/// Keys under which benchmarks keep the answer, or its place among the choices.
const ANSWER_KEYS: [&str; 10] = [
    "answer",
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
const CHOICE_KEYS: [&str; 4] = ["choices", "options", "endings", "answers"];

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
    let mut rows = parse_table(content.trim_start_matches('\u{feff}'), separator).into_iter();
    let header = rows.next().unwrap_or_default();
    for (index, row) in rows.enumerate() {
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
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            // The stack is last in, first out.
            Value::Array(values) => open.extend(values.iter().rev()),
            Value::Object(object) => {
                if take_object(object, source, index_of(count), take) {
                    count += 1;
                }
                open.extend(object.values().rev().filter(|value| value.is_array() || value.is_object()));
            }
            _ => {}
        }
    }
}

fn take_object(object: &Map<String, Value>, source: &str, index: usize, take: &mut dyn FnMut(BenchmarkText)) -> bool {
    let mut answer = None;
    let mut found = false;
    for (key, value) in object {
        let key = key.to_lowercase();
        let Some(question) = value.as_str().filter(|text| QUESTION_KEYS.contains(&key.as_str()) && !text.is_empty())
        else {
            continue;
        };
        found = true;
        let is_background = BACKGROUND_KEYS.contains(&key.as_str());
        let answer = if is_background { None } else { answer.get_or_insert_with(|| find_answer(object)).clone() };
        // Winogrande and its kin leave a blank for the answer.
        if let Some(answer) = answer.as_deref().filter(|_| question.contains(" _ ")) {
            let question = question.replace(" _ ", &format!(" {answer} "));
            take(BenchmarkText { source: source.to_owned(), index, question, answer: None });
        }
        take(BenchmarkText { source: source.to_owned(), index, question: question.to_owned(), answer });
    }
    found
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
    let choices = CHOICE_KEYS.iter().find_map(|key| field(key)?.as_array())?;
    choices.get(position?)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn texts_of(folder: &Path) -> Vec<(String, usize, String, Option<String>)> {
        let mut texts = Vec::new();
        read_folder(folder, &mut |text| {
            texts.push((text.source, text.index, text.question, text.answer));
            Ok(())
        })
        .expect("a readable folder");
        texts
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).expect("writing to memory");
        encoder.finish().expect("writing to memory")
    }

    #[test]
    fn every_format_is_read_packed_and_plain() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub"))?;
        std::fs::write(
            at("a.jsonl"),
            "{\"question\":\"Q1\",\"answer\":\"A1\"}\nbroken\n\n{\"prompt\":{\"text\":\"Q2\"}}\n",
        )?;
        std::fs::write(at("b.json"), "{\"examples\":[{\"input\":\"Q3\",\"target\":\"A3\"},{\"input\":\"Q4\"}]}")?;
        std::fs::write(
            at("c.csv.gz"),
            gzip("\u{feff}Type,Question,Best Answer\r\nx,\"Q5, \"\"so\"\"\nto say\",A5\r\n"),
        )?;
        std::fs::write(at("sub/d.tsv"), "id\tsentence\n7\tQ6\n")?;
        std::fs::write(at("notes.txt"), "question")?;
        let expected = [
            ("a.jsonl", 0, "Q1", Some("A1")),
            ("a.jsonl", 3, "Q2", None),
            ("b.json", 0, "Q3", Some("A3")),
            ("b.json", 1, "Q4", None),
            ("c.csv.gz", 0, "Q5, \"so\"\nto say", Some("A5")),
            ("sub/d.tsv", 0, "Q6", None),
        ];
        let expected: Vec<_> = expected
            .map(|(source, index, question, answer)| {
                (source.to_owned(), index, question.to_owned(), answer.map(str::to_owned))
            })
            .into();
        assert_eq!(texts_of(folder.path()), expected);
        Ok(())
    }

    #[test]
    fn answers_are_found_by_text_number_letter_and_blank() {
        let answer = |line: &str| parse_jsonl("x", line).pop().and_then(|text| text.answer);
        assert_eq!(answer(r#"{"question":"Q","choices":["a","b"],"answer":1}"#).as_deref(), Some("b"));
        assert_eq!(answer(r#"{"question":"Q","options":["(A)2","(B)4"],"label":"B"}"#).as_deref(), Some("(B)4"));
        assert_eq!(answer(r#"{"question":"Q","choices":["a"],"answer":9}"#), None);
        let blank = parse_jsonl("x", r#"{"sentence":"so _ won","option1":"Ann","option2":"Bo","answer":"2"}"#);
        assert_eq!(blank[0].question, "so Bo won");
    }

    #[test]
    fn a_missing_folder_is_a_usage_error_that_names_it() {
        let error = read_folder(Path::new("no/such/folder"), &mut |_| Ok(())).expect_err("it is missing");
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
