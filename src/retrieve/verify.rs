//! Checks a generation from end to end: files, versions, vectors, and that every passage is what its document says at that place.

use std::collections::HashMap;
use std::path::Path;

use tantivy::schema::Value as _;
use tantivy::{DocAddress, TantivyDocument};

use super::SearchTools;
use super::sentences::SentenceVectors;
use super::snapshot::Snapshot;
use crate::store::vectors::{VECTORS, Vectors};
use crate::store::{self, Manifest, StoreError, search_error};

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// Files that were compared with their checksums.
    pub files: usize,
    /// Passages that were compared with their documents.
    pub passages: usize,
    /// What is wrong.
    pub faults: Vec<String>,
}

/// Checks a generation.
///
/// # Errors
/// When there is none of that id, or it cannot be looked at.
pub fn verify(index_dir: &Path, id: &str) -> Result<Checked, StoreError> {
    let dir = store::generation_dir(index_dir, id);
    let manifest = Manifest::read(&dir, id)?;
    let mut checked = Checked { files: manifest.files.len(), ..Checked::default() };
    checked.faults.extend(manifest.check_versions().err().map(|error| error.to_string()));
    for name in manifest.files.keys() {
        checked.faults.extend(manifest.check_file(&dir, name).err().map(|error| error.to_string()));
    }
    if !checked.faults.is_empty() {
        // What is damaged cannot be trusted to say more.
        return Ok(checked);
    }
    let snapshot = Snapshot::open(store::open(index_dir, id)?, &dir, &SearchTools::default())?;
    checked.passages = snapshot.rows();
    if snapshot.rows() != manifest.counts.chunks {
        checked.faults.push(format!("it holds {} passages, not {}", snapshot.rows(), manifest.counts.chunks));
    }
    if manifest.embedder.is_some() {
        checked.faults.extend(fault_of_vectors(&dir, snapshot.rows())?);
    }
    let places = snapshot.document_places().map_err(search_error("read", &dir))?;
    // Passages stand in the order of their documents, so one text at a time is enough.
    let mut text = (usize::MAX, String::new());
    for row in 0..snapshot.rows() {
        let record = match snapshot.record(row) {
            Ok(record) => record,
            Err(error) => {
                checked.faults.push(error.to_string());
                continue;
            }
        };
        let Some(document) = snapshot.document_of(row) else {
            checked.faults.push(format!("{}: it stands in no document", record.chunk_id));
            continue;
        };
        if text.0 != document {
            let place = places.get(&(document as u64)).copied();
            text = (document, place.and_then(|place| snapshot.extracted(place)).unwrap_or_default());
        }
        let there = text.1.get(record.span.clone());
        if there != Some(record.text.as_str()) {
            checked
                .faults
                .push(format!("{}: its document says something else at its place", record.chunk_id));
        }
    }
    Ok(checked)
}

/// What is wrong with the vectors of so many chunks.
fn fault_of_vectors(dir: &Path, chunks: usize) -> Result<Option<String>, StoreError> {
    let Some(vectors) = Vectors::read(dir)? else { return Ok(Some(format!("{VECTORS} is missing"))) };
    if vectors.rows() != chunks {
        return Ok(Some(format!("{VECTORS} holds {} vectors for {chunks} passages", vectors.rows())));
    }
    let of = (chunks, vectors.dimensions());
    Ok(SentenceVectors::open(dir, of).err().map(|error| error.to_string()))
}

impl Snapshot {
    /// Where each document is in the index of documents.
    fn document_places(&self) -> tantivy::Result<HashMap<u64, DocAddress>> {
        let mut places = HashMap::new();
        for (ord, segment) in self.documents().segment_readers().iter().enumerate() {
            let numbers = segment.fast_fields().u64("document")?;
            for doc in 0..segment.max_doc() {
                places.extend(numbers.first(doc).map(|number| (number, DocAddress::new(ord as u32, doc))));
            }
        }
        Ok(places)
    }

    /// The text that was extracted from a document, into which the spans of its chunks point.
    fn extracted(&self, place: DocAddress) -> Option<String> {
        let doc: TantivyDocument = self.documents().doc(place).ok()?;
        doc.get_first(self.document_fields().extracted)?.as_str().map(str::to_owned)
    }
}
