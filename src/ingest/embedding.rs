//! The vectors of a build's chunks and of what may be quoted of them: taken along from the live generation where the same text was
//! embedded before by the same embedder, made anew where not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::f16;

use super::IngestError;
use crate::model::embed::{Embedder, TextKind};
use crate::quote;
use crate::store::disk::Disk;
use crate::store::sentences::{self, SENTENCES, Sentences};
use crate::store::vectors::{VECTORS, VectorKey, Vectors, embedded_text};
use crate::store::{self, Manifest, io_error};

/// Texts that are embedded at a time.
const BATCH: usize = 64;

/// How many vectors were made, and how many taken along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Embedded {
    /// Made anew.
    pub made: usize,
    /// Taken along from the generation before, or of the same text in this one.
    pub reused: usize,
}

/// Embeds chunks in their order, and what may be quoted of each.
pub(crate) struct Embedding<'a> {
    chunks: Collected<'a>,
    /// Those of sentences, and how many there are up to the end of each chunk; where they are wanted.
    sentences: Option<(Collected<'a>, Vec<u64>)>,
}

impl<'a> Embedding<'a> {
    /// Looks for vectors to take along in the live generation of an index folder. That there are none, or none that can be read, costs
    /// time and nothing else.
    pub(crate) fn start(embedder: &'a dyn Embedder, index_dir: &Path) -> Self {
        let before = sound(embedder, index_dir, SENTENCES).and_then(|dir| Sentences::open(&dir).ok()?);
        let before = before.map_or(Before::None, Before::Sentences);
        let sentences = Some((Collected::start(embedder, before), Vec::new()));
        Self { sentences, ..Self::of_chunks(embedder, index_dir) }
    }

    /// The same of chunks alone.
    pub(crate) fn of_chunks(embedder: &'a dyn Embedder, index_dir: &Path) -> Self {
        let before = sound(embedder, index_dir, VECTORS).and_then(|dir| Vectors::read(&dir).ok()?);
        let before = before.map_or(Before::None, Before::Chunks);
        Self { chunks: Collected::start(embedder, before), sentences: None }
    }

    /// Takes the next chunk.
    pub(crate) fn push(&mut self, title: &str, section: &str, text: &str) -> Result<(), IngestError> {
        self.chunks.push(embedded_text(title, section, text))?;
        if let Some((sentences, ends)) = &mut self.sentences {
            for quote in quote::possible([text]) {
                sentences.push(embedded_text(title, section, &quote.text))?;
            }
            ends.push(sentences.taken() as u64);
        }
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
        if let Some((sentences, ends)) = self.sentences {
            let (vectors, more) = sentences.finish()?;
            write(SENTENCES, &sentences::to_bytes(&ends, &vectors))?;
            counts = Embedded { made: counts.made + more.made, reused: counts.reused + more.reused };
        }
        Ok(counts)
    }
}

/// The folder of the live generation, if its file of that name is whole and made by this embedder: a damaged one would carry its damage on.
fn sound(embedder: &dyn Embedder, index_dir: &Path, file: &str) -> Option<PathBuf> {
    let id = store::current_id(index_dir).ok()??;
    let dir = store::generation_dir(index_dir, &id);
    let manifest = Manifest::read(&dir, &id).ok()?;
    let same = manifest.embedder.as_ref().is_some_and(|made_by| made_by.sha256 == embedder.fingerprint());
    (same && manifest.check_file(&dir, file).is_ok()).then_some(dir)
}

/// The vectors of the generation before.
enum Before {
    None,
    Chunks(Vectors),
    Sentences(Sentences),
}

impl Before {
    /// The rows by their keys, where the vectors have so many dimensions; of equal ones any.
    fn by_key(&self, dimensions: usize) -> HashMap<VectorKey, usize> {
        match self {
            Self::Chunks(vectors) if vectors.dimensions() == dimensions => vectors.keys().zip(0..).collect(),
            Self::Sentences(sentences) if sentences.dimensions() == dimensions => {
                sentences.keys().zip(0..).collect()
            }
            _ => HashMap::new(),
        }
    }

    fn row(&self, row: usize) -> Vec<f16> {
        match self {
            Self::None => Vec::new(),
            Self::Chunks(vectors) => vectors.row(row).to_vec(),
            Self::Sentences(sentences) => sentences.row(row),
        }
    }
}

/// Collects the vectors of texts in their order.
struct Collected<'a> {
    embedder: &'a dyn Embedder,
    before: Before,
    by_key: HashMap<VectorKey, Known>,
    vectors: Vectors,
    waiting: Vec<(VectorKey, Waiting)>,
    to_make: usize,
    counts: Embedded,
}

/// Where a text's vector is already, or will be by then.
#[derive(Clone, Copy)]
enum Known {
    /// A row of the generation before.
    Before(usize),
    /// A row of this one: passages overlap, and editions repeat each other.
    Here(usize),
}

enum Waiting {
    For(Known),
    Text(String),
}

impl<'a> Collected<'a> {
    fn start(embedder: &'a dyn Embedder, before: Before) -> Self {
        let dimensions = embedder.dimensions();
        let by_key = before.by_key(dimensions).into_iter().map(|(key, row)| (key, Known::Before(row)));
        Self {
            by_key: by_key.collect(),
            before,
            vectors: Vectors::new(dimensions),
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
        let here = self.taken();
        match self.by_key.get(&key) {
            Some(known) => self.waiting.push((key, Waiting::For(*known))),
            None => {
                self.by_key.insert(key, Known::Here(here));
                self.waiting.push((key, Waiting::Text(text)));
                self.to_make += 1;
            }
        }
        if self.to_make == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), IngestError> {
        let texts: Vec<&str> = self
            .waiting
            .iter()
            .filter_map(|(_, waiting)| match waiting {
                Waiting::Text(text) => Some(text.as_str()),
                Waiting::For(_) => None,
            })
            .collect();
        let mut made = self.embedder.embed(TextKind::Passage, &texts)?.into_iter();
        for (key, waiting) in self.waiting.drain(..) {
            let known = match waiting {
                Waiting::For(Known::Before(row)) => self.before.row(row),
                Waiting::For(Known::Here(row)) => self.vectors.row(row).to_vec(),
                Waiting::Text(_) => {
                    if let Some(vector) = made.next() {
                        self.vectors.push(key, &vector);
                        self.counts.made += 1;
                    }
                    continue;
                }
            };
            self.vectors.push_row(key, &known);
            self.counts.reused += 1;
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
