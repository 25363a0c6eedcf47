//! The events of one answer, as they come.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::{AnswerEvent, Done, Provenance, Retrieved};
use crate::cite::CitationFinder;
use crate::engine::{Completion, EngineEvent, EngineFailure, FinishReason};
use crate::retrieve::NotInEffect;

/// The events of one answer.
pub struct AnswerStream {
    /// Events that are ready, in order.
    ready: VecDeque<AnswerEvent>,
    /// In the modes with passages.
    finder: Option<CitationFinder>,
    provenance: Option<Box<Provenance>>,
    /// What is said at the end, whatever the model said.
    note: Option<String>,
    dropped_turns: usize,
    engine: Option<mpsc::Receiver<EngineEvent>>,
}

impl AnswerStream {
    pub(super) fn running(
        retrieved: Option<Retrieved>,
        note: Option<String>,
        dropped_turns: usize,
        provenance: Provenance,
        engine: mpsc::Receiver<EngineEvent>,
    ) -> Self {
        Self {
            finder: retrieved.as_ref().map(|retrieved| CitationFinder::new(retrieved.passages.len())),
            ready: retrieved.into_iter().map(AnswerEvent::Retrieval).collect(),
            provenance: Some(Box::new(provenance)),
            note,
            dropped_turns,
            engine: Some(engine),
        }
    }

    pub(super) fn abstained(text: String, not_in_effect: Vec<NotInEffect>, provenance: Provenance) -> Self {
        let generation = provenance.generation.clone();
        let retrieved = Retrieved { passages: Vec::new(), not_in_effect, generation };
        let completion = Completion {
            finish_reason: FinishReason::Abstained,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            queue_ms: 0.0,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        };
        let done = Done::new(&completion, 0, Box::new(provenance));
        Self {
            ready: [AnswerEvent::Retrieval(retrieved), AnswerEvent::Token(text), AnswerEvent::Done(done)]
                .into(),
            finder: None,
            provenance: None,
            note: None,
            dropped_turns: 0,
            engine: None,
        }
    }

    /// Puts what an engine event means into `ready`.
    fn take(&mut self, event: Option<EngineEvent>) {
        match event {
            Some(EngineEvent::Text(text)) => {
                let citations = self.finder.as_mut().map(|finder| finder.push(&text));
                self.ready.push_back(AnswerEvent::Token(text));
                self.ready.extend(citations.into_iter().flatten().map(AnswerEvent::Citation));
            }
            Some(EngineEvent::Done(completion)) => {
                self.engine = None;
                if let Some(note) = self.note.take() {
                    self.ready.push_back(AnswerEvent::Token(format!("\n\n{note}")));
                }
                if let Some(provenance) = self.provenance.take() {
                    let done = Done::new(&completion, self.dropped_turns, provenance);
                    self.ready.push_back(AnswerEvent::Done(done));
                }
            }
            Some(EngineEvent::Failed(failure)) => {
                self.engine = None;
                self.ready.push_back(AnswerEvent::Failed(failure));
            }
            None => {
                // The engine's thread is gone; the log has the reason.
                self.engine = None;
                self.ready.push_back(AnswerEvent::Failed(EngineFailure::Internal));
            }
        }
    }
}

impl Stream for AnswerStream {
    type Item = AnswerEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<AnswerEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(engine) = &mut self.engine else { return Poll::Ready(None) };
            match engine.poll_recv(context) {
                Poll::Ready(event) => self.take(event),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
