//! Responses that say no, in OpenAI's form and with the status that belongs to each case.

use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::api::{Body, json_response};
use crate::requests::openai::ErrorBody;

/// Why a request gets no answer.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What the body says.
    pub body: Box<ErrorBody>,
    header: Option<(HeaderName, &'static str)>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        Self { status, body: Box::new(ErrorBody { message, kind, param: None, code }), header: None }
    }

    fn with_header(self, name: HeaderName, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// 400: what was sent cannot be served.
    pub fn bad_request(error: &anyhow::Error) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: Box::new(ErrorBody::invalid_request(error)), header: None }
    }

    /// 401
    pub fn unauthorized() -> Self {
        let message = "the API key is missing or wrong; send `Authorization: Bearer KEY`".to_owned();
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), message)
            .with_header(WWW_AUTHENTICATE, "Bearer")
    }

    /// 404: no such path.
    pub fn unknown_path(path: &str) -> Self {
        let message = format!("there is no `{path}`; see /v1/chat/completions, /v1/completions and /v1/models");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", None, message)
    }

    /// 404: no such model.
    pub fn unknown_model(asked: &str, there_is: &str) -> Self {
        let message = format!("there is no model `{asked}`; this server has `{there_is}`");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        Self { body: Box::new(ErrorBody { param: Some("model".to_owned()), ..*error.body }), ..error }
    }

    /// 405
    pub fn wrong_method(allowed: &'static str) -> Self {
        let message = format!("this path takes {allowed} alone");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, message).with_header(ALLOW, allowed)
    }

    /// 408: the body did not come.
    pub fn slow_body() -> Self {
        let message = "the body did not arrive in time".to_owned();
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", None, message).with_header(CONNECTION, "close")
    }

    /// 413
    pub fn too_large(max_body_bytes: usize) -> Self {
        let message = format!("the body is longer than {max_body_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", None, message)
            .with_header(CONNECTION, "close")
    }

    /// 415. A web page can make a browser post anything but this type without asking first.
    pub fn not_json() -> Self {
        let message = "send `Content-Type: application/json`".to_owned();
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", None, message)
    }

    /// 429: every place is taken.
    pub fn busy() -> Self {
        let message = "the server has as many requests as it takes; try again".to_owned();
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message)
            .with_header(RETRY_AFTER, "1")
    }

    /// 500
    pub fn internal(message: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    /// 503
    pub fn stopping() -> Self {
        let message = "the server is shutting down".to_owned();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message)
            .with_header(CONNECTION, "close")
    }

    /// A completion that failed.
    pub fn failed(status: u16, body: ErrorBody) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, body: Box::new(body), header: None }
    }

    /// The response.
    pub fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.body.to_value());
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
