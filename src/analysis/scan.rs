//! Folded text → search terms with positions.
//!
//! Second step of the analysis, shared by both kinds of field. The rules:
//! - Latin words and numbers stay whole (`sglt2`, `2.5`, `130/80`); a number and the unit glued to it are two
//!   words (`140mmHg` = `140 mmHg`). A compound number also yields its parts, so `130` finds `130/80`.
//! - CJK text yields every character and every pair of neighbours. Each character is one position, so a
//!   phrase query over pairs is a true substring match.
//!
//! Tantivy stores a position per token; positions here count words and CJK characters alike.

use super::normalise::{Folded, fold};
use crate::language::{is_han, is_kana};

/// No term is longer than this, in characters. A longer word is cut at index time and at query time alike.
const MAX_TERM_CHARS: usize = 64;

/// What a term is made of; queries weigh terms by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Script {
    /// A word of letters, perhaps with digits.
    Word,
    /// A number, perhaps compound (`130/80`).
    Number,
    /// A piece of a compound number.
    NumberPart,
    /// One CJK character.
    CjkOne,
    /// Two neighbouring CJK characters.
    CjkTwo,
}

/// A search term where it stands in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The normalised text.
    pub text: String,
    /// What it is made of.
    pub script: Script,
    /// Position, counted in words and CJK characters.
    pub position: usize,
    /// How many positions it covers.
    pub width: usize,
    /// Start byte in the original text.
    pub from: usize,
    /// End byte in the original text.
    pub to: usize,
}

/// Characters written without spaces between words, the kana prolonged sound mark included.
#[must_use]
pub const fn is_cjk(c: char) -> bool {
    is_han(c) || is_kana(c) || matches!(c, 'ー' | '\u{AC00}'..='\u{D7A3}')
}

fn is_word(c: char) -> bool {
    !is_cjk(c) && (c.is_alphanumeric() || unicode_normalization::char::is_combining_mark(c))
}

/// Cuts a text into terms, in order of position.
#[must_use]
pub fn terms(text: &str) -> Vec<Term> {
    let folded = fold(text);
    let mut scan = Scan { folded: &folded, out: Vec::with_capacity(folded.len() / 2), position: 0 };
    let mut i = 0;
    while i < folded.len() {
        let c = folded[i].c;
        i = if is_cjk(c) {
            scan.cjk(i)
        } else if c.is_numeric() {
            scan.number(i)
        } else if is_word(c) {
            scan.word(i)
        } else {
            // Any gap ends adjacency: no phrase runs over a full stop or a line end.
            if !matches!(c, ' ' | '-' | '\'' | '’') {
                scan.position += 1;
            }
            i + 1
        };
    }
    scan.out
}

struct Scan<'a> {
    folded: &'a [Folded],
    out: Vec<Term>,
    position: usize,
}

impl Scan<'_> {
    fn push(&mut self, from: usize, to: usize, script: Script, position: usize, width: usize) {
        let run = &self.folded[from..to];
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            let number = matches!(script, Script::Number | Script::NumberPart);
            let kept = run.iter().map(|f| f.c).filter(|c| !(number && *c == ','));
            let text = kept.take(MAX_TERM_CHARS).collect();
            self.out.push(Term { text, script, position, width, from: first.from, to: last.to });
        }
    }

    fn cjk(&mut self, start: usize) -> usize {
        let end = self.run_end(start, is_cjk);
        for i in start..end {
            self.push(i, i + 1, Script::CjkOne, self.position, 1);
            if i + 1 < end {
                self.push(i, i + 2, Script::CjkTwo, self.position, 2);
            }
            self.position += 1;
        }
        end
    }

    /// A number, with its decimal points, thousands separators and slashes. `1,000` is `1000`; the parts of a
    /// compound are what the slashes separate, so a dose is never taken apart.
    fn number(&mut self, start: usize) -> usize {
        let mut parts = Vec::new();
        let mut part = start;
        let mut end = self.run_end(start, char::is_numeric);
        while let Some(mark) = self.folded.get(end).map(|f| f.c) {
            let next = self.run_end(end + 1, char::is_numeric);
            let joins = match mark {
                '.' | '/' => next > end + 1,
                ',' => next == end + 4,
                _ => false,
            };
            if !joins {
                break;
            }
            if mark == '/' {
                parts.push((part, end));
                part = end + 1;
            }
            end = next;
        }
        parts.push((part, end));
        self.push(start, end, Script::Number, self.position, parts.len());
        if parts.len() > 1 {
            for (i, &(from, to)) in parts.iter().enumerate() {
                self.push(from, to, Script::NumberPart, self.position + i, 1);
            }
        }
        self.position += parts.len();
        end
    }

    /// A word that starts with a letter; digits may follow (`hba1c`), an apostrophe may stand inside, and a
    /// possessive ending is dropped.
    fn word(&mut self, start: usize) -> usize {
        let mut end = self.run_end(start, is_word);
        let mut keep = end;
        if self.folded.get(end).is_some_and(|f| matches!(f.c, '\'' | '’'))
            && self.folded.get(end + 1).is_some_and(|f| is_word(f.c) && !f.c.is_numeric())
        {
            let tail = self.run_end(end + 1, is_word);
            let possessive = tail == end + 2 && self.folded[end + 1].c == 's';
            keep = if possessive { end } else { tail };
            end = tail;
        }
        self.push(start, keep, Script::Word, self.position, 1);
        self.position += 1;
        end
    }

    fn run_end(&self, start: usize, belongs: impl Fn(char) -> bool) -> usize {
        let rest = self.folded.get(start..).unwrap_or_default();
        rest.iter().position(|f| !belongs(f.c)).map_or(self.folded.len(), |n| start + n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(text: &str) -> Vec<String> {
        terms(text).into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn keeps_words_and_numbers_whole() {
        assert_eq!(texts("SGLT2 at 2.5 mg"), ["sglt2", "at", "2.5", "mg"]);
        assert_eq!(texts("<130/80mmHg"), ["130/80", "130", "80", "mmhg"]);
        assert_eq!(texts("the patient's HbA1c"), ["the", "patient", "hba1c"]);
        assert_eq!(texts("60-year-old"), ["60", "year", "old"]);
        assert_eq!(texts("２型"), ["2", "型"]);
        assert_eq!(texts("1,000. 1,5"), ["1000", "1", "5"]);
        assert_eq!(texts("2.5/1.25."), ["2.5/1.25", "2.5", "1.25"]);
    }

    #[test]
    fn cuts_cjk_into_ones_and_twos_with_positions() {
        let got: Vec<_> = terms("降圧目標").into_iter().map(|t| (t.text, t.position)).collect();
        let want = [("降", 0), ("降圧", 0), ("圧", 1), ("圧目", 1), ("目", 2), ("目標", 2), ("標", 3)];
        assert_eq!(got, want.map(|(t, p)| (t.to_owned(), p)));
        assert_eq!(texts("スタチン"), texts("ｽﾀﾁﾝ"));
    }

    #[test]
    fn a_long_japanese_run_is_not_lost() {
        assert_eq!(terms(&"高血圧".repeat(200)).len(), 600 + 599);
    }

    #[test]
    fn punctuation_breaks_adjacency() {
        let found = terms("stop. start");
        assert_eq!(found[1].position - found[0].position, 2);
        let found = terms("終わり。始め");
        assert!(found.iter().all(|t| t.text != "り始"));
    }

    proptest! {
        #[test]
        fn offsets_and_positions_hold(text in "\\PC{0,80}") {
            let mut last = 0;
            for term in terms(&text) {
                prop_assert!(text.get(term.from..term.to).is_some_and(|s| !s.is_empty()));
                prop_assert!(!term.text.is_empty() && term.text.chars().count() <= MAX_TERM_CHARS);
                prop_assert!(term.position >= last);
                last = term.position;
            }
        }
    }
}
