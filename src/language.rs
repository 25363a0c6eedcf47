//! The two languages that shishin speaks, and how to tell which one a text is in.
//!
//! Stands at the start of both paths: a guideline names its language in its front matter, a question
//! does not, so the request path detects it to choose the prompt and to prefer passages of that language.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A language of guidelines, questions and prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[default]
    #[serde(rename = "en")]
    En,
    /// Japanese.
    #[serde(rename = "ja")]
    Ja,
}

/// A language tag that is neither `en` nor `ja`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown language `{0}`; write `en` or `ja`")]
pub struct UnknownLanguage(pub String);

impl Language {
    /// Every language, in the order in which reports list them.
    pub const ALL: [Self; 2] = [Self::En, Self::Ja];

    /// The tag used in files and on the wire.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Ja => "ja",
        }
    }

    /// The language of a text: Japanese when kana occur or when Japanese characters make up a fifth of
    /// its letters, else English.
    ///
    /// One kana decides, because no English text has any, while a Japanese question may be mostly Latin
    /// drug names ("SGLT2 inhibitorはCKDに使えますか"). Kanji alone need the share: a single one may be a
    /// quoted term.
    #[must_use]
    pub fn detect(text: &str) -> Self {
        let (mut letters, mut japanese) = (0usize, 0usize);
        for c in text.chars() {
            if is_kana(c) {
                return Self::Ja;
            }
            if is_han(c) {
                japanese += 1;
                letters += 1;
            } else if c.is_alphabetic() {
                letters += 1;
            }
        }
        if japanese > 0 && japanese * 5 >= letters { Self::Ja } else { Self::En }
    }
}

/// Hiragana or katakana, half-width forms included. The middle dot and the prolonged sound mark are left
/// out: they also occur between kanji and in decoration.
#[must_use]
pub const fn is_kana(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{3096}' | '\u{309D}'..='\u{309F}' | '\u{30A1}'..='\u{30FA}'
        | '\u{30FD}'..='\u{30FF}' | '\u{31F0}'..='\u{31FF}' | '\u{FF66}'..='\u{FF6F}' | '\u{FF71}'..='\u{FF9D}')
}

/// A kanji, with the iteration marks `々` and `〆` that stand for one.
#[must_use]
pub const fn is_han(c: char) -> bool {
    matches!(c, '\u{3005}'..='\u{3007}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFD}')
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.tag())
    }
}

impl FromStr for Language {
    type Err = UnknownLanguage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|l| l.tag().eq_ignore_ascii_case(text.trim()))
            .ok_or_else(|| UnknownLanguage(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_by_script() {
        for (text, want) in [
            ("What is the blood pressure target?", Language::En),
            ("高血圧の降圧目標は？", Language::Ja),
            ("SGLT2 inhibitorはCKDに使えますか", Language::Ja),
            ("降圧目標 130/80 mmHg", Language::Ja),
            ("The word 癌 means cancer in Japanese texts", Language::En),
            ("ｽﾀﾁﾝ", Language::Ja),
            ("", Language::En),
            ("🙂🙂", Language::En),
        ] {
            assert_eq!(Language::detect(text), want, "{text}");
        }
    }

    #[test]
    fn tags_round_trip() {
        for language in Language::ALL {
            assert_eq!(language.to_string().parse(), Ok(language));
            assert_eq!(serde_json::to_string(&language).unwrap(), format!("\"{language}\""));
        }
        assert!("fr".parse::<Language>().is_err());
    }
}
