//! Distributions of the next token, compared.

use crate::kernels::KvCache;
use crate::model::BaseModel;
use crate::model::decoder::DecodeError;
use crate::model::fast::{FastDecoder, PackedAdapter, Piece, Workspace};

/// The logarithms of the probabilities of logits.
#[must_use]
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().fold(f64::NEG_INFINITY, |top, v| top.max(f64::from(*v)));
    let sum: f64 = logits.iter().map(|v| (f64::from(*v) - top).exp()).sum();
    logits.iter().map(|v| f64::from(*v) - top - sum.ln()).collect()
}

/// KL(p ‖ q) of logarithms of probabilities, in nats.
#[must_use]
pub fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// The most likely token.
#[must_use]
pub fn most_likely(log_probabilities: &[f64]) -> Option<usize> {
    (0..log_probabilities.len()).max_by(|a, b| log_probabilities[*a].total_cmp(&log_probabilities[*b]))
}

/// The logarithms of the probabilities of every token, before each of the last `count`.
///
/// # Errors
/// When `stop` says so.
pub fn predictions(
    model: &BaseModel<FastDecoder>,
    tokens: &[u32],
    count: usize,
    adapter: Option<(&PackedAdapter, usize)>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Vec<f64>>, DecodeError> {
    let pages: Vec<u32> = (0..tokens.len().div_ceil(KvCache::PAGE) as u32).collect();
    let mut cache = KvCache::new(model.decoder.cache_shape(), pages.len());
    let mut workspace = Workspace::default();
    let piece = Piece {
        tokens,
        position: 0,
        pages: &pages,
        adapter: adapter.map(|(adapter, _)| adapter),
        before: adapter.map_or(tokens.len(), |(_, at)| at),
        logits: count + 1,
    };
    let logits = model.decoder.forward(&[piece], &mut cache, &mut workspace, stop)?;
    Ok(logits.chunks_exact(model.config.vocab).take(count).map(log_softmax).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_compared_in_nats() {
        let (p, q) = (log_softmax(&[0.0, 0.0]), log_softmax(&[0.0, 3f32.ln()]));
        assert!((p[0] - 0.5f64.ln()).abs() < 1e-12 && (q[1] - 0.75f64.ln()).abs() < 1e-6);
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-6);
        assert_eq!(divergence(&p, &p), 0.0);
        assert_eq!(most_likely(&q), Some(1));
    }
}
