//! What a dataset is made of, in numbers: tokens, lengths, languages, and what training on it would cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::language::Language;

/// An example, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Its language.
    pub language: Language,
    /// Its answers that are learnt.
    pub answers: usize,
    /// All of its tokens.
    pub tokens: usize,
    /// Those that are learnt.
    pub learnt: usize,
}

/// How a number is spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// All together.
    pub sum: usize,
    /// The least.
    pub min: usize,
    /// Half are no larger.
    pub p50: usize,
    /// Nine of ten are no larger.
    pub p90: usize,
    /// The largest.
    pub max: usize,
}

impl Spread {
    /// Of numbers in any order.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut all: Vec<usize> = numbers.into_iter().collect();
        all.sort_unstable();
        // Nearest rank: the smallest number that so many percent do not exceed.
        let rank = |percent: usize| {
            let at = (all.len() * percent).div_ceil(100).saturating_sub(1);
            all.get(at).copied().unwrap_or_default()
        };
        Self { sum: all.iter().sum(), min: rank(0), p50: rank(50), p90: rank(90), max: rank(100) }
    }
}

/// A file, or several together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// How many examples.
    pub examples: usize,
    /// By language.
    pub languages: BTreeMap<&'static str, usize>,
    /// Learnt answers of an example.
    pub answers: Spread,
    /// Tokens of an example.
    pub tokens: Spread,
    /// Learnt tokens of an example.
    pub learnt: Spread,
    /// Upper bounds of lengths in tokens, and how many examples are within each and above the one before.
    pub histogram: Vec<(usize, usize)>,
    /// The bound, how many examples are longer, and how many tokens stand beyond it.
    pub beyond: (usize, usize, usize),
}

impl Stats {
    /// Of examples, held against a bound on their tokens.
    #[must_use]
    pub fn of(examples: &[Counted], most: usize) -> Self {
        let mut languages = BTreeMap::new();
        let mut histogram: BTreeMap<usize, usize> = BTreeMap::new();
        for example in examples {
            *languages.entry(example.language.tag()).or_default() += 1;
            *histogram.entry(example.tokens.max(16).next_power_of_two()).or_default() += 1;
        }
        let beyond: Vec<usize> = examples.iter().filter_map(|e| e.tokens.checked_sub(most + 1)).collect();
        Self {
            examples: examples.len(),
            languages,
            answers: Spread::of(examples.iter().map(|e| e.answers)),
            tokens: Spread::of(examples.iter().map(|e| e.tokens)),
            learnt: Spread::of(examples.iter().map(|e| e.learnt)),
            histogram: histogram.into_iter().collect(),
            beyond: (most, beyond.len(), beyond.iter().map(|over| over + 1).sum()),
        }
    }
}

/// A price for tuning somewhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Whose.
    pub platform: String,
    /// Of which model.
    pub model: String,
    /// For a million tokens that are trained on, each epoch's counted.
    pub per_million_tokens: f64,
    /// In what.
    pub currency: String,
    /// When it was looked up.
    pub as_of: String,
}

/// `prices.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Prices by the token.
    #[serde(default)]
    pub price: Vec<Price>,
    /// What an hour of this machine costs, where that is known.
    pub own_hour: Option<OwnHour>,
}

/// What an hour of one's own machine costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnHour {
    /// So much.
    pub cost: f64,
    /// In what.
    pub currency: String,
}

impl Price {
    /// The price of a run that sees the tokens so often.
    #[must_use]
    pub fn of(&self, tokens: usize, epochs: f64) -> f64 {
        self.per_million_tokens * tokens as f64 * epochs / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_by_nearest_rank() {
        let spread = Spread::of([5, 1, 4, 2, 3, 6, 7, 8, 9, 10]);
        assert_eq!(spread, Spread { sum: 55, min: 1, p50: 5, p90: 9, max: 10 });
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn the_shipped_prices_are_sound() {
        let prices: Prices = toml::from_str(include_str!("../../config/prices.toml")).unwrap();
        assert!(!prices.price.is_empty() && prices.price.iter().all(|price| price.per_million_tokens > 0.0));
    }

    #[test]
    fn what_is_too_long_is_counted() {
        let example = |tokens| Counted { language: Language::En, answers: 1, tokens, learnt: tokens / 2 };
        let stats = Stats::of(&[example(10), example(100), example(101), example(130)], 100);
        assert_eq!(stats.beyond, (100, 2, 31));
        assert_eq!(stats.histogram, [(16, 1), (128, 2), (256, 1)]);
        assert_eq!(stats.learnt.sum, 5 + 50 + 50 + 65);
        assert_eq!(stats.languages, BTreeMap::from([("en", 4)]));
    }

    #[test]
    fn a_run_is_priced_by_tokens_and_epochs() {
        let price = Price {
            platform: "p".into(),
            model: "m".into(),
            per_million_tokens: 3.0,
            currency: "USD".into(),
            as_of: "2026".into(),
        };
        assert!((price.of(500_000, 3.0) - 4.5).abs() < 1e-9);
    }
}
