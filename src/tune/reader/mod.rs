//! Readers: an adapter of the embedder that tells which sentence of the passages answers a question.
//!
//! It learns from the quotes of the examples that adapters of the language model learn from, and is a small part of their cost: an encoder of
//! some twenty million weights reads the question and each sentence once. [`settings`] say what from and how, [`examples`] are what is
//! learnt, [`graph`] is the loss and its gradient, [`ReaderRun`] the spine.

pub mod examples;
pub mod graph;
pub mod settings;

use std::path::{Path, PathBuf};
use std::time::Instant;

use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::checkpoint::{Checkpoint, CheckpointError, State};
use super::metrics::{Metrics, MetricsError};
use super::optimiser::{AdamW, clip, rate};
use super::progress::{Step, Watch, hash};
use crate::evaluate::metrics::area;
use crate::kernels::Cpu;
use crate::model::embed::adapter::{EncoderAdapter, EncoderMap};
use crate::model::embed::interaction::{COSINE, WORDS};
use crate::model::embed::{EmbedError, Model};
use crate::model::fingerprint;
use crate::quote::NEARNESS;
use examples::{ReaderExample, ReaderExamples, ReaderExamplesError};
use graph::ReaderGraph;
use settings::{ReaderSettings, ReaderTraining};

/// Examples that say where the score of none begins.
const LEVEL: usize = 64;

/// Why a reader was not trained.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The embedder.
    #[error(transparent)]
    Embedder(#[from] EmbedError),
    /// The data.
    #[error(transparent)]
    Examples(#[from] ReaderExamplesError),
    /// The embedder's weights.
    #[error("the embedder has weights that are not finite")]
    Weights,
    /// The run's state.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run's record.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The checkpoint is of another run.
    #[error(
        "{} holds a run with other settings, data or embedder; give --restart to throw it away, or choose another output",
        .0.display()
    )]
    Other(PathBuf),
    /// A number that is none.
    #[error(
        "step {step}: the loss of {place} is not a number; lower training.learning_rate, or leave that line out"
    )]
    NotFinite {
        /// The step.
        step: usize,
        /// File and line.
        place: String,
    },
    /// A gradient that is none.
    #[error("step {step}: the gradient is not a number; lower training.learning_rate")]
    Gradient {
        /// The step.
        step: usize,
    },
    /// What came out cannot be used.
    #[error("the numbers that were learnt cannot be written in half precision; lower training.learning_rate")]
    Broken,
    /// The adapter cannot be written.
    #[error("cannot write the reader: {0}")]
    Write(#[from] safetensors::SafeTensorError),
}

/// How often the preferred sentence is one that answers, how well none is told from some, and the mean loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Found {
    /// Share of the examples that are answered.
    pub share: f64,
    /// How many these are.
    pub answered: usize,
    /// How often an example that is answered has higher odds of that than one that is not; ½ where there are no two such.
    pub area: f64,
    /// In nats, of all.
    pub loss: f64,
    /// How many examples.
    pub of: usize,
}

/// What a finished run found.
#[derive(Debug, Clone, PartialEq)]
pub struct ReaderSummary {
    /// The adapter.
    pub adapter: EncoderAdapter,
    /// Steps done.
    pub steps: usize,
    /// Seconds that they took.
    pub seconds: f64,
    /// On `data.valid`, before the first step and after the last.
    pub valid: Option<[Found; 2]>,
    /// SHA-256 of the numbers.
    pub hash: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum ReaderOutcome {
    /// With a reader.
    Done(Box<ReaderSummary>),
    /// On request, at a step; it can be resumed.
    Stopped(usize),
}

/// A run, ready to train.
pub struct ReaderRun<'a> {
    settings: &'a ReaderSettings,
    model: Model,
    cpu: &'a Cpu,
    /// What is learnt from.
    pub train: ReaderExamples,
    /// What is looked at.
    pub valid: ReaderExamples,
}

impl<'a> ReaderRun<'a> {
    /// Opens the embedder and reads the data.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn load(settings: &'a ReaderSettings, embedder: &Path, cpu: &'a Cpu) -> Result<Self, ReaderError> {
        let model = crate::model::embed::open(embedder)?;
        let train = ReaderExamples::read(&settings.data.train, &model)?;
        let valid = ReaderExamples::read(&settings.data.valid, &model)?;
        Ok(Self { settings, model, cpu, train, valid })
    }

    /// SHA-256 of the embedder.
    #[must_use]
    pub fn embedder(&self) -> &str {
        &self.model.fingerprint
    }

    /// How many steps there are.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.settings.training.steps_over(self.train.examples.len())
    }

    /// Trains from the start, or on from where `folder` says that the run stands.
    ///
    /// # Errors
    /// When the state cannot be kept, or a loss is no number.
    pub fn train(&self, folder: &Path, watch: &mut dyn Watch) -> Result<ReaderOutcome, ReaderError> {
        let training = &self.settings.training;
        let scale = (self.settings.lora.alpha / self.settings.lora.rank as f64) as f32;
        let mut adapter = self.start(scale);
        let path = folder.join("checkpoint.safetensors");
        let identity = self.identity();
        if State::read(&path)?.is_some_and(|state| state.identity != identity) {
            return Err(ReaderError::Other(folder.to_owned()));
        }
        let resumed = Checkpoint::read(&path, adapter.numbers.len())?;
        let mut graph = ReaderGraph::new(&self.model.encoder, self.cpu, adapter.shape.rank, scale)
            .ok_or(ReaderError::Weights)?;
        let Some(none) = self.level(&mut graph, &adapter.numbers, watch) else {
            return Ok(ReaderOutcome::Stopped(resumed.map_or(0, |resumed| resumed.state.step)));
        };
        (graph.none, adapter.none) = (none, none);
        let mut metrics = Metrics::open(folder, resumed.as_ref().map(|resumed| resumed.state.step))?;
        let (mut state, mut moments) = match resumed {
            Some(resumed) => {
                adapter.numbers = resumed.numbers;
                (resumed.state, resumed.moments)
            }
            None => {
                let valid = self.look(&mut graph, &adapter.numbers, watch);
                let Some(valid) = valid else { return Ok(ReaderOutcome::Stopped(0)) };
                metrics.start(valid.map(|found| found.loss))?;
                (State::new(identity), AdamW::new(adapter.numbers.len()))
            }
        };
        let save = |state: &State, numbers: &[f32], moments: &AdamW| {
            let (state, moments) = (state.clone(), moments.clone());
            Checkpoint { state, numbers: numbers.to_vec(), moments, best: None }.write(&path)
        };
        let steps = self.steps();
        let mut slopes = vec![0f32; adapter.numbers.len()];
        while state.step < steps && !watch.stop() {
            let started = Instant::now();
            let number = state.step + 1;
            let members = self.members(state.step);
            slopes.fill(0.0);
            let (mut loss, mut tokens) = (0.0, 0);
            let share = 1.0 / members.len() as f32;
            for example in &members {
                let choice = graph.gradients(&adapter.numbers, example, share, &mut slopes);
                if !choice.loss.is_finite() {
                    return Err(ReaderError::NotFinite { step: number, place: example.place.clone() });
                }
                loss += choice.loss / members.len() as f64;
                tokens += example.tokens();
                if watch.stop() {
                    break;
                }
            }
            if watch.stop() {
                break;
            }
            let norm = clip(&mut slopes, training.clip);
            if !norm.is_finite() {
                return Err(ReaderError::Gradient { step: number });
            }
            let rate = rate(training.course(), number, steps);
            moments.step(&mut adapter.numbers, &slopes, rate, training.weight_decay, number);
            state.step = number;
            let seconds = started.elapsed().as_secs_f64();
            state.seconds += seconds;
            let step = Step {
                step: number,
                steps,
                loss,
                kl: None,
                rate,
                norm,
                tokens,
                targets: members.len(),
                seconds,
                valid: None,
                forgotten: None,
                over_budget: false,
            };
            metrics.step(&step)?;
            watch.step(&step);
            if number.is_multiple_of(training.checkpoint_every) {
                save(&state, &adapter.numbers, &moments)?;
            }
        }
        save(&state, &adapter.numbers, &moments)?;
        if state.step < steps {
            return Ok(ReaderOutcome::Stopped(state.step));
        }
        if !adapter.is_finite() {
            return Err(ReaderError::Broken);
        }
        // From nothing once more: a run that was resumed does not know it.
        let start = self.start(scale).numbers;
        let looks = [&start, &adapter.numbers].map(|numbers| self.look(&mut graph, numbers, watch));
        let [Some(before), Some(after)] = looks else { return Ok(ReaderOutcome::Stopped(state.step)) };
        Ok(ReaderOutcome::Done(Box::new(ReaderSummary {
            hash: hash(&adapter.numbers),
            adapter,
            steps: state.step,
            seconds: state.seconds,
            valid: before.zip(after).map(|(before, after)| [before, after]),
        })))
    }

    /// New matrices: A uniform within ±1/√inputs, as PEFT's Kaiming initialisation, and B zero, so that training starts at the embedder.
    fn start(&self, scale: f32) -> EncoderAdapter {
        let shape = self.model.encoder.adapter_shape(self.settings.lora.rank);
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.training.seed);
        let mut numbers = vec![0f32; shape.count()];
        for (layer, map) in (0..shape.layers).flat_map(|layer| EncoderMap::ALL.map(|map| (layer, map))) {
            let place = shape.place(layer, map);
            let bound = 1.0 / (place.shape.1 as f32).sqrt();
            numbers[place.a].iter_mut().for_each(|number| *number = random.random_range(-bound..bound));
        }
        EncoderAdapter { shape, scale, none: 0.0, numbers }
    }

    /// The score of none at which the first examples are as likely answered as not, so that training begins without a prejudice; `None` when it
    /// was asked to stop.
    fn level(&self, graph: &mut ReaderGraph<'_>, numbers: &[f32], watch: &dyn Watch) -> Option<f32> {
        graph.none = 0.0;
        let first: Vec<&ReaderExample> =
            (0..self.steps()).flat_map(|step| self.members(step)).take(LEVEL).collect();
        let mut sum = 0.0;
        for example in &first {
            if watch.stop() {
                return None;
            }
            sum += graph.decide(numbers, example).odds;
        }
        Some(sum / first.len().max(1) as f32)
    }

    /// The examples of a step, counted from 0: each epoch has an order of its own.
    fn members(&self, step: usize) -> Vec<&ReaderExample> {
        let (all, batch) = (&self.train.examples, self.settings.training.batch);
        let end = (all.len() * self.settings.training.epochs).min((step + 1) * batch);
        let mut members = Vec::with_capacity(batch);
        let (mut order, mut of) = (Vec::new(), None);
        for at in step * batch..end {
            let epoch = at / all.len();
            if of != Some(epoch) {
                order = (0..all.len()).collect();
                let mut random = ChaCha8Rng::seed_from_u64(self.settings.training.seed);
                random.set_stream(1 + epoch as u64);
                order.shuffle(&mut random);
                of = Some(epoch);
            }
            members.push(&all[order[at % all.len()]]);
        }
        members
    }

    /// How `data.valid` is decided; `None` when it was asked to stop halfway.
    fn look(&self, graph: &mut ReaderGraph<'_>, numbers: &[f32], watch: &dyn Watch) -> Option<Option<Found>> {
        let of = self.valid.examples.len();
        let (mut right, mut loss) = (0, 0.0);
        let (mut some, mut none) = (Vec::new(), Vec::new());
        for example in &self.valid.examples {
            if watch.stop() {
                return None;
            }
            let choice = graph.decide(numbers, example);
            right += usize::from(choice.right);
            loss += choice.loss;
            if example.is_answered() { &mut some } else { &mut none }.push(f64::from(choice.odds));
        }
        Some((of > 0).then(|| Found {
            share: right as f64 / some.len().max(1) as f64,
            answered: some.len(),
            area: area(&some, &none).unwrap_or(0.5),
            loss: loss / of as f64,
            of,
        }))
    }

    /// What the run's course depends on: what is learnt, and not the files that it came from.
    fn identity(&self) -> String {
        // How often it is kept changes nothing.
        let training = ReaderTraining { checkpoint_every: 1, ..self.settings.training.clone() };
        let examples = |set: &ReaderExamples| {
            let mut hash = Sha256::new();
            for example in &set.examples {
                hash.update(format!("{:?} {:?}", example.question, example.sentences));
            }
            crate::model::hex(&hash.finalize())
        };
        let (train, valid) = (examples(&self.train), examples(&self.valid));
        let settings = format!("{:?} {training:?} {NEARNESS} {COSINE} {WORDS}", self.settings.lora);
        fingerprint([&settings, &self.model.fingerprint, &train, &valid].map(String::as_bytes))
    }
}
