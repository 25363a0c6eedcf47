//! The spine of a run: check that gradients flow, then step, evaluate, save, until the data is used up, the validation loss
//! rises, or someone asks to stop.
//!
//! What a step computes depends on the settings, the data, the base and the step's number alone: a run that was killed and
//! resumed ends with the same bytes on the same machine.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::batch::Batch;
use super::checkpoint::{Checkpoint, CheckpointError, State};
use super::examples::{Example, pack};
use super::graph::{Graph, Regularisation};
use super::loss::Losses;
use super::metrics::{Metrics, MetricsError};
use super::optimiser::{AdamW, clip, norm, rate};
use super::parameters::Parameters;
use super::prefix_folder::PrefixFolder;
use super::prefixes::Prefixes;
use super::progress::hash;
use super::settings::TrainingSettings;
use crate::model::BaseModel;
use crate::model::fingerprint;
use crate::model::frozen::FrozenModel;

pub use super::progress::{Outcome, Step, Summary, Watch, best};

/// Why a run ended without an adapter.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The record cannot be kept.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The folder for what the base has read cannot be used.
    #[error("training.prefix_folder: cannot use {}: {source}", path.display())]
    PrefixFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder belongs to another run.
    #[error(
        "{} holds a run with other settings, data, base or adapter to go on from; choose another output, or pass --restart to throw that run away",
        .0.display()
    )]
    Another(PathBuf),
    /// Someone asked for it.
    #[error("stopped")]
    Stopped,
    /// Some map would never learn.
    #[error("the self-test failed: {0}; nothing was trained")]
    SelfTest(String),
    /// The adapter forgets too much from the start.
    #[error(
        "general text takes {:.2} % more bits than by the base at the first look, and budget.forgetting allows {:.2} %; lower training.learning_rate, \
         look sooner (training.evaluate_every), or mix data.replay in", 100.0 * forgotten, 100.0 * budget
    )]
    Budget {
        /// By what share more.
        forgotten: f64,
        /// What is allowed.
        budget: f64,
    },
    /// Arithmetic overflowed.
    #[error(
        "step {step}: the {what} of {place} is {value}; look at what stands there, or lower training.learning_rate"
    )]
    NotFinite {
        /// The step; 0 before the first one.
        step: usize,
        /// Loss or gradient.
        what: &'static str,
        /// The example; all of a step where none alone is at fault.
        place: String,
        /// What it is.
        value: f64,
    },
}

/// What a run is made of.
pub struct Run<'a> {
    /// How to train.
    pub settings: &'a TrainingSettings,
    /// Share of the inputs of A that is left out.
    pub dropout: f32,
    /// The base.
    pub model: &'a BaseModel<FrozenModel>,
    /// What to learn from.
    pub train: &'a [Example],
    /// What to judge by.
    pub valid: &'a [Example],
    /// General text, and by what share more bits the adapter may need for it.
    pub budget: Option<(&'a [Example], f64)>,
    /// The folder for checkpoints and the record.
    pub folder: &'a Path,
    /// Hash of settings and data.
    pub identity: String,
}

impl Run<'_> {
    /// The checkpoint's file.
    fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    fn steps_per_epoch(&self) -> usize {
        self.train.len().div_ceil(self.settings.batch)
    }

    /// Steps of the whole run, if it is not stopped early.
    #[must_use]
    pub fn steps(&self) -> usize {
        let whole = self.settings.epochs * self.steps_per_epoch();
        if self.settings.steps == 0 { whole } else { whole.min(self.settings.steps) }
    }

    /// How often the whole run sees each example.
    #[must_use]
    pub fn passes(&self) -> f64 {
        self.steps() as f64 / self.steps_per_epoch().max(1) as f64
    }

    /// Examples of a step that counts from 1.
    #[must_use]
    pub fn members(&self, step: usize) -> Vec<&Example> {
        let (epoch, within) = ((step - 1) / self.steps_per_epoch(), (step - 1) % self.steps_per_epoch());
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        random.set_stream(1 + epoch as u64);
        order.shuffle(&mut random);
        let batch = order.iter().skip(within * self.settings.batch).take(self.settings.batch);
        batch.map(|at| &self.train[*at]).collect()
    }

    /// Room for what the base reads, in memory and on disk.
    pub(super) fn prefixes(&self) -> Result<Prefixes, RunError> {
        let TrainingSettings { prefix_folder, prefix_megabytes, prefix_gigabytes, weights, .. } =
            self.settings;
        let late = self.train.iter().chain(self.valid).any(|example| example.late > 0);
        let folder = (late && !prefix_folder.as_os_str().is_empty()).then(|| {
            let base = format!("{} {weights:?}", self.model.fingerprint);
            PrefixFolder::open(prefix_folder, &base, (*prefix_gigabytes as u64).saturating_mul(1_000_000_000))
                .map_err(|source| RunError::PrefixFolder { path: prefix_folder.clone(), source })
        });
        Ok(Prefixes::new(prefix_megabytes * 1_000_000, *weights).and_in(folder.transpose()?))
    }

    /// Trains, from the last checkpoint if there is one.
    ///
    /// # Errors
    /// When the folder belongs to another run, the disk refuses, gradients do not flow, or a loss or gradient is not finite.
    pub fn train(&self, parameters: Parameters, watch: &mut dyn Watch) -> Result<Outcome, RunError> {
        let mut done = 0;
        match self.go_on(parameters, &mut done, watch) {
            // Before the first step of this process, which has nothing to save yet.
            Err(RunError::Stopped) => Ok(Outcome::Stopped(done)),
            outcome => outcome,
        }
    }

    /// Trains; `done` becomes the step of the checkpoint that it goes on from.
    fn go_on(
        &self,
        mut parameters: Parameters,
        done: &mut usize,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, RunError> {
        let identity = fingerprint([self.identity.as_bytes(), self.model.fingerprint.as_bytes()]);
        let steps = self.steps();
        let mut graph = Graph::new(&self.model.decoder).checkpointing(self.settings.gradient_checkpointing);
        let mut prefixes = self.prefixes()?;
        let (mut state, mut moments, mut best);
        let mut metrics;
        match Checkpoint::read(&self.checkpoint(), parameters.numbers.len())? {
            Some(checkpoint) if checkpoint.state.identity != identity => {
                return Err(RunError::Another(self.folder.to_owned()));
            }
            Some(checkpoint) => {
                watch.note(&format!("resuming after step {}", checkpoint.state.step));
                (state, moments, best) = (checkpoint.state, checkpoint.moments, checkpoint.best);
                parameters.numbers = checkpoint.numbers;
                *done = state.step;
                // A step whose look was broken off is written down when that is done.
                let written = state.step.saturating_sub(usize::from(state.pending.is_some()));
                metrics = Metrics::open(self.folder, Some(written))?;
            }
            None => {
                // On new matrices, also where the run goes on from an adapter: what that has learnt already has so small a loss that the
                // jitter of 8-bit activations hides its rise.
                let new = Parameters::new(&self.model.config, parameters.shape().clone(), self.settings.seed);
                self.self_test(&mut graph, &mut prefixes, &new, watch)?;
                state = State::new(identity);
                (moments, best) = (AdamW::new(parameters.numbers.len()), None);
                metrics = Metrics::open(self.folder, None)?;
                let first = self.evaluate(&mut graph, &mut prefixes, &parameters, 0, watch)?;
                metrics.start(first)?;
                if let Some(loss) = first {
                    watch.note(&format!("validation loss before the first step: {loss:.4}"));
                }
            }
        }
        // The same numbers whenever they are asked for, so also after a resumption.
        let general = match self.budget {
            None => None,
            Some((texts, budget)) => {
                let base = self.losses(&mut graph, &mut prefixes, texts, None, state.step, watch)?;
                Some((texts, budget, base.unwrap_or(f64::NAN)))
            }
        };
        let evaluate_every = match self.settings.evaluate_every {
            0 => self.steps_per_epoch(),
            every => every,
        };
        let mut slopes = vec![0f32; parameters.numbers.len()];
        while state.pending.is_some() || (state.step < steps && !self.exhausted(&state)) {
            let started = Instant::now();
            let stepped = match state.pending.take() {
                Some(step) => Some(step),
                None => self.step(
                    state.step + 1,
                    steps,
                    &mut graph,
                    &mut prefixes,
                    &mut parameters,
                    &mut moments,
                    &mut slopes,
                    watch,
                )?,
            };
            let Some(mut step) = stepped else { break };
            state.step = step.step;
            if state.step.is_multiple_of(evaluate_every) || state.step == steps {
                match self.look(&mut graph, &mut prefixes, &parameters, general, state.step, watch) {
                    Err(RunError::Stopped) => {
                        // What the look finds decides how the run goes on, so that whoever resumes it begins with the look.
                        step.seconds += started.elapsed().as_secs_f64();
                        state.pending = Some(step);
                        break;
                    }
                    looked => (step.valid, step.forgotten) = looked?,
                }
                if let (Some(forgotten), Some((_, budget, _))) = (step.forgotten, general) {
                    // What is no number is no bargain either.
                    step.over_budget = forgotten.is_nan() || forgotten > budget;
                    state.over_budget = step.over_budget;
                    if state.over_budget {
                        watch.note(&over_budget(forgotten, budget));
                    }
                }
                if let Some(loss) = step.valid.filter(|_| !state.over_budget) {
                    if state.best.is_none_or(|(lowest, _)| loss < lowest) {
                        (state.best, state.worse) = (Some((loss, state.step)), 0);
                        best = Some(parameters.numbers.clone());
                    } else {
                        state.worse += 1;
                    }
                }
            }
            if let Some(trouble) = prefixes.trouble() {
                watch.note(&trouble);
            }
            step.seconds += started.elapsed().as_secs_f64();
            state.seconds += step.seconds;
            metrics.step(&step)?;
            watch.step(&step);
            if state.step.is_multiple_of(self.settings.checkpoint_every) {
                self.save(&state, &parameters, &moments, best.as_ref())?;
            }
        }
        self.save(&state, &parameters, &moments, best.as_ref())?;
        if state.pending.is_some() || (state.step < steps && !self.exhausted(&state)) {
            return Ok(Outcome::Stopped(state.step));
        }
        if let (true, None, Some((_, budget, _))) = (state.over_budget, &best, general) {
            let forgotten = metrics.forgotten().unwrap_or(f64::NAN);
            return Err(RunError::Budget { forgotten, budget });
        }
        let numbers = best.unwrap_or(parameters.numbers);
        let chosen = state.best.map_or(state.step, |(_, step)| step);
        let valid = metrics.first_valid().zip(state.best.map(|(loss, _)| loss));
        let hash = hash(&numbers);
        Ok(Outcome::Done(Summary { numbers, steps: state.step, chosen, valid, seconds: state.seconds, hash }))
    }

    /// Whether the validation loss has risen for long enough, or the budget was overrun.
    fn exhausted(&self, state: &State) -> bool {
        state.over_budget || (self.settings.patience > 0 && state.worse >= self.settings.patience)
    }

    fn save(
        &self,
        state: &State,
        parameters: &Parameters,
        moments: &AdamW,
        best: Option<&Vec<f32>>,
    ) -> Result<(), RunError> {
        let checkpoint = Checkpoint {
            state: state.clone(),
            numbers: parameters.numbers.clone(),
            moments: moments.clone(),
            best: best.cloned(),
        };
        Ok(checkpoint.write(&self.checkpoint())?)
    }

    /// One step; `None` when it was asked to stop halfway, which leaves everything as it was.
    #[allow(clippy::too_many_arguments, reason = "the parts of a run's state")]
    pub(super) fn step(
        &self,
        number: usize,
        steps: usize,
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        parameters: &mut Parameters,
        moments: &mut AdamW,
        slopes: &mut [f32],
        watch: &dyn Watch,
    ) -> Result<Option<Step>, RunError> {
        let members = self.members(number);
        let targets = targets_of(&members);
        let tokens = members.iter().map(|e| e.active().len()).sum();
        slopes.fill(0.0);
        let (mut loss, mut kl) = (0.0, 0.0);
        let rows =
            pack(&members, self.settings.row_tokens, 1.0 / targets.max(1) as f32, self.settings.quote_weight);
        for (at, (mut batch, places)) in rows.into_iter().enumerate() {
            if watch.stop() {
                return Ok(None);
            }
            fill(prefixes, graph, &mut batch, &members, &places);
            let seed = self.settings.seed ^ ((number as u64) << 20) ^ at as u64;
            let regularisation = Regularisation { dropout: self.dropout, seed, kl: self.settings.kl };
            let found = graph.gradients(&batch, parameters, regularisation, slopes);
            let sum: f64 = found.nll.iter().map(|l| f64::from(*l)).sum();
            if !sum.is_finite() {
                return Err(not_finite(number, &members, &places, &found));
            }
            loss += sum;
            kl += found.kl.iter().map(|l| f64::from(*l)).sum::<f64>();
        }
        let norm = clip(slopes, self.settings.clip);
        if !norm.is_finite() {
            let alone = self.culprit(&members, graph, prefixes, parameters, slopes);
            let (place, value) = alone.unwrap_or_else(|| {
                let all: Vec<&str> = members.iter().map(|example| example.place.as_str()).collect();
                (all.join(", "), norm)
            });
            return Err(RunError::NotFinite { step: number, what: "gradient", place, value });
        }
        let rate = rate(self.settings.course(), number, steps);
        moments.step(&mut parameters.numbers, slopes, rate, self.settings.weight_decay, number);
        let mean = |sum: f64| sum / targets.max(1) as f64;
        Ok(Some(Step {
            step: number,
            steps,
            loss: mean(loss),
            kl: (self.settings.kl > 0.0).then(|| mean(kl)),
            rate,
            norm,
            tokens,
            targets,
            seconds: 0.0,
            valid: None,
            forgotten: None,
            over_budget: false,
        }))
    }

    /// The first of a step's examples whose gradient is not finite where it runs alone, and that gradient's norm.
    fn culprit(
        &self,
        members: &[&Example],
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        parameters: &Parameters,
        slopes: &mut [f32],
    ) -> Option<(String, f64)> {
        let weight = 1.0 / targets_of(members).max(1) as f32;
        let regularisation = Regularisation { dropout: 0.0, seed: 0, kl: self.settings.kl };
        members.iter().find_map(|example| {
            let alone = [*example];
            slopes.fill(0.0);
            for (mut batch, places) in
                pack(&alone, self.settings.row_tokens, weight, self.settings.quote_weight)
            {
                fill(prefixes, graph, &mut batch, &alone, &places);
                graph.gradients(&batch, parameters, regularisation, slopes);
            }
            let norm = norm(slopes);
            (!norm.is_finite()).then(|| (example.place.clone(), norm))
        })
    }

    /// After a step: the validation loss, and by what share more bits general text takes, where there is a budget for it.
    fn look(
        &self,
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        parameters: &Parameters,
        general: Option<(&[Example], f64, f64)>,
        step: usize,
        watch: &dyn Watch,
    ) -> Result<(Option<f64>, Option<f64>), RunError> {
        let valid = self.evaluate(graph, prefixes, parameters, step, watch)?;
        let Some((texts, _, base)) = general else { return Ok((valid, None)) };
        let forgotten = match self.losses(graph, prefixes, texts, Some(parameters), step, watch) {
            // The budget ends the run then, with the best step within it.
            Err(RunError::NotFinite { .. }) => f64::NAN,
            own => own?.map_or(f64::NAN, |own| own / base - 1.0),
        };
        Ok((valid, Some(forgotten)))
    }

    /// The mean loss of the validation examples' targets; `None` where there are none.
    pub(super) fn evaluate(
        &self,
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        parameters: &Parameters,
        step: usize,
        watch: &dyn Watch,
    ) -> Result<Option<f64>, RunError> {
        self.losses(graph, prefixes, self.valid, Some(parameters), step, watch)
    }

    /// The mean loss of examples' targets after a step, by the base where there are no parameters; `None` where there are no examples.
    fn losses(
        &self,
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        examples: &[Example],
        parameters: Option<&Parameters>,
        step: usize,
        watch: &dyn Watch,
    ) -> Result<Option<f64>, RunError> {
        let all: Vec<&Example> = examples.iter().collect();
        let (mut sum, mut count) = (0.0, 0);
        self.each_batch(graph, prefixes, &all, parameters, step, &|| watch.stop(), |_, _, losses| {
            sum += losses.iter().map(|l| f64::from(*l)).sum::<f64>();
            count += losses.len();
        })?;
        Ok((count > 0).then(|| sum / count as f64))
    }

    /// What a batch's targets cost after a step, by the base where there are no parameters, for each of the batches that the examples are
    /// packed into: the batch, the places of its examples among them, and −ln p of its targets. All of them are finite.
    #[allow(clippy::too_many_arguments, reason = "the parts of a run's state")]
    pub(super) fn each_batch(
        &self,
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        examples: &[&Example],
        parameters: Option<&Parameters>,
        step: usize,
        stop: &dyn Fn() -> bool,
        mut found: impl FnMut(&Batch, &[usize], &[f32]),
    ) -> Result<(), RunError> {
        for (mut batch, places) in pack(examples, self.settings.row_tokens, 1.0, 1.0) {
            if stop() {
                return Err(RunError::Stopped);
            }
            fill(prefixes, graph, &mut batch, examples, &places);
            let losses = graph.losses(&batch, parameters);
            // It would be the best there is, and a checkpoint could not hold it.
            if losses.nll.iter().any(|loss| !loss.is_finite()) {
                return Err(not_finite(step, examples, &places, &losses));
            }
            found(&batch, &places, &losses.nll);
        }
        Ok(())
    }
}

/// Tokens that examples have to learn.
fn targets_of(members: &[&Example]) -> usize {
    members.iter().map(|e| e.learnt.iter().filter(|learnt| **learnt).count()).sum()
}

fn over_budget(forgotten: f64, budget: f64) -> String {
    let (forgotten, budget) = (100.0 * forgotten, 100.0 * budget);
    format!(
        "general text takes {forgotten:.2} % more bits than by the base; the budget allows {budget:.2} %, so the run ends"
    )
}

/// Names the first example whose loss is not finite.
fn not_finite(step: usize, members: &[&Example], places: &[usize], losses: &Losses) -> RunError {
    let mut at = 0;
    for place in places {
        let example = members[*place];
        let count = example.learnt.iter().skip(1).filter(|learnt| **learnt).count();
        let own = losses.nll.iter().skip(at).take(count).map(|l| f64::from(*l)).sum::<f64>();
        if !own.is_finite() {
            return RunError::NotFinite { step, what: "loss", place: example.place.clone(), value: own };
        }
        at += count;
    }
    RunError::NotFinite { step, what: "loss", place: "the batch".into(), value: f64::NAN }
}

/// Puts in front of a batch's sequences what the base has read before them.
pub(super) fn fill(
    prefixes: &mut Prefixes,
    graph: &mut Graph<'_>,
    batch: &mut Batch,
    members: &[&Example],
    places: &[usize],
) {
    let members: Vec<&Example> = places.iter().map(|at| members[*at]).collect();
    prefixes.fill(graph, batch, &members);
}
