//! Tests of reading bodies: every field, every fault by name.
#![allow(clippy::needless_pass_by_value, reason = "`json!(…)` stands where it is used")]

use serde_json::json;

use super::*;
use crate::language_model::{Constraint, Message};

fn parse(endpoint: Endpoint, body: Value) -> Result<OpenAiRequest> {
    OpenAiRequest::parse(endpoint, Fields::of(body)?)
}

fn chat(extra: Value) -> Result<OpenAiRequest> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    parse(Endpoint::ChatCompletions, body)
}

fn text(extra: Value) -> Result<OpenAiRequest> {
    let mut body = json!({"prompt": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    parse(Endpoint::Completions, body)
}

#[test]
fn the_defaults_are_those_of_openai() {
    let request = chat(json!({})).unwrap();
    assert_eq!(request.prompts, [Prompt::Messages(vec![Message::user("hi")])]);
    assert_eq!((request.model.as_deref(), request.seed, request.is_streamed), (Some("m"), None, false));
    assert_eq!((request.sampling.temperature, request.sampling.max_new_tokens), (1.0, usize::MAX));
    let request = text(json!({})).unwrap();
    assert_eq!(request.prompts, [Prompt::Text("hi".into())]);
    assert_eq!((request.sampling.temperature, request.sampling.max_new_tokens), (1.0, 16));
}

#[test]
fn every_field_is_read() {
    let request = chat(json!({
        "max_completion_tokens": 5, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
        "repetition_penalty": 1.2, "n": 3, "seed": -1, "stop": "X", "logprobs": true, "top_logprobs": 2,
        "guided_choice": ["a", "b"], "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
        "user": "u", "metadata": {"a": "b"}, "store": false, "frequency_penalty": 0, "tools": [], "logit_bias": {},
    }))
    .unwrap();
    let expected = SamplingParams {
        max_new_tokens: 5,
        temperature: 0.5,
        top_p: 0.9,
        top_k: 7,
        min_p: 0.1,
        repetition_penalty: 1.2,
        n: 3,
        seed: u64::MAX,
        stop: vec!["X".into()],
        logprobs: Some(2),
        constraint: Some(Constraint::Choice(vec!["a".into(), "b".into()])),
        ignore_eos: true,
    };
    assert_eq!(request.sampling, expected);
    assert_eq!((request.seed, request.is_streamed, request.includes_usage), (Some(u64::MAX), true, true));
    assert_eq!(text(json!({"logprobs": 0, "top_k": -1})).unwrap().sampling.logprobs, Some(0));
    assert_eq!(chat(json!({"top_logprobs": 0, "logprobs": false})).unwrap().sampling.logprobs, None);
}

#[test]
fn prompts_are_texts_or_token_ids_or_lists_of_either() {
    let prompts = |prompt: Value| text(json!({"prompt": prompt})).map(|request| request.prompts);
    assert_eq!(prompts(json!("")).unwrap(), [Prompt::Text(String::new())]);
    assert_eq!(prompts(json!(["a", "b"])).unwrap(), [Prompt::Text("a".into()), Prompt::Text("b".into())]);
    assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::TokenIds(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2, 3]])).unwrap(), [Prompt::TokenIds(vec![1]), Prompt::TokenIds(vec![2, 3])]);
    for wrong in [json!([]), json!(7), json!(["a", 1]), json!([1, "a"]), json!([[]]), json!([-1]), json!([[1], "a"])] {
        let error = prompts(wrong.clone()).expect_err(&wrong.to_string());
        assert!(error.to_string().starts_with("field `prompt`"), "{wrong}: {error}");
    }
    assert_eq!(text(json!({"prompt": ["a", "b"], "n": 3})).unwrap().num_answers(), 6);
    let requests = text(json!({"prompt": ["a", "b"], "n": 3})).unwrap().into_requests(|first| format!("r{first}"));
    assert_eq!(requests.iter().map(|request| request.id.as_str()).collect::<Vec<_>>(), ["r0", "r3"]);
}

#[test]
fn messages_take_parts_and_give_an_earlier_reply_back() {
    let request = chat(json!({"messages": [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []},
    ]}))
    .unwrap();
    let expected = vec![Message::system("S"), Message::user("a\nb"), Message::assistant("c")];
    assert_eq!(request.prompts, [Prompt::Messages(expected)]);
    for (message, field) in [
        (json!({"role": "tool", "content": "a"}), "messages[0].role"),
        (json!({"content": "a"}), "messages[0].role"),
        (json!({"role": "user"}), "messages[0].content"),
        (json!({"role": "user", "content": 7}), "messages[0].content"),
        (json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "messages[0].content"),
        (json!({"role": "user", "content": "a", "name": "bob"}), "messages[0].name"),
        (json!({"role": "assistant", "content": "a", "tool_calls": [1]}), "messages[0].tool_calls"),
        (json!("hi"), "messages[0]"),
    ] {
        let error = chat(json!({"messages": [message]})).expect_err(field);
        assert_eq!(error.downcast_ref::<FieldError>().unwrap().field, field, "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn constraints_come_in_openais_and_in_vllms_words() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let any = Constraint::JsonSchema(json!({"type": "object"}));
    let wanted = Constraint::JsonSchema(schema.clone());
    let format = |format: Value| json!({"response_format": format});
    let full = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    for (extra, expected) in [
        (format(json!({"type": "text"})), None),
        (format(json!({"type": "json_object"})), Some(any.clone())),
        (format(full), Some(wanted.clone())),
        (json!({"guided_json": schema}), Some(wanted.clone())),
        (json!({"guided_json": schema.to_string()}), Some(wanted.clone())),
        (json!({"guided_regex": "a+"}), Some(Constraint::Regex("a+".into()))),
        (json!({"structured_outputs": {"json": schema}}), Some(wanted)),
        (json!({"structured_outputs": {"regex": "a+"}}), Some(Constraint::Regex("a+".into()))),
        (json!({"structured_outputs": {"choice": ["a"]}}), Some(Constraint::Choice(vec!["a".into()]))),
        (json!({"structured_outputs": {"json_object": true}}), Some(any)),
    ] {
        assert_eq!(chat(extra.clone()).unwrap().sampling.constraint, expected, "{extra}");
        assert_eq!(text(extra.clone()).unwrap().sampling.constraint, expected, "{extra}");
    }
}

#[test]
fn every_fault_names_its_field() {
    for (extra, field) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"model": 1}), "model"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": 2, "max_completion_tokens": 3}), "max_completion_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": vec!["a"; 17]}), "stop"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (json!({"presence_penalty": 1}), "presence_penalty"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"logit_bias": {"50256": -100}}), "logit_bias"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"temperatur": 1}), "temperatur"),
        (json!({"prompt": "a"}), "prompt"),
    ] {
        let error = chat(extra.clone()).expect_err(&extra.to_string());
        let fault = error.downcast_ref::<FieldError>().unwrap_or_else(|| panic!("{extra}: no field in {error}"));
        assert_eq!(fault.field, field, "{extra}: {error}");
        assert!(fault.message.contains(&format!("`{field}`")), "{error}");
    }
    assert!(parse(Endpoint::Completions, json!([])).is_err() && text(json!({"messages": []})).is_err());
}
