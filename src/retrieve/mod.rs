//! Retrieval: from a question to numbered passages, on one pinned snapshot of the index.
//!
//! The request path enters here: [`GuidelineIndex`] hands out the live [`Snapshot`], which a request keeps from
//! its first step to its last, whatever is built meanwhile. [`Snapshot::search`] ([`snapshot`]) is the spine: [`terms`] (what the
//! question asks for) → [`lexical`] (BM25 over the editions in effect) and [`dense`] (vectors near that of the question) → [`fuse`]
//! (one ranking of both) → [`coverage`] (how much of the question a passage answers, the ground for abstaining) → `order` (what answers
//! comes first) → [`passage`] (what the prompt and the client get). [`sentences`] tells which sentence of those is nearest.

pub mod coverage;
pub mod dense;
pub mod explain;
pub mod fuse;
pub mod lexical;
mod order;
pub mod passage;
pub mod sentences;
pub mod snapshot;
pub mod terms;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::civil::Date;

pub use explain::Explanation;
pub use passage::{NotInEffect, Passage, Retrieval, Span, Why};
pub use snapshot::{Ranked, Ranking, Snapshot};
pub use verify::{Checked, verify};

use crate::analysis::synonyms::Synonyms;
use crate::kernels::Cpu;
use crate::language::Language;
use crate::model::embed::{EmbedError, Embedder, TextKind};
use crate::store::{self, StoreError};

/// The coverage below which a passage does not answer the question, unless the configuration says otherwise. Words alone cannot
/// tell questions on the same field that no document answers, so the prompt must still ask for an answer from the passages only;
/// README has the figures.
pub const DEFAULT_MIN_COVERAGE: f32 = 0.45;

/// The support below which a passage does not answer the question, unless the configuration says otherwise.
pub const DEFAULT_MIN_SUPPORT: f32 = 0.9;

/// What coverage counts beside similarity, in [`support`].
const COVERAGE_IN_SUPPORT: f32 = 0.1;

/// How much nearer the embedder sets Japanese questions to passages, whether they answer or not.
const JAPANESE_NEARNESS: f32 = 0.015;

/// How well a passage supports an answer: the cosine of its vector and the question's, and a tenth of its coverage of the
/// question. Neither can tell alone: a passage in the other language shares few words, and cosines of texts about
/// one field are high whatever they say. More of the coverage helps with short questions and spoils long ones.
#[must_use]
pub fn support(coverage: f32, similarity: f32) -> f32 {
    similarity + COVERAGE_IN_SUPPORT * coverage
}

/// What a [`Gate`] goes by: the [`support`] of a passage, or its coverage where there are no vectors.
#[must_use]
pub fn weight(coverage: f32, similarity: Option<f32>) -> f32 {
    similarity.map_or(coverage, |similarity| support(coverage, similarity))
}

/// Tells passages that answer a question from those that merely match best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// The share of a question's content that a passage must cover, from 0 to 1, where the index has no vectors.
    pub min_coverage: f32,
    /// The [`support`] that a passage must give, where it has.
    pub min_support: f32,
}

impl Gate {
    /// The gate for questions in a language.
    #[must_use]
    pub fn asked_in(self, language: Language) -> Self {
        match language {
            Language::En => self,
            Language::Ja => Self { min_support: self.min_support + JAPANESE_NEARNESS, ..self },
        }
    }

    /// The gate with both bars lower by so much.
    #[must_use]
    pub fn lowered(self, by: f32) -> Self {
        Self { min_coverage: self.min_coverage - by, min_support: self.min_support - by }
    }

    /// Whether a passage of such coverage and similarity answers.
    #[must_use]
    pub fn lets_pass(&self, coverage: f32, similarity: Option<f32>) -> bool {
        let bar = if similarity.is_some() { self.min_support } else { self.min_coverage };
        weight(coverage, similarity) >= bar
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { min_coverage: DEFAULT_MIN_COVERAGE, min_support: DEFAULT_MIN_SUPPORT }
    }
}

/// The most passages one search returns.
pub const MAX_PASSAGES: usize = 100;

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// The search library failed.
    #[error("cannot search generation `{generation}`: {source}")]
    Search {
        /// The generation that was searched.
        generation: String,
        /// Why it failed.
        source: Box<tantivy::TantivyError>,
    },
    /// The question has no vector.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// A stored record cannot be read.
    #[error(
        "generation `{generation}` holds a record that cannot be read: {source}; run `shishin index build`"
    )]
    Record {
        /// The generation that was searched.
        generation: String,
        /// Why it cannot be read.
        source: serde_json::Error,
    },
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct SearchQuery<'a> {
    /// The question, as its author wrote it. No part of it is query syntax.
    pub text: &'a str,
    /// The day whose editions are looked at.
    pub as_of: Date,
    /// The language to prefer; that of the text when not given. The other one stays findable.
    pub language: Option<Language>,
    /// What editions must be; all of them when not given.
    pub filter: Option<&'a Filter>,
    /// The most passages to return, bounded by [`MAX_PASSAGES`].
    pub limit: usize,
    /// What to go by; [`Snapshot::ranking`] when not given.
    pub ranking: Option<Ranking>,
}

/// What editions must be to be searched. Widths, case and outer white space do not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Who issued them.
    pub issuer: Option<String>,
    /// Where they hold.
    pub jurisdiction: Option<String>,
    /// Their language.
    pub language: Option<Language>,
    /// Tags that they have, all of them.
    pub tags: Vec<String>,
}

impl Filter {
    /// Whether it lets everything pass.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a search looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope<'a> {
    /// Editions in effect on that day; of any day when not given.
    pub as_of: Option<Date>,
    /// Editions that a filter lets pass; all when not given.
    pub filter: Option<&'a Filter>,
}

/// What searching by meaning needs.
#[derive(Clone)]
pub struct Meaning {
    /// Makes the vectors of questions; those of the chunks must be its own.
    pub embedder: Arc<dyn Embedder>,
    /// Where it was loaded from.
    pub path: PathBuf,
    /// Multiplies vectors.
    pub cpu: Arc<Cpu>,
}

/// What the vector of a question as a passage counts beside that as a question.
const AS_PASSAGE: f32 = 0.5;

impl Meaning {
    /// The vector that a question is searched with. Much of what is asked is a statement rather than a question ("statins raise the
    /// risk of diabetes"), and lies nearer to passages when it is taken for one; an encoder that tells the two apart is given it both
    /// ways.
    ///
    /// # Errors
    /// When the question has no vector.
    pub fn of_question(&self, text: &str) -> Result<Vec<f32>, EmbedError> {
        let as_kind = |kind| Ok(self.embedder.embed(kind, &[text])?.pop().unwrap_or_default());
        let mut vector = as_kind(TextKind::Query)?;
        if self.embedder.tells_kinds_apart() {
            for (sum, part) in vector.iter_mut().zip(as_kind(TextKind::Passage)?) {
                *sum += AS_PASSAGE * part;
            }
            let length = vector.iter().map(|n| n * n).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|n| *n /= length.max(f32::MIN_POSITIVE));
        }
        Ok(vector)
    }
}

/// Puts the best passages of a search into another order, by reading them with the question: a cross-encoder, or rules of a house.
pub trait Reranker: Send + Sync {
    /// How well each passage answers; one number for each, higher is better.
    ///
    /// # Errors
    /// What keeps it from telling; the search then fails.
    fn scores(&self, question: &str, passages: &[Passage]) -> Result<Vec<f32>, RetrieveError>;
}

/// What a search works with besides the index.
#[derive(Clone, Default)]
pub struct SearchTools {
    /// For searching by meaning; by words alone without.
    pub meaning: Option<Meaning>,
    /// Terms that mean the same.
    pub synonyms: Arc<Synonyms>,
    /// Has the last word on the order of the first passages; none is shipped.
    pub reranker: Option<Arc<dyn Reranker>>,
}

impl From<Option<Meaning>> for SearchTools {
    fn from(meaning: Option<Meaning>) -> Self {
        Self { meaning, ..Self::default() }
    }
}

/// The live index: hands out snapshots and swaps in new generations.
pub struct GuidelineIndex {
    index_dir: PathBuf,
    tools: SearchTools,
    live: ArcSwapOption<Snapshot>,
}

impl GuidelineIndex {
    /// Opens the live generation of an index folder, to be searched by words alone. A folder in which nothing was built yet is no
    /// error: there is no snapshot until a [`GuidelineIndex::refresh`] finds one.
    pub fn open(index_dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(index_dir, SearchTools::default())
    }

    /// As [`open`](Self::open), to be searched by meaning too where an embedder is given; a generation whose vectors are not its own
    /// is refused.
    pub fn open_with(index_dir: &Path, tools: impl Into<SearchTools>) -> Result<Self, StoreError> {
        let tools = tools.into();
        let index = Self { index_dir: index_dir.to_owned(), tools, live: ArcSwapOption::empty() };
        index.refresh()?;
        Ok(index)
    }

    /// The folder of the index.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.index_dir
    }

    /// The live snapshot, or `None` when nothing was built yet. Cheap.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.live.load_full()
    }

    /// Opens the generation that `CURRENT` names, if it is another one; says whether it did. When that fails, the
    /// snapshot at hand stays the live one. Requests under way keep theirs in any case.
    pub fn refresh(&self) -> Result<bool, StoreError> {
        let named = store::current_id(&self.index_dir)?;
        let live = self.live.load();
        if named.is_none() || named.as_deref() == live.as_ref().map(|s| s.generation()) {
            return Ok(false);
        }
        match store::open_current(&self.index_dir)? {
            Some(generation) => {
                let dir = store::generation_dir(&self.index_dir, &generation.manifest.id);
                let snapshot = Snapshot::open(generation, &dir, &self.tools)?;
                self.live.store(Some(Arc::new(snapshot)));
                Ok(true)
            }
            None => Ok(false),
        }
    }
}
