//! Passages: chunks as handed to the prompt and to the client.
//!
//! Last step of retrieval. A passage carries all that a reader needs to judge it (edition, dates, issuer, where
//! in the file it stands), because an answer may only say what its passages say.

use std::ops::Range;

use jiff::civil::Date;
use serde::Serialize;

use crate::language::Language;
use crate::store::schema::Record;

/// A stretch of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Where the text stands in the file.
    pub span: Span,
    /// How well it matches; comparable within one search only.
    pub score: f32,
    /// How much of the question's content it contains, from 0 to 1; comparable between searches.
    pub coverage: f32,
    /// The cosine of its vector and the question's, from −1 to 1, where the index has vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// The text.
    pub text: String,
    /// Names the chunk within its generation.
    pub chunk_id: String,
}

impl Passage {
    pub(super) fn new(record: Record, score: f32, similarity: Option<f32>) -> Self {
        Self {
            n: 0,
            guideline: record.guideline,
            title: record.title,
            edition: record.edition,
            section: record.section,
            issuer: record.issuer,
            jurisdiction: record.jurisdiction,
            language: record.language,
            effective_from: record.effective_from,
            effective_to: record.ends.and_then(|end| end.yesterday().ok()).or(record.effective_to),
            source: record.source,
            licence: record.licence,
            file: record.file,
            span: record.span.into(),
            score,
            coverage: 0.0,
            similarity,
            text: record.text,
            chunk_id: record.chunk_id,
        }
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retrieval {
    /// The passages, best first.
    pub passages: Vec<Passage>,
    /// The generation they come from.
    pub generation: String,
}

impl Retrieval {
    /// Whether any passage covers at least this share of the question. When none does, answering would mean
    /// inventing.
    #[must_use]
    pub fn relevant(&self, min_coverage: f32) -> bool {
        self.passages.iter().any(|p| p.coverage >= min_coverage)
    }
}
