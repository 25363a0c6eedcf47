//! Retrieval: from a question to numbered passages, on one pinned snapshot of the index.
//!
//! The request path enters here: [`GuidelineIndex`] hands out the live [`Snapshot`], which a request keeps from
//! its first step to its last, whatever is built meanwhile. [`Snapshot::search`] is the spine: [`terms`] (what the
//! question asks for) → [`lexical`] (BM25 over the editions in effect) → [`coverage`] (how much of the question a
//! passage answers, the ground for abstaining) → [`passage`] (what the prompt and the client get).

pub mod coverage;
pub mod dense;
pub mod lexical;
pub mod passage;
pub mod terms;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::civil::Date;
use tantivy::{ReloadPolicy, Searcher};

pub use passage::{Passage, Retrieval, Span};

use crate::language::Language;
use crate::store::schema::{DocumentFields, Fields};
use crate::store::{self, Generation, Manifest, StoreError, search_error};
use lexical::{Hit, Indexes};
use terms::QueryTerms;

/// The coverage below which a passage does not answer the question, unless the configuration says otherwise.
///
/// Measured on small indexes of public data (47 emergency guidelines with 28 answerable questions; 240 Japanese
/// encyclopaedia passages with 163): at 0.45 it keeps 96 % and 95 % of the answerable questions. It stops 94 % and
/// 75 % of 16 everyday questions, and 50 % and 81 % of questions on the same field that no document answers: words
/// alone cannot tell those, so the prompt must still ask for an answer from the passages only.
pub const DEFAULT_MIN_COVERAGE: f32 = 0.45;

/// The most passages one search returns.
pub const MAX_PASSAGES: usize = 100;

/// Score factor of passages in the language of the question: enough to decide between two that say the same,
/// too little to hide the only one that answers.
const SAME_LANGUAGE: f32 = 1.3;

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
    /// The most passages to return, bounded by [`MAX_PASSAGES`].
    pub limit: usize,
}

/// The live index: hands out snapshots and swaps in new generations.
pub struct GuidelineIndex {
    index_dir: PathBuf,
    live: ArcSwapOption<Snapshot>,
}

impl GuidelineIndex {
    /// Opens the live generation of an index folder. A folder in which nothing was built yet is no error: there
    /// is no snapshot until a [`GuidelineIndex::refresh`] finds one.
    pub fn open(index_dir: &Path) -> Result<Self, StoreError> {
        let index = Self { index_dir: index_dir.to_owned(), live: ArcSwapOption::empty() };
        index.refresh()?;
        Ok(index)
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
                self.live.store(Some(Arc::new(Snapshot::new(generation)?)));
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// One generation, open for searching. While it lives, its files stay.
pub struct Snapshot {
    generation: Generation,
    searcher: Searcher,
    fields: Fields,
    documents: Searcher,
    document_fields: DocumentFields,
}

impl Snapshot {
    fn new(generation: Generation) -> Result<Self, StoreError> {
        let id = PathBuf::from(&generation.manifest.id);
        let searcher = |index: &tantivy::Index| {
            let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
            let reader: tantivy::IndexReader = reader.map_err(search_error("open", &id))?;
            Ok::<_, StoreError>(reader.searcher())
        };
        Ok(Self {
            searcher: searcher(&generation.index)?,
            fields: Fields::new(),
            documents: searcher(&generation.documents)?,
            document_fields: DocumentFields::new(),
            generation,
        })
    }

    /// The id of its generation.
    #[must_use]
    pub fn generation(&self) -> &str {
        &self.generation.manifest.id
    }

    /// What its generation holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.generation.manifest
    }

    /// Finds the passages for a question among the editions in effect on its day, best first.
    pub fn search(&self, query: &SearchQuery<'_>) -> Result<Retrieval, RetrieveError> {
        let failed = |source| self.failed(source);
        let limit = query.limit.min(MAX_PASSAGES);
        let terms = QueryTerms::of(query.text, &self.searcher, &self.fields).map_err(failed)?;
        // More than asked for, so that the language preference has something to choose from.
        let wanted = limit * 2 + 10;
        let found = lexical::search(self.indexes(), &terms, &lexical::WEIGHTS, query.as_of, wanted);
        let language = query.language.unwrap_or_else(|| Language::detect(query.text));
        let mut hits =
            found.map_err(failed)?.into_iter().map(|hit| self.passage(hit)).collect::<Result<Vec<_>, _>>()?;
        for passage in &mut hits {
            if passage.language == language {
                passage.score *= SAME_LANGUAGE;
            }
        }
        // Ties go to the chunk id, so that the same question always gets the same order.
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.chunk_id.cmp(&b.chunk_id)));
        hits.truncate(limit);
        for (i, passage) in hits.iter_mut().enumerate() {
            passage.n = i + 1;
            passage.coverage = coverage::share(&terms, &passage.title, &passage.section, &passage.text);
        }
        Ok(Retrieval { passages: hits, generation: self.generation().to_owned() })
    }

    /// The chunks that match a question best in words, best first.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn rank_words(
        &self,
        text: &str,
        weights: &lexical::Weights,
        as_of: Date,
        limit: usize,
    ) -> Result<Vec<Hit>, RetrieveError> {
        let failed = |source| self.failed(source);
        let terms = QueryTerms::of(text, &self.searcher, &self.fields).map_err(failed)?;
        lexical::search(self.indexes(), &terms, weights, as_of, limit).map_err(failed)
    }

    fn indexes(&self) -> Indexes<'_> {
        Indexes {
            chunks: &self.searcher,
            fields: &self.fields,
            documents: &self.documents,
            document_fields: &self.document_fields.words,
        }
    }

    /// The share of a question's content, from 0 to 1, that occurs in the index at all; 1 for a question
    /// without content of its own ("And then?").
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn familiarity(&self, text: &str) -> Result<f32, RetrieveError> {
        let terms = QueryTerms::of(text, &self.searcher, &self.fields).map_err(|e| self.failed(e))?;
        Ok(terms.familiarity())
    }

    fn passage(&self, hit: Hit) -> Result<Passage, RetrieveError> {
        let json = lexical::record(&self.searcher, &self.fields, hit.at).map_err(|e| self.failed(e))?;
        let record = serde_json::from_str(&json)
            .map_err(|source| RetrieveError::Record { generation: self.generation().to_owned(), source })?;
        Ok(Passage::new(record, hit.score))
    }

    fn failed(&self, source: tantivy::TantivyError) -> RetrieveError {
        RetrieveError::Search { generation: self.generation().to_owned(), source: Box::new(source) }
    }
}
