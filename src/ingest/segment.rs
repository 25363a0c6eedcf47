//! Writes chunks into one segment of the search index.
//!
//! Last step of a build before the generation is published; evaluation indexes its collections through it too.

use std::path::PathBuf;

use tantivy::indexer::NoMergePolicy;
use tantivy::{Index, IndexSettings, IndexWriter, TantivyError};

use crate::analysis;
use crate::store::disk::Disk;
use crate::store::publish::Draft;
use crate::store::schema::{Fields, Record};
use crate::store::{StoreError, io_error, search_error};

/// Memory that the index writer may fill before it writes a segment.
const WRITER_BYTES: usize = 50_000_000;

/// Writes chunks into one segment: a term's rarity is then the same for every chunk.
pub(crate) struct SegmentWriter {
    index: Index,
    fields: Fields,
    writer: IndexWriter,
    dir: PathBuf,
    /// Chunks so far.
    rows: u64,
}

impl SegmentWriter {
    /// Starts an index in the draft's folder.
    pub(crate) fn create(disk: &dyn Disk, draft: &Draft<'_>) -> Result<Self, StoreError> {
        let dir = draft.dir.clone();
        let fields = Fields::new();
        let create = || {
            let index =
                Index::create(disk.directory(&dir)?, fields.schema.clone(), IndexSettings::default())?;
            analysis::register(&index);
            let writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
            // Segments are merged once, at the end, and not while documents are still coming in.
            writer.set_merge_policy(Box::new(NoMergePolicy));
            Ok((index, writer))
        };
        let (index, writer) = create().map_err(search_error::<TantivyError>("create", &dir))?;
        Ok(Self { index, fields, writer, dir, rows: 0 })
    }

    /// Adds the next chunk. `head` is what it is found by besides its text.
    pub(crate) fn add(&mut self, record: &Record, head: &str) -> Result<(), StoreError> {
        let doc = self.fields.document(self.rows, record, head).map_err(std::io::Error::from);
        let doc = doc.map_err(io_error("write", &self.dir))?;
        self.writer.add_document(doc).map_err(search_error("write", &self.dir))?;
        self.rows += 1;
        Ok(())
    }

    /// Flushes everything, merges it into one segment and reads it back.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
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
