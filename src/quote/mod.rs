//! Quotes: what an answer stands on, letter by letter, before the answer itself.
//!
//! An adapter may have learnt to begin an answer over passages with lines `> …` that repeat what it answers from. A line that stands
//! in a passage is taken out of the answer and told apart, with the passage's number: whoever reads the answer can hold it against what the
//! guideline says.
//!
//! A quote is a whole unit of a passage: a sentence, list item or row of a table below its head, so that no "not" is left out.
//! [`QuoteGuide`] lets nothing else come of a line once `> ` is written, and [`QuoteReader`] takes nothing else for a quote: any other line
//! stays where it is, since taking it out would hide what the model said.

mod bearing;
mod guide;
mod units;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use bearing::{Bearing, Candidate, FEATURES, NEARNESS, WEIGHTS};
pub use guide::{QuoteChoice, QuoteGuide, Signed, Signs};
pub use units::{possible, units_around};

/// What a quote begins with, and then a blank.
const MARK: char = '>';

/// Words of a passage that an answer stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// The number of the first passage that says so.
    pub n: usize,
    /// What it says; white space may differ.
    pub text: String,
}

/// What a piece of an answer brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Quotes that it completed.
    pub quotes: Vec<Quote>,
    /// Text of the answer.
    pub text: String,
}

/// Where a reader is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// At the beginning of a line, after white space perhaps.
    LineStart,
    /// Within a line that began with the mark.
    Line,
    /// Past all quotes.
    Answer,
}

/// Tells quotes and answer apart in text that arrives in pieces.
#[derive(Debug)]
pub struct QuoteReader {
    /// What may be quoted, and the passage that says so.
    possible: Vec<Quote>,
    place: Place,
    /// Text that may become a quote.
    held: String,
    /// The newest quote, while no answer has followed.
    newest: Option<String>,
}

impl QuoteReader {
    /// For an answer whose prompt held these passages; without any, nothing is a quote.
    pub fn new<'p>(passages: impl IntoIterator<Item = &'p str>) -> Self {
        let possible = possible(passages);
        let place = if possible.is_empty() { Place::Answer } else { Place::LineStart };
        Self { possible, place, held: String::new(), newest: None }
    }

    /// Takes the next piece.
    pub fn push(&mut self, text: &str) -> Piece {
        let mut piece = Piece::default();
        for (at, c) in text.char_indices() {
            match self.place {
                Place::Answer => {
                    piece.text.push_str(&text[at..]);
                    break;
                }
                Place::LineStart => {
                    self.held.push(c);
                    if c == MARK {
                        self.place = Place::Line;
                    } else if !c.is_ascii_whitespace() {
                        // The answer; blank lines behind a quote are none of it.
                        let held = std::mem::take(&mut self.held);
                        piece.text.push_str(if self.newest.is_some() { held.trim_start() } else { &held });
                        self.place = Place::Answer;
                    }
                }
                Place::Line => {
                    self.held.push(c);
                    if c == '\n' {
                        self.line(&mut piece);
                    }
                }
            }
        }
        if !piece.text.is_empty() {
            self.newest = None;
        }
        piece
    }

    /// A whole line that began with the mark.
    fn line(&mut self, piece: &mut Piece) {
        let line = self.held.trim_ascii_start();
        let text = line.strip_prefix(MARK).and_then(|rest| rest.strip_prefix(' ')).map(flat);
        match text.and_then(|text| self.possible.iter().find(|quote| quote.text == text)) {
            Some(quote) => {
                self.held.clear();
                self.newest = Some(quote.text.clone());
                piece.quotes.push(quote.clone());
                self.place = Place::LineStart;
            }
            None => {
                piece.text.push_str(&std::mem::take(&mut self.held));
                self.place = Place::Answer;
            }
        }
    }

    /// What is left of the answer when no more comes. An answer that is nothing but a quote is that quote.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        self.place = Place::Answer;
        match self.newest.take() {
            Some(quote) if held.trim().is_empty() => quote,
            _ => held,
        }
    }
}

/// The quotes of a whole answer, and what follows them.
pub fn split<'p>(answer: &str, passages: impl IntoIterator<Item = &'p str>) -> (Vec<Quote>, String) {
    let mut reader = QuoteReader::new(passages);
    let Piece { quotes, mut text } = reader.push(answer);
    text.push_str(&reader.finish());
    (quotes, text)
}

/// An answer with quotes before it, as [`QuoteReader`] reads it.
#[must_use]
pub fn with(quotes: &[impl AsRef<str>], answer: &str) -> String {
    let lines: String = quotes.iter().map(|quote| format!("{MARK} {}\n", flat(quote.as_ref()))).collect();
    lines + answer
}

/// The parts of an answer that choose whether and what it quotes, as bytes of it: each quote's mark, what follows while that stands more than
/// once in the prompt, and, behind the last one, the first character of the answer. All else of a quote repeats what has been chosen.
///
/// ```
/// use shishin::quote::choices;
/// let prompt = "Give 5 mg. Give water. Wait.";
/// let answer = "> Give 5 mg.\n> Wait.\nFive milligrams [1].";
/// let chosen: Vec<&str> = choices(answer, prompt).into_iter().map(|part| &answer[part]).collect();
/// assert_eq!(chosen, ["> Give 5", "> W", "F"]);
/// ```
#[must_use]
pub fn choices(answer: &str, prompt: &str) -> Vec<Range<usize>> {
    let prompt = flat(prompt);
    let first = |text: &str| text.chars().next().map_or(0, char::len_utf8);
    let mut parts = Vec::new();
    let mut start = 0;
    for line in answer.split_inclusive('\n') {
        let Some(quote) = line.strip_prefix(MARK).and_then(|rest| rest.strip_prefix(' ')) else {
            if start > 0 {
                parts.push(start..start + first(line));
            }
            break;
        };
        let from = start + line.len() - quote.len();
        let places = quote.trim_end().char_indices().map(|(at, _)| at);
        // Before its first character all is open.
        let open = places.take_while(|at| *at == 0 || prompt.match_indices(&quote[..*at]).nth(1).is_some());
        let last = open.last().unwrap_or_default();
        parts.push(start..from + last + first(&quote[last..]));
        start += line.len();
    }
    parts
}

/// The text with all white space made one blank.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const PASSAGES: [&str; 2] =
        ["Give 5 mg.\nThen rest for 20 minutes.", "| 2 mm | wait |\n| 9 mm | scope |\n\n> 7 mm: refer."];
    pub(super) const PASSAGE: &str = "## Dose\nDo not give more than 5 mg. Repeat after\n20 minutes, e.g. in shock.\n\n\
        - Stay in bed until then\n  and call.\n- No.\n1. Weigh the child.\n2. 体重を量る。次に１２ mLを注ぐ。\n\n\
        | mm | what to do |\n| --- | --- |\n| 9. | Scope. Then wait |\n";
    /// All that may be quoted of it.
    pub(super) const UNITS: [&str; 7] = [
        "Do not give more than 5 mg.",
        "Repeat after 20 minutes, e.g. in shock.",
        "Stay in bed until then and call.",
        "1. Weigh the child.",
        "2. 体重を量る。",
        "次に１２ mLを注ぐ。",
        "| 9. | Scope. Then wait |",
    ];

    fn all(answer: &str) -> (Vec<(usize, String)>, String) {
        let (quotes, text) = split(answer, PASSAGES);
        (quotes.into_iter().map(|quote| (quote.n, quote.text)).collect(), text)
    }

    #[test]
    fn quotes_are_taken_out_with_their_passages() {
        let answer = with(&["Then rest for\n20 minutes.", "| 9 mm | scope |"], "Rest [1], then a scope [2].");
        assert_eq!(answer, "> Then rest for 20 minutes.\n> | 9 mm | scope |\nRest [1], then a scope [2].");
        let expected = vec![(1, "Then rest for 20 minutes.".to_owned()), (2, "| 9 mm | scope |".to_owned())];
        assert_eq!(all(&answer), (expected.clone(), "Rest [1], then a scope [2].".to_owned()));
        assert_eq!(all(&with(&["> 7 mm: refer."], "Refer [2].")).0, [(2, "> 7 mm: refer.".to_owned())]);
        assert_eq!(all(&answer.replace('\n', "\n\n")).0, expected, "blank lines do not matter");
        let everything = with(&UNITS, "Yes [1].");
        assert_eq!(split(&everything, [PASSAGE]).0.len(), UNITS.len());
    }

    #[test]
    fn what_is_no_whole_quote_stays_in_the_answer() {
        for answer in [
            "> Give 50 mg.\nRest.",
            "> 7.0 is high [1].",
            // Parts may say the opposite of the whole.
            "> rest for 20 minutes.\nRest.",
            "> Then rest for\nRest.",
            "> Give 5 mg. Then rest for 20 minutes.\nRest.",
            ">Give 5 mg.\nRest.",
            "\u{3000}> Give 5 mg.\nRest.",
            "Rest.\n> Give 5 mg.\n",
            ">\nRest.",
            "\n Rest.",
            "",
        ] {
            assert_eq!(all(answer), (Vec::new(), answer.to_owned()), "{answer}");
        }
        let (quotes, text) = all("> Give 5 mg.\n> Give 50 mg.\nRest.");
        assert_eq!((quotes.len(), text.as_str()), (1, "> Give 50 mg.\nRest."));
        assert_eq!(split("> Give 5 mg.\nRest.", []), (Vec::new(), "> Give 5 mg.\nRest.".to_owned()));
    }

    #[test]
    fn an_answer_that_is_a_quote_is_not_lost() {
        assert_eq!(all("> Give 5 mg.\n"), (vec![(1, "Give 5 mg.".to_owned())], "Give 5 mg.".to_owned()));
        assert_eq!(
            all("> Give 5 mg."),
            (Vec::new(), "> Give 5 mg.".to_owned()),
            "it was cut within the line"
        );
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_nothing_is_lost(
            answer in "(> (Give 5 mg\\.|Then rest for|wait|\\| 2 mm)?[ \n]{0,2}){0,3}[a-z>水\n ]{0,8}", cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let whole = split(&answer, PASSAGES);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|c| *c <= answer.len() && answer.is_char_boundary(*c)).collect();
            cuts.extend([0, answer.len()]);
            cuts.sort_unstable();
            let mut reader = QuoteReader::new(PASSAGES);
            let (mut quotes, mut text) = (Vec::new(), String::new());
            for cut in cuts.windows(2) {
                let piece = reader.push(&answer[cut[0]..cut[1]]);
                quotes.extend(piece.quotes);
                text.push_str(&piece.text);
            }
            text.push_str(&reader.finish());
            let count = |text: &str, skip: &[char]| text.chars().filter(|c| !c.is_whitespace() && !skip.contains(c)).count();
            let said = quotes.iter().map(|quote| count(&quote.text, &[])).sum::<usize>();
            prop_assert!(said + count(&text, &['>']) >= count(&answer, &['>']));
            prop_assert_eq!((quotes, text), whole);
        }
    }
}
