//! Tests of running files of requests, on a model that answers out of order.

use std::fs;

use anyhow::bail;

use super::{
    super::{
        openai::{BatchJob, BatchRow},
        *,
    },
    *,
};
use crate::{
    chat_template::ChatTemplate,
    language_model::{Completion, FinishReason, ModelIdentity, Prompt, Request, Score, ScoreRequest},
    tokenizer::toy,
};

/// Echoes prompts, in reversed groups of three, and gives up after so many answers.
struct Echo {
    tokenizer: Tokenizer,
    identity: ModelIdentity,
    num_answers_left: usize,
}

impl Echo {
    fn new(num_answers_left: usize) -> Self {
        let identity =
            ModelIdentity { name: "echo".into(), hash: String::new(), num_parameters: 0, dtype: "f32".into() };
        Self { tokenizer: toy::byte_level(None, "<|endoftext|>"), identity, num_answers_left }
    }

    fn spend(&mut self) -> Result<()> {
        match self.num_answers_left.checked_sub(1) {
            Some(left) => self.num_answers_left = left,
            None => bail!("killed"),
        }
        Ok(())
    }
}

impl LanguageModel for Echo {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        loop {
            let mut group: Vec<Request> = requests.take(3).collect();
            if group.is_empty() {
                return Ok(());
            }
            group.reverse();
            for request in group {
                for index in (0..request.sampling.n).rev() {
                    self.spend()?;
                    let Prompt::Text(text) = &request.prompt else { bail!("texts alone") };
                    let failed = Completion::failed(&request.id, "");
                    let text = format!("{text}{index}");
                    let token_ids = text.bytes().map(u32::from).collect();
                    let (finish_reason, error) = (FinishReason::Stop, None);
                    on_result(Completion { index, text, token_ids, finish_reason, error, prompt_tokens: 1, ..failed })?;
                }
            }
        }
    }

    fn score(
        &mut self,
        requests: &mut dyn Iterator<Item = ScoreRequest>,
        on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        for request in requests {
            self.spend()?;
            let token_logprobs = vec![-0.5; request.continuation_token_ids.len()];
            let logprob = token_logprobs.iter().map(|&logprob| f64::from(logprob)).sum();
            on_result(Score { id: request.id, logprob, is_greedy: true, token_logprobs, error: None })?;
        }
        Ok(())
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        None
    }

    fn max_model_len(&self) -> usize {
        100
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(requests: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.jsonl"), requests).unwrap();
        Self { folder }
    }

    fn write_output(&self, bytes: &[u8]) {
        fs::write(self.folder.path().join("out.jsonl"), bytes).unwrap();
    }

    fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("out.jsonl")).unwrap()
    }

    fn run<J: Job>(&self, num_answers: usize) -> Result<Summary> {
        let mut load = || Ok(Box::new(Echo::new(num_answers)) as Box<dyn LanguageModel>);
        run::<J>(&mut load, &self.folder.path().join("in.jsonl"), &self.folder.path().join("out.jsonl"))
    }
}

const REQUESTS: &str = r#"{"id": "a", "prompt": "x"}
{"id": 7, "prompt": "y", "n": 2}

nonsense
{"id": "a", "prompt": "z", "top_p": 2}
{"id": "b", "prompt": "w", "n": 3}
{"prompt": "v"}
{"id": "c", "prompt": "u"}
"#;

#[test]
fn results_come_in_the_order_of_the_requests_with_bad_lines_among_them() {
    let files = Files::new(REQUESTS);
    let summary = files.run::<CompleteJob>(100).unwrap();
    let rows: Vec<CompletionRow> = files.output().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let brief: Vec<(String, Option<usize>, &str)> =
        rows.iter().map(|row| (row.id.to_string(), row.index, row.text.as_str())).collect();
    let expected = [
        ("\"a\"", None, "x0"),
        ("7", Some(0), "y0"),
        ("7", Some(1), "y1"),
        ("null", None, ""),
        ("\"a\"", None, ""),
        ("\"b\"", Some(0), "w0"),
        ("\"b\"", Some(1), "w1"),
        ("\"b\"", Some(2), "w2"),
        ("null", None, ""),
        ("\"c\"", None, "u0"),
    ]
    .map(|(id, index, text)| (id.to_owned(), index, text));
    assert_eq!(brief, expected);
    let error = |row: usize| rows[row].error.clone().unwrap_or_default();
    assert!(error(3).contains("line 4") && error(3).contains("not a JSON object"), "{}", error(3));
    assert!(error(4).contains("line 5: field `top_p`"), "{}", error(4));
    assert!(error(8).contains("line 7: field `id` is missing"), "{}", error(8));
    let counts =
        (summary.requests, summary.completed, summary.errors, summary.prompt_tokens, summary.completion_tokens);
    assert_eq!(counts, (7, 7, 3, 4, 14));
}

#[test]
fn a_run_that_was_killed_anywhere_goes_on_to_the_same_file() {
    let whole = Files::new(REQUESTS);
    let summary = whole.run::<CompleteJob>(100).unwrap();
    let expected = whole.output();
    for num_answers in 0..7 {
        let files = Files::new(REQUESTS);
        files.run::<CompleteJob>(num_answers).expect_err("killed before the end");
        let resumed = files.run::<CompleteJob>(100).unwrap();
        assert_eq!(files.output(), expected, "killed after {num_answers} answers");
        assert_eq!(Summary { seconds: 0.0, ..resumed }, Summary { seconds: 0.0, ..summary.clone() });
    }
    // A step of odd length tears rows at all kinds of places.
    for length in (0..expected.len()).step_by(37) {
        let files = Files::new(REQUESTS);
        files.write_output(&expected.as_bytes()[..length]);
        files.run::<CompleteJob>(100).unwrap();
        assert_eq!(files.output(), expected, "torn after {length} bytes");
    }
}

#[test]
fn a_finished_file_needs_no_model() {
    let files = Files::new(REQUESTS);
    let summary = files.run::<CompleteJob>(100).unwrap();
    let mut load = || bail!("the model was loaded");
    let again =
        run::<CompleteJob>(&mut load, &files.folder.path().join("in.jsonl"), &files.folder.path().join("out.jsonl"));
    assert_eq!(again.unwrap().completed, summary.completed);
}

#[test]
fn an_output_of_other_requests_is_refused_and_left_alone() {
    let row = |id: &str| {
        format!(
            r#"{{"id":{id},"text":"","token_ids":[],"finish_reason":"stop","prompt_tokens":0,"completion_tokens":0,"error":null}}"#
        )
    };
    let too_many = format!("{}\n", row("\"a\"")).repeat(12);
    for (output, expected) in [
        (format!("{}\n", row("\"other\"")), "line 1 asks for id \"a\", the row there has \"other\""),
        (format!("{}\n{}\n", row("\"a\""), row("8")), "line 2 asks for id 7"),
        ("my only copy\n".to_owned(), "something else"),
        ("my only copy, without a line break".to_owned(), "something else"),
        (too_many, "asks for id"),
    ] {
        let files = Files::new(REQUESTS);
        files.write_output(output.as_bytes());
        let error = files.run::<CompleteJob>(100).expect_err(&output);
        assert!(format!("{error:#}").contains(expected), "{error:#}");
        assert_eq!(crate::error::exit_code(&error), 2);
        assert_eq!(files.output(), output);
    }
    let files = Files::new("{\"id\": 1, \"prompt\": \"x\"}\n");
    files.write_output(format!("{}\n{}\n", row("1"), row("2")).as_bytes());
    assert!(files.run::<CompleteJob>(100).unwrap_err().to_string().contains("past the last request"));
}

#[test]
fn missing_requests_end_with_exit_code_3_and_mixed_up_files_with_2() {
    let files = Files::new("");
    let here = files.folder.path().join("in.jsonl");
    let mut load = || bail!("the model was loaded");
    let missing = run::<CompleteJob>(&mut load, &files.folder.path().join("none"), &here).unwrap_err();
    assert_eq!(crate::error::exit_code(&missing), 3);
    let same = run::<CompleteJob>(&mut load, &here, &here).unwrap_err();
    assert_eq!(crate::error::exit_code(&same), 2);
    assert_eq!(files.run::<CompleteJob>(0).unwrap().requests, 0);
    assert_eq!(files.output(), "", "an empty file of requests makes an empty output");
}

#[test]
fn scores_are_written_the_same_way() {
    let files = Files::new(concat!(
        "{\"id\": 1, \"context\": \"a\", \"continuation\": \" bc\"}\n",
        "{\"id\": 2, \"context\": \"a\"}\n",
        "{\"id\": 3, \"context_token_ids\": [1], \"continuation_token_ids\": [2, 3]}\n",
    ));
    let summary = files.run::<ScoreJob>(100).unwrap();
    assert_eq!((summary.requests, summary.completed, summary.errors, summary.completion_tokens), (3, 2, 1, 5));
    let output = files.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines[0],
        r#"{"id":1,"logprob":-1.5,"is_greedy":true,"num_tokens":3,"token_logprobs":[-0.5,-0.5,-0.5]}"#
    );
    assert!(lines[1].starts_with(r#"{"id":2,"logprob":null,"is_greedy":null,"num_tokens":0"#), "{}", lines[1]);
    assert!(lines[1].contains("line 2: field `continuation` is missing"), "{}", lines[1]);
}

const BATCH: &str = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "x"}}
{"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": ["y", "z"], "n": 2, "stop": "s"}}
nonsense
{"custom_id": "c", "method": "GET", "url": "/v1/completions", "body": {"prompt": "x"}}
{"custom_id": "d", "method": "POST", "url": "/v1/embeddings", "body": {}}
{"custom_id": "e", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "top_p": 2}}
{"custom_id": "f", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "stream": true}}
{"method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "w"}}
"#;

#[test]
fn a_file_of_openais_batch_api_gets_one_record_per_line() {
    let files = Files::new(BATCH);
    let summary = files.run::<BatchJob>(100).unwrap();
    let counts =
        (summary.requests, summary.completed, summary.errors, summary.prompt_tokens, summary.completion_tokens);
    assert_eq!(counts, (9, 3, 6, 4, 12));
    let rows: Vec<BatchRow> = files.output().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<Option<&str>> = rows.iter().map(|row| row.custom_id.as_str()).collect();
    let named = |id| Some(id);
    assert_eq!(ids, [named("a"), named("b"), None, named("c"), named("d"), named("e"), named("f"), None, named("a")]);
    let statuses: Vec<Option<u16>> =
        rows.iter().map(|row| row.response.as_ref().map(|response| response.status_code)).collect();
    let (ok, refused) = (Some(200), Some(400));
    assert_eq!(statuses, [ok, ok, None, None, None, refused, refused, None, ok]);
    let body = |row: usize| &rows[row].response.as_ref().unwrap().body;
    assert_eq!(
        (&body(0)["model"], &body(0)["created"], &body(0)["object"]),
        (&"m".into(), &0.into(), &"text_completion".into())
    );
    let texts: Vec<&str> =
        body(1)["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["y0", "y1", "z0", "z1"]);
    assert_eq!(body(1)["usage"], serde_json::json!({"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}));
    assert_eq!((&body(5)["error"]["param"], &body(6)["error"]["param"]), (&"top_p".into(), &"stream".into()));
    for (row, expected) in [
        (2, "line 3: not a JSON object"),
        (3, "line 4: field `method`"),
        (4, "line 5: field `url`"),
        (7, "line 8: field `custom_id` is missing"),
    ] {
        let message = &rows[row].error.as_ref().unwrap().message;
        assert!(message.starts_with(expected), "{message}");
    }
    let distinct: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(distinct.len(), rows.len(), "equal custom ids are told apart");
}

#[test]
fn a_batch_file_that_was_killed_anywhere_goes_on_to_the_same_file() {
    let whole = Files::new(BATCH);
    let summary = whole.run::<BatchJob>(100).unwrap();
    let expected = whole.output();
    for num_answers in 0..6 {
        let files = Files::new(BATCH);
        files.run::<BatchJob>(num_answers).expect_err("killed before the end");
        let resumed = files.run::<BatchJob>(100).unwrap();
        assert_eq!(files.output(), expected, "killed after {num_answers} answers");
        assert_eq!(Summary { seconds: 0.0, ..resumed }, Summary { seconds: 0.0, ..summary.clone() });
    }
    for length in (0..expected.len()).step_by(61) {
        let files = Files::new(BATCH);
        files.write_output(&expected.as_bytes()[..length]);
        files.run::<BatchJob>(100).unwrap();
        assert_eq!(files.output(), expected, "torn after {length} bytes");
    }
}
