//! From a catalog entry to files on this machine.
//!
//! Second step of the way from a name to loaded weights. A model lives in `<cache>/models/<name>/`.
//! [`ensure`] answers at once when its files are there; else it tries the entry's sources in order.
//! What comes is put together in `.partial-<name>@…` beside the models, held to size and SHA-256, and
//! renamed into place: whatever ends a download half-way, no file with a model's name is anything but
//! whole. A lock per model keeps two processes from downloading it twice.

mod cancel;
mod error;
mod hub;
mod registry;
mod staged;

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use cancel::Cancel;
pub use error::{Attempt, FetchError, SourceError};

use super::catalog::{ModelEntry, Source};
use staged::Staged;

/// Leftovers of other models are swept when nothing has touched them for this long.
const STALE: Duration = Duration::from_hours(24);

/// How often a fetch that waits for another process looks again.
const LOCK_TICK: Duration = Duration::from_millis(200);

/// How to fetch. `Debug` is left out on purpose: there may be a token inside.
#[derive(Clone)]
pub struct FetchOptions {
    /// The program's cache folder; models lie in `models` below it.
    pub cache_dir: PathBuf,
    /// Take what is there and go nowhere else.
    pub offline: bool,
    /// Hash the files that are there instead of trusting their size, and fetch the broken ones anew.
    pub rehash: bool,
    /// The Python that has pip: a name looked up in `PATH`, or an absolute path.
    pub python: PathBuf,
    /// Variables set for pip, on top of the inherited ones.
    pub pip_env: Vec<(String, String)>,
    /// The hub's address, if not `hf-hub`'s own (`HF_ENDPOINT`, or the public hub).
    pub hub_endpoint: Option<String>,
    /// The hub's token (`HF_TOKEN`), if not the one that `hf-hub` finds under `HF_HOME`.
    pub hub_token: Option<String>,
    /// How long the hub may send nothing before the next source is tried.
    pub patience: Duration,
    /// Stops the fetch from another thread.
    pub cancel: Cancel,
}

impl FetchOptions {
    /// The usual way to fetch into `cache_dir`.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            offline: false,
            rehash: false,
            python: PathBuf::from("python3"),
            pip_env: Vec::new(),
            hub_endpoint: None,
            hub_token: None,
            patience: Duration::from_secs(10),
            cancel: Cancel::default(),
        }
    }
}

/// Hears how a fetch goes on. All methods do nothing unless they are written; `()` hears nothing.
pub trait Progress {
    /// A source is being tried, from its first byte.
    fn begin(&mut self, _model: &str, _place: &str, _bytes: u64) {}
    /// The next piece of work within a source, for instance one package of several.
    fn step(&mut self, _what: &str) {}
    /// So many bytes more of the model have come.
    fn advance(&mut self, _bytes: u64) {}
    /// Something a person wants to know: a source that failed, a wait.
    fn note(&mut self, _line: &str) {}
    /// No more is to come, well or not.
    fn end(&mut self) {}
}

impl Progress for () {}

/// The cache folder when none is configured: `$XDG_CACHE_HOME/shishin`, else `~/.cache/shishin`. The
/// caller reads the two variables; a relative `XDG_CACHE_HOME` is ignored, as its specification says.
#[must_use]
pub fn default_cache_dir(xdg_cache_home: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    let absolute = |path: &&OsStr| Path::new(path).is_absolute();
    let base = match xdg_cache_home.filter(absolute) {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(home.filter(absolute)?).join(".cache"),
    };
    Some(base.join("shishin"))
}

/// The folder of a model below the cache folder, there or not.
#[must_use]
pub fn model_dir(entry: &ModelEntry, cache_dir: &Path) -> PathBuf {
    cache_dir.join("models").join(&entry.name)
}

/// Whether all files of the model are there with the right sizes.
#[must_use]
pub fn is_present(entry: &ModelEntry, cache_dir: &Path) -> bool {
    missing(entry, &model_dir(entry, cache_dir)).is_none()
}

/// Hashes all files of a model and holds them to the catalog.
pub fn verify(entry: &ModelEntry, cache_dir: &Path, cancel: &Cancel) -> Result<(), FetchError> {
    damage(entry, &model_dir(entry, cache_dir), cancel).map_or(Ok(()), |found| {
        Err(match found {
            SourceError::Cancelled => FetchError::Cancelled { model: entry.name.clone() },
            found => FetchError::Damaged { model: entry.name.clone(), reason: found.to_string() },
        })
    })
}

/// Makes sure that the model is here, and returns what a loader opens: the file, or the folder of a
/// model of several files. Files of the right size are taken without network and without hashing
/// (the loader hashes them for the fingerprint) unless `options.rehash` is set.
pub fn ensure(
    entry: &ModelEntry,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, FetchError> {
    let cache = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| FetchError::Cache { action, path, source }
    };
    let cache_dir = std::path::absolute(&options.cache_dir).map_err(cache("resolve", &options.cache_dir))?;
    let dir = model_dir(entry, &cache_dir);
    let Some(reason) = unfit(entry, &dir, options)? else { return Ok(entry.load_path(&dir)) };
    if options.offline {
        let mend = mend(entry, &dir);
        return Err(FetchError::Offline { model: entry.name.clone(), reason, mend });
    }

    let models = cache_dir.join("models");
    fs::create_dir_all(&models).map_err(cache("create", &models))?;
    let _lock = lock(entry, &models, &options.cancel, progress)?;
    // Whoever held the lock may have fetched it meanwhile.
    if unfit(entry, &dir, options)?.is_none() {
        return Ok(entry.load_path(&dir));
    }
    sweep(entry, &models);

    let mut attempts = Vec::new();
    for source in &entry.sources {
        let place = place(source);
        progress.begin(&entry.name, &place, entry.size());
        let result = try_source(entry, source, &models, &dir, options, progress);
        progress.end();
        match result {
            Ok(()) => return Ok(entry.load_path(&dir)),
            // A source that failed because the caller stopped it has not failed.
            _ if options.cancel.is_cancelled() => {
                return Err(FetchError::Cancelled { model: entry.name.clone() });
            }
            Err(error) => {
                progress.note(&format!("{}: {place} failed: {error}", entry.name));
                attempts.push(Attempt { place, error });
            }
        }
    }
    let mend = mend(entry, &dir);
    Err(FetchError::AllSourcesFailed { model: entry.name.clone(), attempts, mend })
}

/// Downloads from one source, checks all files, and only then moves them to their places.
fn try_source(
    entry: &ModelEntry,
    source: &Source,
    models: &Path,
    dir: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), SourceError> {
    let stage = tempfile::Builder::new()
        .prefix(&format!("{}{}-", partial_prefix(entry), std::process::id()))
        .tempdir_in(models)
        .map_err(|source| SourceError::Io {
            action: "create a folder in",
            path: models.to_path_buf(),
            source,
        })?;
    let staged = match source {
        Source::Hub { repo, revision, files } => {
            let remote = |name: &str| files.get(name).map_or(name, String::as_str).to_owned();
            hub::fetch(entry, (repo, revision), remote, stage.path(), options, progress)?
        }
        Source::Registry { packages, member, platform } => {
            let packages = registry::Packages { names: packages, member, platform: platform.as_deref() };
            registry::fetch(entry, &packages, stage.path(), options, progress)?
        }
    };
    for (file, wanted) in staged.iter().zip(&entry.files) {
        file.check(wanted)?;
    }
    for (file, wanted) in staged.into_iter().zip(&entry.files) {
        file.install(&dir.join(&wanted.name))?;
    }
    Ok(())
}

/// What keeps the files in `dir` from being used, in the measure that the options ask for.
fn unfit(entry: &ModelEntry, dir: &Path, options: &FetchOptions) -> Result<Option<String>, FetchError> {
    let found = if options.rehash { damage(entry, dir, &options.cancel) } else { missing(entry, dir) };
    match found {
        Some(SourceError::Cancelled) => Err(FetchError::Cancelled { model: entry.name.clone() }),
        found => Ok(found.map(|found| found.to_string())),
    }
}

/// The first file that is absent or has the wrong size.
fn missing(entry: &ModelEntry, dir: &Path) -> Option<SourceError> {
    entry.files.iter().find_map(|file| {
        let path = dir.join(&file.name);
        match fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() == file.size => None,
            Ok(found) => {
                let file_path = path.display().to_string();
                Some(SourceError::Size { file: file_path, got: found.len(), want: file.size })
            }
            Err(source) => Some(SourceError::Io { action: "find", path, source }),
        }
    })
}

/// The first file that is absent, or is not the catalog's.
fn damage(entry: &ModelEntry, dir: &Path, cancel: &Cancel) -> Option<SourceError> {
    missing(entry, dir).or_else(|| {
        entry.files.iter().find_map(|file| {
            Staged::measure(dir.join(&file.name), cancel).and_then(|found| found.check(file)).err()
        })
    })
}

/// Takes the model's lock; it is given back when the file is closed, by the system too if we are killed.
fn lock(
    entry: &ModelEntry,
    models: &Path,
    cancel: &Cancel,
    progress: &mut dyn Progress,
) -> Result<File, FetchError> {
    let path = models.join(format!(".lock-{}", entry.name));
    let failed = |source| FetchError::Cache { action: "lock", path: path.clone(), source };
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    progress.note(&format!("{}: another process is fetching it, waiting", entry.name));
                    told = true;
                }
                if cancel.wait(LOCK_TICK) {
                    return Err(FetchError::Cancelled { model: entry.name.clone() });
                }
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Start of the names of a model's staging folders; `@` occurs in no model's name.
fn partial_prefix(entry: &ModelEntry) -> String {
    format!(".partial-{}@", entry.name)
}

/// Removes what killed processes left: this model's at once, since we hold its lock, others' when they
/// are old. What cannot be removed stays for the next time.
fn sweep(entry: &ModelEntry, models: &Path) {
    let own = partial_prefix(entry);
    let Ok(items) = fs::read_dir(models) else { return };
    for item in items.flatten() {
        let name = item.file_name();
        let Some(name) = name.to_str() else { continue };
        let old = || {
            let changed = item.metadata().and_then(|found| found.modified()).ok();
            changed.and_then(|at| SystemTime::now().duration_since(at).ok()).is_some_and(|age| age > STALE)
        };
        if name.starts_with(&own) || (name.starts_with(".partial-") && old()) {
            let _ = fs::remove_dir_all(item.path());
        }
    }
}

/// A source as a person reads it.
fn place(source: &Source) -> String {
    match source {
        Source::Hub { repo, revision, .. } => {
            format!("hub {repo} at {}", revision.get(..8).unwrap_or(revision))
        }
        Source::Registry { packages, .. } => match packages.as_slice() {
            [first, .., last] => format!("registry packages {first} to {last}"),
            one => format!("registry package {}", one.concat()),
        },
    }
}

fn mend(entry: &ModelEntry, dir: &Path) -> String {
    let what = match entry.files.as_slice() {
        [one] => format!("put the file at {} by hand", dir.join(&one.name).display()),
        files => format!("put the {} files into {} by hand", files.len(), dir.display()),
    };
    format!("either {what}, or connect this machine and run `shishin model pull {}`", entry.name)
}
