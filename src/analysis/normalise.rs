//! Normalisation with a way back: NFKC and lower case, each output character knowing the bytes it came from.
//!
//! First step of the analysis. Widths, ligatures, circled numbers and half-width kana all fold to one form
//! (`ｽﾀﾁﾝ` → `スタチン`, `㎜Hg` → `mmhg`), while offsets still point into the text as written, which is what
//! highlights and spans need.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

/// One normalised character and the bytes of the original it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    /// The character after NFKC and lower-casing.
    pub c: char,
    /// Start byte in the original text.
    pub from: usize,
    /// End byte in the original text.
    pub to: usize,
}

/// Marks that normalisation may merge into the character before them, so that the two are folded together.
fn joins_previous(c: char) -> bool {
    canonical_combining_class(c) != 0
        // Half-width voicing marks become combining ones under NFKC.
        || matches!(c, '\u{FF9E}' | '\u{FF9F}')
        // Hangul vowels and finals compose with the syllable before them.
        || matches!(c, '\u{1160}'..='\u{11FF}')
}

/// Folds a text. Characters that belong together (a letter and its marks) share one span.
#[must_use]
pub fn fold(text: &str) -> Vec<Folded> {
    let mut out = Vec::with_capacity(text.len());
    let mut chars = text.char_indices().peekable();
    while let Some((from, first)) = chars.next() {
        let mut to = from + first.len_utf8();
        while let Some(&(at, c)) = chars.peek() {
            if !joins_previous(c) {
                break;
            }
            to = at + c.len_utf8();
            chars.next();
        }
        if first.is_ascii() && to == from + 1 {
            out.push(Folded { c: first.to_ascii_lowercase(), from, to });
        } else {
            let lower = text[from..to].nfkc().flat_map(char::to_lowercase);
            out.extend(lower.map(|c| Folded { c, from, to }));
        }
    }
    out
}

/// The folded text alone.
#[must_use]
pub fn fold_text(text: &str) -> String {
    fold(text).iter().map(|f| f.c).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn folds_width_case_and_ligatures() {
        assert_eq!(fold_text("ＳＧＬＴ２"), "sglt2");
        assert_eq!(fold_text("ｶﾞｲﾄﾞﾗｲﾝ"), "ガイドライン");
        assert_eq!(fold_text("か\u{3099}"), "が");
        assert_eq!(fold_text("㎜Hg"), "mmhg");
        assert_eq!(fold_text("ﬁrst"), "first");
        assert_eq!(fold_text("①"), "1");
        assert_eq!(fold_text("e\u{301}"), "é");
    }

    #[test]
    fn spans_point_at_the_original() {
        let text = "aｶﾞb";
        let spans: Vec<_> = fold(text).iter().map(|f| (&text[f.from..f.to], f.c)).collect();
        assert_eq!(spans, [("a", 'a'), ("ｶﾞ", 'ガ'), ("b", 'b')]);
    }

    proptest! {
        #[test]
        fn spans_are_ordered_and_on_boundaries(text in "\\PC{0,60}") {
            let mut end = 0;
            for f in fold(&text) {
                prop_assert!(text.get(f.from..f.to).is_some());
                prop_assert!(f.from >= end || f.to == end, "spans overlap");
                end = f.to;
            }
        }

        #[test]
        fn folding_twice_changes_nothing(text in "[a-zA-Zａ-ｚＡ-Ｚ０-９ぁ-んァ-ヶｦ-ﾟ一-龠々ー０-９ .,/-]{0,40}") {
            let once = fold_text(&text);
            prop_assert_eq!(fold_text(&once), once);
        }
    }
}
