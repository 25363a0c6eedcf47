//! The head: from the residual stream to losses, cross-entropy and the divergence from the base, with their gradient.

use super::batch::Target;
use super::elementwise::{self, exp};
use super::maps::frozen_back;
use crate::kernels::{Activations, Output, WeightType};
use crate::model::frozen::FrozenModel;

/// Rows of logits that are held at a time: a hundred rows of Qwen's vocabulary are 61 MB.
const HEAD_ROWS: usize = 64;

/// What a pass found.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// −log p of each target, in nats.
    pub nll: Vec<f32>,
    /// KL(base ‖ adapted) of each target's row, in nats; empty unless asked for.
    pub kl: Vec<f32>,
}

/// Losses of the picked rows, and their gradients if asked: through the norm's output to what goes into the norm is the caller's.
pub(super) fn head(
    model: &FrozenModel,
    picked: &[f32],
    base: Option<&[f32]>,
    targets: &[Target],
    kl: f32,
    mut slopes: Option<&mut Vec<f32>>,
) -> Losses {
    let hidden = model.config().hidden;
    let mut losses = Losses::default();
    for (at, targets) in targets.chunks(HEAD_ROWS).enumerate() {
        let own = at * HEAD_ROWS * hidden..(at * HEAD_ROWS + targets.len()) * hidden;
        let mut rows = logits(model, &picked[own.clone()]);
        let base = base.map(|base| logits(model, &base[own.clone()]));
        let mut found = vec![(0f32, 0f32); targets.len()];
        let vocab = model.config().vocab;
        let bases: Vec<Option<&[f32]>> = match &base {
            Some(base) => base.chunks_exact(vocab).map(Some).collect(),
            None => vec![None; targets.len()],
        };
        let work = targets.iter().zip(rows.chunks_exact_mut(vocab).zip(bases)).zip(&mut found);
        model.cpu().each(work.collect(), |((target, (row, base)), found)| {
            *found = cross_entropy(row, target, base, kl);
        });
        losses.nll.extend(found.iter().map(|f| f.0));
        if base.is_some() {
            losses.kl.extend(found.iter().map(|f| f.1));
        }
        if let Some(slopes) = &mut slopes {
            frozen_back(model.cpu(), &model.head.back, &rows, &mut slopes[own], false);
        }
    }
    losses
}

/// The logits of rows of the residual stream, as serving computes them.
fn logits(model: &FrozenModel, x: &[f32]) -> Vec<f32> {
    let (cpu, config, head) = (model.cpu(), model.config(), &model.head);
    let rows = x.len() / config.hidden;
    let mut normed = Activations::default();
    cpu.normalise(x, &model.output_norm, config.norm_eps as f32, false, &mut normed);
    let stride = config.vocab;
    if !matches!(head.weight.kind(), WeightType::Quantised(_)) {
        let mut to = vec![0f32; rows * stride];
        cpu.linear(&normed, &[head.part()], &mut [Output { to: &mut to, stride, add: false }]);
        return to;
    }
    let mut split = Activations::default();
    cpu.split(&normed, &mut split);
    let mut to = vec![0f32; 2 * rows * stride];
    cpu.linear(&split, &[head.part()], &mut [Output { to: &mut to, stride, add: false }]);
    let (high, low) = to.split_at_mut(rows * stride);
    elementwise::add(cpu, low, high);
    to.truncate(rows * stride);
    to
}

/// −log p of a target and KL(base ‖ adapted), both in nats; the row of logits becomes the gradient of weight · (nll + kl · KL).
pub(super) fn cross_entropy(row: &mut [f32], target: &Target, base: Option<&[f32]>, kl: f32) -> (f32, f32) {
    let token = target.token as usize;
    let log = log_normaliser(row);
    let nll = log - row[token];
    let mut divergence = 0.0;
    let pull = if base.is_some() { kl } else { 0.0 };
    match base {
        Some(base) => {
            let base_log = log_normaliser(base);
            for (z, b) in row.iter_mut().zip(base) {
                let p = exp(b - base_log);
                let q = *z - log;
                divergence += p * ((b - base_log) - q);
                *z = target.weight * ((1.0 + pull) * exp(q) - pull * p);
            }
        }
        None => row.iter_mut().for_each(|z| *z = target.weight * exp(*z - log)),
    }
    row[token] -= target.weight;
    (nll, divergence)
}

/// log Σ exp.
fn log_normaliser(row: &[f32]) -> f32 {
    let top = row.iter().fold(f32::NEG_INFINITY, |top, z| top.max(*z));
    // In two levels, so that a quarter of a million terms lose nothing.
    let sum: f32 = row.chunks(256).map(|part| part.iter().map(|z| exp(z - top)).sum::<f32>()).sum();
    top + sum.ln()
}
