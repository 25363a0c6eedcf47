//! Conditions on figures: "9–13 mm", "87 % or below", "32 mmHg以下", and whether the figures of a question meet them.
//!
//! Guidelines say by such conditions which row or sentence is for whom, and language models of the size that runs on two cores cannot tell
//! that 11 lies between 9 and 13. A time that says what to do ("for 5 to 8 days") reads as a condition too; what that costs is in the weights
//! of `quote::Bearing`.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::citations;
use super::figures::{Figure, folded, placed, unit};

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

/// What may stand between the two figures of a range. All words here are as [`folded`] leaves them.
const BETWEEN: [&str; 10] = ["–", "-", "‐", "—", "−", "~", "〜", "to", "から", "and"];
/// What stands before a figure that must be passed, and before one that must be reached.
const ABOVE: [&str; 15] = [
    "above",
    "over",
    "more than",
    "greater than",
    "exceeding",
    "exceeds",
    "longer than",
    "later than",
    "wider than",
    "older than",
    "higher than",
    "larger than",
    "heavier than",
    "beyond",
    ">",
];
const AT_LEAST: [&str; 5] = ["at least", "≥", "≧", ">=", "greater than or equal to"];
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
const AT_MOST: [&str; 8] = ["up to", "at most", "within", "until", "≤", "≦", "<=", "less than or equal to"];
/// Before those words, they say the opposite.
const NOT: [&str; 3] = ["no", "not", "never"];
/// The same behind a figure.
const OR_MORE: [&str; 18] = [
    "or more",
    "or above",
    "or over",
    "or higher",
    "or longer",
    "or older",
    "or later",
    "or wider",
    "or greater",
    "or larger",
    "or heavier",
    "and above",
    "and over",
    "and older",
    "以上",
    "以降",
    "を下回らな",
    "を下らな",
];
const PASSED: [&str; 9] = ["を超", "を越", "超", "より多", "より大", "より高", "より長", "より重", "を上回"];
const OR_LESS: [&str; 20] = [
    "or less",
    "or below",
    "or fewer",
    "or under",
    "or lower",
    "or shorter",
    "or younger",
    "or smaller",
    "or lighter",
    "and below",
    "and under",
    "and younger",
    "以下",
    "以内",
    "まで",
    "を超えな",
    "を超えず",
    "を越えな",
    "を越えず",
    "を上回らな",
];
const NOT_REACHED: [&str; 8] =
    ["未満", "を下回", "に満たな", "より少", "より小", "より低", "より短", "より軽"];

/// The conditions of a text, in order.
#[must_use]
pub fn conditions(text: &str) -> Vec<Condition> {
    let text = folded(text);
    let figures = stated_in(&text);
    let mut conditions: Vec<(usize, Condition)> = Vec::new();
    let mut at = 0;
    while let Some((place, figure)) = figures.get(at) {
        at += 1;
        let (before, after) = (&text[..place.start], &text[place.end..]);
        if let Some((end, other)) = figures.get(at)
            && is_range(&text, place, end)
            && (figure.unit.is_empty() || figure.unit == other.unit)
            && figure.value <= other.value
        {
            at += 1;
            let unit = other.unit.clone();
            conditions.push((end.end, Condition { least: figure.value, most: other.value, unit }));
            continue;
        }
        // "over 30 minutes" is how long something runs.
        if ["s", "min", "h"].contains(&figure.unit.as_str()) && ends_with(before, &["over"]).is_some() {
            continue;
        }
        let Some((least, most)) = bounds(before, after, figure.value) else { continue };
        // "10 mm以上20 mm未満" is one condition.
        if let Some((end, last)) = conditions.last_mut()
            && let gap = &text[*end..place.start]
            && (last.unit.is_empty() || last.unit == figure.unit)
            && (last.most == f64::INFINITY && least == f64::NEG_INFINITY && last.least <= most)
            && gap.len() <= CLOSE
            && !gap.contains(['|', '.', ';', '。', '、'])
        {
            (*end, last.most) = (place.end, most);
            last.unit.clone_from(&figure.unit);
            continue;
        }
        conditions.push((place.end, Condition { least, most, unit: figure.unit.clone() }));
    }
    conditions.into_iter().map(|(_, condition)| condition).collect()
}

/// Bytes between the two halves of a condition.
const CLOSE: usize = 24;

/// Whether two figures are the ends of a range, and not parts of a date or of a telephone number.
fn is_range(text: &str, place: &Range<usize>, end: &Range<usize>) -> bool {
    let (before, after) = (&text[..place.start], &text[end.end..]);
    let gap = text[place.end..end.start].trim();
    BETWEEN.contains(&gap)
        && (gap != "and" || ends_with(before, &["between"]).is_some())
        && !before.ends_with(['-', '/'])
        && !(after.starts_with(['-', '/']) && after[1..].starts_with(|c: char| c.is_ascii_digit()))
}

/// The bounds that the words around a figure make of it.
fn bounds(before: &str, after: &str, value: f64) -> Option<(f64, f64)> {
    let (low, high) = (f64::NEG_INFINITY, f64::INFINITY);
    let says = |words: &[&str]| ends_with(before, words).map(|rest| ends_with(rest, &NOT).is_some());
    // Longer ones first: "greater than or equal to" is no "equal to".
    match (says(&AT_LEAST), says(&AT_MOST)) {
        (Some(_), _) => return Some((value, high)),
        (_, Some(_)) => return Some((low, value)),
        _ => {}
    }
    match (says(&ABOVE), says(&BELOW)) {
        (Some(true), _) => return Some((low, value)),
        (Some(false), _) => return Some((value.next_up(), high)),
        (_, Some(true)) => return Some((value, high)),
        (_, Some(false)) => return Some((low, value.next_down())),
        _ => {}
    }
    let after =
        ["of age", "old"].iter().find_map(|word| after.trim_start().strip_prefix(word)).unwrap_or(after);
    if starts_with(after, &OR_MORE) {
        Some((value, high))
    } else if starts_with(after, &OR_LESS) {
        Some((low, value))
    } else if starts_with(after, &PASSED) && !after.trim_start().starts_with("超音") {
        Some((value.next_up(), high))
    } else if starts_with(after, &NOT_REACHED) {
        Some((low, value.next_down()))
    } else {
        None
    }
}

/// What is before the last words of a text, if it ends with one of these, an article behind it or not.
fn ends_with<'t>(text: &'t str, words: &[&str]) -> Option<&'t str> {
    let text = text.trim_end();
    let article = ["a", "an", "the", "the age of"];
    let text =
        article.iter().find_map(|article| text.strip_suffix(article)?.strip_suffix(' ')).unwrap_or(text);
    words.iter().find_map(|word| {
        let rest = text.strip_suffix(word)?;
        let whole = !word.ends_with(char::is_alphabetic) || !rest.ends_with(char::is_alphanumeric);
        whole.then_some(rest)
    })
}

/// Whether a text begins with one of these words; "or more than" and "or over 5" begin something else.
fn starts_with(text: &str, words: &[&str]) -> bool {
    let text = text.trim_start();
    words.iter().any(|word| {
        text.strip_prefix(word).is_some_and(|rest| {
            let goes_on = rest.trim_start().starts_with(|c: char| c.is_ascii_digit())
                || rest.trim_start().starts_with("than");
            !word.is_ascii() || !(goes_on || rest.starts_with(char::is_alphanumeric))
        })
    })
}

/// The figures that a question states and that conditions can be held against: a bound that it states ("over 10 mm") as what lies beyond.
#[must_use]
pub fn stated(question: &str) -> Vec<Figure> {
    let text = folded(&citations::without(question));
    let mut figures: Vec<Figure> = stated_in(&text).into_iter().map(|(_, figure)| figure).collect();
    for condition in conditions(question) {
        let bound = if condition.least.is_finite() { condition.least } else { condition.most };
        let beyond = |figure: &&mut Figure| {
            figure.unit == condition.unit
                && figure.value != bound
                && (figure.value.next_up() == bound || figure.value.next_down() == bound)
        };
        figures.iter_mut().filter(beyond).for_each(|figure| figure.value = bound);
    }
    figures
}

/// The figures of a folded text as conditions have them: with all of a compound unit, without digits of names and years.
fn stated_in(text: &str) -> Vec<(Range<usize>, Figure)> {
    static PER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(?:\s?/\s?(?:[a-zμ][a-zμ0-9²]*|1\.73\s?m(?:2|²)?|日|回|時間?|分))+")
            .unwrap_or_else(|e| unreachable!("{e}"))
    });
    let mut end = 0;
    let mut figures = Vec::new();
    for (mut place, mut figure) in placed(text) {
        // SpO2, HbA1c, COVID-19.
        let before = text[..place.start].trim_end_matches('-');
        let named = before.ends_with(|c: char| c.is_ascii_alphabetic());
        if named || place.start < end {
            continue;
        }
        let after = &text[place.end..];
        if let Some(hyphen) = after.strip_prefix('-').filter(|_| figure.unit.is_empty()) {
            // "78-year-old"
            let (unit, length) = unit(hyphen);
            if length > 0 {
                figure.unit = unit.to_owned();
                place.end += 1 + length;
            }
        }
        if let Some(per) = PER.find(&text[place.end..]) {
            let divisor: String = per.as_str().split_whitespace().collect();
            figure.unit += divisor.split("/1.73").next().unwrap_or_default();
            place.end += per.end();
        }
        end = place.end;
        let after = &text[place.end..];
        let year = figure.unit == "y" && figure.value >= 1900.0;
        // "1日3回" and "3分の1" say no time.
        let each = figure.unit == "d"
            && figure.value == 1.0
            && after.starts_with(|c: char| c.is_ascii_digit() || "何にあ".contains(c));
        let part =
            after.strip_prefix('の').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if !(year || each || part) {
            figures.push((place, figure));
        }
    }
    figures
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
    use super::*;
    use proptest::prelude::*;

    fn met(text: &str, question: &str) -> Vec<Option<bool>> {
        conditions(text).iter().map(|condition| condition.met_by(&stated(question))).collect()
    }

    const LOW: f64 = f64::NEG_INFINITY;
    const HIGH: f64 = f64::INFINITY;

    #[test]
    fn conditions_are_read_in_both_languages() {
        for (text, least, most, unit) in [
            ("| 9–13 mm | shock waves |", 9.0, 13.0, "mm"),
            ("| 6-10 | 5枚 |", 6.0, 10.0, ""),
            ("for 5 to 8 days", 5.0, 8.0, "d"),
            ("between 5 and 8 points", 5.0, 8.0, "points"),
            ("２５〜７０分なら半量", 25.0, 70.0, "min"),
            ("a saturation of 87 % or below", LOW, 87.0, "%"),
            ("| 4.5 kg or more |", 4.5, HIGH, "kg"),
            ("65 years of age or older", 65.0, HIGH, "y"),
            ("at least 3 days", 3.0, HIGH, "d"),
            ("no more than 12 mL", LOW, 12.0, "ml"),
            ("not less than 30 mL", 30.0, HIGH, "ml"),
            ("| 32 mmHg以下 |", LOW, 32.0, "mmhg"),
            ("３８℃以上なら", 38.0, HIGH, "°c"),
            ("5 mgを超えない", LOW, 5.0, "mg"),
            ("90%を下回らない", 90.0, HIGH, "%"),
            ("eGFRが30 mL/min/1.73m2以下", LOW, 30.0, "ml/min"),
            ("10 mm以上20 mm以下", 10.0, 20.0, "mm"),
            ("more than or equal 5; ≥ 5 g/day", 5.0, HIGH, "g/day"),
        ] {
            let all = conditions(text);
            let unit = unit.to_owned();
            assert_eq!(all.first(), Some(&Condition { least, most, unit }), "{text}: {all:?}");
            assert_eq!(all.len(), 1, "{text}: {all:?}");
        }
        for text in [
            "5 mg twice a day",
            "130/80 mmHg",
            "on 2026-11-12",
            "03-1234-5678",
            "5 and 8 mg",
            "grade 3",
            "discover 5",
            "2 doses or overnight",
            "over 30 minutes",
            "週2回超音波検査",
            "COVID-19 or more",
        ] {
            assert_eq!(conditions(text), [], "{text}");
        }
    }

    #[test]
    fn two_conditions_are_not_mixed_up() {
        assert_eq!(met("below 36 °C or above 38 °C", "37 °C"), [Some(false), Some(false)]);
        assert_eq!(met("less than 5 or more than 10", "7"), [Some(false), Some(false)]);
        assert_eq!(met("10 mm以上20 mm未満", "25 mm"), [Some(false)]);
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
        // The question has bounds of its own.
        assert_eq!(met("over 10 mm", "a stone over 10 mm"), [Some(true)]);
        assert_eq!(met("up to 10 mm", "a stone over 10 mm"), [Some(false)]);
    }

    #[test]
    fn names_years_and_parts_are_no_figures_of_a_question() {
        for question in ["SpO2とHbA1c", "2024年版", "1日3回", "COVID-19"] {
            assert!(
                stated(question).iter().all(|figure| figure.unit == "times"),
                "{question}: {:?}",
                stated(question)
            );
        }
        assert_eq!(stated("a 78-year-old")[0], Figure { value: 78.0, unit: "y".to_owned() });
        assert_eq!(stated("3分の1").len(), 1, "the 1");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(above |below |no |[0-9]{1,3}|–|以上|未満|超|/| mm|[ a-zμ.,％]){0,12}") {
            for condition in conditions(&text) {
                prop_assert!(condition.least <= condition.most);
            }
            let _ = stated(&text);
        }
    }
}
