//! The thread that owns the model: each pass runs one more token of every answer, and a chunk of the prompts
//! that are still being read.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::blocks::{BLOCK_TOKENS, KvLedger, Lease};
use super::drafts::{Drafter, Prices};
use super::names::{Known, Names};
use super::sampling::Sampler;
use super::text::{AnswerText, Pushed};
use super::{Completion, EngineEvent, EngineFailure, EngineSettings, FinishReason, Job, Shared};
use crate::kernels::KvCache;
use crate::model::BaseModel;
use crate::model::decoder::DecodeError;
use crate::model::fast::{FastDecoder, Piece, Workspace};

/// How often an idle worker looks whether it should end.
const IDLE: Duration = Duration::from_millis(100);
/// Drafts stop where a pass has this many rows: from there on rows cost what they are.
const DRAFT_ROWS: usize = 16;

const _: () = assert!(BLOCK_TOKENS == KvCache::PAGE, "a block of the ledger is a page of the cache");

pub(super) struct Worker {
    model: Arc<BaseModel<FastDecoder>>,
    queue: Receiver<Job>,
    shared: Arc<Shared>,
    settings: Arc<EngineSettings>,
    cache: KvCache,
    ledger: KvLedger,
    names: Names,
    workspace: Workspace,
    prices: Prices,
    waiting: VecDeque<Job>,
    running: Vec<Sequence>,
}

/// A running request.
struct Sequence {
    job: Job,
    known: Known,
    lease: Lease,
    /// The prompt and what was drawn since.
    tokens: Vec<u32>,
    /// Leading tokens whose keys and values are in the cache.
    computed: usize,
    sampler: Sampler,
    text: AnswerText,
    drafter: Drafter,
    /// Tokens guessed, and how many of them were right.
    drafted: usize,
    accepted: usize,
    generated: usize,
    started: Instant,
    first_token: Option<Instant>,
}

/// What a sequence does in a pass.
struct Turn {
    /// Which of the running sequences.
    at: usize,
    /// Its next tokens: of the prompt, or the newest and a draft behind it.
    tokens: Vec<u32>,
    /// For how many of the last of them logits are wanted.
    logits: usize,
}

/// What became of a sequence.
enum Fate {
    Goes,
    Ends(FinishReason),
    Cancelled,
    Fails(String),
}

impl Worker {
    pub(super) fn new(
        model: Arc<BaseModel<FastDecoder>>,
        queue: Receiver<Job>,
        shared: Arc<Shared>,
        settings: Arc<EngineSettings>,
        cache: KvCache,
    ) -> Self {
        Self {
            ledger: KvLedger::new(cache.pages()),
            names: Names::default(),
            cache,
            model,
            queue,
            shared,
            settings,
            workspace: Workspace::default(),
            prices: Prices::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Runs until the engine is closed and everything taken has ended.
    pub(super) fn run(mut self) {
        loop {
            let open = self.listen();
            if self.shared.aborting.load(Ordering::SeqCst) {
                return self.end();
            }
            self.drop_cancelled();
            let turns = self.plan();
            if !turns.is_empty() {
                self.pass(&turns);
            } else if !open {
                return self.end();
            }
        }
    }

    /// Takes what has been submitted; waits a moment when there is nothing else to do. Returns whether more may
    /// come.
    fn listen(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            match self.queue.recv_timeout(IDLE) {
                Ok(job) => self.waiting.push_back(job),
                Err(RecvTimeoutError::Timeout) => return !self.shared.closing.load(Ordering::SeqCst),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        self.waiting.extend(self.queue.try_iter());
        true
    }

    /// Lets go of requests whose clients left: waiting ones give up their place in the queue, running ones their
    /// memory.
    fn drop_cancelled(&mut self) {
        let shared = &self.shared;
        self.waiting.retain(|job| {
            let stays = !job.events.is_closed();
            if !stays {
                shared.left_queue(&job.request);
            }
            stays
        });
        for at in (0..self.running.len()).rev() {
            if self.running[at].job.events.is_closed() {
                self.settle(at, &Fate::Cancelled);
            }
        }
    }

    /// Who runs what in the next pass: every answer goes on, and a chunk of prompts is read, those first whose
    /// turn comes first.
    fn plan(&mut self) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut decoding = 0;
        for (at, sequence) in self.running.iter().enumerate() {
            if !sequence.reads() {
                decoding += 1;
                turns.push(Turn { at, tokens: vec![sequence.newest()], logits: 1 });
            }
        }
        self.add_drafts(&mut turns);

        let chunk = self.settings.prefill_chunk.max(1);
        let mut room = if decoding == 0 { self.settings.chunk_alone() } else { chunk };
        let mut reading: Vec<usize> =
            (0..self.running.len()).filter(|at| self.running[*at].reads()).collect();
        reading.sort_by_key(|at| self.running[*at].job.turn);
        let mut reading = reading.into_iter();
        while room > 0 {
            let at = match reading.next() {
                Some(at) => at,
                None => match self.start_next(&turns) {
                    Some(at) => at,
                    None => break,
                },
            };
            let sequence = &self.running[at];
            let tokens = &sequence.tokens[sequence.computed..];
            let tokens = tokens[..tokens.len().min(room)].to_vec();
            room -= tokens.len();
            let logits = usize::from(sequence.computed + tokens.len() == sequence.tokens.len());
            turns.push(Turn { at, tokens, logits });
        }
        // Neighbours with one adapter are multiplied together.
        turns.sort_by_key(|turn| self.running[turn.at].job.request.adapter.as_ref().map(Arc::as_ptr));
        turns
    }

    /// Guesses behind the newest tokens, while rows are cheap.
    fn add_drafts(&mut self, turns: &mut [Turn]) {
        if self.settings.draft_tokens == 0 || turns.is_empty() || turns.len() > DRAFT_ROWS / 2 {
            return;
        }
        let share = (DRAFT_ROWS / turns.len() - 1).min(self.settings.draft_tokens);
        let price = self.prices.draft();
        for turn in turns {
            let sequence = &mut self.running[turn.at];
            // Every token of a draft may be kept, and one more be drawn behind it.
            let left = sequence.job.request.max_tokens.saturating_sub(sequence.generated + 1);
            let positions = sequence.lease.blocks().len() * BLOCK_TOKENS;
            let limit = share.min(left).min(positions - sequence.tokens.len());
            let draft = sequence.drafter.draft(&sequence.tokens, limit, price);
            turn.tokens.extend_from_slice(draft);
            turn.logits = turn.tokens.len();
        }
    }

    /// Makes the waiting request whose turn it is a running one, if there is room for it. One whose beginning
    /// another is just reading waits for that: it will be in the cache then.
    fn start_next(&mut self, turns: &[Turn]) -> Option<usize> {
        if self.running.len() >= self.settings.concurrent.max(1) {
            return None;
        }
        let next = (0..self.waiting.len()).min_by_key(|at| self.waiting[*at].turn)?;
        let request = &self.waiting[next].request;
        let known = self.names.known(&self.model, request);
        let begins_alike = |turn: &Turn| {
            let other = &self.running[turn.at];
            let block = other.known.tokens.get(..BLOCK_TOKENS);
            other.reads()
                && other.known.identity == known.identity
                && block.is_some_and(|block| known.tokens.starts_with(block))
        };
        if self.settings.prefix_cache && turns.iter().any(begins_alike) {
            return None;
        }
        let positions = request.prompt.len() + request.max_tokens;
        let mut lease = self.ledger.lease(known.identity, &known.tokens, positions)?;
        if let Some((from, to)) = lease.copy() {
            self.cache.copy_page(from, to);
            self.ledger.copied(&mut lease);
        }
        let job = self.waiting.remove(next)?;
        self.shared.left_queue(&job.request);
        job.span.in_scope(|| tracing::debug!(cached = lease.cached(), "a request starts"));
        self.running.push(Sequence::new(job, known, lease));
        Some(self.running.len() - 1)
    }

    /// Runs one pass and deals with what it gave.
    fn pass(&mut self, turns: &[Turn]) {
        let begun = Instant::now();
        let Self { model, cache, workspace, running, shared, .. } = &mut *self;
        let pieces: Vec<Piece<'_>> = turns
            .iter()
            .map(|turn| {
                let sequence = &running[turn.at];
                Piece {
                    tokens: &turn.tokens,
                    position: sequence.computed,
                    pages: sequence.lease.blocks(),
                    adapter: sequence.job.request.adapter.as_deref(),
                    before: sequence.known.begins.unwrap_or(usize::MAX).saturating_sub(sequence.computed),
                    logits: turn.logits,
                }
            })
            .collect();
        let wanted = || turns.iter().any(|turn| !running[turn.at].job.events.is_closed());
        let cancelled = || shared.aborting.load(Ordering::Relaxed) || !wanted();
        let forward = || model.decoder.forward(&pieces, cache, workspace, &cancelled).map(|_| ());
        let outcome = catch_unwind(AssertUnwindSafe(forward));
        let mut fates: Vec<(usize, Fate)> = match outcome {
            Ok(Ok(())) => {
                self.observe(turns, begun.elapsed());
                self.draw(turns)
            }
            // Whoever left is found at the next look; nothing was counted as computed.
            Ok(Err(DecodeError::Cancelled)) => return,
            Ok(Err(error)) => turns.iter().map(|t| (t.at, Fate::Fails(error.to_string()))).collect(),
            Err(_) => {
                self.workspace = Workspace::default();
                turns.iter().map(|t| (t.at, Fate::Fails("a panic".into()))).collect()
            }
        };
        // From the last, so that the places of the others stay.
        fates.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, fate) in fates {
            self.settle(at, &fate);
        }
    }

    /// Keeps the measured speeds up to date.
    fn observe(&mut self, turns: &[Turn], took: Duration) {
        let reads = |turn: &Turn| self.running[turn.at].reads();
        let read: usize = turns.iter().filter(|t| reads(t)).map(|t| t.tokens.len()).sum();
        if read > 0 {
            self.shared.note_prefill(read, took);
        } else if let [turn] = turns {
            // Only with one sequence are passes with and without a draft of one kind.
            self.prices.observe(turn.tokens.len() > 1, took.as_secs_f64());
        }
    }

    /// Draws tokens from the logits of a pass.
    fn draw(&mut self, turns: &[Turn]) -> Vec<(usize, Fate)> {
        let Self { model, workspace, running, settings, ledger, .. } = &mut *self;
        let mut logits = workspace.logits_mut().chunks_exact_mut(model.config.vocab);
        let mut fates = Vec::with_capacity(turns.len());
        for turn in turns {
            let sequence = &mut running[turn.at];
            let span = sequence.job.span.clone();
            let _within = span.enter();
            let mut fate = Fate::Goes;
            let reads = sequence.reads();
            if reads {
                sequence.computed += turn.tokens.len();
            }
            let draft = if reads { &[] } else { &turn.tokens[1..] };
            let (mut right, mut open) = (0, true);
            for n in 0..turn.logits {
                let Some(logits) = logits.next() else { break };
                if !open {
                    continue;
                }
                if !reads {
                    sequence.computed += 1;
                }
                fate = sequence.draw(model, settings, logits);
                open = match (&fate, draft.get(n)) {
                    (Fate::Goes, Some(guess)) => sequence.tokens.last() == Some(guess),
                    _ => false,
                };
                right += usize::from(open);
            }
            if !draft.is_empty() {
                sequence.drafted += draft.len();
                sequence.accepted += right;
                sequence.drafter.observe(right);
            }
            if settings.prefix_cache {
                ledger.publish(&mut sequence.lease, &sequence.known.tokens, sequence.computed);
            }
            fates.push((turn.at, fate));
        }
        fates
    }

    /// Takes a sequence that has ended from the running ones, gives its blocks back and says so to its client.
    fn settle(&mut self, at: usize, fate: &Fate) {
        if matches!(fate, Fate::Goes) {
            return;
        }
        let sequence = self.running.swap_remove(at);
        let span = sequence.job.span.clone();
        let _within = span.enter();
        let events = sequence.job.events.clone();
        match fate {
            Fate::Goes => {}
            Fate::Cancelled => tracing::debug!("a request was cancelled by its client"),
            Fate::Ends(reason) => {
                let completion = sequence.completion(*reason);
                self.shared.note_pace(sequence.started.elapsed());
                send(&events, EngineEvent::Done(completion));
            }
            Fate::Fails(cause) => {
                tracing::error!(cause, "the model failed on a request");
                send(&events, EngineEvent::Failed(EngineFailure::Internal));
            }
        }
        let Sequence { lease, known, computed, .. } = sequence;
        if self.settings.prefix_cache && !matches!(fate, Fate::Fails(_)) {
            self.ledger.release(lease, &known.tokens, computed);
        } else {
            self.ledger.discard(lease);
        }
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
    fn new(mut job: Job, known: Known, lease: Lease) -> Self {
        let stops = std::mem::take(&mut job.request.stop);
        let quotes = std::mem::take(&mut job.request.quotes);
        Self {
            known,
            tokens: job.request.prompt.clone(),
            computed: lease.cached(),
            lease,
            sampler: Sampler::new(job.request.sampling.clone(), quotes),
            text: AnswerText::new(stops),
            drafter: Drafter::new(),
            drafted: 0,
            accepted: 0,
            generated: 0,
            started: Instant::now(),
            first_token: None,
            job,
        }
    }

    /// Whether its prompt is still being read.
    fn reads(&self) -> bool {
        self.computed < self.job.request.prompt.len()
    }

    /// The token that the next pass starts with, once the prompt is read.
    fn newest(&self) -> u32 {
        self.tokens.last().copied().unwrap_or_default()
    }

    /// Draws the next token.
    fn draw(
        &mut self,
        model: &BaseModel<FastDecoder>,
        settings: &EngineSettings,
        logits: &mut [f32],
    ) -> Fate {
        // Rows past the tokenizer's vocabulary are padding of the embedding matrix.
        let known = model.tokenizer.vocabulary_size().min(logits.len());
        let bytes = |id| model.tokenizer.text_bytes(id);
        let Some(token) = self.sampler.next(&mut logits[..known], model.decoder.cpu(), bytes) else {
            return Fate::Fails("the logits are not finite: the weights or the adapter are broken".into());
        };
        self.generated += 1;
        self.first_token.get_or_insert_with(Instant::now);
        if model.tokenizer.is_end(token) {
            return self.end(FinishReason::Stop);
        }
        self.tokens.push(token);
        self.known.push(token);
        let bytes = model.tokenizer.text_bytes(token);
        self.sampler.hear(bytes);
        match self.text.push(bytes) {
            Pushed::Text(text) => self.show(text),
            Pushed::Stopped(text) => {
                self.show(text);
                return Fate::Ends(FinishReason::Stop);
            }
        }
        let full = self.tokens.len() >= settings.context.min(model.config.context);
        if self.generated >= self.job.request.max_tokens || full {
            return self.end(FinishReason::Length);
        }
        Fate::Goes
    }

    fn end(&mut self, reason: FinishReason) -> Fate {
        let rest = self.text.finish();
        self.show(rest);
        Fate::Ends(reason)
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
            cached_tokens: self.lease.cached(),
            completion_tokens: self.generated,
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            queue_ms: ms(self.job.submitted, self.started),
            prefill_ms: ms(self.started, first),
            decode_ms: ms(first, now),
        }
    }
}

/// Sends an event; a receiver that is gone is noticed at the next pass.
fn send(events: &Sender<EngineEvent>, event: EngineEvent) {
    if let Err(tokio::sync::mpsc::error::TrySendError::Full(_)) = events.try_send(event) {
        tracing::error!("an event channel was too small; the answer lost text");
    }
}
