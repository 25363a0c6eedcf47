//! Keeps a quote to what the passages say, while it is written.

use super::MARK;
use super::units::all_units;

/// Watches an answer as it is written, and knows what may come next while it quotes: a unit of a passage to its end, each once, and nothing
/// else, the end of the answer least of all.
#[derive(Debug, Clone, Default)]
pub struct QuoteGuide {
    /// What may be quoted, white space made one.
    units: Vec<Box<[u8]>>,
    written: Written,
}

/// What an answer's text is at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Written {
    /// The beginning of a line, after quotes at the most.
    LineStart,
    /// A line's mark.
    Mark,
    /// The beginning of a quote: so many bytes that each of these units begins with.
    Quote(Vec<usize>, usize),
    /// More than quotes: all is free from here on.
    #[default]
    Answer,
}

impl QuoteGuide {
    /// For an answer whose prompt holds these passages; without any, all is free.
    pub fn new<'p>(passages: impl IntoIterator<Item = &'p str>) -> Self {
        let units: Vec<Box<[u8]>> =
            all_units(passages).into_iter().map(|(_, unit)| unit.into_bytes().into_boxed_slice()).collect();
        let written = if units.is_empty() { Written::Answer } else { Written::LineStart };
        Self { units, written }
    }

    /// Whether there may be text that must not come next.
    pub fn watches(&self) -> bool {
        self.written != Written::Answer
    }

    /// Whether a quote is being written.
    pub fn quotes(&self) -> bool {
        matches!(self.written, Written::Quote(..))
    }

    /// Whether these bytes may come next. In a quote no bytes, the end of an answer, may not.
    pub fn allows(&self, bytes: &[u8]) -> bool {
        // Nearly all of a vocabulary is decided here.
        match &self.written {
            Written::Answer => true,
            Written::Quote(units, at) if !bytes.contains(&b'\n') => {
                let Some(first) = bytes.first() else { return false };
                let goes_on = |unit: &usize| self.units[*unit][*at..].starts_with(bytes);
                units.iter().any(goes_on)
                    || *at == 0 && self.step(self.written.clone(), *first) == Some(Written::Answer)
            }
            _ => bytes
                .iter()
                .try_fold(self.written.clone(), |written, byte| self.step(written, *byte))
                .is_some(),
        }
    }

    /// Notes what has come next. What is not allowed counts as answer.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut written = std::mem::take(&mut self.written);
            if let Written::Quote(units, at) = &mut written
                && *byte == b'\n'
                && let Some(done) = units.iter().find(|unit| self.units[**unit].len() == *at)
            {
                // None is quoted twice, so quotes come to an end.
                self.units.remove(*done);
                self.written = Written::LineStart;
            } else {
                self.written = self.step(written, *byte).unwrap_or_default();
            }
        }
    }

    /// What is written with one more byte, if that is allowed.
    fn step(&self, written: Written, byte: u8) -> Option<Written> {
        Some(match written {
            Written::LineStart if byte == MARK as u8 => Written::Mark,
            Written::LineStart if byte.is_ascii_whitespace() => Written::LineStart,
            // Without a blank it is no quote: ">5 mm".
            Written::Mark if byte == b' ' && !self.units.is_empty() => {
                Written::Quote((0..self.units.len()).collect(), 0)
            }
            Written::LineStart | Written::Mark | Written::Answer => Written::Answer,
            Written::Quote(units, at) if byte == b'\n' => {
                units.iter().any(|unit| self.units[*unit].len() == at).then_some(Written::LineStart)?
            }
            Written::Quote(mut units, at) => {
                units.retain(|unit| self.units[*unit].get(at) == Some(&byte));
                match units.is_empty() {
                    false => Written::Quote(units, at + 1),
                    // A figure that no unit begins with: "> 60 mL/min" means that it is more.
                    true if at == 0 && byte.is_ascii_digit() => Written::Answer,
                    true => return None,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{PASSAGE, PASSAGES, UNITS};
    use super::super::{split, with};
    use super::*;

    /// The state after a text of which each character was allowed, or where one was not.
    fn guided<'p>(text: &str, passages: impl IntoIterator<Item = &'p str>) -> Result<QuoteGuide, usize> {
        let mut guide = QuoteGuide::new(passages);
        for (at, c) in text.char_indices() {
            let mut bytes = [0; 4];
            let bytes = c.encode_utf8(&mut bytes).as_bytes();
            if !guide.allows(bytes) {
                return Err(at);
            }
            guide.push(bytes);
        }
        Ok(guide)
    }

    #[test]
    fn a_quote_can_only_be_true() {
        let guide = guided("> Do not give", [PASSAGE]).unwrap();
        assert!(guide.quotes());
        for right in
            [" more", " more than 5 mg.", " more than 5 mg.\nGive 4 mg", " more than 5 mg.\n\n> Repeat"]
        {
            assert!(guide.allows(right.as_bytes()), "{right}");
        }
        for wrong in [" more than 50", " up", "\n", "", " more than 5 mg. Repeat", " more than 5 mg.\n> Give"]
        {
            assert!(!guide.allows(wrong.as_bytes()), "{wrong}");
        }
        // A quote cannot leave out how a sentence begins or ends, and comes once.
        assert_eq!(guided("> give", [PASSAGE]).unwrap_err(), 2);
        assert_eq!(guided("> Do not give more\n", [PASSAGE]).unwrap_err(), 18);
        let twice = "> Do not give more than 5 mg.\n> Do";
        assert_eq!(guided(twice, [PASSAGE]).unwrap_err(), twice.len() - 2);
    }

    #[test]
    fn all_else_is_free() {
        let answers = [
            "> 次に１２ mLを注ぐ。\nPour 1 mL.\n> Give",
            "Give\n> 50 mg",
            ">50 mg",
            "> 50 mg",
            "\n \n>50",
            ">",
            "",
        ];
        for free in answers {
            assert!(guided(free, [PASSAGE]).is_ok(), "{free}");
        }
        assert!(
            QuoteGuide::new([PASSAGE]).allows(b"> 50 mg") && !QuoteGuide::new([PASSAGE]).allows(b"> fifty")
        );
        for passages in [&[][..], &["# Dose"]] {
            let guide = guided("> Give 50 mg", passages.iter().copied()).unwrap();
            assert!(!guide.watches());
        }
        // When all has been quoted there is nothing more to quote.
        let all = with(&UNITS, "");
        assert_eq!(guided(&format!("{all}> "), [PASSAGE]).map(|guide| guide.watches()), Ok(false));
    }

    proptest! {
        #[test]
        fn what_is_guided_is_quoted(picks in prop::collection::vec(prop::collection::vec(0usize..200, 80), 1..4)) {
            // Whatever is picked of what is allowed, whole lines come of it that the reader finds in a passage.
            let mut guide = QuoteGuide::new([PASSAGE, PASSAGES[0]]);
            let mut answer = Vec::new();
            for picks in &picks {
                guide.push(b"> ");
                answer.extend(b"> ");
                for pick in picks.iter().cycle() {
                    let allowed: Vec<u8> =
                        (0..=255).filter(|byte: &u8| !byte.is_ascii_digit() && guide.allows(&[*byte])).collect();
                    let Some(byte) = allowed.get(pick % allowed.len().max(1)) else { return Ok(()) };
                    guide.push(&[*byte]);
                    answer.push(*byte);
                    if *byte == b'\n' {
                        break;
                    }
                }
            }
            let answer = String::from_utf8(answer).unwrap();
            let (quotes, text) = split(&format!("{answer}Yes."), [PASSAGE, PASSAGES[0]]);
            prop_assert_eq!((quotes.len(), text.as_str()), (picks.len(), "Yes."));
        }

        #[test]
        fn tokens_are_judged_as_their_bytes_are(start in "(> )?(Do not|Repeat after 2)?", token in "[>D ]?[ a-z\n50]{0,4}") {
            let mut guide = QuoteGuide::new([PASSAGE]);
            guide.push(start.as_bytes());
            let mut one = guide.clone();
            let each = token.bytes().all(|byte| {
                let allowed = one.allows(&[byte]);
                one.push(&[byte]);
                allowed
            });
            prop_assert_eq!(guide.allows(token.as_bytes()), each && !(token.is_empty() && guide.quotes()));
        }
    }
}
