//! Cross-entropy and the divergence from the base, with their gradient.

use super::batch::Target;
use super::elementwise::exp;

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
