//! `glan complete --format openai-batch`: the file format of OpenAI's batch API, in and out.
//!
//! A record is a function of its line and the model alone, so that the same file gives the same bytes: ids are hashes,
//! `created` is 0, and a body without `seed` gets one made of its `custom_id`. Bodies are read as `glan serve` reads
//! them; what it would answer with an error status is a record with that status, and a line that is no request at all
//! is a record with an `error`.

use anyhow::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::{
    Endpoint, OpenAiRequest,
    reply::{ErrorBody, Labels, error_status, whole_reply},
};
use crate::{
    language_model::{Completion, LanguageModel, Request},
    requests::{
        fields::{FieldError, Fields},
        job::{Job, OnAnswer, Tally},
        lines::Line,
    },
    seed,
    tokenizer::Tokenizer,
};

/// What is hashed along with a line's own, so that its seed and id are unlike those of other uses.
const STAGE: &str = "openai-batch";

/// A line of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchRow {
    /// Made of the line's number and `custom_id`.
    pub id: String,
    /// As given; `null` where the line had none.
    pub custom_id: Value,
    /// What the endpoint answers, where the line names one.
    pub response: Option<BatchResponse>,
    /// What is wrong with the line itself.
    pub error: Option<BatchError>,
}

/// What an endpoint answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchResponse {
    /// HTTP status.
    pub status_code: u16,
    /// Made like the record's id.
    pub request_id: String,
    /// The reply, or an error in OpenAI's form.
    pub body: Value,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchError {
    /// `invalid_request`
    pub code: String,
    /// For people; names the line.
    pub message: String,
}

/// A body that cannot be served.
#[derive(Debug, Error)]
#[error("{}", .0.message)]
struct BadBody(ErrorBody);

/// What a line comes to: one per answer, or one for all.
pub enum BatchAnswer {
    /// The model's.
    Completion(Box<Completion>),
    /// The endpoint's refusal.
    Refused(ErrorBody),
    /// The line names no endpoint, or is damaged.
    BadLine(String),
}

/// What the record of a line needs beside the answers.
pub struct BatchFrame {
    hash: String,
    /// `None`: the line cannot be served.
    request: Option<(Labels, usize, bool)>,
}

/// `glan complete --format openai-batch`.
pub struct BatchJob;

impl Job for BatchJob {
    type Parsed = OpenAiRequest;
    type Request = Request;
    type Answer = BatchAnswer;
    type Row = BatchRow;
    type Frame = BatchFrame;

    const ID_FIELD: &'static str = "custom_id";

    fn parse(id: &Value, fields: &mut Fields) -> Result<OpenAiRequest> {
        let method = fields.take_string("method")?.context("field `method` is missing")?;
        anyhow::ensure!(method == "POST", "field `method`: expected `POST`, found `{method}`");
        let url = fields.take_string("url")?.context("field `url` is missing")?;
        let endpoint = Endpoint::at(&url).with_context(|| {
            format!("field `url`: expected `/v1/chat/completions` or `/v1/completions`, found `{url}`")
        })?;
        let body = fields.take_object("body")?.context("field `body` is missing")?;
        let refuse = |error: &Error| BadBody(ErrorBody::invalid_request(error));
        let mut request = OpenAiRequest::parse(endpoint, body).map_err(|error| refuse(&error))?;
        if request.is_streamed {
            let error = FieldError::new("stream", "field `stream`: a file has no streams; leave it out");
            return Err(refuse(&error.into()).into());
        }
        request.sampling.seed = request.seed.unwrap_or_else(|| seed::derive(0, STAGE, &id.to_string()));
        Ok(request)
    }

    fn num_answers(request: &OpenAiRequest) -> usize {
        request.num_answers()
    }

    fn num_rows(_: &OpenAiRequest) -> usize {
        1
    }

    fn frame(line: &Line<OpenAiRequest>) -> BatchFrame {
        let hash = seed::record_id(&[STAGE, &line.number.to_string(), &line.id.to_string()]);
        let request = line.parsed.as_ref().ok().map(|request| {
            let endpoint = request.endpoint;
            let id = format!("{}{hash}", endpoint.id_prefix());
            let model = request.model.clone().unwrap_or_default();
            (Labels { endpoint, id, created: 0, model }, request.sampling.n, request.sampling.constraint.is_some())
        });
        BatchFrame { hash, request }
    }

    fn prepare(request: OpenAiRequest, id: String, _: &Tokenizer) -> Result<Vec<Request>> {
        Ok(request.into_requests(|first_answer| format!("{id}.{first_answer}")))
    }

    fn serve(
        model: &mut dyn LanguageModel,
        requests: &mut dyn Iterator<Item = Request>,
        on_answer: &mut OnAnswer<BatchAnswer>,
    ) -> Result<()> {
        model.generate(requests, &mut |completion| {
            let id = completion.id.clone();
            let (line, first_answer) = id.split_once('.').context("the model answered under an id of its own")?;
            let index = first_answer.parse::<usize>()? + completion.index;
            on_answer(line, index, BatchAnswer::Completion(Box::new(completion)))
        })
    }

    fn rows(id: Value, frame: BatchFrame, answers: Vec<BatchAnswer>, tokenizer: &Tokenizer) -> Vec<BatchRow> {
        let hash = &frame.hash;
        let response = |status_code: u16, body: Value| {
            Some(BatchResponse { status_code, request_id: format!("req_{hash}"), body })
        };
        let (response, error) = match settle(answers) {
            Ok(completions) => {
                let (labels, n, has_constraint) =
                    frame.request.expect("answers come only from a line that could be served");
                match completions.iter().find(|completion| completion.error.is_some()) {
                    Some(failed) => {
                        let status = error_status(failed, has_constraint);
                        (response(status, ErrorBody::of_completion(failed, status).to_value()), None)
                    }
                    None => (response(200, whole_reply(&labels, &completions, n, tokenizer)), None),
                }
            }
            Err(BatchAnswer::Refused(error)) => (response(400, error.to_value()), None),
            Err(BatchAnswer::BadLine(message)) => {
                (None, Some(BatchError { code: "invalid_request".to_owned(), message }))
            }
            Err(BatchAnswer::Completion(_)) => unreachable!("completions are settled well"),
        };
        vec![BatchRow { id: format!("batch_req_{hash}"), custom_id: id, response, error }]
    }

    fn failed(line_number: usize, error: &Error) -> BatchAnswer {
        match error.downcast_ref::<BadBody>() {
            Some(BadBody(body)) => BatchAnswer::Refused(body.clone()),
            None => BatchAnswer::BadLine(format!("line {line_number}: {error:#}")),
        }
    }

    fn tally(row: &BatchRow) -> Tally<'_> {
        let response = row.response.as_ref().filter(|response| response.status_code == 200);
        let tokens = |name: &str| {
            let count = response.and_then(|response| response.body["usage"][name].as_u64());
            usize::try_from(count.unwrap_or(0)).unwrap_or(0)
        };
        Tally {
            id: &row.custom_id,
            index: None,
            is_error: response.is_none(),
            prompt_tokens: tokens("prompt_tokens"),
            completion_tokens: tokens("completion_tokens"),
        }
    }
}

/// All completions, or the first answer that is none.
fn settle(answers: Vec<BatchAnswer>) -> Result<Vec<Completion>, BatchAnswer> {
    answers
        .into_iter()
        .map(|answer| match answer {
            BatchAnswer::Completion(completion) => Ok(*completion),
            other => Err(other),
        })
        .collect()
}
