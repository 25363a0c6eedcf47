//! Why a question finds what it finds: for operators who tune guidelines, settings and questions.

use std::collections::HashMap;

use serde::Serialize;

use super::passage::NotInEffect;
use super::snapshot::{Ranking, Snapshot};
use super::{RetrieveError, SearchQuery, coverage};

/// Why a question finds what it finds.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// What was gone by.
    pub ranking: Ranking,
    /// What the question asks for.
    pub terms: Vec<ExplainedTerm>,
    /// What was found, best first.
    pub hits: Vec<ExplainedHit>,
    /// Editions that match better and are not in effect.
    pub not_in_effect: Vec<NotInEffect>,
    /// The generation that was searched.
    pub generation: String,
}

/// A term of the question.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedTerm {
    /// As it is looked for.
    pub text: String,
    /// Its stem, for an English word.
    pub stem: Option<String>,
    /// How rare it is, as in BM25.
    pub rarity: f32,
    /// What it counts in coverage.
    pub weight: f32,
    /// Whether any passage holds it.
    pub known: bool,
}

/// A passage that was found.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedHit {
    /// The passage.
    pub chunk_id: String,
    /// Its headings.
    pub section: String,
    /// Its score, by which it was ranked.
    pub score: f32,
    /// BM25 of its own words; 0 where it is not among the best by words.
    pub words: f32,
    /// BM25 of the words of its document, weighed.
    pub document_words: f32,
    /// The cosine of its vector and the question's.
    pub similarity: Option<f32>,
    /// The largest cosine of one of its sentences.
    pub sentence_similarity: Option<f32>,
    /// The share of the question that it contains.
    pub coverage: f32,
    /// Terms with weight that it lacks.
    pub missing: Vec<String>,
}

impl Snapshot {
    /// Explains a search.
    ///
    /// # Errors
    /// As [`Snapshot::search`].
    pub fn explain(&self, query: &SearchQuery<'_>) -> Result<Explanation, RetrieveError> {
        let found = self.search(query)?;
        let terms = self.terms(query.text)?;
        let words: HashMap<String, (f32, f32)> = self
            .lexical_hits(&terms, query)?
            .into_iter()
            .map(|hit| Ok((self.record(hit.row)?.chunk_id, (hit.own, hit.score - hit.own))))
            .collect::<Result<_, RetrieveError>>()?;
        let hits = found.passages.into_iter().map(|passage| {
            let (own, document) = words.get(&passage.chunk_id).copied().unwrap_or_default();
            ExplainedHit {
                missing: coverage::missing(&terms, &passage.title, &passage.section, &passage.text),
                chunk_id: passage.chunk_id,
                section: passage.section,
                score: passage.score,
                words: own,
                document_words: document,
                similarity: passage.similarity,
                sentence_similarity: passage.sentence_similarity,
                coverage: passage.coverage,
            }
        });
        Ok(Explanation {
            ranking: query.ranking.unwrap_or_else(|| self.ranking()),
            hits: hits.collect(),
            terms: terms
                .asked
                .into_iter()
                .map(|asked| ExplainedTerm {
                    text: asked.term.text,
                    stem: asked.stem,
                    rarity: asked.idf,
                    weight: asked.weight,
                    known: asked.known,
                })
                .collect(),
            not_in_effect: found.not_in_effect,
            generation: found.generation,
        })
    }
}
