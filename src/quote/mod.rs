//! Quotes: what an answer stands on, letter by letter, before the answer itself.
//!
//! An adapter may have learnt to begin an answer over passages with lines `> …` that repeat what it answers from. A line that stands
//! in a passage is taken out of the answer and told apart, with the passage's number: whoever reads the answer can hold it against what the
//! guideline says. A line that stands in none stays where it is, since taking it out would hide what the model said.

use serde::{Deserialize, Serialize};

/// What a quote begins with.
const MARK: char = '>';
/// Characters of a quote at the least: `> 20 minutes` means that it is more.
const SHORTEST: usize = 9;

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
    /// The passages' texts, white space made one.
    passages: Vec<String>,
    place: Place,
    /// Text that may become a quote.
    held: String,
    /// The newest quote, while no answer has followed.
    newest: Option<String>,
}

impl QuoteReader {
    /// For an answer whose prompt held these passages; without any, nothing is a quote.
    pub fn new<'p>(passages: impl IntoIterator<Item = &'p str>) -> Self {
        let passages: Vec<String> = passages.into_iter().map(flat).collect();
        let place = if passages.is_empty() { Place::Answer } else { Place::LineStart };
        Self { passages, place, held: String::new(), newest: None }
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
                    } else if !c.is_whitespace() {
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
        let line = self.held.trim_start();
        let text = flat(line.strip_prefix(MARK).unwrap_or(line));
        let long = text.chars().count() >= SHORTEST;
        let n = self.passages.iter().position(|passage| long && passage.contains(&text));
        match n {
            Some(at) => {
                self.held.clear();
                self.newest = Some(text.clone());
                piece.quotes.push(Quote { n: at + 1, text });
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
pub fn with(quotes: &[&str], answer: &str) -> String {
    let lines: String = quotes.iter().map(|quote| format!("{MARK} {}\n", flat(quote))).collect();
    lines + answer
}

/// The text with all white space made one blank.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSAGES: [&str; 2] =
        ["Give 5 mg.\nThen rest for 20 minutes.", "| 2 mm | wait |\n| 9 mm | scope |\n> 7 mm: refer."];

    fn all(answer: &str) -> (Vec<(usize, String)>, String) {
        let (quotes, text) = split(answer, PASSAGES);
        (quotes.into_iter().map(|quote| (quote.n, quote.text)).collect(), text)
    }

    #[test]
    fn quotes_are_taken_out_with_their_passages() {
        let answer = with(&["Give 5 mg. Then rest", "| 9 mm | scope |"], "Rest [1], then a scope [2].");
        assert_eq!(answer, "> Give 5 mg. Then rest\n> | 9 mm | scope |\nRest [1], then a scope [2].");
        let expected = vec![(1, "Give 5 mg. Then rest".to_owned()), (2, "| 9 mm | scope |".to_owned())];
        assert_eq!(all(&answer), (expected.clone(), "Rest [1], then a scope [2].".to_owned()));
        assert_eq!(all(&with(&["> 7 mm: refer."], "Refer [2].")).0, [(2, "> 7 mm: refer.".to_owned())]);
        assert_eq!(all(&answer.replace('\n', "\n\n")).0, expected, "blank lines do not matter");
    }

    #[test]
    fn what_no_passage_says_stays_in_the_answer() {
        for answer in [
            "> Give 50 mg.\nRest.",
            "> 7.0 is high [1].",
            "> 9 mm |\nRest.",
            "Rest.\n> Give 5 mg.\n",
            ">\nRest.",
            "\n Rest.",
            "",
        ] {
            assert_eq!(all(answer), (Vec::new(), answer.to_owned()), "{answer}");
        }
        let (quotes, text) = all("> Give 5 mg. Then\n> Give 50 mg.\nRest.");
        assert_eq!((quotes.len(), text.as_str()), (1, "> Give 50 mg.\nRest."));
        assert_eq!(
            split("> Give 5 mg. Then\nRest.", []),
            (Vec::new(), "> Give 5 mg. Then\nRest.".to_owned())
        );
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
            answer in "(> (Give 5 mg\\. Then|Then rest for|wait|\\| 2 mm)?[ \n]{0,2}){0,3}[a-z>水\n ]{0,8}", cuts in prop::collection::vec(0usize..60, 0..8),
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
