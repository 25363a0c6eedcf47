//! The events of one answer, as they come.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::{AnswerEvent, Done, Provenance, Retrieved};
use crate::cite::CitationFinder;
use crate::engine::{Completion, EngineEvent, EngineFailure, FinishReason};
use crate::quote::{Piece, QuoteReader};
use crate::retrieve::NotInEffect;

/// The events of one answer.
pub struct AnswerStream {
    /// Events that are ready, in order.
    ready: VecDeque<AnswerEvent>,
    /// In the modes with passages.
    finder: Option<CitationFinder>,
    quotes: QuoteReader,
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
        // A base that begins a line with the mark means something else by it.
        let quotes = provenance.adapter.is_some().then_some(retrieved.as_ref()).flatten();
        let quotes = quotes.map_or(&[][..], |retrieved| &retrieved.passages);
        Self {
            quotes: QuoteReader::new(quotes.iter().map(|passage| passage.text.as_str())),
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
        let completion = Self::completion(FinishReason::Abstained);
        let done = Done::new(&completion, 0, Box::new(provenance));
        Self {
            ready: [AnswerEvent::Retrieval(retrieved), AnswerEvent::Token(text), AnswerEvent::Done(done)]
                .into(),
            finder: None,
            quotes: QuoteReader::new([]),
            provenance: None,
            note: None,
            dropped_turns: 0,
            engine: None,
        }
    }

    /// What an answer costs that no model writes.
    fn completion(finish_reason: FinishReason) -> Completion {
        Completion {
            finish_reason,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            queue_ms: 0.0,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        }
    }

    /// Puts text of the answer into `ready`, and the citations that it completes.
    fn say(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        let citations = self.finder.as_mut().map(|finder| finder.push(&text));
        self.ready.push_back(AnswerEvent::Token(text));
        self.ready.extend(citations.into_iter().flatten().map(AnswerEvent::Citation));
    }

    /// Puts what an engine event means into `ready`.
    fn take(&mut self, event: Option<EngineEvent>) {
        match event {
            Some(EngineEvent::Text(text)) => {
                let Piece { quotes, text } = self.quotes.push(&text);
                self.ready.extend(quotes.into_iter().map(AnswerEvent::Quote));
                self.say(text);
            }
            Some(EngineEvent::Done(completion)) => {
                self.engine = None;
                let rest = self.quotes.finish();
                self.say(rest);
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
                let rest = self.quotes.finish();
                self.say(rest);
                self.ready.push_back(AnswerEvent::Failed(failure));
            }
            None => {
                // The engine's thread is gone; the log has the reason.
                self.engine = None;
                let rest = self.quotes.finish();
                self.say(rest);
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

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::answer::{Fingerprint, Mode};
    use crate::engine::Sampling;
    use crate::model::weights::WeightForm;
    use crate::quote::QuoteChoice;
    use crate::retrieve::Passage;

    fn provenance(mode: Mode, adapter: bool) -> Provenance {
        let named = |name: &str| Fingerprint { name: name.into(), sha256: "0".into() };
        Provenance {
            mode,
            base: named("b"),
            weights: WeightForm::Stored,
            adapter: adapter.then(|| named("a")),
            generation: None,
            as_of: jiff::civil::date(2026, 11, 1),
            prompt_sha256: None,
            sampling: Sampling::GREEDY,
            reader: None,
            quotes: QuoteChoice::default(),
            max_tokens: 9,
            version: "0",
        }
    }

    /// Quotes, text and places of citations of an answer that comes in these pieces.
    async fn heard(pieces: &[&str], adapter: bool, ends: bool) -> (Vec<(usize, String)>, String, Vec<usize>) {
        let text = "Give 5 mg at once.".to_owned();
        let passages = vec![Passage { n: 1, text, ..Passage::default() }];
        let retrieved = Retrieved { passages, not_in_effect: Vec::new(), generation: None };
        let (to, from) = mpsc::channel(20);
        for piece in pieces {
            to.try_send(EngineEvent::Text((*piece).to_owned())).unwrap();
        }
        let completion = AnswerStream::completion(FinishReason::Stop);
        let last =
            if ends { EngineEvent::Done(completion) } else { EngineEvent::Failed(EngineFailure::Internal) };
        to.try_send(last).unwrap();
        let mut stream =
            AnswerStream::running(Some(retrieved), None, 0, provenance(Mode::Hybrid, adapter), from);
        let (mut quotes, mut said, mut cited) = (Vec::new(), String::new(), Vec::new());
        while let Some(event) = stream.next().await {
            match event {
                AnswerEvent::Quote(quote) => {
                    assert!(said.is_empty(), "quotes come first");
                    quotes.push((quote.n, quote.text));
                }
                AnswerEvent::Token(text) => said.push_str(&text),
                AnswerEvent::Citation(citation) => cited.push(citation.span.start),
                AnswerEvent::Retrieval(_) | AnswerEvent::Done(_) | AnswerEvent::Failed(_) => {}
            }
        }
        (quotes, said, cited)
    }

    #[tokio::test]
    async fn quotes_come_before_the_text_and_are_not_part_of_it() {
        let pieces = ["> Give", " 5 mg at once.", "\n5 mg", ", at once [1", "]."];
        let quote = vec![(1, "Give 5 mg at once.".to_owned())];
        assert_eq!(heard(&pieces, true, true).await, (quote.clone(), "5 mg, at once [1].".into(), vec![14]));
        assert_eq!(heard(&pieces[..2], true, false).await, (vec![], "> Give 5 mg at once.".into(), vec![]));
        let whole = pieces.concat();
        assert_eq!(
            heard(&pieces, false, true).await,
            (vec![], whole, vec![35]),
            "a base means something else"
        );
    }
}
