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

use super::beir::{Asked, Collection, Document};
use super::metrics::{Figures, Judged, Mean};
use crate::ingest::IngestError;
use crate::ingest::chunk::{Sizes, chunks};
use crate::ingest::embedding::Embedding;
use crate::ingest::segment::IndexesWriter;
use crate::language::Language;
use crate::retrieve::{Gate, GuidelineIndex, Ranked, Ranking, RetrieveError, Scope, SearchTools, Snapshot};
use crate::store::StoreError;
use crate::store::disk::Filesystem;
use crate::store::manifest::MadeBy;
use crate::store::publish::BuildLock;
use crate::store::schema::{Facts, Record};

/// Chunks of a ranking that are looked at: enough for 100 documents of several chunks each.
const CHUNKS: usize = 500;
/// The day that documents have been in effect from, and are asked for.
const DAY: Date = Date::constant(2000, 1, 1);

/// Why a collection cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// It cannot be indexed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its chunks cannot be embedded.
    #[error(transparent)]
    Ingest(#[from] IngestError),
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

/// Builds an index of the documents in `folder`, with vectors where an embedder is given. What an earlier build there embedded is
/// taken along.
///
/// # Errors
/// When it cannot be written or read back.
pub fn index(
    collection: &Collection,
    folder: &Path,
    sizes: Sizes<'_>,
    tools: &SearchTools,
) -> Result<Indexed, EvaluateError> {
    let begun = Instant::now();
    let meaning = tools.meaning.as_ref();
    let disk = Filesystem;
    let lock = BuildLock::take(&disk, folder)?;
    let draft = lock.start(&Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ").to_string())?;
    let mut writer = IndexesWriter::create(&disk, &draft)?;
    // Whole rankings are measured, which sentences have no part in.
    let mut embedding = meaning.map(|meaning| Embedding::of_chunks(&*meaning.embedder, folder));
    let mut documents = Vec::new();
    for (number, document) in collection.documents.iter().enumerate() {
        let Document { id, title, text } = document;
        let facts = Facts {
            begins: DAY,
            ends: None,
            issuer: "",
            jurisdiction: "",
            language: Language::detect(text),
            tags: &[],
        };
        writer.document([title, text, text], &facts)?;
        for (n, chunk) in chunks(text, 0, title, sizes).into_iter().enumerate() {
            let own = text[chunk.span.clone()].to_owned();
            if let Some(embedding) = &mut embedding {
                embedding.push(title, &chunk.section, &own)?;
            }
            let head = format!("{title}\n{}", chunk.section);
            writer.chunk(&record(id, title, n, chunk.section, chunk.span, own), &head)?;
            documents.push(number);
        }
    }
    writer.finish()?;
    if let Some(embedding) = embedding {
        embedding.finish(&disk, &draft.dir)?;
    }
    let manifest = draft.publish(0, |manifest| {
        manifest.source.clone_from(&collection.name);
        manifest.embedder = meaning.map(|meaning| MadeBy {
            name: meaning.embedder.name().to_owned(),
            sha256: meaning.embedder.fingerprint().to_owned(),
        });
    })?;
    let index = GuidelineIndex::open_with(folder, tools.clone())?;
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
        tags: Vec::new(),
        effective_from: DAY,
        effective_to: None,
        ends: None,
        replaced_by: None,
        source: String::new(),
        licence: String::new(),
        file: id.to_owned(),
        page: None,
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
    /// What a gate would make of it, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated: Option<GatedPair>,
}

/// What a gate makes of a question: with all documents, and were those that answer it not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GatedPair {
    /// Whether it lets one of the first passages through.
    pub with_answer: bool,
    /// Whether it lets one through of the first passages of documents that do not answer.
    pub without: bool,
}

/// Asks every question.
///
/// # Errors
/// When a search fails.
pub fn ask(
    collection: &Collection,
    indexed: &Indexed,
    ranking: Ranking,
    gate: Option<Gate>,
) -> Result<Vec<Answered>, EvaluateError> {
    let mut answered = Vec::with_capacity(collection.questions.len());
    for (asked, judged) in &collection.questions {
        let begun = Instant::now();
        let scope = Scope { as_of: Some(DAY), filter: None };
        let found = indexed.snapshot.rank(&asked.text, ranking, &scope, CHUNKS)?;
        let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
        let rows: Vec<usize> = found.iter().map(|ranked| ranked.row).collect();
        let ranked = best_documents(&rows, &indexed.documents);
        let names: Vec<&str> = ranked.iter().map(|at| collection.documents[*at].id.as_str()).collect();
        let Some(figures) = Figures::of(&names, judged) else { continue };
        let gated = match gate {
            Some(gate) => Some(gated(collection, indexed, (asked, judged), &found, gate)?),
            None => None,
        };
        let found = names.iter().take(10).map(|name| (*name).to_owned()).collect();
        answered.push(Answered { id: asked.id.clone(), figures, found, milliseconds, gated });
    }
    Ok(answered)
}

/// Passages that a gate looks at.
const GATED: usize = 5;

fn gated(
    collection: &Collection,
    indexed: &Indexed,
    (asked, judged): (&Asked, &Judged),
    found: &[Ranked],
    gate: Gate,
) -> Result<GatedPair, EvaluateError> {
    let answers = |row: usize| {
        let document = indexed.documents.get(row).and_then(|at| collection.documents.get(*at));
        document.is_some_and(|document| judged.get(&document.id).is_some_and(|grade| *grade > 0))
    };
    let gate = gate.asked_in(Language::detect(&asked.text));
    let passes = |all: bool| -> Result<bool, EvaluateError> {
        for ranked in found.iter().filter(|ranked| all || !answers(ranked.row)).take(GATED) {
            let (coverage, similarity) = indexed.snapshot.judge(&asked.text, ranked)?;
            if gate.lets_pass(coverage, similarity) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    Ok(GatedPair { with_answer: passes(true)?, without: passes(false)? })
}

/// Documents in the order of their best chunks.
fn best_documents(rows: &[usize], documents: &[usize]) -> Vec<usize> {
    let mut seen = HashSet::new();
    let owners = rows.iter().filter_map(|row| documents.get(*row).copied());
    owners.filter(|document| seen.insert(*document)).collect()
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
    /// The share of questions that a gate lets be answered, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Mean>,
    /// The share that it would stop, were the documents that answer not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Mean>,
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
        let pairs: Vec<GatedPair> = answered.iter().filter_map(|one| one.gated).collect();
        let gated = |is: fn(&GatedPair) -> bool| {
            let shares: Vec<f64> = pairs.iter().map(|pair| f64::from(u8::from(is(pair)))).collect();
            (!shares.is_empty()).then(|| Mean::of(&shares))
        };
        Self {
            kept: gated(|pair| pair.with_answer),
            stopped: gated(|pair| !pair.without),
            ndcg_10: mean(|f| f.ndcg_10),
            mrr_10: mean(|f| f.mrr_10),
            recall_100: mean(|f| f.recall_100),
            median_ms: at(0.5),
            p99_ms: at(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_ranks_as_its_best_chunk() {
        assert_eq!(best_documents(&[4, 0, 3, 1, 9], &[0, 0, 1, 1, 2]), [2, 0, 1]);
    }
}
