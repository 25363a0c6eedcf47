//! The writing side of the store: one build at a time, beside the live generation, swapped in at the end.
//!
//! The order is what makes it safe. Files → flushed → manifest → folder renamed into place → `CURRENT` replaced.
//! A stop at any point leaves `CURRENT` with the old generation or with the new one, both complete.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::manifest::{self, Manifest};
use super::{CURRENT, DOCUMENTS, GENERATIONS, IN_USE, LOCK, MANIFEST, StoreError, current_id, io_error};

const BUILDING: &str = ".building-";
const REMOVING: &str = ".removing-";

/// The right to build: an exclusive lock that the system frees when the process ends, however it ends.
pub struct BuildLock<'a> {
    disk: &'a dyn Disk,
    index_dir: PathBuf,
    lock: File,
}

impl<'a> BuildLock<'a> {
    /// Takes the lock, or says that another build holds it; then clears away what dead builds left.
    pub fn take(disk: &'a dyn Disk, index_dir: &Path) -> Result<Self, StoreError> {
        let generations = index_dir.join(GENERATIONS);
        disk.create_dir_all(&generations).map_err(io_error("create", &generations))?;
        let path = index_dir.join(LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy(path)),
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &path)(e)),
        }
        let lock = Self { disk, index_dir: index_dir.to_owned(), lock: file };
        for name in lock.names()? {
            if name.starts_with(BUILDING) || name.starts_with(REMOVING) {
                let path = generations.join(name);
                disk.remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(lock)
    }

    /// Starts a generation. `id` gets a number when it is taken (a clock that was set back).
    pub fn start(&self, id: &str) -> Result<Draft<'_>, StoreError> {
        let generations = self.index_dir.join(GENERATIONS);
        let taken = |id: &str| generations.join(id).exists();
        let id = if taken(id) {
            (2..).map(|n| format!("{id}-{n}")).find(|id| !taken(id)).unwrap_or_else(|| id.to_owned())
        } else {
            id.to_owned()
        };
        let dir = generations.join(format!("{BUILDING}{id}"));
        self.disk.create_dir_all(&dir).map_err(io_error("create", &dir))?;
        Ok(Draft { lock: self, id, dir })
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let dir = self.index_dir.join(GENERATIONS);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            names.push(entry.map_err(io_error("list", &dir))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Makes a complete generation the live one.
    fn make_current(&self, id: &str) -> Result<(), StoreError> {
        let next = self.index_dir.join(format!("{CURRENT}.next"));
        self.disk.write(&next, format!("{id}\n").as_bytes()).map_err(io_error("write", &next))?;
        let current = self.index_dir.join(CURRENT);
        self.disk.rename(&next, &current).map_err(io_error("replace", &current))?;
        // From here on the generation is live, so what fails now is worth a line in the log, not an error.
        if let Err(error) = self.disk.sync(&self.index_dir) {
            tracing::warn!(%error, "the new generation is live, but may be forgotten in a power failure");
        }
        Ok(())
    }

    /// Goes back to an older generation, or forward to a newer one: the named one, or the newest that is older than the live one. It is
    /// checked like one that is opened, before anything changes.
    pub fn roll_back(&self, to: Option<&str>) -> Result<Manifest, StoreError> {
        let live = current_id(&self.index_dir)?;
        let all: Vec<_> = self.names()?.into_iter().filter(|name| !name.starts_with('.')).collect();
        let known = || all.join(", ");
        let id = match to {
            Some(id) if all.iter().any(|name| name == id) => id.to_owned(),
            Some(id) => return Err(StoreError::NoSuchGeneration { id: id.to_owned(), known: known() }),
            None => {
                let before = all.iter().rev().find(|name| live.as_ref().is_some_and(|live| *name < live));
                before.cloned().ok_or(StoreError::NothingBefore)?
            }
        };
        let dir = super::generation_dir(&self.index_dir, &id);
        let manifest = Manifest::read(&dir, &id)?;
        manifest.check_versions()?;
        manifest.check_files(&dir)?;
        self.make_current(&id)?;
        Ok(manifest)
    }

    /// Removes generations but the live one and the newest `keep` others. What cannot be removed now stays for the next build: the new
    /// generation is live already, so nothing here may fail the build.
    fn prune(&self, live: &str, keep: usize) -> Result<usize, StoreError> {
        let old: Vec<_> = self.names()?.into_iter().filter(|n| !n.starts_with('.') && n != live).collect();
        let mut removed = 0;
        // Ids begin with the time, so names sort by age.
        for id in old.iter().rev().skip(keep) {
            let dir = self.index_dir.join(GENERATIONS).join(id);
            let free = match File::open(dir.join(IN_USE)) {
                Ok(file) => file.try_lock().is_ok().then_some(Some(file)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Some(None),
                Err(_) => None,
            };
            // The lock is held until the folder has left its place, so that no reader comes in between.
            if let Some(_lock) = free {
                let away = self.index_dir.join(GENERATIONS).join(format!("{REMOVING}{id}"));
                self.disk.rename(&dir, &away).map_err(io_error("rename", &dir))?;
                self.disk.remove_dir_all(&away).map_err(io_error("remove", &away))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl Drop for BuildLock<'_> {
    fn drop(&mut self) {
        // Closing would not do while a process that was forked meanwhile still has the file open.
        let _ = self.lock.unlock();
    }
}

/// A generation being written. Dropped without [`Draft::publish`], it leaves a folder that the next build clears.
pub struct Draft<'a> {
    lock: &'a BuildLock<'a>,
    /// The id it will have.
    pub id: String,
    /// The folder to write the index into.
    pub dir: PathBuf,
}

impl Draft<'_> {
    /// Completes the generation and makes it the live one; of the others the newest `keep` stay. `fill` gets the manifest with the
    /// checksums set.
    pub fn publish(self, keep: usize, fill: impl FnOnce(&mut Manifest)) -> Result<Manifest, StoreError> {
        let disk = self.lock.disk;
        let index_dir = &self.lock.index_dir;
        let generations = index_dir.join(GENERATIONS);
        let write = |path: &Path, bytes: &[u8]| disk.write(path, bytes).map_err(io_error("write", path));
        let sync = |path: &Path| disk.sync(path).map_err(io_error("flush", path));

        write(&self.dir.join(IN_USE), b"")?;
        let files = manifest::sum_files(&self.dir)?;
        for name in files.keys() {
            sync(&self.dir.join(name))?;
        }
        let mut record = Manifest {
            format: manifest::FORMAT,
            id: self.id.clone(),
            schema: super::schema::VERSION,
            analysis: crate::analysis::VERSION.to_owned(),
            embedder: None,
            corpus: String::new(),
            created: String::new(),
            source: String::new(),
            counts: manifest::Counts::default(),
            files,
        };
        fill(&mut record);
        let path = self.dir.join(MANIFEST);
        let json =
            serde_json::to_vec_pretty(&record).map_err(io::Error::from).map_err(io_error("write", &path))?;
        write(&path, &json)?;
        sync(&self.dir.join(DOCUMENTS))?;
        sync(&self.dir)?;

        let home = generations.join(&self.id);
        disk.rename(&self.dir, &home).map_err(io_error("rename", &self.dir))?;
        sync(&generations)?;

        self.lock.make_current(&self.id)?;
        if let Err(error) = self.lock.prune(&self.id, keep) {
            tracing::warn!(%error, "old generations stay until the next build");
        }
        Ok(record)
    }
}

/// Every complete generation, oldest first, with a mark on the live one.
pub fn list(index_dir: &Path) -> Result<Vec<(Manifest, bool)>, StoreError> {
    let live = current_id(index_dir)?;
    let dir = index_dir.join(GENERATIONS);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("list", &dir)(e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("list", &dir))?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        // One that cannot be read is none; the reader of a live one gets the reason from `open`.
        if let Ok(manifest) = Manifest::read(&dir.join(&name), &name) {
            let is_live = live.as_deref() == Some(name.as_str());
            out.push((manifest, is_live));
        }
    }
    out.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    Ok(out)
}
