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
use crate::answer::{AnswerEvent, AnswerStream};

/// The events of one answer. Dropping it, as hyper does when the client is gone, cancels the answer.
struct Events {
    answer: AnswerStream,
    record: Record,
}

pub(super) fn response(answer: AnswerStream, record: Record, keep_alive: Duration) -> Response {
    record.streams();
    let events = Sse::new(Events { answer, record })
        .keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"));
    let mut response = events.into_response();
    // Proxies of nginx's kind hold events back unless told.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(event) = ready!(Pin::new(&mut self.answer).poll_next(context)) else {
            return Poll::Ready(None);
        };
        let span = self.record.span();
        let _within = span.enter();
        Poll::Ready(Some(Ok(self.write(event))))
    }
}

impl Events {
    fn write(&self, event: AnswerEvent) -> Event {
        match event {
            AnswerEvent::Retrieval(retrieved) => self.named("retrieval", &retrieved),
            AnswerEvent::Token(text) => self.named("token", &json!({ "text": text })),
            AnswerEvent::Citation(citation) => self.named("citation", &citation),
            AnswerEvent::Done(done) => {
                self.record.done(&done);
                self.named("done", &done)
            }
            AnswerEvent::Failed(failure) => self.error(&failure.into()),
        }
    }

    fn named(&self, name: &'static str, body: &impl Serialize) -> Event {
        match Event::default().event(name).json_data(body) {
            Ok(event) => event,
            Err(cause) => self.error(&ApiError::internal(&cause)),
        }
    }

    fn error(&self, error: &ApiError) -> Event {
        self.record.failed(error.code());
        // Text of our own making: JSON holds no line break, which is all that `data` minds.
        Event::default().event("error").data(error.body(self.record.request_id()).to_string())
    }
}
