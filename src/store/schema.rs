//! The fields of the index, and the record that each chunk stores.
//!
//! Shared by the build, which writes them, and by the search, which reads them; so a change here must change
//! [`VERSION`]. The text is indexed three times, with every term, as stemmed English words and as Japanese words, and so is the head
//! (title, heading path, tags), because a match there says more. Chunks and whole documents have an index each. What a passage
//! shows is stored as one record; a document stores the text that the spans of its chunks point into.

use std::ops::Range;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use tantivy::TantivyDocument;
use tantivy::schema::{
    Field, INDEXED, IndexRecordOption, NumericOptions, STORED, Schema, SchemaBuilder, TextFieldIndexing,
    TextOptions,
};

use crate::analysis;
use crate::language::Language;

/// The version of the fields and the record.
pub const VERSION: u32 = 3;

/// What chunks and documents are found by.
#[derive(Debug, Clone, Copy)]
pub struct TextFields {
    /// The text, every term.
    pub text: Field,
    /// The text, stemmed English words.
    pub text_english: Field,
    /// The text, Japanese words.
    pub text_japanese: Field,
    /// Title, heading path and tags, every term.
    pub head: Field,
    /// Title, heading path and tags, stemmed English words.
    pub head_english: Field,
    /// Title, heading path and tags, Japanese words.
    pub head_japanese: Field,
    /// The first day of effect, as [`day_number`].
    pub begins: Field,
    /// The first day after the effect, as [`day_number`]; `i64::MAX` when open.
    pub ends: Field,
    /// The document's number in its generation, from 0.
    pub document: Field,
    /// Who issued it, as [`filter_value`].
    pub issuer: Field,
    /// Where it holds, as [`filter_value`].
    pub jurisdiction: Field,
    /// The language of the text.
    pub language: Field,
    /// Each of its tags, as [`filter_value`].
    pub tag: Field,
}

impl TextFields {
    fn new(schema: &mut SchemaBuilder) -> Self {
        let words = |tokenizer: &str| {
            let indexing = TextFieldIndexing::default()
                .set_tokenizer(tokenizer)
                .set_index_option(IndexRecordOption::WithFreqsAndPositions);
            TextOptions::default().set_indexing_options(indexing)
        };
        let day = || NumericOptions::from(INDEXED).set_fast();
        let whole = || {
            let indexing = TextFieldIndexing::default()
                .set_tokenizer("raw")
                .set_fieldnorms(false)
                .set_index_option(IndexRecordOption::Basic);
            TextOptions::default().set_indexing_options(indexing)
        };
        Self {
            text: schema.add_text_field("text", words(analysis::TEXT)),
            text_english: schema.add_text_field("text_english", words(analysis::ENGLISH)),
            text_japanese: schema.add_text_field("text_japanese", words(analysis::JAPANESE)),
            head: schema.add_text_field("head", words(analysis::TEXT)),
            head_english: schema.add_text_field("head_english", words(analysis::ENGLISH)),
            head_japanese: schema.add_text_field("head_japanese", words(analysis::JAPANESE)),
            begins: schema.add_i64_field("begins", day()),
            ends: schema.add_i64_field("ends", day()),
            document: schema.add_u64_field("document", NumericOptions::default().set_fast()),
            issuer: schema.add_text_field("issuer", whole()),
            jurisdiction: schema.add_text_field("jurisdiction", whole()),
            language: schema.add_text_field("language", whole()),
            tag: schema.add_text_field("tag", whole()),
        }
    }

    fn fill(&self, [head, text]: [&str; 2], facts: &Facts<'_>, document: u64) -> TantivyDocument {
        let mut doc = TantivyDocument::default();
        for field in [self.text, self.text_english, self.text_japanese] {
            doc.add_text(field, text);
        }
        for field in [self.head, self.head_english, self.head_japanese] {
            doc.add_text(field, head);
        }
        doc.add_i64(self.begins, day_number(facts.begins));
        doc.add_i64(self.ends, facts.ends.map_or(i64::MAX, day_number));
        doc.add_u64(self.document, document);
        doc.add_text(self.issuer, filter_value(facts.issuer));
        doc.add_text(self.jurisdiction, filter_value(facts.jurisdiction));
        doc.add_text(self.language, facts.language.to_string());
        for tag in facts.tags {
            doc.add_text(self.tag, filter_value(tag));
        }
        doc
    }
}

/// What an edition is filtered by.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The first day of effect.
    pub begins: Date,
    /// The first day after.
    pub ends: Option<Date>,
    /// Who issued it.
    pub issuer: &'a str,
    /// Where it holds.
    pub jurisdiction: &'a str,
    /// The language of the text.
    pub language: Language,
    /// Subject words.
    pub tags: &'a [String],
}

impl<'a> From<&'a Record> for Facts<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            begins: record.effective_from,
            ends: record.ends,
            issuer: &record.issuer,
            jurisdiction: &record.jurisdiction,
            language: record.language,
            tags: &record.tags,
        }
    }
}

/// A value as filters compare it: widths, case and outer white space do not matter.
#[must_use]
pub fn filter_value(text: &str) -> String {
    analysis::normalise::fold_text(text.trim())
}

/// The fields of the index of chunks.
#[derive(Debug, Clone)]
pub struct Fields {
    /// The schema they belong to.
    pub schema: Schema,
    /// What a chunk is found by.
    pub words: TextFields,
    /// The chunk's number in its generation, from 0.
    pub row: Field,
    /// The stored [`Record`], as JSON.
    pub record: Field,
}

impl Fields {
    /// The fields of a new index. The order is fixed, so they also fit one that was opened, once its manifest
    /// has the same [`VERSION`].
    #[must_use]
    pub fn new() -> Self {
        let mut schema = Schema::builder();
        let words = TextFields::new(&mut schema);
        let row = schema.add_u64_field("row", NumericOptions::default().set_fast());
        let record = schema.add_text_field("record", STORED);
        Self { schema: schema.build(), words, row, record }
    }

    /// The entry of the chunk with the number `row`, of the document with the number `document`. `head` is what it is
    /// found by besides its text.
    pub fn entry(
        &self,
        row: u64,
        document: u64,
        record: &Record,
        head: &str,
    ) -> Result<TantivyDocument, serde_json::Error> {
        let mut doc = self.words.fill([head, &record.text], &record.into(), document);
        doc.add_u64(self.row, row);
        doc.add_text(self.record, serde_json::to_string(record)?);
        Ok(doc)
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields of the index of whole documents: what a chunk stands in says what it is about.
#[derive(Debug, Clone)]
pub struct DocumentFields {
    /// The schema they belong to.
    pub schema: Schema,
    /// What a document is found by.
    pub words: TextFields,
    /// The stored text that spans point into.
    pub extracted: Field,
}

impl DocumentFields {
    /// The fields of a new index, or of one that was opened, as with [`Fields::new`].
    #[must_use]
    pub fn new() -> Self {
        let mut schema = Schema::builder();
        let words = TextFields::new(&mut schema);
        let extracted = schema.add_text_field("extracted", STORED);
        Self { schema: schema.build(), words, extracted }
    }

    /// The entry of the document with that number: found by its head and the words that are served of it, kept as it was extracted.
    #[must_use]
    pub fn entry(
        &self,
        document: u64,
        [head, served, extracted]: [&str; 3],
        facts: &Facts<'_>,
    ) -> TantivyDocument {
        let mut doc = self.words.fill([head, served], facts, document);
        doc.add_text(self.extracted, extracted);
        doc
    }
}

impl Default for DocumentFields {
    fn default() -> Self {
        Self::new()
    }
}

/// A day as a number that sorts like it and can be read: 20250401.
#[must_use]
pub fn day_number(day: Date) -> i64 {
    i64::from(day.year()) * 10_000 + i64::from(day.month()) * 100 + i64::from(day.day())
}

/// Everything about a chunk that a passage shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the chunk within its generation: `guideline@edition#n`.
    pub chunk_id: String,
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
    pub tags: Vec<String>,
    /// The first day of effect.
    pub effective_from: Date,
    /// The last day of effect that the edition itself names.
    pub effective_to: Option<Date>,
    /// The first day after the effect, replacement included.
    pub ends: Option<Date>,
    /// The edition that replaces it, as `guideline@edition`.
    pub replaced_by: Option<String>,
    /// Where the text came from.
    pub source: String,
    /// The licence of the text.
    pub licence: String,
    /// The file, relative to the guideline folder.
    pub file: String,
    /// The page of the file, from 1, where it has pages.
    pub page: Option<usize>,
    /// Where the text stands in the file, in bytes; in what was extracted from it, where it is no text file.
    pub span: Range<usize>,
    /// The text.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_sort_as_numbers() {
        let days = ["-000001-12-31", "1999-12-31", "2000-01-01", "2025-04-01", "2025-10-01"];
        let numbers: Vec<_> = days.iter().map(|d| day_number(d.parse().unwrap())).collect();
        assert!(numbers[1..].is_sorted());
        assert_eq!(numbers[3], 20_250_401);
    }
}
