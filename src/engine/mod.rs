//! The engine: one thread that owns the model, and the handle by which the rest of the server asks it.
//!
//! A request goes into a queue, bounded in requests and in tokens, and comes back as a bounded stream of
//! events. Dropping the receiver cancels the request within one pass, also while its prompt is being read.
//!
//! In reading order: [`EngineHandle`] (asking), `worker` (who runs in which pass), `blocks` and `prefix` (who
//! holds which part of the key-value cache), `drafts` (guessing ahead), `sampling` and `text`.

pub mod blocks;
mod drafts;
mod names;
mod prefix;
mod sampling;
mod text;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc as events;

use crate::kernels::KvCache;
use crate::model::BaseModel;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::quote::QuoteGuide;

pub use sampling::{MAX_NO_REPEAT, Sampling};

/// Sizes of the engine.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Requests that may wait; one more is refused.
    pub queue: usize,
    /// Prompt tokens of all waiting requests together, at the most; a request is never refused for these when
    /// nobody else waits.
    pub queue_tokens: usize,
    /// Requests that run at a time, together.
    pub concurrent: usize,
    /// Prompt tokens read in one pass while answers are being written.
    pub prefill_chunk: usize,
    /// Positions a request may fill: prompt and answer together.
    pub context: usize,
    /// Bytes of key-value cache, for running requests and for prefixes kept.
    pub cache_bytes: usize,
    /// Keep the keys and values of prompts for requests that begin alike.
    pub prefix_cache: bool,
    /// Tokens to guess ahead at the most; 0 turns drafting off.
    pub draft_tokens: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            queue: 32,
            queue_tokens: 32_768,
            concurrent: 8,
            prefill_chunk: 256,
            context: 4096,
            cache_bytes: 512 << 20,
            prefix_cache: true,
            draft_tokens: drafts::MAX_DRAFT,
        }
    }
}

impl EngineSettings {
    /// Prompt tokens read in one pass while nobody waits for a token: twice the usual.
    pub fn chunk_alone(&self) -> usize {
        2 * self.prefill_chunk.max(1)
    }
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// Not even one request has room.
    #[error(
        "a request of {context} tokens needs {needed} MB of key-value cache and engine.cache_mb gives {given}; raise it, or lower engine.context_tokens"
    )]
    Cache {
        /// Positions of a request.
        context: usize,
        /// Megabytes that they need.
        needed: usize,
        /// Megabytes that there are.
        given: usize,
    },
}

/// What to generate.
#[derive(Debug)]
pub struct GenerateRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The adapter to add to the base, if any.
    pub adapter: Option<Arc<PackedAdapter>>,
    /// Keys and values are shared with requests of the same salt only.
    pub cache_salt: Option<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens to generate at the most.
    pub max_tokens: usize,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// What quotes before the answer may say, and what of it is preferred.
    pub quotes: QuoteGuide,
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
    /// How many of them were in the cache already.
    pub cached_tokens: usize,
    /// Tokens generated, the one that ended the turn included.
    pub completion_tokens: usize,
    /// Tokens guessed ahead.
    pub drafted_tokens: usize,
    /// How many of those were right.
    pub accepted_tokens: usize,
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
    #[error(
        "{waiting} requests with {tokens} prompt tokens are already waiting; try again in {} s",
        retry_after.as_secs()
    )]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// Prompt tokens of those.
        tokens: usize,
        /// When there should be room, by the pace of late.
        retry_after: Duration,
    },
    /// A prompt without a token.
    #[error("the prompt is empty")]
    Empty,
    /// The request is larger than the engine's context.
    #[error("prompt and answer need {asked} tokens and the engine has {context} for a request")]
    TooLong {
        /// Tokens of prompt and answer.
        asked: usize,
        /// Tokens of a request at the most.
        context: usize,
    },
    /// The engine takes no more requests.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What handles and worker share.
#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicUsize,
    waiting_tokens: AtomicUsize,
    closing: AtomicBool,
    aborting: AtomicBool,
    /// Running average of a request's time on the engine, in milliseconds.
    pace_ms: AtomicU64,
    /// Running average of reading a prompt token, in nanoseconds.
    token_ns: AtomicU64,
}

/// Before the first measurement.
const ASSUMED_TOKEN_NS: u64 = 2_000_000;

/// A running average over about eight observations.
fn average(slot: &AtomicU64, new: u128) {
    let new = u64::try_from(new).unwrap_or(u64::MAX);
    let old = slot.load(Ordering::Relaxed);
    let next = if old == 0 { new } else { old.saturating_mul(7).saturating_add(new) / 8 };
    slot.store(next.max(1), Ordering::Relaxed);
}

impl Shared {
    fn left_queue(&self, request: &GenerateRequest) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.waiting_tokens.fetch_sub(request.prompt.len(), Ordering::SeqCst);
    }

    fn note_pace(&self, took: Duration) {
        average(&self.pace_ms, took.as_millis());
    }

    fn note_prefill(&self, tokens: usize, took: Duration) {
        average(&self.token_ns, took.as_nanos() / tokens.max(1) as u128);
    }

    /// How long reading this many prompt tokens should take.
    fn prefill_time(&self, tokens: usize) -> Duration {
        let each = match self.token_ns.load(Ordering::Relaxed) {
            0 => ASSUMED_TOKEN_NS,
            measured => measured,
        };
        Duration::from_nanos(each.saturating_mul(tokens as u64))
    }
}

/// A request on its way to the worker.
struct Job {
    request: GenerateRequest,
    events: events::Sender<EngineEvent>,
    submitted: Instant,
    /// When it would be read if it were alone: who would be done earlier goes first, and since this does not
    /// move, everyone's turn comes.
    turn: Instant,
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
    /// Reserves the cache and starts the worker thread.
    ///
    /// # Errors
    /// When the operating system gives no thread, or the cache has no room for one request.
    pub fn start(model: &Arc<BaseModel<FastDecoder>>, settings: &EngineSettings) -> Result<Self, StartError> {
        let shape = model.decoder.cache_shape();
        let context = settings.context.min(model.config.context);
        let pages = settings.cache_bytes / shape.page_bytes();
        let needed = context.div_ceil(blocks::BLOCK_TOKENS);
        if pages < needed {
            return Err(StartError::Cache {
                context,
                needed: (needed * shape.page_bytes()).div_ceil(1 << 20),
                given: settings.cache_bytes >> 20,
            });
        }
        let cache = KvCache::new(shape, pages);
        // Bounded all the same: `submit` counts who waits.
        let (jobs, queue) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let settings = Arc::new(EngineSettings { context, ..settings.clone() });
        let worker =
            worker::Worker::new(Arc::clone(model), queue, Arc::clone(&shared), Arc::clone(&settings), cache);
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
    /// When the request is too long, the queue is full, or the engine is closing.
    pub fn submit(&self, request: GenerateRequest) -> Result<events::Receiver<EngineEvent>, SubmitError> {
        if self.shared.closing.load(Ordering::SeqCst) {
            return Err(SubmitError::ShuttingDown);
        }
        let (prompt, context) = (request.prompt.len(), self.settings.context);
        let asked = prompt.saturating_add(request.max_tokens);
        if prompt == 0 {
            return Err(SubmitError::Empty);
        }
        if asked > context {
            return Err(SubmitError::TooLong { asked, context });
        }
        // Room for every event that the request can cause, so that a slow reader never blocks the
        // worker: at most one text per token, the held-back rest, and the end.
        let (sender, receiver) = events::channel(request.max_tokens + 3);
        self.enter_queue(prompt)?;
        let now = Instant::now();
        let job = Job {
            request,
            events: sender,
            submitted: now,
            turn: now + self.shared.prefill_time(prompt),
            span: tracing::Span::current(),
        };
        self.jobs.send(job).map_err(|refused| {
            self.shared.left_queue(&refused.0.request);
            SubmitError::ShuttingDown
        })?;
        Ok(receiver)
    }

    /// Takes a place in the queue, in requests and in tokens.
    fn enter_queue(&self, prompt: usize) -> Result<(), SubmitError> {
        let (requests, tokens) = (&self.shared.waiting, &self.shared.waiting_tokens);
        let full =
            |waiting, tokens| SubmitError::QueueFull { waiting, tokens, retry_after: self.retry_after() };
        let most = self.settings.queue.max(1);
        let place = |waiting| (waiting < most).then_some(waiting + 1);
        if let Err(waiting) = requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, place) {
            return Err(full(waiting, tokens.load(Ordering::SeqCst)));
        }
        let most = self.settings.queue_tokens;
        let place = |waiting: usize| (waiting == 0 || waiting + prompt <= most).then_some(waiting + prompt);
        if let Err(waiting) = tokens.fetch_update(Ordering::SeqCst, Ordering::SeqCst, place) {
            let requests = requests.fetch_sub(1, Ordering::SeqCst) - 1;
            return Err(full(requests, waiting));
        }
        Ok(())
    }

    /// The time until there is room in the queue. One request leaves it whenever one that runs ends, and those
    /// that run end evenly over the time that one of them has taken of late; and before it can leave, the
    /// prompts in front of it are read.
    fn retry_after(&self) -> Duration {
        let pace = Duration::from_millis(self.shared.pace_ms.load(Ordering::Relaxed));
        let free = pace / self.settings.concurrent.clamp(1, 1 << 16) as u32;
        let waiting = self.shared.waiting.load(Ordering::Relaxed).max(1);
        let read = self.shared.prefill_time(self.shared.waiting_tokens.load(Ordering::Relaxed) / waiting);
        // Whole seconds, as the header has them.
        Duration::from_secs(free.max(read).as_millis().div_ceil(1_000).max(1) as u64)
    }

    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Prompt tokens of the requests that wait.
    pub fn waiting_tokens(&self) -> usize {
        self.shared.waiting_tokens.load(Ordering::Relaxed)
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
