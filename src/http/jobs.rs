//! Builds of the index that a server runs: one at a time, beside the answers, giving way to them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;

use super::admin;
use super::error::ApiError;
use crate::answer::Answerer;
use crate::ingest::{BuildReport, Finding, Indexer, IngestError, Progress};
use crate::store::StoreError;
use crate::store::disk::Filesystem;
use crate::store::publish::BuildLock;

/// How often progress is told: often enough for a bar, and no more work than that.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What a build is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    /// Getting ready.
    Starting,
    /// Reading files.
    Reading,
    /// Cutting and indexing documents.
    Indexing,
    /// Writing and checking the generation.
    Writing,
}

/// Where the build stands, or how the last one ended.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum Status {
    /// Nothing was built since the server started.
    Idle,
    /// A build runs.
    Running {
        /// When it began, RFC 3339.
        started: String,
        /// What it is at.
        step: Step,
        /// Files or documents done.
        done: usize,
        /// Of how many; 0 where that is not known.
        total: usize,
    },
    /// The last build made a generation that is live.
    Done {
        /// What it did.
        report: Arc<BuildReport>,
    },
    /// The last build made none; what was live is live.
    Failed {
        /// Why.
        error: String,
        /// What was found about the files, where that was the reason.
        findings: Arc<Vec<Finding>>,
    },
}

impl Status {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running { .. } => "progress",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The builds of a server.
pub(super) struct Jobs(watch::Sender<Status>);

impl Default for Jobs {
    fn default() -> Self {
        Self(watch::Sender::new(Status::Idle))
    }
}

impl Jobs {
    pub(super) fn status(&self) -> Status {
        self.0.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// Starts a build, unless one runs here or elsewhere.
    pub(super) fn start(
        &self,
        indexer: Arc<Indexer>,
        answerer: Arc<Answerer>,
        strict: bool,
    ) -> Result<(), ApiError> {
        // The other side of the lock may be a command line; better told now than by a build that fails.
        let free = BuildLock::take(&Filesystem, &indexer.options.index).map(drop);
        let started = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let begin = Status::Running { started: started.clone(), step: Step::Starting, done: 0, total: 0 };
        let was_free = self.0.send_if_modified(|status| {
            let may = !matches!(status, Status::Running { .. }) && free.is_ok();
            if may {
                *status = begin;
            }
            may
        });
        if !was_free {
            return Err(match free {
                Err(error) if !matches!(error, StoreError::Busy(_)) => admin::refused(error),
                _ => ApiError::new(
                    StatusCode::CONFLICT,
                    "build_running",
                    "a build of the index is running; GET /admin/index says how far it is",
                ),
            });
        }
        let tell = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let status = run(&indexer, &answerer, strict, &started, &tell);
            tell.send_replace(status);
        });
        Ok(())
    }
}

fn run(
    indexer: &Indexer,
    answerer: &Answerer,
    strict: bool,
    started: &str,
    tell: &watch::Sender<Status>,
) -> Status {
    let mut last = std::time::Instant::now();
    let mut before = None;
    let built = indexer.build_giving_way(strict, &mut |progress| {
        let (step, done, total) = match progress {
            Progress::Reading(done, total) => (Step::Reading, done, total),
            Progress::Indexing(done, total) => (Step::Indexing, done, total),
            Progress::Writing => (Step::Writing, 0, 0),
        };
        if before != Some(step) || last.elapsed() >= TELL_EVERY {
            before = Some(step);
            last = std::time::Instant::now();
            tell.send_replace(Status::Running { started: started.to_owned(), step, done, total });
        }
    });
    let built = built.and_then(|report| Ok((answerer.index().refresh()?, report)));
    match built {
        Ok((_, report)) => {
            tracing::info!(
                generation = report.generation,
                chunks = report.counts.chunks,
                left_out = report.left_out,
                held_back = report.held_back,
                "the index was built and is live"
            );
            Status::Done { report: Arc::new(report) }
        }
        Err(error) => {
            tracing::error!(%error, "the index was not built; what was live stays live");
            failed(&error)
        }
    }
}

fn failed(error: &IngestError) -> Status {
    Status::Failed { error: error.to_string(), findings: Arc::new(error.findings().to_vec()) }
}

/// The statuses as events: `progress` until `done` or `failed`, or `idle` at once.
pub(super) fn response(statuses: watch::Receiver<Status>, keep_alive: Duration) -> Response {
    let events = Events { statuses: WatchStream::new(statuses), ended: false };
    let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"));
    let mut response = sse.into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Ends with the event that ends the build.
struct Events {
    statuses: WatchStream<Status>,
    ended: bool,
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Some(status) = ready!(Pin::new(&mut self.statuses).poll_next(context)) else {
            return Poll::Ready(None);
        };
        self.ended = !matches!(status, Status::Running { .. });
        let event = Event::default().event(status.name()).json_data(&status);
        // A status is text and numbers, which always become JSON.
        Poll::Ready(Some(Ok(event.unwrap_or_else(|_| Event::default().event("failed").data("{}")))))
    }
}
