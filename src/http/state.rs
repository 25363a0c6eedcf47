//! What every request shares: the settings, and the answerer once it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use super::HttpSettings;
use super::error::ApiError;
use super::jobs::Jobs;
use crate::answer::Answerer;
use crate::ingest::Indexer;
use crate::tune::queue::Queue;

/// The server's state; clones share it. It starts as loading, so that the listener can be up, and say
/// so, while the model is fetched and read.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    settings: HttpSettings,
    preparing: Arc<Semaphore>,
    answerer: OnceLock<Arc<Answerer>>,
    indexer: OnceLock<Arc<Indexer>>,
    queue: OnceLock<Queue>,
    jobs: Jobs,
    detail: Mutex<String>,
    closing: AtomicBool,
}

/// Where the server stands.
pub(super) enum Phase {
    /// The model is not there yet; what is being done.
    Loading(String),
    /// Requests are answered.
    Ready(Arc<Answerer>),
    /// No more requests are taken.
    ShuttingDown,
}

impl AppState {
    /// A state without an answerer.
    pub fn new(settings: HttpSettings) -> Self {
        let preparing = Arc::new(Semaphore::new(settings.preparing.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared {
            settings,
            preparing,
            answerer: OnceLock::new(),
            indexer: OnceLock::new(),
            queue: OnceLock::new(),
            jobs: Jobs::default(),
            detail: Mutex::new("starting".into()),
            closing: AtomicBool::new(false),
        }))
    }

    /// Says what is being done before the answerer is there.
    pub fn set_detail(&self, detail: String) {
        *self.0.detail.lock().unwrap_or_else(PoisonError::into_inner) = detail;
    }

    /// Hands over the answerer: from now on requests are answered. Only the first one counts.
    pub fn set_ready(&self, answerer: Arc<Answerer>) {
        if self.0.answerer.set(answerer).is_err() {
            tracing::warn!("the server was given a second answerer; the first one stays");
        }
    }

    /// Hands over what builds the index; without it `/admin/index` cannot. Only the first one counts.
    pub fn set_indexer(&self, indexer: Indexer) {
        let _ = self.0.indexer.set(Arc::new(indexer));
    }

    /// Hands over the runs of tuning; without them `/v1/fine_tuning/jobs` takes none. Only the first one counts.
    pub fn set_queue(&self, queue: Queue) {
        let _ = self.0.queue.set(queue);
    }

    pub(super) fn queue(&self) -> Option<Queue> {
        self.0.queue.get().cloned()
    }

    pub(super) fn indexer(&self) -> Option<Arc<Indexer>> {
        self.0.indexer.get().cloned()
    }

    pub(super) fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    /// Refuses requests from now on; those under way go on.
    pub fn begin_shutdown(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
    }

    /// Ends the answers under way.
    pub(super) fn abort(&self) {
        if let Some(answerer) = self.0.answerer.get() {
            answerer.engine().abort();
        }
    }

    pub(super) fn settings(&self) -> &HttpSettings {
        &self.0.settings
    }

    /// Permits to retrieve and make a prompt.
    pub(super) fn preparing(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.preparing)
    }

    pub(super) fn phase(&self) -> Phase {
        if self.0.closing.load(Ordering::SeqCst) {
            return Phase::ShuttingDown;
        }
        match self.0.answerer.get() {
            Some(answerer) => Phase::Ready(Arc::clone(answerer)),
            None => Phase::Loading(self.0.detail.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// The answerer, or the refusal that says why there is none.
    pub(super) fn answerer(&self) -> Result<Arc<Answerer>, ApiError> {
        match self.phase() {
            Phase::Ready(answerer) => Ok(answerer),
            Phase::Loading(detail) => Err(ApiError::loading(&detail)),
            Phase::ShuttingDown => Err(ApiError::shutting_down()),
        }
    }
}
