//! The engine: one thread that owns the model, and the handle by which the rest of the server asks it.
//!
//! A request goes into a bounded queue and comes back as a bounded stream of events. Dropping the
//! receiver cancels the request within one step, also while its prompt is being read.

mod sampling;
mod text;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc as events;

use crate::model::BaseModel;
use crate::model::lora::Adapter;

pub use sampling::Sampling;

/// Sizes of the engine.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Requests that may wait; one more is refused.
    pub queue: usize,
    /// Requests that run at a time, taking turns.
    pub concurrent: usize,
    /// Prompt tokens read in one turn.
    pub prefill_chunk: usize,
    /// Positions a request may fill: prompt and answer together.
    pub context: usize,
}

/// What to generate.
#[derive(Debug)]
pub struct GenerateRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The adapter to add to the base, if any.
    pub adapter: Option<Arc<Adapter>>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens to generate at the most.
    pub max_tokens: usize,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens`, or the context, was used up.
    Length,
    /// Nothing relevant was found, so the model was not asked.
    Abstained,
}

impl FinishReason {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abstained => "abstained",
        }
    }
}

/// Counts and times of a finished request. Times are in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Completion {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, the one that ended the turn included.
    pub completion_tokens: usize,
    /// From submission to the first step.
    pub queue_ms: f64,
    /// From the first step to the first token.
    pub prefill_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
}

/// What comes back from the engine.
#[derive(Debug)]
pub enum EngineEvent {
    /// More text.
    Text(String),
    /// The last event of a good answer.
    Done(Completion),
    /// The last event of a failed one. The cause is in the log.
    Failed(EngineFailure),
}

/// Why a running request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EngineFailure {
    /// The arithmetic failed; the log has the cause.
    #[error("the model failed on this request")]
    Internal,
    /// The server stopped before the answer was complete.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error("{waiting} requests are already waiting; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// When a place should be free, by the pace of late.
        retry_after: Duration,
    },
    /// The engine takes no more requests.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What handles and worker share.
#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicUsize,
    closing: AtomicBool,
    aborting: AtomicBool,
    /// Running average of a request's time on the engine, in milliseconds.
    pace_ms: AtomicU64,
}

/// A request on its way to the worker.
struct Job {
    request: GenerateRequest,
    events: events::Sender<EngineEvent>,
    submitted: Instant,
    /// What the worker logs about the request, it logs within this.
    span: tracing::Span,
}

/// A cloneable way to ask the engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    settings: Arc<EngineSettings>,
}

/// The running engine; joining it waits for the worker to end.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    worker: std::thread::JoinHandle<()>,
}

impl Engine {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(model: Arc<BaseModel>, settings: EngineSettings) -> std::io::Result<Self> {
        // Bounded all the same: `submit` counts who waits.
        let (jobs, queue) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let settings = Arc::new(settings);
        let worker = worker::Worker::new(model, queue, Arc::clone(&shared), Arc::clone(&settings));
        let worker = std::thread::Builder::new().name("engine".into()).spawn(move || worker.run())?;
        Ok(Self { handle: EngineHandle { jobs, shared, settings }, worker })
    }

    /// A handle to ask with.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Waits until the worker has ended, after [`EngineHandle::close`]. Every other handle may live on.
    pub fn join(self) {
        drop(self.handle);
        if self.worker.join().is_err() {
            tracing::error!("the engine thread panicked");
        }
    }
}

impl EngineHandle {
    /// Submits a request; its events come from the receiver, and dropping that cancels it.
    ///
    /// # Errors
    /// When the queue is full or the engine is closing.
    pub fn submit(&self, request: GenerateRequest) -> Result<events::Receiver<EngineEvent>, SubmitError> {
        if self.shared.closing.load(Ordering::SeqCst) {
            return Err(SubmitError::ShuttingDown);
        }
        // Room for every event that the request can cause, so that a slow reader never blocks the
        // worker: at most one text per token, the held-back rest, and the end.
        let (sender, receiver) = events::channel(request.max_tokens + 3);
        let queue = self.settings.queue.max(1);
        let place = |waiting| (waiting < queue).then_some(waiting + 1);
        if let Err(waiting) = self.shared.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, place) {
            return Err(SubmitError::QueueFull { waiting, retry_after: self.retry_after() });
        }
        let span = tracing::Span::current();
        let job = Job { request, events: sender, submitted: Instant::now(), span };
        self.jobs.send(job).map_err(|_| {
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
            SubmitError::ShuttingDown
        })?;
        Ok(receiver)
    }

    /// The time until a place in the queue is free: one request leaves it whenever one that runs ends, and
    /// those that run end evenly over the time that one of them has taken of late.
    fn retry_after(&self) -> Duration {
        let pace = Duration::from_millis(self.shared.pace_ms.load(Ordering::Relaxed));
        let free = pace / self.settings.concurrent.clamp(1, 1 << 16) as u32;
        // Whole seconds, as the header has them.
        Duration::from_secs(free.as_millis().div_ceil(1_000).max(1) as u64)
    }

    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// The engine's sizes.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Takes no more requests; those that run or wait are finished.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
    }

    /// Ends what still runs or waits with [`EngineFailure::ShuttingDown`].
    pub fn abort(&self) {
        self.close();
        self.shared.aborting.store(true, Ordering::SeqCst);
    }
}
