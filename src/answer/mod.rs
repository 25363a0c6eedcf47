//! The request path, from a question to a stream of events. [`Answerer::answer`] is its spine:
//!
//! check → pin a snapshot → retrieve → abstain? → prompt → engine → text → quotes → citations.
//!
//! HTTP and the command line both enter here; nothing below knows of either.

mod events;
mod question;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::ZonedDateTime;
use jiff::civil::Date;
use sha2::{Digest, Sha256};

use crate::analysis::sentences::sentence_ends;
use crate::engine::{EngineHandle, GenerateRequest, Sampling, SubmitError};
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::template::{Role, TemplateError, Turn};
use crate::prompt::{Prompt, PromptBuilder, PromptError, PromptParts, Wording};
use crate::quote::{QuoteChoice, QuoteGuide, Signed};
use crate::retrieve::{
    Gate, GuidelineIndex, NotInEffect, Passage, Retrieval, RetrieveError, SearchQuery, Snapshot,
};

pub use events::{AnswerEvent, Done, Fingerprint, Provenance, Retrieved, Timings, Usage};
pub use question::{Limits, Mode, Question, UnknownMode};
pub use stream::AnswerStream;

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
    /// The same in `hybrid`, where an adapter that has learnt to decline reads the passages: it may be lower.
    pub hybrid_gate: Gate,
    /// What counts in an adapter's choice of quotes.
    pub quotes: QuoteChoice,
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

/// A way to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// What it draws on.
    pub mode: Mode,
    /// The adapter's name; the settings' own where the mode needs one and none is named.
    pub adapter: Option<String>,
    /// What is said before the conversation, such as examples; may begin with instructions, where the conversation does not.
    pub before: Vec<Turn>,
}

/// What is the same in whatever way a question is answered.
struct Asked<'a> {
    /// The newest message.
    text: &'a str,
    language: Language,
    as_of: Date,
}

impl<'a> Asked<'a> {
    fn of(question: &'a Question) -> Self {
        let text = question.messages.last().map_or("", |turn| turn.content.as_str());
        let as_of = question.as_of.unwrap_or_else(|| ZonedDateTime::now().date());
        Self { text, language: Language::detect(text), as_of }
    }
}

/// What was found, and in what.
type Found = (Retrieval, Arc<Snapshot>);

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

    /// SHA-256 of the reader that tells which sentence of the passages answers, if there is one.
    pub fn reader(&self) -> Option<String> {
        self.index.snapshot()?.reader().map(str::to_owned)
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
    pub fn answer(&self, question: &Question) -> Result<AnswerStream, AnswerError> {
        question.check(&self.settings.limits)?;
        let mode = question.mode.unwrap_or(self.settings.default_mode);
        let way = Way { mode, adapter: question.adapter.clone(), before: Vec::new() };
        let adapter = self.adapter_for(way.mode, way.adapter.as_deref())?;
        let asked = Asked::of(question);
        let found = if mode.retrieves() { Some(self.retrieve(question, &asked)?) } else { None };
        self.begin(question, &asked, (&way, adapter), found)
    }

    /// Answers a question in several ways at once, over one search of one snapshot; the question's own mode and adapter do not count.
    /// The streams are in the order of the ways.
    ///
    /// # Errors
    /// When one of the ways cannot be gone; none is then.
    pub fn compare(&self, question: &Question, ways: &[Way]) -> Result<Vec<AnswerStream>, AnswerError> {
        question.check(&self.settings.limits)?;
        let adapters = ways.iter().map(|way| self.adapter_for(way.mode, way.adapter.as_deref()));
        let adapters = adapters.collect::<Result<Vec<_>, _>>()?;
        let asked = Asked::of(question);
        let retrieves = ways.iter().any(|way| way.mode.retrieves());
        let found = if retrieves { Some(self.retrieve(question, &asked)?) } else { None };
        let pairs = ways.iter().zip(adapters);
        pairs.map(|pair| self.begin(question, &asked, pair, found.clone())).collect()
    }

    /// Makes the prompt of one way and queues it. `found` is what was retrieved, if anything was; ways without passages leave it.
    fn begin(
        &self,
        question: &Question,
        asked: &Asked<'_>,
        (way, adapter): (&Way, Option<(String, Arc<PackedAdapter>)>),
        found: Option<Found>,
    ) -> Result<AnswerStream, AnswerError> {
        let &Asked { as_of, language, .. } = asked;
        let sampling = question.sampling(&self.settings.sampling);
        let max_tokens = question.max_tokens.unwrap_or(self.settings.max_tokens);
        let gate = if way.mode.adapts() { self.settings.hybrid_gate } else { self.settings.gate };
        let gate = gate.asked_in(language);
        let found = found.filter(|_| way.mode.retrieves());
        let (passages, not_in_effect, generation, searched) = match found {
            Some((found, snapshot)) => {
                let passages = if found.relevant(gate) { found.passages } else { Vec::new() };
                let searched = (found.vector, snapshot);
                (Some(passages), found.not_in_effect, Some(found.generation), Some(searched))
            }
            None => (None, Vec::new(), None, None),
        };
        let note = match not_in_effect.is_empty() {
            true => None,
            false => Some(self.wording.outdated(language, &not_in_effect)),
        };
        let note = note.transpose().map_err(|e| AnswerError::Setup(e.to_string()))?;
        let own = adapter.as_ref().and_then(|(_, adapter)| adapter.bar(language));
        let choice = self.settings.quotes.with_bar(own);
        let provenance = Provenance {
            mode: way.mode,
            base: Fingerprint { name: self.model_name.clone(), sha256: self.model.fingerprint.clone() },
            weights: self.model.form,
            adapter: adapter
                .as_ref()
                .map(|(name, a)| Fingerprint { name: name.clone(), sha256: a.fingerprint().to_owned() }),
            generation,
            as_of,
            prompt_sha256: None,
            sampling: sampling.clone(),
            quotes: choice,
            reader: None,
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
        let turns: Vec<Turn> = way.before.iter().chain(&question.messages).cloned().collect();
        let prompt = self.prompt(&turns, passages, (language, as_of), max_tokens)?;
        // A base that begins a line with the mark means something else by it.
        let (quotes, reader) = match searched.filter(|_| adapter.is_some()) {
            Some((vector, snapshot)) => {
                let vector = vector.filter(|_| choice.nearness > 0.0 || choice.reader_odds > 0.0);
                let reader = vector.as_ref().and_then(|_| snapshot.reader().map(str::to_owned));
                (snapshot.signs(asked.text, vector.as_deref(), &prompt.passages)?, reader)
            }
            None => (Signed::default(), None),
        };
        let prompt_sha256 = Some(prompt_fingerprint(&prompt.tokens));
        let provenance = Provenance { prompt_sha256, reader, ..provenance };
        let quotes = QuoteGuide::choosing(quotes, choice);
        let events = self.engine.submit(GenerateRequest {
            prompt: prompt.tokens,
            quotes,
            adapter: adapter.map(|(_, adapter)| adapter),
            sampling,
            max_tokens,
            stop: question.stop.clone(),
            cache_salt: question.cache_salt.clone(),
        })?;
        let retrieved = way.mode.retrieves().then(|| Retrieved {
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

    /// The passages that match best, whether they answer or not, editions that would answer but are not in effect, and what
    /// was searched.
    fn retrieve(&self, question: &Question, asked: &Asked<'_>) -> Result<Found, AnswerError> {
        let &Asked { text: asked, as_of, language } = asked;
        let limit = question.passages.unwrap_or(self.settings.passages);
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
        let (gate, lower) =
            (self.settings.gate.asked_in(language), self.settings.hybrid_gate.asked_in(language));
        // Notes first, the question last: what the notes speak of hides what is asked, also from the lower gate.
        for (n, closing) in closings(asked).into_iter().enumerate() {
            if found.relevant(gate) {
                break;
            }
            let before = std::mem::replace(&mut found, search(closing)?);
            if n > 0 {
                found = nearer(before, found);
            }
        }
        let before = question.messages.iter().rev().skip(1).find(|turn| turn.role == Role::User);
        if let Some(before) = before.filter(|_| !found.relevant(gate)) {
            // A follow-up ("And in pregnancy?") is only understood with the question before it. One about
            // something that the index has never heard of is no follow-up, whatever came before.
            if snapshot.familiarity(asked)? >= FOLLOW_UP_FAMILIARITY {
                found = nearer(found, search(&format!("{}\n{asked}", before.content))?);
            }
        }
        found.not_in_effect.retain(|edition| gate.lets_pass(edition.coverage, edition.similarity));
        // What the answer stands on comes first, so that a prompt too small for all keeps it; in one order for all modes.
        let passes = |gate: Gate, passage: &Passage| gate.lets_pass(passage.coverage, passage.similarity);
        found.passages.sort_by_key(|passage| (!passes(gate, passage), !passes(lower, passage)));
        for (at, passage) in found.passages.iter_mut().enumerate() {
            passage.n = at + 1;
        }
        Ok((found, snapshot))
    }

    fn prompt(
        &self,
        turns: &[Turn],
        passages: Option<Vec<Passage>>,
        (language, as_of): (Language, Date),
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
        builder.build(PromptParts { turns, passages, language, as_of, budget }).map_err(|error| match error {
            PromptError::TooLong { .. } => AnswerError::Prompt(error),
            other => AnswerError::Setup(other.to_string()),
        })
    }
}

/// The one of two searches whose passages support an answer best, with those editions not in effect of the other that match better still.
fn nearer(a: Retrieval, b: Retrieval) -> Retrieval {
    let (mut best, other) = if b.weight() > a.weight() { (b, a) } else { (a, b) };
    let weight = best.weight();
    for edition in other.not_in_effect.into_iter().filter(|edition| edition.weight() > weight) {
        let same =
            |own: &NotInEffect| (&own.guideline, &own.edition) == (&edition.guideline, &edition.edition);
        best.not_in_effect.retain(|own| !same(own) || own.weight() > edition.weight());
        if !best.not_in_effect.iter().any(same) {
            best.not_in_effect.push(edition);
        }
    }
    best.not_in_effect.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
    best
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
