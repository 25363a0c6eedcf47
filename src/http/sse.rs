//! An answer as server-sent events: `retrieval`, `token`, `citation`, `done`, `error`, each with a JSON
//! body, and comments while there is nothing to say.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio_stream::Stream;

use super::error::ApiError;
use super::observe::Record;
use crate::answer::AnswerEvent;

/// The events of one answer. Dropping it, as hyper does when the client is gone, cancels the answer.
struct Events<S> {
    answer: S,
    record: Record,
}

pub(super) fn response<S>(answer: S, record: Record, keep_alive: Duration) -> Response
where
    S: Stream<Item = AnswerEvent> + Send + Unpin + 'static,
{
    record.streams();
    let events = Sse::new(Events { answer, record })
        .keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"));
    let mut response = events.into_response();
    // Proxies of nginx's kind hold events back unless told.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<S: Stream<Item = AnswerEvent> + Unpin> Stream for Events<S> {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(event) = ready!(Pin::new(&mut self.answer).poll_next(context)) else {
            return Poll::Ready(None);
        };
        let span = self.record.span();
        let _within = span.enter();
        Poll::Ready(Some(Ok(write(event, &self.record))))
    }
}

fn write(event: AnswerEvent, record: &Record) -> Event {
    match event {
        AnswerEvent::Retrieval(retrieved) => named("retrieval", &retrieved, record),
        AnswerEvent::Token(text) => named("token", &json!({ "text": text }), record),
        AnswerEvent::Citation(citation) => named("citation", &citation, record),
        AnswerEvent::Done(done) => {
            record.done(&done);
            named("done", &done, record)
        }
        AnswerEvent::Failed(failure) => refusal(&failure.into(), record),
    }
}

fn named(name: &'static str, body: &impl Serialize, record: &Record) -> Event {
    match Event::default().event(name).json_data(body) {
        Ok(event) => event,
        Err(cause) => refusal(&ApiError::internal(&cause), record),
    }
}

fn refusal(error: &ApiError, record: &Record) -> Event {
    record.failed(error.code());
    // JSON without line breaks: those are all that `data` minds.
    Event::default().event("error").data(error.body(record.request_id()).to_string())
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
