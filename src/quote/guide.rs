//! Keeps a quote to what the passages say, while it is written.

use serde::Serialize;

use super::{MARK, Quote, possible};

/// Quotes that may stand before an answer; what goes on quoting seldom comes to one.
const MOST: usize = 3;

/// A reader is not taken for surer than this, in powers of e.
const MOST_ODDS: f32 = 10.0;

/// Watches an answer as it is written, and knows what may come next while it quotes: a unit of a passage to its end, each once and a few at
/// the most, and nothing else, the end of the answer least of all. It may also be told which units to prefer.
#[derive(Debug, Clone, Default)]
pub struct QuoteGuide {
    /// What may be quoted, white space made one, and how much it is preferred.
    units: Vec<(Box<[u8]>, f32)>,
    /// So many have been quoted.
    quoted: usize,
    /// See [`QuoteChoice::bar`].
    bar: f32,
    /// See [`QuoteChoice::further_bar`].
    further_bar: f32,
    written: Written,
}

/// What counts in the choice of quotes besides the adapter's own opinion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct QuoteChoice {
    /// How much likelier than by its own choice an adapter quotes a sentence for being near the question: e to the power of so many times
    /// its [`Signs::nearness`]. 0 leaves that out.
    pub nearness: f32,
    /// The same for what a sentence says and where it stands, as [`Bearing`](super::Bearing) weighs it: 1 for as much as that finds, 0 for not
    /// at all.
    pub bearing: f32,
    /// How much likelier than all else an adapter must find it to begin with a quote, in powers of e; where it does not, it says what else it
    /// would, and that is that the passages do not answer. 0 leaves that to the adapter too.
    pub bar: f32,
    /// The same for each quote after the first, against going on to the answer.
    pub further_bar: f32,
    /// How much a reader's own odds that some sentence answers count in that: so many times their logarithm is added to the adapter's before
    /// the first quote. 0 leaves them out.
    pub reader_odds: f32,
}

/// What tells whether a sentence answers a question, apart from what a model thinks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signs {
    /// What a reader makes of it, or the cosine of their vectors; 0 for all sentences where there is neither.
    pub nearness: f32,
    /// See [`Bearing::on`](super::Bearing::on).
    pub bearing: f32,
}

/// What may be quoted, with what tells whether it answers a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signed {
    /// Each sentence, list item or row with its signs.
    pub units: Vec<(Quote, Signs)>,
    /// The logarithm of the odds that one of them answers against none, as a reader finds; `None` without one.
    pub odds: Option<f32>,
}

impl Signed {
    /// Of which nothing is known.
    #[must_use]
    pub fn plain(possible: impl IntoIterator<Item = Quote>) -> Self {
        Self { units: possible.into_iter().map(|quote| (quote, Signs::default())).collect(), odds: None }
    }
}

impl QuoteChoice {
    /// How much a sentence with these signs is preferred, as the logarithm of a factor.
    #[must_use]
    pub fn preference(&self, signs: Signs) -> f32 {
        self.nearness * signs.nearness + self.bearing * signs.bearing
    }

    /// What a reader adds to the logarithm of the odds of a first quote.
    #[must_use]
    pub fn support(&self, of: &Signed) -> f32 {
        // Odds of hundreds, of what no sentence is near to, stay a number that can be weighed.
        self.reader_odds * of.odds.unwrap_or_default().clamp(-MOST_ODDS, MOST_ODDS)
    }

    /// The same with another bar of the first quote, if there is one: an adapter's own.
    #[must_use]
    pub fn with_bar(self, bar: Option<f32>) -> Self {
        Self { bar: bar.unwrap_or(self.bar), ..self }
    }
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
        Self::preferring(possible(passages).into_iter().map(|quote| (quote.text, 0.0)))
    }

    /// For an answer that may quote these units and nothing else, each with its preference: a unit's probability is multiplied by e to the
    /// power of it, against the others'.
    ///
    /// ```
    /// use shishin::quote::QuoteGuide;
    /// let mut guide = QuoteGuide::preferring([("Give 5 mg.".to_owned(), 0.0), ("Wait.".to_owned(), 2.0)]);
    /// guide.push(b"> ");
    /// let (give, wait) = (guide.preference(b"Give").unwrap(), guide.preference(b"Wait").unwrap());
    /// assert!((wait - give - 2.0).abs() < 1e-6 && guide.preference(b"Take").is_none());
    /// ```
    pub fn preferring(units: impl IntoIterator<Item = (String, f32)>) -> Self {
        let units: Vec<_> = units
            .into_iter()
            .map(|(unit, preference)| (unit.into_bytes().into_boxed_slice(), preference))
            .collect();
        let written = if units.is_empty() { Written::Answer } else { Written::LineStart };
        Self { units, quoted: 0, bar: 0.0, further_bar: 0.0, written }
    }

    /// For an answer that may quote these, each with its signs.
    pub fn choosing(possible: Signed, choice: QuoteChoice) -> Self {
        let support = choice.support(&possible);
        let Signed { units, .. } = possible;
        let preferred = units.into_iter().map(|(quote, signs)| (quote.text, choice.preference(signs)));
        Self { bar: choice.bar - support, further_bar: choice.further_bar, ..Self::preferring(preferred) }
    }

    /// Whether there may be text that must not come next, or is preferred.
    pub fn watches(&self) -> bool {
        self.written != Written::Answer
    }

    /// Whether a quote is being written.
    pub fn quotes(&self) -> bool {
        matches!(self.written, Written::Quote(..))
    }

    /// Whether it is open if something is quoted, or which of several units, and one is preferred to another.
    pub fn prefers(&self) -> bool {
        let open: &mut dyn Iterator<Item = usize> = match &self.written {
            Written::Answer => return false,
            Written::LineStart if self.quoted >= MOST => return false,
            Written::LineStart if self.bar_here() != 0.0 => return true,
            Written::LineStart | Written::Mark => &mut (0..self.units.len()),
            Written::Quote(units, _) => &mut units.iter().copied(),
        };
        let mut preferences = open.map(|unit| self.units[unit].1);
        let first = preferences.next();
        preferences.any(|preference| Some(preference) != first)
    }

    /// How much likelier than a model says these bytes shall be to come next, as the logarithm of a factor: that of the most preferred unit
    /// that may still follow, against the most preferred one that might have; a unit's own factor comes of all its bytes. `None` where they
    /// must not come at all; in a quote that is also said of no bytes, the end of an answer.
    ///
    /// The sum over units would count a beginning that many share twice, since the model counts it too.
    pub fn preference(&self, bytes: &[u8]) -> Option<f32> {
        // Nearly all of a vocabulary is decided here.
        match &self.written {
            Written::Answer => return Some(0.0),
            Written::LineStart if bytes.trim_ascii_start().first() != Some(&(MARK as u8)) => {
                return Some(0.0);
            }
            Written::Mark if bytes.first() != Some(&b' ') => return Some(0.0),
            Written::Mark if bytes.len() > 1 && !bytes.contains(&b'\n') => {
                return self.within(0..self.units.len(), 0, &bytes[1..]);
            }
            Written::Quote(units, at) => {
                let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
                if line.len() == bytes.len() {
                    return self.within(units.iter().copied(), *at, line);
                }
                if line.is_empty() {
                    self.ended(&self.written)?;
                } else {
                    self.within(units.iter().copied(), *at, line)?;
                }
            }
            Written::LineStart | Written::Mark => {}
        }
        let mut guide = self.clone();
        let mut sum = 0.0;
        for byte in bytes {
            sum += guide.preference_of(*byte)?;
            guide.push(&[*byte]);
        }
        Some(sum)
    }

    /// What the next quote must be likelier by than all else, where a line begins.
    fn bar_here(&self) -> f32 {
        if self.quoted == 0 { self.bar } else { self.further_bar }
    }

    /// The preference of one byte.
    fn preference_of(&self, byte: u8) -> Option<f32> {
        match &self.written {
            Written::Quote(units, _) if byte == b'\n' => {
                let ended = self.ended(&self.written)?;
                Some(self.units[ended].1 - self.most(units.iter().copied()))
            }
            Written::Quote(units, at) => self.within(units.iter().copied(), *at, &[byte]),
            Written::LineStart if byte == MARK as u8 => {
                self.step(Written::LineStart, byte).map(|_| -self.bar_here())
            }
            _ => self.step(self.written.clone(), byte).map(|_| 0.0),
        }
    }

    /// Whether these bytes may come next. In a quote no bytes, the end of an answer, may not.
    pub fn allows(&self, bytes: &[u8]) -> bool {
        self.preference(bytes).is_some()
    }

    /// The preference of bytes that go on with one of these units, of which so many bytes are written.
    fn within(&self, units: impl Iterator<Item = usize> + Clone, at: usize, bytes: &[u8]) -> Option<f32> {
        if bytes.is_empty() {
            return None;
        }
        let mut left = units.clone().filter(|unit| self.units[*unit].0[at..].starts_with(bytes)).peekable();
        left.peek().is_some().then(|| self.most(left) - self.most(units))
    }

    fn most(&self, units: impl Iterator<Item = usize>) -> f32 {
        units.map(|unit| self.units[unit].1).fold(f32::NEG_INFINITY, f32::max)
    }

    /// The unit that is written to its end.
    fn ended(&self, written: &Written) -> Option<usize> {
        let Written::Quote(units, at) = written else { return None };
        units.iter().copied().find(|unit| self.units[*unit].0.len() == *at)
    }

    /// Notes what has come next. What is not allowed counts as answer.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let written = std::mem::take(&mut self.written);
            if *byte == b'\n'
                && let Some(done) = self.ended(&written)
            {
                // None is quoted twice, so quotes come to an end.
                self.units.remove(done);
                self.quoted += 1;
                self.written = Written::LineStart;
            } else {
                self.written = self.step(written, *byte).unwrap_or_default();
            }
        }
    }

    /// What is written with one more byte, if that is allowed.
    fn step(&self, written: Written, byte: u8) -> Option<Written> {
        Some(match written {
            Written::LineStart if byte == MARK as u8 => {
                // Enough, or all, is quoted.
                (self.quoted < MOST && !self.units.is_empty()).then_some(Written::Mark)?
            }
            Written::LineStart if byte.is_ascii_whitespace() => Written::LineStart,
            // Without a blank it is no quote: ">5 mm".
            Written::Mark if byte == b' ' => Written::Quote((0..self.units.len()).collect(), 0),
            Written::LineStart | Written::Mark | Written::Answer => Written::Answer,
            Written::Quote(..) if byte == b'\n' => self.ended(&written).map(|_| Written::LineStart)?,
            Written::Quote(mut units, at) => {
                units.retain(|unit| self.units[*unit].0.get(at) == Some(&byte));
                (!units.is_empty()).then_some(Written::Quote(units, at + 1))?
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
        let answers =
            ["> 次に１２ mLを注ぐ。\nPour 1 mL.\n> Give", "Give\n> 50 mg", ">50 mg", "\n \n>50", ">", ""];
        for free in answers {
            assert!(guided(free, [PASSAGE]).is_ok(), "{free}");
        }
        for passages in [&[][..], &["# Dose"]] {
            let guide = guided("> Give 50 mg", passages.iter().copied()).unwrap();
            assert!(!guide.watches());
        }
        // No more quotes when enough is quoted, or all.
        for (quotes, passage) in
            [(&UNITS[..2], PASSAGE), (&UNITS[..3], PASSAGE), (&["Wait for help."], "Wait for help.")]
        {
            let before = with(quotes, "\n ");
            assert!(guided(&format!("{before}Give"), [passage]).is_ok());
            let more = guided(&format!("{before}> "), [passage]);
            assert_eq!(more.is_ok(), quotes.len() == 2, "{quotes:?}");
        }
    }

    #[test]
    fn preferences_go_to_the_best_that_may_follow() {
        let units = [("Do not give more.", 0.0), ("Do give.", 1.0), ("Wait.", 3.0)];
        let mut guide = QuoteGuide::preferring(units.map(|(unit, preference)| (unit.to_owned(), preference)));
        let of = |guide: &QuoteGuide, bytes: &str| guide.preference(bytes.as_bytes());
        assert!(guide.prefers());
        for (bytes, preference) in
            [("Yes", 0.0), (">", 0.0), ("> ", 0.0), ("\n> Do ", -2.0), ("> Wait.\nYes", 0.0)]
        {
            assert_eq!(of(&guide, bytes), Some(preference), "{bytes}");
        }
        guide.push(b">");
        assert_eq!((of(&guide, " Do"), of(&guide, " Wait")), (Some(-2.0), Some(0.0)));
        guide.push(b" Do ");
        assert_eq!((of(&guide, "not"), of(&guide, "give.\n> W")), (Some(-1.0), Some(0.0)));
        assert_eq!(of(&guide, "give.\n> Do"), Some(-3.0), "what is quoted is gone");
        assert_eq!(of(&guide, "\n"), None);
        guide.push(b"give.");
        assert!(!guide.prefers() && of(&guide, "\n") == Some(0.0));
        // One that begins another.
        let mut guide = QuoteGuide::preferring([("Do.".to_owned(), 0.0), ("Do. Wait.".to_owned(), 1.0)]);
        guide.push(b"> Do.");
        assert_eq!((of(&guide, "\n"), of(&guide, " W")), (Some(-1.0), Some(0.0)));
        // The first quote must be so much likelier than all else.
        let sign = |text: &str, cosine, bearing| {
            (Quote { n: 1, text: text.into() }, Signs { nearness: cosine, bearing })
        };
        let near = [sign("Do give.", 0.5, 2.0), sign("Wait.", 1.0, 2.5)];
        let mut guide = QuoteGuide::choosing(
            Signed { units: near.to_vec(), odds: None },
            QuoteChoice { nearness: 3.0, bearing: 1.0, bar: 0.5, further_bar: 0.75, reader_odds: 2.0 },
        );
        assert_eq!(
            (of(&guide, ">"), of(&guide, "Yes"), of(&guide, "\n")),
            (Some(-0.5), Some(0.0), Some(0.0))
        );
        assert_eq!(of(&guide, "\n> Do"), Some(-2.5));
        // Each further one too, against the answer.
        assert_eq!((of(&guide, "> Wait.\n>"), of(&guide, "> Wait.\nYes")), (Some(-1.25), Some(-0.5)));
        guide.push(b"> Do give.\n");
        assert_eq!(
            (guide.prefers(), of(&guide, ">"), of(&guide, "\n>"), of(&guide, "Yes")),
            (true, Some(-0.75), Some(-0.75), Some(0.0))
        );
        let one = |odds| Signed { units: near[..1].to_vec(), odds };
        let guide = QuoteGuide::choosing(one(None), QuoteChoice { bar: 0.5, ..QuoteChoice::default() });
        assert!(guide.prefers());
        // A reader's odds that it answers count beside the adapter's own, as far as they can be believed.
        let choice = QuoteChoice { bar: 0.5, reader_odds: 0.25, ..QuoteChoice::default() };
        for (odds, expected) in [(None, -0.5), (Some(2.0), 0.0), (Some(-2.0), -1.0), (Some(-400.0), -3.0)] {
            assert_eq!(of(&QuoteGuide::choosing(one(odds), choice), ">"), Some(expected), "{odds:?}");
        }
        // With all alike the choice is left to the model.
        let mut guide = QuoteGuide::new([PASSAGE]);
        assert!(!guide.prefers());
        guide.push(b"> ");
        assert_eq!((of(&guide, "Do"), of(&guide, "| 9. |")), (Some(0.0), Some(0.0)));
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
                    let allowed: Vec<u8> = (0..=255).filter(|byte: &u8| guide.allows(&[*byte])).collect();
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
            let units = UNITS.iter().zip(0u8..).map(|(unit, n)| ((*unit).to_owned(), f32::from(n)));
            let mut guide = QuoteGuide { bar: 0.5, further_bar: 0.25, ..QuoteGuide::preferring(units) };
            guide.push(start.as_bytes());
            let mut one = guide.clone();
            let each = token.bytes().try_fold(0.0, |sum, byte| {
                let preference = one.preference(&[byte])?;
                one.push(&[byte]);
                Some(sum + preference)
            });
            let each = each.filter(|_| !token.is_empty() || !guide.quotes());
            let whole = guide.preference(token.as_bytes());
            prop_assert!(whole.zip(each).map_or(whole.is_none() && each.is_none(), |(a, b)| (a - b).abs() < 1e-3), "{:?} {:?}", whole, each);
        }
    }
}
