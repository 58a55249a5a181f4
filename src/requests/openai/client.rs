//! The other side of the API: bodies that ask an OpenAI-compatible service, and what it replies.

use serde_json::{Map, Value, json};

use crate::language_model::{Completion, Constraint, FinishReason, Message, Prompt, Request, SamplingParams};

/// The body of a chat completion for a request, which must be a conversation.
///
/// Settings that OpenAI's own service does not know are left out where they ask for nothing.
///
/// **Errors**: in words, for a request that this API has no form for.
pub fn chat_body(request: &Request, model: &str) -> Result<Value, String> {
    let Prompt::Messages(messages) = &request.prompt else {
        return Err("only conversations can be asked of a remote model".to_owned());
    };
    let SamplingParams { max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, .. } =
        request.sampling;
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
    set("model", json!(model));
    set("messages", json!(messages.iter().map(turn).collect::<Vec<_>>()));
    set("max_tokens", json!(max_new_tokens));
    // Through text: 0.7 in 32 bits is another number in 64.
    let number = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
    set("temperature", json!(number(temperature)));
    set("top_p", json!(number(top_p)));
    // A signed number of 64 bits there.
    set("seed", json!(seed.cast_signed()));
    if top_k > 0 {
        set("top_k", json!(top_k));
    }
    if min_p > 0.0 {
        set("min_p", json!(number(min_p)));
    }
    if repetition_penalty != 1.0 {
        set("repetition_penalty", json!(number(repetition_penalty)));
    }
    match &request.sampling.constraint {
        None => {}
        Some(Constraint::JsonSchema(schema)) => {
            let format = json!({"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}});
            set("response_format", format);
        }
        Some(_) => return Err("of constraints a remote model takes JSON schemas alone".to_owned()),
    }
    Ok(Value::Object(body))
}

fn turn(message: &Message) -> Value {
    json!({"role": message.role, "content": message.content})
}

/// Reads the reply to a chat completion. Ids of tokens are unknown; there are as many zeros as the service counted.
///
/// **Errors**: what is missing, in words.
pub fn read_chat_reply(id: &str, body: &Value) -> Result<Completion, String> {
    let choice = &body["choices"][0];
    let message = &choice["message"];
    let text = match (&message["content"], &message["refusal"]) {
        (Value::String(text), _) | (Value::Null, Value::String(text)) => text.clone(),
        (Value::Null, _) if choice.is_object() => String::new(),
        _ => return Err(format!("the reply has no `choices[0].message.content`: {body}")),
    };
    let finish_reason = match choice["finish_reason"].as_str() {
        Some("length") => FinishReason::Length,
        _ => FinishReason::Stop,
    };
    let tokens = |key: &str| body["usage"][key].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    Ok(Completion {
        id: id.to_owned(),
        index: 0,
        text,
        token_ids: vec![0; tokens("completion_tokens")],
        finish_reason,
        prompt_tokens: tokens("prompt_tokens"),
        logprobs: None,
        error: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::{
        Fields,
        openai::{Endpoint, OpenAiRequest},
    };

    #[test]
    fn a_body_reads_back_as_the_request_that_it_was_made_from() -> anyhow::Result<()> {
        for constraint in [None, Some(Constraint::JsonSchema(json!({"type": "object"})))] {
            let sampling = SamplingParams {
                max_new_tokens: 77,
                temperature: 0.7,
                top_p: 0.95,
                min_p: 0.1,
                seed: u64::MAX - 5,
                constraint,
                ..SamplingParams::default()
            };
            let messages = vec![Message::system("s"), Message::user("q")];
            let request = Request { id: "x".into(), prompt: Prompt::Messages(messages), sampling };
            let body = chat_body(&request, "some model").expect("a conversation");
            assert!(body.get("top_k").is_none() && body.get("repetition_penalty").is_none(), "{body}");
            let read = OpenAiRequest::parse(Endpoint::ChatCompletions, Fields::of(body)?)?;
            assert_eq!(read.model.as_deref(), Some("some model"));
            assert_eq!((read.prompts, read.sampling), (vec![request.prompt], request.sampling));
        }
        let text = Request { id: "x".into(), prompt: Prompt::Text("t".into()), sampling: SamplingParams::default() };
        assert!(chat_body(&text, "m").is_err());
        Ok(())
    }

    #[test]
    fn replies_are_read_and_their_faults_named() {
        let reply = |message: Value, finish_reason: &str| {
            json!({"choices": [{"message": message, "finish_reason": finish_reason}],
                   "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
        };
        let read = read_chat_reply("x", &reply(json!({"content": "Hi"}), "length")).expect("a reply");
        assert_eq!((read.text.as_str(), read.finish_reason), ("Hi", FinishReason::Length));
        assert_eq!((read.prompt_tokens, read.token_ids.len()), (5, 3));
        let refused = read_chat_reply("x", &reply(json!({"content": null, "refusal": "No."}), "stop"));
        assert_eq!(refused.expect("a reply").text, "No.");
        assert!(read_chat_reply("x", &json!({"error": "busy"})).is_err());
    }
}
