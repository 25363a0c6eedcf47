//! The spine of the operator path: from a folder of guidelines to the live generation.
//!
//! Two passes over the files keep memory small: the first reads the metadata of all (editions can only be
//! resolved together), the second cuts and indexes one file at a time. A file that changes between the two stops
//! the build.

use std::collections::HashSet;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::chunk::{Sizes, chunks, estimate_tokens};
use super::editions::{Edition, resolve};
use super::embedding::{Embedded, Embedding, embedded_text};
use super::front_matter::{self, FrontMatter};
use super::read::{self, SourceFile};
use super::segment::IndexesWriter;
use super::{Finding, IngestError};
use crate::model::embed::Embedder;
use crate::store::disk::{Disk, Filesystem};
use crate::store::manifest::{Counts, MadeBy, hex};
use crate::store::publish::{BuildLock, Draft};
use crate::store::schema::{Days, Record};
use crate::store::vectors::VECTORS;
use crate::store::{Manifest, StoreError, io_error};

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
}

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading metadata: files done, of how many.
    Reading(usize, usize),
    /// Cutting and indexing: files done, of how many.
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
    /// Files that were left out because of an error.
    pub left_out: usize,
    /// Vectors of chunks; none without an embedder.
    pub embedded: Option<Embedded>,
    /// Everything found.
    pub findings: Vec<Finding>,
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
    let mut corpus = Corpus::read(options, progress)?;

    let created = Timestamp::now();
    // To the millisecond, so that ids sort by age and no id is ever used twice.
    let stamp = created.strftime("%Y%m%dT%H%M%S%3fZ");
    let draft = lock.start(&format!("{stamp}-{}", corpus.hash.get(..8).unwrap_or_default()))?;
    let sizes =
        Sizes { limit: options.chunk_tokens.max(1), overlap: options.overlap_tokens, count: count_tokens };
    let mut embedding = embedder.map(|embedder| Embedding::start(embedder, &options.index));
    let counts = corpus.index(disk, &draft, sizes, &mut embedding, progress)?;

    progress(Progress::Writing);
    let mut embedded = None;
    if let Some(embedding) = embedding {
        let (vectors, made) = embedding.finish()?;
        let path = draft.dir.join(VECTORS);
        disk.write(&path, &vectors.to_bytes()).map_err(io_error("write", &path))?;
        embedded = Some(made);
    }
    let made_by = embedder.map(|e| MadeBy { name: e.name().to_owned(), sha256: e.fingerprint().to_owned() });
    let manifest = publish(draft, &corpus.hash, &counts, made_by, created, options)?;
    corpus.findings.sort_by(|a, b| (&a.file, a.line, &a.message).cmp(&(&b.file, b.line, &b.message)));
    let left_out: HashSet<_> = corpus.findings.iter().filter(|f| f.is_error()).map(|f| &f.file).collect();
    Ok(BuildReport {
        generation: manifest.id,
        counts,
        in_effect: corpus.sources.iter().filter(|s| s.edition.in_effect(today)).count(),
        left_out: left_out.len(),
        embedded,
        findings: corpus.findings,
    })
}

/// The files that will be indexed, and what was found about those and the others.
struct Corpus {
    sources: Vec<Source>,
    findings: Vec<Finding>,
    /// sha256 over names and contents.
    hash: String,
}

struct Source {
    edition: Edition,
    file: SourceFile,
    body: usize,
    sha256: String,
}

impl Corpus {
    fn read(options: &BuildOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self, IngestError> {
        let (files, mut findings) = read::list(&options.source)?;
        let total = files.len();
        let mut fronts = Vec::new();
        let mut rest = std::collections::HashMap::new();
        for (done, file) in files.into_iter().enumerate() {
            progress(Progress::Reading(done, total));
            if let Some((front, body, sha256)) = head(&file, &mut findings) {
                fronts.push((file.name.clone(), front));
                rest.insert(file.name.clone(), (file, body, sha256));
            }
        }
        progress(Progress::Reading(total, total));
        let (editions, more) = resolve(fronts);
        findings.extend(more);
        if options.strict && findings.iter().any(Finding::is_error) {
            return Err(IngestError::Refused(findings));
        }
        if editions.is_empty() {
            return Err(IngestError::Empty { path: options.source.clone(), findings });
        }
        let mut hash = Sha256::new();
        let mut sources = Vec::new();
        for edition in editions {
            if let Some((file, body, sha256)) = rest.remove(&edition.file) {
                hash.update(format!("{}\0{sha256}\n", file.name));
                sources.push(Source { edition, file, body, sha256 });
            }
        }
        Ok(Self { sources, findings, hash: hex(&hash.finalize()) })
    }

    fn index(
        &mut self,
        disk: &dyn Disk,
        draft: &Draft<'_>,
        sizes: Sizes<'_>,
        embedding: &mut Option<Embedding<'_>>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Counts, IngestError> {
        let mut writer = IndexesWriter::create(disk, draft)?;
        let mut counts = Counts { editions: self.sources.len(), ..Counts::default() };
        let mut guidelines = HashSet::new();
        for (done, source) in self.sources.iter().enumerate() {
            progress(Progress::Indexing(done, self.sources.len()));
            let changed = || IngestError::Changed { file: source.file.name.clone() };
            let text = read::read(&source.file).map_err(|_| changed())?;
            if sha256(&text) != source.sha256 {
                return Err(changed());
            }
            let front = &source.edition.front;
            let found = chunks(&text, source.body, &front.title, sizes);
            if found.is_empty() {
                let message = "has headings but no text below them; nothing of it can be found";
                self.findings.push(Finding::warning(&source.file.name, 1, message));
            }
            guidelines.insert(front.key.guideline.as_str());
            counts.chunks += found.len();
            *counts.chunks_by_language.entry(front.language).or_default() += found.len();
            let tags = front.tags.join("\n");
            let days = Days { begins: front.effective_from, ends: source.edition.ends };
            writer.document(&format!("{}\n{tags}", front.title), &text[source.body..], days)?;
            for (n, chunk) in found.into_iter().enumerate() {
                if let Some(embedding) = embedding {
                    let own = &text[chunk.span.clone()];
                    embedding.push(embedded_text(&front.title, &chunk.section, own))?;
                }
                let head = [&front.title, &chunk.section, &tags].map(String::as_str).join("\n");
                writer.chunk(&record(source, &text, n, chunk.section, chunk.span), &head)?;
            }
        }
        progress(Progress::Indexing(self.sources.len(), self.sources.len()));
        counts.guidelines = guidelines.len();
        writer.finish()?;
        Ok(counts)
    }
}

/// The metadata of one file, where its body starts, and its hash; or findings.
fn head(file: &SourceFile, findings: &mut Vec<Finding>) -> Option<(FrontMatter, usize, String)> {
    let text = read::read(file).map_err(|finding| findings.push(finding)).ok()?;
    let head = front_matter::parse(&file.name, &text);
    let is_readme = file.path.file_stem().is_some_and(|s| s.eq_ignore_ascii_case("readme"));
    if is_readme && !head.present {
        return None;
    }
    findings.extend(head.findings);
    let front = head.front?;
    if text[head.body..].trim().is_empty() {
        let line = text[..head.body].lines().count().max(1);
        findings.push(Finding::error(
            &file.name,
            line,
            "nothing stands below the front matter; add the text",
        ));
        return None;
    }
    Some((front, head.body, sha256(&text)))
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

fn record(source: &Source, text: &str, n: usize, section: String, span: std::ops::Range<usize>) -> Record {
    let Edition { front, ends, .. } = &source.edition;
    Record {
        chunk_id: format!("{}#{}", front.key, n + 1),
        guideline: front.key.guideline.clone(),
        title: front.title.clone(),
        edition: front.key.edition.clone(),
        section,
        issuer: front.issuer.clone(),
        jurisdiction: front.jurisdiction.clone(),
        language: front.language,
        effective_from: front.effective_from,
        effective_to: front.effective_to,
        ends: *ends,
        source: front.source.clone(),
        licence: front.licence.clone(),
        file: source.file.name.clone(),
        text: text[span.clone()].to_owned(),
        span,
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
    draft.publish(|manifest| {
        corpus.clone_into(&mut manifest.corpus);
        manifest.created = created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let name = options.source.file_name().unwrap_or(options.source.as_os_str());
        manifest.source = name.to_string_lossy().into_owned();
        manifest.counts = counts.clone();
        manifest.embedder = embedder;
    })
}
