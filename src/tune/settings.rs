//! `tune.toml`: what an adapter is for, what it learns from, and how.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::optimiser::Course;
use super::parameters::LoraShape;
use crate::files::{self, FileError};
use crate::model::template::{ChatTemplate, TemplateError};
use crate::model::tensors::Projection;
use crate::model::weights::WeightForm;

/// A run of tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneSettings {
    /// What the adapter should change, in a sentence; it goes into the model card.
    pub objective: String,
    /// The base model: a name, a GGUF file or a Hugging Face folder.
    pub base: String,
    /// The folder of the finished adapter; the run's own files go into `run` below it.
    pub output: PathBuf,
    /// What is learnt from.
    pub data: DataSettings,
    /// What is trained.
    #[serde(default)]
    pub lora: LoraSettings,
    /// How.
    #[serde(default)]
    pub training: TrainingSettings,
    /// What the adapter may cost.
    #[serde(default)]
    pub budget: BudgetSettings,
    /// What the model card says besides.
    #[serde(default)]
    pub card: CardSettings,
}

/// What the adapter may cost. Where a look finds more, training stops, and the best step within the budget is what comes out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSettings {
    /// Files of general text, paragraphs with a blank line between them.
    pub texts: Vec<PathBuf>,
    /// By what share more bits per byte the adapter may need for it than the base.
    pub forgetting: Option<f64>,
}

/// What the model card says besides what is known of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CardSettings {
    /// The adapter's licence, as an SPDX name.
    pub licence: Option<String>,
    /// What it is not for.
    pub limits: Option<String>,
}

/// What is learnt from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Files of chat examples.
    pub train: Vec<PathBuf>,
    /// Files of chat examples that are not trained on and say when to stop.
    #[serde(default)]
    pub valid: Vec<PathBuf>,
    /// Examples of what is known already, learnt along so that less is forgotten: the base's own answers to general questions
    /// (`shishin dataset replay` writes them), or what [`LoraSettings::from`] has learnt from.
    #[serde(default)]
    pub replay: Vec<PathBuf>,
    /// Their share of all examples; so many are drawn.
    #[serde(default = "default_replay_share")]
    pub replay_share: f64,
    /// Put the server's own instructions in front of examples that bring none, as serving does.
    #[serde(default = "yes")]
    pub instructions: bool,
    /// Examples with more tokens are refused.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSettings {
    /// Rank of every delta.
    pub rank: usize,
    /// Deltas are multiplied by alpha / rank.
    pub alpha: f64,
    /// Multiply by alpha / √rank instead.
    pub rslora: bool,
    /// Share of the inputs of A that is left out of a step.
    pub dropout: f32,
    /// The adapted maps: names such as `q_proj`, or `all-linear`.
    pub targets: Vec<String>,
    /// Where it begins (PEFT: activated LoRA, which begins at its invocation tokens). The base alone reads what is before, which makes training cheap where prompts are long and lets requests with and
    /// without the adapter share what has been read.
    pub begins: Begins,
    /// An adapter to go on from: a PEFT folder or a GGUF-LoRA file of the same rank, scale, targets and beginning. `None` for a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// How far what is written lies on the way from that adapter to what training made of it, in each number; 1 is all the way. Less keeps more
    /// of what it could before (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). Losses and budgets are those of all the way.
    #[serde(skip_serializing_if = "all_the_way")]
    pub interpolation: f32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn all_the_way(interpolation: &f32) -> bool {
    *interpolation == 1.0
}

/// Where an adapter begins to act.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begins {
    /// At the first token.
    #[default]
    Prompt,
    /// At the newest user's turn: instructions, passages and older turns are read by the base.
    Question,
    /// At the assistant's turn: the question too is read by the base.
    Answer,
}

impl Begins {
    /// The marks of the turn at which it begins; `None` for the first token.
    ///
    /// # Errors
    /// When the template marks no such turn.
    pub fn marks(self, template: &ChatTemplate) -> Result<Option<String>, TemplateError> {
        match self {
            Self::Prompt => Ok(None),
            Self::Question => template.question_prompt().map(Some),
            Self::Answer => template.generation_prompt().map(Some),
        }
    }
}

/// How it is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSettings {
    /// Passes over the data.
    pub epochs: usize,
    /// The most steps, which may end the run before all data was seen; 0 for whole passes.
    #[serde(skip_serializing_if = "is_zero")]
    pub steps: usize,
    /// Examples of a step.
    pub batch: usize,
    /// Tokens that run at once: examples are packed up to it, a longer one runs alone. More is faster and takes more memory.
    pub row_tokens: usize,
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
    /// Weight of the divergence from the base model on the same tokens.
    pub kl: f32,
    /// How many times as much as others those tokens weigh that choose whether and what an answer over passages quotes: its first one, in
    /// each quote those before which what it has said stands more than once in the prompt, and the first one behind the quotes. They are
    /// few among many that repeat what is chosen. Their divergence weighs as
    /// much; the losses that a run shows are unweighted.
    #[serde(skip_serializing_if = "is_one")]
    pub quote_weight: f32,
    /// Decides the start, the order and the dropout.
    pub seed: u64,
    /// Steps between evaluations on `data.valid`; 0 for once an epoch.
    pub evaluate_every: usize,
    /// Evaluations without a new best after which training stops; 0 to never stop early.
    pub patience: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
    /// Run each layer again on the way back instead of keeping what it made: less memory, more time, the same result.
    // Not written where it is off: it changes no result, and a run may go on that began before there was such a key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// Where [`LoraSettings::begins`] is not the prompt: megabytes for keeping what the base has read, so that it is not read again in each epoch.
    pub prefix_megabytes: usize,
    /// A folder that keeps it beyond that, for later epochs, resumed runs and other runs over the same data; empty for none.
    // These two change no result either.
    #[serde(skip_serializing_if = "is_empty")]
    pub prefix_folder: PathBuf,
    /// Gigabytes that the folder may hold.
    #[serde(skip_serializing_if = "is_zero")]
    pub prefix_gigabytes: usize,
    /// The base's weights: `stored` as served, or `f32`.
    pub weights: WeightForm,
    /// Threads; 0 for all cores.
    pub threads: usize,
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(number: &f32) -> bool {
    *number == 1.0
}

impl TrainingSettings {
    /// How the learning rate rises and falls.
    #[must_use]
    pub fn course(&self) -> Course {
        Course { learning_rate: self.learning_rate, warmup: self.warmup, final_rate: self.final_rate }
    }
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            rslora: false,
            dropout: 0.0,
            targets: vec![ALL_LINEAR.into()],
            begins: Begins::Prompt,
            from: None,
            interpolation: 1.0,
        }
    }
}

impl Default for TrainingSettings {
    fn default() -> Self {
        Self {
            epochs: 3,
            steps: 0,
            batch: 8,
            row_tokens: 1024,
            learning_rate: 1e-4,
            warmup: 0.06,
            final_rate: 0.1,
            weight_decay: 0.0,
            clip: 1.0,
            kl: 0.0,
            quote_weight: 1.0,
            seed: 1,
            evaluate_every: 0,
            patience: 3,
            checkpoint_every: 25,
            gradient_checkpointing: false,
            prefix_megabytes: 3000,
            prefix_folder: PathBuf::new(),
            prefix_gigabytes: 20,
            weights: WeightForm::Stored,
            threads: 0,
        }
    }
}

/// All linear maps of a block.
const ALL_LINEAR: &str = "all-linear";

fn yes() -> bool {
    true
}

fn default_replay_share() -> f64 {
    0.1
}

fn default_max_tokens() -> usize {
    2048
}

/// Why a run's settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum TuneSettingsError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value makes no sense.
    #[error("{}: {key} {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl TuneSettings {
    /// Reads and checks a file. Relative paths in it are relative to the current folder, as in all of the program's settings.
    ///
    /// # Errors
    /// When it cannot be read, or something in it makes no sense.
    pub fn read(path: &Path) -> Result<Self, TuneSettingsError> {
        let settings: Self = files::toml(path, &files::text(path)?)?;
        match settings.problem() {
            None => Ok(settings),
            Some((key, problem)) => Err(TuneSettingsError::Value { path: path.into(), key, problem }),
        }
    }

    /// The first thing that makes no sense: the key and what is wrong.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let (lora, training) = (&self.lora, &self.training);
        let share = |v: f64| (0.0..1.0).contains(&v);
        let checks = [
            ("objective", self.objective.trim().is_empty(), "says nothing; write what should change"),
            ("data.train", self.data.train.is_empty(), "names no file"),
            ("data.max_tokens", self.data.max_tokens < 16, "must be at least 16"),
            ("data.replay_share", !share(self.data.replay_share), "must be at least 0 and below 1"),
            (
                "budget.texts",
                self.budget.forgetting.is_some() == self.budget.texts.is_empty(),
                "and budget.forgetting need each other",
            ),
            (
                "budget.forgetting",
                self.budget.forgetting.is_some_and(|b| !(b.is_finite() && b >= 0.0)),
                "must be at least 0",
            ),
            (
                "budget.forgetting",
                self.budget.forgetting.is_some() && self.data.valid.is_empty(),
                "needs data.valid: without it nothing tells which step within the budget is best",
            ),
            (
                "lora.from",
                lora.from.as_ref() == Some(&self.output),
                "is the output, which would be written over what the run goes on from; name another output",
            ),
            (
                "lora.interpolation",
                !(lora.interpolation > 0.0 && lora.interpolation <= 1.0),
                "must be above 0 and at most 1",
            ),
            (
                "lora.interpolation",
                !all_the_way(&lora.interpolation) && lora.from.is_none(),
                "below 1 needs lora.from: a new adapter does nothing, so that there is nothing to keep",
            ),
            ("lora.rank", !(1..=256).contains(&lora.rank), "must be 1 to 256"),
            ("lora.alpha", !(lora.alpha > 0.0 && lora.alpha.is_finite()), "must be above 0"),
            ("lora.dropout", !share(f64::from(lora.dropout)), "must be at least 0 and below 1"),
            ("training.epochs", training.epochs == 0, "must be at least 1"),
            ("training.batch", training.batch == 0, "must be at least 1"),
            ("training.row_tokens", training.row_tokens < 16, "must be at least 16"),
            (
                "training.learning_rate",
                !(training.learning_rate > 0.0 && training.learning_rate < 1.0),
                "must be above 0 and below 1",
            ),
            ("training.warmup", !share(training.warmup), "must be at least 0 and below 1"),
            ("training.final_rate", !(0.0..=1.0).contains(&training.final_rate), "must be 0 to 1"),
            ("training.weight_decay", !share(training.weight_decay), "must be at least 0 and below 1"),
            ("training.clip", !(training.clip > 0.0 && training.clip.is_finite()), "must be above 0"),
            ("training.kl", !(training.kl >= 0.0 && training.kl.is_finite()), "must be at least 0"),
            (
                "training.quote_weight",
                !(training.quote_weight > 0.0 && training.quote_weight.is_finite()),
                "must be above 0",
            ),
            ("training.checkpoint_every", training.checkpoint_every == 0, "must be at least 1"),
            (
                "training.prefix_gigabytes",
                !is_empty(&training.prefix_folder) && training.prefix_gigabytes == 0,
                "must be at least 1; leave training.prefix_folder empty to keep nothing on disk",
            ),
        ];
        if let Some((key, _, problem)) = checks.into_iter().find(|(_, wrong, _)| *wrong) {
            return Some((key, problem.to_owned()));
        }
        self.targets().err().map(|problem| ("lora.targets", problem))
    }

    /// The adapted maps.
    fn targets(&self) -> Result<Vec<Projection>, String> {
        let names = Projection::ALL.map(Projection::hf_module);
        let mut targets = Vec::new();
        for name in &self.lora.targets {
            match Projection::ALL.into_iter().find(|p| p.hf_module() == name) {
                Some(projection) => targets.push(projection),
                None if name == ALL_LINEAR => targets.extend(Projection::ALL),
                None => return Err(format!("`{name}` is none of {ALL_LINEAR}, {}", names.join(", "))),
            }
        }
        targets.sort();
        targets.dedup();
        if targets.is_empty() { Err(format!("names no map; write [\"{ALL_LINEAR}\"]")) } else { Ok(targets) }
    }

    /// Rank, scale and targets of the adapter.
    #[must_use]
    pub fn shape(&self) -> LoraShape {
        let targets = self.targets().unwrap_or_default();
        LoraShape { rank: self.lora.rank, alpha: self.lora.alpha, rslora: self.lora.rslora, targets }
    }
}
