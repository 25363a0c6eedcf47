//! The figures that a ranking is judged by, as `trec_eval` defines them.
//!
//! | figure | definition |
//! | --- | --- |
//! | nDCG@k | Σ gain ÷ log₂(rank + 1) over the first k, divided by that of the best order there is; the gain is the judgement itself (linear, as in `trec_eval -m ndcg_cut`) |
//! | MRR@k | 1 ÷ the rank of the first relevant document, 0 where none is among the first k |
//! | R@k | relevant documents among the first k, of all relevant ones |
//!
//! A document is relevant when its judgement is above 0. Questions without any relevant document do not count.

use std::collections::HashMap;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Judgements of one question: how relevant each judged document is.
pub type Judged = HashMap<String, u32>;

/// The figures of one ranking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// nDCG@10.
    pub ndcg_10: f64,
    /// MRR@10.
    pub mrr_10: f64,
    /// R@100.
    pub recall_100: f64,
}

impl Figures {
    /// Judges a ranking, best first, of different documents; `None` when no document is relevant.
    #[must_use]
    pub fn of<S: AsRef<str>>(ranked: &[S], judged: &Judged) -> Option<Self> {
        let relevant = judged.values().filter(|gain| **gain > 0).count();
        if relevant == 0 {
            return None;
        }
        let gain = |document: &S| f64::from(judged.get(document.as_ref()).copied().unwrap_or(0));
        let gains: Vec<f64> = ranked.iter().take(100).map(gain).collect();
        let mut best: Vec<f64> = judged.values().map(|gain| f64::from(*gain)).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        let first = gains.iter().take(10).position(|gain| *gain > 0.0);
        let found = gains.iter().filter(|gain| **gain > 0.0).count();
        Some(Self {
            ndcg_10: discounted(&gains, 10) / discounted(&best, 10),
            mrr_10: first.map_or(0.0, |at| 1.0 / (at + 1) as f64),
            recall_100: found as f64 / relevant as f64,
        })
    }
}

fn discounted(gains: &[f64], depth: usize) -> f64 {
    gains.iter().take(depth).enumerate().map(|(at, gain)| gain / (at as f64 + 2.0).log2()).sum()
}

/// A mean over questions, with the 95 % interval of its bootstrap distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// 2.5 % of resampled means are below.
    pub low: f64,
    /// 2.5 % of resampled means are above.
    pub high: f64,
}

/// How often questions are drawn anew for an interval.
const RESAMPLES: usize = 1_000;

impl Mean {
    /// Of some values; the same values give the same interval. Not a number when there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mean = |sum: f64| sum / values.len() as f64;
        if values.is_empty() {
            return Self { mean: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| mean((0..values.len()).map(|_| values[random.random_range(0..values.len())]).sum()))
            .collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
        Self { mean: mean(values.iter().sum()), low: at(0.025), high: at(0.975) }
    }
}

/// How often a number of the first kind is above one of the second, equal ones counted half: the area under the curve of telling them apart
/// by a bar. `None` where a kind has none.
#[must_use]
pub fn area(above: &[f64], below: &[f64]) -> Option<f64> {
    let higher = |a: f64, b: f64| if a == b { 0.5 } else { f64::from(u8::from(a > b)) };
    let pairs = above.iter().flat_map(|a| below.iter().map(move |b| (*a, *b)));
    let count = above.len() * below.len();
    (count > 0).then(|| pairs.map(|(a, b)| higher(a, b)).sum::<f64>() / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(gains: &[(&str, u32)]) -> Judged {
        gains.iter().map(|(document, gain)| ((*document).to_owned(), *gain)).collect()
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        let judged = judged(&[("a", 3), ("b", 1), ("c", 0), ("d", 2)]);
        let figures = Figures::of(&["c", "b", "x", "a"], &judged).unwrap();
        // Found: 1 / log2(3) + 3 / log2(5). Best: 3 / log2(2) + 2 / log2(3) + 1 / log2(4).
        let found = 1.0 / 3f64.log2() + 3.0 / 5f64.log2();
        let best = 3.0 + 2.0 / 3f64.log2() + 0.5;
        assert!((figures.ndcg_10 - found / best).abs() < 1e-12);
        assert!((figures.mrr_10 - 0.5).abs() < 1e-12);
        assert!((figures.recall_100 - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn depth_counts_and_questions_without_answers_do_not() {
        let ranked: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let figures = Figures::of(&ranked, &judged(&[("10", 1), ("99", 1), ("100", 1)])).unwrap();
        assert_eq!((figures.ndcg_10, figures.mrr_10), (0.0, 0.0));
        assert!((figures.recall_100 - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(Figures::of(&ranked, &judged(&[("1", 0)])), None);
        let perfect = Figures::of(&["p"], &judged(&[("p", 2)])).unwrap();
        assert_eq!((perfect.ndcg_10, perfect.mrr_10, perfect.recall_100), (1.0, 1.0, 1.0));
    }

    #[test]
    fn intervals_hold_the_mean_and_narrow_with_more_values() {
        let few = Mean::of(&[0.0, 1.0, 1.0, 0.0, 1.0]);
        let many = Mean::of(&[0.0, 1.0, 1.0, 0.0, 1.0].repeat(50));
        assert!((few.mean - 0.6).abs() < 1e-12 && (many.mean - 0.6).abs() < 1e-12);
        assert!(few.low <= 0.6 && few.high >= 0.6 && many.high - many.low < few.high - few.low);
        assert_eq!(Mean::of(&[0.5; 9]), Mean { mean: 0.5, low: 0.5, high: 0.5 });
        assert!(Mean::of(&[]).mean.is_nan());
    }
}
