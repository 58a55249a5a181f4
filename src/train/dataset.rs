//! Training rows: text to tokens with a mask of what is trained.
//!
//! Files are read in blocks of rows. A row's text is gone once its block is tokenised, and its tokens lie in a
//! [`TokenFile`]: memory does not grow with the data beyond a few bytes a row.

use std::{ops::Range, path::Path};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{
    rows::{Row, RowContent},
    token_file::{TokenFile, TokenWriter},
};
use crate::{
    chat_template::{ChatTemplate, encode_prompt_with_offsets},
    row_source::{Place, for_each_row},
    seed,
    tokenizer::Tokenizer,
};

/// Rows that are in memory as text at a time, and bytes of them.
const BLOCK_ROWS: usize = 1024;
const BLOCK_BYTES: usize = 8 << 20;

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
    /// Tokens with a loss: nothing stands before the first.
    pub fn num_trained(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&trained| trained).count()
    }
}

/// Everything that one file gave.
#[derive(Debug)]
pub struct Dataset {
    /// In the order of the file.
    rows: TokenFile,
    /// Rows cut at the longest length.
    pub num_truncated: usize,
    /// Rows without a trained token (after the cut), left out.
    pub num_without_target: usize,
    /// Whether any row was a conversation.
    pub has_messages: bool,
    num_tokens: usize,
    num_trained_tokens: usize,
    longest: usize,
}

impl Dataset {
    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a row from the disk.
    pub fn example(&self, row: usize) -> Result<Example> {
        self.rows.read(row)
    }

    /// Tokens of a row.
    pub fn row_tokens(&self, row: usize) -> usize {
        self.rows.num_tokens(row)
    }

    /// Tokens of a row that have a loss.
    pub fn row_trained_tokens(&self, row: usize) -> usize {
        self.rows.num_trained(row)
    }

    /// Tokens of the longest row.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Trained tokens of one pass.
    pub fn num_trained_tokens(&self) -> usize {
        self.num_trained_tokens
    }

    /// Tokens of one pass.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// A data set that is being read.
pub(super) struct DatasetWriter {
    rows: TokenWriter,
    max_length: usize,
    num_truncated: usize,
    num_without_target: usize,
    has_messages: bool,
    num_tokens: usize,
    num_trained_tokens: usize,
    longest: usize,
}

impl DatasetWriter {
    /// Rows are cut at `max_length` tokens and lie in `folder`.
    pub fn create(folder: &Path, max_length: usize) -> Result<Self> {
        Ok(Self {
            rows: TokenWriter::create(folder)?,
            max_length,
            num_truncated: 0,
            num_without_target: 0,
            has_messages: false,
            num_tokens: 0,
            num_trained_tokens: 0,
            longest: 0,
        })
    }

    /// Takes in a row.
    pub fn push(&mut self, mut example: Example) -> Result<()> {
        if example.token_ids.len() > self.max_length {
            example.token_ids.truncate(self.max_length);
            example.trained.truncate(self.max_length);
            self.num_truncated += 1;
        }
        let (tokens, trained) = (example.token_ids.len(), example.num_trained());
        if trained == 0 {
            self.num_without_target += 1;
            return Ok(());
        }
        self.num_tokens += tokens;
        self.num_trained_tokens += trained;
        self.longest = self.longest.max(tokens);
        self.rows.push(&example)
    }

    /// Ends the reading.
    pub fn finish(self) -> Result<Dataset> {
        Ok(Dataset {
            rows: self.rows.finish()?,
            num_truncated: self.num_truncated,
            num_without_target: self.num_without_target,
            has_messages: self.has_messages,
            num_tokens: self.num_tokens,
            num_trained_tokens: self.num_trained_tokens,
            longest: self.longest,
        })
    }
}

/// How rows become tokens.
#[derive(Clone, Copy)]
pub struct Encoding<'a> {
    /// The student's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// What conversations are rendered with.
    pub template: Option<&'a ChatTemplate>,
    /// Ends a text or a completion.
    pub eos_token_id: Option<u32>,
    /// Longest row in tokens; longer ones are cut at the end.
    pub max_length: usize,
    /// Loss on the assistant's turns and on completions alone; off, on every token.
    pub assistant_only_loss: bool,
}

/// A row as the model sees it.
pub struct Rendered {
    /// The whole text, without an added end-of-sequence token.
    pub text: String,
    /// Bytes of it that are trained.
    pub trained: Vec<Range<usize>>,
    /// Whether a chat template made it.
    pub is_conversation: bool,
}

/// A row as tokens.
pub struct RowTokens {
    /// All of them.
    pub token_ids: Vec<u32>,
    /// The bytes of the text that each covers; an added end of sequence has none here.
    pub offsets: Vec<Range<usize>>,
    /// Whether each is trained.
    pub trained: Vec<bool>,
}

/// Reads rows of every format of [`super::rows`] from every kind of file of [`crate::row_source`]; the tokens lie in `folder`,
/// in a file without a name. Trained are the assistant's turns, their end-of-turn token included, or the completion and
/// an end-of-sequence token.
///
/// **Errors**: name the file, the line or row, the field and what was expected.
pub fn read(path: &Path, encoding: &Encoding, folder: &Path) -> Result<Dataset> {
    let mut dataset = DatasetWriter::create(folder, encoding.max_length)?;
    let (mut block, mut bytes) = (Vec::with_capacity(BLOCK_ROWS), 0);
    for_each_row(path, |place, row| {
        let row = row?;
        bytes += text_bytes(row.values());
        block.push((place, row));
        if block.len() == BLOCK_ROWS || bytes >= BLOCK_BYTES {
            encoding.push_block(path, std::mem::take(&mut block), &mut dataset)?;
            bytes = 0;
        }
        Ok(())
    })?;
    encoding.push_block(path, block, &mut dataset)?;
    let dataset = dataset.finish()?;
    if dataset.is_empty() {
        bail!("`{}` holds no row with anything to train on", path.display());
    }
    Ok(dataset)
}

/// Bytes of all texts in values.
fn text_bytes<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    values
        .map(|value| match value {
            Value::String(text) => text.len(),
            Value::Array(list) => text_bytes(list.iter()),
            Value::Object(map) => text_bytes(map.values()),
            _ => 0,
        })
        .sum()
}

impl Encoding<'_> {
    fn push_block(
        &self,
        path: &Path,
        block: Vec<(Place, Map<String, Value>)>,
        dataset: &mut DatasetWriter,
    ) -> Result<()> {
        let examples: Vec<(Example, bool)> = block
            .into_par_iter()
            .map(|(place, row)| self.tokenise(row, place).with_context(|| format!("`{}` {place}", path.display())))
            .collect::<Result<_>>()?;
        for (example, is_conversation) in examples {
            dataset.has_messages |= is_conversation;
            dataset.push(example)?;
        }
        Ok(())
    }

    fn tokenise(&self, row: Map<String, Value>, place: Place) -> Result<(Example, bool)> {
        let row = Row::parse(row)?;
        let rendered = self.render(&row.content)?;
        let RowTokens { token_ids, trained, .. } = self.tokens_with_offsets(&rendered)?;
        let id = row.id.unwrap_or_else(|| seed::record_id(&["line", &place.number().to_string()]));
        Ok((Example { id, token_ids, trained }, rendered.is_conversation))
    }

    /// The text that the model is trained on.
    pub fn render(&self, content: &RowContent) -> Result<Rendered> {
        match content {
            RowContent::Conversation { messages, trained } => {
                let template = self.template.context(
                    "the row is a conversation, but the model has no chat template (expected `chat_template.jinja` \
                     or `chat_template` in tokenizer_config.json; or set `train.chat_template`)",
                )?;
                let (text, ranges) = template.render_for_training(messages)?;
                let assistant = messages.iter().zip(trained).filter(|(message, _)| message.role == "assistant");
                let ranges = ranges.into_iter().zip(assistant).filter(|(_, (_, trained))| **trained);
                Ok(Rendered { text, trained: ranges.map(|(range, _)| range).collect(), is_conversation: true })
            }
            RowContent::Completion { prompt, completion } => {
                let range = prompt.len()..prompt.len() + completion.len();
                Ok(Rendered { text: format!("{prompt}{completion}"), trained: vec![range], is_conversation: false })
            }
        }
    }

    /// Tokens of a rendered row.
    pub fn tokens_with_offsets(&self, rendered: &Rendered) -> Result<RowTokens> {
        let (mut token_ids, offsets) = if rendered.is_conversation {
            encode_prompt_with_offsets(self.tokenizer, &rendered.text)?
        } else {
            self.tokenizer.encode_with_offsets(&rendered.text, true)?
        };
        let is_plain_text = !rendered.is_conversation && rendered.trained.first().is_some_and(|range| range.start == 0);
        let mut trained = if is_plain_text { vec![true; token_ids.len()] } else { mask(&offsets, &rendered.trained) };
        if !rendered.is_conversation {
            token_ids.extend(self.eos_token_id);
            trained.resize(token_ids.len(), true);
        }
        if !self.assistant_only_loss {
            trained.fill(true);
        }
        Ok(RowTokens { token_ids, offsets, trained })
    }
}

/// A token without width (an added BOS) is never trained; one that straddles a border counts by its start.
fn mask(offsets: &[Range<usize>], ranges: &[Range<usize>]) -> Vec<bool> {
    let is_trained =
        |offset: &Range<usize>| !offset.is_empty() && ranges.iter().any(|range| range.contains(&offset.start));
    offsets.iter().map(is_trained).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads rows with the fixture's tokenizer (id 0 to 2 special, `t3` … `t95` the words) and template.
    fn read_rows(rows: &str, assistant_only_loss: bool) -> Result<Dataset> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        let tokenizer = Tokenizer::load(&directory)?;
        let template = ChatTemplate::load(&directory, &tokenizer)?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, rows)?;
        let encoding = Encoding {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            eos_token_id: Some(2),
            max_length: 64,
            assistant_only_loss,
        };
        read(&path, &encoding, folder.path())
    }

    fn examples(data: &Dataset) -> Result<Vec<Example>> {
        (0..data.len()).map(|row| data.example(row)).collect()
    }

    fn written(example: &Example) -> Vec<u32> {
        example.token_ids.iter().zip(&example.trained).filter(|(_, trained)| **trained).map(|(id, _)| *id).collect()
    }

    #[test]
    fn the_same_conversation_gives_the_same_tokens_in_every_format() -> Result<()> {
        let data = read_rows(
            r#"{"messages":[{"role":"user","content":"t3 t4"},{"role":"assistant","content":"t5 t6"}]}
{"conversations":[{"from":"human","value":"t3 t4"},{"from":"gpt","value":"t5 t6"}]}
{"instruction":"t3 t4","input":"","output":"t5 t6"}
{"prompt":[{"role":"user","content":"t3 t4"}],"completion":[{"role":"assistant","content":"t5 t6"}]}
"#,
            true,
        )?;
        assert!(data.has_messages);
        let examples = examples(&data)?;
        assert_eq!(examples.len(), 4);
        for example in &examples {
            assert_eq!(example.token_ids, examples[0].token_ids);
            assert_eq!(example.trained, examples[0].trained);
        }
        let written = written(&examples[0]);
        assert_eq!(written[written.len() - 3..], [5, 6, 2], "the answer and the token that ends the turn");
        assert!(!written.contains(&3), "the question is not trained");
        Ok(())
    }

    #[test]
    fn every_turn_of_the_assistant_is_trained_unless_it_belongs_to_the_prompt_or_weighs_nothing() -> Result<()> {
        let turns = |weight: &str| {
            format!(
                r#"[{{"role":"user","content":"t3"}},{{"role":"assistant","content":"t5"{weight}}},{{"role":"user","content":"t4"}}"#
            )
        };
        let last = r#"{"role":"assistant","content":"t6"}"#;
        let data = read_rows(
            &format!(
                "{{\"messages\":{},{last}]}}\n{{\"messages\":{},{last}]}}\n{{\"prompt\":{}],\"completion\":[{last}]}}\n",
                turns(""),
                turns(",\"weight\":0"),
                turns("")
            ),
            true,
        )?;
        let examples = examples(&data)?;
        assert_eq!(examples[0].token_ids, examples[2].token_ids);
        assert_eq!(written(&examples[0]).iter().filter(|id| **id > 2).collect::<Vec<_>>(), [&5, &6]);
        assert_eq!(written(&examples[0]).iter().filter(|id| **id == 2).count(), 2, "both ends of turn");
        for example in &examples[1..] {
            assert_eq!(written(example).iter().filter(|id| **id > 2).collect::<Vec<_>>(), [&6]);
        }
        Ok(())
    }

    #[test]
    fn a_completion_is_trained_with_its_end_and_a_text_as_a_whole() -> Result<()> {
        let rows = "{\"prompt\":\"t3 t4\",\"completion\":\" t5\"}\n{\"text\":\"t3 t4 t5\"}\n";
        let data = read_rows(rows, true)?;
        let found = examples(&data)?;
        assert_eq!(written(&found[0]), [5, 2]);
        assert_eq!(found[0].token_ids, found[1].token_ids);
        assert!(found[1].trained.iter().all(|trained| *trained) && !data.has_messages);
        assert!(read_rows(rows, false)?.example(0)?.trained.iter().all(|trained| *trained));
        Ok(())
    }

    #[test]
    fn a_wrong_field_is_named_with_its_file_and_line_also_behind_the_first_block() {
        let mut rows = "{\"text\":\"t3 t4\"}\n".repeat(2 * BLOCK_ROWS);
        assert_eq!(read_rows(&rows, true).map(|data| data.len()).unwrap(), 2 * BLOCK_ROWS);
        rows.push_str("{\"messages\":[{\"role\":\"user\",\"content\":7}]}\n");
        let error = format!("{:#}", read_rows(&rows, true).expect_err("the last line is wrong"));
        for part in ["rows.jsonl` line 2049", "`messages[0].content` is a number, expected a text"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
