//! `/v1/fine_tuning/jobs`: runs of tuning, in OpenAI's shapes (<https://platform.openai.com/docs/api-reference/fine-tuning>), for whoever
//! may use `/admin`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::extract;
use super::state::AppState;
use crate::tune::files::FileError;
use crate::tune::queue::{Hyperparameters, Job, JobRequest, JobStatus, Queue, QueueError};
use crate::tune::run::{self, Step};

/// Entries of a page, unless a request says, and the most that it may say.
const PAGE: usize = 20;
const MOST: usize = 100;

/// A number, or OpenAI's `"auto"` for the recipe's.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Choice<T> {
    Number(T),
    Auto(Auto),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Auto {
    Auto,
}

impl<T: Copy> Choice<T> {
    fn number(self) -> Option<T> {
        match self {
            Self::Number(number) => Some(number),
            Self::Auto(Auto::Auto) => None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    n_epochs: Option<Choice<usize>>,
    batch_size: Option<Choice<usize>>,
    learning_rate_multiplier: Option<Choice<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Supervised {
    #[serde(default)]
    hyperparameters: Choices,
}

/// How: only from answers.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum Method {
    Supervised { supervised: Option<Supervised> },
}

/// The body of a request for a job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateJob {
    model: String,
    training_file: String,
    validation_file: Option<String>,
    suffix: Option<String>,
    seed: Option<u64>,
    #[serde(default)]
    hyperparameters: Choices,
    method: Option<Method>,
}

/// The runs of this server.
pub(super) fn queue(state: &AppState) -> Result<Queue, ApiError> {
    state.answerer()?;
    state.queue().ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "tuning_off",
            "this server does not tune: name a folder in the setting tuning.directory",
        )
    })
}

/// `POST /v1/fine_tuning/jobs`.
pub(super) async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let asked: CreateJob = extract::json(state.settings(), &headers, body).await?;
    let answerer = state.answerer()?;
    let (serving, _) = answerer.model();
    if asked.model != serving {
        let message = format!("this server tunes the model that it serves, `{serving}`");
        return Err(ApiError::invalid_value("model", message));
    }
    let choices = match asked.method {
        Some(Method::Supervised { supervised: Some(supervised) }) => supervised.hyperparameters,
        _ => asked.hyperparameters,
    };
    let request = JobRequest {
        training_file: asked.training_file,
        validation_file: asked.validation_file,
        suffix: asked.suffix,
        seed: asked.seed,
        hyperparameters: Hyperparameters {
            n_epochs: choices.n_epochs.and_then(Choice::number),
            batch_size: choices.batch_size.and_then(Choice::number),
            learning_rate_multiplier: choices.learning_rate_multiplier.and_then(Choice::number),
        },
    };
    let job = blocking(move || queue.create(request)).await?;
    Ok(Json(shown(&job, &[])))
}

/// Which part of a list is wanted.
pub(super) struct Page {
    after: Option<String>,
    limit: usize,
}

impl Page {
    pub(super) fn read(query: Option<&str>) -> Result<Self, ApiError> {
        let mut page = Self { after: None, limit: PAGE };
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match key.as_ref() {
                "after" => page.after = Some(value.into_owned()),
                "limit" => {
                    page.limit =
                        value.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
                            ApiError::invalid_value("limit", format!("limit must be 1 to {MOST}"))
                        })?;
                }
                other => {
                    let message = format!("there is no parameter `{other}`; there are after and limit");
                    return Err(ApiError::unknown_field(other, message));
                }
            }
        }
        Ok(page)
    }

    /// The entries after the named one, and whether more follow.
    pub(super) fn of(&self, entries: Vec<Value>) -> Result<Json<Value>, ApiError> {
        let limit = self.limit;
        let from = match &self.after {
            None => 0,
            Some(after) => match entries.iter().position(|entry| entry["id"] == after.as_str()) {
                Some(at) => at + 1,
                None => return Err(ApiError::invalid_value("after", format!("there is no `{after}` here"))),
            },
        };
        let more = entries.len() > from + limit;
        let data: Vec<Value> = entries.into_iter().skip(from).take(limit).collect();
        let id = |entry: Option<&Value>| entry.map_or(Value::Null, |entry| entry["id"].clone());
        Ok(Json(json!({
            "object": "list",
            "first_id": id(data.first()),
            "last_id": id(data.last()),
            "data": data,
            "has_more": more,
        })))
    }
}

/// `GET /v1/fine_tuning/jobs`: the newest first.
pub(super) async fn list(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let jobs = blocking(move || {
        Ok(queue.list().into_iter().map(|job| shown(&job, &queue.steps(&job.id))).collect())
    });
    Page::read(query.as_deref())?.of(jobs.await?)
}

/// `GET /v1/fine_tuning/jobs/ID`.
pub(super) async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let (job, steps) = blocking(move || Ok((queue.get(&id)?, queue.steps(&id)))).await?;
    Ok(Json(shown(&job, &steps)))
}

/// `POST /v1/fine_tuning/jobs/ID/cancel`.
pub(super) async fn cancel(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let job = blocking(move || queue.cancel(&id)).await?;
    Ok(Json(shown(&job, &[])))
}

/// `GET /v1/fine_tuning/jobs/ID/events`: the newest first.
pub(super) async fn events(
    State(state): State<AppState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let (job, steps) = blocking(move || Ok((queue.get(&id)?, queue.steps(&id)))).await?;
    let mut events: Vec<Value> = Vec::new();
    for (n, (at, message)) in job.events.iter().enumerate() {
        events.push(json!({
            "object": "fine_tuning.job.event",
            "id": format!("{}-event-{n}", job.id),
            "created_at": at,
            "level": if job.error.is_some() && n + 1 == job.events.len() { "error" } else { "info" },
            "message": message,
            "type": "message",
            "data": {},
        }));
    }
    // Steps come between the beginning and what ended the run; they carry no time of their own.
    let ended = job.finished_at.is_some() && events.len() > 1;
    let at = if ended { events.len() - 1 } else { events.len() };
    let metrics: Vec<Value> = steps
        .iter()
        .map(|step| {
            json!({
                "object": "fine_tuning.job.event",
                "id": format!("{}-step-{}", job.id, step.step),
                "created_at": job.events.last().map_or(job.created_at, |(at, _)| *at),
                "level": "info",
                "message": format!("step {}/{}: training loss {:.4}", step.step, step.steps, step.loss),
                "type": "metrics",
                "data": {
                    "step": step.step,
                    "total_steps": step.steps,
                    "train_loss": step.loss,
                    "valid_loss": step.valid,
                },
            })
        })
        .collect();
    events.splice(at..at, metrics);
    events.reverse();
    Page::read(query.as_deref())?.of(events)
}

/// `GET /v1/fine_tuning/jobs/ID/checkpoints`: the steps at which the validation examples were looked at, the newest first. The adapter of
/// the best one, within the recipe's budget where there is one, is what a finished job serves, and has its name.
pub(super) async fn checkpoints(
    State(state): State<AppState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let (job, steps) = blocking(move || Ok((queue.get(&id)?, queue.steps(&id)))).await?;
    let best = run::best(&steps);
    let looks = steps.iter().rev().filter_map(|step| Some((step, step.valid?)));
    let shown = looks.map(|(step, valid)| {
        let adapter = job.fine_tuned_model.as_ref().filter(|_| best == Some(step.step));
        json!({
            "object": "fine_tuning.job.checkpoint",
            "id": format!("{}-checkpoint-{}", job.id, step.step),
            "created_at": job.finished_at.unwrap_or(job.created_at),
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": adapter,
            "step_number": step.step,
            "metrics": { "step": step.step, "train_loss": step.loss, "valid_loss": valid },
        })
    });
    Page::read(query.as_deref())?.of(shown.collect())
}

/// Does what waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))?;
    done.map_err(|error| refused(&error))
}

/// What is said of it.
pub(super) fn refused(error: &QueueError) -> ApiError {
    let message = error.to_string();
    match error {
        QueueError::Invalid { param, .. } => ApiError::invalid_value(*param, message),
        QueueError::Unknown(_) => ApiError::new(StatusCode::NOT_FOUND, "no_such_job", message),
        QueueError::File(error) => match error {
            FileError::Unknown(_) => ApiError::new(StatusCode::NOT_FOUND, "no_such_file", message),
            FileError::Name(_) | FileError::Faults(_) => ApiError::invalid_value("file", message),
            FileError::Taken(_) => ApiError::new(StatusCode::CONFLICT, "file_exists", message),
            FileError::TooLarge(_) => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", message),
            FileError::Disk(_) => ApiError::internal(&message),
        },
        QueueError::Needed { .. } => ApiError::new(StatusCode::CONFLICT, "file_in_use", message),
        QueueError::Ended { .. } => ApiError::new(StatusCode::CONFLICT, "job_ended", message),
        QueueError::Full => ApiError::too_many_jobs(message),
        QueueError::Disk(_) => ApiError::internal(&message),
    }
}

/// A job in OpenAI's shape.
fn shown(job: &Job, steps: &[Step]) -> Value {
    let choice = |number: Option<Value>| number.unwrap_or_else(|| json!("auto"));
    let chosen = job.request.hyperparameters;
    let hyperparameters = json!({
        "n_epochs": choice(chosen.n_epochs.map(Value::from)),
        "batch_size": choice(chosen.batch_size.map(Value::from)),
        "learning_rate_multiplier": choice(chosen.learning_rate_multiplier.map(Value::from)),
    });
    let left = match (job.status, steps.last()) {
        (JobStatus::Running, Some(last)) => {
            let seconds: f64 = steps.iter().map(|s| s.seconds).sum();
            let left = (last.steps - last.step.min(last.steps)) as f64 * seconds / steps.len() as f64;
            Some(jiff::Timestamp::now().as_second() + left as i64)
        }
        _ => None,
    };
    json!({
        "object": "fine_tuning.job",
        "id": job.id,
        "model": job.model,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": "",
        "status": job.status,
        "training_file": job.request.training_file,
        "validation_file": job.request.validation_file,
        "result_files": [],
        "trained_tokens": (!steps.is_empty()).then(|| steps.iter().map(|s| s.tokens).sum::<usize>()),
        "error": job.error.as_ref().map(|message| json!({ "code": "run_failed", "message": message, "param": null })),
        "hyperparameters": hyperparameters,
        "method": { "type": "supervised", "supervised": { "hyperparameters": hyperparameters } },
        "seed": job.request.seed,
        "estimated_finish": left,
    })
}
