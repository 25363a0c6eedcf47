//! Japanese words, by the dictionary of `icu_segmenter`.
//!
//! Pairs of characters ([`scan`](super::scan)) find everything, but also what merely shares two characters; whole words say that it is
//! the same thing. They have a field of their own, beside the pairs, because a dictionary does not know every drug and
//! cuts some names differently in different company.

use std::sync::LazyLock;

use icu_segmenter::options::WordBreakInvariantOptions;
use icu_segmenter::{WordSegmenter, WordSegmenterBorrowed};

use super::normalise::{Folded, fold};
use super::scan::is_cjk;

static SEGMENTER: LazyLock<WordSegmenterBorrowed<'static>> =
    LazyLock::new(|| WordSegmenter::new_dictionary(WordBreakInvariantOptions::default()));

/// A run without a space is given to the dictionary in pieces of this many characters at the most: its time grows
/// faster than a text's length.
const MAX_RUN: usize = 512;

/// A word where it stands in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JapaneseWord {
    /// The normalised word.
    pub text: String,
    /// Its number among the words of the text, gaps included.
    pub position: usize,
    /// Start byte in the original text.
    pub from: usize,
    /// End byte in the original text.
    pub to: usize,
}

/// The words of the text's Japanese runs, without those that are hiragana alone and at most two characters long: endings
/// and particles.
#[must_use]
pub fn japanese_words(text: &str) -> Vec<JapaneseWord> {
    let folded = fold(text);
    let mut out = Vec::new();
    let mut position = 0;
    let mut at = 0;
    while at < folded.len() {
        if !is_cjk(folded[at].c) {
            at += 1;
            continue;
        }
        let run = folded[at..].iter().take(MAX_RUN).take_while(|f| is_cjk(f.c)).count();
        cut(&folded[at..at + run], &mut position, &mut out);
        // No phrase runs over what stands between two runs.
        position += 1;
        at += run;
    }
    out
}

fn cut(run: &[Folded], position: &mut usize, out: &mut Vec<JapaneseWord>) {
    let text: String = run.iter().map(|f| f.c).collect();
    let mut chars = 0;
    let mut last = 0;
    for end in SEGMENTER.segment_str(&text).skip(1) {
        let word = &text[last..end];
        let count = word.chars().count();
        let particle = count <= 2 && word.chars().all(|c| matches!(c, '\u{3041}'..='\u{309F}'));
        if !particle {
            let own = &run[chars..chars + count];
            if let (Some(first), Some(last)) = (own.first(), own.last()) {
                out.push(JapaneseWord {
                    text: word.to_owned(),
                    position: *position,
                    from: first.from,
                    to: last.to,
                });
            }
        }
        *position += 1;
        chars += count;
        last = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        japanese_words(text).into_iter().map(|w| w.text).collect()
    }

    #[test]
    fn words_are_words_and_particles_are_left_out() {
        assert_eq!(words("高血圧の治療を開始する。"), ["高血圧", "治療", "開始"]);
        assert_eq!(words("ｽﾀﾁﾝ療法"), words("スタチン療法"));
        assert!(words("blood pressure 130/80").is_empty());
    }

    #[test]
    fn long_runs_are_cut_in_bounded_pieces() {
        assert_eq!(words(&"糖尿病".repeat(2_000)).len() / 1_000, 2);
    }

    proptest! {
        #[test]
        fn offsets_point_at_the_word(text in "[ぁ-んァ-ヶｦ-ﾟ一-龠ー a-z0-9。]{0,60}") {
            let mut last = 0;
            for word in japanese_words(&text) {
                // Not more: a mark that joins no kana (`ｧﾞ`) shares the bytes of the kana before it.
                let there = super::super::normalise::fold_text(&text[word.from..word.to]);
                prop_assert!(there.trim_end_matches(['\u{3099}', '\u{309A}']) == word.text, "{there:?} for {word:?}");
                prop_assert!(word.from >= last);
                last = word.to;
            }
        }
    }
}
