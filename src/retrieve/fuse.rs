//! Fusion of two rankings of the same chunks: by ranks, and by scores.
//!
//! Scores of words and of vectors have nothing in common, so they are never added as they are: either only ranks count, or each
//! ranking's scores are first brought between 0 and 1.

use std::collections::HashMap;

/// A chunk's number and its score.
pub type Scored = (usize, f32);

/// What a rank is added to, in [`reciprocal_ranks`]; the value of Cormack et al. 2009, who introduced it.
pub const RANK_OFFSET: f32 = 60.0;

/// Reciprocal rank fusion: Σ weight ÷ (60 + rank) over the rankings that hold a chunk, ranks from 1. Best first; of equal ones the
/// chunk that comes first.
#[must_use]
pub fn reciprocal_ranks(rankings: &[(&[Scored], f32)]) -> Vec<Scored> {
    let mut sums: HashMap<usize, f32> = HashMap::new();
    for (ranking, weight) in rankings {
        for (rank, (row, _)) in ranking.iter().enumerate() {
            *sums.entry(*row).or_default() += weight / (RANK_OFFSET + rank as f32 + 1.0);
        }
    }
    in_order(sums)
}

/// The weighted average of scores brought between 0 (the worst of a ranking) and 1 (its best); a chunk that a ranking does not hold
/// has 0 there. Best first; of equal ones the chunk that comes first.
#[must_use]
pub fn normalised_average(rankings: &[(&[Scored], f32)]) -> Vec<Scored> {
    let total: f32 = rankings.iter().map(|(_, weight)| weight).sum();
    let mut sums: HashMap<usize, f32> = HashMap::new();
    for (ranking, weight) in rankings {
        let best = ranking.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
        let worst = ranking.iter().map(|(_, score)| *score).fold(f32::INFINITY, f32::min);
        for (row, score) in *ranking {
            let share = if best > worst { (score - worst) / (best - worst) } else { 1.0 };
            *sums.entry(*row).or_default() += share * weight / total;
        }
    }
    in_order(sums)
}

fn in_order(sums: HashMap<usize, f32>) -> Vec<Scored> {
    let mut fused: Vec<Scored> = sums.into_iter().collect();
    fused.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chunk_that_both_hold_comes_first() {
        let (words, vectors) = (&[(1, 9.0), (2, 8.0), (3, 1.0)][..], &[(2, 0.9), (4, 0.89), (5, 0.1)][..]);
        for fused in [
            reciprocal_ranks(&[(words, 1.0), (vectors, 1.0)]),
            normalised_average(&[(words, 1.0), (vectors, 1.0)]),
        ] {
            assert_eq!(fused[0].0, 2);
            assert_eq!(fused.len(), 5);
        }
        let ranks = reciprocal_ranks(&[(words, 1.0), (vectors, 1.0)]);
        assert!((ranks[0].1 - (1.0 / 62.0 + 1.0 / 61.0)).abs() < 1e-6);
        let average = normalised_average(&[(words, 1.0), (vectors, 3.0)]);
        assert!((average[0].1 - (0.25 * 7.0 / 8.0 + 0.75)).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_one_ranking_keeps_its_order(
            scores in proptest::collection::vec(0u32..1_000, 1..40),
        ) {
            let mut ranking: Vec<Scored> = scores.iter().enumerate().map(|(row, s)| (row, *s as f32)).collect();
            ranking.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let order: Vec<usize> = ranking.iter().map(|(row, _)| *row).collect();
            for fused in [reciprocal_ranks(&[(&ranking, 1.0)]), normalised_average(&[(&ranking, 2.0)])] {
                prop_assert_eq!(fused.iter().map(|(row, _)| *row).collect::<Vec<_>>(), order.clone());
                prop_assert!(fused.iter().all(|(_, score)| (0.0..=1.0).contains(score)));
            }
        }
    }
}
