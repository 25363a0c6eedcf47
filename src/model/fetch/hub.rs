//! The Hugging Face hub as a source.
//!
//! `hf-hub` downloads in a thread of its own, because it knows neither a time limit nor a way to be
//! told to stop: this side counts how long nothing has come and turns to the next source, and the
//! thread ends itself at its next report. `HF_HOME` and `HF_ENDPOINT` are read by `hf-hub`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};

use super::staged::Staged;
use super::{FetchOptions, Progress, SourceError};
use crate::model::catalog::ModelEntry;

/// How often a waiting fetch looks whether it was asked to stop.
const TICK: Duration = Duration::from_millis(100);

/// Where a file lies on the hub.
#[derive(Debug, Clone)]
struct Place {
    repo: String,
    revision: String,
    file: String,
}

/// What the download thread reports.
enum Event {
    Size(u64),
    Bytes(u64),
    Done(Result<PathBuf, ApiError>),
}

/// Passes the client's progress on. When nobody listens any more, it unwinds the thread: the client's
/// interface has no other way to stop a download, and `resume_unwind` prints nothing.
struct Relay(SyncSender<Event>);

impl Relay {
    fn send(&self, event: Event) {
        if self.0.send(event).is_err() {
            std::panic::resume_unwind(Box::new("the download was given up"));
        }
    }
}

impl hf_hub::api::Progress for Relay {
    fn init(&mut self, size: usize, _filename: &str) {
        self.send(Event::Size(size as u64));
    }

    fn update(&mut self, size: usize) {
        self.send(Event::Bytes(size as u64));
    }

    fn finish(&mut self) {}
}

/// Downloads all files of `entry` below `stage`, in the entry's order.
pub(super) fn fetch(
    entry: &ModelEntry,
    (repo, revision): (&str, &str),
    remote_name: impl Fn(&str) -> String,
    stage: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<Staged>, SourceError> {
    let mut staged = Vec::with_capacity(entry.files.len());
    for (i, file) in entry.files.iter().enumerate() {
        let place =
            Place { repo: repo.to_owned(), revision: revision.to_owned(), file: remote_name(&file.name) };
        let linked = download(place, &stage.join("hub"), file.size, options, progress)?;
        // The client hands out a link into its own cache; the file itself is what moves.
        let path = stage.join(i.to_string());
        fs::canonicalize(&linked).and_then(|real| fs::rename(real, &path)).map_err(|source| {
            SourceError::Io { action: "move the downloaded", path: linked.clone(), source }
        })?;
        staged.push(Staged::measure(path, &options.cancel)?);
    }
    Ok(staged)
}

fn download(
    place: Place,
    hub_cache: &Path,
    wanted: u64,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, SourceError> {
    let file = place.file.clone();
    let (sender, events) = mpsc::sync_channel(64);
    let mut builder = ApiBuilder::from_env()
        .with_cache_dir(hub_cache.to_path_buf())
        .with_progress(false)
        .with_user_agent("shishin", env!("CARGO_PKG_VERSION"));
    if let Some(endpoint) = &options.hub_endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(token) = &options.hub_token {
        builder = builder.with_token(Some(token.clone()));
    }
    let run = move || {
        let relay = Relay(sender.clone());
        let result = builder.build().and_then(|api| {
            api.repo(Repo::with_revision(place.repo, RepoType::Model, place.revision))
                .download_with_progress(&place.file, relay)
        });
        // Nobody may be left to hear it.
        let _ = sender.send(Event::Done(result));
    };
    let failed = |reason: String| SourceError::Hub { file: file.clone(), reason };
    std::thread::Builder::new()
        .name("hub-download".into())
        .spawn(run)
        .map_err(|error| failed(format!("no thread for the download: {error}")))?;

    let tick = TICK.min(options.patience);
    let mut silent = Duration::ZERO;
    loop {
        let event = events.recv_timeout(tick);
        if options.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        match event {
            Ok(Event::Size(got)) if got != wanted => {
                return Err(SourceError::Size { file, got, want: wanted });
            }
            Ok(Event::Size(_)) => silent = Duration::ZERO,
            Ok(Event::Bytes(n)) => {
                silent = Duration::ZERO;
                progress.advance(n);
            }
            Ok(Event::Done(Ok(path))) => return Ok(path),
            Ok(Event::Done(Err(error))) => return Err(failed(explain(&error))),
            Err(RecvTimeoutError::Timeout) => {
                silent += tick;
                if silent >= options.patience {
                    return Err(SourceError::Silent { file, seconds: silent.as_secs_f32() });
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed("the hub client stopped half-way".into()));
            }
        }
    }
}

fn explain(error: &ApiError) -> String {
    let text = error.to_string();
    if text.contains("401") || text.contains("403") {
        format!("{text} (the repository may ask for a login: set HF_TOKEN)")
    } else {
        text
    }
}
