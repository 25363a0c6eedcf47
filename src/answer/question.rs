//! What is asked: a conversation and how to answer it, with the bounds that every way in shares.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::AnswerError;
use crate::engine::{MAX_NO_REPEAT, Sampling};
use crate::model::template::{Role, Turn};
use crate::retrieve::Filter;

/// What an answer draws on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The base model alone.
    Base,
    /// The base model and passages.
    Rag,
    /// The base model and an adapter.
    Tuned,
    /// The base model, passages and an adapter.
    Hybrid,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::Base, Self::Rag, Self::Tuned, Self::Hybrid];

    /// Whether passages are retrieved.
    pub fn retrieves(self) -> bool {
        matches!(self, Self::Rag | Self::Hybrid)
    }

    /// Whether an adapter is added.
    pub fn adapts(self) -> bool {
        matches!(self, Self::Tuned | Self::Hybrid)
    }

    /// What is left of it where there is no adapter.
    #[must_use]
    pub fn without_adapter(self) -> Self {
        match self {
            Self::Base | Self::Tuned => Self::Base,
            Self::Rag | Self::Hybrid => Self::Rag,
        }
    }

    /// Its name in requests and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Rag => "rag",
            Self::Tuned => "tuned",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A mode's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode `{0}`; the modes are base, rag, tuned and hybrid")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|m| m.as_str() == name).ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

/// Bounds on what a question may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Turns in a conversation.
    pub messages: usize,
    /// Characters in one message.
    pub message_chars: usize,
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// Passages in a prompt.
    pub passages: usize,
}

/// Stop strings in a question.
const MAX_STOPS: usize = 8;
/// Characters in a stop string.
const MAX_STOP_CHARS: usize = 64;
/// Characters in a cache salt.
const MAX_SALT_CHARS: usize = 128;
/// The highest temperature; beyond it answers are noise.
const MAX_TEMPERATURE: f32 = 2.0;

/// A conversation that ends with a question. What is `None` is left to the settings.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The conversation, oldest first.
    pub messages: Vec<Turn>,
    /// What to draw on.
    pub mode: Option<Mode>,
    /// The adapter's name.
    pub adapter: Option<String>,
    /// The day the answer is for; today when not given.
    pub as_of: Option<Date>,
    /// What the guidelines must be that are drawn on; all of them when it is empty.
    pub filter: Filter,
    /// Tokens of the answer at the most.
    pub max_tokens: Option<usize>,
    /// 0 to 2; 0 takes the most likely token.
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<usize>,
    /// 0.5 to 2; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// 0 to 100; 0 is off.
    pub no_repeat_ngram_size: Option<usize>,
    /// Seed of the draws.
    pub seed: Option<u64>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Passages in the prompt at the most.
    pub passages: Option<usize>,
    /// Share what the cache keeps of the prompt only with requests of the same salt.
    pub cache_salt: Option<String>,
}

impl Question {
    /// Holds every field against its bounds.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), AnswerError> {
        self.check_messages(limits)?;
        let range = |param, ok: bool, message: String| match ok {
            true => Ok(()),
            false => Err(AnswerError::Invalid { param, message }),
        };
        let within =
            |value: Option<usize>, low: usize, high: usize| value.is_none_or(|v| (low..=high).contains(&v));
        range(
            "max_tokens",
            within(self.max_tokens, 1, limits.max_tokens),
            format!("max_tokens must be from 1 to {}", limits.max_tokens),
        )?;
        range(
            "passages",
            within(self.passages, 1, limits.passages),
            format!("passages must be from 1 to {}", limits.passages),
        )?;
        range(
            "temperature",
            self.temperature.is_none_or(|t| (0.0..=MAX_TEMPERATURE).contains(&t)),
            format!("temperature must be from 0 to {MAX_TEMPERATURE}"),
        )?;
        range(
            "top_p",
            self.top_p.is_none_or(|p| p > 0.0 && p <= 1.0),
            "top_p must be above 0 and at most 1".into(),
        )?;
        range(
            "repetition_penalty",
            self.repetition_penalty.is_none_or(|p| (0.5..=2.0).contains(&p)),
            "repetition_penalty must be from 0.5 to 2".into(),
        )?;
        range(
            "no_repeat_ngram_size",
            self.no_repeat_ngram_size.is_none_or(|size| size <= MAX_NO_REPEAT),
            format!("no_repeat_ngram_size must be from 0 (off) to {MAX_NO_REPEAT}"),
        )?;
        range(
            "stop",
            self.stop.len() <= MAX_STOPS
                && self.stop.iter().all(|s| !s.is_empty() && s.chars().count() <= MAX_STOP_CHARS),
            format!("stop takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters"),
        )?;
        range(
            "cache_salt",
            self.cache_salt.as_ref().is_none_or(|s| (1..=MAX_SALT_CHARS).contains(&s.chars().count())),
            format!("cache_salt takes a string of 1 to {MAX_SALT_CHARS} characters"),
        )
    }

    fn check_messages(&self, limits: &Limits) -> Result<(), AnswerError> {
        let bad = |message: String| Err(AnswerError::Invalid { param: "messages", message });
        if self.messages.is_empty() {
            return bad("messages is empty; send at least one message of role `user`".into());
        }
        if self.messages.len() > limits.messages {
            return bad(format!("{} messages; at most {} are taken", self.messages.len(), limits.messages));
        }
        for (n, turn) in self.messages.iter().enumerate() {
            if turn.content.trim().is_empty() {
                return bad(format!("messages[{n}].content is empty"));
            }
            if turn.content.chars().count() > limits.message_chars {
                return bad(format!(
                    "messages[{n}].content is longer than {} characters",
                    limits.message_chars
                ));
            }
            if turn.role == Role::System && n > 0 {
                return bad(format!("messages[{n}]: only the first message may have the role `system`"));
            }
        }
        let spoken = self.messages.iter().skip_while(|turn| turn.role == Role::System);
        for (n, turn) in spoken.enumerate() {
            let expected = if n % 2 == 0 { Role::User } else { Role::Assistant };
            if turn.role != expected {
                return bad("the roles must alternate between `user` and `assistant`, `user` first".into());
            }
        }
        match self.messages.last().map(|turn| turn.role) {
            Some(Role::User) => Ok(()),
            _ => bad("the last message must have the role `user`".into()),
        }
    }

    /// The question's own sampling settings over the given ones.
    pub(super) fn sampling(&self, settings: &Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(settings.temperature),
            top_p: self.top_p.unwrap_or(settings.top_p),
            top_k: self.top_k.unwrap_or(settings.top_k),
            repetition_penalty: self.repetition_penalty.unwrap_or(settings.repetition_penalty),
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(settings.no_repeat_ngram_size),
            seed: self.seed.unwrap_or(settings.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { messages: 5, message_chars: 10, max_tokens: 100, passages: 8 };

    fn turn(role: Role, content: &str) -> Turn {
        Turn { role, content: content.into() }
    }

    fn refused(question: &Question) -> String {
        question.check(&LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn conversations_must_make_sense() {
        use Role::{Assistant, System, User};
        let of = |turns: &[(Role, &str)]| Question {
            messages: turns.iter().map(|(role, text)| turn(*role, text)).collect(),
            ..Question::default()
        };
        assert!(of(&[(User, "a")]).check(&LIMITS).is_ok());
        assert!(of(&[(System, "s"), (User, "a"), (Assistant, "b"), (User, "c")]).check(&LIMITS).is_ok());
        for (turns, part) in [
            (&[][..], "empty"),
            (&[(User, " \n")], "messages[0].content is empty"),
            (&[(User, "12345678901")], "longer than 10"),
            (&[(User, "a"), (Assistant, "b")], "last message"),
            (&[(Assistant, "b"), (User, "a")], "alternate"),
            (&[(User, "a"), (User, "b")], "alternate"),
            (&[(User, "a"), (System, "b"), (User, "c")], "only the first"),
            (&[(System, "a")], "last message"),
            (&[(User, "a"); 6], "at most 5"),
        ] {
            let message = refused(&of(turns));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let base = || Question { messages: vec![turn(Role::User, "a")], ..Question::default() };
        for (question, param) in [
            (Question { max_tokens: Some(0), ..base() }, "max_tokens"),
            (Question { max_tokens: Some(101), ..base() }, "max_tokens"),
            (Question { temperature: Some(-0.1), ..base() }, "temperature"),
            (Question { temperature: Some(f32::NAN), ..base() }, "temperature"),
            (Question { top_p: Some(0.0), ..base() }, "top_p"),
            (Question { repetition_penalty: Some(0.0), ..base() }, "repetition_penalty"),
            (Question { no_repeat_ngram_size: Some(101), ..base() }, "no_repeat_ngram_size"),
            (Question { passages: Some(9), ..base() }, "passages"),
            (Question { stop: vec![String::new()], ..base() }, "stop"),
            (Question { cache_salt: Some("s".repeat(129)), ..base() }, "cache_salt"),
        ] {
            assert!(refused(&question).starts_with(param), "{param}");
        }
    }
}
