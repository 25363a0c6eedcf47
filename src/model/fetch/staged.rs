//! Files on their way in: written beside their place, hashed on the way, moved there only when whole.

use crate::model::hex;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Cancel, SourceError};
use crate::model::catalog::ModelFile;

/// Bytes moved at a time: large enough that the system calls do not show, small beside any model.
const BLOCK: usize = 256 * 1024;

/// A complete file in the staging folder, with what was measured on it.
#[derive(Debug)]
pub(super) struct Staged {
    /// Where it lies for now.
    pub(super) path: PathBuf,
    size: u64,
    sha256: String,
}

impl Staged {
    /// Measures a file that something else has written.
    pub(super) fn measure(path: PathBuf, cancel: &Cancel) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Io { action: "read", path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut block = vec![0; BLOCK];
        loop {
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let n = read_some(&mut file, &mut block).map_err(failed)?;
            if n == 0 {
                break;
            }
            hasher.update(&block[..n]);
            size += n as u64;
        }
        Ok(Self { path, size, sha256: hex(&hasher.finalize()) })
    }

    /// Holds the file to the catalog.
    pub(super) fn check(&self, wanted: &ModelFile) -> Result<(), SourceError> {
        if self.size != wanted.size {
            return Err(SourceError::Size { file: wanted.name.clone(), got: self.size, want: wanted.size });
        }
        if self.sha256 != wanted.sha256 {
            let (got, want) = (self.sha256.clone(), wanted.sha256.clone());
            return Err(SourceError::Checksum { file: wanted.name.clone(), got, want });
        }
        Ok(())
    }

    /// Moves the file to its place. It is on the disk before its name is, so that a power cut leaves
    /// the old state or the new one.
    pub(super) fn install(self, target: &Path) -> Result<(), SourceError> {
        let failed = |action| move |source| SourceError::Io { action, path: target.to_path_buf(), source };
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(failed("write"))?;
        let folder = target.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
        fs::rename(&self.path, target).map_err(failed("move the file to"))?;
        // Not every file system lets a folder be synced; the rename stands without it.
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

/// A file being put together from parts.
pub(super) struct Growing {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    size: u64,
    wanted: u64,
    name: String,
}

impl Growing {
    /// Starts an empty file at `path` for `wanted`.
    pub(super) fn create(path: PathBuf, wanted: &ModelFile) -> Result<Self, SourceError> {
        let file = File::create_new(&path).map_err(|source| SourceError::Io {
            action: "create",
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            file,
            path,
            hasher: Sha256::new(),
            size: 0,
            wanted: wanted.size,
            name: wanted.name.clone(),
        })
    }

    /// Appends all that `part` gives, and stops as soon as the file would be too long: a part that
    /// unpacks without end fills no disk. `wrong_part` turns a read error into the part's own error.
    pub(super) fn append(
        &mut self,
        part: &mut dyn Read,
        cancel: &Cancel,
        mut advanced: impl FnMut(u64),
        wrong_part: impl Fn(io::Error) -> SourceError,
    ) -> Result<(), SourceError> {
        let mut block = vec![0; BLOCK];
        loop {
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let n = read_some(part, &mut block).map_err(&wrong_part)?;
            if n == 0 {
                return Ok(());
            }
            self.size += n as u64;
            if self.size > self.wanted {
                let (got, want) = (self.size, self.wanted);
                return Err(SourceError::Size { file: self.name.clone(), got, want });
            }
            self.hasher.update(&block[..n]);
            self.file.write_all(&block[..n]).map_err(|source| SourceError::Io {
                action: "write",
                path: self.path.clone(),
                source,
            })?;
            advanced(n as u64);
        }
    }

    /// Ends the file.
    pub(super) fn finish(self) -> Staged {
        Staged { path: self.path, size: self.size, sha256: hex(&self.hasher.finalize()) }
    }
}

fn read_some(from: &mut (impl Read + ?Sized), block: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
