//! The vectors of a build's chunks: taken along from the live generation where the same text was embedded before by the same
//! embedder, made anew where not.

use std::collections::HashMap;
use std::path::Path;

use super::IngestError;
use crate::model::embed::{Embedder, TextKind};
use crate::store::vectors::{VectorKey, Vectors};
use crate::store::{self, Manifest};

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

/// Collects the vectors of chunks in their order.
pub(crate) struct Embedding<'a> {
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

impl<'a> Embedding<'a> {
    /// Looks for vectors to take along in the live generation of an index folder. That there are none, or none that can be read, costs
    /// time and nothing else.
    pub(crate) fn start(embedder: &'a dyn Embedder, index_dir: &Path) -> Self {
        let before = Self::before(embedder, index_dir).unwrap_or_default();
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

    fn before(embedder: &dyn Embedder, index_dir: &Path) -> Option<Vectors> {
        let id = store::current_id(index_dir).ok()??;
        let dir = store::generation_dir(index_dir, &id);
        let manifest = Manifest::read(&dir, &id).ok()?;
        let same = manifest.embedder.as_ref().is_some_and(|made_by| made_by.sha256 == embedder.fingerprint());
        // A damaged file would carry its damage on.
        let sound = manifest.check_file(&dir, store::vectors::VECTORS).is_ok();
        let vectors = if same && sound { Vectors::read(&dir).ok()?? } else { return None };
        (vectors.dimensions() == embedder.dimensions()).then_some(vectors)
    }

    /// Takes the text of the next chunk.
    pub(crate) fn push(&mut self, text: String) -> Result<(), IngestError> {
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
    pub(crate) fn finish(mut self) -> Result<(Vectors, Embedded), IngestError> {
        self.flush()?;
        Ok((self.vectors, self.counts))
    }
}
