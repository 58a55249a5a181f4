//! Lines of `glan complete`.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    fields::{Fields, strings},
    job::{Job, OnAnswer, Tally},
    lines::Line,
};
use crate::{
    language_model::{
        Completion, Constraint, FinishReason, LanguageModel, Message, Prompt, Request, SamplingParams, TokenLogprob,
    },
    tokenizer::Tokenizer,
};

/// One answer, as a line of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionRow {
    /// The request's id, as given; `null` where the line had none.
    pub id: Value,
    /// Which of the request's answers this is, where it asked for several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// The text, without special tokens and stop strings.
    pub text: String,
    /// All generated ids, the stop token included.
    pub token_ids: Vec<u32>,
    /// `stop`, `length` or `error`.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// Per-token log-probabilities, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// What went wrong with this request alone.
    pub error: Option<String>,
}

/// `glan complete`.
pub struct CompleteJob;

impl Job for CompleteJob {
    type Parsed = Request;
    type Request = Request;
    type Answer = Completion;
    type Row = CompletionRow;
    type Frame = ();

    fn parse(_: &Value, fields: &mut Fields) -> Result<Request> {
        Ok(Request { id: String::new(), prompt: parse_prompt(fields)?, sampling: parse_sampling(fields)? })
    }

    fn num_answers(request: &Request) -> usize {
        request.sampling.n
    }

    fn frame(_: &Line<Request>) {}

    fn prepare(request: Request, id: String, _: &Tokenizer) -> Result<Vec<Request>> {
        Ok(vec![Request { id, ..request }])
    }

    fn serve(
        model: &mut dyn LanguageModel,
        requests: &mut dyn Iterator<Item = Request>,
        on_answer: &mut OnAnswer<Completion>,
    ) -> Result<()> {
        model.generate(requests, &mut |completion| {
            let (id, index) = (completion.id.clone(), completion.index);
            on_answer(&id, index, completion)
        })
    }

    fn rows(id: Value, (): (), answers: Vec<Completion>, _: &Tokenizer) -> Vec<CompletionRow> {
        let has_several = answers.len() > 1;
        let row = |(index, answer): (usize, Completion)| CompletionRow {
            id: id.clone(),
            index: has_several.then_some(index),
            completion_tokens: answer.token_ids.len(),
            text: answer.text,
            token_ids: answer.token_ids,
            finish_reason: answer.finish_reason,
            prompt_tokens: answer.prompt_tokens,
            logprobs: answer.logprobs,
            error: answer.error,
        };
        answers.into_iter().enumerate().map(row).collect()
    }

    fn failed(line_number: usize, error: &anyhow::Error) -> Completion {
        Completion::failed("", format!("line {line_number}: {error:#}"))
    }

    fn tally(row: &CompletionRow) -> Tally<'_> {
        Tally {
            id: &row.id,
            index: row.index,
            is_error: row.finish_reason == FinishReason::Error,
            // Several answers share one prompt.
            prompt_tokens: if row.index.unwrap_or(0) == 0 { row.prompt_tokens } else { 0 },
            completion_tokens: row.completion_tokens,
        }
    }
}

fn parse_prompt(fields: &mut Fields) -> Result<Prompt> {
    let text = fields.take_string("prompt")?.map(Prompt::Text);
    let token_ids = fields.take_token_ids("prompt_token_ids")?.map(Prompt::TokenIds);
    let messages = fields
        .take("messages", "a list of objects with `role` and `content`", |value| {
            serde_json::from_value::<Vec<Message>>(value.clone()).ok()
        })?
        .map(Prompt::Messages);
    let mut given = [text, token_ids, messages].into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(prompt), None) => Ok(prompt),
        (None, _) => bail!("field `prompt` is missing (or `prompt_token_ids`, or `messages`)"),
        (Some(_), Some(_)) => bail!("more than one of the fields `prompt`, `prompt_token_ids` and `messages` is given"),
    }
}

fn parse_sampling(fields: &mut Fields) -> Result<SamplingParams> {
    let default = SamplingParams::default();
    let stop = fields.take("stop", "a string or a list of strings", |value| {
        let list = value.as_str().map(|one| vec![one.to_owned()]).or_else(|| strings(value))?;
        list.iter().all(|stop| !stop.is_empty()).then_some(list)
    })?;
    let logprobs = fields.take("logprobs", "true, false or a number of tokens up to 1000", |value| match value {
        Value::Bool(wanted) => Some(wanted.then_some(0)),
        _ => Some(Some(usize::try_from(value.as_u64()?).ok().filter(|&count| count <= 1000)?)),
    })?;
    Ok(SamplingParams {
        max_new_tokens: fields.take_count("max_new_tokens", 1)?.unwrap_or(default.max_new_tokens),
        temperature: fields
            .take_number("temperature", "a number of at least 0", |number| number >= 0.0)?
            .unwrap_or(default.temperature),
        top_p: fields
            .take_number("top_p", "a number above 0 and at most 1", |number| number > 0.0 && number <= 1.0)?
            .unwrap_or(default.top_p),
        top_k: fields.take_count("top_k", 0)?.unwrap_or(default.top_k),
        min_p: fields
            .take_number("min_p", "a number from 0 to 1", |number| (0.0..=1.0).contains(&number))?
            .unwrap_or(default.min_p),
        repetition_penalty: fields
            .take_number("repetition_penalty", "a number above 0", |number| number > 0.0)?
            .unwrap_or(default.repetition_penalty),
        n: fields.take_count("n", 1)?.unwrap_or(default.n),
        seed: fields.take("seed", "a whole number of at least 0", Value::as_u64)?.unwrap_or(default.seed),
        stop: stop.unwrap_or_default(),
        logprobs: logprobs.flatten(),
        constraint: parse_constraint(fields)?,
        ignore_eos: fields.take_bool("ignore_eos")?.unwrap_or(default.ignore_eos),
    })
}

fn parse_constraint(fields: &mut Fields) -> Result<Option<Constraint>> {
    let schema =
        fields.take("json_schema", "a JSON schema (an object)", |value| value.is_object().then(|| value.clone()))?;
    let regex = fields.take_string("regex")?;
    let choice = fields.take_strings("choice")?;
    ensure!(choice.as_ref().is_none_or(|choice| !choice.is_empty()), "field `choice`: expected at least one string");
    let mut given = [schema.map(Constraint::JsonSchema), regex.map(Constraint::Regex), choice.map(Constraint::Choice)]
        .into_iter()
        .flatten();
    match (given.next(), given.next()) {
        (constraint, None) => Ok(constraint),
        _ => bail!("more than one of the fields `json_schema`, `regex` and `choice` is given"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request> {
        let mut fields = Fields::parse(line.as_bytes())?;
        fields.take_id("id")?;
        let request = CompleteJob::parse(&Value::Null, &mut fields)?;
        fields.finish()?;
        Ok(request)
    }

    #[test]
    fn a_bare_prompt_is_greedy_with_256_tokens() {
        let request = parse(r#"{"id": 1, "prompt": "hello"}"#).unwrap();
        assert_eq!(request.prompt, Prompt::Text("hello".into()));
        assert_eq!(request.sampling, SamplingParams::default());
        assert_eq!((request.sampling.max_new_tokens, request.sampling.temperature), (256, 0.0));
    }

    #[test]
    fn every_field_is_read() {
        let line = r#"{"id": "a", "messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 5,
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "n": 3,
            "seed": 18446744073709551615, "stop": "X", "logprobs": 2, "choice": ["a", "b"], "ignore_eos": true}"#;
        let request = parse(line).unwrap();
        assert_eq!(request.prompt, Prompt::Messages(vec![Message::user("hi")]));
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
        let logprobs = |given: &str| {
            parse(&format!(r#"{{"id": 1, "prompt": "", "logprobs": {given}}}"#)).unwrap().sampling.logprobs
        };
        assert_eq!((logprobs("true"), logprobs("false"), logprobs("null")), (Some(0), None, None));
    }

    #[test]
    fn every_fault_names_its_field() {
        for (rest, expected) in [
            (r#""prompt": "a", "temperature": -1"#, "field `temperature`: expected a number of at least 0, found `-1`"),
            (r#""prompt": "a", "temperature": "hot""#, "field `temperature`"),
            (r#""prompt": "a", "top_p": 0"#, "field `top_p`"),
            (r#""prompt": "a", "max_new_tokens": 0"#, "field `max_new_tokens`"),
            (r#""prompt": "a", "max_new_tokens": 1.5"#, "field `max_new_tokens`"),
            (r#""prompt": "a", "n": 0"#, "field `n`"),
            (r#""prompt": "a", "stop": [""]"#, "field `stop`"),
            (r#""prompt": "a", "seed": -1"#, "field `seed`"),
            (r#""prompt": "a", "max_tokens": 3"#, "unknown field `max_tokens`"),
            (r#""prompt": "a", "regex": "a", "choice": ["b"]"#, "`regex`"),
            (r#""prompt": "a", "choice": []"#, "field `choice`"),
            (r#""prompt": "a", "messages": []"#, "more than one"),
            (r#""prompt_token_ids": [1, -2]"#, "field `prompt_token_ids`"),
            (r#""messages": [{"role": "user"}]"#, "field `messages`"),
            (r#""top_k": 3"#, "field `prompt` is missing"),
        ] {
            let error = parse(&format!(r#"{{"id": 1, {rest}}}"#)).expect_err(rest);
            assert!(error.to_string().contains(expected), "{rest}: {error}");
        }
        assert!(parse(r#"{"prompt": "a"}"#).unwrap_err().to_string().contains("`id` is missing"));
        assert!(parse(r#"{"id": [], "prompt": "a"}"#).unwrap_err().to_string().contains("field `id`"));
        assert!(parse("[1]").is_err() && parse("{").is_err());
    }
}
