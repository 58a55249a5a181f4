//! The seam between the stages and whatever answers their prompts.
//!
//! Stages see only [`LanguageModel`]: the engine implements it, and so does the scripted model of the tests. Requests
//! go in as an iterator (a stage's backlog may be longer than memory), results come back through a callback in
//! whatever order they finish; [`crate::records::Ordered`] puts them back in line.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{chat_template::ChatTemplate, tokenizer::Tokenizer};

/// One turn of a conversation, as Hugging Face's `messages` column holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A user turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// An assistant turn.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }

    /// A system turn.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }
}

/// What a request asks the model to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Plain text; the tokenizer's own special tokens (such as BOS) are added.
    Text(String),
    /// Token ids, taken as they are.
    TokenIds(Vec<u32>),
    /// A conversation, rendered by the model's chat template with the generation prompt.
    Messages(Vec<Message>),
}

/// What the generated text must match.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// A JSON schema; the output is compact JSON.
    JsonSchema(serde_json::Value),
    /// A regular expression that the whole output matches.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
}

/// How to draw the continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Most tokens to generate, the stop token included.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens with at least this probability. 1 is off.
    pub top_p: f32,
    /// The k likeliest tokens. 0 is off.
    pub top_k: usize,
    /// Tokens at least this fraction as likely as the likeliest. 0 is off.
    pub min_p: f32,
    /// Divides positive (multiplies negative) logits of tokens already seen, prompt included. 1 is off.
    pub repetition_penalty: f32,
    /// Answers per prompt.
    pub n: usize,
    /// Seed of this request's random stream.
    pub seed: u64,
    /// Strings that end the output; they are cut from the text.
    pub stop: Vec<String>,
    /// Log-probabilities of this many likeliest tokens per position (0: of the chosen one alone). `None` is off.
    pub logprobs: Option<usize>,
    /// What the output must match.
    pub constraint: Option<Constraint>,
    /// Go on past the end-of-sequence token (for benchmarks).
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            n: 1,
            seed: 0,
            stop: Vec::new(),
            logprobs: None,
            constraint: None,
            ignore_eos: false,
        }
    }
}

/// One prompt with its sampling settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Comes back in every result of this request.
    pub id: String,
    /// What to continue.
    pub prompt: Prompt,
    /// How to continue it.
    pub sampling: SamplingParams,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token, a stop string, or the end of the constraint.
    Stop,
    /// `max_new_tokens` or the model's context is used up.
    Length,
    /// The request could not be served; [`Completion::error`] says why.
    Error,
}

/// The log-probability of one generated token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The chosen token.
    pub token_id: u32,
    /// Its natural-log probability under the model (before temperature and filters).
    pub logprob: f32,
    /// The likeliest tokens with their log-probabilities, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(u32, f32)>,
}

/// One generated answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The request's id.
    pub id: String,
    /// Which of the request's `n` answers this is.
    pub index: usize,
    /// The text, without special tokens and stop strings.
    pub text: String,
    /// All generated ids, the stop token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Per-token log-probabilities, where asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// What went wrong with this request alone.
    pub error: Option<String>,
}

impl Completion {
    /// A result that says why a request could not be served.
    pub fn failed(id: impl Into<String>, error: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            index: 0,
            text: String::new(),
            token_ids: Vec::new(),
            finish_reason: FinishReason::Error,
            prompt_tokens: 0,
            logprobs: None,
            error: Some(error.into()),
        }
    }
}

/// A continuation whose likelihood is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRequest {
    /// Comes back in the result.
    pub id: String,
    /// Token ids before the continuation. Empty: the model's prefix token (BOS, else EOS) stands in.
    pub context_token_ids: Vec<u32>,
    /// Token ids to score; at least one.
    pub continuation_token_ids: Vec<u32>,
}

/// The likelihood of a continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The request's id.
    pub id: String,
    /// Sum of the natural-log probabilities of the continuation's tokens.
    pub logprob: f64,
    /// Whether every token of the continuation is the likeliest at its place.
    pub is_greedy: bool,
    /// One log-probability per token.
    pub token_logprobs: Vec<f32>,
    /// What went wrong with this request alone.
    pub error: Option<String>,
}

/// Something that continues and scores text.
pub trait LanguageModel {
    /// Tokens of prompts, contexts and scored continuations that it has computed so far; what it found in a cache is
    /// not among them.
    fn computed_prompt_tokens(&self) -> u64 {
        0
    }

    /// Serves every request; `on_result` is called once per answer, in the order in which they finish.
    ///
    /// A request that cannot be served (too long, bad schema) yields a [`Completion::failed`]; it never ends the run.
    ///
    /// **Errors**: those of `on_result`, of the device, and [`crate::error::Failure::Interrupted`].
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()>;

    /// Scores every continuation; `on_result` is called once per request, in any order.
    fn score(
        &mut self,
        requests: &mut dyn Iterator<Item = ScoreRequest>,
        on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()>;

    /// The model's tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// The model's chat template, if it has one.
    fn chat_template(&self) -> Option<&ChatTemplate>;

    /// Most tokens (prompt and answer together) of one sequence.
    fn max_model_len(&self) -> usize;

    /// What the run's records say of the model: its directory or name and a hash of its weights.
    fn identity(&self) -> &ModelIdentity;
}

/// Something that puts a text's meaning into a vector.
pub trait TextEncoder: Send + Sync {
    /// A vector of length one. It depends on the text alone, whatever else is encoded beside it.
    fn encode(&self, text: &str) -> Result<Vec<f32>>;

    /// What the run's records say of the model.
    fn identity(&self) -> &ModelIdentity;
}

/// Which model answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// As the user named it.
    pub name: String,
    /// First 16 hexadecimal digits of a BLAKE3 hash of config and weights.
    pub hash: String,
    /// Number of parameters.
    pub num_parameters: usize,
    /// `f32` or `bf16`.
    pub dtype: String,
}

/// Loads a model only when a stage turns out to need it.
pub type ModelLoader<'a> = dyn FnMut() -> Result<Box<dyn LanguageModel>> + 'a;
