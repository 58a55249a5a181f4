//! A model that answers by a script, for the stages' own code without a trained model: the tokenizer of a fixture, and a
//! closure in place of a decoder.

use anyhow::Result;
use glan::{
    chat_template::ChatTemplate,
    language_model::{
        Completion, FinishReason, LanguageModel, ModelIdentity, Prompt, Request, SamplingParams, Score, ScoreRequest,
    },
    tokenizer::Tokenizer,
};

use super::support::root;

/// Continues a prompt by a closure.
pub struct ScriptedModel<F> {
    tokenizer: Tokenizer,
    identity: ModelIdentity,
    script: F,
}

impl<F: FnMut(&str, &SamplingParams) -> String> ScriptedModel<F> {
    /// `name` is that of the results' folder.
    pub fn new(name: &str, script: F) -> Result<Self> {
        let tokenizer = Tokenizer::load(&root().join("tests/fixtures/models/llama"))?;
        let identity = ModelIdentity { name: name.into(), hash: name.into(), num_parameters: 0, dtype: "f32".into() };
        Ok(Self { tokenizer, identity, script })
    }
}

impl<F: FnMut(&str, &SamplingParams) -> String> LanguageModel for ScriptedModel<F> {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        for request in requests {
            let Prompt::Text(prompt) = &request.prompt else { anyhow::bail!("expected a text that fits") };
            let text = (self.script)(prompt, &request.sampling);
            on_result(Completion {
                id: request.id,
                index: 0,
                text,
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
        _requests: &mut dyn Iterator<Item = ScoreRequest>,
        _on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        anyhow::bail!("this script has no likelihoods")
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        None
    }

    fn max_model_len(&self) -> usize {
        1 << 20
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}
