//! Conditions on figures: "9–13 mm", "87 % or below", "32 mmHg以下", and whether the figures of a question meet them.
//!
//! Guidelines say by such conditions which row or sentence is for whom, and language models of the size that runs on two cores cannot tell
//! that 11 lies between 9 and 13.

use super::figures::{Figure, folded, placed};

/// What a figure must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The least that meets it.
    pub least: f64,
    /// The most that meets it.
    pub most: f64,
    /// The unit; empty where none is known.
    pub unit: String,
}

/// What may stand between the two figures of a range.
const BETWEEN: [&str; 8] = ["–", "-", "—", "~", "〜", "to", "から", "and"];
/// What stands before a figure that must be passed, and before one that must be reached; in lower case, as all of these.
const ABOVE: [&str; 14] = [
    "above",
    "over",
    "more than",
    "greater than",
    "exceeding",
    "exceeds",
    "longer than",
    "wider than",
    "older than",
    "higher than",
    "larger than",
    "heavier than",
    "beyond",
    ">",
];
const AT_LEAST: [&str; 4] = ["at least", "from", "≥", ">="];
/// Before a figure that must not be reached, and before one that must not be passed.
const BELOW: [&str; 9] = [
    "below",
    "under",
    "less than",
    "fewer than",
    "lower than",
    "shorter than",
    "younger than",
    "smaller than",
    "<",
];
const AT_MOST: [&str; 8] =
    ["up to", "at most", "within", "until", "no more than", "not more than", "≤", "<="];
/// The same behind a figure.
const OR_MORE: [&str; 12] = [
    "or more",
    "or above",
    "or over",
    "or higher",
    "or longer",
    "or older",
    "or later",
    "or wider",
    "and above",
    "and over",
    "以上",
    "以降",
];
const PASSED: [&str; 8] = ["を超", "超", "より多", "より大", "より高", "より長", "より重", "を上回"];
const OR_LESS: [&str; 10] = [
    "or less",
    "or below",
    "or fewer",
    "or under",
    "or lower",
    "or shorter",
    "or younger",
    "and below",
    "以下",
    "以内",
];
const NOT_REACHED: [&str; 7] = ["未満", "を下回", "より少", "より小", "より低", "より短", "より軽"];
/// Behind a figure up to which something holds.
const UP_TO: [&str; 1] = ["まで"];

/// The conditions of a text, in order.
#[must_use]
pub fn conditions(text: &str) -> Vec<Condition> {
    let text = folded(text);
    let figures = placed(&text);
    let mut conditions = Vec::new();
    let mut at = 0;
    while let Some((place, figure)) = figures.get(at) {
        at += 1;
        let (before, after) = (&text[..place.start], &text[place.end..]);
        if let Some((end, other)) = figures.get(at)
            && let gap = text[place.end..end.start].trim()
            && BETWEEN.contains(&gap)
            && (gap != "and" || ends_with(before, &["between"]))
            && (figure.unit.is_empty() || figure.unit == other.unit)
            && figure.value <= other.value
        {
            at += 1;
            conditions.push(Condition { least: figure.value, most: other.value, unit: other.unit.clone() });
            continue;
        }
        let value = figure.value;
        let bounds = if starts_with(after, &OR_MORE) {
            Some((value, f64::INFINITY))
        } else if starts_with(after, &PASSED) {
            Some((value.next_up(), f64::INFINITY))
        } else if starts_with(after, &OR_LESS) || starts_with(after, &UP_TO) {
            Some((f64::NEG_INFINITY, value))
        } else if starts_with(after, &NOT_REACHED) {
            Some((f64::NEG_INFINITY, value.next_down()))
        } else if ends_with(before, &AT_MOST) {
            // Before "more than", which "no more than" ends with.
            Some((f64::NEG_INFINITY, value))
        } else if ends_with(before, &BELOW) {
            Some((f64::NEG_INFINITY, value.next_down()))
        } else if ends_with(before, &AT_LEAST) {
            Some((value, f64::INFINITY))
        } else if ends_with(before, &ABOVE) {
            Some((value.next_up(), f64::INFINITY))
        } else {
            None
        };
        conditions.extend(bounds.map(|(least, most)| Condition { least, most, unit: figure.unit.clone() }));
    }
    conditions
}

/// Whether a text ends with one of these words, an article behind it or not.
fn ends_with(text: &str, words: &[&str]) -> bool {
    let text = text.trim_end();
    let text = ["a", "an", "the"]
        .iter()
        .find_map(|article| text.strip_suffix(article)?.strip_suffix(' '))
        .unwrap_or(text);
    words.iter().any(|word| {
        let rest = text.strip_suffix(word);
        rest.is_some_and(|rest| {
            !word.ends_with(char::is_alphabetic) || !rest.ends_with(char::is_alphanumeric)
        })
    })
}

fn starts_with(text: &str, words: &[&str]) -> bool {
    let text = text.trim_start();
    words.iter().any(|word| text.starts_with(word))
}

impl Condition {
    /// Whether one of some figures meets it; `None` where none has its unit.
    #[must_use]
    pub fn met_by(&self, figures: &[Figure]) -> Option<bool> {
        let mut same = figures.iter().filter(|figure| figure.unit == self.unit).peekable();
        same.peek()?;
        Some(same.any(|figure| (self.least..=self.most).contains(&figure.value)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::figures;
    use super::*;
    use proptest::prelude::*;

    fn met(text: &str, question: &str) -> Vec<Option<bool>> {
        conditions(text).iter().map(|condition| condition.met_by(&figures(question))).collect()
    }

    #[test]
    fn conditions_are_read_in_both_languages() {
        for (text, least, most, unit) in [
            ("| 9–13 mm | shock waves |", 9.0, 13.0, "mm"),
            ("| 6-10 | 5枚 |", 6.0, 10.0, ""),
            ("for 5 to 8 days", 5.0, 8.0, "d"),
            ("between 5 and 8 points", 5.0, 8.0, "points"),
            ("２５〜７０分なら半量", 25.0, 70.0, "min"),
            ("a saturation of 87 % or below", f64::NEG_INFINITY, 87.0, "%"),
            ("| 4.5 kg or more |", 4.5, f64::INFINITY, "kg"),
            ("at least 3 days", 3.0, f64::INFINITY, "d"),
            ("no more than 12 mL", f64::NEG_INFINITY, 12.0, "ml"),
            ("| 32 mmHg以下 |", f64::NEG_INFINITY, 32.0, "mmhg"),
            ("３８℃以上なら", 38.0, f64::INFINITY, "°c"),
        ] {
            let all = conditions(text);
            let unit = unit.to_owned();
            assert_eq!(all.first(), Some(&Condition { least, most, unit }), "{text}: {all:?}");
        }
        for text in
            ["5 mg twice a day", "130/80 mmHg", "on 2026-11-01", "5 and 8 mg", "grade 3", "discover 5"]
        {
            assert_eq!(conditions(text), [], "{text}");
        }
    }

    #[test]
    fn what_is_passed_is_not_what_is_reached() {
        for (text, at, beside) in [
            ("above 40 mm", false, "41 mm"),
            ("40 mmを超える", false, "41 mm"),
            ("below 40 mm", false, "39 mm"),
            ("40 mm未満", false, "39 mm"),
            ("40 mm or more", true, "41 mm"),
            ("up to 40 mm", true, "39 mm"),
        ] {
            assert_eq!(met(text, "40 mm"), [Some(at)], "{text}");
            assert_eq!(met(text, beside), [Some(true)], "{text}");
        }
        assert_eq!(met("9–13 mm", "an 11 mm stone of 14 days"), [Some(true)]);
        assert_eq!(met("14 mm or more", "an 11 mm stone of 15 days"), [Some(false)]);
        assert_eq!(met("14 mm or more", "a stone of 15 days"), [None]);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(above |below |[0-9]{1,3}|–|以上|[ a-z.,％]){0,12}") {
            for condition in conditions(&text) {
                prop_assert!(condition.least <= condition.most);
            }
        }
    }
}
