//! Passages: chunks as handed to the prompt and to the client.
//!
//! Last step of retrieval. A passage carries all that a reader needs to judge it (edition, dates, issuer, where
//! in the file it stands), because an answer may only say what its passages say.

use std::ops::Range;

use jiff::civil::Date;
use serde::Serialize;

use super::{Gate, Ranked, weight};
use crate::language::Language;
use crate::store::schema::Record;

/// A stretch of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Span {
    /// Its first byte.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// One retrieved chunk.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Passage {
    /// Its number in the prompt, from 1.
    pub n: usize,
    /// The guideline.
    pub guideline: String,
    /// Its title.
    pub title: String,
    /// The edition.
    pub edition: String,
    /// The heading path.
    pub section: String,
    /// Who issued it.
    pub issuer: String,
    /// Where it holds.
    pub jurisdiction: String,
    /// The language of the text.
    pub language: Language,
    /// Subject words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The first day of effect.
    pub effective_from: Date,
    /// The last day of effect: the edition's own, or the day before its replacement.
    pub effective_to: Option<Date>,
    /// Where the text came from.
    pub source: String,
    /// The licence of the text.
    pub licence: String,
    /// The file, relative to the guideline folder.
    pub file: String,
    /// The page of the file, from 1, where it has pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<usize>,
    /// Where the text stands in the file; in what was extracted from it, where it is no text file.
    pub span: Span,
    /// How well it matches; comparable within one search only.
    pub score: f32,
    /// How much of the question's content it contains, from 0 to 1, of a long question enough of it; comparable between
    /// searches.
    pub coverage: f32,
    /// The cosine of its vector and the question's, from −1 to 1, where the index has vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// The cosine of the question's vector and that of the sentence of it that is nearest; of the first passages by words and meaning, where
    /// the index was built with sentences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentence_similarity: Option<f32>,
    /// The chunk's number in its generation.
    #[serde(skip)]
    pub row: usize,
    /// The text.
    pub text: String,
    /// Names the chunk within its generation.
    pub chunk_id: String,
}

impl Passage {
    pub(super) fn new(record: Record, hit: Ranked) -> Self {
        Self {
            n: 0,
            guideline: record.guideline,
            title: record.title,
            edition: record.edition,
            section: record.section,
            issuer: record.issuer,
            jurisdiction: record.jurisdiction,
            language: record.language,
            tags: record.tags,
            effective_from: record.effective_from,
            effective_to: record.ends.and_then(|end| end.yesterday().ok()).or(record.effective_to),
            source: record.source,
            licence: record.licence,
            file: record.file,
            page: record.page,
            span: record.span.into(),
            score: hit.score,
            coverage: 0.0,
            similarity: hit.similarity,
            sentence_similarity: None,
            row: hit.row,
            text: record.text,
            chunk_id: record.chunk_id,
        }
    }
}

/// Why an edition is not in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Another edition has replaced it.
    Replaced,
    /// It says itself that it holds no longer.
    Expired,
    /// It does not hold yet.
    NotYet,
}

/// An edition that matches the question better than any that is in effect, and is not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotInEffect {
    /// The guideline.
    pub guideline: String,
    /// Its title.
    pub title: String,
    /// The edition.
    pub edition: String,
    /// Why it is left out.
    pub why: Why,
    /// The first day of effect.
    pub effective_from: Date,
    /// The last day of effect.
    pub effective_to: Option<Date>,
    /// What replaces it, as `guideline@edition`.
    pub replaced_by: Option<String>,
    /// How much of the question's content its best passage contains, from 0 to 1.
    pub coverage: f32,
    /// The cosine of that passage's vector and the question's, where the index has vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
}

impl NotInEffect {
    /// The [`weight`] of its best passage.
    #[must_use]
    pub fn weight(&self) -> f32 {
        weight(self.coverage, self.similarity)
    }

    /// Of a chunk's record, seen from a day on which it is not in effect.
    pub(super) fn new(record: Record, day: Date, coverage: f32, similarity: Option<f32>) -> Self {
        let why = if record.effective_from > day {
            Why::NotYet
        } else if record.replaced_by.is_some() {
            // It may have expired as well; what came after it is what a reader wants to know.
            Why::Replaced
        } else {
            Why::Expired
        };
        Self {
            coverage,
            similarity,
            why,
            guideline: record.guideline,
            title: record.title,
            edition: record.edition,
            effective_from: record.effective_from,
            effective_to: record.ends.and_then(|end| end.yesterday().ok()).or(record.effective_to),
            replaced_by: record.replaced_by,
        }
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retrieval {
    /// The passages, best first.
    pub passages: Vec<Passage>,
    /// Coverage and similarity of the passage that supports an answer best: of all that were compared, which may be more than those.
    #[serde(skip)]
    pub best: Option<(f32, Option<f32>)>,
    /// Editions that match better than those, and are not in effect on the day, best first.
    pub not_in_effect: Vec<NotInEffect>,
    /// What was searched with, where the index has vectors.
    #[serde(skip)]
    pub vector: Option<Vec<f32>>,
    /// The generation they come from.
    pub generation: String,
}

impl Retrieval {
    /// Whether any passage answers the question, as far as a gate can tell. When none does, answering would mean inventing.
    #[must_use]
    pub fn relevant(&self, gate: Gate) -> bool {
        self.best.is_some_and(|(coverage, similarity)| gate.lets_pass(coverage, similarity))
    }

    /// The largest [`weight`] of a passage; lowest of all where there is none.
    #[must_use]
    pub fn weight(&self) -> f32 {
        self.best.map_or(f32::NEG_INFINITY, |(coverage, similarity)| weight(coverage, similarity))
    }
}
