//! The vectors of a build's chunks and of what may be quoted of them: taken along from the live generation where the same text was
//! embedded before by the same embedder, made anew where not.

use std::collections::HashMap;
use std::path::Path;

use super::IngestError;
use crate::model::embed::{Embedder, TextKind};
use crate::quote;
use crate::store::disk::Disk;
use crate::store::sentences::{self, SENTENCES};
use crate::store::vectors::{VECTORS, VectorKey, Vectors, embedded_text};
use crate::store::{self, Manifest, StoreError, io_error};

/// Texts that are embedded at a time.
const BATCH: usize = 64;

/// How many vectors were made, and how many taken along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Embedded {
    /// Made anew.
    pub made: usize,
    /// Taken along from the generation before.
    pub reused: usize,
}

/// Embeds chunks in their order, and what may be quoted of each.
pub(crate) struct Embedding<'a> {
    chunks: Collected<'a>,
    sentences: Collected<'a>,
    /// Sentences up to the end of each chunk; none where they are left out.
    ends: Vec<u64>,
}

impl<'a> Embedding<'a> {
    /// Looks for vectors to take along in the live generation of an index folder. That there are none, or none that can be read, costs
    /// time and nothing else.
    pub(crate) fn start(embedder: &'a dyn Embedder, index_dir: &Path) -> Self {
        let before = |file: &str, read: fn(&Path) -> Result<Option<Vectors>, StoreError>| {
            let vectors = sound(embedder, index_dir, file).and_then(|dir| read(&dir).ok().flatten());
            vectors.filter(|vectors| vectors.dimensions() == embedder.dimensions()).unwrap_or_default()
        };
        Self {
            chunks: Collected::start(embedder, before(VECTORS, Vectors::read)),
            sentences: Collected::start(embedder, before(SENTENCES, sentences::read_vectors)),
            ends: Vec::new(),
        }
    }

    /// Takes the next chunk, without its sentences.
    pub(crate) fn push(&mut self, title: &str, section: &str, text: &str) -> Result<(), IngestError> {
        self.chunks.push(embedded_text(title, section, text))
    }

    /// Takes the next chunk, and what may be quoted of it.
    pub(crate) fn push_with_sentences(
        &mut self,
        title: &str,
        section: &str,
        text: &str,
    ) -> Result<(), IngestError> {
        self.push(title, section, text)?;
        for quote in quote::possible([text]) {
            self.sentences.push(embedded_text(title, section, &quote.text))?;
        }
        self.ends.push(self.sentences.taken() as u64);
        Ok(())
    }

    /// Writes the vectors into the folder of a generation.
    pub(crate) fn finish(self, disk: &dyn Disk, dir: &Path) -> Result<Embedded, IngestError> {
        let write = |file: &str, bytes: &[u8]| {
            let path = dir.join(file);
            disk.write(&path, bytes).map_err(io_error("write", &path))
        };
        let (vectors, mut counts) = self.chunks.finish()?;
        write(VECTORS, &vectors.to_bytes())?;
        if !self.ends.is_empty() {
            let (vectors, more) = self.sentences.finish()?;
            write(SENTENCES, &sentences::to_bytes(&self.ends, &vectors))?;
            counts = Embedded { made: counts.made + more.made, reused: counts.reused + more.reused };
        }
        Ok(counts)
    }
}

/// The folder of the live generation, if its file of that name is whole and made by this embedder: a damaged one would carry its damage on.
fn sound(embedder: &dyn Embedder, index_dir: &Path, file: &str) -> Option<std::path::PathBuf> {
    let id = store::current_id(index_dir).ok()??;
    let dir = store::generation_dir(index_dir, &id);
    let manifest = Manifest::read(&dir, &id).ok()?;
    let same = manifest.embedder.as_ref().is_some_and(|made_by| made_by.sha256 == embedder.fingerprint());
    (same && manifest.check_file(&dir, file).is_ok()).then_some(dir)
}

/// Collects the vectors of texts in their order.
struct Collected<'a> {
    embedder: &'a dyn Embedder,
    before: Vectors,
    by_key: HashMap<VectorKey, usize>,
    vectors: Vectors,
    waiting: Vec<Waiting>,
    to_make: usize,
    counts: Embedded,
}

enum Waiting {
    /// A row of the generation before.
    Row(usize),
    Text(VectorKey, String),
}

impl<'a> Collected<'a> {
    fn start(embedder: &'a dyn Embedder, before: Vectors) -> Self {
        Self {
            by_key: before.by_key(),
            before,
            vectors: Vectors::new(embedder.dimensions()),
            embedder,
            waiting: Vec::new(),
            to_make: 0,
            counts: Embedded::default(),
        }
    }

    /// Texts so far.
    fn taken(&self) -> usize {
        self.vectors.rows() + self.waiting.len()
    }

    /// Takes the next text.
    fn push(&mut self, text: String) -> Result<(), IngestError> {
        let key = VectorKey::of(&text);
        match self.by_key.get(&key) {
            Some(row) => self.waiting.push(Waiting::Row(*row)),
            None => {
                self.waiting.push(Waiting::Text(key, text));
                self.to_make += 1;
            }
        }
        if self.to_make == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), IngestError> {
        let texts: Vec<&str> = self
            .waiting
            .iter()
            .filter_map(|waiting| match waiting {
                Waiting::Text(_, text) => Some(text.as_str()),
                Waiting::Row(_) => None,
            })
            .collect();
        let mut made = self.embedder.embed(TextKind::Passage, &texts)?.into_iter();
        for waiting in self.waiting.drain(..) {
            match waiting {
                Waiting::Row(row) => {
                    self.vectors.push_row(&self.before, row);
                    self.counts.reused += 1;
                }
                Waiting::Text(key, _) => {
                    if let Some(vector) = made.next() {
                        self.vectors.push(key, &vector);
                        self.counts.made += 1;
                    }
                }
            }
        }
        self.to_make = 0;
        Ok(())
    }

    /// All vectors.
    fn finish(mut self) -> Result<(Vectors, Embedded), IngestError> {
        self.flush()?;
        Ok((self.vectors, self.counts))
    }
}
