//! Which sentence answers: how near each that may be quoted is to the question.
//!
//! Beside a search: it has found passages, and an adapter that quotes before it answers is told here which of their sentences, list items
//! and rows mean most like what was asked. A small model chooses worse than the vectors do: `shishin evaluate passages` says how often the
//! nearest one answers, `shishin compare` how often what an adapter quotes does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Meaning, Passage, RetrieveError, Snapshot};
use crate::model::embed::{EmbedError, TextKind};
use crate::quote::{self, Quote};
use crate::store::vectors::embedded_text;

/// Vectors that are kept at the most; of 384 dimensions they take 30 MB.
const KEPT: usize = 20_000;

/// What may be quoted of a passage, with its vector.
type Sentences = Arc<[(String, Vec<f32>)]>;

/// Texts that are embedded at a time: questions of other requests wait for no more.
const BATCH: usize = 8;

/// The sentences of passages that were asked for before: by chunk, and by length, since a passage is cut at its end where a prompt has no
/// room for all of it.
#[derive(Default)]
pub(super) struct SentenceCache(Mutex<HashMap<(String, usize), Sentences>>);

impl SentenceCache {
    fn of(&self, meaning: &Meaning, passage: &Passage) -> Result<Sentences, EmbedError> {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (passage.chunk_id.clone(), passage.text.len());
        if let Some(sentences) = kept().get(&key) {
            return Ok(Arc::clone(sentences));
        }
        let made: Sentences = meaning.sentences(&passage.title, &passage.section, &passage.text)?.into();
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
    /// What may be quoted of a passage, each with its vector.
    ///
    /// # Errors
    /// When one has no vector.
    pub fn sentences(
        &self,
        title: &str,
        section: &str,
        text: &str,
    ) -> Result<Vec<(String, Vec<f32>)>, EmbedError> {
        let sentences: Vec<String> = quote::possible([text]).into_iter().map(|quote| quote.text).collect();
        let texts: Vec<String> =
            sentences.iter().map(|sentence| embedded_text(title, section, sentence)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut vectors = Vec::new();
        for texts in texts.chunks(BATCH) {
            vectors.extend(self.embedder.embed(TextKind::Passage, texts)?);
        }
        Ok(sentences.into_iter().zip(vectors).collect())
    }
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
                let cosine = question.iter().zip(vector).map(|(a, b)| a * b).sum();
                all.push((Quote { n, text: text.clone() }, cosine));
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
