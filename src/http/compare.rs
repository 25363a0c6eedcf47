//! `POST /compare`: one question, answered in several modes side by side over one search of one snapshot.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use tokio_stream::StreamMap;

use super::chat::{in_turn, whole};
use super::error::ApiError;
use super::observe::Record;
use super::state::AppState;
use super::types::{ChatRequest, CompareReply, Compared};
use super::{extract, sse};
use crate::answer::{Answerer, Mode, Question, Way};

pub(super) async fn compare(
    State(state): State<AppState>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let answerer = state.answerer()?;
    let request: ChatRequest = extract::json(state.settings(), &headers, body).await?;
    let streams = request.streams();
    let (question, modes) = request.into_comparison()?;
    let modes = modes.unwrap_or_else(|| possible(&answerer, &question));
    let ways: Vec<Way> = modes.iter().map(|mode| way(*mode, &question)).collect();
    let answers = in_turn(&state, move || answerer.compare(&question, &ways)).await??;
    if streams {
        let answers: StreamMap<Mode, _> = modes.into_iter().zip(answers).collect();
        return Ok(sse::side_by_side(answers, record, state.settings().keep_alive));
    }
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for (mode, answer) in modes.into_iter().zip(answers) {
        all.push(match whole(answer, &record).await {
            Ok(reply) => Compared::Answered(Box::new(reply)),
            Err(error) => {
                let told = sse::refused(&error, Some(mode), &record);
                failed.push(error);
                Compared::Failed(told)
            }
        });
    }
    match failed.pop() {
        // Where nothing was answered the status says so.
        Some(error) if failed.len() + 1 == all.len() => Err(error),
        _ => Ok(Json(CompareReply { answers: all }).into_response()),
    }
}

/// The adapter is for the modes that take one.
fn way(mode: Mode, question: &Question) -> Way {
    Way { mode, adapter: question.adapter.clone().filter(|_| mode.adapts()), before: Vec::new() }
}

/// All modes that this server can answer in.
fn possible(answerer: &Answerer, question: &Question) -> Vec<Mode> {
    let adapter = question.adapter.is_some() || answerer.settings().default_adapter.is_some();
    let index = answerer.index().snapshot().is_some();
    let can = |mode: &Mode| (adapter || !mode.adapts()) && (index || !mode.retrieves());
    Mode::ALL.into_iter().filter(can).collect()
}
