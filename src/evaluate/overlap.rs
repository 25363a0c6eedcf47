//! chrF (Popović 2015): how much of two texts' runs of characters agree. It needs no word boundaries, so it serves Japanese as well.

use std::collections::HashMap;

/// The longest runs that are counted, as in the paper.
const LONGEST: usize = 6;
/// How much more recall counts than precision.
const BETA: f64 = 2.0;

/// The F-score of runs of 1 to 6 characters, spaces left out, averaged over the lengths that either text has: 0 to 1.
#[must_use]
pub fn chrf(hypothesis: &str, reference: &str) -> f64 {
    let characters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
    let (hypothesis, reference) = (characters(hypothesis), characters(reference));
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for n in 1..=LONGEST {
        let (ours, theirs) = (runs(&hypothesis, n), runs(&reference, n));
        let (total, wanted): (usize, usize) = (ours.values().sum(), theirs.values().sum());
        if total == 0 && wanted == 0 {
            continue;
        }
        let common: usize =
            ours.iter().map(|(run, count)| theirs.get(run).map_or(0, |t| *count.min(t))).sum();
        orders += 1.0;
        precision += common as f64 / total.max(1) as f64;
        recall += common as f64 / wanted.max(1) as f64;
    }
    if orders == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    let below = BETA * BETA * precision + recall;
    if below == 0.0 { 0.0 } else { (1.0 + BETA * BETA) * precision * recall / below }
}

fn runs(text: &[char], n: usize) -> HashMap<&[char], usize> {
    let mut counts = HashMap::new();
    text.windows(n).for_each(|run| *counts.entry(run).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_is_one_and_unlike_is_none() {
        assert!((chrf("Ring the ward", "Ring the ward") - 1.0).abs() < 1e-12);
        assert_eq!(chrf("abc", "xyz"), 0.0);
        assert_eq!(chrf("", ""), 0.0);
        assert!(
            (chrf("病棟に電話します", "病棟に電話してください")
                - chrf("病棟に電話 します", "病棟に電話してください"))
            .abs()
                < 1e-12
        );
        // Recall counts more.
        assert!(chrf("abcdef", "abc") > chrf("abc", "abcdef"));
    }

    /// Computed by hand for "ab" against "abc": runs of 1: 2/2 and 2/3; of 2: 1/1 and 1/2; of 3: 0 and 0.
    #[test]
    fn the_formula_is_the_papers() {
        let (p, r) = ((1.0 + 1.0 + 0.0) / 3.0, (2.0 / 3.0 + 0.5 + 0.0) / 3.0);
        assert!((chrf("ab", "abc") - 5.0 * p * r / (4.0 * p + r)).abs() < 1e-12);
    }
}
