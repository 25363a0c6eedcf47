//! Rates with what is uncertain about them: Wilson's interval (Wilson 1927) for one, a paired bootstrap (Efron 1979) and McNemar's exact test
//! (McNemar 1947) for the difference of two that were found on the same questions.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;

/// How often something held.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How often.
    pub held: usize,
    /// Of how many.
    pub of: usize,
    /// Their quotient; 0 of none.
    pub rate: f64,
    /// The 95 % interval by Wilson's score.
    pub interval: (f64, f64),
}

impl Rate {
    /// The rate of a list of outcomes.
    #[must_use]
    pub fn of(outcomes: &[bool]) -> Self {
        /// The 97.5th percentile of the normal distribution.
        const Z: f64 = 1.959_963_985;
        let (held, of) = (outcomes.iter().filter(|held| **held).count(), outcomes.len());
        if of == 0 {
            return Self { held, of, rate: 0.0, interval: (0.0, 1.0) };
        }
        let (n, p) = (of as f64, held as f64 / of as f64);
        let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self { held, of, rate: p, interval: ((middle - half).max(0.0), (middle + half).min(1.0)) }
    }
}

/// By how much one rate is above another on the same questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The second rate minus the first.
    pub difference: f64,
    /// The 95 % interval by the percentiles of the bootstrap.
    pub interval: (f64, f64),
    /// Two-sided: twice the share of resamples on the other side of zero, at least 1 / resamples. Of what holds or does not, the larger of that
    /// and of McNemar's exact test: resamples of few questions that differ are too sure, .009 where five of five went one way (exactly .0625).
    pub p: f64,
    /// Questions on which the second is above the first.
    #[serde(default)]
    pub won: usize,
    /// Questions on which it is below.
    #[serde(default)]
    pub lost: usize,
    /// All questions on which both were held against each other.
    #[serde(default)]
    pub of: usize,
}

impl Difference {
    /// The difference of two lists of outcomes, question by question; `None` for none.
    #[must_use]
    pub fn between(first: &[bool], second: &[bool], seed: u64) -> Option<Self> {
        let number = |held: &bool| f64::from(u8::from(*held));
        let steps: Vec<f64> = first.iter().zip(second).map(|(a, b)| number(b) - number(a)).collect();
        let bootstrap = Self::of(&steps, seed)?;
        Some(Self { p: bootstrap.p.max(exact(bootstrap.won, bootstrap.lost)), ..bootstrap })
    }

    /// The mean of differences, one for each question; `None` for none.
    #[must_use]
    pub fn of(steps: &[f64], seed: u64) -> Option<Self> {
        if steps.is_empty() {
            return None;
        }
        let count = steps.len() as f64;
        let difference = steps.iter().sum::<f64>() / count;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                (0..steps.len()).map(|_| steps[random.random_range(0..steps.len())]).sum::<f64>() / count
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let share = |side: &dyn Fn(f64) -> bool| means.iter().filter(|m| side(**m)).count() as f64;
        let other = share(&|m| m <= 0.0).min(share(&|m| m >= 0.0)).max(0.5) * 2.0 / RESAMPLES as f64;
        let at = |share: f64| means[((share * RESAMPLES as f64) as usize).min(RESAMPLES - 1)];
        let count = |side: &dyn Fn(f64) -> bool| steps.iter().filter(|step| side(**step)).count();
        Some(Self {
            difference,
            interval: (at(0.025), at(0.975)),
            p: other.min(1.0),
            won: count(&|step| step > 0.0),
            lost: count(&|step| step < 0.0),
            of: steps.len(),
        })
    }
}

/// How often chance alone divides so many questions that differ at least as unevenly: the binomial test of McNemar, two-sided.
fn exact(won: usize, lost: usize) -> f64 {
    let differ = won + lost;
    // The logarithm of `differ` over k, times a half to the power of `differ`: the powers alone would be too small for a number.
    let mut log = -(differ as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=won.min(lost) {
        tail += log.exp();
        log += ((differ - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_literature() {
        // Newcombe 1998, table I: 81 of 263 and 0 of 20.
        let rate = Rate::of(&(0..263).map(|n| n < 81).collect::<Vec<_>>());
        assert!((rate.interval.0 - 0.2553).abs() < 1e-4 && (rate.interval.1 - 0.3662).abs() < 1e-4);
        let none = Rate::of(&[false; 20]);
        assert!(none.interval.0 == 0.0 && (none.interval.1 - 0.1611).abs() < 1e-4);
        assert_eq!(Rate::of(&[]).interval, (0.0, 1.0));
    }

    #[test]
    fn a_difference_is_certain_where_it_is_everywhere_the_same() {
        let (all, none) = ([true; 30], [false; 30]);
        let gain = Difference::between(&none, &all, 1).unwrap();
        assert_eq!((gain.difference, gain.interval), (1.0, (1.0, 1.0)));
        assert!(gain.p <= 1e-4);
        let same = Difference::between(&all, &all, 1).unwrap();
        assert_eq!((same.difference, same.p), (0.0, 1.0));
        assert_eq!(Difference::between(&none, &all, 2), Difference::between(&none, &all, 2));
        assert!(Difference::between(&[], &[], 1).is_none());
    }

    #[test]
    fn p_is_no_surer_than_the_exact_test() {
        // Binomial tails: 2 / 2⁵, 2 · (1 + 8) / 2⁸, 2 · (1 + 16 + 120) / 2¹⁶.
        for (won, lost, p) in
            [(5, 0, 0.0625), (1, 7, 0.070_312_5), (14, 2, 0.004_180_908), (4, 4, 1.0), (0, 0, 1.0)]
        {
            assert!((exact(won, lost) - p).abs() < 1e-8, "{won} {lost}: {}", exact(won, lost));
            let first: Vec<bool> = (0..40).map(|n| n < lost).collect();
            let second: Vec<bool> = (0..40).map(|n| (lost..lost + won).contains(&n)).collect();
            let found = Difference::between(&first, &second, 1).unwrap();
            assert_eq!((found.won, found.lost, found.of), (won, lost, 40));
            assert!(found.p >= p - 1e-8, "{found:?}");
        }
        assert!(exact(0, 5000) < 1e-300 && (exact(2500, 2500) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn five_of_ten_against_six_of_ten_is_chance() {
        let first: Vec<bool> = (0..10).map(|n| n % 2 == 0).collect();
        let second: Vec<bool> = (0..10).map(|n| n % 2 == 1 || n == 0).collect();
        let gain = Difference::between(&first, &second, 3).unwrap();
        assert!((gain.difference - 0.1).abs() < 1e-12 && gain.p > 0.5, "{gain:?}");
    }
}
