//! From a body to a value: type, size and time are checked before a byte is believed, and what JSON
//! holds instead of the value is named by its path.

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio_stream::StreamExt;

use super::HttpSettings;
use super::error::ApiError;
use super::types::Object;

/// Reads a JSON body whole.
pub(super) async fn json<T: DeserializeOwned>(
    settings: &HttpSettings,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    check_type(headers)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > settings.body_limit as u64) {
        return Err(too_large(settings));
    }
    let read = tokio::time::timeout(settings.body_timeout, collect(settings, body)).await;
    let bytes = read.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s", settings.body_timeout.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
    })?;
    parse(&bytes)
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = given.as_deref().and_then(|v| v.split(';').next()).map(str::trim);
    if essence.is_some_and(|e| e.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let found =
        given.map_or("the request names no content type".to_owned(), |g| format!("the body is `{g}`"));
    let message = format!("{found}; send JSON and say so: -H 'content-type: application/json'");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

fn too_large(settings: &HttpSettings) -> ApiError {
    let message = format!("the body is larger than {} bytes", settings.body_limit);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

async fn collect(settings: &HttpSettings, body: Body) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            let message = format!("the body could not be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
        })?;
        if bytes.len() + piece.len() > settings.body_limit {
            return Err(too_large(settings));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        let message = r#"the body is empty; send {"messages": [{"role": "user", "content": "…"}]}"#;
        return Err(invalid_json(message.to_owned()));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value: Object<T> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        refusal(&path, error.inner())
    })?;
    json.end().map_err(|error| refusal("", &error))?;
    Ok(value.0)
}

fn invalid_json(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
}

fn refusal(path: &str, error: &serde_json::Error) -> ApiError {
    if error.classify() != Category::Data {
        return invalid_json(format!("the body is not valid JSON: {error}"));
    }
    let reason = in_json_words(&error.to_string());
    let path = if path == "." { "" } else { path };
    // "unknown field `x`, expected …" and "missing field `x`": the field itself is at fault.
    let unknown = reason.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let param = match unknown.or(missing) {
        Some(field) if path.is_empty() => field.to_owned(),
        Some(field) if path.rsplit('.').next() != Some(field) => format!("{path}.{field}"),
        _ => path.to_owned(),
    };
    let message = if param.is_empty() { reason.clone() } else { format!("{param}: {reason}") };
    let code = if unknown.is_some() { "unknown_field" } else { "invalid_value" };
    let error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message);
    if param.is_empty() { error } else { error.param(param) }
}

/// What Rust's types are called in a message to someone who sends JSON.
fn in_json_words(reason: &str) -> String {
    reason
        .replace("expected usize", "expected a whole number from 0")
        .replace("expected u64", "expected a whole number from 0")
        .replace("expected f32", "expected a number")
        .replace("unknown variant", "unknown value")
}

#[cfg(test)]
mod tests {
    use super::super::types::ChatRequest;
    use super::*;
    use proptest::prelude::*;

    fn refused(body: &str) -> serde_json::Value {
        parse::<ChatRequest>(body.as_bytes()).unwrap_err().body("r")["error"].clone()
    }

    #[test]
    fn faults_are_named_by_their_path() {
        for (body, code, param, part) in [
            ("{", "invalid_json", None, "line 1 column 1"),
            (
                r#"{"messages":[{"role":"user","content":5}]}"#,
                "invalid_value",
                Some("messages[0].content"),
                "5",
            ),
            (
                r#"{"messages":[{"role":"nurse","content":""}]}"#,
                "invalid_value",
                Some("messages[0].role"),
                "nurse",
            ),
            (r#"{"messages":[["user","hi"]]}"#, "invalid_value", Some("messages[0]"), "object"),
            (r#"{"messages":[{"role":"user"}]}"#, "invalid_value", Some("messages[0].content"), "missing"),
            (
                r#"{"messages":[{"role":"user","content":"","x":1}]}"#,
                "unknown_field",
                Some("messages[0].x"),
                "x",
            ),
            (r#"{"messages":[],"mods":"rag"}"#, "unknown_field", Some("mods"), "mods"),
            (r#"{"mode":"rag"}"#, "invalid_value", Some("messages"), "missing"),
            (r#"[[{"role":"user","content":"hi"}]]"#, "invalid_value", None, "object"),
            (r#"{"messages":[],"max_tokens":-1}"#, "invalid_value", Some("max_tokens"), "whole number"),
            (r#"{"messages":[],"stop":[1]}"#, "invalid_value", Some("stop[0]"), "string"),
            (r#"{"messages":[],"stop":{}}"#, "invalid_value", Some("stop"), "list of strings"),
        ] {
            let error = refused(body);
            assert_eq!(error["code"], code, "{body} {error}");
            assert_eq!(error["param"].as_str(), param, "{body} {error}");
            assert!(error["message"].as_str().unwrap().contains(part), "{body} {error}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics_and_every_refusal_says_why(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let refused = parse::<ChatRequest>(&bytes).unwrap_err().body("r");
            prop_assert!(!refused["error"]["message"].as_str().unwrap().is_empty());
        }

        #[test]
        fn a_body_cut_short_is_never_taken(cut in 0usize..118) {
            let body = r#"{"messages":[{"role":"user","content":"血圧の目標は？"}],"mode":"rag","stop":["\n"],"temperature":0.5,"seed":1}"#;
            prop_assume!(cut < body.len());
            prop_assert!(parse::<ChatRequest>(&body.as_bytes()[..cut]).is_err());
        }
    }
}
