//! The bodies of `POST /chat` and `POST /compare`, as they stand on the wire.

use std::fmt;
use std::marker::PhantomData;

use jiff::civil::Date;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::error::ApiError;
use crate::answer::{Done, Mode, Question};
use crate::cite::Citation;
use crate::language::Language;
use crate::model::template::{Role, Turn};
use crate::quote::Quote;
use crate::retrieve::{Filter, NotInEffect, Passage};

/// What `POST /chat` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatRequest {
    messages: Vec<Object<Message>>,
    mode: Option<String>,
    /// For `POST /compare`, in the place of `mode`.
    modes: Option<Vec<String>>,
    adapter: Option<String>,
    as_of: Option<String>,
    filter: Option<Object<FilterFields>>,
    stream: Option<bool>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    repetition_penalty: Option<f32>,
    no_repeat_ngram_size: Option<usize>,
    seed: Option<u64>,
    stop: Option<Stop>,
    passages: Option<usize>,
    cache_salt: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    content: String,
}

impl ChatRequest {
    /// Whether events are wanted.
    pub(super) fn streams(&self) -> bool {
        self.stream.unwrap_or(true)
    }

    /// The question, and the modes it is to be answered in; `None` for all that can be had.
    pub(super) fn into_comparison(mut self) -> Result<(Question, Option<Vec<Mode>>), ApiError> {
        if self.mode.is_some() {
            let message = "`mode` is for /chat; /compare takes `modes`, a list".to_owned();
            return Err(ApiError::invalid_value("mode", message));
        }
        let names = self.modes.take();
        let modes =
            names.map(|names| names.iter().map(|name| name.parse::<Mode>()).collect::<Result<Vec<_>, _>>());
        let modes = modes.transpose().map_err(|error| ApiError::unknown_mode(error.to_string()))?;
        if let Some(modes) = &modes {
            let twice = modes.iter().enumerate().any(|(at, mode)| modes[..at].contains(mode));
            if modes.is_empty() || twice {
                let message = "modes must name one mode or more, each once".to_owned();
                return Err(ApiError::invalid_value("modes", message));
            }
        }
        Ok((self.into_question()?, modes))
    }

    /// The question; its ranges are checked where it is answered.
    pub(super) fn into_question(self) -> Result<Question, ApiError> {
        if self.modes.is_some() {
            let message = "`modes` is for /compare; /chat takes one `mode`".to_owned();
            return Err(ApiError::invalid_value("modes", message));
        }
        let mode = self.mode.map(|name| name.parse::<Mode>()).transpose();
        let mode = mode.map_err(|error| ApiError::unknown_mode(error.to_string()))?;
        let as_of = self.as_of.map(|text| day(&text)).transpose()?;
        let messages = self.messages.into_iter().map(|Object(m)| Turn { role: m.role, content: m.content });
        Ok(Question {
            messages: messages.collect(),
            mode,
            adapter: self.adapter,
            as_of,
            filter: self.filter.map(|Object(fields)| fields.into_filter()).transpose()?.unwrap_or_default(),
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            seed: self.seed,
            stop: self.stop.map_or_else(Vec::new, |stop| stop.0),
            passages: self.passages,
            cache_salt: self.cache_salt,
        })
    }
}

/// What guidelines must be, as it stands on the wire.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterFields {
    issuer: Option<String>,
    jurisdiction: Option<String>,
    language: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
}

impl FilterFields {
    fn into_filter(self) -> Result<Filter, ApiError> {
        let language = self.language.map(|text| language("filter.language", &text)).transpose()?;
        Ok(Filter { issuer: self.issuer, jurisdiction: self.jurisdiction, language, tags: self.tags })
    }
}

pub(super) fn language(param: &str, text: &str) -> Result<Language, ApiError> {
    text.parse()
        .map_err(|error: crate::language::UnknownLanguage| ApiError::invalid_value(param, error.to_string()))
}

pub(super) fn day(text: &str) -> Result<Date, ApiError> {
    let plain = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let parsed = if plain { text.parse().ok() } else { None };
    parsed.ok_or_else(|| {
        ApiError::invalid_value("as_of", format!("as_of `{text}` is no day of the form YYYY-MM-DD"))
    })
}

/// What `POST /chat` gives with `"stream": false`.
#[derive(Debug, Serialize)]
pub(super) struct ChatReply {
    pub(super) answer: String,
    pub(super) passages: Vec<Passage>,
    pub(super) not_in_effect: Vec<NotInEffect>,
    pub(super) quotes: Vec<Quote>,
    pub(super) citations: Vec<Citation>,
    #[serde(flatten)]
    pub(super) done: Done,
}

/// What `POST /compare` gives with `"stream": false`.
#[derive(Debug, Serialize)]
pub(super) struct CompareReply {
    pub(super) answers: Vec<Compared>,
}

/// One mode of a [`CompareReply`]: that it failed takes nothing from the others.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Compared {
    Answered(Box<ChatReply>),
    /// Like an event `error` of the stream: `{"mode", "error"}`.
    Failed(Value),
}

/// A value that must stand in a JSON object. Derived readers take an array of the fields in order as
/// well, which nobody means to send.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// One stop string or several.
#[derive(Debug)]
struct Stop(Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, one: &str) -> Result<Stop, E> {
                Ok(Stop(vec![one.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut many: A) -> Result<Stop, A::Error> {
                let mut stops = Vec::new();
                while let Some(stop) = many.next_element()? {
                    stops.push(stop);
                }
                Ok(Stop(stops))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}
