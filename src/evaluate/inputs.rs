//! What a model is given for a question: the prompt as text and as token ids, cut to what the model can read.

use anyhow::{Context as _, Result};

use super::{
    plan::PlannedTask,
    prompt::{self, Context},
};
use crate::{
    chat_template::{ChatTemplate, encode_prompt},
    error::usage,
    language_model::{LanguageModel, Prompt, Request, SamplingParams, ScoreRequest},
    requests::encode_pair,
    tokenizer::Tokenizer,
};

/// What turns questions into a model's input. Everything is the model's, shared or copied, so that inputs can be made while
/// the model answers earlier ones.
pub struct Inputs {
    model_name: String,
    template: Option<ChatTemplate>,
    tokenizer: Tokenizer,
    max_model_len: usize,
}

impl Inputs {
    /// Those of a model.
    pub fn of(model: &dyn LanguageModel) -> Self {
        Self {
            model_name: model.identity().name.clone(),
            template: model.chat_template().cloned(),
            tokenizer: model.tokenizer().clone(),
            max_model_len: model.max_model_len(),
        }
    }

    /// The text before every answer to a document: one, or one per choice where the choices are contexts.
    ///
    /// **Errors**: usage, for a chat prompt and a model without a template.
    pub fn rendered(&self, planned: &PlannedTask, doc_id: usize) -> Result<Vec<String>> {
        planned.contexts(doc_id).iter().map(|context| self.render(context)).collect()
    }

    /// The text before an answer: as it stands, or rendered by the model's chat template.
    ///
    /// **Errors**: usage, when the model has no template.
    pub fn render(&self, context: &Context) -> Result<String> {
        let messages = match context {
            Context::Text(text) => return Ok(text.clone()),
            Context::Messages(messages) => messages,
        };
        let Some(template) = &self.template else {
            return Err(usage(format!(
                "`{}` has no chat template; leave out --apply-chat-template (evaluate.apply_chat_template = false)",
                self.model_name
            )));
        };
        let open = context.open_answer();
        // A template that refuses a system turn is given the conversation without it.
        let rendered = template.render(messages, open.is_none()).or_else(|error| {
            let rest: Vec<_> = messages.iter().filter(|turn| turn.role != "system").cloned().collect();
            if rest.len() == messages.len() { Err(error) } else { template.render(&rest, open.is_none()) }
        })?;
        match open {
            None => Ok(rendered),
            Some(answer) => prompt::left_open(&rendered, answer)
                .with_context(|| format!("the chat template does not write the answer's beginning `{answer}`")),
        }
    }

    /// The token ids of a prompt.
    ///
    /// **Errors**: as [`Self::render`].
    pub fn encode(&self, context: &Context) -> Result<Vec<u32>> {
        let text = self.render(context)?;
        match context {
            Context::Messages(_) => encode_prompt(&self.tokenizer, &text),
            Context::Text(_) => self.tokenizer.encode(&text, true),
        }
    }

    /// A prompt, and the token ids of it that the model reads.
    ///
    /// A prompt that does not fit keeps its end, as in the harness: room for the answer comes first.
    pub fn generation_request(
        &self,
        position: usize,
        context: Context,
        mut sampling: SamplingParams,
    ) -> Result<(Request, Vec<u32>)> {
        sampling.max_new_tokens = sampling.max_new_tokens.min(self.max_model_len / 2).max(1);
        let mut ids = self.encode(&context)?;
        let keep = self.max_model_len.saturating_sub(sampling.max_new_tokens).max(1);
        let is_cut = ids.len() > keep;
        ids.drain(..ids.len().saturating_sub(keep));
        let prompt = match context {
            Context::Text(text) if !is_cut => Prompt::Text(text),
            // Rendered here: the engine would close an answer that is left open, and knows no way round a refused turn.
            _ => Prompt::TokenIds(ids.clone()),
        };
        Ok((Request { id: position.to_string(), prompt, sampling }, ids))
    }

    /// Context and choice as token ids, cut on the left to what the model can read: all but the last token of both. The
    /// inner error is the choice's fault.
    pub fn score_request(&self, position: usize, context: &str, choice: &str) -> Result<Result<ScoreRequest, String>> {
        let (mut context_token_ids, continuation_token_ids) = encode_pair(&self.tokenizer, context, choice)?;
        if continuation_token_ids.is_empty() {
            return Ok(Err(format!("the choice `{choice}` has no token of its own")));
        }
        let excess = (context_token_ids.len() + continuation_token_ids.len()).saturating_sub(self.max_model_len + 1);
        context_token_ids.drain(..excess.min(context_token_ids.len()));
        Ok(Ok(ScoreRequest { id: position.to_string(), context_token_ids, continuation_token_ids }))
    }

    /// What the model reads for a scoring.
    pub fn model_input(&self, request: &ScoreRequest) -> Vec<u32> {
        let mut input = [&request.context_token_ids[..], &request.continuation_token_ids[..]].concat();
        input.pop();
        input.drain(..input.len().saturating_sub(self.max_model_len));
        input
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::scripted::{ScriptedModel, answers_right};

    #[test]
    fn a_prompt_that_is_too_long_keeps_its_end_and_room_for_the_answer() -> Result<()> {
        let mut model = ScriptedModel::new(answers_right)?;
        model.max_model_len = 50;
        let text = format!("{}end", "x".repeat(200));
        let sampling = SamplingParams { max_new_tokens: 20, ..SamplingParams::default() };
        let inputs = Inputs::of(&model);
        let (request, input) = inputs.generation_request(0, Context::Text(text.clone()), sampling)?;
        let Prompt::TokenIds(ids) = request.prompt else { panic!("a cut prompt is token ids") };
        assert_eq!(ids, input);
        assert_eq!((ids.len(), request.sampling.max_new_tokens), (30, 20));
        assert!(model.tokenizer().decode(&ids, false)?.ends_with("end"));
        // The last token of the choice is not read, so one more fits.
        let score = inputs.score_request(0, &text, " choice")?.expect("the choice has tokens");
        assert_eq!(score.context_token_ids.len() + score.continuation_token_ids.len(), 51);
        assert_eq!(inputs.model_input(&score).len(), 50);
        Ok(())
    }
}
