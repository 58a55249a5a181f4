//! Batch files out and in, with a scripted teacher in place of the service: whatever is missing from one file comes with the next, and the
//! records are those of a teacher that was asked at once.

use std::rc::Rc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    batch,
    scripted::{Reply, Scripted},
    tests::{Bench, rows, spoilt},
};
use crate::{
    language_model::{Constraint, Message, Prompt, Request, SamplingParams},
    run_dir::RunDir,
};

/// The request in a line of a batch file.
fn request(line: &Value) -> Result<Request> {
    let body = &line["body"];
    let messages: Vec<Message> = serde_json::from_value(body["messages"].clone())?;
    let schema = body.get("response_format").map(|format| format["json_schema"]["schema"].clone());
    let seed = body["seed"].as_i64().context("a seed")?.cast_unsigned();
    let sampling = SamplingParams { seed, constraint: schema.map(Constraint::JsonSchema), ..SamplingParams::default() };
    Ok(Request { id: String::new(), prompt: Prompt::Messages(messages), sampling })
}

/// The line that a service writes for it; `None`: it lost it.
fn reply(line: &Value, is_lost: bool) -> Result<Option<Value>> {
    let id = &line["custom_id"];
    if is_lost {
        return Ok(None);
    }
    let (text, reason) = match spoilt(&request(line)?) {
        Reply::Text(text) => (text, "stop"),
        Reply::Cut(text) => (text, "length"),
        // A service has no words for it that are like ours.
        Reply::Failed(_) => (String::new(), "stop"),
    };
    let usage = json!({"prompt_tokens": 4, "completion_tokens": text.split_whitespace().count()});
    let body = json!({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}], "usage": usage});
    Ok(Some(json!({"id": "x", "custom_id": id, "response": {"status_code": 200, "body": body}, "error": null})))
}

/// Files through a service until the run is finished; every `lost`-th answer is lost or fails the first time.
fn through_files(bench: &Bench, lost: usize) -> Result<usize> {
    let run_dir = RunDir::open(&bench.run_dir(), &bench.config)?;
    for round in 0..60 {
        let file = bench.folder.path().join(format!("batch-{round}.jsonl"));
        let exported = batch::export(&bench.config, &run_dir, &file)?;
        if exported.requests == 0 {
            assert!(!file.exists());
            return Ok(round);
        }
        let requests = rows(&file)?;
        assert_eq!(requests.len(), exported.requests);
        let mut answers: Vec<Value> = Vec::new();
        for (place, line) in requests.iter().enumerate() {
            let is_lost = round % 2 == 0 && place % lost == 0 && requests.len() > 1;
            answers.extend(reply(line, is_lost)?);
            if is_lost && place % 2 == 0 {
                let failed = json!({"custom_id": line["custom_id"], "response": {"status_code": 500, "body": {}}});
                answers.push(failed);
            }
        }
        // A service answers in any order.
        answers.reverse();
        let text: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
        let output = bench.folder.path().join(format!("output-{round}.jsonl"));
        std::fs::write(&output, text + "{\"custom_id\":\"of another run\",\"response\":null}\n")?;
        let imported = batch::import(&bench.config, &run_dir, &output)?;
        assert_eq!(imported.used, answers.iter().filter(|answer| answer["response"]["status_code"] == 200).count());
    }
    anyhow::bail!("the files have no end")
}

#[test]
fn records_through_batch_files_are_those_of_a_teacher_that_was_asked_at_once() -> Result<()> {
    for max_attempts in [1, 2] {
        let script = |request: &Request| match spoilt(request) {
            Reply::Failed(_) => Reply::Text(String::new()),
            other => other,
        };
        let mut direct = Bench::new()?;
        direct.config.generate.max_attempts = max_attempts;
        direct.run(|| Scripted::new(Rc::new(script), 4)).1?;
        let expected = direct.files()?;
        for lost in [3, 1_000] {
            let mut bench = Bench::new()?;
            bench.config.teacher.model = "some service's model".into();
            bench.config.generate.max_attempts = max_attempts;
            let rounds = through_files(&bench, lost)?;
            assert!(rounds >= 6, "a file for each sub-step: {rounds}");
            let files = bench.files()?;
            assert_eq!(files.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, text) in &files {
                // The numbers of tokens are the service's, and so is the name.
                if !["teacher.json", "usage.jsonl", "stats.json"].contains(&name.as_str()) {
                    assert!(*text == expected[name], "{name}");
                }
            }
        }
    }
    Ok(())
}
