//! Bodies of OpenAI's completions and chat-completions API, as `glan serve` and `--format openai-batch` read them.
//!
//! OpenAI's names and defaults (temperature 1), and those of vLLM's extra parameters that the engine has. What the
//! engine cannot do is refused by name unless its value asks for nothing; only bookkeeping fields are passed over. So
//! an answer never differs silently from what was asked for.

mod batch;
mod client;
mod constraint;
mod prompt;
mod reply;

use anyhow::Result;
use serde_json::Value;

pub use self::{
    batch::{BatchJob, BatchRow},
    client::{chat_body, read_chat_reply},
    reply::{ChunkWriter, ErrorBody, Labels, error_status, whole_reply},
};
use super::fields::{FieldError, Fields, strings};
use crate::language_model::{Prompt, Request, SamplingParams};

/// Most answers per prompt (OpenAI's bound).
const MAX_N: u64 = 128;
/// Most prompts of one body (OpenAI's bound).
const MAX_PROMPTS: usize = 2048;
/// Most stop strings: all of them are searched for after every token.
const MAX_STOPS: usize = 16;
/// Most log-probabilities per position (OpenAI's bound).
const MAX_TOP_LOGPROBS: u64 = 20;
/// OpenAI's default for the older endpoint; the chat endpoint's is what the context leaves.
const COMPLETIONS_MAX_TOKENS: usize = 16;

/// Fields that change no answer: who asks, and how OpenAI's own service books and stores it.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "parallel_tool_calls",
];

/// The two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
}

impl Endpoint {
    /// The endpoint at a path.
    pub fn at(path: &str) -> Option<Self> {
        [Self::ChatCompletions, Self::Completions].into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// Where it is served.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    /// How ids of its replies begin.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chatcmpl-",
            Self::Completions => "cmpl-",
        }
    }
}

/// What a body asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenAiRequest {
    /// How the reply is laid out.
    pub endpoint: Endpoint,
    /// Which model; left out, it is the one that there is.
    pub model: Option<String>,
    /// At least one; a conversation is always alone.
    pub prompts: Vec<Prompt>,
    /// For each prompt. Its seed counts only where `seed` is given.
    pub sampling: SamplingParams,
    /// The seed that the body names.
    pub seed: Option<u64>,
    /// Whether the reply comes as server-sent events.
    pub is_streamed: bool,
    /// Whether the stream ends with the usage.
    pub includes_usage: bool,
}

impl OpenAiRequest {
    /// Reads a body.
    ///
    /// **Errors**: [`FieldError`] where one field is at fault.
    pub fn parse(endpoint: Endpoint, mut fields: Fields) -> Result<Self> {
        let fields = &mut fields;
        for name in IGNORED {
            fields.take(name, "anything", |_| Some(()))?;
        }
        let model = fields.take_string("model")?;
        let prompts = match endpoint {
            Endpoint::ChatCompletions => vec![Prompt::Messages(prompt::take_messages(fields)?)],
            Endpoint::Completions => prompt::take_prompts(fields)?,
        };
        let (is_streamed, includes_usage) = take_streaming(fields)?;
        let sampling = take_sampling(endpoint, fields)?;
        let seed = fields.take("seed", "a whole number", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })?;
        refuse_unsupported(fields, sampling.n)?;
        std::mem::replace(fields, Fields::of(Value::Object(serde_json::Map::new()))?).finish()?;
        let sampling = SamplingParams { seed: seed.unwrap_or_default(), ..sampling };
        Ok(Self { endpoint, model, prompts, sampling, seed, is_streamed, includes_usage })
    }

    /// Answers in all.
    pub fn num_answers(&self) -> usize {
        self.prompts.len() * self.sampling.n
    }

    /// One request per prompt, under ids that `name` makes of the index of its first answer.
    pub fn into_requests(self, name: impl Fn(usize) -> String) -> Vec<Request> {
        let Self { prompts, sampling, .. } = self;
        let request = |(place, prompt)| Request { id: name(place * sampling.n), prompt, sampling: sampling.clone() };
        prompts.into_iter().enumerate().map(request).collect()
    }
}

/// `stream` and `stream_options`: whether the reply is streamed, and whether it ends with the usage.
fn take_streaming(fields: &mut Fields) -> Result<(bool, bool)> {
    let is_streamed = fields.take_bool("stream")?.unwrap_or(false);
    let Some(mut options) = fields.take_object("stream_options")? else { return Ok((is_streamed, false)) };
    if !is_streamed {
        let message = "field `stream_options`: allowed only with `stream`: true";
        return Err(FieldError::new("stream_options", message).into());
    }
    let includes_usage = options.take_bool("include_usage")?.unwrap_or(false);
    // Random padding of OpenAI's own streams; ours have none either way.
    options.take_bool("include_obfuscation")?;
    options.finish()?;
    Ok((is_streamed, includes_usage))
}

fn take_sampling(endpoint: Endpoint, fields: &mut Fields) -> Result<SamplingParams> {
    let default = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let stop = fields.take("stop", "a string or a list of at most 16 strings, none of them empty", |value| {
        let list = value.as_str().map(|one| vec![one.to_owned()]).or_else(|| strings(value))?;
        (list.len() <= MAX_STOPS && list.iter().all(|stop| !stop.is_empty())).then_some(list)
    })?;
    let n = fields.take("n", "a whole number from 1 to 128", |value| {
        value.as_u64().filter(|n| (1..=MAX_N).contains(n)).and_then(|n| usize::try_from(n).ok())
    })?;
    let top_k = fields.take("top_k", "a whole number of at least 0, or -1 for all tokens", |value| {
        if value.as_i64() == Some(-1) { Some(0) } else { usize::try_from(value.as_u64()?).ok() }
    })?;
    Ok(SamplingParams {
        max_new_tokens: take_max_tokens(endpoint, fields)?,
        temperature: fields
            .take_number("temperature", "a number of at least 0", |number| number >= 0.0)?
            .unwrap_or(default.temperature),
        top_p: fields
            .take_number("top_p", "a number above 0 and at most 1", |number| number > 0.0 && number <= 1.0)?
            .unwrap_or(default.top_p),
        top_k: top_k.unwrap_or(default.top_k),
        min_p: fields
            .take_number("min_p", "a number from 0 to 1", |number| (0.0..=1.0).contains(&number))?
            .unwrap_or(default.min_p),
        repetition_penalty: fields
            .take_number("repetition_penalty", "a number above 0", |number| number > 0.0)?
            .unwrap_or(default.repetition_penalty),
        n: n.unwrap_or(default.n),
        stop: stop.unwrap_or_default(),
        logprobs: take_logprobs(endpoint, fields)?,
        constraint: constraint::take(fields)?,
        ignore_eos: fields.take_bool("ignore_eos")?.unwrap_or(default.ignore_eos),
        ..default
    })
}

/// `max_tokens`, or its newer name on the chat endpoint. The engine cuts it to what the context leaves.
fn take_max_tokens(endpoint: Endpoint, fields: &mut Fields) -> Result<usize> {
    let older = fields.take_count("max_tokens", 1)?;
    let (newer, default) = match endpoint {
        Endpoint::ChatCompletions => (fields.take_count("max_completion_tokens", 1)?, usize::MAX),
        Endpoint::Completions => (None, COMPLETIONS_MAX_TOKENS),
    };
    if let (Some(older), Some(newer)) = (older, newer)
        && older != newer
    {
        let message = format!(
            "field `max_completion_tokens`: it is {newer}, and `max_tokens`, its older name, is {older}; give one of them"
        );
        return Err(FieldError::new("max_completion_tokens", message).into());
    }
    Ok(newer.or(older).unwrap_or(default))
}

/// Chat has a switch and a number, the older endpoint a number alone.
fn take_logprobs(endpoint: Endpoint, fields: &mut Fields) -> Result<Option<usize>> {
    let count = |value: &Value| value.as_u64().filter(|&count| count <= MAX_TOP_LOGPROBS).map(|count| count as usize);
    match endpoint {
        Endpoint::Completions => fields.take("logprobs", "a whole number from 0 to 20", count),
        Endpoint::ChatCompletions => {
            let is_wanted = fields.take_bool("logprobs")?.unwrap_or(false);
            let top = fields.take("top_logprobs", "a whole number from 0 to 20", count)?;
            if !is_wanted && top.is_some_and(|top| top > 0) {
                let message = "field `top_logprobs`: allowed only with `logprobs`: true";
                return Err(FieldError::new("top_logprobs", message).into());
            }
            Ok(is_wanted.then(|| top.unwrap_or(0)))
        }
    }
}

/// Parameters that the engine does not have pass where their value asks for nothing; clients often send such.
fn refuse_unsupported(fields: &mut Fields, n: usize) -> Result<()> {
    type Neutral = fn(&Value) -> bool;
    let is_empty: Neutral = |value| {
        value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_str().is_some_and(str::is_empty)
    };
    let is_zero: Neutral = |value| value.as_f64() == Some(0.0);
    let is_one: Neutral = |value| value.as_f64() == Some(1.0);
    let is_false: Neutral = |value| value.as_bool() == Some(false);
    let is_true: Neutral = |value| value.as_bool() == Some(true);
    let is_no_call: Neutral = |value| matches!(value.as_str(), Some("none" | "auto"));
    let is_text: Neutral = |value| matches!(value.as_array().map(Vec::as_slice), Some([one]) if one == "text");
    let best_of = fields.take_count("best_of", 1)?;
    if best_of.is_some_and(|best_of| best_of != n) {
        return Err(unsupported("best_of").into());
    }
    for (name, is_neutral) in [
        ("frequency_penalty", is_zero),
        ("presence_penalty", is_zero),
        ("logit_bias", is_empty),
        ("suffix", is_empty),
        ("echo", is_false),
        ("tools", is_empty),
        ("functions", is_empty),
        ("tool_choice", is_no_call),
        ("function_call", is_no_call),
        ("modalities", is_text),
        ("audio", is_empty),
        ("prediction", is_empty),
        ("reasoning_effort", is_empty),
        ("verbosity", is_empty),
        ("web_search_options", is_empty),
        ("use_beam_search", is_false),
        ("length_penalty", is_one),
        ("min_tokens", is_zero),
        ("stop_token_ids", is_empty),
        ("bad_words", is_empty),
        ("include_stop_str_in_output", is_false),
        ("skip_special_tokens", is_true),
        ("spaces_between_special_tokens", is_true),
        ("add_generation_prompt", is_true),
        ("continue_final_message", is_false),
        ("add_special_tokens", is_false),
        ("chat_template", is_empty),
        ("chat_template_kwargs", is_empty),
        ("prompt_logprobs", is_zero),
        ("guided_grammar", is_empty),
    ] {
        if fields.take(name, "anything", |value| Some(is_neutral(value)))? == Some(false) {
            return Err(unsupported(name).into());
        }
    }
    Ok(())
}

fn unsupported(name: &str) -> FieldError {
    FieldError::new(name, format!("field `{name}`: this server does not support it; leave it out"))
}

#[cfg(test)]
mod tests;
