//! What a GGUF file holds beside the model's shape: its metadata and the types of its tensors.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::ModelFindings;
use crate::gguf::{GgufFile, Value, is_gguf};

/// Longest text of a value that is shown to people.
const SHOWN: usize = 72;

/// The header of a file.
#[derive(Debug, Serialize)]
pub(super) struct GgufFindings {
    gguf_version: u32,
    /// Keys and values; arrays by their length.
    metadata: Map<String, Json>,
    tensor_types: BTreeMap<String, TypeFindings>,
}

#[derive(Debug, Default, Serialize)]
struct TypeFindings {
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

impl GgufFindings {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let header = GgufFile::open(path)?.header;
        let mut tensor_types: BTreeMap<String, TypeFindings> = BTreeMap::new();
        for tensor in &header.tensors {
            let found = tensor_types.entry(tensor.kind.name()).or_default();
            found.tensors += 1;
            found.parameters += elements(&tensor.shape);
            found.bytes += tensor.bytes.len() as u64;
        }
        let metadata = header.metadata.iter().map(|(key, value)| (key.to_owned(), summary(value))).collect();
        Ok(Self { gguf_version: header.version, metadata, tensor_types })
    }

    fn text(&self) -> String {
        let mut out = format!("{:<16}version {}\n", "gguf", self.gguf_version);
        for (name, found) in &self.tensor_types {
            let TypeFindings { tensors, parameters, bytes } = found;
            let _ = writeln!(out, "{:<16}{name}: {tensors} tensors, {parameters} parameters, {bytes} bytes", "tensors");
        }
        for (key, value) in &self.metadata {
            let value = match value {
                Json::String(text) => text.escape_debug().to_string(),
                other => other.to_string(),
            };
            let shown: String = value.chars().take(SHOWN).collect();
            let dots = if shown.len() < value.len() { "…" } else { "" };
            let _ = writeln!(out, "  {key} = {shown}{dots}");
        }
        out
    }
}

/// A value for machines; an array is told by its length, since a vocabulary is no summary.
fn summary(value: &Value) -> Json {
    match value {
        Value::Unsigned(number) => json!(number),
        Value::Signed(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::Bool(flag) => json!(flag),
        Value::Text(text) => json!(text),
        Value::Texts(texts) => json!(format!("[{} texts]", texts.len())),
        Value::Integers(numbers) => json!(format!("[{} whole numbers]", numbers.len())),
        Value::Floats(numbers) => json!(format!("[{} numbers]", numbers.len())),
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |product: u64, &size| product.saturating_mul(size as u64))
}

/// Parameters by type, of a GGUF file; nothing of anything else.
pub(super) fn elements_by_type(path: &Path) -> Result<BTreeMap<String, u64>> {
    let mut types = BTreeMap::new();
    if is_gguf(path) {
        for tensor in &GgufFile::open(path)?.header.tensors {
            *types.entry(tensor.kind.name().to_lowercase()).or_default() += elements(&tensor.shape);
        }
    }
    Ok(types)
}

/// A model and its file.
#[derive(Debug, Serialize)]
pub(super) struct Both<'a> {
    #[serde(flatten)]
    model: &'a ModelFindings,
    #[serde(flatten)]
    file: &'a GgufFindings,
}

impl<'a> Both<'a> {
    pub(super) fn of((model, file): &'a (ModelFindings, GgufFindings)) -> Self {
        Self { model, file }
    }

    pub(super) fn text(&self) -> String {
        format!("{}{}", self.model.text(), self.file.text())
    }
}
