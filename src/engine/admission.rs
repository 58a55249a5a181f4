//! From a request to sequences, or to the reason why it cannot be served. A bad request fails alone.

use anyhow::{Context, Result, ensure};

use super::{Engine, Incoming, Outcome, Runner, Task, generation::Generation, scoring, sequence::Sequence};
use crate::{
    chat_template::encode_prompt,
    language_model::{Completion, Prompt, Request, SamplingParams, ScoreRequest},
};

impl<R: Runner> Engine<R> {
    /// Queues the work, or says what is wrong with it: one failed result per answer that was asked for.
    pub(super) fn admit(&mut self, work: Incoming) -> Vec<Outcome> {
        match work {
            Incoming::Generate { request, is_streamed } => match self.admit_request(&request, is_streamed) {
                Ok(()) => Vec::new(),
                Err(error) => (0..request.sampling.n.max(1))
                    .map(|index| {
                        let failed = Completion::failed(&request.id, format!("{error:#}"));
                        Outcome::Completion(Completion { index, ..failed })
                    })
                    .collect(),
            },
            Incoming::Score(request) => {
                let id = request.id.clone();
                match self.admit_scoring(request) {
                    Ok(()) => Vec::new(),
                    Err(error) => vec![Outcome::Score(scoring::failed(id, format!("{error:#}")))],
                }
            }
        }
    }

    fn admit_request(&mut self, request: &Request, is_streamed: bool) -> Result<()> {
        let sampling = &request.sampling;
        check_sampling(sampling)?;
        let prompt = self.prompt_token_ids(&request.prompt)?;
        ensure!(
            prompt.len() < self.max_model_len,
            "the prompt has {} tokens; with at least one new token that is more than the context of {}",
            prompt.len(),
            self.max_model_len
        );
        let max_new_tokens = sampling.max_new_tokens.min(self.max_model_len - prompt.len());
        let grammar = match &sampling.constraint {
            Some(constraint) => Some(self.grammars.compile(constraint, &self.vocabulary)?),
            None => None,
        };
        for index in 0..sampling.n {
            let state = grammar.as_ref().map(|grammar| grammar.start());
            let tokenizer = &self.vocabulary.tokenizer;
            let mut generation =
                Generation::new(request, index, &prompt, max_new_tokens, state, tokenizer, is_streamed);
            let forced = generation.first_tokens(&self.vocabulary);
            let is_finished = generation.is_finished();
            let task = Task::Generate(Box::new(generation));
            let mut sequence = Sequence::new(self.new_sequence_id(), prompt.clone(), prompt.len() - 1, task);
            forced.into_iter().for_each(|token_id| sequence.push(token_id));
            sequence.is_finished = is_finished;
            self.scheduler.add(sequence);
        }
        Ok(())
    }

    fn admit_scoring(&mut self, request: ScoreRequest) -> Result<()> {
        let (scoring, input, first_wanted) =
            scoring::Scoring::prepare(request, self.prefix_token_id, self.max_model_len, self.runner.vocab_size())?;
        let id = self.new_sequence_id();
        self.scheduler.add(Sequence::new(id, input, first_wanted, Task::Score(scoring)));
        Ok(())
    }

    fn new_sequence_id(&mut self) -> u64 {
        self.next_sequence_id += 1;
        self.next_sequence_id - 1
    }

    fn prompt_token_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokenizer = &self.vocabulary.tokenizer;
        let mut token_ids = match prompt {
            Prompt::Text(text) => encode_prompt(tokenizer, text)?,
            Prompt::TokenIds(token_ids) => token_ids.clone(),
            Prompt::Messages(messages) => {
                let template = self.chat_template.as_ref();
                let template =
                    template.context("the model has no chat template; send `prompt` instead of `messages`")?;
                ensure!(!messages.is_empty(), "the conversation has no messages");
                let rendered =
                    template.render(messages, true).context("the chat template refuses this conversation")?;
                encode_prompt(tokenizer, &rendered)?
            }
        };
        if token_ids.is_empty() {
            let prefix = self.prefix_token_id;
            token_ids
                .push(prefix.context("the prompt is empty and the model names no BOS or EOS token to begin with")?);
        }
        let vocab_size = self.runner.vocab_size();
        if let Some(foreign) = token_ids.iter().find(|&&id| id as usize >= vocab_size) {
            anyhow::bail!("token id {foreign} of the prompt is outside the model's vocabulary of {vocab_size}");
        }
        Ok(token_ids)
    }
}

/// Ranges that every caller must keep; whoever parsed the request may have said it better already.
fn check_sampling(sampling: &SamplingParams) -> Result<()> {
    let within = |value: f32, low: f32, high: f32| (low..=high).contains(&value);
    ensure!(sampling.max_new_tokens >= 1, "max_new_tokens is 0; at least 1 token must be asked for");
    ensure!(sampling.n >= 1, "n is 0; at least 1 answer must be asked for");
    ensure!(within(sampling.temperature, 0.0, f32::MAX), "temperature is {}; expected 0 or more", sampling.temperature);
    ensure!(
        within(sampling.top_p, f32::MIN_POSITIVE, 1.0),
        "top_p is {}; expected more than 0 and at most 1",
        sampling.top_p
    );
    ensure!(within(sampling.min_p, 0.0, 1.0), "min_p is {}; expected 0 to 1", sampling.min_p);
    ensure!(
        within(sampling.repetition_penalty, f32::MIN_POSITIVE, f32::MAX),
        "repetition_penalty is {}; expected more than 0",
        sampling.repetition_penalty
    );
    ensure!(sampling.stop.iter().all(|stop| !stop.is_empty()), "a stop string is empty");
    Ok(())
}
