//! `dataset/`: the curated rows as other programs read them.
//!
//! Parquet with a card that Hugging Face reads, Alpaca and ShareGPT as JSON lines, `dataset_info.json` for LLaMA-Factory
//! and `axolotl.yaml`. Everything is made from the JSON lines that the stage has written, a few thousand rows at a time;
//! every file has one schema, whatever the rows held, with the columns that are not named in `metadata`, as JSON.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use parquet::{
    basic::Compression,
    column::writer::ColumnWriter,
    data_type::{ByteArray, ByteArrayType},
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    pass::CurateStats,
    writer::{PendingFile, complaint},
};
use crate::{interrupt, language_model::Message};

/// The schema of the Parquet files.
const SCHEMA: &str = "
message row {
  required binary id (STRING);
  optional binary parent (STRING);
  optional binary discipline (STRING);
  optional binary subject (STRING);
  optional binary level (STRING);
  required group messages (LIST) {
    repeated group list {
      required group element {
        required binary role (STRING);
        required binary content (STRING);
      }
    }
  }
  required binary metadata (STRING);
}";
/// Columns with a place of their own.
const NAMED: [&str; 5] = ["id", "parent", "discipline", "subject", "level"];
/// Rows of a Parquet row group, all of which are in memory at a time.
const ROW_GROUP: usize = 4096;
/// The splits, as files and cards name them.
const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// One row, taken apart, and as the formats that are JSON lines have it.
struct Record {
    columns: Map<String, Value>,
    messages: Vec<Message>,
    metadata: String,
    alpaca: Vec<u8>,
    sharegpt: Vec<u8>,
}

impl Record {
    fn of(line: &str) -> Result<Self> {
        let mut columns: Map<String, Value> = serde_json::from_str(line)?;
        let messages = columns.get_mut("messages").map(Value::take).unwrap_or_default();
        let messages: Vec<Message> = serde_json::from_value(messages)?;
        let alpaca = line_of(&as_alpaca(&messages))?;
        let sharegpt = line_of(&as_sharegpt(columns.get("id"), &messages))?;
        Ok(Self { metadata: metadata(&columns), columns, messages, alpaca, sharegpt })
    }
}

fn line_of(record: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// A row as Alpaca's readers want it.
#[derive(Serialize)]
struct Alpaca<'a> {
    instruction: String,
    input: &'static str,
    output: &'a str,
    system: String,
    history: Vec<(String, &'a str)>,
}

/// A row as ShareGPT's readers want it.
#[derive(Serialize)]
struct ShareGpt<'a> {
    id: Option<&'a Value>,
    conversations: Vec<Turn<'a>>,
}

#[derive(Serialize)]
struct Turn<'a> {
    from: &'a str,
    value: &'a str,
}

/// Writes `dataset/` from the files in `folder`.
pub fn write(folder: &Path, stats: &CurateStats) -> Result<()> {
    let dataset = folder.join("dataset");
    for name in ["data", "alpaca", "sharegpt"] {
        let folder = dataset.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create folder `{}`", folder.display()))?;
    }
    for split in SPLITS {
        write_split(&folder.join(format!("{split}.jsonl")), &dataset, split)?;
    }
    let text_file = |name: &str, content: &str| -> Result<()> {
        let path = dataset.join(name);
        crate::records::write_atomic(&path, content.as_bytes()).with_context(|| complaint(&path))
    };
    text_file("README.md", &card(stats))?;
    text_file("dataset_info.json", &(serde_json::to_string_pretty(&dataset_info())? + "\n"))?;
    text_file("axolotl.yaml", AXOLOTL)
}

fn write_split(source: &Path, dataset: &Path, split: &str) -> Result<()> {
    let reader = BufReader::new(File::open(source).with_context(|| format!("cannot open `{}`", source.display()))?);
    let mut alpaca = PendingFile::create(&dataset.join("alpaca"), &format!("{split}.jsonl"))?;
    let mut sharegpt = PendingFile::create(&dataset.join("sharegpt"), &format!("{split}.jsonl"))?;
    let target = dataset.join(format!("data/{split}-00000-of-00001.parquet"));
    let temporary = target.with_extension("parquet.partial");
    let file = File::create(&temporary).with_context(|| complaint(&target))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let schema = Arc::new(parse_message_type(SCHEMA).context("the schema is fixed")?);
    let mut parquet =
        SerializedFileWriter::new(file, schema, Arc::new(properties)).with_context(|| complaint(&target))?;
    let mut lines = reader.lines();
    loop {
        let group: Vec<String> = lines
            .by_ref()
            .take(ROW_GROUP)
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("cannot read `{}`", source.display()))?;
        if group.is_empty() {
            break;
        }
        let group: Vec<Record> = group.par_iter().map(|line| Record::of(line)).collect::<Result<_>>()?;
        for record in &group {
            alpaca.write_line(&record.alpaca)?;
            sharegpt.write_line(&record.sharegpt)?;
        }
        write_group(&mut parquet, &group).with_context(|| complaint(&target))?;
        interrupt::check()?;
    }
    parquet.close().with_context(|| complaint(&target))?;
    fs::rename(&temporary, &target).with_context(|| complaint(&target))?;
    alpaca.finish()?;
    sharegpt.finish()
}

fn write_group<W: Write + Send>(file: &mut SerializedFileWriter<W>, records: &[Record]) -> Result<()> {
    let mut group = file.next_row_group()?;
    let text = |record: &Record, key: &str| record.columns.get(key).and_then(Value::as_str).map(ByteArray::from);
    let ids: Vec<ByteArray> = records.iter().map(|record| text(record, "id").unwrap_or_default()).collect();
    write_column(&mut group, &ids, None, None)?;
    for key in &NAMED[1..] {
        let texts: Vec<Option<ByteArray>> = records.iter().map(|record| text(record, key)).collect();
        let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        write_column(&mut group, &texts.into_iter().flatten().collect::<Vec<_>>(), Some(&levels), None)?;
    }
    let turns = || records.iter().flat_map(|record| record.messages.iter().enumerate());
    // Definition 1: there is an element; repetition 0 begins a row, 1 goes on with its list.
    let definition: Vec<i16> = turns().map(|_| 1).collect();
    let repetition: Vec<i16> = turns().map(|(turn, _)| i16::from(turn > 0)).collect();
    let roles: Vec<ByteArray> = turns().map(|(_, turn)| turn.role.as_str().into()).collect();
    write_column(&mut group, &roles, Some(&definition), Some(&repetition))?;
    let contents: Vec<ByteArray> = turns().map(|(_, turn)| turn.content.as_str().into()).collect();
    write_column(&mut group, &contents, Some(&definition), Some(&repetition))?;
    let metadata: Vec<ByteArray> = records.iter().map(|record| record.metadata.as_str().into()).collect();
    write_column(&mut group, &metadata, None, None)?;
    group.close()?;
    Ok(())
}

fn write_column<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[ByteArray],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) -> Result<()> {
    let mut column = group.next_column()?.context("the schema has as many columns as are written")?;
    debug_assert!(matches!(column.untyped(), ColumnWriter::ByteArrayColumnWriter(_)));
    column.typed::<ByteArrayType>().write_batch(values, definition, repetition)?;
    column.close()?;
    Ok(())
}

/// The columns without a place of their own, as JSON.
fn metadata(columns: &Map<String, Value>) -> String {
    let rest = columns.iter().filter(|(key, _)| !NAMED.contains(&key.as_str()) && *key != "messages");
    Value::Object(rest.map(|(key, value)| (key.clone(), value.clone())).collect()).to_string()
}

/// The last question and answer; what was said before is the history.
fn as_alpaca(messages: &[Message]) -> Alpaca<'_> {
    let system: Vec<&str> =
        messages.iter().filter(|turn| turn.role == "system").map(|turn| turn.content.as_str()).collect();
    let mut turns: Vec<(String, &str)> = Vec::new();
    let mut asked: Vec<&str> = Vec::new();
    for turn in messages {
        match turn.role.as_str() {
            "user" => asked.push(&turn.content),
            "assistant" => turns.push((std::mem::take(&mut asked).join("\n"), &turn.content)),
            _ => {}
        }
    }
    let (instruction, output) = turns.pop().unwrap_or_default();
    Alpaca { instruction, input: "", output, system: system.join("\n"), history: turns }
}

fn as_sharegpt<'a>(id: Option<&'a Value>, messages: &'a [Message]) -> ShareGpt<'a> {
    fn from(role: &str) -> &str {
        match role {
            "user" => "human",
            "assistant" => "gpt",
            other => other,
        }
    }
    let turns = messages.iter().map(|turn| Turn { from: from(&turn.role), value: &turn.content });
    ShareGpt { id, conversations: turns.collect() }
}

/// The card: what Hugging Face's hub and loader read, then what people do.
fn card(stats: &CurateStats) -> String {
    let CurateStats { rows_in, kept, splits, rejected, .. } = stats;
    let size = match *kept {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        _ => "10M<n<100M",
    };
    let counts = [splits.train, splits.valid, splits.test];
    let names = ["train", "validation", "test"];
    let files: String = (0..3)
        .filter(|&split| counts[split] > 0)
        .map(|split| format!("  - split: {}\n    path: data/{}-00000-of-00001.parquet\n", names[split], SPLITS[split]))
        .collect();
    let reasons: String = rejected.iter().map(|(reason, count)| format!("| {reason} | {count} |\n")).collect();
    let files = if files.is_empty() { "  []\n".to_owned() } else { files };
    format!(
        "---\n\
         pretty_name: Instruction data made with glan\n\
         license: other\n\
         task_categories:\n- text-generation\n\
         tags:\n- synthetic\n- instruction-tuning\n- glan\n\
         size_categories:\n- {size}\n\
         configs:\n- config_name: default\n  data_files:\n{files}\
         ---\n\n\
         # Instruction data made with glan\n\n\
         Questions and answers that a language model wrote from a taxonomy of knowledge (GLAN, arXiv 2402.13064), then\n\
         filtered. {kept} of {rows_in} rows were kept: {train} for training, {valid} for validation, {test} for the test.\n\n\
         | rejected for | rows |\n|---|---|\n{reasons}\n\
         ## Columns\n\n\
         `messages` (role and content), `id`, `parent` (the id of the answer that a row was made from), `discipline`,\n\
         `subject`, `level`, and `metadata`: a JSON object with everything else, provenance included.\n\n\
         ## Limits\n\n\
         The texts are synthetic: they carry the errors and the biases of the model that wrote them. Rows that hold items\n\
         of the benchmarks that the curation knew were removed; benchmarks that it did not know were not compared. The\n\
         audit of diversity, representation and coverage stands beside this folder in `audit.json`. The licence of the\n\
         data follows the terms of the model that wrote them: fill in `license` above before publishing.\n",
        train = splits.train,
        valid = splits.valid,
        test = splits.test,
    )
}

/// What LLaMA-Factory reads to find the files.
fn dataset_info() -> Value {
    let mut info = Map::new();
    for split in SPLITS {
        info.insert(
            format!("glan_{split}"),
            json!({
                "file_name": format!("data/{split}-00000-of-00001.parquet"), "formatting": "sharegpt",
                "columns": {"messages": "messages"},
                "tags": {
                    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                    "system_tag": "system",
                },
            }),
        );
        info.insert(
            format!("glan_{split}_alpaca"),
            json!({
                "file_name": format!("alpaca/{split}.jsonl"),
                "columns": {
                    "prompt": "instruction", "query": "input", "response": "output", "system": "system",
                    "history": "history",
                },
            }),
        );
    }
    Value::Object(info)
}

const AXOLOTL: &str = "\
# The `datasets` section of an Axolotl configuration; paths are relative to this folder.
datasets:
  - path: data/train-00000-of-00001.parquet
    ds_type: parquet
    type: chat_template
    field_messages: messages
    message_property_mappings:
      role: role
      content: content
test_datasets:
  - path: data/valid-00000-of-00001.parquet
    ds_type: parquet
    split: train
    type: chat_template
    field_messages: messages
    message_property_mappings:
      role: role
      content: content
";
