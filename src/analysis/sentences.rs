//! Where sentences end, in English and Japanese: chunks are split there, and a passage that does not fit
//! into a prompt is cut there.

/// Byte offsets just after the end of each sentence.
pub fn sentence_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut chars = text.char_indices().peekable();
    std::iter::from_fn(move || {
        while let Some((at, c)) = chars.next() {
            let end = at + c.len_utf8();
            let next = chars.peek().map(|n| n.1);
            let ends = match c {
                // A closing bracket right after the mark belongs to the sentence.
                '。' | '！' | '？' | '」' | '』' | '）' => {
                    let closes = matches!(c, '」' | '』' | '）');
                    let after_mark = text[..at].ends_with(['。', '！', '？']);
                    (!closes || after_mark) && !next.is_some_and(|n| matches!(n, '」' | '』' | '）'))
                }
                '.' | '!' | '?' => next.is_some_and(char::is_whitespace) && !is_abbreviation(&text[..at]),
                '\n' => next == Some('\n'),
                _ => false,
            };
            if ends && next.is_some() {
                return Some(end);
            }
        }
        None
    })
}

/// Whether the text before a full stop ends in an abbreviation or a list number, so that no sentence ends there.
fn is_abbreviation(before: &str) -> bool {
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    matches!(word, "e.g" | "i.e" | "vs" | "cf" | "Dr" | "Fig" | "No" | "approx" | "et al" | "al")
        || (word.len() <= 2 && !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> Vec<&str> {
        let mut starts = vec![0];
        starts.extend(sentence_ends(text));
        starts.push(text.len());
        starts.windows(2).map(|w| text[w[0]..w[1]].trim()).collect()
    }

    #[test]
    fn sentences_end_where_a_reader_ends_them() {
        assert_eq!(
            sentences("Give 0.5 mg. Repeat after 5 min, e.g. in shock."),
            ["Give 0.5 mg.", "Repeat after 5 min, e.g. in shock."]
        );
        assert_eq!(
            sentences("目標は130/80 mmHg未満。「必ず測る。」次に進む。"),
            ["目標は130/80 mmHg未満。", "「必ず測る。」", "次に進む。"]
        );
        assert_eq!(sentences("one\n\ntwo"), ["one", "two"]);
        assert_eq!(sentences(""), [""]);
    }
}
