//! An answer as server-sent events: `retrieval`, `quote`, `token`, `citation`, `done`, `error`, each with a JSON
//! body, and comments while there is nothing to say. Where several answers share a stream, each body names its `mode`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_stream::{Stream, StreamExt as _, StreamMap};

use super::error::ApiError;
use super::observe::Record;
use crate::answer::{AnswerEvent, AnswerStream, Mode};

/// The events of answers, with the mode where there are several. Dropping it, as hyper does when the client is gone, cancels them.
struct Events<S> {
    answers: S,
    record: Record,
}

/// The body of an event of one answer among several.
#[derive(Serialize)]
struct Tagged<'a, T> {
    mode: Mode,
    #[serde(flatten)]
    body: &'a T,
}

pub(super) fn response<S>(answer: S, record: Record, keep_alive: Duration) -> Response
where
    S: Stream<Item = AnswerEvent> + Send + Unpin + 'static,
{
    respond(answer.map(|event| (None, event)), record, keep_alive)
}

/// Several answers at once.
pub(super) fn side_by_side(
    answers: StreamMap<Mode, AnswerStream>,
    record: Record,
    keep_alive: Duration,
) -> Response {
    respond(answers.map(|(mode, event)| (Some(mode), event)), record, keep_alive)
}

fn respond<S>(answers: S, record: Record, keep_alive: Duration) -> Response
where
    S: Stream<Item = (Option<Mode>, AnswerEvent)> + Send + Unpin + 'static,
{
    record.streams();
    let events = Sse::new(Events { answers, record })
        .keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"));
    let mut response = events.into_response();
    // Proxies of nginx's kind hold events back unless told.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<S: Stream<Item = (Option<Mode>, AnswerEvent)> + Unpin> Stream for Events<S> {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((mode, event)) = ready!(Pin::new(&mut self.answers).poll_next(context)) else {
            return Poll::Ready(None);
        };
        let span = self.record.span();
        let _within = span.enter();
        Poll::Ready(Some(Ok(write(mode, event, &self.record))))
    }
}

fn write(mode: Option<Mode>, event: AnswerEvent, record: &Record) -> Event {
    match event {
        AnswerEvent::Retrieval(retrieved) => named("retrieval", &retrieved, mode, record),
        AnswerEvent::Quote(quote) => named("quote", &quote, mode, record),
        AnswerEvent::Token(text) => named("token", &json!({ "text": text }), mode, record),
        AnswerEvent::Citation(citation) => named("citation", &citation, mode, record),
        AnswerEvent::Done(done) => {
            record.done(&done);
            named("done", &done, mode, record)
        }
        AnswerEvent::Failed(failure) => refusal(&failure.into(), mode, record),
    }
}

fn named(name: &'static str, body: &impl Serialize, mode: Option<Mode>, record: &Record) -> Event {
    let event = Event::default().event(name);
    let event = match mode {
        Some(mode) => event.json_data(Tagged { mode, body }),
        None => event.json_data(body),
    };
    event.unwrap_or_else(|cause| refusal(&ApiError::internal(&cause), mode, record))
}

fn refusal(error: &ApiError, mode: Option<Mode>, record: &Record) -> Event {
    // JSON without line breaks: those are all that `data` minds.
    Event::default().event("error").data(refused(error, mode, record).to_string())
}

/// An error in the place of an answer, with its mode where there are several.
pub(super) fn refused(error: &ApiError, mode: Option<Mode>, record: &Record) -> Value {
    record.failed(error.code());
    let mut body = error.body(record.request_id());
    if let Some(mode) = mode {
        body["mode"] = json!(mode);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cite::{Citation, MarkerSpan};
    use crate::engine::EngineFailure;

    #[tokio::test]
    async fn events_have_names_and_a_failure_hides_its_cause() {
        let answer = tokio_stream::iter([
            AnswerEvent::Token("two\nlines\r [1]".into()),
            AnswerEvent::Citation(Citation { n: 1, span: MarkerSpan { start: 11, end: 14 }, exists: true }),
            AnswerEvent::Failed(EngineFailure::Internal),
        ]);
        let record = Record::new("r-1".into(), axum::http::Method::POST, "/chat".into());
        let body = response(answer, record, Duration::from_secs(60)).into_body();
        let body = axum::body::to_bytes(body, 10_000).await.unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        let events: Vec<(&str, serde_json::Value)> = text
            .split_terminator("\n\n")
            .map(|event| {
                let (name, data) = event.split_once("\ndata: ").unwrap();
                (name, serde_json::from_str(data).unwrap())
            })
            .collect();
        assert_eq!(events[0], ("event: token", json!({ "text": "two\nlines\r [1]" })));
        let citation = json!({ "n": 1, "span": { "start": 11, "end": 14 }, "exists": true });
        assert_eq!(events[1], ("event: citation", citation));
        let message = "internal error; see the log, request id r-1";
        let error = json!({ "error": { "code": "internal", "message": message, "param": null } });
        assert_eq!(events[2], ("event: error", error));
    }
}
