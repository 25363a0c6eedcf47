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
    let mut all = Vec::new();
    for (mode, answer) in modes.into_iter().zip(answers) {
        all.push((mode, whole(answer, &record).await));
    }
    let answers = unless_all_failed(all)?.into_iter().map(|(mode, answer)| match answer {
        Ok(reply) => Compared::Answered(Box::new(reply)),
        Err(error) => Compared::Failed(sse::refused(&error, Some(mode), &record)),
    });
    Ok(Json(CompareReply { answers: answers.collect() }).into_response())
}

/// What a mode came to.
type Outcome<T> = (Mode, Result<T, ApiError>);

/// All of it; where none answered, the first one's error, so that the status says so.
fn unless_all_failed<T>(all: Vec<Outcome<T>>) -> Result<Vec<Outcome<T>>, ApiError> {
    if all.iter().any(|(_, answer)| answer.is_ok()) {
        return Ok(all);
    }
    match all.into_iter().find_map(|(_, answer)| answer.err()) {
        Some(error) => Err(error),
        None => Ok(Vec::new()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineFailure;

    #[test]
    fn a_failure_takes_no_answer_from_other_modes() {
        let failed = |failure: EngineFailure| -> Result<&str, ApiError> { Err(failure.into()) };
        let some = vec![(Mode::Base, failed(EngineFailure::Internal)), (Mode::Rag, Ok("5 mg"))];
        let some = unless_all_failed(some).unwrap();
        assert_eq!((some[0].0, some[0].1.is_err()), (Mode::Base, true));
        assert_eq!((some[1].0, *some[1].1.as_ref().unwrap()), (Mode::Rag, "5 mg"));
        let none = vec![
            (Mode::Base, failed(EngineFailure::ShuttingDown)),
            (Mode::Rag, failed(EngineFailure::Internal)),
        ];
        let first: ApiError = EngineFailure::ShuttingDown.into();
        assert_eq!(unless_all_failed(none).unwrap_err().code(), first.code());
    }
}
