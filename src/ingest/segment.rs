//! Writes the search index of a generation: the chunks, and the documents that they stand in.
//!
//! Last step of a build before the generation is published; evaluation indexes its collections through it too. Each index ends as one
//! segment: a term's rarity is then the same for every entry.

use std::path::{Path, PathBuf};

use tantivy::indexer::NoMergePolicy;
use tantivy::schema::Schema;
use tantivy::{Index, IndexSettings, IndexWriter, TantivyDocument, TantivyError};

use crate::analysis;
use crate::store::disk::Disk;
use crate::store::publish::Draft;
use crate::store::schema::{DocumentFields, Facts, Fields, Record};
use crate::store::{DOCUMENTS, StoreError, io_error, search_error};

/// Memory that an index writer may fill before it writes a segment.
const WRITER_BYTES: usize = 50_000_000;

/// Writes both indexes, document by document.
pub(crate) struct IndexesWriter {
    fields: Fields,
    document_fields: DocumentFields,
    chunks: SegmentWriter,
    documents: SegmentWriter,
}

impl IndexesWriter {
    /// Starts the indexes in the draft's folder.
    pub(crate) fn create(disk: &dyn Disk, draft: &Draft<'_>) -> Result<Self, StoreError> {
        let (fields, document_fields) = (Fields::new(), DocumentFields::new());
        let folder = draft.dir.join(DOCUMENTS);
        disk.create_dir_all(&folder).map_err(io_error("create", &folder))?;
        Ok(Self {
            chunks: SegmentWriter::create(disk, &draft.dir, &fields.schema)?,
            documents: SegmentWriter::create(disk, &folder, &document_fields.schema)?,
            fields,
            document_fields,
        })
    }

    /// Adds a document; the chunks that follow are its. It is found by its head and the words that are served of it, and kept as it was
    /// extracted.
    pub(crate) fn document(
        &mut self,
        [head, served, extracted]: [&str; 3],
        facts: &Facts<'_>,
    ) -> Result<(), StoreError> {
        let entry = self.document_fields.entry(self.documents.entries, [head, served, extracted], facts);
        self.documents.add(entry)
    }

    /// Adds the next chunk of the document that was added last. `head` is what it is found by besides its text.
    pub(crate) fn chunk(&mut self, record: &Record, head: &str) -> Result<(), StoreError> {
        let document = self.documents.entries.saturating_sub(1);
        let entry = self.fields.entry(self.chunks.entries, document, record, head);
        let entry = entry.map_err(std::io::Error::from).map_err(io_error("write", &self.chunks.dir))?;
        self.chunks.add(entry)
    }

    /// Flushes everything, merges each index into one segment and reads it back.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        self.chunks.finish()?;
        self.documents.finish()
    }
}

/// Writes one index of one segment.
struct SegmentWriter {
    index: Index,
    writer: IndexWriter,
    dir: PathBuf,
    /// Entries so far.
    entries: u64,
}

impl SegmentWriter {
    fn create(disk: &dyn Disk, dir: &Path, schema: &Schema) -> Result<Self, StoreError> {
        let create = || {
            let index = Index::create(disk.directory(dir)?, schema.clone(), IndexSettings::default())?;
            analysis::register(&index);
            let writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
            // Segments are merged once, at the end, and not while documents are still coming in.
            writer.set_merge_policy(Box::new(NoMergePolicy));
            Ok((index, writer))
        };
        let (index, writer) = create().map_err(search_error::<TantivyError>("create", dir))?;
        Ok(Self { index, writer, dir: dir.to_owned(), entries: 0 })
    }

    fn add(&mut self, entry: TantivyDocument) -> Result<(), StoreError> {
        self.writer.add_document(entry).map_err(search_error("write", &self.dir))?;
        self.entries += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        let merge = |this: &mut Self| {
            this.writer.commit()?;
            let segments = this.index.searchable_segment_ids()?;
            if segments.len() > 1 {
                this.writer.merge(&segments).wait()?;
            }
            this.writer.garbage_collect_files().wait()?;
            Ok(())
        };
        merge(&mut self).map_err(search_error::<TantivyError>("write", &self.dir))?;
        self.writer.wait_merging_threads().map_err(search_error("write", &self.dir))?;
        let damaged = self.index.validate_checksum().map_err(search_error("check", &self.dir))?;
        match damaged.into_iter().next() {
            None => Ok(()),
            Some(file) => {
                let path = self.dir.join(file);
                Err(StoreError::Damaged { path, why: "it does not read back as it was written".to_owned() })
            }
        }
    }
}
