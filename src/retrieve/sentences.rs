//! Which sentence answers: how near each that may be quoted is to the question.
//!
//! Two things go by it. A search puts the passages that it has found in order, since a passage that answers often does so in one sentence
//! that its own vector says little of. And an adapter that quotes before it answers is told which of the sentences, list items and rows in
//! its prompt mean most like what was asked: a small model chooses worse than the vectors do. `shishin evaluate passages` says how often
//! the passage that answers is in the prompt, and how often the nearest sentence answers; `shishin compare` how often what an adapter
//! quotes does.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Meaning, Passage, RetrieveError, Snapshot};
use crate::model::embed::{EmbedError, TextKind};
use crate::quote::{self, Quote};
use crate::store::StoreError;
use crate::store::sentences::{SENTENCES, Sentences as Stored};
use crate::store::vectors::{VectorKey, embedded_text};

/// Vectors that are kept at the most; of 384 dimensions they take 30 MB.
const KEPT: usize = 20_000;

/// What may be quoted of a passage, with its vector.
type Sentences = Arc<[(String, Vec<f32>)]>;

/// Texts that are embedded at a time: questions of other requests wait for no more.
const BATCH: usize = 8;

/// The vectors of a generation's sentences: those that it was built with, and those that had to be made since. These are kept by chunk,
/// and by length, since a passage is cut at its end where a prompt has no room for all of it.
#[derive(Default)]
pub(super) struct SentenceVectors {
    stored: Option<Stored>,
    made: Mutex<HashMap<(String, usize), Sentences>>,
}

impl SentenceVectors {
    /// Opens those of the generation in `dir`, which has so many chunks of so many dimensions.
    pub(super) fn open(dir: &Path, (chunks, dimensions): (usize, usize)) -> Result<Self, StoreError> {
        let stored = Stored::open(dir)?;
        if stored.as_ref().is_some_and(|s| (s.chunks(), s.dimensions()) != (chunks, dimensions)) {
            let why = "it does not hold the sentences of each chunk".to_owned();
            return Err(StoreError::Damaged { path: dir.join(SENTENCES), why });
        }
        Ok(Self { stored, ..Self::default() })
    }

    /// The largest cosine of a question's vector and those of a chunk's sentences; `None` where there are none.
    pub(super) fn largest(&self, chunk: usize, question: &[f32]) -> Result<Option<f32>, StoreError> {
        let Some(stored) = &self.stored else { return Ok(None) };
        let sentences = stored.of_chunk(chunk)?;
        Ok(sentences.iter().map(|(_, vector)| cosine(question, vector)).reduce(f32::max))
    }

    fn of(&self, meaning: &Meaning, passage: &Passage) -> Result<Sentences, RetrieveError> {
        let kept = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (passage.chunk_id.clone(), passage.text.len());
        if let Some(sentences) = kept().get(&key) {
            return Ok(Arc::clone(sentences));
        }
        let stored = self.stored.as_ref().map_or_else(|| Ok(Vec::new()), |s| s.of_chunk(passage.row))?;
        let made: Sentences =
            meaning.sentences(&passage.title, &passage.section, &passage.text, stored)?.into();
        let mut kept = kept();
        // A passage without any takes room as well.
        if kept.values().map(|sentences| sentences.len().max(1)).sum::<usize>() + made.len() > KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&made));
        Ok(made)
    }
}

impl Meaning {
    /// What may be quoted of a passage, each with its vector: one of those at hand that was made of the same text, or a new one.
    ///
    /// # Errors
    /// When one has no vector.
    pub fn sentences(
        &self,
        title: &str,
        section: &str,
        text: &str,
        at_hand: Vec<(VectorKey, Vec<f32>)>,
    ) -> Result<Vec<(String, Vec<f32>)>, EmbedError> {
        let mut at_hand: HashMap<VectorKey, Vec<f32>> = at_hand.into_iter().collect();
        let sentences: Vec<String> = quote::possible([text]).into_iter().map(|quote| quote.text).collect();
        let texts: Vec<String> =
            sentences.iter().map(|sentence| embedded_text(title, section, sentence)).collect();
        let mut vectors: Vec<Option<Vec<f32>>> =
            texts.iter().map(|text| at_hand.remove(&VectorKey::of(text))).collect();
        let missing = texts.iter().zip(&vectors).filter(|(_, vector)| vector.is_none());
        let missing: Vec<&str> = missing.map(|(text, _)| text.as_str()).collect();
        let mut made = Vec::new();
        for texts in missing.chunks(BATCH) {
            made.extend(self.embedder.embed(TextKind::Passage, texts)?);
        }
        let places = vectors.iter_mut().filter(|vector| vector.is_none());
        places.zip(made).for_each(|(place, vector)| *place = Some(vector));
        Ok(sentences.into_iter().zip(vectors.into_iter().flatten()).collect())
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What may be quoted, each once, and how near it is to a question: the cosine of their vectors.
pub fn nearness<'s>(
    question: &[f32],
    passages: impl IntoIterator<Item = &'s [(String, Vec<f32>)]>,
) -> Vec<(Quote, f32)> {
    let mut all: Vec<(Quote, f32)> = Vec::new();
    for (sentences, n) in passages.into_iter().zip(1..) {
        for (text, vector) in sentences {
            if all.iter().all(|(quote, _)| quote.text != *text) {
                all.push((Quote { n, text: text.clone() }, cosine(question, vector)));
            }
        }
    }
    all
}

impl Snapshot {
    /// What may be quoted of passages, and how near each is to the question that was searched with this vector. Without vectors all are as
    /// near.
    ///
    /// # Errors
    /// When a sentence has no vector.
    pub fn nearness(
        &self,
        question: Option<&[f32]>,
        passages: &[Passage],
    ) -> Result<Vec<(Quote, f32)>, RetrieveError> {
        let (Some(question), Some(meaning)) = (question, self.meaning()) else {
            let possible = quote::possible(passages.iter().map(|passage| passage.text.as_str()));
            return Ok(possible.into_iter().map(|quote| (quote, 0.0)).collect());
        };
        let sentences = passages.iter().map(|passage| self.sentences().of(meaning, passage));
        let sentences = sentences.collect::<Result<Vec<_>, _>>()?;
        Ok(nearness(question, sentences.iter().map(|sentences| &sentences[..])))
    }
}
