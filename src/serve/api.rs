//! The endpoints: from an HTTP request to the engine and back.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
    http::request::Parts,
};
use serde_json::{Value, json};
use tokio::sync::{TryAcquireError, mpsc};

use super::{
    Server,
    connection::BODY_TIMEOUT,
    error::ApiError,
    event_stream::EventStream,
    seconds_since_1970,
    worker::{Command, Job, Reply},
};
use crate::{
    chat_template::prompt_token_ids,
    language_model::{Completion, Prompt},
    requests::{
        Fields,
        openai::{ChunkWriter, Endpoint, ErrorBody, Labels, OpenAiRequest, error_status, whole_reply},
    },
};

/// Events that a client may be behind. A model writes some ten to a hundred per second, so this is seconds of stalling
/// on top of what the system's own buffers take.
const STREAM_BUFFER: usize = 256;
/// A body that is refused is read to its end up to so many times the limit: a client that is still sending would see a
/// broken connection instead of the refusal.
const DISCARD_FACTOR: usize = 8;

/// A body: whole, or as the engine makes it.
pub enum Body {
    /// All of it.
    Whole(Full<Bytes>),
    /// Server-sent events.
    Events(Box<EventStream>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Events(events) => events.poll_frame(context),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// A response with a JSON body.
pub fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    response(status, "application/json", Body::Whole(Full::new(Bytes::from(body.to_string()))))
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Answers one HTTP request.
pub async fn handle(server: Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let answered = match route(&server, &head) {
        Ok(Route::Page(page)) => Ok(page),
        Ok(Route::Complete(endpoint)) => complete(&server, endpoint, &head, &mut body).await,
        Err(error) => Err(error),
    };
    let response = match answered {
        Ok(response) => response,
        Err(error) => {
            discard(&mut body, server.options.max_body_bytes.saturating_mul(DISCARD_FACTOR)).await;
            error.into_response()
        }
    };
    tracing::debug!("{} {} {}", head.method, head.uri.path(), response.status().as_u16());
    server.metrics.count_response(response.status().as_u16());
    response
}

/// Where a request goes.
enum Route {
    /// Answered already.
    Page(Response<Body>),
    /// To the engine.
    Complete(Endpoint),
}

fn route(server: &Server, head: &Parts) -> Result<Route, ApiError> {
    let path = head.uri.path();
    let is_api = path == "/v1" || path.starts_with("/v1/");
    if is_api && !is_authorized(server, head) {
        return Err(ApiError::unauthorized());
    }
    if let Some(endpoint) = Endpoint::at(path) {
        return if head.method == Method::POST {
            Ok(Route::Complete(endpoint))
        } else {
            Err(ApiError::wrong_method("POST"))
        };
    }
    let page = match path {
        "/health" => health(server),
        "/metrics" => Ok(metrics(server)),
        "/v1/models" => Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": [model(server)]}))),
        _ => match path.strip_prefix("/v1/models/").map(percent_decode) {
            Some(name) if name == server.options.model => Ok(json_response(StatusCode::OK, &model(server))),
            Some(name) => Err(ApiError::unknown_model(&name, &server.options.model)),
            None => return Err(ApiError::unknown_path(path)),
        },
    };
    if head.method != Method::GET && head.method != Method::HEAD {
        return Err(ApiError::wrong_method("GET"));
    }
    page.map(Route::Page)
}

fn is_authorized(server: &Server, head: &Parts) -> bool {
    let Some(expected) = &server.api_key else { return true };
    let given = head.headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|key| blake3::hash(key) == *expected)
}

fn health(server: &Server) -> Result<Response<Body>, ApiError> {
    if server.is_draining.load(Ordering::Relaxed) {
        return Err(ApiError::stopping());
    }
    Ok(json_response(StatusCode::OK, &json!({"status": "ok"})))
}

fn metrics(server: &Server) -> Response<Body> {
    let page = Bytes::from(server.metrics.render());
    response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Body::Whole(Full::new(page)))
}

fn model(server: &Server) -> Value {
    json!({
        "id": server.options.model,
        "object": "model",
        "created": server.started,
        "owned_by": "glan",
        "max_model_len": server.max_model_len,
    })
}

/// `%2F` and its like; anything else stays as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match hex.filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Both completion endpoints.
async fn complete(
    server: &Arc<Server>,
    endpoint: Endpoint,
    head: &Parts,
    body: &mut Incoming,
) -> Result<Response<Body>, ApiError> {
    let received = Instant::now();
    if !is_json(head) {
        return Err(ApiError::not_json());
    }
    // Whoever would not get a place anyway need not be read.
    if server.slots.available_permits() == 0 {
        return Err(ApiError::busy());
    }
    let bytes = read_body(server, head, body).await?;
    if server.is_draining.load(Ordering::Relaxed) {
        return Err(ApiError::stopping());
    }
    let mut request = parse(server, endpoint, &bytes)?;
    drop(bytes);
    let num_answers = request.num_answers();
    let places = take_places(server, num_answers)?;
    // Asked for no particular draw, every request is another one.
    request.sampling.seed = request.seed.unwrap_or_else(rand::random);
    let request = prepare(server, request).await?;

    let labels = labels(server, endpoint);
    let (is_streamed, includes_usage, n) = (request.is_streamed, request.includes_usage, request.sampling.n);
    let has_constraint = request.sampling.constraint.is_some();
    // Room for what is sent at most once: the admission, every answer's end, the server's end.
    let room = num_answers + 2 + if is_streamed { STREAM_BUFFER } else { 0 };
    let (sender, mut replies) = mpsc::channel(room);
    let id = labels.id.clone();
    let requests = request.into_requests(|_| id.clone());
    let job = Job { requests, is_streamed, replies: sender, places, received };
    server.commands.send(Command::Serve(job)).map_err(|_| ApiError::stopping())?;
    admitted(&mut replies).await?;

    let request_id = HeaderValue::from_str(&labels.id).ok();
    let mut response = if is_streamed {
        let writer = ChunkWriter::new(labels, num_answers, n, includes_usage, server.vocabulary.tokenizer.clone());
        let events = Box::new(EventStream::new(replies, writer, has_constraint));
        let mut response = response(StatusCode::OK, "text/event-stream; charset=utf-8", Body::Events(events));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    } else {
        let completions = collect(&mut replies, num_answers, has_constraint).await?;
        json_response(StatusCode::OK, &whole_reply(&labels, &completions, n, &server.vocabulary.tokenizer))
    };
    if let Some(request_id) = request_id {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), request_id);
    }
    Ok(response)
}

fn is_json(head: &Parts) -> bool {
    let value = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn parse(server: &Server, endpoint: Endpoint, bytes: &[u8]) -> Result<OpenAiRequest, ApiError> {
    let request = Fields::parse(bytes)
        .and_then(|fields| OpenAiRequest::parse(endpoint, fields))
        .map_err(|error| ApiError::bad_request(&error))?;
    match &request.model {
        Some(model) if *model != server.options.model => Err(ApiError::unknown_model(model, &server.options.model)),
        _ => Ok(request),
    }
}

/// One place per answer, or a refusal; nobody queues for places.
fn take_places(server: &Server, num_answers: usize) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
    if num_answers > server.num_slots {
        let limit = server.num_slots;
        let error = anyhow::anyhow!("the request asks for {num_answers} answers; this server takes {limit} at once");
        return Err(ApiError::bad_request(&error));
    }
    let wanted = u32::try_from(num_answers).map_err(|_| ApiError::busy())?;
    Arc::clone(&server.slots).try_acquire_many_owned(wanted).map_err(|error| match error {
        TryAcquireError::NoPermits => ApiError::busy(),
        TryAcquireError::Closed => ApiError::stopping(),
    })
}

/// Texts and conversations to token ids, and the constraint compiled, away from the threads that serve others.
async fn prepare(server: &Arc<Server>, mut request: OpenAiRequest) -> Result<OpenAiRequest, ApiError> {
    let server = Arc::clone(server);
    let work = move || {
        let (tokenizer, template) = (&server.vocabulary.tokenizer, server.chat_template.as_ref());
        for prompt in &mut request.prompts {
            *prompt = Prompt::TokenIds(prompt_token_ids(tokenizer, template, prompt)?);
        }
        if let Some(constraint) = &request.sampling.constraint {
            // The engine finds it in the cache.
            server.grammars.compile(constraint, &server.vocabulary)?;
        }
        anyhow::Ok(request)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(format!("the request could not be prepared: {error}")))?
        .map_err(|error| ApiError::bad_request(&error))
}

fn labels(server: &Server, endpoint: Endpoint) -> Labels {
    let number = server.num_requests.fetch_add(1, Ordering::Relaxed);
    let id = format!("{}{:x}{number:08x}", endpoint.id_prefix(), server.started);
    Labels { endpoint, id, created: seconds_since_1970(), model: server.options.model.clone() }
}

/// The engine's first word: a request that it refuses is answered with a status, streamed or not.
async fn admitted(replies: &mut mpsc::Receiver<Reply>) -> Result<(), ApiError> {
    match replies.recv().await {
        Some(Reply::Refused(error)) => Err(ApiError::bad_request(&error)),
        Some(Reply::Stopped) => Err(ApiError::stopping()),
        Some(Reply::Failed(message)) => Err(ApiError::internal(message)),
        Some(Reply::Admitted | Reply::Text { .. } | Reply::Done { .. }) => Ok(()),
        None => Err(ApiError::internal("the engine has ended".to_owned())),
    }
}

/// All answers, in order.
async fn collect(
    replies: &mut mpsc::Receiver<Reply>,
    num_answers: usize,
    has_constraint: bool,
) -> Result<Vec<Completion>, ApiError> {
    let mut completions: Vec<Option<Completion>> = vec![None; num_answers];
    while completions.iter().any(Option::is_none) {
        match replies.recv().await {
            Some(Reply::Done { completion, .. }) if completion.error.is_some() => {
                let status = error_status(&completion, has_constraint);
                return Err(ApiError::failed(status, ErrorBody::of_completion(&completion, status)));
            }
            Some(Reply::Done { index, completion, .. }) => completions[index] = Some(*completion),
            Some(Reply::Stopped) => return Err(ApiError::stopping()),
            Some(Reply::Failed(message)) => return Err(ApiError::internal(message)),
            Some(Reply::Refused(error)) => return Err(ApiError::bad_request(&error)),
            Some(Reply::Admitted | Reply::Text { .. }) => {}
            None => return Err(ApiError::internal("the engine has ended".to_owned())),
        }
    }
    Ok(completions.into_iter().flatten().collect())
}

/// The whole body, within the limits of size and time.
async fn read_body(server: &Server, head: &Parts, body: &mut Incoming) -> Result<Vec<u8>, ApiError> {
    let limit = server.options.max_body_bytes;
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(ApiError::too_large(limit));
    }
    let read = async {
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0));
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| ApiError::bad_request(&anyhow::Error::from(error).context("the body broke off")))?;
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if bytes.len() > limit {
                return Err(ApiError::too_large(limit));
            }
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or_else(|_| Err(ApiError::slow_body()))
}

/// Reads the rest of a body that nobody wants, up to a limit of size and time.
async fn discard(body: &mut Incoming, most_bytes: usize) {
    let read = async {
        let mut num_bytes = 0;
        while let Some(Ok(frame)) = body.frame().await
            && num_bytes < most_bytes
        {
            num_bytes += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // What has not come by then is cut off with the connection.
    let _ = tokio::time::timeout(BODY_TIMEOUT, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_decoded() {
        assert_eq!(percent_decode("models%2Fprimer"), "models/primer");
        assert_eq!(percent_decode("100%"), "100%");
        assert_eq!(percent_decode("%zz%C3%A9"), "%zzé");
        assert_eq!(percent_decode("%+1"), "%+1", "a sign is no digit");
    }
}
