//! `GET /search`: the passages for a question, without an answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::error::ApiError;
use super::state::AppState;
use super::{chat, types};
use crate::answer::{AnswerError, Answerer};
use crate::language::Language;
use crate::retrieve::{Filter, Ranking, Retrieval, SearchQuery};

/// Passages that are given unless another number is asked for, and the most.
const PASSAGES: usize = 10;
const MAX_PASSAGES: usize = 100;

/// What `GET /search` takes in its query string.
#[derive(Debug, Default)]
struct Asked {
    text: String,
    as_of: Option<jiff::civil::Date>,
    language: Option<Language>,
    filter: Filter,
    limit: usize,
    ranking: Option<Ranking>,
}

impl Asked {
    fn read(query: &str) -> Result<Self, ApiError> {
        let mut asked = Self { limit: PASSAGES, ..Self::default() };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            match &*key {
                "q" => asked.text = value,
                "as_of" => asked.as_of = Some(types::day(&value)?),
                "prefer" => asked.language = Some(types::language("prefer", &value)?),
                "issuer" => asked.filter.issuer = Some(value),
                "jurisdiction" => asked.filter.jurisdiction = Some(value),
                "language" => asked.filter.language = Some(types::language("language", &value)?),
                "tag" => asked.filter.tags.push(value),
                "limit" => {
                    let good = value.parse().ok().filter(|n| (1..=MAX_PASSAGES).contains(n));
                    asked.limit = good.ok_or_else(|| {
                        ApiError::invalid_value(
                            "limit",
                            format!("limit must be a whole number from 1 to {MAX_PASSAGES}"),
                        )
                    })?;
                }
                "ranking" => {
                    let ranking =
                        value.parse().map_err(|error: crate::retrieve::snapshot::UnknownRanking| {
                            ApiError::invalid_value("ranking", error.to_string())
                        });
                    asked.ranking = Some(ranking?);
                }
                other => {
                    let known = "q, as_of, prefer, issuer, jurisdiction, language, tag, limit and ranking";
                    let message = format!("there is no parameter `{other}`; there are {known}");
                    return Err(ApiError::unknown_field(other, message));
                }
            }
        }
        if asked.text.trim().is_empty() {
            return Err(ApiError::invalid_value(
                "q",
                "q is empty; write the question, as in /search?q=blood+pressure",
            ));
        }
        Ok(asked)
    }
}

/// What `GET /search` gives.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// Whether any passage answers the question, as far as can be told.
    relevant: bool,
    #[serde(flatten)]
    found: Retrieval,
}

pub(super) async fn search(State(state): State<AppState>, uri: Uri) -> Result<Json<Found>, ApiError> {
    let answerer = state.answerer()?;
    let asked = Asked::read(uri.query().unwrap_or_default())?;
    let found = chat::in_turn(&state, move || find(&answerer, &asked)).await??;
    Ok(Json(found))
}

fn find(answerer: &Arc<Answerer>, asked: &Asked) -> Result<Found, ApiError> {
    let snapshot = answerer.index().snapshot().ok_or(AnswerError::NoIndex)?;
    let found = snapshot.search(&SearchQuery {
        text: &asked.text,
        as_of: asked.as_of.unwrap_or_else(|| jiff::ZonedDateTime::now().date()),
        language: asked.language,
        filter: Some(&asked.filter),
        limit: asked.limit,
        ranking: asked.ranking,
    });
    let found = found.map_err(AnswerError::from)?;
    let language = asked.language.unwrap_or_else(|| Language::detect(&asked.text));
    Ok(Found { relevant: found.relevant(answerer.settings().gate.asked_in(language)), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_and_what_is_wrong_is_named() {
        let asked =
            Asked::read("q=%E8%A1%80%E5%9C%A7+x&tag=a&tag=b&limit=3&as_of=2025-01-31&language=ja").unwrap();
        assert_eq!((asked.text.as_str(), asked.limit, asked.filter.tags.len()), ("血圧 x", 3, 2));
        assert_eq!(asked.filter.language, Some(Language::Ja));
        for (query, param) in [
            ("", "q"),
            ("q=%20", "q"),
            ("q=a&limit=0", "limit"),
            ("q=a&limit=x", "limit"),
            ("q=a&as_of=soon", "as_of"),
            ("q=a&language=fr", "language"),
            ("q=a&ranking=best", "ranking"),
            ("q=a&query=b", "query"),
        ] {
            assert_eq!(Asked::read(query).unwrap_err().body("r")["error"]["param"], param, "{query}");
        }
    }
}
