//! `POST /chat`: a question in, an answer out, as events or as one JSON object.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use tokio_stream::StreamExt;
use tracing::Span;

use super::error::ApiError;
use super::observe::Record;
use super::state::AppState;
use super::types::{ChatReply, ChatRequest};
use super::{extract, sse};
use crate::answer::{AnswerEvent, AnswerStream, Answerer, Question};

/// How long a request waits for its turn to be prepared: a burst passes, an overload is told.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn chat(
    State(state): State<AppState>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let answerer = state.answerer()?;
    let request: ChatRequest = extract::json(state.settings(), &headers, body).await?;
    let streams = request.streams();
    let question = request.into_question()?;
    record.mode(question.mode.unwrap_or(answerer.settings().default_mode));
    let answer = prepare(&state, answerer, question).await?;
    match streams {
        true => Ok(sse::response(answer, record, state.settings().keep_alive)),
        false => whole(answer, &record).await.map(|reply| Json(reply).into_response()),
    }
}

/// Retrieves, makes the prompt and queues it, where blocking is allowed. When the request is dropped
/// meanwhile, its stream is dropped as soon as it is there, and the engine lets go of it.
async fn prepare(
    state: &AppState,
    answerer: Arc<Answerer>,
    question: Question,
) -> Result<AnswerStream, ApiError> {
    in_turn(state, move || answerer.answer(&question)).await?.map_err(ApiError::from)
}

/// Does what retrieves, where blocking is allowed and not for too many at a time.
pub(super) async fn in_turn<T: Send + 'static>(
    state: &AppState,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = tokio::time::timeout(PATIENCE, state.preparing().acquire_owned()).await;
    let Ok(Ok(permit)) = turn else {
        return Err(ApiError::queue_full("too many requests at once; try again in a moment", PATIENCE));
    };
    let span = Span::current();
    let done = tokio::task::spawn_blocking(move || {
        let done = span.in_scope(work);
        drop(permit);
        done
    });
    done.await.map_err(|_| ApiError::internal(&"a request panicked while it was prepared"))
}

/// Waits for the whole answer. A client that goes away drops this future, and the answer with it.
pub(super) async fn whole(mut answer: AnswerStream, record: &Record) -> Result<ChatReply, ApiError> {
    let (mut text, mut passages, mut quotes, mut citations) =
        (String::new(), Vec::new(), Vec::new(), Vec::new());
    let mut not_in_effect = Vec::new();
    while let Some(event) = answer.next().await {
        match event {
            AnswerEvent::Retrieval(retrieved) => {
                passages = retrieved.passages;
                not_in_effect = retrieved.not_in_effect;
            }
            AnswerEvent::Quote(quote) => quotes.push(quote),
            AnswerEvent::Token(piece) => text.push_str(&piece),
            AnswerEvent::Citation(citation) => citations.push(citation),
            AnswerEvent::Done(done) => {
                record.done(&done);
                return Ok(ChatReply { answer: text, passages, not_in_effect, quotes, citations, done });
            }
            AnswerEvent::Failed(failure) => return Err(failure.into()),
        }
    }
    Err(ApiError::internal(&"the answer ended without its last event"))
}
