//! Where sentences end, in English and Japanese: chunks are split there, and a passage that does not fit
//! into a prompt is cut there.

/// What may close behind a sentence's mark, and then belongs to the sentence.
const CLOSING: [char; 10] = ['」', '』', '）', ')', ']', '"', '”', '’', '*', '_'];
/// The marks themselves.
const MARKS: [char; 7] = ['。', '！', '？', '.', '!', '?', '．'];

/// Byte offsets just after the end of each sentence.
pub fn sentence_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut chars = text.char_indices();
    std::iter::from_fn(move || {
        for (at, c) in chars.by_ref() {
            let end = at + c.len_utf8();
            let rest = &text[end..];
            let ends = match c {
                '\n' => rest.starts_with('\n'),
                c if MARKS.contains(&c) && closing(rest) == 0 => ends_at(&text[..end], rest),
                // The last of what closes, right after the mark.
                c if CLOSING.contains(&c) && closing(rest) == 0 => {
                    let before = text[..end].trim_end_matches(CLOSING);
                    // What is emphasised opens as it closes: only behind a mark, and only before white space, it has closed.
                    let closed =
                        !matches!(c, '*' | '_') || rest.is_empty() || rest.starts_with(char::is_whitespace);
                    closed && before.ends_with(MARKS) && ends_at(before, rest)
                }
                _ => false,
            };
            if ends && !rest.is_empty() {
                return Some(end);
            }
        }
        None
    })
}

/// Bytes of `rest` that close a sentence: none where emphasis opens the next one.
fn closing(rest: &str) -> usize {
    let after = rest.trim_start_matches(CLOSING);
    let closing = &rest[..rest.len() - after.len()];
    let emphasis =
        closing.ends_with(['*', '_']) && !after.is_empty() && !after.starts_with(char::is_whitespace);
    if emphasis { closing.trim_end_matches(['*', '_']).len() } else { closing.len() }
}

/// Whether a sentence ends with the mark at the end of `before`, where `rest` follows.
fn ends_at(before: &str, rest: &str) -> bool {
    let Some(mark @ ('.' | '!' | '?')) = before.chars().next_back() else { return true };
    let next = rest.trim_start().chars().next();
    rest.starts_with(char::is_whitespace)
        && (mark != '.'
            || !(is_abbreviation(&before[..before.len() - 1]) || next.is_some_and(char::is_lowercase)))
}

/// Whether the text before a full stop ends in an abbreviation or a list number, so that no sentence ends there.
fn is_abbreviation(before: &str) -> bool {
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    matches!(word, "e.g" | "i.e" | "vs" | "cf" | "Dr" | "Fig" | "No" | "approx" | "et al" | "al")
        || (word.len() <= 2
            && !word.is_empty()
            && word.bytes().all(|b| b.is_ascii_digit())
            && opens_an_item(&before[..before.len() - word.len()]))
}

/// Whether a number that follows `before` numbers an item of a list: it opens a line or a sentence, where the
/// one in "a score of 16." ends its sentence.
fn opens_an_item(before: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or_default();
    let line =
        line.trim_start_matches([' ', '\t', '>', '-', '+', '*', '#', '|']).trim_end_matches([' ', '\t', '(']);
    let line = line.trim_end_matches(CLOSING);
    line.is_empty() || line.ends_with([':', ';', '：', '；']) || line.ends_with(MARKS)
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
        assert_eq!(
            sentences("Cover MRSA or *P. aeruginosa* only so. Take vitamin C. Then **stop.** Or (rest.) now"),
            ["Cover MRSA or *P. aeruginosa* only so.", "Take vitamin C.", "Then **stop.**", "Or (rest.) now"]
        );
        assert_eq!(
            sentences("**急にやめない。** 中止は医師と。（休む。）**次**は？"),
            ["**急にやめない。**", "中止は医師と。", "（休む。）", "**次**は？"]
        );
        assert_eq!(
            sentences(
                "A high risk is a score above 16. Sitting 2 - 3. Out. 1. Call. 2. Lie flat.\n 3. Wait."
            ),
            [
                "A high risk is a score above 16.",
                "Sitting 2 - 3.",
                "Out.",
                "1. Call.",
                "2. Lie flat.",
                "3. Wait."
            ]
        );
        assert_eq!(sentences("one\n\ntwo"), ["one", "two"]);
        assert_eq!(sentences(""), [""]);
    }
}
