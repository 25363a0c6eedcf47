//! The seam through which builds write: every change to the disk that a build makes goes through [`Disk`].
//!
//! It exists so that tests can fail any single write, rename or flush and see that the live generation stays
//! whole. Reading does not go through it: readers have no state to corrupt.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use tantivy::directory::{Directory, MmapDirectory};

/// What a build may do to the disk.
pub trait Disk {
    /// Creates a folder and those above it.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Writes a whole file and flushes it to the device.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Flushes a file, or the entries of a folder, to the device.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or folder, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a folder with all that is in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The folder as the search library writes to it.
    fn directory(&self, path: &Path) -> tantivy::Result<Box<dyn Directory>>;
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filesystem;

impl Disk for Filesystem {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        // Some systems cannot open a folder as a file; there, renames are durable on their own.
        if cfg!(windows) && path.is_dir() {
            return Ok(());
        }
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn directory(&self, path: &Path) -> tantivy::Result<Box<dyn Directory>> {
        Ok(Box::new(MmapDirectory::open(path)?))
    }
}
