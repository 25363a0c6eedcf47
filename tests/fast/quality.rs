//! How far quantised activations and a half-precision cache move the next-token distribution.

use shishin::model::weights::WeightForm;

use super::common;
use super::{all_logits, cpu, guideline_tokens, load};

/// Mean of KL(p ‖ q) in nats over positions, and the perplexities of both on the text.
pub(crate) struct Quality {
    pub(crate) kl: f64,
    pub(crate) perplexity: f64,
    pub(crate) reference: f64,
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().fold(f64::NEG_INFINITY, |top, v| top.max(f64::from(*v)));
    let sum: f64 = logits.iter().map(|v| (f64::from(*v) - top).exp()).sum();
    logits.iter().map(|v| f64::from(*v) - top - sum.ln()).collect()
}

/// Compares logits of all positions of a text; `ours` and `theirs` are of shape (positions, vocab).
pub(crate) fn compare(ours: &[f32], theirs: &[f32], tokens: &[u32]) -> Quality {
    let vocab = ours.len() / tokens.len();
    let (mut kl, mut nll, mut nll_reference) = (0.0, 0.0, 0.0);
    for (at, (q, p)) in ours.chunks_exact(vocab).zip(theirs.chunks_exact(vocab)).enumerate() {
        let (q, p) = (log_softmax(q), log_softmax(p));
        kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        if let Some(next) = tokens.get(at + 1) {
            nll -= q[*next as usize];
            nll_reference -= p[*next as usize];
        }
    }
    let n = (tokens.len() - 1) as f64;
    Quality {
        kl: kl / tokens.len() as f64,
        perplexity: (nll / n).exp(),
        reference: (nll_reference / n).exp(),
    }
}

/// The figures on 4,000 tokens come from `shishin bench --only quality`; this keeps a piece of them.
#[test]
fn the_served_decoder_is_close_to_the_reference_in_floats() {
    for (name, path) in common::models() {
        let fast = load(&path, WeightForm::Stored, cpu());
        let reference = shishin::model::BaseModel::load(&path, WeightForm::F32, None).unwrap();
        for language in ["en", "ja"] {
            let tokens = guideline_tokens(&fast, language, 160);
            let ours = all_logits(&fast, &tokens, None);
            let theirs = common::all_logits(&reference, &tokens, None);
            let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let Quality { kl, perplexity, reference } = compare(&ours, &theirs, &tokens);
            println!("{name} {language}: KL {kl:.5}, perplexity {perplexity:.3}, reference {reference:.3}");
            assert!(kl < 0.02, "{name} {language}: KL {kl}");
            assert!((perplexity / reference - 1.0).abs() < 0.08, "{name}: {perplexity} against {reference}");
        }
    }
}
