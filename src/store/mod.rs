//! Generations: immutable, complete, checksummed builds of the index, and the one that is current.
//!
//! Where the operator path ends and the request path begins. On disk:
//! ```text
//! <index>/LOCK                            held by the one build that runs; freed by the system if it dies
//! <index>/CURRENT                         the id of the live generation
//! <index>/generations/<id>/manifest.json  what is in it, with the sha256 of every file; written last
//! <index>/generations/<id>/documents/     the index of whole documents
//! <index>/generations/<id>/vectors.bin    the vectors of its chunks, if it was built with an embedder
//! <index>/generations/<id>/sentences.bin  the vectors of what may be quoted of them
//! <index>/generations/<id>/held-back.json passages that are not served until an operator has looked at them
//! <index>/generations/<id>/IN_USE         readers hold a shared lock on it, so that it is not removed
//! <index>/generations/.building-<id>/     a build under way, or one that died
//! ```
//! A build writes beside the live generation, then renames its folder into place, then replaces `CURRENT`; a
//! reader that finds `CURRENT` finds a complete generation. [`disk`] is the seam through which builds write,
//! [`schema`] the fields, [`manifest`] the record, [`publish`] the writing side; this file is the reading side.

pub mod disk;
pub mod manifest;
pub mod publish;
pub mod quarantine;
pub mod schema;
pub mod sentences;
pub mod vectors;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tantivy::Index;
use tantivy::directory::MmapDirectory;

pub use manifest::Manifest;

/// File with the id of the live generation.
pub(crate) const CURRENT: &str = "CURRENT";
/// File that a running build locks.
pub(crate) const LOCK: &str = "LOCK";
/// Folder of the generations.
pub(crate) const GENERATIONS: &str = "generations";
/// File in a generation that its readers lock.
pub(crate) const IN_USE: &str = "IN_USE";
/// Folder in a generation with the index of whole documents.
pub(crate) const DOCUMENTS: &str = "documents";
/// Record of a generation.
pub(crate) const MANIFEST: &str = "manifest.json";
const REBUILD: &str = "run `shishin index build`";

/// Why the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No generation has that id.
    #[error("there is no generation `{id}`; there are: {known}")]
    NoSuchGeneration {
        /// The id asked for.
        id: String,
        /// The generations there are.
        known: String,
    },
    /// No generation is older than the live one.
    #[error("there is no generation before the live one; `shishin index list` shows all")]
    NothingBefore,
    /// Another process builds.
    #[error("another build of this index is running (it holds `{0}`); wait for it to finish")]
    Busy(PathBuf),
    /// `CURRENT` holds no id.
    #[error("`{0}` does not name a generation; {REBUILD}")]
    BadCurrent(PathBuf),
    /// The live generation is not there.
    #[error("generation `{id}` is missing from `{path}`; {REBUILD}")]
    Missing {
        /// The generation.
        id: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The generation was built by another version.
    #[error("generation `{id}` was built with {what} `{found}`, this program needs `{wanted}`; {REBUILD}")]
    Version {
        /// The generation.
        id: String,
        /// Which version differs.
        what: &'static str,
        /// What it was built with.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// A file of a generation is not as it was written.
    #[error("`{path}` is damaged ({why}); {REBUILD}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
    /// The search library failed.
    #[error("cannot {action} the index in `{path}`: {source}")]
    Search {
        /// What was tried.
        action: &'static str,
        /// On which folder.
        path: PathBuf,
        /// Why it failed.
        source: Box<tantivy::TantivyError>,
    },
}

/// Names what was tried in an I/O error.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// Names what was tried in an error of the search library.
pub(crate) fn search_error<E: Into<tantivy::TantivyError>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Search { action, path, source: Box::new(source.into()) }
}

/// An open generation. While it lives, no build removes its files.
pub struct Generation {
    /// What it holds.
    pub manifest: Manifest,
    /// The index of chunks, with the tokenizers registered.
    pub index: Index,
    /// The index of whole documents.
    pub documents: Index,
    /// Shared lock on `IN_USE`.
    in_use: File,
}

impl Drop for Generation {
    fn drop(&mut self) {
        // Closing would not do while a process that was forked meanwhile still has the file open.
        let _ = self.in_use.unlock();
    }
}

/// The id in `CURRENT`, or `None` when nothing has been built yet.
pub fn current_id(index_dir: &Path) -> Result<Option<String>, StoreError> {
    let path = index_dir.join(CURRENT);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("read", &path)(e)),
    };
    let id = text.trim();
    // The id becomes part of a path, so nothing but our own alphabet passes.
    let good = !id.is_empty() && id.len() <= 80 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if good { Ok(Some(id.to_owned())) } else { Err(StoreError::BadCurrent(path)) }
}

/// Opens the live generation after checking its versions and checksums, or `None` when there is none yet.
pub fn open_current(index_dir: &Path) -> Result<Option<Generation>, StoreError> {
    // A build may replace the generation between the reading of its id and the lock on it, so a generation
    // that has gone is looked up again as long as `CURRENT` names another one.
    let mut tried = None;
    loop {
        let Some(id) = current_id(index_dir)? else { return Ok(None) };
        match open(index_dir, &id) {
            Err(StoreError::Missing { .. }) if tried.as_ref() != Some(&id) => tried = Some(id),
            opened => return opened.map(Some),
        }
    }
}

/// The folder of a generation.
#[must_use]
pub fn generation_dir(index_dir: &Path, id: &str) -> PathBuf {
    index_dir.join(GENERATIONS).join(id)
}

/// Opens one generation.
pub fn open(index_dir: &Path, id: &str) -> Result<Generation, StoreError> {
    let dir = generation_dir(index_dir, id);
    let in_use = lock_in_use(&dir, id)?;
    let manifest = Manifest::read(&dir, id)?;
    manifest.check_versions()?;
    manifest.check_files(&dir)?;
    let (index, documents) = (open_index(&dir)?, open_index(&dir.join(DOCUMENTS))?);
    Ok(Generation { manifest, index, documents, in_use })
}

fn open_index(dir: &Path) -> Result<Index, StoreError> {
    let index = MmapDirectory::open(dir).map_err(tantivy::TantivyError::from).and_then(Index::open);
    let index = index.map_err(search_error("open", dir))?;
    crate::analysis::register(&index);
    Ok(index)
}

fn lock_in_use(dir: &Path, id: &str) -> Result<File, StoreError> {
    let path = dir.join(IN_USE);
    let missing = || StoreError::Missing { id: id.to_owned(), path: dir.to_owned() };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(e) => return Err(io_error("open", &path)(e)),
    };
    match file.try_lock_shared() {
        Ok(()) => {}
        // Only a build that removes this generation holds it exclusively.
        Err(TryLockError::WouldBlock) => return Err(missing()),
        Err(TryLockError::Error(e)) => return Err(io_error("lock", &path)(e)),
    }
    // The folder may have been moved away between the opening and the lock.
    if path.exists() { Ok(file) } else { Err(missing()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_an_id_and_never_a_path() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(current_id(dir.path()).unwrap(), None);
        fs::write(dir.path().join(CURRENT), "20260101T000000-ab\n").unwrap();
        assert_eq!(current_id(dir.path()).unwrap().as_deref(), Some("20260101T000000-ab"));
        for bad in ["", "../../etc", "a/b", "a b", &"x".repeat(200)] {
            fs::write(dir.path().join(CURRENT), bad).unwrap();
            assert!(matches!(current_id(dir.path()), Err(StoreError::BadCurrent(_))), "{bad}");
        }
        fs::write(dir.path().join(CURRENT), "gone").unwrap();
        assert!(matches!(open_current(dir.path()), Err(StoreError::Missing { .. })));
    }
}
