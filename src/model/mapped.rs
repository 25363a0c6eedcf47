//! A read-only memory map of a weight file: the first step of loading a base model or an adapter.
//!
//! The map keeps a large file out of the heap; the loader copies what it needs and drops it.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

/// A file mapped read-only into memory.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// Whatever the operating system says about opening or mapping it.
    #[allow(unsafe_code)]
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: a map is undefined behaviour only if the file changes under it. Model files are
        // renamed into the cache as a whole and never written again; a user who edits a weight file
        // in place while it is being loaded gets a wrong checksum or a bus error, as with every
        // program that maps its weights.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where the file lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
