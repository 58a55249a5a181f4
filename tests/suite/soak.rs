//! A soak of `glan serve`: clients that behave, that leave, that send garbage, all at once, for a while.
//!
//! The suite runs it for a minute; `scripts/soak.sh MINUTES` sets `GLAN_SOAK_SECONDS` and runs the same. What must
//! hold: every answer has a status that its request can have, nothing panics, blocks and connections come home, memory
//! does not grow, and at the end the server still gives the answer that it gave at the start.
#![allow(clippy::needless_pass_by_value, reason = "`json!(…)` stands where it is used")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufReader, Read, Write},
    net::Shutdown,
    sync::Mutex,
    time::{Duration, Instant},
};

use rand::Rng;
use serde_json::{Value, json};

use super::http::{Response, Server, post_head, read_chunk, read_head};

/// What the suite takes.
const DEFAULT_SECONDS: u64 = 60;
const NUM_CLIENTS: usize = 8;
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
/// The server is started with these, so that a house is soon full and long bodies are cheap.
const MAX_NUM_SEQS: usize = 6;
const MAX_WAITING: usize = 10;
const MAX_BODY_BYTES: usize = 1_500_000;
/// Resident memory may grow by a tenth and this much between the second quarter of the time and the last: the allocator
/// keeps pages, and the largest moment is a matter of chance. A leak of one block's bookkeeping or one body per request
/// is far more after thousands of requests.
const RSS_SLACK_BYTES: u64 = 24 << 20;

/// What a client does; the name is what the report counts by.
type Deed = (&'static str, fn(&Server, &mut dyn FnMut(u32) -> u32) -> String, &'static [&'static str]);

/// Every deed with the outcomes that it may have: a status, or `cut` where the connection ended without one.
const DEEDS: [Deed; 16] = [
    ("chat", chat_whole, &["200", "429"]),
    ("chat, streamed", chat_streamed, &["200", "429"]),
    ("json schema", schema, &["200", "429"]),
    ("several prompts", several, &["200", "429"]),
    ("leaves mid-stream", leave_mid_stream, &["200", "429"]),
    ("leaves at once", leave_at_once, &["cut"]),
    ("leaves mid-head", leave_mid_head, &["cut"]),
    ("leaves mid-body", leave_mid_body, &["cut"]),
    ("garbage", garbage, &["400", "cut"]),
    ("wrong JSON", wrong_json, &["400", "429"]),
    ("wrong field", wrong_field, &["400", "429"]),
    ("1 MB prompt", long_prompt, &["400", "429"]),
    ("body too long", long_body, &["413", "429"]),
    ("unknown model", unknown_model, &["404", "429"]),
    ("unknown path", unknown_path, &["404"]),
    ("too many at once", too_many, &["400", "429"]),
];

fn question(random: &mut dyn FnMut(u32) -> u32, extra: Value) -> Value {
    let text = format!("What is {} and {}?", random(90), random(90));
    let mut body =
        json!({"messages": [{"role": "user", "content": text}], "max_tokens": 1 + random(60), "seed": random(1000)});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn outcome(response: std::io::Result<Response>) -> String {
    response.map_or_else(|_| "cut".to_owned(), |response| response.status.to_string())
}

fn chat_whole(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    outcome(server.try_post(CHAT, question(random, json!({})).to_string().as_bytes()))
}

fn chat_streamed(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let body = question(random, json!({"stream": true, "stop": ["9"]})).to_string();
    match server.try_post(CHAT, body.as_bytes()) {
        Ok(response) if response.status == 200 && response.events().last().is_none_or(|last| last != "[DONE]") => {
            format!("no end: {:?}", response.events().last())
        }
        response => outcome(response),
    }
}

fn schema(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": random(99)}},
        "required": ["a"], "additionalProperties": false});
    let response = server
        .try_post(CHAT, question(random, json!({"guided_json": schema, "max_tokens": 40})).to_string().as_bytes());
    match response {
        Ok(response) if response.status == 200 => {
            let reply = response.json();
            let text = reply["choices"][0]["message"]["content"].as_str().unwrap_or_default();
            if serde_json::from_str::<Value>(text).is_ok() { "200".to_owned() } else { format!("not JSON: {text}") }
        }
        response => outcome(response),
    }
}

fn several(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let body = json!({"prompt": ["one", "two"], "n": 1 + random(3), "max_tokens": 1 + random(30), "logprobs": 2});
    outcome(server.try_post(TEXT, body.to_string().as_bytes()))
}

fn leave_mid_stream(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let body = json!({"prompt": "the", "max_tokens": 900, "ignore_eos": true, "stream": true, "n": 1 + random(4)});
    let mut stream = server.open(TEXT, &body);
    let Ok((status, _)) = read_head(&mut stream) else { return "cut".to_owned() };
    if status == 200 {
        for _ in 0..random(6) {
            let _ = read_chunk(&mut stream);
        }
    }
    status.to_string()
}

fn leave_at_once(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    drop(server.open(CHAT, &question(random, json!({"max_tokens": 900, "ignore_eos": true}))));
    "cut".to_owned()
}

fn leave_mid_head(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let head = post_head(CHAT, 10);
    let _ = server.connect().write_all(&head.as_bytes()[..random(100) as usize]);
    "cut".to_owned()
}

fn leave_mid_body(server: &Server, _: &mut dyn FnMut(u32) -> u32) -> String {
    let mut stream = server.connect();
    let _ = stream.write_all(post_head(CHAT, 1000).as_bytes());
    let _ = stream.write_all(b"{\"messages\": [");
    "cut".to_owned()
}

fn garbage(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let bytes: Vec<u8> = (0..1 + random(5000)).map(|_| random(256) as u8).collect();
    let mut stream = server.connect();
    let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut stream = BufReader::new(stream);
    match read_head(&mut stream) {
        Ok((status, _)) => {
            let _ = stream.read_to_end(&mut Vec::new());
            status.to_string()
        }
        Err(_) => "cut".to_owned(),
    }
}

fn wrong_json(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let body = question(random, json!({})).to_string();
    outcome(server.try_post(CHAT, &body.as_bytes()[..random(body.len() as u32) as usize]))
}

fn wrong_field(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let wrong = [json!({"temperature": "hot"}), json!({"typo": 1}), json!({"n": 0}), json!({"guided_regex": "("})];
    let wrong = wrong[random(4) as usize].clone();
    outcome(server.try_post(CHAT, question(random, wrong).to_string().as_bytes()))
}

fn long_prompt(server: &Server, _: &mut dyn FnMut(u32) -> u32) -> String {
    let text = "The quick brown fox counts 123 sheep. ".repeat(27_000);
    outcome(server.try_post(CHAT, json!({"messages": [{"role": "user", "content": text}]}).to_string().as_bytes()))
}

fn long_body(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    outcome(server.try_post(TEXT, &vec![b' '; MAX_BODY_BYTES + 1 + random(1_000_000) as usize]))
}

fn unknown_model(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    outcome(server.try_post(CHAT, question(random, json!({"model": "gpt-4"})).to_string().as_bytes()))
}

fn unknown_path(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    outcome(server.try_post(&format!("/v1/{}", random(1000)), b"{}"))
}

fn too_many(server: &Server, random: &mut dyn FnMut(u32) -> u32) -> String {
    let n = MAX_NUM_SEQS + MAX_WAITING + 1 + random(100) as usize;
    outcome(server.try_post(CHAT, question(random, json!({"n": n})).to_string().as_bytes()))
}

/// How often each deed had each outcome.
type Counts = BTreeMap<(&'static str, String), u64>;

/// One client's share, until the time is over.
fn work(server: &Server, client: usize, end: Instant, counts: &Mutex<Counts>) {
    let mut rng = glan::seed::stream(0, "soak", &client.to_string());
    let mut random = |below: u32| rng.random_range(0..below.max(1));
    // Every deed is somebody's first or second; then chance decides.
    let mut first = (client..DEEDS.len()).step_by(NUM_CLIENTS);
    while Instant::now() < end {
        let (name, act, _) = DEEDS[first.next().unwrap_or_else(|| random(DEEDS.len() as u32) as usize)];
        let outcome = act(server, &mut random);
        *counts.lock().unwrap().entry((name, outcome)).or_default() += 1;
    }
}

/// Resident memory in bytes and open files; `None` where the system does not say.
fn resources(pid: u32) -> Option<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((kibibytes << 10, fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
}

/// Watches until the time is over; the highest memory of the second quarter and of the last.
fn watch_memory(server: &Server, start: Instant, length: Duration) -> Option<(u64, u64)> {
    let (mut second, mut last) = (0, 0);
    while start.elapsed() < length {
        let (bytes, _) = resources(server.pid())?;
        match start.elapsed().as_secs_f64() / length.as_secs_f64() {
            share if (0.25..0.5).contains(&share) => second = second.max(bytes),
            share if share >= 0.75 => last = last.max(bytes),
            _ => {}
        }
        std::thread::sleep(length.mul_f64(0.002).max(Duration::from_millis(20)));
    }
    Some((second, last))
}

#[test]
#[allow(clippy::print_stderr, reason = "the report of a long soak")]
fn a_soak_leaks_nothing_and_answers_with_the_right_statuses() {
    let seconds = std::env::var("GLAN_SOAK_SECONDS").ok().map_or(DEFAULT_SECONDS, |text| text.parse().unwrap());
    let length = Duration::from_secs(seconds);
    let (seats, waiting, body) = (MAX_NUM_SEQS, MAX_WAITING.to_string(), MAX_BODY_BYTES.to_string());
    let seats = format!("engine.max_num_seqs={seats}");
    let server = Server::start(&["--set", &seats, "--max-waiting", &waiting, "--max-body-bytes", &body]);
    let reference = json!({"prompt": "What is 2 and 3?", "max_tokens": 50, "temperature": 0.7, "seed": 5});
    let before = server.post(TEXT, &reference).json()["choices"].clone();
    let files_before = resources(server.pid()).map(|(_, files)| files);

    let counts = Mutex::new(BTreeMap::new());
    let start = Instant::now();
    let memory = std::thread::scope(|scope| {
        for client in 0..NUM_CLIENTS {
            let (server, counts) = (&server, &counts);
            scope.spawn(move || work(server, client, start + length, counts));
        }
        watch_memory(&server, start, length)
    });

    let counts = counts.into_inner().unwrap();
    let total: u64 = counts.values().sum();
    eprintln!("soak: {total} requests in {seconds} s; resident bytes in the second and the last quarter: {memory:?}");
    for ((name, outcome), count) in &counts {
        eprintln!("  {name:18} {outcome:4} {count}");
    }
    for (name, _, allowed) in DEEDS {
        let outcomes: Vec<&String> =
            counts.keys().filter(|(found, _)| *found == name).map(|(_, outcome)| outcome).collect();
        assert!(!outcomes.is_empty(), "`{name}` was never done");
        for outcome in outcomes {
            assert!(allowed.contains(&outcome.as_str()), "`{name}` ended with {outcome}, expected {allowed:?}");
        }
    }
    for gauge in ["num_requests_running", "num_requests_waiting", "kv_cache_blocks_used"] {
        server.await_metric(gauge, "", 0.0);
    }
    match memory {
        Some((second, last)) => {
            assert!(last <= second + second / 10 + RSS_SLACK_BYTES, "memory grew from {second} to {last} bytes");
        }
        None => eprintln!("skipped: memory, this system has no /proc"),
    }
    assert_eq!(server.post(TEXT, &reference).json()["choices"], before, "the same question, the same answer");
    if let (Some(before), Some((_, after))) = (files_before, resources(server.pid())) {
        assert!(after <= before + NUM_CLIENTS, "{before} open files at the start, {after} at the end");
    }
    server.stop();
}
