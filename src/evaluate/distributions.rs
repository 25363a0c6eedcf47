//! Distributions of the next token, compared.

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
