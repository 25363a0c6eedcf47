//! BM25 over the editions in effect: of the chunks, and of the documents that they stand in.
//!
//! Second step of a search. The query is built from terms, never parsed, so nothing in a question is syntax. It
//! asks for any of the terms, in the text and in the head. A chunk's own words say whether it answers; those of its whole document say
//! what it is about, which a chunk of a long document often does not repeat. So the two scores are added.

use std::collections::HashMap;
use std::ops::Bound;

use tantivy::collector::{DocSetCollector, TopDocs};
use tantivy::query::{
    Bm25StatisticsProvider, BooleanQuery, BoostQuery, ConstScoreQuery, Occur, Query, RangeQuery, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Value as _};
use tantivy::{DocAddress, Searcher, TantivyDocument, Term};

use super::Scope;
use super::terms::{Asked, QueryTerms, is_hiragana};
use crate::analysis::scan::Script;
use crate::store::schema::{Fields, TextFields, day_number, filter_value};

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
    /// A Japanese word; its pairs of characters count besides.
    pub word: f32,
    /// What means the same as a part of the question, beside that itself.
    pub synonym: f32,
    /// Stop words and kana endings.
    pub filler: f32,
    /// The head against the text, for English stems.
    pub head: f32,
    /// The head against the text, for terms as written.
    pub exact_head: f32,
    /// The head against the text, for Japanese words.
    pub word_head: f32,
    /// The whole document against the chunk.
    pub document: f32,
    /// What a text of average length counts as, of itself: above 1, BM25 corrects less for length.
    pub length: f32,
}

/// Chosen by trying a few values of each on five public English sets and two Japanese ones together (ARCHITECTURE.md has
/// the figures): a coarse choice.
pub const WEIGHTS: Weights = Weights {
    exact: 0.1,
    mixed: 0.9,
    one: 0.3,
    part: 0.3,
    word: 0.6,
    synonym: 0.3,
    filler: 0.1,
    head: 0.55,
    exact_head: 0.3,
    word_head: 0.3,
    document: 3.0,
    length: 1.5,
};

/// Chunks and documents that are looked at, whatever the number asked for.
const AT_LEAST: usize = 200;

/// A chunk that matches.
#[derive(Debug, Clone, Copy)]
pub struct Hit {
    /// How well, in BM25, its document's share included.
    pub score: f32,
    /// The part of it that is the chunk's own words'.
    pub own: f32,
    /// The chunk's number in the generation.
    pub row: usize,
}

/// The two indexes of a generation, open.
#[derive(Clone, Copy)]
pub struct Indexes<'a> {
    /// Of the chunks.
    pub chunks: &'a Searcher,
    /// Their fields.
    pub fields: &'a Fields,
    /// Of the documents.
    pub documents: &'a Searcher,
    /// Their fields.
    pub document_fields: &'a TextFields,
}

/// The best chunks for the terms within a scope, best first.
pub fn search(
    indexes: Indexes<'_>,
    terms: &QueryTerms,
    weights: &Weights,
    scope: &Scope<'_>,
    limit: usize,
) -> tantivy::Result<Vec<Hit>> {
    let Indexes { chunks, fields, documents, document_fields } = indexes;
    if limit == 0 {
        return Ok(Vec::new());
    }
    let wanted = limit.max(AT_LEAST);
    let found = top(chunks, &fields.words, terms, weights, scope, wanted)?;
    let about = top(documents, document_fields, terms, weights, scope, wanted)?;
    let numbers = numbers(documents, "document")?;
    let about: HashMap<u64, f32> =
        about.into_iter().map(|(score, at)| (number(&numbers, at), score)).collect();
    let (rows, owners) = (self::numbers(chunks, "row")?, self::numbers(chunks, "document")?);
    let hit = |(score, at)| {
        let document = about.get(&number(&owners, at)).copied().unwrap_or(0.0);
        let row = number(&rows, at) as usize;
        Hit { score: score + weights.document * document, own: score, row }
    };
    let mut hits: Vec<Hit> = found.into_iter().map(hit).collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
    hits.truncate(limit);
    Ok(hits)
}

/// The stored record of a chunk, as JSON.
pub fn record(searcher: &Searcher, fields: &Fields, at: DocAddress) -> tantivy::Result<String> {
    let doc: TantivyDocument = searcher.doc(at)?;
    Ok(doc.get_first(fields.record).and_then(|v| v.as_str()).unwrap_or_default().to_owned())
}

fn top(
    searcher: &Searcher,
    fields: &TextFields,
    terms: &QueryTerms,
    weights: &Weights,
    scope: &Scope<'_>,
    limit: usize,
) -> tantivy::Result<Vec<(f32, DocAddress)>> {
    let clauses = any_of(fields, terms, weights);
    if clauses.is_empty() {
        return Ok(Vec::new());
    }
    let mut all: Vec<(Occur, Box<dyn Query>)> = vec![(Occur::Must, Box::new(BooleanQuery::new(clauses)))];
    all.extend(within(fields, scope).into_iter().map(|filter| (Occur::Must, filter)));
    let statistics = Statistics { searcher, length: weights.length };
    let best = TopDocs::with_limit(limit).order_by_score();
    searcher.search_with_statistics_provider(&BooleanQuery::new(all), &best, &statistics)
}

/// The statistics of an index, with another length for the average text.
struct Statistics<'a> {
    searcher: &'a Searcher,
    length: f32,
}

impl Bm25StatisticsProvider for Statistics<'_> {
    fn total_num_tokens(&self, field: Field) -> tantivy::Result<u64> {
        Ok((self.searcher.total_num_tokens(field)? as f64 * f64::from(self.length)) as u64)
    }

    fn total_num_docs(&self) -> tantivy::Result<u64> {
        self.searcher.total_num_docs()
    }

    fn doc_freq(&self, term: &Term) -> tantivy::Result<u64> {
        Bm25StatisticsProvider::doc_freq(self.searcher, term)
    }
}

/// A column of numbers of each segment.
fn numbers(searcher: &Searcher, field: &str) -> tantivy::Result<Vec<tantivy::columnar::Column<u64>>> {
    searcher.segment_readers().iter().map(|segment| segment.fast_fields().u64(field)).collect()
}

fn number(columns: &[tantivy::columnar::Column<u64>], at: DocAddress) -> u64 {
    columns.get(at.segment_ord as usize).and_then(|column| column.first(at.doc_id)).unwrap_or(u64::MAX)
}

/// What a scope leaves out, as clauses that add nothing to the score: editions that had not begun by its day, or had ended, and what
/// its filter does not name.
fn within(fields: &TextFields, scope: &Scope<'_>) -> Vec<Box<dyn Query>> {
    let mut clauses: Vec<Box<dyn Query>> = Vec::new();
    if let Some(day) = scope.as_of {
        let day = day_number(day);
        let begun = Bound::Included(Term::from_field_i64(fields.begins, day));
        let open = Bound::Excluded(Term::from_field_i64(fields.ends, day));
        clauses.push(Box::new(RangeQuery::new(Bound::Unbounded, begun)));
        clauses.push(Box::new(RangeQuery::new(open, Bound::Unbounded)));
    }
    if let Some(filter) = scope.filter {
        let language = filter.language.map(|language| language.to_string());
        let named = [
            (fields.issuer, filter.issuer.as_deref()),
            (fields.jurisdiction, filter.jurisdiction.as_deref()),
            (fields.language, language.as_deref()),
        ];
        let named = named.into_iter().filter_map(|(field, value)| Some((field, value?)));
        for (field, value) in named.chain(filter.tags.iter().map(|tag| (fields.tag, tag.as_str()))) {
            let term = Term::from_field_text(field, &filter_value(value));
            clauses.push(Box::new(TermQuery::new(term, IndexRecordOption::Basic)));
        }
    }
    clauses.into_iter().map(|clause| Box::new(ConstScoreQuery::new(clause, 0.0)) as Box<dyn Query>).collect()
}

/// Whether each chunk, by its number, is within a scope; `None` when all are.
pub fn within_scope(
    searcher: &Searcher,
    fields: &Fields,
    scope: &Scope<'_>,
) -> tantivy::Result<Option<Vec<bool>>> {
    let clauses = within(&fields.words, scope);
    if clauses.is_empty() {
        return Ok(None);
    }
    let all = BooleanQuery::new(clauses.into_iter().map(|clause| (Occur::Must, clause)).collect());
    let rows = numbers(searcher, "row")?;
    let mut within = vec![false; searcher.num_docs() as usize];
    for at in searcher.search(&all, &DocSetCollector)? {
        if let Some(place) = within.get_mut(number(&rows, at) as usize) {
            *place = true;
        }
    }
    Ok(Some(within))
}

fn any_of(fields: &TextFields, terms: &QueryTerms, weights: &Weights) -> Vec<(Occur, Box<dyn Query>)> {
    let mut out = Vec::new();
    let mut add = |field: Field, text: &str, weight: f32| {
        if weight > 0.0 {
            let query = TermQuery::new(Term::from_field_text(field, text), IndexRecordOption::WithFreqs);
            let query: Box<dyn Query> = Box::new(BoostQuery::new(Box::new(query), weight));
            out.push((Occur::Should, query));
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
    for member in &terms.alternatives {
        for stem in &member.stems {
            add(fields.text_english, stem, weights.synonym);
            add(fields.head_english, stem, weights.synonym * weights.head);
        }
        for pair in &member.pairs {
            add(fields.text, pair, weights.synonym);
            add(fields.head, pair, weights.synonym * weights.exact_head);
        }
        for word in &member.words {
            add(fields.text_japanese, word, weights.synonym * weights.word);
            add(fields.head_japanese, word, weights.synonym * weights.word * weights.word_head);
        }
    }
    for word in &terms.words {
        add(fields.text_japanese, word, weights.word);
        add(fields.head_japanese, word, weights.word * weights.word_head);
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
