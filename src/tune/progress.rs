//! What a run tells of itself: its steps while it goes on, and what it found at the end.

use serde::{Deserialize, Serialize};

use crate::model::hex;

/// What one step did.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Step {
    /// Its number, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// The mean loss of its targets, in nats.
    pub loss: f64,
    /// The mean divergence from the base, in nats, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// The learning rate.
    pub rate: f64,
    /// The norm of the gradient before it was scaled down.
    pub norm: f64,
    /// Tokens that ran with the adapter. What the base alone has read before a late one is not among them: mostly it was read before, and
    /// how much of it depends on the room for it.
    pub tokens: usize,
    /// Tokens that were learnt.
    pub targets: usize,
    /// How long it took.
    pub seconds: f64,
    /// The mean loss on the validation examples after it, where they were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<f64>,
    /// By what share more bits general text takes than by the base, where there is a budget for it and it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten: Option<f64>,
    /// Whether that is more than the budget allows, so that the step ends the run and is not what comes out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over_budget: bool,
}

/// The step whose numbers a run that has these steps and no more ends with, of those at which the validation examples were looked at.
#[must_use]
pub fn best(steps: &[Step]) -> Option<usize> {
    let looks =
        steps.iter().filter(|step| !step.over_budget).filter_map(|step| Some((step.valid?, step.step)));
    looks.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, step)| step)
}

/// Whoever watches a run.
pub trait Watch {
    /// Something worth a line.
    fn note(&mut self, line: &str);
    /// A step was done.
    fn step(&mut self, step: &Step);
    /// Whether to stop.
    fn stop(&self) -> bool;
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With an adapter.
    Done(Summary),
    /// On request, at a step; it can be resumed.
    Stopped(usize),
}

/// What a finished run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The adapter's numbers.
    #[serde(skip)]
    pub numbers: Vec<f32>,
    /// Steps done.
    pub steps: usize,
    /// The step that the numbers are of.
    pub chosen: usize,
    /// The loss on the validation examples before the first step and at the chosen one.
    pub valid: Option<(f64, f64)>,
    /// Seconds that the steps took.
    pub seconds: f64,
    /// SHA-256 of the numbers.
    pub hash: String,
}

impl Summary {
    /// With numbers so far on the way from those that training started from.
    #[must_use]
    pub fn interpolated(mut self, start: &[f32], share: f32) -> Self {
        if share < 1.0 {
            for (number, start) in self.numbers.iter_mut().zip(start) {
                *number = start + share * (*number - start);
            }
            self.hash = hash(&self.numbers);
        }
        self
    }
}

/// SHA-256 over numbers as little-endian 32-bit floats.
pub(super) fn hash(numbers: &[f32]) -> String {
    let bytes = numbers.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_step_is_within_the_budget() {
        let step = |step: usize, valid: Option<f64>, over_budget: bool| Step {
            step,
            steps: 9,
            loss: 1.0,
            kl: None,
            rate: 1e-4,
            norm: 1.0,
            tokens: 1,
            targets: 1,
            seconds: 1.0,
            valid,
            forgotten: valid,
            over_budget,
        };
        let looks = [
            step(1, None, false),
            step(2, Some(1.5), false),
            step(3, Some(1.5), false),
            step(4, Some(1.0), true),
        ];
        assert_eq!(best(&looks), Some(2), "the lowest loss is over the budget, and of two the first counts");
        assert_eq!(best(&looks[..1]), None);
        // A record of before says nothing of a budget.
        let line = serde_json::to_string(&looks[1]).unwrap();
        assert!(!line.contains("over_budget"), "{line}");
        assert_eq!(serde_json::from_str::<Step>(&line).unwrap(), looks[1]);
    }
}
