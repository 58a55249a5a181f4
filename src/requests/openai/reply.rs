//! Replies in OpenAI's form: whole, in chunks, and errors.

use anyhow::Error;
use serde_json::{Map, Value, json};

use super::Endpoint;
use crate::{
    language_model::{Completion, FinishReason, TokenLogprob},
    requests::fields::FieldError,
    tokenizer::Tokenizer,
};

/// JSON has no minus infinity; this is what OpenAI and vLLM write for it.
const LEAST_LOGPROB: f32 = -9999.0;

/// What every reply to one request is labelled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Which form.
    pub endpoint: Endpoint,
    /// The reply's id.
    pub id: String,
    /// Seconds since 1970; 0 in files, which must come out the same every time.
    pub created: u64,
    /// The model's name as the caller knows it.
    pub model: String,
}

/// An error in OpenAI's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// OpenAI's word for the kind, such as `invalid_request_error`.
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

impl ErrorBody {
    /// The caller's fault; names the field where the error does.
    pub fn invalid_request(error: &Error) -> Self {
        let param = error.downcast_ref::<FieldError>().map(|error| error.field.clone());
        Self { message: format!("{error:#}"), kind: "invalid_request_error", param, code: None }
    }

    /// What went wrong with one completion.
    pub fn of_completion(completion: &Completion, status: u16) -> Self {
        let message = completion.error.clone().unwrap_or_else(|| "the completion failed".to_owned());
        let kind = if status == 400 { "invalid_request_error" } else { "server_error" };
        Self { message, kind, param: None, code: None }
    }

    /// The body.
    pub fn to_value(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

/// The HTTP status of a completion that failed. A request that was never admitted (it has no prompt tokens), or whose
/// own constraint could not be kept, is the caller's fault; anything else is ours.
pub fn error_status(completion: &Completion, has_constraint: bool) -> u16 {
    if completion.prompt_tokens == 0 || has_constraint { 400 } else { 500 }
}

/// The reply to a request whose answers are all there, `n` per prompt, in order.
pub fn whole_reply(labels: &Labels, completions: &[Completion], n: usize, tokenizer: &Tokenizer) -> Value {
    let choices: Vec<Value> =
        completions.iter().enumerate().map(|(index, it)| choice(labels.endpoint, index, it, tokenizer)).collect();
    let mut usage = Usage::default();
    for (index, completion) in completions.iter().enumerate() {
        usage.add(completion, index.is_multiple_of(n));
    }
    let object = match labels.endpoint {
        Endpoint::ChatCompletions => "chat.completion",
        Endpoint::Completions => "text_completion",
    };
    json!({
        "id": labels.id,
        "object": object,
        "created": labels.created,
        "model": labels.model,
        "choices": choices,
        "usage": usage.to_value(),
    })
}

fn choice(endpoint: Endpoint, index: usize, completion: &Completion, tokenizer: &Tokenizer) -> Value {
    let finish_reason = finish_reason(completion);
    match endpoint {
        Endpoint::ChatCompletions => json!({
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": null},
            "logprobs": completion.logprobs.as_ref().map(|logprobs| chat_logprobs(logprobs, tokenizer)),
            "finish_reason": finish_reason,
        }),
        Endpoint::Completions => json!({
            "index": index,
            "text": completion.text,
            "logprobs": completion.logprobs.as_ref().map(|logprobs| text_logprobs(logprobs, &mut 0, tokenizer)),
            "finish_reason": finish_reason,
        }),
    }
}

fn finish_reason(completion: &Completion) -> &'static str {
    match completion.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Error => "error",
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

impl Usage {
    /// Answers to the same prompt share its tokens.
    fn add(&mut self, completion: &Completion, is_first_of_prompt: bool) {
        self.prompt_tokens += if is_first_of_prompt { completion.prompt_tokens } else { 0 };
        self.completion_tokens += completion.token_ids.len();
    }

    fn to_value(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }
}

/// A token's bytes; those of a special token are its name.
fn token_bytes(token_id: u32, tokenizer: &Tokenizer) -> Vec<u8> {
    if tokenizer.is_special(token_id) {
        return tokenizer.token_text(token_id).unwrap_or_default().into_bytes();
    }
    tokenizer.token_bytes(token_id)
}

/// The chat endpoint's form: one object per token.
fn chat_logprobs(logprobs: &[TokenLogprob], tokenizer: &Tokenizer) -> Value {
    let entry = |token_id: u32, logprob: f32| {
        let bytes = token_bytes(token_id, tokenizer);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        json!({"token": token, "logprob": logprob.max(LEAST_LOGPROB), "bytes": bytes})
    };
    let content: Vec<Value> = logprobs
        .iter()
        .map(|it| {
            let top: Vec<Value> = it.top.iter().map(|&(token_id, logprob)| entry(token_id, logprob)).collect();
            let mut chosen = entry(it.token_id, it.logprob);
            chosen["top_logprobs"] = top.into();
            chosen
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// The older endpoint's form: one list per column. `offset` is where the text of these tokens begins, in characters.
fn text_logprobs(logprobs: &[TokenLogprob], offset: &mut usize, tokenizer: &Tokenizer) -> Value {
    let text = |token_id: u32| String::from_utf8_lossy(&token_bytes(token_id, tokenizer)).into_owned();
    let (mut tokens, mut token_logprobs, mut top_logprobs, mut offsets) = (vec![], vec![], vec![], vec![]);
    for it in logprobs {
        let token = text(it.token_id);
        let mut top = Map::new();
        for (token_id, logprob) in it.top.iter().copied().chain([(it.token_id, it.logprob)]) {
            // Tokens that read the same (parts of characters) are one entry: the first, which is the likeliest.
            top.entry(text(token_id)).or_insert_with(|| json!(logprob.max(LEAST_LOGPROB)));
        }
        offsets.push(*offset);
        *offset += token.chars().count();
        tokens.push(token);
        token_logprobs.push(it.logprob.max(LEAST_LOGPROB));
        top_logprobs.push(Value::Object(top));
    }
    json!({"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs, "text_offset": offsets})
}

/// Writes a streamed reply as server-sent events.
pub struct ChunkWriter {
    labels: Labels,
    tokenizer: Tokenizer,
    n: usize,
    includes_usage: bool,
    usage: Usage,
    /// Per choice: characters of the tokens told so far, and whether the role was told.
    choices: Vec<(usize, bool)>,
    num_open: usize,
}

impl ChunkWriter {
    /// A stream of `num_choices` answers, `n` per prompt.
    pub fn new(labels: Labels, num_choices: usize, n: usize, includes_usage: bool, tokenizer: Tokenizer) -> Self {
        let choices = vec![(0, false); num_choices];
        Self { labels, tokenizer, n, includes_usage, usage: Usage::default(), choices, num_open: num_choices }
    }

    /// Whether every answer is complete and the stream has its end.
    pub fn is_finished(&self) -> bool {
        self.num_open == 0
    }

    /// New text of an answer, with the log-probabilities of its new tokens where they were asked for.
    pub fn text(&mut self, index: usize, text: &str, logprobs: &[TokenLogprob], out: &mut String) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        self.begin(index, out);
        let (offset, _) = &mut self.choices[index];
        let logprobs = (!logprobs.is_empty()).then(|| match self.labels.endpoint {
            Endpoint::ChatCompletions => chat_logprobs(logprobs, &self.tokenizer),
            Endpoint::Completions => text_logprobs(logprobs, offset, &self.tokenizer),
        });
        let content = match self.labels.endpoint {
            Endpoint::ChatCompletions => json!({"content": text}),
            Endpoint::Completions => text.into(),
        };
        self.chunk(index, Some(content), logprobs.as_ref(), None, out);
    }

    /// The end of an answer, and of the stream when it was the last.
    pub fn finish(&mut self, index: usize, rest: &str, completion: &Completion, out: &mut String) {
        self.begin(index, out);
        self.text(index, rest, &[], out);
        self.usage.add(completion, index.is_multiple_of(self.n));
        self.chunk(index, None, None, Some(finish_reason(completion)), out);
        self.num_open -= 1;
        if self.is_finished() {
            if self.includes_usage {
                let chunk = self.envelope(&json!([]), &self.usage.to_value());
                event(&chunk, out);
            }
            out.push_str("data: [DONE]\n\n");
        }
    }

    /// Ends the stream with an error: its status has long been sent.
    pub fn fail(&mut self, error: &ErrorBody, out: &mut String) {
        self.num_open = 0;
        event(&error.to_value(), out);
        out.push_str("data: [DONE]\n\n");
    }

    /// A chat answer's first chunk says whose turn it is, even if the turn is empty.
    fn begin(&mut self, index: usize, out: &mut String) {
        let (_, has_role) = &mut self.choices[index];
        let is_first = !std::mem::replace(has_role, true);
        if is_first && self.labels.endpoint == Endpoint::ChatCompletions {
            self.chunk(index, Some(json!({"role": "assistant", "content": ""})), None, None, out);
        }
    }

    fn chunk(
        &self,
        index: usize,
        content: Option<Value>,
        logprobs: Option<&Value>,
        finish_reason: Option<&str>,
        out: &mut String,
    ) {
        let choice = match self.labels.endpoint {
            Endpoint::ChatCompletions => {
                let delta = content.unwrap_or_else(|| json!({}));
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
            }
            Endpoint::Completions => {
                let text = content.unwrap_or_else(|| "".into());
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})
            }
        };
        event(&self.envelope(&json!([choice]), &Value::Null), out);
    }

    fn envelope(&self, choices: &Value, usage: &Value) -> Value {
        let object = match self.labels.endpoint {
            Endpoint::ChatCompletions => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        let mut chunk = json!({
            "id": self.labels.id,
            "object": object,
            "created": self.labels.created,
            "model": self.labels.model,
            "choices": choices,
        });
        if self.includes_usage {
            chunk["usage"] = usage.clone();
        }
        chunk
    }
}

/// One server-sent event.
fn event(value: &Value, out: &mut String) {
    out.push_str("data: ");
    out.push_str(&value.to_string());
    out.push_str("\n\n");
}
