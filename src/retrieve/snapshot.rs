//! A snapshot: one generation of the index, open for searching, by words, by vectors, or by both.

use std::path::Path;
use std::sync::Arc;

use jiff::civil::Date;
use tantivy::{DocAddress, ReloadPolicy, Searcher};

use super::dense::{Cosines, DenseIndex, nearest};
use super::fuse::{Scored, normalised_average};
use super::lexical::{self, Indexes};
use super::passage::{NotInEffect, Passage, Retrieval};
use super::sentences::SentenceVectors;
use super::terms::QueryTerms;
use super::{MAX_PASSAGES, Meaning, RetrieveError, Scope, SearchQuery, SearchTools, coverage, order};
use crate::language::Language;
use crate::store::schema::{DocumentFields, Fields, Record, day_number};
use crate::store::vectors::Vectors;
use crate::store::{Generation, Manifest, StoreError, search_error};

/// Chunks of each ranking that are fused.
const FUSED: usize = 1_000;
/// What the ranking by vectors counts in the average, against that by words.
const VECTOR_WEIGHT: f32 = 0.4;
/// Factor on the score of passages in the language of the question: enough to decide between two that say the same,
/// too little to hide the only one that answers.
const SAME_LANGUAGE: f32 = 1.3;
/// The same where scores are between 0 and 1 whatever the words.
const SAME_LANGUAGE_FUSED: f32 = 1.1;

/// Chunks that are looked at for editions that are not in effect.
const OTHERS: usize = 20;

/// What chunks are ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ranking {
    /// Words alone.
    Bm25,
    /// Vectors alone.
    Dense,
    /// Both.
    Fused,
}

/// A ranking's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown ranking `{0}`; the rankings are bm25, dense and fused")]
pub struct UnknownRanking(String);

impl Ranking {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bm25, Self::Dense, Self::Fused];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bm25 => "bm25",
            Self::Dense => "dense",
            Self::Fused => "fused",
        }
    }
}

impl std::str::FromStr for Ranking {
    type Err = UnknownRanking;

    fn from_str(name: &str) -> Result<Self, UnknownRanking> {
        Self::ALL.into_iter().find(|r| r.as_str() == name).ok_or_else(|| UnknownRanking(name.to_owned()))
    }
}

/// A chunk that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The chunk's number in the generation.
    pub row: usize,
    /// How well it matches; comparable within one search only.
    pub score: f32,
    /// The cosine of its vector and the question's, where vectors were looked at.
    pub similarity: Option<f32>,
}

/// Where a chunk is, and when it is in effect.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: DocAddress,
    document: usize,
    begins: i64,
    ends: i64,
}

impl Place {
    fn in_effect(&self, day: Date) -> bool {
        let day = day_number(day);
        self.begins <= day && self.ends > day
    }
}

/// A question, cut into terms and compared with all vectors.
struct Asked {
    terms: QueryTerms,
    vector: Option<Vec<f32>>,
    cosines: Option<Cosines>,
}

/// One generation, open for searching. While it lives, its files stay.
pub struct Snapshot {
    generation: Generation,
    searcher: Searcher,
    fields: Fields,
    documents: Searcher,
    document_fields: DocumentFields,
    /// By the chunk's number.
    places: Vec<Place>,
    dense: Option<(DenseIndex, Meaning)>,
    sentences: SentenceVectors,
    tools: SearchTools,
}

impl Snapshot {
    pub(super) fn open(generation: Generation, dir: &Path, tools: &SearchTools) -> Result<Self, StoreError> {
        let searcher = |index: &tantivy::Index| {
            let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
            let reader: tantivy::IndexReader = reader.map_err(search_error("open", dir))?;
            Ok::<_, StoreError>(reader.searcher())
        };
        let chunks = searcher(&generation.index)?;
        let places = places(&chunks).map_err(search_error("read", dir))?;
        let (mut by_meaning, mut sentences) = (None, SentenceVectors::default());
        if let Some(meaning) = &tools.meaning {
            let dense = dense(&generation.manifest, dir, &places, meaning)?;
            sentences = SentenceVectors::open(dir, (places.len(), dense.dimensions()))?;
            by_meaning = Some((dense, meaning.clone()));
        }
        Ok(Self {
            searcher: chunks,
            fields: Fields::new(),
            documents: searcher(&generation.documents)?,
            document_fields: DocumentFields::new(),
            places,
            dense: by_meaning,
            sentences,
            tools: tools.clone(),
            generation,
        })
    }

    /// Chunks in it.
    pub(super) fn rows(&self) -> usize {
        self.places.len()
    }

    /// The number of a chunk's document.
    pub(super) fn document_of(&self, row: usize) -> Option<usize> {
        self.places.get(row).map(|place| place.document).filter(|document| *document != usize::MAX)
    }

    pub(super) fn meaning(&self) -> Option<&Meaning> {
        self.dense.as_ref().map(|(_, meaning)| meaning)
    }

    /// SHA-256, in hexadecimal, of the reader that tells which sentence answers, if there is one.
    #[must_use]
    pub fn reader(&self) -> Option<&str> {
        self.meaning()?.embedder.reader()
    }

    pub(super) fn sentences(&self) -> &SentenceVectors {
        &self.sentences
    }

    pub(super) fn documents(&self) -> &Searcher {
        &self.documents
    }

    pub(super) fn document_fields(&self) -> &DocumentFields {
        &self.document_fields
    }

    /// The best by words alone, with the parts of their scores.
    pub(super) fn lexical_hits(
        &self,
        terms: &QueryTerms,
        query: &SearchQuery<'_>,
    ) -> Result<Vec<lexical::Hit>, RetrieveError> {
        let scope = Scope { as_of: Some(query.as_of), filter: query.filter };
        self.words(terms, &scope, FUSED)
    }

    fn words(
        &self,
        terms: &QueryTerms,
        scope: &Scope<'_>,
        limit: usize,
    ) -> Result<Vec<lexical::Hit>, RetrieveError> {
        let indexes = Indexes {
            chunks: &self.searcher,
            fields: &self.fields,
            documents: &self.documents,
            document_fields: &self.document_fields.words,
        };
        lexical::search(indexes, terms, &lexical::WEIGHTS, scope, limit).map_err(|e| self.failed(e))
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

    /// What a search goes by unless it is told: both where there are vectors.
    #[must_use]
    pub fn ranking(&self) -> Ranking {
        if self.dense.is_some() { Ranking::Fused } else { Ranking::Bm25 }
    }

    /// Finds the passages for a question among the editions in effect on its day, best first.
    ///
    /// # Errors
    /// When the index cannot be read, or the question cannot be embedded.
    pub fn search(&self, query: &SearchQuery<'_>) -> Result<Retrieval, RetrieveError> {
        let limit = query.limit.min(MAX_PASSAGES);
        let ranking = query.ranking.unwrap_or_else(|| self.ranking());
        let asked = self.asked(query.text, ranking)?;
        let scope = Scope { as_of: Some(query.as_of), filter: query.filter };
        let language = query.language.unwrap_or_else(|| Language::detect(query.text));
        let factor = if ranking == Ranking::Bm25 { SAME_LANGUAGE } else { SAME_LANGUAGE_FUSED };
        // Those of other days are ranked along: were one left out that matches best, its reader should know.
        let others = self.places.iter().any(|place| !place.in_effect(query.as_of));
        // More than asked for, so that the language preference has something to choose from.
        let wanted = (limit * 2 + 10).max(order::WEIGHED);
        let found = self.rank_asked(&asked, ranking, &scope, wanted)?;
        let mut hits = found.into_iter().map(|hit| self.passage(hit)).collect::<Result<Vec<_>, _>>()?;
        for passage in &mut hits {
            passage.coverage = coverage::share(&asked.terms, &passage.title, &passage.section, &passage.text);
            if passage.language == language {
                passage.score *= factor;
            }
        }
        order::sort(&mut hits);
        let by_support = ranking == Ranking::Fused
            && self.tools.reranker.is_none()
            && hits.iter().all(|hit| hit.similarity.is_some());
        let mut best = None;
        if let Some(reranker) = &self.tools.reranker {
            let scores = reranker.scores(query.text, &hits)?;
            for (passage, score) in hits.iter_mut().zip(scores) {
                passage.score = score;
            }
            order::sort(&mut hits);
        } else if by_support {
            let nearest = |row: usize| self.sentences.nearest(row, asked.vector.as_deref()?);
            let stored = self.sentences.stored();
            best = order::by_support(&mut hits, language, if stored { Some(&nearest) } else { None });
        }
        order::show_both(&mut hits, limit, by_support);
        hits.truncate(limit);
        for (i, passage) in hits.iter_mut().enumerate() {
            passage.n = i + 1;
        }
        let best = best.filter(|_| limit > 0).or_else(|| order::best_supported(&hits));
        let not_in_effect = match others && limit > 0 {
            true => self.not_in_effect(&asked, ranking, query, (language, factor))?,
            false => Vec::new(),
        };
        let generation = self.generation().to_owned();
        Ok(Retrieval { passages: hits, best, not_in_effect, vector: asked.vector, generation })
    }

    /// The editions that match better than all that are in effect on the day. Both are taken from one ranking: scores of two are not
    /// comparable.
    fn not_in_effect(
        &self,
        asked: &Asked,
        ranking: Ranking,
        query: &SearchQuery<'_>,
        (language, factor): (Language, f32),
    ) -> Result<Vec<NotInEffect>, RetrieveError> {
        let scope = Scope { as_of: None, filter: query.filter };
        let mut best = f32::NEG_INFINITY;
        let mut others = Vec::new();
        for hit in self.rank_asked(asked, ranking, &scope, OTHERS)? {
            let record = self.record(hit.row)?;
            let score = if record.language == language { hit.score * factor } else { hit.score };
            if self.places.get(hit.row).is_none_or(|place| place.in_effect(query.as_of)) {
                best = best.max(score);
            } else {
                others.push((score, hit.similarity, record));
            }
        }
        others.retain(|(score, ..)| *score > best);
        others.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut found: Vec<NotInEffect> = Vec::new();
        for (_, similarity, record) in others {
            if !found.iter().any(|f| f.guideline == record.guideline && f.edition == record.edition) {
                let covered = coverage::share(&asked.terms, &record.title, &record.section, &record.text);
                found.push(NotInEffect::new(record, query.as_of, covered, similarity));
            }
        }
        Ok(found)
    }

    /// The best chunks for a question within a scope, best first. Without vectors, rankings by them find nothing.
    ///
    /// # Errors
    /// When the index cannot be read, or the question cannot be embedded.
    pub fn rank(
        &self,
        text: &str,
        ranking: Ranking,
        scope: &Scope<'_>,
        limit: usize,
    ) -> Result<Vec<Ranked>, RetrieveError> {
        self.rank_asked(&self.asked(text, ranking)?, ranking, scope, limit)
    }

    /// What a gate judges of a chunk: its coverage of a question and its similarity.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn judge(&self, text: &str, ranked: &Ranked) -> Result<(f32, Option<f32>), RetrieveError> {
        let record = self.record(ranked.row)?;
        let coverage = coverage::share(&self.terms(text)?, &record.title, &record.section, &record.text);
        Ok((coverage, ranked.similarity))
    }

    fn asked(&self, text: &str, ranking: Ranking) -> Result<Asked, RetrieveError> {
        let dense = self.dense.as_ref().filter(|_| ranking != Ranking::Bm25);
        let vector = dense.map(|(_, meaning)| meaning.of_question(text)).transpose()?;
        let cosines = dense.zip(vector.as_ref()).map(|((index, _), vector)| index.cosines(vector));
        Ok(Asked { terms: self.terms(text)?, vector, cosines })
    }

    fn rank_asked(
        &self,
        asked: &Asked,
        ranking: Ranking,
        scope: &Scope<'_>,
        limit: usize,
    ) -> Result<Vec<Ranked>, RetrieveError> {
        let depth = limit.max(FUSED);
        let words = |limit: usize| -> Result<Vec<Scored>, RetrieveError> {
            let hits = self.words(&asked.terms, scope, limit)?;
            Ok(hits.into_iter().map(|hit| (hit.row, hit.score)).collect())
        };
        let found = match (ranking, &asked.cosines) {
            (Ranking::Bm25, _) => words(limit)?,
            (_, None) => Vec::new(),
            (_, Some(cosines)) => {
                let near = self.near(cosines, scope, depth)?;
                match ranking {
                    Ranking::Dense => near,
                    _ => {
                        let rankings =
                            [(&words(depth)?[..], 1.0 - VECTOR_WEIGHT), (&near[..], VECTOR_WEIGHT)];
                        normalised_average(&rankings)
                    }
                }
            }
        };
        let similarity = |row: usize| asked.cosines.as_ref().and_then(|c| c.chunks.get(row).copied());
        let ranked = found.into_iter().take(limit);
        Ok(ranked.map(|(row, score)| Ranked { row, score, similarity: similarity(row) }).collect())
    }

    /// The chunks within a scope whose vectors are nearest to the question's.
    fn near(&self, cosines: &Cosines, scope: &Scope<'_>, limit: usize) -> Result<Vec<Scored>, RetrieveError> {
        // Days are at hand; the rest is the index's to say.
        let filtered = match scope.filter {
            Some(filter) if !filter.is_empty() => {
                let scope = Scope { as_of: None, filter: Some(filter) };
                lexical::within_scope(&self.searcher, &self.fields, &scope).map_err(|e| self.failed(e))?
            }
            _ => None,
        };
        let keep = |row: usize| {
            let on_day = scope.as_of.is_none_or(|day| self.places.get(row).is_some_and(|p| p.in_effect(day)));
            on_day && filtered.as_ref().is_none_or(|within| within.get(row) == Some(&true))
        };
        let near = nearest(&cosines.ranked_by, limit, keep);
        Ok(near.into_iter().map(|near| (near.row, near.score)).collect())
    }

    /// The share of a question's content, from 0 to 1, that occurs in the index at all; 1 for a question
    /// without content of its own ("And then?").
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn familiarity(&self, text: &str) -> Result<f32, RetrieveError> {
        Ok(self.terms(text)?.familiarity())
    }

    pub(super) fn terms(&self, text: &str) -> Result<QueryTerms, RetrieveError> {
        QueryTerms::of(text, &self.searcher, &self.fields, &self.tools.synonyms).map_err(|e| self.failed(e))
    }

    fn passage(&self, hit: Ranked) -> Result<Passage, RetrieveError> {
        Ok(Passage::new(self.record(hit.row)?, hit))
    }

    /// What is stored of a chunk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self, row: usize) -> Result<Record, RetrieveError> {
        let place = self.places.get(row).map_or(DocAddress::new(0, u32::MAX), |place| place.at);
        let json = lexical::record(&self.searcher, &self.fields, place).map_err(|e| self.failed(e))?;
        serde_json::from_str(&json)
            .map_err(|source| RetrieveError::Record { generation: self.generation().to_owned(), source })
    }

    fn failed(&self, source: tantivy::TantivyError) -> RetrieveError {
        RetrieveError::Search { generation: self.generation().to_owned(), source: Box::new(source) }
    }
}

/// Reads where each chunk is.
fn places(searcher: &Searcher) -> tantivy::Result<Vec<Place>> {
    let nowhere =
        Place { at: DocAddress::new(0, u32::MAX), document: usize::MAX, begins: i64::MAX, ends: i64::MIN };
    let mut places = vec![nowhere; searcher.num_docs() as usize];
    for (ord, segment) in searcher.segment_readers().iter().enumerate() {
        let columns = segment.fast_fields();
        let (rows, begins, ends) = (columns.u64("row")?, columns.i64("begins")?, columns.i64("ends")?);
        let owners = columns.u64("document")?;
        for doc in 0..segment.max_doc() {
            let row = rows.first(doc).and_then(|row| places.get_mut(row as usize));
            if let (Some(place), Some(begins), Some(ends)) = (row, begins.first(doc), ends.first(doc)) {
                let document = owners.first(doc).map_or(usize::MAX, |owner| owner as usize);
                *place = Place { at: DocAddress::new(ord as u32, doc), document, begins, ends };
            }
        }
    }
    Ok(places)
}

/// Packs the vectors of a generation, which must be the embedder's own.
fn dense(
    manifest: &Manifest,
    dir: &Path,
    places: &[Place],
    meaning: &Meaning,
) -> Result<DenseIndex, StoreError> {
    let other = |found: String| StoreError::Version {
        id: manifest.id.clone(),
        what: "the embedder",
        found,
        wanted: meaning.embedder.name().to_owned(),
    };
    let Some(made_by) = &manifest.embedder else { return Err(other("none".to_owned())) };
    if made_by.sha256 != meaning.embedder.fingerprint() {
        return Err(other(format!("{} ({:.8})", made_by.name, made_by.sha256)));
    }
    let path = dir.join(crate::store::vectors::VECTORS);
    let damaged = |why: &str| StoreError::Damaged { path: path.clone(), why: why.to_owned() };
    let vectors = Vectors::read(dir)?.ok_or_else(|| damaged("it is missing"))?;
    if vectors.rows() != places.len() || vectors.dimensions() != meaning.embedder.dimensions() {
        return Err(damaged("it does not hold a vector for each chunk"));
    }
    let owners = places.iter().map(|place| place.document).collect();
    let packed = DenseIndex::pack(&vectors, owners, Arc::clone(&meaning.cpu));
    packed.ok_or_else(|| damaged("it holds what is no number"))
}
