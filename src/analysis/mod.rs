//! Text analysis: one way of cutting text into search terms, used by ingest to index and by retrieve to ask.
//!
//! In path order: [`normalise`] (NFKC, lower case, with a map back to the original bytes) → [`scan`] (words,
//! numbers, CJK uni- and bigrams with true positions) → [`fields`] (the tantivy tokenizers of the two kinds of
//! field); beside them, [`sentences`] finds where sentences end, [`figures`] numbers with their units, [`conditions`] what figures must be, and [`citations`] `[n]`. Index and query must agree to the letter, so [`VERSION`] is part of every tokenizer's name and of
//! every generation's manifest: a change here that alters any term must change it.

pub mod citations;
pub mod conditions;
pub mod fields;
pub mod figures;
pub mod normalise;
pub mod scan;
pub mod sentences;
pub mod synonyms;
pub mod words;

pub use fields::{ENGLISH, JAPANESE, TEXT, register};
pub use scan::{Script, Term, terms};

/// The version of the analysis; a generation built with another one is refused.
pub const VERSION: &str = "v2";

/// English words that say nothing about the subject of a text or question. Negations are kept out of the
/// list: "not recommended" is a statement of its own.
const STOP_WORDS: &[&str] = &[
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been",
    "before", "being", "between", "both", "but", "by", "can", "could", "did", "do", "does", "doing", "done",
    "each", "for", "from", "get", "give", "had", "has", "have", "having", "he", "her", "him", "his", "how",
    "i", "if", "in", "into", "is", "it", "its", "kind", "know", "let", "like", "many", "may", "me", "might",
    "more", "most", "much", "must", "my", "of", "on", "one", "or", "other", "our", "out", "over", "own",
    "please", "say", "says", "shall", "she", "should", "so", "some", "such", "tell", "than", "that", "the",
    "their", "them", "then", "there", "these", "they", "this", "those", "to", "too", "until", "up", "us",
    "use", "used", "using", "very", "was", "we", "well", "were", "what", "when", "where", "which", "while",
    "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
];

/// Whether a normalised English word is a stop word.
#[must_use]
pub fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.binary_search(&word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_words_are_sorted_for_binary_search() {
        assert!(STOP_WORDS.is_sorted());
        assert!(is_stop_word("the") && is_stop_word("your") && !is_stop_word("not"));
    }
}
