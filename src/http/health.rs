//! `GET /health`: the process is alive, and what it runs. `GET /ready`: whether to send it questions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::state::{AppState, Phase};
use crate::answer::Answerer;

/// Path of [`health`].
pub(super) const HEALTH: &str = "/health";
/// Path of [`ready`].
pub(super) const READY: &str = "/ready";

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn health(State(state): State<AppState>) -> Json<Value> {
    Json(match state.phase() {
        Phase::Loading(detail) => json!({ "status": "loading", "detail": detail, "version": VERSION }),
        Phase::ShuttingDown => json!({ "status": "shutting_down", "version": VERSION }),
        Phase::Ready(answerer) => running(&answerer),
    })
}

fn running(answerer: &Answerer) -> Value {
    let (name, model) = answerer.model();
    let engine = answerer.engine();
    json!({
        "status": "ok",
        "version": VERSION,
        "model": {
            "name": name,
            "sha256": model.fingerprint,
            "architecture": model.config.architecture.as_str(),
            "context": engine.settings().context.min(model.config.context),
        },
        "adapters": answerer.adapters().keys().collect::<Vec<_>>(),
        "generation": generation(answerer),
        "engine": {
            "kernels": model.decoder.cpu().variant().as_str(),
            "threads": model.decoder.cpu().threads(),
            "waiting": engine.waiting(),
            "waiting_tokens": engine.waiting_tokens(),
            "queue": engine.settings().queue,
            "queue_tokens": engine.settings().queue_tokens,
        },
    })
}

/// Ready means that `base` answers; `rag` needs a generation as well, and `null` says that there is none.
pub(super) async fn ready(State(state): State<AppState>) -> Response {
    let not_yet = match state.phase() {
        Phase::Ready(answerer) => {
            return Json(json!({ "status": "ready", "generation": generation(&answerer) })).into_response();
        }
        Phase::Loading(detail) => json!({ "status": "loading", "detail": detail }),
        Phase::ShuttingDown => json!({ "status": "shutting_down" }),
    };
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], Json(not_yet)).into_response()
}

fn generation(answerer: &Answerer) -> Option<String> {
    answerer.index().snapshot().map(|snapshot| snapshot.generation().to_owned())
}
