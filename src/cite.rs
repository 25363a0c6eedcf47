//! Citations: finding `[n]` in an answer while it streams.
//!
//! A marker may be split over any number of tokens, stand in half or full width (`[1]`, `［１］`, `【1】`),
//! and name several passages (`[1, 3]`).

use serde::Serialize;

/// One cited passage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Citation {
    /// The passage's number.
    pub n: usize,
    /// Byte span of the marker in the answer's text.
    pub span: MarkerSpan,
    /// Whether a passage of that number was in the prompt.
    pub exists: bool,
}

/// Where a marker stands in the answer, in bytes of UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MarkerSpan {
    /// Its first byte.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
}

/// The longest marker that is followed, in characters between the brackets.
const MAX_INSIDE: usize = 24;

/// Finds markers in text that arrives in pieces.
#[derive(Debug)]
pub struct CitationFinder {
    passages: usize,
    seen: usize,
    /// Start of an open marker and what stands in it so far.
    open: Option<(usize, String)>,
}

impl CitationFinder {
    /// For an answer whose prompt held passages `1 ..= passages`.
    pub fn new(passages: usize) -> Self {
        Self { passages, seen: 0, open: None }
    }

    /// Takes the next piece of the answer and returns the citations that end in it.
    pub fn push(&mut self, text: &str) -> Vec<Citation> {
        let mut found = Vec::new();
        for c in text.chars() {
            let at = self.seen;
            self.seen += c.len_utf8();
            match c {
                '[' | '［' | '【' => self.open = Some((at, String::new())),
                ']' | '］' | '】' => {
                    if let Some((start, inside)) = self.open.take() {
                        let span = MarkerSpan { start, end: self.seen };
                        found.extend(numbers(&inside).into_iter().map(|n| Citation {
                            n,
                            span,
                            exists: (1..=self.passages).contains(&n),
                        }));
                    }
                }
                _ => {
                    if let Some((_, inside)) = &mut self.open {
                        inside.push(c);
                        if inside.chars().count() > MAX_INSIDE {
                            self.open = None;
                        }
                    }
                }
            }
        }
        found
    }
}

/// The numbers of a marker's inside; none when it holds anything else, as in `[see below]`.
fn numbers(inside: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in inside.split([',', ';', '、', '，', '・']) {
        let digits: Option<String> =
            part.trim().chars().map(|c| digit(c).and_then(|d| char::from_digit(d, 10))).collect();
        match digits.and_then(|d| d.parse().ok()) {
            Some(n) if !numbers.contains(&n) => numbers.push(n),
            Some(_) => {}
            None => return Vec::new(),
        }
    }
    numbers
}

/// The value of a half- or full-width digit.
fn digit(c: char) -> Option<u32> {
    match c {
        '０'..='９' => Some(c as u32 - '０' as u32),
        _ => c.to_digit(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> Vec<(usize, bool, &str)> {
        let found = CitationFinder::new(3).push(text);
        found.into_iter().map(|c| (c.n, c.exists, &text[c.span.start..c.span.end])).collect()
    }

    #[test]
    fn markers_of_every_width_are_found_with_their_spans() {
        assert_eq!(all("Below 130/80 mmHg [1]."), [(1, true, "[1]")]);
        assert_eq!(all("目標は130/80mmHg未満です［２］。"), [(2, true, "［２］")]);
        assert_eq!(all("【3】と[1, 2]"), [(3, true, "【3】"), (1, true, "[1, 2]"), (2, true, "[1, 2]")]);
        assert_eq!(all("[1][1]"), [(1, true, "[1]"), (1, true, "[1]")]);
    }

    #[test]
    fn a_passage_that_is_not_there_is_reported_as_such() {
        assert_eq!(all("see [7] and [0]"), [(7, false, "[7]"), (0, false, "[0]")]);
    }

    #[test]
    fn other_brackets_are_text() {
        assert_eq!(all("[a] [] [1 [2] x] [1.5] [99999999999999999999999] [see 1]"), [(2, true, "[2]")]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[\\[\\]１1,2 血【】]{0,30}", cuts in proptest::collection::vec(0usize..30, 0..8)) {
            let whole = CitationFinder::new(2).push(&text);
            let mut finder = CitationFinder::new(2);
            let mut cuts: Vec<usize> =
                cuts.into_iter().filter(|c| text.is_char_boundary(*c) && *c <= text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<Citation> =
                cuts.windows(2).flat_map(|w| finder.push(&text[w[0]..w[1]])).collect();
            prop_assert_eq!(pieces, whole);
        }
    }
}
