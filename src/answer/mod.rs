//! The request path, from a question to a stream of events. [`Answerer::answer`] is its spine:
//!
//! check → pin a snapshot → retrieve → abstain? → prompt → engine → text → citations.
//!
//! HTTP and the command line both enter here; nothing below knows of either.

mod events;
mod question;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use jiff::ZonedDateTime;
use jiff::civil::Date;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::Stream;

use crate::analysis::sentences::sentence_ends;
use crate::cite::CitationFinder;
use crate::engine::{
    Completion, EngineEvent, EngineHandle, FinishReason, GenerateRequest, Sampling, SubmitError,
};
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::template::{Role, TemplateError};
use crate::prompt::{Prompt, PromptBuilder, PromptError, PromptParts, Wording};
use crate::retrieve::{Gate, GuidelineIndex, NotInEffect, Passage, Retrieval, RetrieveError, SearchQuery};

pub use events::{AnswerEvent, Done, Fingerprint, Provenance, Retrieved, Timings, Usage};
pub use question::{Limits, Mode, Question, UnknownMode};

/// Why a question was not answered. The first group is the caller's to mend.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// A field has an impossible value.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// What is wrong, and the mend.
        message: String,
    },
    /// The mode needs an adapter and none was named.
    #[error("mode `{mode}` needs an adapter: name one in `adapter` ({known}), or use mode `base` or `rag`")]
    AdapterNeeded {
        /// The mode.
        mode: Mode,
        /// The adapters there are.
        known: String,
    },
    /// No adapter of that name is loaded.
    #[error("there is no adapter `{name}`; loaded are: {known}")]
    UnknownAdapter {
        /// The name asked for.
        name: String,
        /// The adapters there are.
        known: String,
    },
    /// The prompt does not fit.
    #[error(transparent)]
    Prompt(PromptError),
    /// Nothing has been indexed.
    #[error("there is no guideline index yet; run `shishin index build`, or use mode `base` or `tuned`")]
    NoIndex,
    /// The search failed.
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    /// The engine does not take the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The model has no chat template, or a prompt text fails: the operator's to mend.
    #[error("the prompt cannot be made: {0}")]
    Setup(String),
}

/// The share of a follow-up's own content that must occur in the index for it to be read together with the
/// question before it.
const FOLLOW_UP_FAMILIARITY: f32 = 0.5;

/// How much of the end of a long message is taken for its question.
const CLOSING_CHARS: usize = 300;

/// How answers are made, apart from what a request says itself.
#[derive(Debug, Clone)]
pub struct AnswerSettings {
    /// The mode of requests that name none.
    pub default_mode: Mode,
    /// The adapter of requests that name none, in the modes that need one.
    pub default_adapter: Option<String>,
    /// Passages in a prompt, unless a request asks for another number.
    pub passages: usize,
    /// What a passage must be to answer a question; where none is, the answer is that nothing was found.
    pub gate: Gate,
    /// Tokens of an answer, unless a request asks for another number.
    pub max_tokens: usize,
    /// Sampling of requests that do not choose their own.
    pub sampling: Sampling,
    /// Bounds on what a request may ask for.
    pub limits: Limits,
}

/// Everything that answering needs, shared by all requests.
pub struct Answerer {
    settings: AnswerSettings,
    model_name: String,
    model: Arc<BaseModel<FastDecoder>>,
    adapters: ArcSwap<Adapters>,
    wording: Wording,
    index: Arc<GuidelineIndex>,
    engine: EngineHandle,
}

/// Adapters by name.
pub type Adapters = BTreeMap<String, Arc<PackedAdapter>>;

/// What [`Answerer::new`] puts together.
pub struct AnswererParts {
    /// How answers are made.
    pub settings: AnswerSettings,
    /// What the base model is called.
    pub model_name: String,
    /// The base model.
    pub model: Arc<BaseModel<FastDecoder>>,
    /// Adapters by name.
    pub adapters: Adapters,
    /// The operator's prompt texts.
    pub wording: Wording,
    /// The guideline index.
    pub index: Arc<GuidelineIndex>,
    /// The engine that runs the model.
    pub engine: EngineHandle,
}

impl Answerer {
    /// Puts the parts together.
    pub fn new(parts: AnswererParts) -> Self {
        let AnswererParts { settings, model_name, model, adapters, wording, index, engine } = parts;
        let adapters = ArcSwap::from_pointee(adapters);
        Self { settings, model_name, model, adapters, wording, index, engine }
    }

    /// How answers are made.
    pub fn settings(&self) -> &AnswerSettings {
        &self.settings
    }

    /// The guideline index.
    pub fn index(&self) -> &GuidelineIndex {
        &self.index
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// The base model and what it is called.
    pub fn model(&self) -> (&str, &BaseModel<FastDecoder>) {
        (&self.model_name, &self.model)
    }

    /// The adapters that are loaded now.
    pub fn adapters(&self) -> Arc<Adapters> {
        self.adapters.load_full()
    }

    /// Adds an adapter while answers run; one of the same name is replaced, and answers under way keep theirs.
    pub fn add_adapter(&self, name: &str, adapter: &Arc<PackedAdapter>) {
        self.adapters.rcu(|adapters| {
            let mut adapters = Adapters::clone(adapters);
            adapters.insert(name.to_owned(), Arc::clone(adapter));
            adapters
        });
    }

    /// Answers a question as a stream of events, which ends with [`AnswerEvent::Done`] or
    /// [`AnswerEvent::Failed`]. Dropping the stream cancels the answer.
    ///
    /// Retrieval and prompt making block; call this where blocking is allowed.
    ///
    /// # Errors
    /// When the question cannot be answered as asked; nothing has been streamed then.
    pub fn answer(&self, question: Question) -> Result<AnswerStream, AnswerError> {
        question.check(&self.settings.limits)?;
        let mode = question.mode.unwrap_or(self.settings.default_mode);
        let adapter = self.adapter_for(mode, question.adapter.as_deref())?;
        let as_of = question.as_of.unwrap_or_else(|| ZonedDateTime::now().date());
        let asked = question.messages.last().map_or("", |turn| turn.content.as_str());
        let language = Language::detect(asked);
        let sampling = question.sampling(&self.settings.sampling);
        let max_tokens = question.max_tokens.unwrap_or(self.settings.max_tokens);

        let (passages, not_in_effect, generation) = if mode.retrieves() {
            let wanted = question.passages.unwrap_or(self.settings.passages);
            let found = self.retrieve(&question, asked, as_of, language, wanted)?;
            (Some(found.passages), found.not_in_effect, Some(found.generation))
        } else {
            (None, Vec::new(), None)
        };
        let note = match not_in_effect.is_empty() {
            true => None,
            false => Some(self.wording.outdated(language, &not_in_effect)),
        };
        let note = note.transpose().map_err(|e| AnswerError::Setup(e.to_string()))?;
        let provenance = Provenance {
            mode,
            base: Fingerprint { name: self.model_name.clone(), sha256: self.model.fingerprint.clone() },
            weights: self.model.form,
            adapter: adapter
                .as_ref()
                .map(|(name, a)| Fingerprint { name: name.clone(), sha256: a.fingerprint().to_owned() }),
            generation,
            as_of,
            prompt_sha256: None,
            sampling: sampling.clone(),
            max_tokens,
            version: env!("CARGO_PKG_VERSION"),
        };
        if passages.as_ref().is_some_and(Vec::is_empty) {
            let text = self.wording.abstain(language, as_of);
            let mut text = text.map_err(|e| AnswerError::Setup(e.to_string()))?;
            if let Some(note) = note {
                text = format!("{text}\n\n{note}");
            }
            return Ok(AnswerStream::abstained(text, not_in_effect, provenance));
        }
        let prompt = self.prompt(&question, passages, language, as_of, max_tokens)?;
        let provenance = Provenance { prompt_sha256: Some(prompt_fingerprint(&prompt.tokens)), ..provenance };
        let events = self.engine.submit(GenerateRequest {
            prompt: prompt.tokens,
            adapter: adapter.map(|(_, adapter)| adapter),
            sampling,
            max_tokens,
            stop: question.stop,
            cache_salt: question.cache_salt,
        })?;
        let retrieved = mode.retrieves().then(|| Retrieved {
            passages: prompt.passages,
            not_in_effect,
            generation: provenance.generation.clone(),
        });
        Ok(AnswerStream::running(retrieved, note, prompt.dropped_turns, provenance, events))
    }

    fn adapter_for(
        &self,
        mode: Mode,
        named: Option<&str>,
    ) -> Result<Option<(String, Arc<PackedAdapter>)>, AnswerError> {
        let adapters = self.adapters();
        let known = || match adapters.is_empty() {
            true => "none is loaded".to_owned(),
            false => adapters.keys().cloned().collect::<Vec<_>>().join(", "),
        };
        if !mode.adapts() {
            return match named {
                Some(_) => Err(AnswerError::Invalid {
                    param: "adapter",
                    message: format!("mode `{mode}` runs without an adapter; use `tuned` or `hybrid`"),
                }),
                None => Ok(None),
            };
        }
        let Some(name) = named.or(self.settings.default_adapter.as_deref()) else {
            return Err(AnswerError::AdapterNeeded { mode, known: known() });
        };
        match adapters.get(name) {
            Some(adapter) => Ok(Some((name.to_owned(), Arc::clone(adapter)))),
            None => Err(AnswerError::UnknownAdapter { name: name.to_owned(), known: known() }),
        }
    }

    /// The relevant passages and editions, and the generation that was searched.
    fn retrieve(
        &self,
        question: &Question,
        asked: &str,
        as_of: Date,
        language: Language,
        limit: usize,
    ) -> Result<Retrieval, AnswerError> {
        let snapshot = self.index.snapshot().ok_or(AnswerError::NoIndex)?;
        let search = |text: &str| {
            snapshot.search(&SearchQuery {
                text,
                as_of,
                language: Some(language),
                filter: Some(&question.filter),
                limit,
                ranking: None,
            })
        };
        let mut found = search(asked)?;
        let gate = self.settings.gate;
        // Notes first, the question last: what the notes speak of hides what is asked.
        for closing in closings(asked) {
            if found.relevant(gate) {
                break;
            }
            found = search(closing)?;
        }
        let before = question.messages.iter().rev().skip(1).find(|turn| turn.role == Role::User);
        if let Some(before) = before.filter(|_| !found.relevant(gate)) {
            // A follow-up ("And in pregnancy?") is only understood with the question before it. One about
            // something that the index has never heard of is no follow-up, whatever came before.
            if snapshot.familiarity(asked)? >= FOLLOW_UP_FAMILIARITY {
                found = search(&format!("{}\n{asked}", before.content))?;
            }
        }
        found.not_in_effect.retain(|edition| gate.lets_pass(edition.coverage, edition.similarity));
        if !found.relevant(gate) {
            found.passages.clear();
        }
        // What the answer stands on comes first, so that a prompt too small for all keeps it.
        found.passages.sort_by_key(|passage| !gate.lets_pass(passage.coverage, passage.similarity));
        for (at, passage) in found.passages.iter_mut().enumerate() {
            passage.n = at + 1;
        }
        Ok(found)
    }

    fn prompt(
        &self,
        question: &Question,
        passages: Option<Vec<Passage>>,
        language: Language,
        as_of: Date,
        max_tokens: usize,
    ) -> Result<Prompt, AnswerError> {
        let template = self
            .model
            .template
            .as_ref()
            .ok_or_else(|| AnswerError::Setup(TemplateError::Missing.to_string()))?;
        let context = self.engine.settings().context.min(self.model.config.context);
        let builder = PromptBuilder { tokenizer: &self.model.tokenizer, template, wording: &self.wording };
        let budget = context.saturating_sub(max_tokens);
        builder.build(PromptParts { turns: &question.messages, passages, language, as_of, budget }).map_err(
            |error| match error {
                PromptError::TooLong { .. } => AnswerError::Prompt(error),
                other => AnswerError::Setup(other.to_string()),
            },
        )
    }
}

/// The last sentence of a message that is longer than a question, the last two, and so on, within its last
/// [`CLOSING_CHARS`].
fn closings(message: &str) -> Vec<&str> {
    let Some((earliest, _)) = message.trim_end().char_indices().nth_back(CLOSING_CHARS) else {
        return Vec::new();
    };
    let mut starts: Vec<usize> = sentence_ends(message).filter(|end| *end > earliest).collect();
    starts.reverse();
    starts.into_iter().map(|start| message[start..].trim()).filter(|text| !text.is_empty()).collect()
}

/// SHA-256 over the prompt's token ids as little-endian 32-bit numbers.
fn prompt_fingerprint(tokens: &[u32]) -> String {
    let mut hash = Sha256::new();
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    crate::model::hex(&hash.finalize())
}

/// The events of one answer.
pub struct AnswerStream {
    /// Events that are ready, in order.
    ready: std::collections::VecDeque<AnswerEvent>,
    /// In the modes with passages.
    finder: Option<CitationFinder>,
    provenance: Option<Box<Provenance>>,
    /// What is said at the end, whatever the model said.
    note: Option<String>,
    dropped_turns: usize,
    engine: Option<mpsc::Receiver<EngineEvent>>,
}

impl AnswerStream {
    fn running(
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

    fn abstained(text: String, not_in_effect: Vec<NotInEffect>, provenance: Provenance) -> Self {
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
                self.ready.push_back(AnswerEvent::Failed(crate::engine::EngineFailure::Internal));
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
