//! The fields of the index, and the record that each chunk stores.
//!
//! Shared by the build, which writes them, and by the search, which reads them; so a change here must change
//! [`VERSION`]. The text is indexed twice, with every term and as stemmed English words, and so is the head
//! (title, heading path, tags), because a match there says more. What a passage shows is stored as one record.

use std::ops::Range;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use tantivy::TantivyDocument;
use tantivy::schema::{
    Field, INDEXED, IndexRecordOption, NumericOptions, STORED, Schema, TextFieldIndexing, TextOptions,
};

use crate::analysis;
use crate::language::Language;

/// The version of the fields and the record.
pub const VERSION: u32 = 2;

/// The fields of the index.
#[derive(Debug, Clone)]
pub struct Fields {
    /// The schema they belong to.
    pub schema: Schema,
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
        let words = |tokenizer: &str| {
            let indexing = TextFieldIndexing::default()
                .set_tokenizer(tokenizer)
                .set_index_option(IndexRecordOption::WithFreqsAndPositions);
            TextOptions::default().set_indexing_options(indexing)
        };
        let day = || NumericOptions::from(INDEXED).set_fast();
        let text = schema.add_text_field("text", words(analysis::TEXT));
        let text_english = schema.add_text_field("text_english", words(analysis::ENGLISH));
        let text_japanese = schema.add_text_field("text_japanese", words(analysis::JAPANESE));
        let head = schema.add_text_field("head", words(analysis::TEXT));
        let head_english = schema.add_text_field("head_english", words(analysis::ENGLISH));
        let head_japanese = schema.add_text_field("head_japanese", words(analysis::JAPANESE));
        let begins = schema.add_i64_field("begins", day());
        let ends = schema.add_i64_field("ends", day());
        let row = schema.add_u64_field("row", NumericOptions::default().set_fast());
        let record = schema.add_text_field("record", STORED);
        Self {
            schema: schema.build(),
            text,
            text_english,
            text_japanese,
            head,
            head_english,
            head_japanese,
            begins,
            ends,
            row,
            record,
        }
    }

    /// The document of the chunk with the number `row`. `head` is what it is found by besides its text.
    pub fn document(
        &self,
        row: u64,
        record: &Record,
        head: &str,
    ) -> Result<TantivyDocument, serde_json::Error> {
        let mut doc = TantivyDocument::default();
        doc.add_text(self.text, &record.text);
        doc.add_text(self.text_english, &record.text);
        doc.add_text(self.text_japanese, &record.text);
        doc.add_text(self.head, head);
        doc.add_text(self.head_english, head);
        doc.add_text(self.head_japanese, head);
        doc.add_i64(self.begins, day_number(record.effective_from));
        doc.add_i64(self.ends, record.ends.map_or(i64::MAX, day_number));
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
    /// The first day of effect.
    pub effective_from: Date,
    /// The last day of effect that the edition itself names.
    pub effective_to: Option<Date>,
    /// The first day after the effect, replacement included.
    pub ends: Option<Date>,
    /// Where the text came from.
    pub source: String,
    /// The licence of the text.
    pub licence: String,
    /// The file, relative to the guideline folder.
    pub file: String,
    /// Where the text stands in the file, in bytes.
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
