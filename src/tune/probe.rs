//! Before a long run: what it would take, and which learning rate it should have. Nothing of it is kept.

use std::time::Instant;

use serde::Serialize;

use super::examples::{Example, pack};
use super::graph::{Graph, Regularisation};
use super::optimiser::AdamW;
use super::parameters::Parameters;
use super::prefixes::Prefixes;
use super::progress::Watch;
use super::run::{Run, RunError, fill};
use super::settings::TrainingSettings;

/// What a run would take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Probe {
    /// Seconds of a step whose prompts have been read.
    pub step_seconds: f64,
    /// Seconds of the whole run, if nothing stops it early.
    pub seconds: f64,
    /// Bytes that what the base has read will take.
    pub prefix_bytes: u64,
}

/// What a learning rate did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tried {
    /// The rate.
    pub rate: f64,
    /// The mean loss of the last quarter of its steps; `None` when it was not finite.
    pub train: Option<f64>,
    /// The validation loss after them; `None` when it was not finite, or there is nothing to look at.
    pub valid: Option<f64>,
}

/// The rate with the lowest validation loss, or training loss where there is none.
#[must_use]
pub fn best(tried: &[Tried]) -> Option<f64> {
    let loss = |one: &Tried| one.valid.or(one.train).filter(|_| one.train.is_some());
    let finished = tried.iter().filter_map(|one| Some((one.rate, loss(one)?)));
    finished.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(rate, _)| rate)
}

impl Run<'_> {
    /// Does the first step twice without keeping it: what reading and running cost on this machine, and so the whole run.
    #[must_use]
    pub fn probe(&self, parameters: &Parameters) -> Probe {
        let mut graph = Graph::new(&self.model.decoder).checkpointing(self.settings.gradient_checkpointing);
        // Those of one step, whatever a run may keep.
        let mut prefixes = Prefixes::new(usize::MAX, self.settings.weights);
        let members = self.members(1);
        let mut slopes = vec![0f32; parameters.numbers.len()];
        let regularisation = Regularisation { dropout: self.dropout, seed: 1, kl: self.settings.kl };
        let mut turn = |prefixes: &mut Prefixes| {
            let started = Instant::now();
            for (mut batch, places) in pack(&members, self.settings.row_tokens, 1.0, 1.0) {
                fill(prefixes, &mut graph, &mut batch, &members, &places);
                graph.gradients(&batch, parameters, regularisation, &mut slopes);
            }
            started.elapsed().as_secs_f64()
        };
        let (first, second) = (turn(&mut prefixes), turn(&mut prefixes));
        let read: usize = members.iter().map(|e| e.late).sum();
        let run: usize = members.iter().map(|e| e.active().len()).sum();
        // Without a late adapter both turns do the same, and the first one warms up.
        let reading = if read > 0 { (first - second).max(0.0) / read as f64 } else { 0.0 };
        let running = second / run.max(1) as f64;
        let all = |examples: &[Example]| {
            let read: usize = examples.iter().map(|e| e.late).sum();
            (read, examples.iter().map(|e| e.active().len()).sum::<usize>())
        };
        let ((train_read, train_run), (valid_read, valid_run)) = (all(self.train), all(self.valid));
        let per_token = prefixes.bytes() as f64 / read.max(1) as f64;
        let kept = per_token * (train_read + valid_read) as f64;
        let memory = self.settings.prefix_megabytes as f64 * 1e6;
        let disk = match self.settings.prefix_folder.as_os_str().is_empty() {
            true => 0.0,
            false => self.settings.prefix_gigabytes as f64 * 1e9,
        };
        // Whatever memory holds is on disk too.
        let budget = memory.max(disk);
        // What has no room is read again in each epoch.
        let again = if kept > budget { 1.0 - budget / kept } else { 0.0 };
        let epochs = self.passes();
        let looks = match self.settings.evaluate_every {
            0 => epochs.ceil(),
            every => (self.steps() as f64 / every as f64).ceil(),
        };
        let seconds = reading * (train_read as f64 * epochs.min(1.0) + valid_read as f64)
            + reading * again * (train_read as f64 * (epochs - 1.0).max(0.0) + valid_read as f64 * looks)
            + running * train_run as f64 * epochs
            // A look runs forward only: about a third of a step.
            + running / 3.0 * valid_run as f64 * (looks + 1.0);
        Probe { step_seconds: second, seconds, prefix_bytes: kept.min(memory) as u64 }
    }

    /// Trains so many steps from the same start with each rate, the schedule drawn together to them.
    ///
    /// # Errors
    /// When it was asked to stop.
    pub fn rates(
        &self,
        parameters: &Parameters,
        rates: &[f64],
        steps: usize,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Tried>, RunError> {
        let mut graph = Graph::new(&self.model.decoder).checkpointing(self.settings.gradient_checkpointing);
        let mut prefixes = self.prefixes()?;
        let steps = steps.min(self.steps()).max(1);
        let mut tried = Vec::new();
        for rate in rates {
            let settings = TrainingSettings { learning_rate: *rate, ..self.settings.clone() };
            let run = Run { settings: &settings, identity: String::new(), ..*self };
            let mut own = parameters.clone();
            let mut moments = AdamW::new(own.numbers.len());
            let mut slopes = vec![0f32; own.numbers.len()];
            let mut losses = Vec::new();
            for number in 1..=steps {
                let started = Instant::now();
                let done = run.step(
                    number,
                    steps,
                    &mut graph,
                    &mut prefixes,
                    &mut own,
                    &mut moments,
                    &mut slopes,
                    watch,
                );
                match done {
                    Ok(Some(mut step)) => {
                        if let Some(trouble) = prefixes.trouble() {
                            watch.note(&trouble);
                        }
                        step.seconds = started.elapsed().as_secs_f64();
                        watch.step(&step);
                        losses.push(step.loss);
                    }
                    Ok(None) => return Err(RunError::Stopped),
                    // A rate that is too high ends so; the others are still of interest.
                    Err(RunError::NotFinite { .. }) => {
                        losses.clear();
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            let last = &losses[losses.len() - losses.len().div_ceil(4)..];
            let train = (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64);
            let valid = match train {
                None => None,
                Some(_) => match run.evaluate(&mut graph, &mut prefixes, &own, steps, watch) {
                    Err(RunError::NotFinite { .. }) => None,
                    valid => valid?,
                },
            };
            tried.push(Tried { rate: *rate, train, valid });
        }
        Ok(tried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_rate_is_the_one_with_the_lowest_loss_that_ended() {
        let one = |rate, train, valid| Tried { rate, train, valid };
        let tried = [
            one(1e-4, Some(1.0), Some(1.2)),
            one(2e-4, Some(0.8), Some(1.1)),
            one(5e-4, Some(0.5), Some(1.3)),
            one(1e-1, None, None),
        ];
        assert_eq!(best(&tried), Some(2e-4));
        assert_eq!(best(&tried.map(|t| Tried { valid: None, ..t })), Some(5e-4));
        assert_eq!(best(&tried[3..]), None);
    }
}
