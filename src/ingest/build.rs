//! The spine of the operator path: from a folder of guidelines to the live generation.
//!
//! Every file is read once and its text put aside (`documents`); when the editions of all are known, the texts are
//! cut and indexed one at a time.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::approvals::{Approvals, passage_hash};
use super::chunk::{Chunk, Sizes, chunks, estimate_tokens};
use super::documents::{Document, Documents};
use super::editions::{Edition, resolve};
use super::embedding::{Embedded, Embedding};
use super::extract::Format;
use super::segment::IndexesWriter;
use super::{Finding, Findings, IngestError, screen};
use crate::model::embed::Embedder;
use crate::store::disk::{Disk, Filesystem};
use crate::store::manifest::{Counts, MadeBy, hex};
use crate::store::publish::{BuildLock, Draft};
use crate::store::quarantine::{self, HeldBack};
use crate::store::schema::{Facts, Record};
use crate::store::{Manifest, StoreError};

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOptions {
    /// The folder of guidelines.
    pub source: PathBuf,
    /// The index folder, which holds the generations.
    pub index: PathBuf,
    /// The most tokens in a chunk.
    pub chunk_tokens: usize,
    /// How many tokens a chunk repeats of the one before it, where a section is split.
    pub overlap_tokens: usize,
    /// Refuse the build when any file has an error, instead of leaving the file out.
    pub strict: bool,
    /// Generations that are kept besides the live one.
    pub keep_generations: usize,
}

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading metadata: files done, of how many.
    Reading(usize, usize),
    /// Cutting and indexing: documents done, of how many.
    Indexing(usize, usize),
    /// Writing and checking the generation.
    Writing,
}

/// What a build did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildReport {
    /// The generation that is now live.
    pub generation: String,
    /// What it holds.
    pub counts: Counts,
    /// Editions in effect on the day of the build.
    pub in_effect: usize,
    /// Files of each format that something was read from.
    pub files: BTreeMap<Format, usize>,
    /// Files that were left out because of an error.
    pub left_out: usize,
    /// Passages that are held back until an operator has looked at them.
    pub held_back: usize,
    /// Vectors of chunks and of what may be quoted of them; none without an embedder.
    pub embedded: Option<Embedded>,
    /// Everything found, up to a thousand.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: usize,
}

/// What a build works with.
#[derive(Clone, Copy)]
pub struct BuildTools<'a> {
    /// Where it writes.
    pub disk: &'a dyn Disk,
    /// Counts the tokens of a text.
    pub count_tokens: &'a dyn Fn(&str) -> usize,
    /// Makes the vectors of chunks; without one the index is searched by words alone.
    pub embedder: Option<&'a dyn Embedder>,
}

impl Default for BuildTools<'_> {
    /// The file system, estimated token counts, and no embedder.
    fn default() -> Self {
        Self { disk: &Filesystem, count_tokens: &estimate_tokens, embedder: None }
    }
}

/// Builds a generation and makes it live, on the file system, with estimated token counts and no vectors.
pub fn build(
    options: &BuildOptions,
    today: Date,
    progress: &mut dyn FnMut(Progress),
) -> Result<BuildReport, IngestError> {
    build_with(BuildTools::default(), options, today, progress)
}

/// Builds a generation and makes it live, with given tools.
pub fn build_with(
    tools: BuildTools<'_>,
    options: &BuildOptions,
    today: Date,
    progress: &mut dyn FnMut(Progress),
) -> Result<BuildReport, IngestError> {
    let BuildTools { disk, count_tokens, embedder } = tools;
    let lock = BuildLock::take(disk, &options.index)?;
    let mut findings = Findings::default();
    let mut corpus = Corpus::read(options, &mut findings, progress)?;

    let created = Timestamp::now();
    // To the millisecond, so that ids sort by age and no id is ever used twice.
    let stamp = created.strftime("%Y%m%dT%H%M%S%3fZ");
    let draft = lock.start(&format!("{stamp}-{}", corpus.hash.get(..8).unwrap_or_default()))?;
    let sizes =
        Sizes { limit: options.chunk_tokens.max(1), overlap: options.overlap_tokens, count: count_tokens };
    let mut embedding = embedder.map(|embedder| Embedding::start(embedder, &options.index));
    let mut indexing = Indexing {
        writer: IndexesWriter::create(disk, &draft)?,
        approvals: Approvals::read(&options.source, &mut |finding| findings.push(finding)),
        counts: Counts { editions: corpus.editions.len(), ..Counts::default() },
        held_back: Vec::new(),
    };
    indexing.all(&mut corpus, sizes, &mut embedding, &mut findings, progress)?;
    let Indexing { writer, counts, held_back, .. } = indexing;
    writer.finish()?;

    progress(Progress::Writing);
    quarantine::write(disk, &draft.dir, &held_back)?;
    let mut embedded = None;
    if let Some(embedding) = embedding {
        embedded = Some(embedding.finish(disk, &draft.dir)?);
    }
    let made_by = embedder.map(|e| MadeBy { name: e.name().to_owned(), sha256: e.fingerprint().to_owned() });
    let manifest = publish(draft, &corpus.hash, &counts, made_by, created, options)?;
    let left_out = findings.files_with_errors();
    let (findings, more_findings) = findings.sorted();
    Ok(BuildReport {
        generation: manifest.id,
        counts,
        in_effect: corpus.editions.iter().filter(|edition| edition.in_effect(today)).count(),
        files: corpus.documents.files,
        left_out,
        held_back: held_back.len(),
        embedded,
        findings,
        more_findings,
    })
}

/// The editions that will be indexed, and their documents.
struct Corpus {
    editions: Vec<Edition>,
    documents: Documents,
    /// sha256 over names and contents.
    hash: String,
}

impl Corpus {
    fn read(
        options: &BuildOptions,
        findings: &mut Findings,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, IngestError> {
        let documents = Documents::read(&options.source, &options.index, findings, &mut |done, total| {
            progress(Progress::Reading(done, total));
        })?;
        let fronts = documents.all.iter().map(|d| (d.metadata_file.clone(), d.front.clone())).collect();
        let (editions, found) = resolve(fronts);
        findings.extend(found);
        if options.strict && findings.files_with_errors() > 0 {
            return Err(IngestError::Refused(findings.take()));
        }
        if editions.is_empty() {
            return Err(IngestError::Empty { path: options.source.clone(), findings: findings.take() });
        }
        let mut hash = Sha256::new();
        for document in editions.iter().filter_map(|edition| documents.all.get(edition.number)) {
            hash.update(format!("{}\0{}\n", document.file, document.sha256));
        }
        Ok(Self { editions, documents, hash: hex(&hash.finalize()) })
    }
}

/// Cuts documents and writes their chunks.
struct Indexing {
    writer: IndexesWriter,
    approvals: Approvals,
    counts: Counts,
    held_back: Vec<HeldBack>,
}

impl Indexing {
    fn all(
        &mut self,
        corpus: &mut Corpus,
        sizes: Sizes<'_>,
        embedding: &mut Option<Embedding<'_>>,
        findings: &mut Findings,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), IngestError> {
        let total = corpus.editions.len();
        let mut guidelines = HashSet::new();
        for (done, edition) in corpus.editions.iter().enumerate() {
            progress(Progress::Indexing(done, total));
            let text =
                corpus.documents.text(edition.number).map_err(|source| IngestError::Spool { source })?;
            let Some(document) = corpus.documents.all.get(edition.number) else { continue };
            guidelines.insert(edition.front.key.guideline.as_str());
            self.document(edition, document, &text, sizes, embedding, findings)?;
        }
        progress(Progress::Indexing(total, total));
        self.counts.guidelines = guidelines.len();
        Ok(())
    }

    fn document(
        &mut self,
        edition: &Edition,
        document: &Document,
        text: &str,
        sizes: Sizes<'_>,
        embedding: &mut Option<Embedding<'_>>,
        findings: &mut Findings,
    ) -> Result<(), IngestError> {
        let front = &edition.front;
        let found = chunks(text, document.body, &front.title, sizes);
        if found.is_empty() {
            let message = "has headings but no text below them; nothing of it can be found";
            findings.push(Finding::warning(&document.file, 1, message));
        }
        let mut served = Vec::new();
        for (n, chunk) in found.into_iter().enumerate() {
            let why = self.suspicion(edition, document, text, n, &chunk, findings);
            if !why {
                served.push((n, chunk));
            }
        }
        self.counts.chunks += served.len();
        *self.counts.chunks_by_language.entry(front.language).or_default() += served.len();
        let tags = front.tags.join("\n");
        let facts = Facts {
            begins: front.effective_from,
            ends: edition.ends,
            issuer: &front.issuer,
            jurisdiction: &front.jurisdiction,
            language: front.language,
            tags: &front.tags,
        };
        // What is held back finds nothing, its document included.
        let words: Vec<&str> = served.iter().map(|(_, chunk)| &text[chunk.span.clone()]).collect();
        let headings = headings(&served);
        let about = format!("{}\n{tags}", front.title);
        self.writer.document([&about, &format!("{headings}{}", words.join("\n")), text], &facts)?;
        for (n, chunk) in served {
            if let Some(embedding) = embedding {
                let own = &text[chunk.span.clone()];
                embedding.push(&front.title, &chunk.section, own)?;
            }
            let head = [&front.title, &chunk.section, &tags].map(String::as_str).join("\n");
            self.writer.chunk(&record(edition, document, text, n, chunk), &head)?;
        }
        Ok(())
    }

    /// Whether a chunk looks suspect and nobody has let it through; then it is noted.
    fn suspicion(
        &mut self,
        edition: &Edition,
        document: &Document,
        text: &str,
        n: usize,
        chunk: &Chunk,
        findings: &mut Findings,
    ) -> bool {
        let own = &text[chunk.span.clone()];
        let mut found = screen::screen(text, &chunk.span, &document.hidden);
        // Headings go into prompts as well.
        let heading = screen::screen(&chunk.section, &(0..chunk.section.len()), &[]);
        found.extend(
            heading.into_iter().map(|suspicion| screen::Suspicion { at: chunk.span.start, ..suspicion }),
        );
        let hash = passage_hash(&chunk.section, own);
        let (Some(first), false) = (found.first(), self.approvals.contains(&hash)) else { return false };
        let line = 1 + text[..first.at].bytes().filter(|b| *b == b'\n').count();
        let why = found.iter().map(|suspicion| suspicion.what.as_str()).collect::<Vec<_>>().join("; ");
        let message =
            format!("a passage is held back, because of {why}; look at it with `shishin index held-back`");
        findings.push(Finding::warning(&document.file, line, message));
        self.held_back.push(HeldBack {
            hash,
            file: document.file.clone(),
            line,
            chunk_id: chunk_id(edition, n),
            section: chunk.section.clone(),
            why,
            text: own.to_owned(),
        });
        true
    }
}

/// The headings of a document's chunks, each once.
fn headings(chunks: &[(usize, Chunk)]) -> String {
    let mut out = String::new();
    let mut last = "";
    for (_, chunk) in chunks {
        if chunk.section != last {
            out.push_str(&chunk.section);
            out.push('\n');
            last = &chunk.section;
        }
    }
    out
}

fn chunk_id(edition: &Edition, n: usize) -> String {
    format!("{}#{}", edition.front.key, n + 1)
}

fn record(edition: &Edition, document: &Document, text: &str, n: usize, chunk: Chunk) -> Record {
    let Edition { front, ends, replaced_by, .. } = edition;
    let page = document.pages.partition_point(|start| *start <= chunk.span.start);
    Record {
        chunk_id: chunk_id(edition, n),
        guideline: front.key.guideline.clone(),
        title: front.title.clone(),
        edition: front.key.edition.clone(),
        section: chunk.section,
        issuer: front.issuer.clone(),
        jurisdiction: front.jurisdiction.clone(),
        language: front.language,
        tags: front.tags.clone(),
        effective_from: front.effective_from,
        effective_to: front.effective_to,
        ends: *ends,
        replaced_by: replaced_by.as_ref().map(ToString::to_string),
        source: front.source.clone(),
        licence: front.licence.clone(),
        file: document.file.clone(),
        page: (page > 0).then_some(page),
        text: text[chunk.span.clone()].to_owned(),
        span: chunk.span,
    }
}

fn publish(
    draft: Draft<'_>,
    corpus: &str,
    counts: &Counts,
    embedder: Option<MadeBy>,
    created: Timestamp,
    options: &BuildOptions,
) -> Result<Manifest, StoreError> {
    draft.publish(options.keep_generations, |manifest| {
        corpus.clone_into(&mut manifest.corpus);
        manifest.created = created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let name = options.source.file_name().unwrap_or(options.source.as_os_str());
        manifest.source = name.to_string_lossy().into_owned();
        manifest.counts = counts.clone();
        manifest.embedder = embedder;
    })
}
