//! From tokens to the text that a reader sees: whole characters, cut at a stop string.

use crate::model::tokenizer::TextStream;

/// Puts token bytes together and watches for stop strings, holding back text that might become one.
#[derive(Debug)]
pub(super) struct AnswerText {
    stream: TextStream,
    stops: Vec<String>,
    held: String,
}

/// What pushing a token gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Text that may be shown; perhaps empty.
    Text(String),
    /// A stop string came: the text before it, and nothing follows.
    Stopped(String),
}

impl AnswerText {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stream: TextStream::default(),
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            held: String::new(),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Pushed {
        let text = self.stream.push(bytes);
        self.take(&text)
    }

    /// The text that was held back, once no more tokens come. The bytes of a character that never became
    /// whole are dropped: the answer was cut within it.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn take(&mut self, text: &str) -> Pushed {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Pushed::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let shown = self.held.len() - keep;
        let rest = self.held.split_off(shown);
        Pushed::Text(std::mem::replace(&mut self.held, rest))
    }
}

/// The length of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0 && *at <= text.len());
    ends.filter(|at| text.ends_with(&stop[..*at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(text: &str, stops: &[&str], cut: usize) -> (String, bool) {
        let mut answer = AnswerText::new(stops.iter().map(|&s| s.to_owned()).collect());
        let mut shown = String::new();
        for bytes in text.as_bytes().chunks(cut.max(1)) {
            match answer.push(bytes) {
                Pushed::Text(t) => shown.push_str(&t),
                Pushed::Stopped(t) => return (shown + &t, true),
            }
        }
        (shown + &answer.finish(), false)
    }

    #[test]
    fn stops_before_the_first_stop_string() {
        assert_eq!(run("abc END def", &["def", "END"], 1), ("abc ".into(), true));
        assert_eq!(run("血圧。\n\n質問", &["\n\n"], 2), ("血圧。".into(), true));
        assert_eq!(run("aab", &["ab"], 1), ("a".into(), true));
    }

    #[test]
    fn a_character_that_never_became_whole_is_dropped() {
        let mut answer = AnswerText::new(Vec::new());
        assert_eq!(answer.push(&"血圧".as_bytes()[..4]), Pushed::Text("血".into()));
        assert_eq!(answer.finish(), "");
    }

    #[test]
    fn text_that_only_began_a_stop_string_is_shown_at_the_end() {
        assert_eq!(run("abc EN", &["END"], 1), ("abc EN".into(), false));
    }

    proptest! {
        #[test]
        fn cutting_the_tokens_elsewhere_changes_nothing(
            text in "[ab血]{0,20}", stop in "[ab血]{1,4}", cut in 1usize..7
        ) {
            let expected = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(run(&text, &[&stop], cut), expected);
        }
    }
}
