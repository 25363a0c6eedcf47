//! Around every request: an id, a span, a log line when it is finished, the form of its errors, and a
//! net for panics.
//!
//! The log line is written when the last owner of a [`Record`] lets go of it, so that a stream's line
//! comes at its end, however it ends. No text of a request is ever logged: not its body, and not its
//! path, but the route that it matched.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, Span};

use super::error::ApiError;
use super::health;
use super::state::AppState;
use crate::answer::{Done, Mode};

/// Name of the header that carries a request's id, both ways.
const REQUEST_ID: &str = "x-request-id";
/// The longest id that is taken over from a client.
const MAX_REQUEST_ID: usize = 64;

/// What is known of a request; clones are the same record.
#[derive(Clone)]
pub(super) struct Record(Arc<Line>);

struct Line {
    request_id: String,
    method: Method,
    path: String,
    started: Instant,
    span: Span,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    status: Option<u16>,
    mode: Option<Mode>,
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
    finish: Option<&'static str>,
    failed: bool,
    streams: bool,
}

impl Record {
    pub(super) fn new(request_id: String, method: Method, path: String) -> Self {
        let span = tracing::info_span!("request", id = request_id);
        let (started, outcome) = (Instant::now(), Mutex::default());
        Self(Arc::new(Line { request_id, method, path, started, span, outcome }))
    }

    pub(super) fn request_id(&self) -> &str {
        &self.0.request_id
    }

    pub(super) fn span(&self) -> &Span {
        &self.0.span
    }

    pub(super) fn mode(&self, mode: Mode) {
        self.outcome().mode = Some(mode);
    }

    /// The response is not the end yet.
    pub(super) fn streams(&self) {
        self.outcome().streams = true;
    }

    /// An answer is complete. A comparison has several: their tokens are added up.
    pub(super) fn done(&self, done: &Done) {
        let mut outcome = self.outcome();
        let add = |sum: &mut Option<usize>, more: usize| *sum = Some(sum.unwrap_or_default() + more);
        add(&mut outcome.prompt_tokens, done.usage.prompt_tokens);
        add(&mut outcome.completion_tokens, done.usage.completion_tokens);
        // That one has failed says more than how another ended.
        if !outcome.failed {
            outcome.finish = Some(done.finish_reason.as_str());
        }
    }

    pub(super) fn failed(&self, code: &'static str) {
        let mut outcome = self.outcome();
        outcome.finish = Some(code);
        outcome.failed = true;
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _within = self.span.enter();
        let outcome = self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner);
        let gone = outcome.streams || outcome.status.is_none();
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if [health::HEALTH, health::READY].contains(&self.path.as_str()) {
            // Probes come every few seconds and say nothing new.
            return tracing::debug!(path = self.path, status = outcome.status, ms = milliseconds, "probed");
        }
        tracing::info!(
            method = self.method.as_str(),
            path = self.path,
            status = outcome.status,
            mode = outcome.mode.map(Mode::as_str),
            prompt_tokens = outcome.prompt_tokens,
            completion_tokens = outcome.completion_tokens,
            finish = outcome.finish.or(gone.then_some("disconnected")),
            ms = milliseconds,
            "request finished"
        );
    }
}

pub(super) async fn observe(
    State(state): State<AppState>,
    matched: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = matched.as_ref().map_or("(no route)", MatchedPath::as_str).to_owned();
    let admitted = match path.as_str() {
        health::HEALTH | health::READY => Ok(()),
        _ => state.answerer().map(drop),
    };
    let record = Record::new(request_id(request.headers()), request.method().clone(), path);
    let span = record.span().clone();
    request.extensions_mut().insert(record.clone());
    let mut response = match admitted {
        Ok(()) => caught(next.run(request)).instrument(span).await,
        Err(refusal) => refusal.into_response(),
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        record.failed(error.code());
        response = error.complete(response, record.request_id());
    }
    record.outcome().status = Some(response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(record.request_id()) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// The client's id if it is short and printable, else one of our own.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
    given
        .filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic))
        .and_then(|id| std::str::from_utf8(id).ok())
        .map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

/// Runs a handler; one that panics answers 500 and takes nothing else with it.
async fn caught(handler: impl Future<Output = Response>) -> Response {
    let mut handler = pin!(handler);
    std::future::poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(ApiError::internal(&"a handler panicked").into_response()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    #[test]
    fn only_sane_ids_are_taken_over() {
        let with = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(with(b"trace-1.a:b"), "trace-1.a:b");
        for bad in [&b""[..], b"two words", "血".as_bytes(), b"\"\xff", &[b'a'; 65]] {
            let own = with(bad);
            assert!(own.len() == 32 && own.bytes().all(|b| b.is_ascii_hexdigit()), "{own}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_panic_becomes_an_internal_error() {
        let response = caught(async { panic!("on purpose") }).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
