//! A model for tests that answers by a script, with a byte-level tokenizer.

use anyhow::{Result, bail};

use super::{primer, task::Task};
use crate::{
    chat_template::ChatTemplate,
    language_model::{Completion, FinishReason, LanguageModel, ModelIdentity, Prompt, Request, Score, ScoreRequest},
    tokenizer::{Tokenizer, toy},
};

/// The continuation of a prompt.
pub type Script = fn(&str) -> String;

/// Continues by its script, and finds a text likely when the script starts with it.
pub struct ScriptedModel {
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    identity: ModelIdentity,
    script: Script,
    /// Fails after so many answers, as a kill does.
    pub fail_after: Option<usize>,
    /// Answers given.
    pub served: usize,
    /// Longest sequence.
    pub max_model_len: usize,
}

/// Answers every primer question rightly.
pub fn answers_right(prompt: &str) -> String {
    let split = primer::Primer.load("".as_ref(), true).expect("the primer is built in");
    let mc = primer::PrimerMc.load("".as_ref(), true).expect("the primer is built in");
    let found = split.documents.iter().chain(&mc.documents).find(|document| prompt.contains(&document.text));
    let found = found.expect("only primer questions are asked");
    match found.choices.is_empty() {
        true => format!(" {}\nQuestion: and on it goes", found.shot_answer),
        false => format!(" {}", found.shot_answer),
    }
}

/// Never answers a primer question rightly.
pub fn answers_wrong(_prompt: &str) -> String {
    " no idea".to_owned()
}

impl ScriptedModel {
    pub fn new(script: Script) -> Result<Self> {
        let tokenizer = toy::byte_level(None, "<|endoftext|>");
        let identity =
            ModelIdentity { name: "scripted".into(), hash: "0".repeat(16), num_parameters: 0, dtype: "f32".into() };
        Ok(Self { tokenizer, chat_template: None, identity, script, fail_after: None, served: 0, max_model_len: 4096 })
    }

    /// Gives the model ChatML.
    pub fn give_chat_template(&mut self) -> Result<()> {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        self.chat_template = Some(ChatTemplate::new(source.to_owned(), &self.tokenizer)?);
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        if self.fail_after == Some(self.served) {
            bail!("killed by the test");
        }
        self.served += 1;
        Ok(())
    }
}

impl LanguageModel for ScriptedModel {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        for request in requests {
            self.count()?;
            let prompt = match &request.prompt {
                Prompt::Text(text) => text.clone(),
                Prompt::TokenIds(ids) => self.tokenizer.decode(ids, false)?,
                Prompt::Messages(messages) => messages.last().map(|turn| turn.content.clone()).unwrap_or_default(),
            };
            on_result(Completion {
                id: request.id,
                index: 0,
                text: (self.script)(&prompt),
                token_ids: Vec::new(),
                finish_reason: FinishReason::Stop,
                prompt_tokens: 0,
                logprobs: None,
                error: None,
            })?;
        }
        Ok(())
    }

    fn score(
        &mut self,
        requests: &mut dyn Iterator<Item = ScoreRequest>,
        on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        // The engine finishes in any order: the second of a pair comes first.
        let requests: Vec<_> = requests.collect();
        for pair in requests.chunks(2) {
            for request in pair.iter().rev() {
                self.count()?;
                let context = self.tokenizer.decode(&request.context_token_ids, false)?;
                let choice = self.tokenizer.decode(&request.continuation_token_ids, false)?;
                let is_greedy = (self.script)(&context).trim() == choice.trim();
                let logprob = if is_greedy { -0.25 } else { -10.5 };
                let id = request.id.clone();
                on_result(Score { id, logprob, is_greedy, token_logprobs: Vec::new(), error: None })?;
            }
        }
        Ok(())
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}
