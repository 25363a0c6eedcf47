//! Rates with what is uncertain about them: Wilson's interval (Wilson 1927) for one, a paired bootstrap (Efron 1979) for the difference
//! of two that were found on the same questions.

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
    /// Two-sided: twice the share of resamples on the other side of zero, at least 1 / resamples.
    pub p: f64,
}

impl Difference {
    /// The difference of two lists of outcomes, question by question; `None` for none.
    #[must_use]
    pub fn between(first: &[bool], second: &[bool], seed: u64) -> Option<Self> {
        let number = |held: &bool| f64::from(u8::from(*held));
        let steps: Vec<f64> = first.iter().zip(second).map(|(a, b)| number(b) - number(a)).collect();
        Self::of(&steps, seed)
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
        Some(Self { difference, interval: (at(0.025), at(0.975)), p: other.min(1.0) })
    }
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
    fn five_of_ten_against_six_of_ten_is_chance() {
        let first: Vec<bool> = (0..10).map(|n| n % 2 == 0).collect();
        let second: Vec<bool> = (0..10).map(|n| n % 2 == 1 || n == 0).collect();
        let gain = Difference::between(&first, &second, 3).unwrap();
        assert!((gain.difference - 0.1).abs() < 1e-12 && gain.p > 0.5, "{gain:?}");
    }
}
