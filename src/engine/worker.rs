//! The thread that owns the model. Running requests take turns: one chunk of a prompt, or one token.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::sampling::Sampler;
use super::text::{AnswerText, Pushed};
use super::{Completion, EngineEvent, EngineFailure, EngineSettings, FinishReason, Job, Shared};
use crate::model::BaseModel;
use crate::model::decoder::{DecodeError, Logits};
use crate::model::kv::KvCache;

/// How often an idle worker looks whether it should end.
const IDLE: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    model: Arc<BaseModel>,
    queue: Receiver<Job>,
    shared: Arc<Shared>,
    settings: Arc<EngineSettings>,
    waiting: VecDeque<Job>,
    running: VecDeque<Sequence>,
}

/// A running request.
struct Sequence {
    job: Job,
    cache: KvCache,
    sampler: Sampler,
    text: AnswerText,
    /// Prompt tokens read so far.
    read: usize,
    /// The token to feed next, once the prompt is read.
    next: Option<u32>,
    generated: usize,
    started: Instant,
    first_token: Option<Instant>,
}

/// What a turn came to.
enum Step {
    Goes,
    Ends(FinishReason),
    Cancelled,
    Fails(String),
}

impl Worker {
    pub(super) fn new(
        model: Arc<BaseModel>,
        queue: Receiver<Job>,
        shared: Arc<Shared>,
        settings: Arc<EngineSettings>,
    ) -> Self {
        Self { model, queue, shared, settings, waiting: VecDeque::new(), running: VecDeque::new() }
    }

    /// Runs until the engine is closed and everything taken has ended.
    pub(super) fn run(mut self) {
        loop {
            let open = self.admit();
            if self.shared.aborting.load(Ordering::SeqCst) {
                return self.end();
            }
            match self.running.pop_front() {
                Some(sequence) => self.turn(sequence),
                None if !open => return self.end(),
                None => {}
            }
        }
    }

    /// Takes waiting requests while there is room; waits a moment when there is nothing else to do.
    /// Returns whether more may come.
    fn admit(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            match self.queue.recv_timeout(IDLE) {
                Ok(job) => self.waiting.push_back(job),
                Err(RecvTimeoutError::Timeout) => return !self.shared.closing.load(Ordering::SeqCst),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        self.waiting.extend(self.queue.try_iter());
        let before = self.waiting.len();
        // Who went away while waiting costs nothing, and leaves the place in the queue to others.
        self.waiting.retain(|job| !job.events.is_closed());
        while self.running.len() < self.settings.concurrent.max(1)
            && let Some(job) = self.waiting.pop_front()
        {
            job.span.in_scope(|| tracing::debug!("a request starts"));
            self.running.push_back(Sequence::new(&self.model, job));
        }
        self.shared.waiting.fetch_sub(before - self.waiting.len(), Ordering::SeqCst);
        true
    }

    fn turn(&mut self, mut sequence: Sequence) {
        let span = sequence.job.span.clone();
        let _within = span.enter();
        let aborting = || self.shared.aborting.load(Ordering::SeqCst);
        let step = catch_unwind(AssertUnwindSafe(|| sequence.step(&self.model, &self.settings, &aborting)));
        match step {
            Ok(Step::Goes) => self.running.push_back(sequence),
            Ok(Step::Cancelled) if aborting() => {
                send(&sequence.job.events, EngineEvent::Failed(EngineFailure::ShuttingDown));
            }
            Ok(Step::Cancelled) => tracing::debug!("a request was cancelled by its client"),
            Ok(Step::Ends(reason)) => {
                let completion = sequence.completion(reason);
                self.note_pace(sequence.started.elapsed());
                send(&sequence.job.events, EngineEvent::Done(completion));
            }
            Ok(Step::Fails(cause)) => {
                tracing::error!(cause, "the model failed on a request");
                send(&sequence.job.events, EngineEvent::Failed(EngineFailure::Internal));
            }
            Err(_) => {
                tracing::error!("the model panicked on a request; the request was dropped");
                send(&sequence.job.events, EngineEvent::Failed(EngineFailure::Internal));
            }
        }
    }

    fn note_pace(&self, took: Duration) {
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let old = self.shared.pace_ms.load(Ordering::Relaxed);
        let new = if old == 0 { took } else { old.saturating_mul(7).saturating_add(took) / 8 };
        self.shared.pace_ms.store(new, Ordering::Relaxed);
    }

    /// Tells everyone who is still here.
    fn end(&mut self) {
        let running = self.running.drain(..).map(|sequence| sequence.job);
        for job in running.chain(self.waiting.drain(..)).chain(self.queue.try_iter()) {
            send(&job.events, EngineEvent::Failed(EngineFailure::ShuttingDown));
        }
    }
}

impl Sequence {
    fn new(model: &BaseModel, mut job: Job) -> Self {
        let stops = std::mem::take(&mut job.request.stop);
        Self {
            cache: model.decoder.new_cache(),
            sampler: Sampler::new(job.request.sampling.clone()),
            text: AnswerText::new(stops),
            read: 0,
            next: None,
            generated: 0,
            started: Instant::now(),
            first_token: None,
            job,
        }
    }

    fn step(&mut self, model: &BaseModel, settings: &EngineSettings, aborting: &dyn Fn() -> bool) -> Step {
        let events = self.job.events.clone();
        let cancelled = || events.is_closed() || aborting();
        if cancelled() {
            return Step::Cancelled;
        }
        let prompt = &self.job.request.prompt;
        let end = (self.read + settings.prefill_chunk.max(1)).min(prompt.len());
        let single = [self.next.unwrap_or_default()];
        let tokens = if self.next.is_some() { &single[..] } else { &prompt[self.read..end] };
        if tokens.is_empty() {
            return Step::Fails("an empty prompt".into());
        }
        let adapter = self.job.request.adapter.as_deref();
        let logits = model.decoder.forward(tokens, &mut self.cache, adapter, Logits::Last, &cancelled);
        let logits = match logits {
            Ok(logits) => logits,
            Err(DecodeError::Cancelled) => return Step::Cancelled,
            Err(error) => return Step::Fails(error.to_string()),
        };
        if self.next.is_none() {
            self.read = end;
            if end < prompt.len() {
                return Step::Goes;
            }
        }
        match logits.flatten_all().and_then(|l| l.to_vec1::<f32>()) {
            Ok(mut logits) => self.sample(model, settings, &mut logits),
            Err(error) => Step::Fails(error.to_string()),
        }
    }

    fn sample(&mut self, model: &BaseModel, settings: &EngineSettings, logits: &mut [f32]) -> Step {
        // Rows past the tokenizer's vocabulary are padding of the embedding matrix.
        let known = model.tokenizer.vocabulary_size().min(logits.len());
        let Some(token) = self.sampler.next(&mut logits[..known]) else {
            return Step::Fails("the logits are not finite: the weights or the adapter are broken".into());
        };
        self.generated += 1;
        self.first_token.get_or_insert_with(Instant::now);
        if model.tokenizer.is_end(token) {
            return self.end(FinishReason::Stop);
        }
        match self.text.push(model.tokenizer.text_bytes(token)) {
            Pushed::Text(text) => self.show(text),
            Pushed::Stopped(text) => {
                self.show(text);
                return Step::Ends(FinishReason::Stop);
            }
        }
        let full = self.cache.len() + 1 >= settings.context.min(model.config.context);
        if self.generated >= self.job.request.max_tokens || full {
            return self.end(FinishReason::Length);
        }
        self.next = Some(token);
        Step::Goes
    }

    fn end(&mut self, reason: FinishReason) -> Step {
        let rest = self.text.finish();
        self.show(rest);
        Step::Ends(reason)
    }

    fn show(&self, text: String) {
        if !text.is_empty() {
            send(&self.job.events, EngineEvent::Text(text));
        }
    }

    fn completion(&self, finish_reason: FinishReason) -> Completion {
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        let now = Instant::now();
        let first = self.first_token.unwrap_or(now);
        Completion {
            finish_reason,
            prompt_tokens: self.job.request.prompt.len(),
            completion_tokens: self.generated,
            queue_ms: ms(self.job.submitted, self.started),
            prefill_ms: ms(self.started, first),
            decode_ms: ms(first, now),
        }
    }
}

/// Sends an event; a receiver that is gone is noticed at the next turn.
fn send(events: &Sender<EngineEvent>, event: EngineEvent) {
    if let Err(tokio::sync::mpsc::error::TrySendError::Full(_)) = events.try_send(event) {
        tracing::error!("an event channel was too small; the answer lost text");
    }
}
