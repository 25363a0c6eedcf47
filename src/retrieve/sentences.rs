//! Which sentence answers: how near each that may be quoted is to the question, and what it says.
//!
//! Two things go by it. A search puts the passages that it has found in order, since a passage that answers often does so in one sentence
//! that its own vector says little of. And an adapter that quotes before it answers is told which of the sentences, list items and rows in
//! its prompt mean most like what was asked and say what answers it: a small model chooses worse than that. `shishin evaluate passages` says
//! how often the passage that answers is in the prompt, and how often the sentence that is preferred so answers; `shishin compare` how often
//! what an adapter quotes does.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Meaning, Passage, RetrieveError, Snapshot};
use crate::model::embed::{EmbedError, Nearness, TextKind};
use crate::quote::{self, Bearing, Candidate, NEARNESS, Quote, Signed, Signs};
use crate::store::StoreError;
use crate::store::sentences::{SENTENCES, Sentences as Stored};
use crate::store::vectors::{VectorKey, embedded_text};

/// Vectors that are kept at the most; of 384 dimensions they take 30 MB.
const KEPT: usize = 20_000;

/// What may be quoted of a passage, with its vector.
type Sentences = Arc<[(String, Vec<f32>)]>;

/// Texts that are embedded at a time: questions of other requests wait for no more.
const BATCH: usize = 8;

/// The vectors of a generation's sentences: those that it was built with, and what was looked up or had to be made for a passage. These
/// are kept by chunk, and by length, since a passage is cut at its end where a prompt has no room for all of it.
#[derive(Default)]
pub(super) struct SentenceVectors {
    stored: Option<Stored>,
    kept: Mutex<HashMap<(String, usize), Sentences>>,
}

impl SentenceVectors {
    /// Opens those of the generation in `dir`, which has so many chunks of so many dimensions.
    pub(super) fn open(dir: &Path, of: (usize, usize)) -> Result<Self, StoreError> {
        let stored = Stored::open(dir)?;
        match stored.as_ref().map(|stored| (stored.chunks(), stored.dimensions())) {
            Some(held) if held != of => {
                let why = format!("it holds the sentences of {} chunks in {} dimensions", held.0, held.1);
                let why = format!("{why}, and the index {} in {}", of.0, of.1);
                return Err(StoreError::Damaged { path: dir.join(SENTENCES), why });
            }
            Some(_) => {}
            None => tracing::warn!(
                generation = %dir.display(),
                "the generation was built without sentences, so passages are ordered without them and answers wait for them; run `shishin index build`"
            ),
        }
        Ok(Self { stored, ..Self::default() })
    }

    /// Whether the generation was built with any.
    pub(super) fn stored(&self) -> bool {
        self.stored.is_some()
    }

    /// The cosine of a question and the sentence of a chunk that is nearest to it; `None` where it has none.
    pub(super) fn nearest(&self, chunk: usize, question: &[f32]) -> Option<f32> {
        let sentences = self.stored.as_ref()?.of_chunk(chunk);
        sentences.map(|(_, vector)| cosine(question, &vector)).reduce(f32::max)
    }

    fn of(&self, meaning: &Meaning, passage: &Passage) -> Result<Sentences, EmbedError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (passage.chunk_id.clone(), passage.text.len());
        if let Some(sentences) = kept().get(&key) {
            return Ok(Arc::clone(sentences));
        }
        let stored = self.stored.iter().flat_map(|stored| stored.of_chunk(passage.row)).collect();
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
        mut at_hand: HashMap<VectorKey, Vec<f32>>,
    ) -> Result<Vec<(String, Vec<f32>)>, EmbedError> {
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

/// A passage's title and headings, and what may be quoted of it, each with its vector.
pub type Quotable<'s> = (&'s str, &'s [(String, Vec<f32>)]);

/// What may be quoted, each once, with the number of the first passage that says it and the cosine of its vector and a question's; 0 for all
/// where the question has none.
pub fn candidates<'s>(
    question: Option<&[f32]>,
    passages: impl IntoIterator<Item = Quotable<'s>>,
) -> Vec<(usize, f32, Candidate<'s>)> {
    let mut all: Vec<(usize, f32, Candidate<'s>)> = Vec::new();
    for ((headings, sentences), n) in passages.into_iter().zip(1..) {
        for (at, (text, own)) in sentences.iter().enumerate() {
            if all.iter().all(|(.., other)| other.text != *text) {
                let cosine = question.map_or(0.0, |question| cosine(question, own));
                all.push((n, cosine, Candidate { text, headings, begins: at == 0, first: n == 1 }));
            }
        }
    }
    all
}

/// What may be quoted, each once, with what tells whether it answers a question: what the embedder's reader makes of both, or the cosine of
/// their vectors, if the question has one; and what it says. And the reader's odds that one of them answers.
///
/// # Errors
/// When a text cannot be read.
pub fn signs<'s>(
    meaning: Option<&Meaning>,
    (question, vector): (&str, Option<&[f32]>),
    passages: impl IntoIterator<Item = Quotable<'s>>,
) -> Result<Signed, EmbedError> {
    let all = candidates(vector, passages);
    let said: Vec<Candidate<'_>> = all.iter().map(|(.., candidate)| *candidate).collect();
    let bearings = Bearing::of(question).on(&said);
    let read = match meaning.filter(|meaning| vector.is_some() && meaning.embedder.reader().is_some()) {
        Some(meaning) => {
            let texts: Vec<String> = said.iter().map(Candidate::embedded).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            meaning.embedder.nearness(question, &texts)?
        }
        None => None,
    };
    let odds = read.as_ref().map(|read| odds(read, &bearings));
    let nearness = match read {
        Some(read) => read.texts,
        None => all.iter().map(|(_, cosine, _)| *cosine).collect(),
    };
    let signed = all.into_iter().zip(nearness.into_iter().zip(bearings));
    let signed = signed.map(|((n, _, candidate), (nearness, bearing))| {
        (Quote { n, text: candidate.text.to_owned() }, Signs { nearness, bearing })
    });
    Ok(Signed { units: signed.collect(), odds })
}

/// The logarithm of the odds that some sentence answers against none, as the reader was trained to weigh them.
fn odds(read: &Nearness, bearings: &[f32]) -> f32 {
    let scores = read.texts.iter().zip(bearings).map(|(near, bearing)| NEARNESS * near + bearing - read.none);
    let scores: Vec<f32> = scores.collect();
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if scores.is_empty() {
        top
    } else {
        top + scores.iter().map(|score| (score - top).exp()).sum::<f32>().ln()
    }
}

impl Snapshot {
    /// What may be quoted of passages, and what tells whether each answers a question, which was searched with this vector. Without
    /// vectors all are as near.
    ///
    /// # Errors
    /// When a sentence has no vector.
    pub fn signs(
        &self,
        question: &str,
        vector: Option<&[f32]>,
        passages: &[Passage],
    ) -> Result<Signed, RetrieveError> {
        let of = |passage: &Passage| -> Result<Sentences, RetrieveError> {
            match vector.and(self.meaning()) {
                Some(meaning) => Ok(self.sentences().of(meaning, passage)?),
                None => {
                    let possible = quote::possible([passage.text.as_str()]);
                    Ok(possible.into_iter().map(|quote| (quote.text, Vec::new())).collect())
                }
            }
        };
        let sentences = passages.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let above: Vec<String> = passages.iter().map(|p| embedded_text(&p.title, &p.section, "")).collect();
        let quotable = above.iter().zip(&sentences).map(|(above, sentences)| (&above[..], &sentences[..]));
        Ok(signs(self.meaning(), (question, vector), quotable)?)
    }
}
