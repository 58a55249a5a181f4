//! Training rows: JSONL to tokens with a mask of what is trained.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    chat_template::{ChatTemplate, encode_prompt_with_offsets},
    language_model::Message,
    records::JsonlReader,
    seed,
    tokenizer::Tokenizer,
};

/// One conversation or document, tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The row's id (its place in the file where it has none).
    pub id: String,
    /// All tokens.
    pub token_ids: Vec<u32>,
    /// Whether each token is something that the model learns to write.
    pub trained: Vec<bool>,
}

impl Example {
    fn train_on_everything(mut self) -> Self {
        self.trained.fill(true);
        self
    }
}

/// Everything that one file gave.
#[derive(Debug, Default)]
pub struct Dataset {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// Rows cut at the longest length.
    pub num_truncated: usize,
    /// Rows without a trained token (after the cut), left out.
    pub num_without_target: usize,
    /// Whether any row was a conversation.
    pub has_messages: bool,
}

impl Dataset {
    /// Trained tokens of one pass.
    pub fn num_trained_tokens(&self) -> usize {
        self.examples.iter().map(|example| example.trained.iter().skip(1).filter(|&&trained| trained).count()).sum()
    }

    /// Tokens of one pass.
    pub fn num_tokens(&self) -> usize {
        self.examples.iter().map(|example| example.token_ids.len()).sum()
    }
}

/// A row as a file holds it: a conversation or plain text.
#[derive(Debug, Deserialize)]
struct Row {
    id: Option<Value>,
    messages: Option<Vec<Message>>,
    text: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Reads rows `{"id", "messages"}` (loss on the assistant's turns, their end-of-turn token included) or
/// `{"id", "text"}` (loss on every token, an end-of-sequence token is added).
///
/// **Errors**: name the file, the line and what was expected.
pub fn read(
    path: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    eos_token_id: Option<u32>,
    max_length: usize,
    assistant_only_loss: bool,
) -> Result<Dataset> {
    let mut reader = JsonlReader::<Row>::open(path)?;
    let mut rows = Vec::new();
    while let Some(row) = reader.next() {
        rows.push((reader.line_number(), row?));
    }
    let has_messages = rows.iter().any(|(_, row)| row.messages.is_some());
    let examples: Vec<Example> = rows
        .into_par_iter()
        .map(|(line, row)| {
            tokenise(row, line, tokenizer, template, eos_token_id)
                .with_context(|| format!("`{}` line {line}", path.display()))
        })
        .map(|example| example.map(|example| if assistant_only_loss { example } else { example.train_on_everything() }))
        .collect::<Result<_>>()?;
    let mut dataset = Dataset { has_messages, ..Dataset::default() };
    for mut example in examples {
        if example.token_ids.len() > max_length {
            example.token_ids.truncate(max_length);
            example.trained.truncate(max_length);
            dataset.num_truncated += 1;
        }
        if example.trained.iter().skip(1).any(|&trained| trained) {
            dataset.examples.push(example);
        } else {
            dataset.num_without_target += 1;
        }
    }
    if dataset.examples.is_empty() {
        bail!("`{}` holds no row with anything to train on", path.display());
    }
    Ok(dataset)
}

fn tokenise(
    row: Row,
    line: usize,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    eos_token_id: Option<u32>,
) -> Result<Example> {
    let id = match row.id {
        Some(Value::String(id)) => id,
        Some(id) => id.to_string(),
        None => seed::record_id(&["line", &line.to_string()]),
    };
    match (row.messages, row.text) {
        (Some(messages), _) => {
            let template = template.context(
                "the row is a conversation, but the model has no chat template (expected `chat_template.jinja` or \
                 `chat_template` in tokenizer_config.json; or set `train.chat_template`)",
            )?;
            let (token_ids, trained) = conversation(&messages, tokenizer, template)?;
            Ok(Example { id, token_ids, trained })
        }
        (None, Some(text)) => {
            let mut token_ids = tokenizer.encode(&text, true)?;
            token_ids.extend(eos_token_id);
            let trained = vec![true; token_ids.len()];
            Ok(Example { id, token_ids, trained })
        }
        (None, None) => {
            let keys: Vec<&String> = row.rest.keys().collect();
            bail!("expected a row with `messages` or `text`, found the keys {keys:?}")
        }
    }
}

/// Tokens of a conversation, and which of them belong to the assistant's turns.
pub fn conversation(
    messages: &[Message],
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
) -> Result<(Vec<u32>, Vec<bool>)> {
    let (text, ranges) = template.render_for_training(messages)?;
    let (token_ids, offsets) = encode_prompt_with_offsets(tokenizer, &text)?;
    let trained = offsets
        .iter()
        .map(|offset| {
            // A token without width (an added BOS) is never trained; one that straddles a border counts by its start.
            !offset.is_empty() && ranges.iter().any(|range| range.contains(&offset.start))
        })
        .collect();
    Ok((token_ids, trained))
}
