//! Refusals: one form, `{"error":{"code","message","param"}}`, and one table from what went wrong to a
//! status.
//!
//! What the caller can mend is explained; what the operator must mend is logged once and hidden behind
//! the request's id.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::answer::AnswerError;
use crate::engine::{EngineFailure, SubmitError};
use crate::prompt::PromptError;

/// When to try again while the model loads or the server restarts: long enough not to hammer it.
const LATER: Duration = Duration::from_secs(5);
/// When to try again while a tuning job has to end first.
const MUCH_LATER: Duration = Duration::from_secs(600);
/// Characters of a message that quotes what was sent.
const MAX_MESSAGE: usize = 400;

/// Why a request is refused. It becomes a response in two steps, because only `observe` knows the
/// request's id: the status and this value, then the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: shortened(message.into()), param: None, retry_after: None }
    }

    /// With the field that is at fault.
    pub(super) fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(shortened(param.into()));
        self
    }

    fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// A field with a value that it cannot have.
    pub(super) fn invalid_value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message).param(param)
    }

    /// A field that there is none of.
    pub(super) fn unknown_field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_field", message).param(param)
    }

    /// A mode that is none.
    pub(super) fn unknown_mode(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_mode", message).param("mode")
    }

    /// Something that is not the caller's to mend; `cause` goes to the log and nowhere else.
    pub(super) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, INTERNAL, "")
    }

    pub(super) fn loading(detail: &str) -> Self {
        let message = format!("the server is still loading ({detail}); try again in a while");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", message).retry_after(LATER)
    }

    pub(super) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down")
            .retry_after(LATER)
    }

    pub(super) fn queue_full(message: impl Into<String>, after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).retry_after(after)
    }

    pub(super) fn too_many_jobs(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_jobs", message).retry_after(MUCH_LATER)
    }

    pub(super) fn no_route(method: &Method, path: &str) -> Self {
        let message = format!(
            "there is no {method} {path}; there are POST /chat, POST /compare, GET /search, GET /health, GET /ready, /admin/index, /v1/files and /v1/fine_tuning/jobs"
        );
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        let message = format!("{path} does not take {method}; the header `allow` names what it takes");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The JSON form.
    pub(super) fn body(&self, request_id: &str) -> Value {
        let message = match self.code {
            INTERNAL => format!("internal error; see the log, request id {request_id}"),
            _ => self.message.clone(),
        };
        json!({ "error": { "code": self.code, "message": message, "param": self.param } })
    }

    /// Puts the JSON form into the response that [`IntoResponse`] began; headers added since stay.
    pub(super) fn complete(&self, begun: Response, request_id: &str) -> Response {
        let (mut head, _) = begun.into_parts();
        head.headers.remove(CONTENT_TYPE);
        head.headers.remove(CONTENT_LENGTH);
        let mut response = Json(self.body(request_id)).into_response();
        let json_type = response.headers_mut().remove(CONTENT_TYPE);
        head.headers.extend(json_type.map(|value| (CONTENT_TYPE, value)));
        Response::from_parts(head, response.into_body())
    }
}

/// The code of errors whose message is hidden.
const INTERNAL: &str = "internal";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The table: what keeps a question from being answered, and how HTTP says it.
impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        let message = error.to_string();
        let unprocessable = |code| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message.clone());
        match error {
            AnswerError::Invalid { param, .. } => Self::invalid_value(param, message),
            AnswerError::AdapterNeeded { .. } => unprocessable("adapter_needed").param("adapter"),
            AnswerError::UnknownAdapter { .. } => unprocessable("unknown_adapter").param("adapter"),
            AnswerError::Prompt(PromptError::TooLong { .. }) => {
                unprocessable("prompt_too_long").param("messages")
            }
            AnswerError::NoIndex => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_index", message)
                .param("mode")
                .retry_after(LATER),
            AnswerError::Submit(SubmitError::QueueFull { retry_after, .. }) => {
                Self::queue_full(message, retry_after)
            }
            AnswerError::Submit(SubmitError::ShuttingDown) => Self::shutting_down(),
            AnswerError::Submit(SubmitError::TooLong { .. } | SubmitError::Empty) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "too_long", message)
            }
            AnswerError::Prompt(cause) => Self::internal(&cause),
            AnswerError::Retrieve(cause) => Self::internal(&cause),
            AnswerError::Setup(cause) => Self::internal(&cause),
        }
    }
}

/// The same for answers that fail when they have begun. The engine has logged the cause.
impl From<EngineFailure> for ApiError {
    fn from(failure: EngineFailure) -> Self {
        match failure {
            EngineFailure::Internal => Self::new(StatusCode::INTERNAL_SERVER_ERROR, INTERNAL, ""),
            EngineFailure::ShuttingDown => Self::shutting_down(),
        }
    }
}

/// A message may quote a request; it need not quote all of it.
fn shortened(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Mode;

    #[test]
    fn the_table_keeps_what_is_the_operators_to_itself() {
        let hidden = ApiError::from(AnswerError::Setup("secret path".into()));
        assert_eq!(hidden.status, StatusCode::INTERNAL_SERVER_ERROR);
        let body = hidden.body("r-1").to_string();
        assert!(body.contains("r-1") && !body.contains("secret"), "{body}");

        let told = ApiError::from(AnswerError::AdapterNeeded { mode: Mode::Tuned, known: "kind".into() });
        let body = told.body("r-1");
        assert_eq!(body["error"]["param"], "adapter");
        assert!(body["error"]["message"].as_str().unwrap().contains("kind"));
    }

    #[test]
    fn a_wait_is_at_least_a_second() {
        let full = SubmitError::QueueFull { waiting: 3, tokens: 900, retry_after: Duration::from_millis(10) };
        let response = ApiError::from(AnswerError::Submit(full)).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn long_quotes_are_cut_between_characters() {
        let error = ApiError::invalid_value("x", "血".repeat(1000));
        assert_eq!(error.message.chars().count(), MAX_MESSAGE + 1);
    }
}
