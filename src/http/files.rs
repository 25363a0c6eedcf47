//! `/v1/files`: data for runs of tuning, in OpenAI's shapes (<https://platform.openai.com/docs/api-reference/files>), for whoever may use
//! `/admin`. A file is known by its name, so that what an operator has put into the folder is one too.

use std::io::Read as _;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest as _, Path, RawQuery, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use super::HttpSettings;
use super::error::ApiError;
use super::state::AppState;
use super::tuning::{Page, blocking, queue, refused};
use crate::tune::files::{DataFile, DataFiles, FileError, Upload};
use crate::tune::queue::QueueError;

/// What files are for, here.
const PURPOSE: &str = "fine-tune";
/// How long a file may take to come.
const WHOLE: Duration = Duration::from_secs(600);
/// What a form may hold besides the file, in bytes.
const FORM: u64 = 16 << 10;
/// Bytes of a file that are read at a time, to be sent.
const PIECE: usize = 64 << 10;

/// The largest body of [`create`].
pub(super) fn body_limit(settings: &HttpSettings) -> usize {
    usize::try_from(settings.file_limit.saturating_add(FORM)).unwrap_or(usize::MAX)
}

/// `POST /v1/files`: multipart/form-data with `purpose` and `file`.
pub(super) async fn create(State(state): State<AppState>, request: Request) -> Result<Json<Value>, ApiError> {
    let files = queue(&state)?.files().clone();
    let received = tokio::time::timeout(WHOLE, receive(&state, &files, request)).await;
    let (name, upload) = received.unwrap_or_else(|_| {
        let message = format!("the file did not come within {} s", WHOLE.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
    })?;
    let file = blocking(move || {
        upload.finish()?;
        Ok(files.get(&name)?)
    });
    Ok(Json(shown(&file.await?)))
}

/// Reads the form: the file's name, and the file aside.
async fn receive(
    state: &AppState,
    files: &DataFiles,
    request: Request,
) -> Result<(String, Upload), ApiError> {
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| {
        let message = "send multipart/form-data with a boundary: -F purpose=fine-tune -F file=@train.jsonl";
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    })?;
    let mut purposeful = false;
    let mut upload = None;
    loop {
        let next = patiently(state, form.next_field()).await?;
        let Some(mut field) = next.map_err(|error| broken(state, &error))? else { break };
        match field.name() {
            Some("purpose") => {
                let mut purpose = Vec::new();
                while let Some(bytes) = piece(state, &mut field).await? {
                    purpose.extend(bytes);
                    if !PURPOSE.as_bytes().starts_with(&purpose) {
                        break;
                    }
                }
                if purpose != PURPOSE.as_bytes() {
                    let message = format!("files are here to learn from: purpose is `{PURPOSE}`");
                    return Err(ApiError::invalid_value("purpose", message));
                }
                purposeful = true;
            }
            Some("file") if upload.is_none() => {
                let Some(name) = field.file_name().map(str::to_owned) else {
                    return Err(ApiError::invalid_value("file", "the part `file` has no filename"));
                };
                let limit = state.settings().file_limit;
                let mut begun = blocking({
                    let (files, name) = (files.clone(), name.clone());
                    move || Ok(files.begin(&name, limit)?)
                })
                .await?;
                while let Some(bytes) = piece(state, &mut field).await? {
                    begun = blocking(move || {
                        begun.write(&bytes)?;
                        Ok(begun)
                    })
                    .await?;
                }
                upload = Some((name, begun));
            }
            Some("file") => return Err(ApiError::invalid_value("file", "one file at a time")),
            other => {
                let name = other.unwrap_or_default();
                let message = format!("there is no field `{name}`; there are purpose and file");
                return Err(ApiError::unknown_field(name, message));
            }
        }
    }
    if !purposeful {
        return Err(ApiError::invalid_value("purpose", format!("there is no purpose: -F purpose={PURPOSE}")));
    }
    upload.ok_or_else(|| ApiError::invalid_value("file", "there is no file: -F file=@train.jsonl"))
}

/// The next bytes of a field.
async fn piece(state: &AppState, field: &mut Field<'_>) -> Result<Option<Vec<u8>>, ApiError> {
    let piece = patiently(state, field.chunk()).await?;
    Ok(piece.map_err(|error| broken(state, &error))?.map(Vec::from))
}

/// What comes within the time that a body may take: here for each piece, since files are large.
async fn patiently<T>(state: &AppState, coming: impl Future<Output = T>) -> Result<T, ApiError> {
    let patience = state.settings().body_timeout;
    tokio::time::timeout(patience, coming).await.map_err(|_| {
        let message = format!("nothing more of the file came within {} s", patience.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    })
}

fn broken(state: &AppState, error: &MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return refused(&FileError::TooLarge(state.settings().file_limit).into());
    }
    let message = format!("the form could not be read: {}", error.body_text());
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
}

/// `GET /v1/files`: the newest first, unless `order` is `asc`.
pub(super) async fn list(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let mut files = blocking(move || Ok(queue.files().list()?)).await?;
    let mut rest = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match (&*key, &*value) {
            ("purpose", PURPOSE) | ("order", "desc") => {}
            // None is for anything else.
            ("purpose", _) => files.clear(),
            ("order", "asc") => files.reverse(),
            ("order", _) => return Err(ApiError::invalid_value("order", "order must be asc or desc")),
            _ => {
                rest.append_pair(&key, &value);
            }
        }
    }
    Page::read(Some(&rest.finish()))?.of(files.iter().map(shown).collect())
}

/// `GET /v1/files/NAME`.
pub(super) async fn retrieve(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let file = blocking(move || Ok(queue.files().get(&name)?));
    Ok(Json(shown(&file.await?)))
}

/// `GET /v1/files/NAME/content`.
pub(super) async fn content(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let queue = queue(&state)?;
    let (length, file) = blocking(move || {
        let path = queue.files().path(&name)?;
        let opened = std::fs::File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        opened.map_err(|e| QueueError::Disk(format!("cannot read {}: {e}", path.display())))
    })
    .await?;
    // Read as it is sent: a file may be large.
    let (pieces, body) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(2);
    tokio::task::spawn_blocking(move || {
        let mut file = file.take(length);
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece);
            let last = !matches!(read, Ok(1..));
            let ended = matches!(read, Ok(0));
            // Who has left hears nothing more.
            if ended || pieces.blocking_send(read.map(|_| piece)).is_err() || last {
                return;
            }
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// `DELETE /v1/files/NAME`; not one that a job still needs.
pub(super) async fn remove(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let queue = queue(&state)?;
    let gone = json!({ "id": name, "object": "file", "deleted": true });
    blocking(move || queue.remove_file(&name)).await?;
    Ok(Json(gone))
}

/// A file in OpenAI's shape.
fn shown(file: &DataFile) -> Value {
    json!({
        "object": "file",
        "id": file.name,
        "filename": file.name,
        "bytes": file.bytes,
        "created_at": file.created_at,
        "purpose": PURPOSE,
        "status": "processed",
    })
}
