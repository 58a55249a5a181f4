//! What the engine keeps about a sequence that generates: its sampler, its constraint, its stop strings, its end.

use anyhow::Result;

use super::{
    grammar::{GrammarError, GrammarState, TokenMask},
    output_text::{OutputText, cut_at_stop},
    sampler::Sampler,
    sequence::Sequence,
};
use crate::{
    language_model::{Completion, FinishReason, Request, TokenLogprob},
    tokenizer::Tokenizer,
};

/// What all sequences of a model share: how ids become text, and which ids end an output.
pub struct Vocabulary {
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// The state of one answer.
pub struct Generation {
    request_id: String,
    index: usize,
    /// Already cut to what the model's context leaves.
    max_new_tokens: usize,
    /// Whether an end-of-sequence token ends the answer.
    ends_at_eos: bool,
    stop: Vec<String>,
    sampler: Sampler,
    constraint: Option<GrammarState>,
    /// What the constraint allows next, when that is known ahead of the logits.
    mask: Option<Result<TokenMask, GrammarError>>,
    /// Kept only where stop strings are watched or text is streamed.
    text: Option<OutputText>,
    is_streamed: bool,
    logprobs: Option<Vec<TokenLogprob>>,
    finish_reason: Option<FinishReason>,
    /// Whether the last token is the end-of-sequence token that ended the answer: it has no text.
    ended_by_eos: bool,
    error: Option<String>,
}

impl Generation {
    /// Answer `index` of a request whose prompt is `prompt`, of at most `max_new_tokens` tokens.
    pub fn new(
        request: &Request,
        index: usize,
        prompt: &[u32],
        max_new_tokens: usize,
        constraint: Option<GrammarState>,
        tokenizer: &Tokenizer,
        is_streamed: bool,
    ) -> Self {
        let sampling = &request.sampling;
        let watches_text = is_streamed || !sampling.stop.is_empty();
        Self {
            request_id: request.id.clone(),
            index,
            max_new_tokens,
            // A constraint allows an end only where the output is complete, and then there is nothing to go on with.
            ends_at_eos: !sampling.ignore_eos || constraint.is_some(),
            stop: sampling.stop.clone(),
            sampler: Sampler::new(sampling, index, prompt),
            constraint,
            mask: None,
            text: watches_text.then(|| OutputText::new(sampling.stop.clone(), tokenizer.stream_decoder())),
            is_streamed,
            logprobs: sampling.logprobs.map(|_| Vec::new()),
            finish_reason: None,
            ended_by_eos: false,
            error: None,
        }
    }

    /// Whether the answer is complete.
    pub fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Whether its text is handed out as it grows.
    pub fn is_streamed(&self) -> bool {
        self.is_streamed
    }

    /// Whether [`Generation::prepare_mask`] has something to do.
    pub fn wants_mask(&self) -> bool {
        self.constraint.is_some() && self.mask.is_none() && !self.is_finished()
    }

    /// Finds out what the constraint allows next, ahead of the logits.
    pub fn prepare_mask(&mut self) {
        self.mask = self.constraint.as_mut().map(GrammarState::allowed);
    }

    /// The tokens that the constraint forces at the very start: the model reads them along with the prompt.
    pub fn first_tokens(&mut self, vocabulary: &Vocabulary) -> Vec<u32> {
        self.collect_tokens(|generation, token_ids| generation.try_forced_tokens(0, vocabulary, token_ids))
    }

    /// The answer's next tokens, of which the first is its `num_output`-th (from 0) and drawn from a row of logits;
    /// behind it what the constraint then forces. Empty when none can follow, because it failed or its constraint ended
    /// without an end-of-sequence token.
    pub fn next_tokens(&mut self, row: &[f32], num_output: usize, vocabulary: &Vocabulary) -> Vec<u32> {
        self.collect_tokens(|generation, token_ids| {
            generation.try_next_token(row, num_output, vocabulary, token_ids)?;
            generation.try_forced_tokens(num_output + token_ids.len(), vocabulary, token_ids)
        })
    }

    fn collect_tokens(&mut self, add: impl FnOnce(&mut Self, &mut Vec<u32>) -> Result<()>) -> Vec<u32> {
        let mut token_ids = Vec::new();
        if let Err(error) = add(self, &mut token_ids) {
            self.finish_reason = Some(FinishReason::Error);
            self.error = Some(format!("{error:#}"));
        }
        token_ids
    }

    fn try_next_token(
        &mut self,
        row: &[f32],
        num_output: usize,
        vocabulary: &Vocabulary,
        token_ids: &mut Vec<u32>,
    ) -> Result<()> {
        if self.mask.is_none() {
            self.prepare_mask();
        }
        let mask = self.mask.take().transpose()?;
        if self.constraint.as_ref().is_some_and(GrammarState::is_finished) {
            self.finish_reason = Some(FinishReason::Stop);
            return Ok(());
        }
        let (token_id, logprob) = self.sampler.sample(row, mask.as_ref())?;
        if let (Some(logprobs), Some(logprob)) = (&mut self.logprobs, logprob) {
            logprobs.push(logprob);
        }
        self.accept(token_id, num_output, vocabulary, token_ids)
    }

    /// Appends tokens as long as the constraint leaves no choice: what a mask of one token would give, without asking
    /// the model. Not where log-probabilities are wanted, since these come from the model alone.
    fn try_forced_tokens(
        &mut self,
        num_output: usize,
        vocabulary: &Vocabulary,
        token_ids: &mut Vec<u32>,
    ) -> Result<()> {
        let num_before = token_ids.len();
        while !self.is_finished() && self.logprobs.is_none() {
            let Some(token_id) = self.constraint.as_mut().and_then(GrammarState::forced_token) else { break };
            self.sampler.force(token_id);
            self.accept(token_id, num_output + token_ids.len() - num_before, vocabulary, token_ids)?;
        }
        Ok(())
    }

    /// Adds the answer's `num_output`-th token and sees whether it is the last.
    fn accept(
        &mut self,
        token_id: u32,
        num_output: usize,
        vocabulary: &Vocabulary,
        token_ids: &mut Vec<u32>,
    ) -> Result<()> {
        if self.ends_at_eos && vocabulary.eos_token_ids.contains(&token_id) {
            token_ids.push(token_id);
            self.ended_by_eos = true;
            self.finish_reason = Some(FinishReason::Stop);
            return Ok(());
        }
        let is_complete = match &mut self.constraint {
            Some(constraint) => constraint.accept(token_id)?,
            None => false,
        };
        token_ids.push(token_id);
        let is_stopped = match &mut self.text {
            Some(text) => text.push(token_id),
            None => false,
        };
        if is_complete || is_stopped {
            self.finish_reason = Some(FinishReason::Stop);
        } else if num_output + 1 >= self.max_new_tokens {
            self.finish_reason = Some(FinishReason::Length);
        }
        Ok(())
    }

    /// Text that has become final since the last call; empty unless it is streamed.
    pub fn take_shown(&mut self) -> &str {
        self.text.as_mut().map_or("", OutputText::take_shown)
    }

    /// The answer of a finished sequence.
    pub fn into_completion<T>(self, sequence: &Sequence<T>, tokenizer: &Tokenizer) -> Completion {
        let token_ids = sequence.output_token_ids().to_vec();
        let with_text = &token_ids[..token_ids.len() - usize::from(self.ended_by_eos)];
        // Decoded in one go: the text is then a function of the ids alone.
        let (text, decode_error) = match tokenizer.decode(with_text, true) {
            Ok(text) => (cut_at_stop(text, &self.stop), None),
            Err(error) => (String::new(), Some(format!("cannot decode the output: {error:#}"))),
        };
        let error = self.error.or(decode_error);
        let finish_reason = match (&error, self.finish_reason) {
            (None, Some(reason)) => reason,
            _ => FinishReason::Error,
        };
        Completion {
            id: self.request_id,
            index: self.index,
            text,
            token_ids,
            finish_reason,
            prompt_tokens: sequence.num_prompt_tokens,
            logprobs: self.logprobs,
            error,
        }
    }
}
