//! What a reader is for, what it learns from, and how.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::tune::optimiser::Course;
use crate::tune::settings::TuneSettingsError;

/// A run that trains a reader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderSettings {
    /// What it should tell, in a sentence; it goes into the card.
    pub objective: String,
    /// The embedder: a name, a file or a Hugging Face folder.
    pub embedder: String,
    /// The folder of the finished reader; the run's own files go into `run` below it.
    pub output: PathBuf,
    /// What is learnt from.
    pub data: ReaderData,
    /// What is trained.
    #[serde(default)]
    pub lora: ReaderLora,
    /// How.
    #[serde(default)]
    pub training: ReaderTraining,
    /// The reader's licence, as an SPDX name.
    #[serde(default)]
    pub licence: Option<String>,
}

/// What is learnt from: files that `shishin dataset ground --quotes` has written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderData {
    /// What is trained on.
    pub train: Vec<PathBuf>,
    /// What is looked at before the first step and after the last.
    #[serde(default)]
    pub valid: Vec<PathBuf>,
}

/// What is trained: two matrices beside every linear map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReaderLora {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// What B A x is multiplied by, times the rank.
    pub alpha: f64,
}

impl Default for ReaderLora {
    fn default() -> Self {
        Self { rank: 16, alpha: 16.0 }
    }
}

/// How a reader is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReaderTraining {
    /// Passes over the data.
    pub epochs: usize,
    /// The most steps, which may end the run before all data was seen; 0 for whole passes.
    pub steps: usize,
    /// Examples of a step.
    pub batch: usize,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// Share of the steps in which the rate rises to its largest.
    pub warmup: f64,
    /// The last step's rate, as a share of the largest; the rate falls to it along a cosine.
    pub final_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub clip: f64,
    /// Decides the start and the order.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
}

impl Default for ReaderTraining {
    fn default() -> Self {
        Self {
            epochs: 1,
            steps: 0,
            batch: 8,
            learning_rate: 5e-5,
            warmup: 0.06,
            final_rate: 0.05,
            weight_decay: 0.01,
            clip: 1.0,
            seed: 1,
            checkpoint_every: 20,
        }
    }
}

impl ReaderTraining {
    pub(super) fn course(&self) -> Course {
        let Self { learning_rate, warmup, final_rate, .. } = *self;
        Course { learning_rate, warmup, final_rate }
    }

    /// Steps over so many examples.
    pub(super) fn steps_over(&self, examples: usize) -> usize {
        let whole = (examples * self.epochs).div_ceil(self.batch);
        if self.steps == 0 { whole } else { self.steps.min(whole) }
    }
}

impl ReaderSettings {
    /// Reads settings.
    ///
    /// # Errors
    /// When the file cannot be read, has unknown keys, or says something that makes no sense.
    pub fn read(path: &Path) -> Result<Self, TuneSettingsError> {
        let settings: Self = files::toml(path, &files::text(path)?)?;
        match settings.problem() {
            None => Ok(settings),
            Some((key, problem)) => {
                Err(TuneSettingsError::Value { path: path.into(), key, problem: problem.into() })
            }
        }
    }

    fn problem(&self) -> Option<(&'static str, &'static str)> {
        let (lora, training) = (&self.lora, &self.training);
        let positive = |number: f64| number.is_finite() && number > 0.0;
        let share = |number: f64| (0.0..=1.0).contains(&number);
        let checks = [
            ("objective", self.objective.trim().is_empty(), "says nothing; write what it should tell"),
            ("embedder", self.embedder.is_empty(), "names none"),
            ("output", self.output.as_os_str().is_empty(), "names no folder"),
            ("data.train", self.data.train.is_empty(), "names no file"),
            ("lora.rank", !(1..=256).contains(&lora.rank), "must be from 1 to 256"),
            ("lora.alpha", !(lora.alpha > 0.0 && lora.alpha <= 1e6), "must be above 0 and at most 1,000,000"),
            ("training.epochs", !(1..=1000).contains(&training.epochs), "must be from 1 to 1000"),
            ("training.batch", training.batch == 0, "must be at least 1"),
            ("training.learning_rate", !positive(training.learning_rate), "must be above 0"),
            ("training.warmup", !share(training.warmup), "must be from 0 to 1"),
            ("training.final_rate", !share(training.final_rate), "must be from 0 to 1"),
            (
                "training.weight_decay",
                !(training.weight_decay.is_finite() && training.weight_decay >= 0.0),
                "must be at least 0",
            ),
            ("training.clip", !positive(training.clip), "must be above 0"),
            ("training.checkpoint_every", training.checkpoint_every == 0, "must be at least 1"),
        ];
        checks.into_iter().find(|(_, wrong, _)| *wrong).map(|(key, _, problem)| (key, problem))
    }
}
