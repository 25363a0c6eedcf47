//! Requests that are wrong, each in its own way: the status, the code, and a message that names the
//! fault. After all of them the server still answers.

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use tokio_stream::iter;

use crate::bench::{HTN, SHARED, ask, post, question, send};

/// A body around the one field that is wrong.
fn with(field: &str) -> String {
    format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"mode":"base",{field}}}"#)
}

fn messages(list: &str) -> String {
    format!(r#"{{"messages":[{list}],"mode":"base"}}"#)
}

/// Body, status, code, a part of the message.
fn bodies() -> Vec<(Vec<u8>, u16, &'static str, &'static str)> {
    let user = r#"{"role":"user","content":"hi"}"#;
    let deep = "[".repeat(5000);
    let texts = [
        (String::new(), 400, "invalid_json", "empty"),
        (" \n ".into(), 400, "invalid_json", "empty"),
        ("{".into(), 400, "invalid_json", "line 1 column 1"),
        ("{\n\"messages\": [}".into(), 400, "invalid_json", "line 2"),
        ("hello".into(), 400, "invalid_json", "line 1"),
        ("{'messages': []}".into(), 400, "invalid_json", "column 2"),
        (with("\"top_p\": NaN"), 400, "invalid_json", "column"),
        (with("\"temperature\": 1e999"), 400, "invalid_json", "out of range"),
        (with("\"temperature\": Infinity"), 400, "invalid_json", "column"),
        (with("\"seed\": 01"), 400, "invalid_json", "number"),
        (with("\"seed\": 1,"), 400, "invalid_json", "trailing comma"),
        (format!("{} x", messages(user)), 400, "invalid_json", "trailing"),
        (messages(r#"{"role":"user","content":"\ud800"}"#), 400, "invalid_json", "escape"),
        (deep.clone(), 422, "invalid_value", "object"),
        (with(&format!("\"stop\": {deep}")), 422, "invalid_value", "stop[0]"),
        ("null".into(), 422, "invalid_value", "object"),
        ("[]".into(), 422, "invalid_value", "object"),
        ("\"hi\"".into(), 422, "invalid_value", "object"),
        (format!("[[{user}]]"), 422, "invalid_value", "object"),
        ("{}".into(), 422, "invalid_value", "messages"),
        (r#"{"messages": {}}"#.into(), 422, "invalid_value", "messages"),
        (r#"{"messages": "hi"}"#.into(), 422, "invalid_value", "messages"),
        (r#"{"messages": null}"#.into(), 422, "invalid_value", "messages"),
        (messages(""), 422, "invalid_value", "empty"),
        (messages("5"), 422, "invalid_value", "messages[0]"),
        (messages(r#"["user","hi"]"#), 422, "invalid_value", "messages[0]"),
        (messages(r#"{"role":"user"}"#), 422, "invalid_value", "content"),
        (messages(r#"{"content":"hi"}"#), 422, "invalid_value", "role"),
        (messages(r#"{"role":"doctor","content":"hi"}"#), 422, "invalid_value", "doctor"),
        (messages(r#"{"role":"USER","content":"hi"}"#), 422, "invalid_value", "messages[0].role"),
        (messages(r#"{"role":"user","content":5}"#), 422, "invalid_value", "messages[0].content"),
        (messages(r#"{"role":"user","content":null}"#), 422, "invalid_value", "messages[0].content"),
        (
            messages(r#"{"role":"user","content":[{"type":"text"}]}"#),
            422,
            "invalid_value",
            "messages[0].content",
        ),
        (messages(r#"{"role":"user","content":"  "}"#), 422, "invalid_value", "messages[0].content is empty"),
        (messages(r#"{"role":"user","content":"hi","name":"x"}"#), 422, "unknown_field", "messages[0].name"),
        (messages(r#"{"role":"user","role":"user","content":"hi"}"#), 422, "invalid_value", "duplicate"),
        (messages(r#"{"role":"assistant","content":"hi"}"#), 422, "invalid_value", "alternate"),
        (messages(r#"{"role":"system","content":"hi"}"#), 422, "invalid_value", "last message"),
        (messages(&format!("{user},{user}")), 422, "invalid_value", "alternate"),
        (messages(&[user; 9].join(",")), 422, "invalid_value", "at most 8"),
        (messages(&user.replace("hi", &"a".repeat(8001))), 422, "invalid_value", "longer than 8000"),
        (with("\"mode\": \"ragged\"").replacen("\"mode\":\"base\",", "", 1), 422, "unknown_mode", "ragged"),
        (with("\"model\": \"x\""), 422, "unknown_field", "model"),
        (with("\"Stream\": true"), 422, "unknown_field", "Stream"),
        (with("\"messages\": []"), 422, "invalid_value", "duplicate"),
        (with("\"stream\": \"yes\""), 422, "invalid_value", "stream"),
        (with("\"max_tokens\": 0"), 422, "invalid_value", "from 1 to 1024"),
        (with("\"max_tokens\": -1"), 422, "invalid_value", "max_tokens"),
        (with("\"max_tokens\": 1.5"), 422, "invalid_value", "max_tokens"),
        (with("\"max_tokens\": 99999999999999999999999"), 422, "invalid_value", "max_tokens"),
        (with("\"max_tokens\": 18446744073709551615"), 422, "invalid_value", "max_tokens"),
        (with("\"max_tokens\": \"8\""), 422, "invalid_value", "max_tokens"),
        (with("\"temperature\": -0.1"), 422, "invalid_value", "temperature"),
        (with("\"temperature\": 2.1"), 422, "invalid_value", "temperature"),
        (with("\"temperature\": 1e300"), 422, "invalid_value", "temperature"),
        (with("\"top_p\": 0"), 422, "invalid_value", "top_p"),
        (with("\"top_p\": 1.01"), 422, "invalid_value", "top_p"),
        (with("\"top_k\": -5"), 422, "invalid_value", "top_k"),
        (with("\"repetition_penalty\": 0"), 422, "invalid_value", "repetition_penalty"),
        (with("\"no_repeat_ngram_size\": 101"), 422, "invalid_value", "no_repeat_ngram_size"),
        (with("\"seed\": -1"), 422, "invalid_value", "seed"),
        (with("\"stop\": \"\""), 422, "invalid_value", "stop"),
        (with("\"stop\": [1]"), 422, "invalid_value", "stop[0]"),
        (with("\"stop\": {\"a\": 1}"), 422, "invalid_value", "list of strings"),
        (
            with("\"stop\": [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]"),
            422,
            "invalid_value",
            "stop",
        ),
        (with("\"passages\": 0"), 422, "invalid_value", "passages"),
        (with("\"passages\": 1000000"), 422, "invalid_value", "passages"),
        (with("\"cache_salt\": \"\""), 422, "invalid_value", "1 to 128 characters"),
        (with(&format!("\"cache_salt\": \"{}\"", "s".repeat(129))), 422, "invalid_value", "cache_salt"),
        (with("\"cache_salt\": 7"), 422, "invalid_value", "cache_salt"),
        (with("\"as_of\": \"tomorrow\""), 422, "invalid_value", "YYYY-MM-DD"),
        (with("\"as_of\": \"2026-02-30\""), 422, "invalid_value", "2026-02-30"),
        (with("\"as_of\": 20260101"), 422, "invalid_value", "as_of"),
        (with("\"adapter\": \"noise\""), 422, "invalid_value", "without an adapter"),
        (with("\"adapter\": \"../../etc/passwd\"").replace("base", "tuned"), 422, "unknown_adapter", "noise"),
        (with("\"max_tokens\": 1023").replace("hi", "hi there"), 422, "prompt_too_long", "max_tokens"),
    ];
    let mut bodies: Vec<_> =
        texts.into_iter().map(|(body, status, code, part)| (body.into_bytes(), status, code, part)).collect();
    bodies.push((vec![b' '; 64 * 1024 + 1], 413, "body_too_large", "65536"));
    bodies.push((b"\xff\xfe{}".to_vec(), 400, "invalid_json", "line 1"));
    let mut latin = messages(user).into_bytes();
    let at = latin.iter().position(|b| *b == b'h').unwrap();
    latin[at] = 0xe9;
    bodies.push((latin, 400, "invalid_json", "column"));
    bodies
}

#[tokio::test]
async fn wrong_bodies_are_refused_by_name_and_the_server_lives_on() {
    let bodies = bodies();
    assert!(bodies.len() >= 40);
    for (body, status, code, part) in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        let reply = send(&SHARED, post(body)).await;
        let (found_status, found_code, message, _) = reply.refusal();
        assert_eq!((found_status, found_code.as_str()), (status, code), "{shown}: {message}");
        assert!(message.contains(part), "{shown}: {message}");
        assert!(message.chars().count() < 500, "{message}");
        assert!(reply.headers.contains_key("x-request-id"));
    }
    let longest = json!({ "mode": "base", "max_tokens": 1, "cache_salt": "院".repeat(128) });
    assert_eq!(ask(&question(HTN, longest)).await.status, 200);
}

#[tokio::test]
async fn other_content_types_are_refused_with_the_mend() {
    let body = question(HTN, json!({ "mode": "base", "max_tokens": 1 })).to_string();
    for kind in [
        None,
        Some("application/x-www-form-urlencoded"),
        Some("text/plain"),
        Some("application/jsonp"),
        Some("; application/json"),
    ] {
        let request = Request::post("/chat");
        let request = kind.into_iter().fold(request, |r, kind| r.header("content-type", kind));
        let reply = send(&SHARED, request.body(Body::from(body.clone())).unwrap()).await;
        let (status, code, message, _) = reply.refusal();
        assert_eq!((status, code.as_str()), (415, "unsupported_media_type"), "{kind:?}");
        assert!(message.contains("-H 'content-type: application/json'"), "{message}");
    }
    for kind in ["application/json; charset=utf-8", "Application/JSON"] {
        let request = Request::post("/chat").header("content-type", kind);
        let reply = send(&SHARED, request.body(Body::from(body.clone())).unwrap()).await;
        assert_eq!(reply.status, 200, "{kind}");
    }
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_refused_in_the_same_form() {
    for (method, path, status, code, allow) in [
        ("GET", "/", 404, "not_found", None),
        ("POST", "/chat/", 404, "not_found", None),
        ("GET", "/../etc/passwd", 404, "not_found", None),
        ("POST", "/v1/nothing", 404, "not_found", None),
        ("GET", "/chat", 405, "method_not_allowed", Some("POST")),
        ("OPTIONS", "/chat", 405, "method_not_allowed", Some("POST")),
        ("DELETE", "/health", 405, "method_not_allowed", Some("GET,HEAD")),
        ("POST", "/ready", 405, "method_not_allowed", Some("GET,HEAD")),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let reply = send(&SHARED, request).await;
        let (found, found_code, message, _) = reply.refusal();
        assert_eq!((found, found_code.as_str()), (status, code), "{method} {path}");
        assert!(message.contains(path) && message.contains(method), "{message}");
        assert_eq!(reply.headers.get("allow").map(|v| v.to_str().unwrap()), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_bounded_while_it_comes() {
    // An endless body: nothing but the limit ends it.
    let endless = iter(std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    let (status, code, ..) = send(&SHARED, post(Body::from_stream(endless))).await.refusal();
    assert_eq!((status, code.as_str()), (413, "body_too_large"));

    let broken = iter([Ok(b"{\"messages\"".to_vec()), Err(std::io::Error::other("gone"))]);
    let (status, code, ..) = send(&SHARED, post(Body::from_stream(broken))).await.refusal();
    assert_eq!((status, code.as_str()), (400, "invalid_body"));
}
