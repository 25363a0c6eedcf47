//! A run's record: one line of JSON for each step, for people and programs to follow; the same for TensorBoard, and as a picture.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::checkpoint::{CheckpointError, write_whole};
use super::plot::{self, PlotError};
use super::progress::Step;
use super::tensorboard::Events;

/// Why the record cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The disk.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The record could not be cut back.
    #[error(transparent)]
    Cut(#[from] CheckpointError),
    /// The picture could not be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
}

/// The record of a run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    folder: PathBuf,
    file: File,
    events: Events,
    steps: Vec<Step>,
    first_valid: Option<f64>,
}

/// The line before the first step's.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Start {
    step: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid: Option<f64>,
}

impl Metrics {
    /// Opens the record of a run, that stands at a step if it is resumed; what was written beyond it, before the program was ended, is cut off.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(folder: &Path, resumed: Option<usize>) -> Result<Self, MetricsError> {
        let path = folder.join("metrics.jsonl");
        let fail = |source| MetricsError::Io { path: path.clone(), source };
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(fail(e)),
        };
        let (mut steps, mut first_valid, mut kept) = (Vec::new(), None, String::new());
        let step = resumed.unwrap_or_default();
        for line in text.lines().filter(|_| resumed.is_some()) {
            match (serde_json::from_str::<Step>(line), serde_json::from_str::<Start>(line)) {
                (Ok(done), _) if done.step <= step => steps.push(done),
                (Err(_), Ok(start)) if start.step == 0 => first_valid = start.valid,
                _ => continue,
            }
            kept.push_str(line);
            kept.push('\n');
        }
        write_whole(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(fail)?;
        let events = Events::create(folder, &steps).map_err(fail)?;
        Ok(Self { path, folder: folder.to_owned(), file, events, steps, first_valid })
    }

    /// Writes the loss before the first step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn start(&mut self, valid: Option<f64>) -> Result<(), MetricsError> {
        self.first_valid = valid;
        self.line(&Start { step: 0, valid })
    }

    /// Writes a step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn step(&mut self, step: &Step) -> Result<(), MetricsError> {
        self.steps.push(step.clone());
        self.line(step)?;
        let written = self.events.step(step);
        written.map_err(|source| MetricsError::Io { path: self.events.path().to_owned(), source })?;
        // As often as there is something new to see in it; it takes a tenth of a second.
        if step.valid.is_some() || step.step == step.steps {
            plot::draw(&self.folder, self.first_valid, &self.steps)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &impl serde::Serialize) -> Result<(), MetricsError> {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        self.file.write_all(&text).map_err(|source| MetricsError::Io { path: self.path.clone(), source })
    }

    /// What the last look found of general text.
    #[must_use]
    pub fn forgotten(&self) -> Option<f64> {
        self.steps.iter().rev().find_map(|step| step.forgotten)
    }

    /// The validation loss before the first step.
    #[must_use]
    pub fn first_valid(&self) -> Option<f64> {
        self.first_valid
    }

    /// The steps so far.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}
