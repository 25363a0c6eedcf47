//! Indexes a collection as guidelines are indexed, asks its questions, and judges the rankings.
//!
//! A document is as good as its best chunk. The documents have neither front matter nor editions, so each becomes the one
//! edition, always in effect, of a guideline of its own.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;

use super::beir::Collection;
use super::metrics::{Figures, Mean};
use crate::ingest::chunk::{Sizes, chunks};
use crate::ingest::segment::IndexesWriter;
use crate::language::Language;
use crate::retrieve::{GuidelineIndex, RetrieveError, Snapshot};
use crate::store::StoreError;
use crate::store::disk::Filesystem;
use crate::store::publish::BuildLock;
use crate::store::schema::{Days, Record};

/// Documents of a ranking that are looked at: as deep as any figure goes.
const DEPTH: usize = 100;
/// The day that documents have been in effect from, and are asked for.
const DAY: Date = Date::constant(2000, 1, 1);

/// Why a collection cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// It cannot be indexed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be searched.
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
}

/// A collection's index.
pub struct Indexed {
    /// Open for searching.
    pub snapshot: Arc<Snapshot>,
    /// The document of each chunk.
    pub documents: Vec<usize>,
    /// What building it took, in seconds.
    pub seconds: f64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Builds an index of the documents in `folder`.
///
/// # Errors
/// When it cannot be written or read back.
pub fn index(collection: &Collection, folder: &Path, sizes: Sizes<'_>) -> Result<Indexed, EvaluateError> {
    let begun = Instant::now();
    let disk = Filesystem;
    let lock = BuildLock::take(&disk, folder)?;
    let draft = lock.start(&Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ").to_string())?;
    let mut writer = IndexesWriter::create(&disk, &draft)?;
    let mut documents = Vec::new();
    for (number, document) in collection.documents.iter().enumerate() {
        writer.document(&document.title, &document.text, Days { begins: DAY, ends: None })?;
        for (n, chunk) in chunks(&document.text, 0, &document.title, sizes).into_iter().enumerate() {
            let text = document.text[chunk.span.clone()].to_owned();
            let head = format!("{}\n{}", document.title, chunk.section);
            writer
                .chunk(&record(&document.id, &document.title, n, chunk.section, chunk.span, text), &head)?;
            documents.push(number);
        }
    }
    writer.finish()?;
    let manifest = draft.publish(|manifest| manifest.source.clone_from(&collection.name))?;
    let index = GuidelineIndex::open(folder)?;
    let missing = || StoreError::Missing { id: manifest.id.clone(), path: folder.to_owned() };
    let snapshot = index.snapshot().ok_or_else(missing)?;
    let bytes = manifest.files.values().map(|file| file.bytes).sum();
    Ok(Indexed { snapshot, documents, seconds: begun.elapsed().as_secs_f64(), bytes })
}

fn record(
    id: &str,
    title: &str,
    n: usize,
    section: String,
    span: std::ops::Range<usize>,
    text: String,
) -> Record {
    Record {
        chunk_id: format!("{id}#{}", n + 1),
        guideline: id.to_owned(),
        title: title.to_owned(),
        edition: "1".to_owned(),
        section,
        issuer: String::new(),
        jurisdiction: String::new(),
        language: Language::detect(&text),
        effective_from: DAY,
        effective_to: None,
        ends: None,
        source: String::new(),
        licence: String::new(),
        file: id.to_owned(),
        span,
        text,
    }
}

/// What one question got.
#[derive(Debug, Clone, Serialize)]
pub struct Answered {
    /// The question.
    pub id: String,
    /// Its figures.
    pub figures: Figures,
    /// The first documents found.
    pub found: Vec<String>,
    /// What searching took, in milliseconds.
    pub milliseconds: f64,
}

/// A chunk's number and its score.
pub type Scored = (usize, f32);

/// Asks every question; `search` gives chunks, best first, at least as many as it is asked for where there are as many.
///
/// # Errors
/// When a search fails.
pub fn ask(
    collection: &Collection,
    indexed: &Indexed,
    mut search: impl FnMut(&str, usize) -> Result<Vec<Scored>, RetrieveError>,
) -> Result<Vec<Answered>, EvaluateError> {
    let mut answered = Vec::with_capacity(collection.questions.len());
    for (asked, judged) in &collection.questions {
        let begun = Instant::now();
        let chunks = search(&asked.text, DEPTH)?;
        let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
        let ranked = best_documents(&chunks, &indexed.documents);
        let names: Vec<&str> = ranked.iter().map(|at| collection.documents[*at].id.as_str()).collect();
        let Some(figures) = Figures::of(&names, judged) else { continue };
        let found = names.iter().take(10).map(|name| (*name).to_owned()).collect();
        answered.push(Answered { id: asked.id.clone(), figures, found, milliseconds });
    }
    Ok(answered)
}

/// Documents in the order of their best chunks.
fn best_documents(chunks: &[Scored], documents: &[usize]) -> Vec<usize> {
    let mut seen = HashSet::new();
    chunks.iter().map(|(row, _)| documents[*row]).filter(|document| seen.insert(*document)).collect()
}

/// The figures of all questions together.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// nDCG@10.
    pub ndcg_10: Mean,
    /// MRR@10.
    pub mrr_10: Mean,
    /// R@100.
    pub recall_100: Mean,
    /// Milliseconds of a search: the median.
    pub median_ms: f64,
    /// Milliseconds of a search: 99 % are faster.
    pub p99_ms: f64,
}

impl Summary {
    /// Sums up.
    #[must_use]
    pub fn of(answered: &[Answered]) -> Self {
        let mean = |figure: fn(&Figures) -> f64| {
            Mean::of(&answered.iter().map(|one| figure(&one.figures)).collect::<Vec<_>>())
        };
        let mut times: Vec<f64> = answered.iter().map(|one| one.milliseconds).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            times.get(((times.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
        };
        Self {
            ndcg_10: mean(|f| f.ndcg_10),
            mrr_10: mean(|f| f.mrr_10),
            recall_100: mean(|f| f.recall_100),
            median_ms: at(0.5),
            p99_ms: at(0.99),
        }
    }
}
