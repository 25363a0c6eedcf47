//! A disk that fails at one chosen step, for the tests of the store.
//!
//! Every write, flush, rename and removal of a build is one step, those of the search library included. The
//! chosen one fails, and so does every later one: a disk that is full or gone does not come back.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shishin::store::disk::{Disk, Filesystem};
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    AntiCallToken, Directory, DirectoryLock, FileHandle, Lock, TerminatingWrite, WatchCallback, WatchHandle,
    WritePtr,
};

#[derive(Debug, Clone)]
pub(crate) struct FaultyDisk {
    /// Steps seen so far.
    pub(crate) steps: Arc<AtomicUsize>,
    fails_at: usize,
}

impl FaultyDisk {
    pub(crate) fn failing_at(step: usize) -> Self {
        Self { steps: Arc::default(), fails_at: step }
    }

    fn step(&self) -> io::Result<()> {
        if self.steps.fetch_add(1, Ordering::SeqCst) >= self.fails_at {
            return Err(io::Error::other("no space left (injected)"));
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Filesystem.create_dir_all(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Err(fault) = self.step() {
            // A full disk leaves half a file.
            let _ = std::fs::write(path, &bytes[..bytes.len() / 2]);
            return Err(fault);
        }
        Filesystem.write(path, bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Filesystem.sync(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        Filesystem.rename(from, to)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Filesystem.remove_dir_all(path)
    }

    fn directory(&self, path: &Path) -> tantivy::Result<Box<dyn Directory>> {
        Ok(Box::new(FaultyDirectory { disk: self.clone(), inner: Filesystem.directory(path)? }))
    }
}

#[derive(Debug, Clone)]
struct FaultyDirectory {
    disk: FaultyDisk,
    inner: Box<dyn Directory>,
}

impl Directory for FaultyDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.inner.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        let failed = |e| DeleteError::IoError { io_error: Arc::new(e), filepath: path.to_owned() };
        self.disk.step().map_err(failed)?;
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.inner.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let failed = |e| OpenWriteError::IoError { io_error: Arc::new(e), filepath: PathBuf::from(path) };
        self.disk.step().map_err(failed)?;
        let inner = self.inner.open_write(path)?;
        Ok(BufWriter::new(Box::new(FaultyWriter { disk: self.disk.clone(), inner })))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        self.inner.atomic_read(path)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.disk.step()?;
        self.inner.atomic_write(path, data)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.step()?;
        self.inner.sync_directory()
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.inner.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(callback)
    }
}

struct FaultyWriter {
    disk: FaultyDisk,
    inner: WritePtr,
}

impl Write for FaultyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.step()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.step()?;
        self.inner.flush()
    }
}

impl TerminatingWrite for FaultyWriter {
    fn terminate_ref(&mut self, token: AntiCallToken) -> io::Result<()> {
        self.disk.step()?;
        self.inner.flush()?;
        self.inner.get_mut().terminate_ref(token)
    }
}
