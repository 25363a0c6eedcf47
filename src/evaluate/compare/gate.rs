//! Promises, held against what was found: a command that fails when one is missed can stand before a release.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::figures::{METRICS, Outcome};
use crate::files::{self, FileError};
use crate::language::Language;

/// What is promised of one figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Of which model; `None` for every one that was compared.
    pub model: Option<String>,
    /// The metric's id.
    pub metric: String,
    /// The arm.
    pub arm: String,
    /// In which language; `None` for all together.
    pub language: Option<Language>,
    /// The rate is at least this.
    pub at_least: Option<f64>,
    /// The rate is at most this.
    pub at_most: Option<f64>,
    /// The arm that the following speak of.
    pub against: Option<String>,
    /// The rate is at least so many times the other's, and not zero.
    pub times: Option<f64>,
    /// The rate is above the other's by at least this; below zero it may lie under it by so much.
    pub above: Option<f64>,
    /// The rate is above the other's, with a smaller p.
    pub p_below: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    promise: Vec<Promise>,
}

/// Why promises were refused.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A promise makes no sense.
    #[error("{}: promise {n}: {problem}", path.display())]
    Promise {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        n: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Reads promises.
///
/// # Errors
/// When the file cannot be read or a promise makes no sense.
pub fn read(path: &Path) -> Result<Vec<Promise>, GateError> {
    let file: File = files::toml(path, &files::text(path)?)?;
    for (n, promise) in file.promise.iter().enumerate() {
        if let Some(problem) = promise.problem() {
            return Err(GateError::Promise { path: path.to_owned(), n: n + 1, problem });
        }
    }
    Ok(file.promise)
}

/// Whether a promise was kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The model.
    pub model: String,
    /// What was promised, in words.
    pub promise: String,
    /// What was found, in words.
    pub found: String,
    /// Whether it was kept; `None` where an arm was not compared.
    pub kept: Option<bool>,
}

impl Promise {
    fn problem(&self) -> Option<String> {
        let relative = [self.times, self.above, self.p_below];
        if !METRICS.iter().any(|metric| metric.id == self.metric) {
            let known: Vec<&str> = METRICS.iter().map(|metric| metric.id).collect();
            return Some(format!("there is no metric `{}`; there are {}", self.metric, known.join(", ")));
        }
        if self.against.is_none() && relative.iter().any(Option::is_some) {
            return Some("`times`, `above` and `p_below` need an arm in `against`".into());
        }
        // A rate beyond what rates can be would always be kept, or never.
        for (name, value, low, high) in [
            ("at_least", self.at_least, 0.0, 1.0),
            ("at_most", self.at_most, 0.0, 1.0),
            ("times", self.times, 0.0, f64::MAX),
            ("above", self.above, -1.0, 1.0),
            ("p_below", self.p_below, 0.0, 1.0),
        ] {
            if value.is_some_and(|value| !(low..=high).contains(&value)) {
                let most = if high == f64::MAX { " up".to_owned() } else { format!(" to {high}") };
                return Some(format!("`{name}` must be a number from {low}{most}: shares, not percent"));
            }
        }
        let asks = [self.at_least, self.at_most].into_iter().chain(relative).any(|one| one.is_some());
        (!asks).then(|| "it promises nothing: write at_least, at_most, times, above or p_below".into())
    }

    /// Holds it against what was found of a model.
    #[must_use]
    pub fn check(&self, model: &str, outcome: &Outcome) -> Kept {
        let language = self.language.map_or(String::new(), |l| format!(" ({})", l.tag()));
        let mut wanted = Vec::new();
        let mut found = Vec::new();
        let mut kept = Some(true);
        let percent = |rate: f64| format!("{:.1} %", 100.0 * rate);
        let own = outcome.figure(&self.metric, &self.arm, self.language).map(|figure| figure.rate.rate);
        let mut hold = |holds: Option<bool>| {
            kept = match (kept, holds) {
                (Some(kept), Some(holds)) => Some(kept && holds),
                _ => None,
            }
        };
        hold(own.map(|_| true));
        if let Some(own) = own {
            found.push(percent(own));
        }
        if let Some(least) = self.at_least {
            wanted.push(format!("at least {}", percent(least)));
            hold(own.map(|own| own >= least));
        }
        if let Some(most) = self.at_most {
            wanted.push(format!("at most {}", percent(most)));
            hold(own.map(|own| own <= most));
        }
        if let Some(against) = &self.against {
            let other = outcome.figure(&self.metric, against, self.language).map(|figure| figure.rate.rate);
            let pair = (self.arm.as_str(), against.as_str());
            let difference = outcome.contrast(&self.metric, pair, self.language);
            if let Some(other) = other {
                found.push(format!("{against} {}", percent(other)));
            }
            if let Some(times) = self.times {
                wanted.push(format!("at least {times} × {against}"));
                hold(own.zip(other).map(|(own, other)| own > 0.0 && own >= times * other));
            }
            if let Some(above) = self.above {
                wanted.push(format!("{against} {:+.1} points at least", 100.0 * above));
                hold(own.zip(other).map(|(own, other)| own >= other + above));
            }
            if let Some(p) = self.p_below {
                wanted.push(format!("above {against} with p < {p}"));
                if let Some(difference) = difference {
                    found.push(format!("p = {:.4}", difference.p));
                }
                hold(difference.map(|d| d.difference > 0.0 && d.p < p));
            }
        }
        let promise = format!("{} of {}{language}: {}", self.metric, self.arm, wanted.join(", "));
        Kept { model: model.to_owned(), promise, found: found.join(", "), kept }
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Contrast, Figure};
    use super::*;
    use crate::evaluate::rates::{Difference, Rate};

    /// Two arms on the same questions.
    fn outcome(rag: &[bool], hybrid: &[bool]) -> Outcome {
        let figure = |arm: &str, held: &[bool]| Figure {
            metric: "fact".into(),
            arm: arm.into(),
            language: None,
            rate: Rate::of(held),
        };
        let contrast = Contrast {
            metric: "fact".into(),
            arm: "hybrid".into(),
            against: "rag".into(),
            language: None,
            difference: Difference::between(rag, hybrid, 1).unwrap(),
        };
        Outcome {
            rows: Vec::new(),
            figures: vec![figure("rag", rag), figure("hybrid", hybrid)],
            contrasts: vec![contrast],
            conflicts: Vec::new(),
            missed: Vec::new(),
            effort: Vec::new(),
        }
    }

    fn promise(arm: &str, what: &str) -> Promise {
        toml::from_str(&format!("metric = \"fact\"\narm = \"{arm}\"\n{what}")).unwrap()
    }

    #[test]
    fn promises_are_kept_or_missed() {
        let half = |n: usize| n.is_multiple_of(2);
        let (rag, hybrid): (Vec<bool>, Vec<bool>) = (0..20).map(|n| (half(n), half(n) || n > 5)).unzip();
        let outcome = outcome(&rag, &hybrid);
        for (arm, what, kept) in [
            ("rag", "at_least = 0.5", Some(true)),
            ("rag", "at_least = 0.51", Some(false)),
            ("rag", "at_most = 0.5", Some(true)),
            ("rag", "at_most = 0.49", Some(false)),
            ("hybrid", "against = \"rag\"\ntimes = 1.7", Some(true)),
            ("hybrid", "against = \"rag\"\ntimes = 1.71", Some(false)),
            ("hybrid", "against = \"rag\"\nabove = 0.35", Some(true)),
            ("hybrid", "against = \"rag\"\nabove = 0.36", Some(false)),
            ("rag", "against = \"hybrid\"\nabove = -0.35", Some(true)),
            ("rag", "against = \"hybrid\"\nabove = -0.3", Some(false)),
            // Seven of seven went one way: 2 / 2⁷ by the exact test.
            ("hybrid", "against = \"rag\"\np_below = 0.02", Some(true)),
            ("hybrid", "against = \"rag\"\np_below = 0.015", Some(false)),
            ("rag", "against = \"hybrid\"\np_below = 0.02", Some(false)),
            // One of two conditions is enough to miss it.
            ("rag", "at_least = 0.5\nat_most = 0.4", Some(false)),
            ("tuned", "at_least = 0.5", None),
            ("hybrid", "against = \"tuned\"\ntimes = 1.0", None),
        ] {
            let promise = promise(arm, what);
            assert_eq!(promise.problem(), None, "{what}");
            let found = promise.check("m", &outcome);
            assert_eq!(found.kept, kept, "{found:?}");
        }
    }

    #[test]
    fn nothing_is_not_three_times_nothing() {
        let outcome = outcome(&[false; 9], &[false; 9]);
        assert_eq!(
            promise("hybrid", "against = \"rag\"\ntimes = 3.0").check("m", &outcome).kept,
            Some(false)
        );
    }

    #[test]
    fn promises_that_make_no_sense_are_refused() {
        for (what, part) in [
            ("", "promises nothing"),
            ("times = 2.0", "need an arm in `against`"),
            ("at_least = 60.0", "`at_least` must be a number from 0 to 1: shares, not percent"),
            ("at_most = -0.1", "`at_most`"),
            ("against = \"rag\"\ntimes = -1.0", "`times` must be a number from 0 up"),
            ("against = \"rag\"\nabove = 5.0", "`above` must be a number from -1 to 1"),
            ("against = \"rag\"\np_below = nan", "`p_below`"),
        ] {
            let problem = promise("hybrid", what).problem().unwrap_or_default();
            assert!(problem.contains(part), "{what}: {problem}");
        }
    }
}
