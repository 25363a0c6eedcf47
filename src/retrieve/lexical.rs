//! BM25 over the editions in effect.
//!
//! Second step of a search. The query is built from terms, never parsed, so nothing in a question is syntax. It
//! asks for any of the terms, in the text and in the head, and rewards neighbours that stay together.

use std::ops::Bound;

use jiff::civil::Date;
use tantivy::collector::TopDocs;
use tantivy::query::{
    BooleanQuery, BoostQuery, ConstScoreQuery, Occur, PhraseQuery, Query, RangeQuery, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Value as _};
use tantivy::{DocAddress, Searcher, TantivyDocument, Term};

use super::terms::{Asked, QueryTerms, is_hiragana};
use crate::analysis::scan::Script;
use crate::store::schema::{Fields, day_number};

/// What each kind of match weighs, beside an English stem or a pair of CJK content characters in the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// A word as written; its stem counts besides.
    pub exact: f32,
    /// A pair of CJK characters of which one is hiragana: an ending or a particle with its word.
    pub mixed: f32,
    /// A single CJK character, which says little.
    pub one: f32,
    /// A piece of a compound number.
    pub part: f32,
    /// The head, against the text.
    pub head: f32,
    /// Neighbours that stand together.
    pub phrase: f32,
    /// Stop words and kana endings.
    pub filler: f32,
    /// A Japanese word.
    pub word: f32,
    /// The head against the text, for Japanese words.
    pub word_head: f32,
    /// The head against the text, for terms as written.
    pub exact_head: f32,
}

/// Chosen by trying a few values of each on three public English sets and one Japanese: a coarse choice.
pub const WEIGHTS: Weights =
    Weights { exact: 0.1, mixed: 0.6, one: 0.5, part: 0.3, head: 0.6, phrase: 0.1, filler: 0.1, word: 0.0, word_head: 0.6, exact_head: 0.6 };
/// How many pairs of neighbours are looked for.
const MAX_PHRASES: usize = 24;

/// A chunk that matches.
#[derive(Debug, Clone, Copy)]
pub struct Hit {
    /// How well, in BM25.
    pub score: f32,
    /// The chunk's number in the generation.
    pub row: usize,
    /// Where it is in the index.
    pub at: DocAddress,
}

/// The best chunks for the terms, among editions in effect on a day.
pub fn search(
    searcher: &Searcher,
    fields: &Fields,
    terms: &QueryTerms,
    weights: &Weights,
    as_of: Date,
    limit: usize,
) -> tantivy::Result<Vec<Hit>> {
    let clauses = any_of(fields, terms, weights);
    if clauses.is_empty() || limit == 0 {
        return Ok(Vec::new());
    }
    let mut all: Vec<(Occur, Box<dyn Query>)> = vec![(Occur::Must, Box::new(BooleanQuery::new(clauses)))];
    all.extend(in_effect(fields, as_of).map(|filter| (Occur::Must, filter)));
    let found = searcher.search(&BooleanQuery::new(all), &TopDocs::with_limit(limit).order_by_score())?;
    let mut rows = Vec::with_capacity(searcher.segment_readers().len());
    for segment in searcher.segment_readers() {
        rows.push(segment.fast_fields().u64("row")?);
    }
    let row = |at: DocAddress| rows[at.segment_ord as usize].first(at.doc_id).unwrap_or(u64::MAX) as usize;
    Ok(found.into_iter().map(|(score, at)| Hit { score, row: row(at), at }).collect())
}

/// The stored record of a chunk, as JSON.
pub fn record(searcher: &Searcher, fields: &Fields, at: DocAddress) -> tantivy::Result<String> {
    let doc: TantivyDocument = searcher.doc(at)?;
    Ok(doc.get_first(fields.record).and_then(|v| v.as_str()).unwrap_or_default().to_owned())
}

/// Begun on the day or before, and not ended by then; adds nothing to the score.
fn in_effect(fields: &Fields, day: Date) -> [Box<dyn Query>; 2] {
    let day = day_number(day);
    let begun = RangeQuery::new(Bound::Unbounded, Bound::Included(Term::from_field_i64(fields.begins, day)));
    let open = RangeQuery::new(Bound::Excluded(Term::from_field_i64(fields.ends, day)), Bound::Unbounded);
    [begun, open].map(|range| Box::new(ConstScoreQuery::new(Box::new(range), 0.0)) as Box<dyn Query>)
}

fn any_of(fields: &Fields, terms: &QueryTerms, weights: &Weights) -> Vec<(Occur, Box<dyn Query>)> {
    let mut out = Vec::new();
    let mut add = |field: Field, text: &str, weight: f32| {
        if weight > 0.0 {
            out.push(term(field, text, weight));
        }
    };
    for asked in &terms.asked {
        let weight = plain_weight(asked, weights);
        add(fields.text, &asked.term.text, weight);
        add(fields.head, &asked.term.text, weight * weights.exact_head);
        if let Some(stem) = &asked.stem {
            add(fields.text_english, stem, 1.0);
            add(fields.head_english, stem, weights.head);
        }
    }
    for word in &terms.words {
        add(fields.text_japanese, word, weights.word);
        add(fields.head_japanese, word, weights.word * weights.word_head);
    }
    let neighbours = terms.asked.iter().flat_map(|a| terms.asked.iter().map(move |b| (a, b)));
    let pairs = neighbours.filter(|(a, b)| a.content && b.content && are_neighbours(a, b));
    if weights.phrase > 0.0 {
        for (a, b) in pairs.take(MAX_PHRASES) {
            out.push((Occur::Should, phrase(fields.text, a, b, weights.phrase)));
        }
    }
    out
}

fn plain_weight(asked: &Asked, weights: &Weights) -> f32 {
    match asked.term.script {
        Script::CjkOne => weights.one,
        Script::NumberPart => weights.part,
        Script::Word if asked.content => weights.exact,
        Script::Number | Script::CjkTwo if asked.content => 1.0,
        Script::CjkTwo if !asked.term.text.chars().all(is_hiragana) => weights.mixed,
        Script::Number | Script::CjkTwo | Script::Word => weights.filler,
    }
}

/// Two words side by side, or two pairs of CJK characters that share the middle one.
fn are_neighbours(a: &Asked, b: &Asked) -> bool {
    let cjk = a.term.script == Script::CjkTwo && b.term.script == Script::CjkTwo;
    let words = a.term.script == Script::Word && b.term.script == Script::Word;
    (cjk || words) && b.term.position == a.term.position + 1
}

fn term(field: Field, text: &str, weight: f32) -> (Occur, Box<dyn Query>) {
    let query = TermQuery::new(Term::from_field_text(field, text), IndexRecordOption::WithFreqs);
    (Occur::Should, Box::new(BoostQuery::new(Box::new(query), weight)))
}

fn phrase(field: Field, a: &Asked, b: &Asked, weight: f32) -> Box<dyn Query> {
    let words = [a, b].map(|asked| Term::from_field_text(field, &asked.term.text)).to_vec();
    Box::new(BoostQuery::new(Box::new(PhraseQuery::new(words)), weight))
}
