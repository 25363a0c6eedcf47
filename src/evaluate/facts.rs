//! Whether an answer holds the facts that were asked for.
//!
//! A fact is written as an answer would say it: `15 mg` (compared as figures, whatever the notation), `put off|postponed` (one of the
//! wordings stands in it), or `yes`, `no`, `はい`, `いいえ` (the answer begins with it).

use unicode_normalization::UnicodeNormalization as _;

use crate::analysis::figures::{figures, holds};

/// Whether an answer states a fact.
#[must_use]
pub fn states(answer: &str, fact: &str) -> bool {
    let answered = folded(answer);
    match fact.trim().to_lowercase().as_str() {
        // A word of its own: “no” begins “normal” too.
        word @ ("yes" | "no") => {
            let rest = answer.trim_start().to_lowercase();
            rest.strip_prefix(word).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        }
        word @ ("はい" | "いいえ") => answered.starts_with(word),
        _ => fact.split('|').any(|wording| {
            let expected = figures(wording);
            match expected.is_empty() {
                true => answered.contains(&folded(wording)),
                false => holds(answer, &expected),
            }
        }),
    }
}

/// Widths, case and white space apart.
fn folded(text: &str) -> String {
    text.nfkc().flat_map(char::to_lowercase).filter(|c| !c.is_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_in_any_notation() {
        for (answer, fact) in [
            ("Give 15mg daily [2].", "15 mg"),
            ("It is 280 – 520 μg/L.", "280–520 micrograms/L"),
            ("No, wait [1].", "no"),
            ("Yes: at once.", "yes"),
            ("いいえ、待ちます[1]。", "いいえ"),
            ("The operation is postponed.", "put off|postponed"),
            ("手術は中　止します。", "延期|中止"),
        ] {
            assert!(states(answer, fact), "{answer} / {fact}");
        }
    }

    #[test]
    fn other_answers_are_not_right() {
        for (answer, fact) in [
            ("Give 25 mg daily.", "15 mg"),
            ("Normal values need nothing.", "no"),
            ("It is not yes or no.", "yes"),
            ("はい、そうです。", "いいえ"),
            ("The operation goes ahead.", "put off|postponed"),
        ] {
            assert!(!states(answer, fact), "{answer} / {fact}");
        }
    }
}
