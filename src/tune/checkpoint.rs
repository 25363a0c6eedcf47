//! Where a run stands, in one file: written aside and renamed, so that whatever happens there is a whole one.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::optimiser::AdamW;
use super::progress::Step;

/// Version of the file's layout.
const VERSION: u32 = 1;
/// The key of the state in the file's metadata.
const STATE: &str = "shishin.state";

/// Where a run stands, besides its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the layout.
    pub version: u32,
    /// Hash of everything that the run's course depends on: settings, data, base.
    pub identity: String,
    /// Steps done.
    pub step: usize,
    /// The lowest loss on the validation examples so far, and the step it was found at.
    pub best: Option<(f64, usize)>,
    /// Evaluations since without a lower one.
    pub worse: usize,
    /// Seconds that the steps took.
    pub seconds: f64,
    /// Whether the budget was overrun, which ends the run.
    #[serde(default)]
    pub over_budget: bool,
    /// The last step, where the run was stopped in the look that belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Step>,
}

impl State {
    /// The start of a run.
    #[must_use]
    pub fn new(identity: String) -> Self {
        Self {
            version: VERSION,
            identity,
            step: 0,
            best: None,
            worse: 0,
            seconds: 0.0,
            over_budget: false,
            pending: None,
        }
    }
}

impl State {
    /// That of the checkpoint in a file, whatever numbers it holds; `None` when there is none, or it is no checkpoint.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(bytes) = bytes_at(path)? else { return Ok(None) };
        let header =
            SafeTensors::read_metadata(&bytes).ok().and_then(|(_, header)| header.metadata().clone());
        Ok(header.and_then(|keys| serde_json::from_str(keys.get(STATE)?).ok()))
    }
}

/// A run's state with its numbers.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Where it stands.
    pub state: State,
    /// The parameters.
    pub numbers: Vec<f32>,
    /// The optimiser's moments.
    pub moments: AdamW,
    /// The parameters of the best evaluation.
    pub best: Option<Vec<f32>>,
}

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("{} is damaged ({reason}); delete it to start the run anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Writes a file whole or not at all.
///
/// # Errors
/// When the disk refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let fail = |what, path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { what, path, source }
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Not a temporary file of the system's kind: those are for their owner's eyes alone, and an adapter is served by others.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let aside = folder.join(name);
    let mut file = std::fs::File::create(&aside).map_err(fail("write", &aside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail("write", &aside))?;
    std::fs::rename(&aside, path).map_err(fail("write", path))?;
    sync_folder(folder).map_err(fail("write in", folder))
}

/// Makes names that were given in a folder outlive a loss of power; Windows has no way to ask for that.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(windows) { Ok(()) } else { std::fs::File::open(folder)?.sync_all() }
}

impl Checkpoint {
    /// Writes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
        let mut parts = vec![
            ("numbers", bytes_of(&self.numbers)),
            ("mean", bytes_of(&self.moments.mean)),
            ("square", bytes_of(&self.moments.square)),
        ];
        parts.extend(self.best.as_deref().map(|best| ("best", bytes_of(best))));
        let views: Vec<(&str, TensorView<'_>)> = parts
            .iter()
            .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)))
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|e| damaged(e.to_string()))?;
        let state = serde_json::to_string(&self.state).map_err(|e| damaged(e.to_string()))?;
        let metadata = HashMap::from([(STATE.to_owned(), state)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| damaged(e.to_string()))?;
        write_whole(path, &bytes)
    }

    /// Reads one of so many numbers; `None` when there is none.
    ///
    /// # Errors
    /// When there is one that is not whole, or not of this layout.
    pub fn read(path: &Path, count: usize) -> Result<Option<Self>, CheckpointError> {
        let Some(bytes) = bytes_at(path)? else { return Ok(None) };
        Self::parse(&bytes, count)
            .map(Some)
            .map_err(|reason| CheckpointError::Damaged { path: path.to_owned(), reason })
    }

    fn parse(bytes: &[u8], count: usize) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let state = header.metadata().as_ref().and_then(|m| m.get(STATE)).ok_or("it has no state")?;
        let state: State = serde_json::from_str(state).map_err(|e| e.to_string())?;
        if state.version != VERSION {
            return Err(format!("it has the layout {} and this program {VERSION}", state.version));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let numbers = |name: &str| -> Result<Vec<f32>, String> {
            let view = tensors.tensor(name).map_err(|e| e.to_string())?;
            let numbers: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if view.dtype() == Dtype::F32 && numbers.len() == count {
                Ok(numbers)
            } else {
                Err(format!("`{name}` has {} numbers and the adapter {count}", numbers.len()))
            }
        };
        let best = if tensors.names().contains(&"best") { Some(numbers("best")?) } else { None };
        let moments = AdamW { mean: numbers("mean")?, square: numbers("square")? };
        Ok(Self { state, numbers: numbers("numbers")?, moments, best })
    }
}

/// What a file holds; `None` when there is none.
fn bytes_at(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Io { what: "read", path: path.to_owned(), source }),
    }
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|v| v.to_le_bytes()).collect()
}
