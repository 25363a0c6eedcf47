//! Figures with their units, as a fact is recognised by: `130/80mmHg`, `130／80 mm Hg` and `130/80 mmHg` are the same.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization as _;

/// A number and the unit behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The number.
    pub value: f64,
    /// Its unit in its usual short form; empty where none is known.
    pub unit: String,
}

/// Units by their usual short form; the others are ways to write it. In lower case, as texts are compared.
const UNITS: [(&str, &[&str]); 27] = [
    ("h", &["hours", "hour", "hrs", "hr", "時間"]),
    ("min", &["minutes", "minute", "mins", "分間", "分"]),
    ("s", &["seconds", "second", "sec", "秒間", "秒"]),
    ("d", &["days", "day", "日間", "日"]),
    ("wk", &["weeks", "week", "週間", "週"]),
    ("mo", &["months", "month", "か月", "ヶ月", "カ月", "ヵ月"]),
    ("y", &["years", "year", "歳", "年間", "年"]),
    ("%", &["percent", "パーセント"]),
    ("°c", &["度"]),
    ("mg", &["milligrams", "milligram", "ミリグラム"]),
    ("μg", &["micrograms", "microgram", "mcg", "ug", "マイクログラム"]),
    ("kg", &[]),
    ("g", &["grams", "gram", "グラム"]),
    ("ml", &["ミリリットル", "cc"]),
    ("l", &["litres", "litre", "liters", "liter", "リットル"]),
    ("mmhg", &["mm hg"]),
    ("cmh2o", &["cm h2o"]),
    ("mmol", &[]),
    ("μmol", &["umol"]),
    ("iu", &["国際単位"]),
    ("units", &["unit", "単位"]),
    ("times", &["回"]),
    ("doses", &["dose"]),
    ("points", &["point", "点"]),
    ("cm", &["センチ"]),
    ("mm", &["ミリ"]),
    ("gy", &[]),
];

/// A text as figures are compared: compatibility forms folded, in lower case, thousands unseparated, white space as one space.
pub(super) fn folded(text: &str) -> String {
    static THOUSANDS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d{1,3}(?:,\d{3})+").unwrap_or_else(|e| unreachable!("{e}")));
    let plain: String = text.nfkc().collect::<String>().to_lowercase();
    let joined = THOUSANDS.replace_all(&plain, |found: &regex::Captures<'_>| found[0].replace(',', ""));
    joined.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The figures of a text in order, citations left out.
#[must_use]
pub fn figures(text: &str) -> Vec<Figure> {
    placed(&folded(&super::citations::without(text))).into_iter().map(|(_, figure)| figure).collect()
}

/// The figures of a folded text, each with its place there, the unit included.
///
/// # Panics
/// Never: the pattern is fixed.
pub(super) fn placed(text: &str) -> Vec<(Range<usize>, Figure)> {
    static NUMBER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d+(?:\.\d+)?").unwrap_or_else(|e| unreachable!("{e}")));
    let mut end = 0;
    let found = NUMBER.find_iter(text).filter_map(|found| {
        // Not the 2 of "33 cmH2O".
        let value = found.as_str().parse().ok().filter(|_| found.start() >= end)?;
        let (unit, length) = unit(&text[found.end()..]);
        end = found.end() + length;
        Some((found.start()..end, Figure { value, unit: unit.to_owned() }))
    });
    found.collect()
}

/// The unit that a folded text begins with, behind white space or not, and how many bytes reach to its end: of all spellings the longest
/// that is not the beginning of a longer word.
pub(super) fn unit(whole: &str) -> (&'static str, usize) {
    let text = whole.trim_start();
    let spellings = UNITS.iter().flat_map(|(short, others)| {
        std::iter::once((*short, *short)).chain(others.iter().map(move |other| (*other, *short)))
    });
    let fits = spellings.filter(|(spelling, _)| {
        let rest = text.strip_prefix(spelling);
        let latin = spelling.chars().all(|c| c.is_ascii_alphabetic() || c == 'μ');
        rest.is_some_and(|rest| !latin || !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    });
    let longest = fits.max_by_key(|(spelling, _)| spelling.len());
    longest.map_or(("", 0), |(spelling, short)| (short, whole.len() - text.len() + spelling.len()))
}

/// Words for one of a unit.
const ONE: [&str; 10] = ["second", "minute", "hour", "day", "week", "month", "year", "unit", "point", "dose"];

/// Units that a text names without a figure before them: "how many micrograms?". Only those written in letters of their own; 分 or 回 may
/// be part of any word.
#[must_use]
pub fn named_units(text: &str) -> Vec<&'static str> {
    let text = folded(text);
    let latin = |c: char| c.is_ascii_alphabetic() || c == 'μ';
    let mut found = Vec::new();
    for (at, _) in text.char_indices().filter(|(_, c)| latin(*c)) {
        let before = text[..at].trim_end().chars().next_back();
        let within = text[..at].ends_with(latin);
        if within || before.is_some_and(|c| c.is_ascii_digit()) {
            continue;
        }
        let (unit, length) = unit(&text[at..]);
        // A letter alone and one of a thing are as often something else: "vitamin d", "the second dose", "on the day".
        if length > 1 && !ONE.contains(&&text[at..at + length]) && !found.contains(&unit) {
            found.push(unit);
        }
    }
    found
}

/// Whether every figure of `expected` stands in `said`, with the same unit where both name one that is known.
#[must_use]
pub fn holds(said: &str, expected: &[Figure]) -> bool {
    let said = figures(said);
    expected.iter().all(|wanted| among(&said, wanted))
}

/// Whether a figure is among others, with the same unit where both name one that is known.
#[must_use]
pub fn among(figures: &[Figure], wanted: &Figure) -> bool {
    figures.iter().any(|one| {
        let units = one.unit == wanted.unit || one.unit.is_empty() || wanted.unit.is_empty();
        (one.value - wanted.value).abs() < 1e-9 && units
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn notations_of_one_figure_are_the_same() {
        for (said, expected) in [
            ("Below 130／80 mm Hg [2].", "130/80mmHg"),
            ("２時間ごとに測る[1]。", "every 2 hours"),
            ("Give 1,200 mL over 30 min.", "1200 ml, 30 minutes"),
            ("1,200,000 units", "1200000 単位"),
            ("7.0 % or more", "7％"),
            ("50 mcg", "50 μg"),
            ("at 38.5℃", "38.5 °C"),
            ("5 cm H2O", "5 cmH2O"),
        ] {
            assert!(holds(said, &figures(expected)), "{said} / {expected}: {:?}", figures(said));
        }
    }

    #[test]
    fn another_value_or_unit_is_another_figure() {
        for (said, expected) in [
            ("every 2 minutes", "2 hours"),
            ("2.5 mg", "25 mg"),
            ("5 mg", "5 g"),
            ("as in [3]", "3"),
            ("12 mL", "2 mL"),
            ("nothing", "1"),
        ] {
            assert!(!holds(said, &figures(expected)), "{said} / {expected}");
        }
        // A word after the unit does not hide it.
        assert_eq!(figures("take 5 mg for 3 days")[0].unit, "mg");
        // "m" of "more" is no unit, and an unknown unit is none.
        assert_eq!(figures("5 mallets")[0].unit, "");
        assert_eq!(figures("33 cmH2O or more").len(), 1);
        assert_eq!(named_units("How many micrograms, for 3 days? vitamin d"), ["μg"]);
        assert_eq!(named_units("何mgを何分で？ grams/day"), ["mg", "g"]);
        assert_eq!(named_units("on the day of the second dose"), [""; 0]);
    }

    proptest! {
        #[test]
        fn a_text_holds_its_own_figures(text in ".{0,80}") {
            prop_assert!(holds(&text, &figures(&text)));
        }
    }
}
