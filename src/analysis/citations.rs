//! The `[n]` of an answer.

use std::sync::LazyLock;

use regex::Regex;

static CITATION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[\[［]\s*([0-9０-９]{1,3})\s*[\]］]").unwrap_or_else(|e| unreachable!("{e}"))
});

/// The numbers that an answer cites, in order.
///
/// # Panics
/// Never: the pattern is fixed.
#[must_use]
pub fn cited(text: &str) -> Vec<usize> {
    let digit = |c: char| c.to_digit(10).or_else(|| (c as u32).checked_sub('０' as u32));
    let number = |digits: &str| digits.chars().filter_map(digit).fold(0, |n, d| 10 * n + d as usize);
    CITATION.captures_iter(text).map(|found| number(&found[1])).collect()
}

/// The text without them.
///
/// # Panics
/// Never: the pattern is fixed.
#[must_use]
pub fn without(text: &str) -> String {
    CITATION.replace_all(text, "").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn citations_are_found_in_both_widths() {
        assert_eq!(cited("Give 5 mg [2]. Then [ 13 ]; not [x] or (4). 終わり［３］。"), [2, 13, 3]);
        assert_eq!(without("Give 5 mg [2]."), "Give 5 mg .");
    }
}
