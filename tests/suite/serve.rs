//! `glan serve` as its clients meet it: the real executable with the primer teacher, over real connections.
#![allow(clippy::needless_pass_by_value, reason = "`json!(…)` stands where it is used")]

use std::{
    fs,
    io::{BufReader, Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use super::{
    http::{Server, post_head, read_chunk, read_head, read_response},
    support::{glan, root},
};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(question: &str, extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": question}], "max_tokens": 40, "seed": 7});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// A request that keeps the engine busy for seconds: it ends only at the end of the context, eight times over.
fn endless(extra: Value) -> Value {
    let mut body = json!({"prompt": "the", "max_tokens": 100_000, "ignore_eos": true, "n": 8});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn answer(response: &super::http::Response) -> String {
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
    response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// Text, finish reason and usage of a stream's events; checks their form.
fn read_stream(events: &[String], object: &str) -> (String, String, Value) {
    let (last, events) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let (mut text, mut finish_reason, mut usage) = (String::new(), String::new(), Value::Null);
    for event in events {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["object"], object, "{event}");
        for choice in event["choices"].as_array().unwrap() {
            assert!(finish_reason.is_empty(), "nothing follows the finish reason: {event}");
            text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            finish_reason += choice["finish_reason"].as_str().unwrap_or_default();
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    (text, finish_reason, usage)
}

#[test]
fn an_answer_is_the_same_whole_or_streamed_or_from_a_file() {
    let server = Server::start(&[]);
    let question = "Which is more, 17 or 71?";
    let extra = json!({"temperature": 0.8, "logprobs": true, "top_logprobs": 2, "stop": ["zzz", "."]});
    let whole = server.post(CHAT, &chat(question, extra.clone()));
    let text = answer(&whole);
    let reply = whole.json();
    assert_eq!((&reply["object"], &reply["model"]), (&"chat.completion".into(), &server.model.as_str().into()));
    assert!(whole.head.contains(reply["id"].as_str().unwrap()), "the id is in the head, too: {}", whole.head);

    let mut streamed = chat(question, extra);
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let response = server.post(CHAT, &streamed);
    assert!(response.head.contains("text/event-stream"), "{}", response.head);
    let events = response.events();
    let (streamed_text, finish_reason, usage) = read_stream(&events, "chat.completion.chunk");
    assert_eq!(streamed_text, text);
    assert_eq!(
        (&finish_reason, &usage),
        (&reply["choices"][0]["finish_reason"].as_str().unwrap().into(), &reply["usage"])
    );
    let logprobs: Vec<Value> = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .flat_map(|event| event["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(logprobs, *reply["choices"][0]["logprobs"]["content"].as_array().unwrap());
    assert!(logprobs.iter().all(|it| it["top_logprobs"].as_array().unwrap().len() == 2));

    // The same request through `glan complete`, in both of its formats.
    let folder = tempfile::tempdir().unwrap();
    let line = json!({"id": 1, "messages": [{"role": "user", "content": question}], "max_new_tokens": 40,
        "temperature": 0.8, "seed": 7, "stop": ["zzz", "."]});
    let mut body = streamed.clone();
    for name in ["stream", "stream_options"] {
        body.as_object_mut().unwrap().remove(name);
    }
    let batch = json!({"custom_id": "a", "method": "POST", "url": CHAT, "body": body});
    for (format, line) in [("glan", line), ("openai-batch", batch)] {
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join(format!("{format}.jsonl")));
        fs::write(&input, format!("{line}\n")).unwrap();
        let model = root().join("models/primer-teacher");
        let arguments = ["complete", "--model", model.to_str().unwrap(), "--format", format, "--requests"];
        let files = [input.to_str().unwrap(), "--output", output.to_str().unwrap()];
        glan(folder.path(), &[&arguments[..], &files[..]].concat()).expect_code(0);
        let row: Value = serde_json::from_str(fs::read_to_string(&output).unwrap().trim()).unwrap();
        match format {
            "glan" => assert_eq!(row["text"], text),
            _ => assert_eq!(row["response"]["body"]["choices"], reply["choices"]),
        }
    }
    server.stop();
}

#[test]
fn the_older_endpoint_takes_texts_and_token_ids_and_several_of_them() {
    let server = Server::start(&["--served-model-name", "teacher"]);
    let response = server.post(
        TEXT,
        &json!({
            "model": "teacher", "prompt": ["one two", "three"], "n": 2, "max_tokens": 6, "seed": 1, "logprobs": 1,
        }),
    );
    let reply = response.json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let alone = |prompt: Value| {
        server.post(TEXT, &json!({"prompt": prompt, "n": 2, "max_tokens": 6, "seed": 1, "logprobs": 1})).json()
    };
    let (first, second) = (alone("one two".into()), alone(json!(["three"])));
    for index in 0..2 {
        for (both, one) in [(&choices[index], &first), (&choices[index + 2], &second)] {
            assert_eq!(
                (&both["text"], &both["logprobs"]),
                (&one["choices"][index]["text"], &one["choices"][index]["logprobs"])
            );
        }
    }
    let tokens = |reply: &Value, kind: &str| reply["usage"][kind].as_u64().unwrap();
    for kind in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(tokens(&reply, kind), tokens(&first, kind) + tokens(&second, kind), "{kind}");
    }
    // The engine reads ids as they are.
    let ids = json!({"prompt": [[300, 301], [302]], "max_tokens": 3, "temperature": 0});
    let reply = server.post(TEXT, &ids).json();
    assert_eq!(reply["usage"]["prompt_tokens"], 3, "{reply}");
    let foreign = server.post(TEXT, &json!({"prompt": [5000]}));
    assert_eq!(foreign.status, 400);
    assert!(foreign.json()["error"]["message"].as_str().unwrap().contains("5000"));

    let mut stream = ids;
    stream["stream"] = true.into();
    let events = server.post(TEXT, &stream).events();
    for index in 0..2 {
        let text: String = events
            .iter()
            .filter_map(|event| serde_json::from_str::<Value>(event).ok())
            .filter(|event| event["choices"][0]["index"] == index)
            .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(text, reply["choices"][index]["text"], "{events:?}");
    }
    server.stop();
}

#[test]
fn an_answer_keeps_to_its_constraint() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["name", "count"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
    for stream in [false, true] {
        let body = chat("Name a thing.", json!({"response_format": format, "max_tokens": 80, "stream": stream}));
        let response = server.post(CHAT, &body);
        let text = if stream { read_stream(&response.events(), "chat.completion.chunk").0 } else { answer(&response) };
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["name"].as_str().unwrap().chars().count() <= 8, "{value}");
        assert!((1..=9).contains(&value["count"].as_u64().unwrap()), "{value}");
    }
    let object = json!({"type": "json_object"});
    let text = answer(&server.post(CHAT, &chat("x", json!({"guided_choice": ["left", "right"]}))));
    assert!(["left", "right"].contains(&text.as_str()), "{text}");
    let text = answer(&server.post(CHAT, &chat("x", json!({"structured_outputs": {"regex": "[ab]{3}"}}))));
    assert!(text.len() == 3 && text.bytes().all(|byte| b"ab".contains(&byte)), "{text}");
    let text = answer(&server.post(CHAT, &chat("x", json!({"response_format": object, "max_tokens": 60}))));
    assert!(text.starts_with('{'), "{text}");
    for wrong in [json!({"guided_regex": "("}), json!({"guided_json": {"type": "nonsense"}})] {
        let response = server.post(CHAT, &chat("x", wrong));
        assert_eq!(response.status, 400, "{response:?}");
    }
    server.stop();
}

#[test]
fn requests_join_the_running_batch_and_get_the_answers_that_they_get_alone() {
    let server = Server::start(&["--set", "engine.max_num_seqs=4"]);
    let question = |number: usize| chat(&format!("What is {number} and {number}?"), json!({"temperature": 0.9}));
    let together: Vec<String> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|number| {
                let (server, body) = (&server, question(number));
                scope.spawn(move || answer(&server.post(CHAT, &body)))
            })
            .collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (number, text) in together.iter().enumerate() {
        assert_eq!(*text, answer(&server.post(CHAT, &question(number))), "question {number}");
    }
    assert_eq!(server.metric("num_requests_running", ""), 0.0);
    assert_eq!(server.metric("kv_cache_blocks_used", ""), 0.0);
    assert_eq!(server.metric("http_responses_total", "200"), 24.0 + 2.0);
    assert_eq!(server.metric("e2e_request_latency_seconds_count", ""), 24.0);
    server.stop();
}

#[test]
fn every_fault_has_its_status_and_openais_form() {
    let server = Server::start(&["--max-body-bytes", "100000", "--served-model-name", "org/teacher"]);
    let head = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let long = "word ".repeat(5000);
    let cases: Vec<(u16, &str, String, Vec<u8>)> = vec![
        (200, "ok", head("GET", "/health"), vec![]),
        (200, "org/teacher", head("GET", "/v1/models"), vec![]),
        (200, "org/teacher", head("GET", "/v1/models/org%2Fteacher"), vec![]),
        (404, "org/other", head("GET", "/v1/models/org/other"), vec![]),
        (404, "/v1/embeddings", head("POST", "/v1/embeddings"), vec![]),
        (404, "/", head("GET", "/"), vec![]),
        (405, "POST", head("GET", CHAT), vec![]),
        (405, "GET", head("DELETE", "/v1/models"), vec![]),
        (415, "application/json", head("POST", CHAT), vec![]),
        (400, "JSON", post_head(CHAT, 5), b"{\"a\":".to_vec()),
        (400, "JSON object", post_head(CHAT, 2), b"[]".to_vec()),
        (400, "JSON", post_head(CHAT, 4), vec![0xff, 0xfe, 0, 1]),
        (413, "100000", post_head(CHAT, 100_001), vec![b' '; 100_001]),
        (413, "100000", post_head(CHAT, 5).replace("Content-Length: 5", "Transfer-Encoding: chunked"), {
            let mut body = format!("{:x}\r\n", 120_000).into_bytes();
            body.extend(vec![b' '; 120_000]);
            body.extend(b"\r\n0\r\n\r\n");
            body
        }),
    ];
    for (status, word, head, body) in cases {
        let response = server.send(&head, &body).unwrap_or_else(|error| panic!("{status} {word}: {error}"));
        assert_eq!(response.status, status, "{response:?}");
        assert!(String::from_utf8_lossy(&response.body).contains(word), "{word}: {response:?}");
        if status >= 400 {
            assert_eq!(response.json()["error"]["type"], "invalid_request_error", "{response:?}");
        }
    }
    for (status, param, body) in [
        (404, json!("model"), chat("x", json!({"model": "gpt-4"}))),
        (400, json!("temperature"), chat("x", json!({"temperature": "hot"}))),
        (400, json!("tools"), chat("x", json!({"tools": [{"type": "function"}]}))),
        (400, json!("frequency_penalty"), chat("x", json!({"frequency_penalty": 1}))),
        (400, json!("typo"), chat("x", json!({"typo": 1}))),
        (400, json!("messages[0].role"), json!({"messages": [{"role": "cat", "content": "meow"}]})),
        (400, Value::Null, chat(&long, json!({}))),
        (400, Value::Null, chat(&long, json!({"stream": true}))),
    ] {
        let response = server.post(CHAT, &body);
        assert_eq!((response.status, &response.json()["error"]["param"]), (status, &param), "{response:?}");
    }
    let too_long = server.post(CHAT, &chat(&long, json!({}))).json();
    assert!(too_long["error"]["message"].as_str().unwrap().contains("context of 1024"), "{too_long}");
    assert_eq!(server.metric("http_responses_total", "413"), 2.0);
    server.stop();
}

#[test]
fn a_key_keeps_others_out_of_the_api_alone() {
    let server = Server::start(&["--api-key", "secret"]);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
    for key in ["", "Authorization: Bearer wrong\r\n", "Authorization: secret\r\n"] {
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: x\r\n{key}Connection: close\r\n\r\n");
        let response = server.send(&head, b"").unwrap();
        assert_eq!((response.status, &response.json()["error"]["code"]), (401, &"invalid_api_key".into()));
    }
    let head = "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\r\n";
    assert_eq!(server.send(head, b"").unwrap().status, 200);
    server.stop();
}

/// Reads a stream's first event.
fn await_first_event(server: &Server, body: &Value) -> BufReader<TcpStream> {
    let mut stream = server.open(TEXT, body);
    assert_eq!(read_head(&mut stream).unwrap().0, 200);
    assert!(read_chunk(&mut stream).unwrap().unwrap().starts_with(b"data: {"));
    stream
}

#[test]
fn a_full_house_says_so_and_a_client_that_goes_makes_room() {
    let server = Server::start(&["--set", "engine.max_num_seqs=8", "--max-waiting", "2"]);
    let stream = await_first_event(&server, &endless(json!({"stream": true})));
    assert!(server.metric("kv_cache_blocks_used", "") > 0.0);
    let refused = server.post(TEXT, &json!({"prompt": "x", "n": 3}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &"queue_full".into()));
    assert!(refused.head.to_ascii_lowercase().contains("retry-after: 1"), "{}", refused.head);
    let never = server.post(TEXT, &json!({"prompt": "x", "n": 11}));
    assert_eq!(never.status, 400, "it would not fit an empty house either: {never:?}");
    // One that waits, and then nobody who waits for it.
    let waiting = server.open(TEXT, &json!({"prompt": "x", "n": 2}));
    server.await_metric("num_requests_waiting", "", 2.0);
    drop(waiting);
    server.await_metric("num_requests_waiting", "", 0.0);
    drop(stream);
    server.await_metric("kv_cache_blocks_used", "", 0.0);
    assert_eq!(server.metric("request_success_total", "abort"), 10.0);
    assert_eq!(server.post(TEXT, &json!({"prompt": "x", "n": 10})).status, 200);
    server.stop();
}

#[test]
fn a_stop_lets_running_requests_finish() {
    let server = Server::start(&["--grace", "120"]);
    let body = json!({"prompt": "the", "max_tokens": 400, "ignore_eos": true, "stream": true});
    let mut stream = await_first_event(&server, &body);
    server.terminate();
    let mut text = Vec::new();
    while let Some(chunk) = read_chunk(&mut stream).unwrap() {
        text.extend(chunk);
    }
    assert!(text.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&text));
    assert!(!String::from_utf8_lossy(&text).contains("error"));
    let address = server.address;
    server.wait().expect_code(0);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn what_still_runs_after_the_grace_time_is_told_so() {
    let server = Server::start(&["--grace", "0"]);
    let mut stream = await_first_event(&server, &endless(json!({"stream": true})));
    let whole = server.open(TEXT, &endless(json!({})));
    server.await_metric("num_requests_running", "", 16.0);
    server.terminate();
    let mut text = Vec::new();
    while let Some(chunk) = read_chunk(&mut stream).unwrap() {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("shutting down") && text.ends_with("data: [DONE]\n\n"), "{text}");
    let (status, head) = read_head(&mut { whole }).unwrap();
    assert_eq!(status, 503, "{head}");
    server.wait().expect_code(0).expect_stderr(&["grace time is over"]);
}

#[test]
fn an_address_that_cannot_be_had_is_one_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let model = root().join("models/primer-teacher");
    let model = model.to_str().unwrap();
    glan(folder.path(), &["serve", "--model", model, "--port", &port])
        .expect_code(1)
        .expect_stderr(&["cannot listen on 127.0.0.1", "--port"]);
    glan(folder.path(), &["serve", "--model", model, "--host", "not an address"])
        .expect_code(2)
        .expect_stderr(&["not an address"]);
}

#[test]
fn a_connection_serves_several_requests() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    // The last says that it is the last, so that reading to the end ends.
    for connection in ["keep-alive", "keep-alive", "close"] {
        let head = post_head("/v1/nothing", 2).replace("close", connection);
        stream.write_all(format!("{head}{{}}").as_bytes()).unwrap();
        if connection == "close" {
            assert_eq!(read_response(&mut BufReader::new(stream.try_clone().unwrap())).unwrap().status, 404);
            continue;
        }
        let mut reader = BufReader::new(&stream);
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            reader.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 404"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
    }
    server.stop();
}
