//! The tantivy tokenizers of the two kinds of field: every term as scanned, and stemmed English words.
//!
//! Last step of the analysis. Tantivy stores a tokenizer by name only, so [`register`] must run on every index
//! that is created or opened, before anything is read or written.

use tantivy::Index;
use tantivy::tokenizer::{Language, Stemmer, TextAnalyzer, Token, TokenStream, Tokenizer};

use super::scan::{Script, Term, terms};
use super::words::japanese_words;

/// Name of the tokenizer that keeps every term.
pub const TEXT: &str = "shishin_text_v2";
/// Name of the tokenizer that keeps English words only, without stop words, stemmed.
pub const ENGLISH: &str = "shishin_english_v2";

/// Name of the tokenizer that keeps Japanese words only.
pub const JAPANESE: &str = "shishin_japanese_v2";

/// Gives an index the tokenizers its fields name.
pub fn register(index: &Index) {
    index.tokenizers().register(TEXT, TextAnalyzer::from(Cut { english: false }));
    index.tokenizers().register(ENGLISH, english_analyzer());
    index.tokenizers().register(JAPANESE, TextAnalyzer::from(JapaneseWords));
}

fn english_analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(Cut { english: true }).filter(Stemmer::new(Language::English)).build()
}

/// Whether a term goes into the stemmed English field.
#[must_use]
pub fn is_english_word(term: &Term) -> bool {
    term.script == Script::Word && term.text.is_ascii() && !super::is_stop_word(&term.text)
}

/// Stems words as the English field does; the output has the order and number of the input.
#[must_use]
pub fn stem_all<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let tokens = words.into_iter().map(|w| Token { text: w.to_owned(), ..Token::default() }).collect();
    let mut analyzer =
        TextAnalyzer::builder(Ready { tokens }).filter(Stemmer::new(Language::English)).build();
    let mut stems = Vec::new();
    analyzer.token_stream("").process(&mut |t| stems.push(t.text.clone()));
    stems
}

/// Tokenizes by [`terms`].
#[derive(Clone)]
struct Cut {
    english: bool,
}

impl Tokenizer for Cut {
    type TokenStream<'a> = Tokens;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Tokens {
        let english = self.english;
        let kept = terms(text).into_iter().filter(|t| !english || is_english_word(t));
        Tokens::new(
            kept.map(|t| Token {
                offset_from: t.from,
                offset_to: t.to,
                position: t.position,
                text: t.text,
                position_length: t.width,
            })
            .collect(),
        )
    }
}

/// Tokenizes by [`japanese_words`].
#[derive(Clone)]
struct JapaneseWords;

impl Tokenizer for JapaneseWords {
    type TokenStream<'a> = Tokens;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Tokens {
        let words = japanese_words(text).into_iter().map(|w| Token {
            offset_from: w.from,
            offset_to: w.to,
            position: w.position,
            text: w.text,
            position_length: 1,
        });
        Tokens::new(words.collect())
    }
}

/// Hands out tokens that were made elsewhere, so that the stemmer can run over single words.
#[derive(Clone)]
struct Ready {
    tokens: Vec<Token>,
}

impl Tokenizer for Ready {
    type TokenStream<'a> = Tokens;

    fn token_stream<'a>(&'a mut self, _text: &'a str) -> Tokens {
        Tokens::new(std::mem::take(&mut self.tokens))
    }
}

/// A token list as a stream.
struct Tokens {
    rest: std::vec::IntoIter<Token>,
    now: Token,
}

impl Tokens {
    fn new(tokens: Vec<Token>) -> Self {
        Self { rest: tokens.into_iter(), now: Token::default() }
    }
}

impl TokenStream for Tokens {
    fn advance(&mut self) -> bool {
        let Some(next) = self.rest.next() else { return false };
        self.now = next;
        true
    }

    fn token(&self) -> &Token {
        &self.now
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english_field_stems_and_drops_stop_words() {
        let mut out = Vec::new();
        english_analyzer()
            .token_stream("The targets of blood pressures, 高血圧 130/80")
            .process(&mut |t| out.push((t.text.clone(), t.position)));
        let words: Vec<_> = out.iter().map(|(t, _)| t.as_str()).collect();
        assert_eq!(words, ["target", "blood", "pressur"]);
        assert!(out[1].1 > out[0].1);
    }

    #[test]
    fn stem_all_agrees_with_the_field() {
        assert_eq!(stem_all(["pressures", "targets"]), ["pressur", "target"]);
    }

    #[test]
    fn names_carry_the_version() {
        assert!(TEXT.ends_with(super::super::VERSION) && ENGLISH.ends_with(super::super::VERSION));
    }
}
