//! The one chat-template renderer: generation, training mask, evaluation and chat all use it.
//!
//! A template is a Jinja program that comes with the model. It is rendered as transformers' `apply_chat_template` does
//! (block trimming, `raise_exception`, `strftime_now`, Python's JSON), and [`ChatTemplate::render_for_training`] says
//! which part of the text is the model's to write. A rendered prompt goes through [`encode_prompt`], so that no special
//! token is doubled.

mod python;
mod training;

use std::{fs, ops::Range, path::Path};

use anyhow::{Context, Result, anyhow, bail, ensure};
use minijinja::{Environment, Value};

use crate::{
    gguf::{CHAT_TEMPLATE, GgufFile, is_gguf},
    language_model::{Message, Prompt},
    tokenizer::{Tokenizer, optional_json},
};

/// The name under which the template is compiled; no file extension, so that nothing is escaped.
const NAME: &str = "chat_template";

/// A model's chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    /// Special tokens that may end a turn, longest text first.
    turn_ends: Vec<(u32, String)>,
}

impl ChatTemplate {
    /// The template of a model directory (`chat_template.jinja`, else the key in `tokenizer_config.json`) or of a GGUF
    /// file (`tokenizer.chat_template`), if any.
    ///
    /// **Errors**: a template that does not compile, or a list of templates without one named `default`.
    pub fn load(directory: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        if is_gguf(directory) {
            let file = GgufFile::open(directory)?;
            let Some(source) = file.header.metadata.text(CHAT_TEMPLATE)? else { return Ok(None) };
            return Self::new(source.to_owned(), tokenizer)
                .with_context(|| format!("in `{}`", directory.display()))
                .map(Some);
        }
        let path = directory.join("chat_template.jinja");
        if path.is_file() {
            let source = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            return Self::new(source, tokenizer).with_context(|| format!("in `{}`", path.display())).map(Some);
        }
        let path = directory.join("tokenizer_config.json");
        let config = optional_json(&path)?;
        let Some(value) =
            config.as_ref().and_then(|config| config.get("chat_template")).filter(|value| !value.is_null())
        else {
            return Ok(None);
        };
        let source = match value {
            serde_json::Value::String(source) => source,
            serde_json::Value::Array(named) => named
                .iter()
                .find(|entry| entry.get("name").and_then(serde_json::Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template")?.as_str())
                .ok_or_else(|| anyhow!("`{}` lists chat templates, but none named `default`", path.display()))?,
            _ => bail!("`chat_template` in `{}` is neither a text nor a list of named templates", path.display()),
        };
        Self::new(source.to_owned(), tokenizer).with_context(|| format!("in `{}`", path.display())).map(Some)
    }

    /// Compiles a template; the tokenizer gives `bos_token` and its like, and the tokens that may end a turn.
    pub fn new(source: String, tokenizer: &Tokenizer) -> Result<Self> {
        let mut environment = python::environment();
        environment
            .add_template_owned(NAME, python::without_generation_tags(&source))
            .map_err(|error| anyhow!("the chat template does not compile: {error:#}"))?;
        for (name, token) in tokenizer.named_tokens() {
            environment.add_global(name.clone(), Value::from(token.as_str()));
        }
        let (bos, eos) = (tokenizer.bos_token(), tokenizer.eos_token());
        let mut turn_ends = tokenizer.special_tokens();
        turn_ends.retain(|(_, text)| !text.is_empty() && (bos != Some(text.as_str()) || bos == eos));
        turn_ends.sort_by_key(|(_, text)| std::cmp::Reverse(text.len()));
        Ok(Self { source, environment, turn_ends })
    }

    /// The conversation as the model expects it, as transformers' `apply_chat_template` renders it.
    ///
    /// **Errors**: the template refuses the conversation (`raise_exception`), such as one with a system turn that the
    /// model does not know; what to do then is the caller's to decide.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).expect("the template was added when it was compiled");
        // transformers passes `tools` and `documents` as `None`, not as undefined; `tools is not none` tells them apart.
        let context = minijinja::context! {
            messages => Value::from_serialize(messages),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
        };
        template.render(context).map_err(|error| match python::raised(&error) {
            Some(message) => anyhow!("the chat template refuses this conversation: {message}"),
            None => anyhow!("the chat template fails on this conversation: {error:#}"),
        })
    }

    /// The whole conversation and the byte ranges that a model is trained to write: every assistant turn with its
    /// end-of-turn token, without the white space after it.
    ///
    /// **Errors**: those of [`ChatTemplate::render`], and an assistant turn that the template leaves out or rewrites.
    pub fn render_for_training(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        training::render(self, messages)
    }

    /// The special token that directly follows an assistant's turn, if the template writes one.
    pub fn end_of_turn_token(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const CONTENT: &str = "An unmistakable answer.";
        let text = self.render(&[Message::user("Hi"), Message::assistant(CONTENT)], false).ok()?;
        let end = text.rfind(CONTENT)? + CONTENT.len();
        let (token, _) = self.turn_end(&text, end)?;
        (tokenizer.token_text(token)? == self.turn_end_text(token)?).then_some(token)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The special token that follows `text[at..]` after white space at most, and where it ends.
    fn turn_end(&self, text: &str, at: usize) -> Option<(u32, usize)> {
        let rest = text[at..].trim_start();
        let start = text.len() - rest.len();
        let (id, token) = self.turn_ends.iter().find(|(_, token)| rest.starts_with(token.as_str()))?;
        Some((*id, start + token.len()))
    }

    fn turn_end_text(&self, id: u32) -> Option<&str> {
        self.turn_ends.iter().find(|(end, _)| *end == id).map(|(_, text)| text.as_str())
    }
}

/// Token ids of a rendered prompt.
///
/// A template may or may not write the BOS token. Where it does, the tokenizer must not add a second one
/// (**source**: lm-evaluation-harness, `HFLM.tok_encode`).
pub fn encode_prompt(tokenizer: &Tokenizer, rendered: &str) -> Result<Vec<u32>> {
    tokenizer.encode(rendered, !begins_with_bos(tokenizer, rendered))
}

/// Token ids of any prompt; none for an empty text.
///
/// **Errors**: a conversation that is empty, that the template refuses, or for which there is no template.
pub fn prompt_token_ids(tokenizer: &Tokenizer, template: Option<&ChatTemplate>, prompt: &Prompt) -> Result<Vec<u32>> {
    match prompt {
        Prompt::Text(text) => encode_prompt(tokenizer, text),
        Prompt::TokenIds(token_ids) => Ok(token_ids.clone()),
        Prompt::Messages(messages) => {
            let template = template.context("the model has no chat template; send `prompt` instead of `messages`")?;
            ensure!(!messages.is_empty(), "the conversation has no messages");
            encode_prompt(tokenizer, &template.render(messages, true)?)
        }
    }
}

/// Token ids of a rendered conversation with the byte range of each, by the rule of [`encode_prompt`].
pub fn encode_prompt_with_offsets(tokenizer: &Tokenizer, rendered: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
    tokenizer.encode_with_offsets(rendered, !begins_with_bos(tokenizer, rendered))
}

fn begins_with_bos(tokenizer: &Tokenizer, rendered: &str) -> bool {
    tokenizer.bos_token().is_some_and(|bos| rendered.starts_with(bos))
}

#[cfg(test)]
mod tests;
