//! Scores: how much of what an answer must be like it is, by the weights of the criteria.

use serde::Serialize;

use super::answers::{Answer, Held, SEED, System, languages};
use super::criteria::Criteria;
use super::metrics::Mean;
use super::rates::Difference;
use crate::language::Language;

/// The mean score of a system's answers, 0 to 1.
#[derive(Debug, Clone, Serialize)]
pub struct Score {
    /// The system.
    pub system: String,
    /// In which language; `None` for all.
    pub language: Option<Language>,
    /// Answers that it is the mean of: those to which a criterion with a weight applies.
    pub of: usize,
    /// The mean, with its 95 % interval.
    pub score: Mean,
    /// Against the first system, on the same examples; `None` for itself.
    pub against_first: Option<Difference>,
    /// What is promised.
    pub goal: Option<f64>,
}

/// The weight of the criteria that hold, of all that apply; `None` where none does.
#[must_use]
pub fn of_answer(criteria: &Criteria, checks: &[Option<bool>]) -> Option<f64> {
    let applying = criteria.criterion.iter().zip(checks).filter_map(|(c, held)| Some((c.weight, (*held)?)));
    let (held, all) = applying.fold((0.0, 0.0), |(held, all), (weight, holds)| {
        (if holds { held + weight } else { held }, all + weight)
    });
    (all > 0.0).then(|| held / all)
}

/// The scores of all systems, for each language that there are answers in and for all together.
#[must_use]
pub fn scores(held: &[Held], systems: &[System], criteria: &Criteria, answers: &[Answer]) -> Vec<Score> {
    let mut scores = Vec::new();
    for language in languages(held) {
        let own = |of: usize| -> Vec<Option<f64>> {
            let rows = held.iter().zip(answers.chunks_exact(systems.len().max(1)));
            let rows = rows.filter(|(one, _)| language.is_none_or(|l| one.language == l));
            rows.map(|(_, answers)| of_answer(criteria, &answers[of].checks)).collect()
        };
        let first = own(0);
        for (of, system) in systems.iter().enumerate() {
            let own = own(of);
            let values: Vec<f64> = own.iter().copied().flatten().collect();
            let steps: Vec<f64> = first.iter().zip(&own).filter_map(|(a, b)| Some((*b)? - (*a)?)).collect();
            if values.is_empty() {
                continue;
            }
            scores.push(Score {
                system: system.name.clone(),
                language,
                of: values.len(),
                score: Mean::of(&values),
                against_first: if of == 0 { None } else { Difference::of(&steps, SEED) },
                goal: criteria.goal,
            });
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::super::criteria::{Check, Criterion};
    use super::*;

    #[test]
    fn what_applies_counts_by_its_weight() {
        let criterion = |weight| Criterion { weight, ..Criterion::plain("", Check::Asks) };
        let criteria = Criteria {
            objective: String::new(),
            goal: None,
            criterion: vec![criterion(3.0), criterion(1.0), criterion(0.0)],
        };
        let score = |checks: [Option<bool>; 3]| of_answer(&criteria, &checks);
        assert_eq!(score([Some(true), Some(false), Some(false)]), Some(0.75));
        assert_eq!(score([None, Some(false), Some(true)]), Some(0.0));
        assert_eq!(score([Some(true), None, None]), Some(1.0));
        assert_eq!(score([None, None, Some(true)]), None, "what has no weight is shown only");
    }
}
