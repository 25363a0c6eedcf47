//! What an operator sees: health, readiness, request ids, the log.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use shishin::http::{AppState, HttpSettings};

use crate::bench::{HTN, MARKER, Reply, SHARED, log, post, question, send, wait_for_log};

async fn get(state: &AppState, path: &str) -> Reply {
    send(state, Request::get(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_server_that_loads_says_so_and_refuses_the_rest() {
    let state = AppState::new(HttpSettings::default());
    state.set_detail("reading the model".into());
    let health = get(&state, "/health").await;
    assert_eq!((health.status.as_u16(), &health.json()["status"]), (200, &json!("loading")));
    let ready = get(&state, "/ready").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["detail"]), (503, &json!("reading the model")));
    for refused in [send(&state, post("{}")).await, get(&state, "/nothing").await] {
        let (status, code, message, _) = refused.refusal();
        assert_eq!((status, code.as_str()), (503, "loading"));
        assert!(message.contains("reading the model"), "{message}");
        assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    }
}

#[tokio::test]
async fn a_server_that_stops_takes_no_more() {
    let state = AppState::new(HttpSettings::default());
    state.begin_shutdown();
    let refused = send(&state, post("{}")).await;
    assert_eq!(refused.refusal().1, "shutting_down");
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(get(&state, "/ready").await.status, 503);
    assert_eq!(get(&state, "/health").await.json()["status"], "shutting_down");
}

#[tokio::test]
async fn health_names_what_runs() {
    let health = get(&SHARED, "/health").await.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["model"]["name"], "smollm2-135m");
    assert_eq!(health["model"]["architecture"], "llama");
    assert_eq!(health["model"]["context"], 1024);
    assert_eq!(health["model"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(health["adapters"], json!(["noise"]));
    let cpu = shishin::kernels::Variant::best();
    assert_eq!(
        (&health["engine"]["kernels"], &health["engine"]["threads"]),
        (&json!(cpu.as_str()), &json!(2))
    );
    for count in ["waiting", "waiting_tokens"] {
        assert!(health["engine"][count].is_u64(), "{count}");
    }
    assert_eq!((&health["engine"]["queue"], &health["engine"]["queue_tokens"]), (&json!(64), &json!(32_768)));
    let ready = get(&SHARED, "/ready").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["generation"]), (200, &health["generation"]));
    assert!(health["generation"].is_string());
}

#[tokio::test]
async fn every_response_carries_an_id() {
    let echoed = async |id: &str| {
        let request = Request::get("/nothing").header("x-request-id", id).body(Body::empty()).unwrap();
        let reply = send(&SHARED, request).await;
        assert_eq!(reply.headers["cache-control"], "no-store");
        reply.headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(echoed("trace-42").await, "trace-42");
    let too_long = "a".repeat(65);
    assert_ne!(echoed(&too_long).await, too_long);
    assert_ne!(echoed("two words").await, "two words");
}

#[tokio::test]
async fn too_many_at_once_are_told_to_come_back() {
    let state = crate::bench::ready_state(
        crate::bench::small(),
        HttpSettings { preparing: 0, ..HttpSettings::default() },
    );
    let refused = send(&state, post(question(HTN, json!({ "mode": "base" })).to_string())).await;
    let (status, code, ..) = refused.refusal();
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn the_log_has_one_line_a_request_and_no_word_of_it() {
    let send_as = async |id: &str, mut request: Request<Body>| {
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        send(&SHARED, request).await
    };
    let text = format!("Is {MARKER} good for hypertension?");
    let base = |more: Value| post(question(&text, more).to_string());
    send_as("log-json", base(json!({ "mode": "base", "max_tokens": 2 }))).await;
    send_as("log-sse", base(json!({ "mode": "base", "max_tokens": 2, "stream": true }))).await;
    send_as("log-bad-mode", base(json!({ "mode": MARKER }))).await;
    send_as("log-bad-adapter", base(json!({ "mode": "tuned", "adapter": MARKER }))).await;
    send_as("log-bad-json", post(format!("{{\"messages\" {MARKER}"))).await;
    let path = format!("/{MARKER}?q={MARKER}");
    send_as("log-path", Request::get(path).body(Body::empty()).unwrap()).await;

    for id in ["log-json", "log-sse"] {
        let line = wait_for_log(id, &["request finished"]);
        for part in [
            "method=\"POST\"",
            "path=\"/chat\"",
            "status=200",
            "mode=\"base\"",
            "prompt_tokens=",
            "completion_tokens=2",
            "finish=\"length\"",
            "ms=",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    for (id, parts) in [
        ("log-bad-mode", ["status=422", "finish=\"unknown_mode\""]),
        ("log-bad-adapter", ["status=422", "finish=\"unknown_adapter\""]),
        ("log-bad-json", ["status=400", "finish=\"invalid_json\""]),
        ("log-path", ["path=\"(no route)\"", "status=404"]),
    ] {
        wait_for_log(id, &parts);
    }
    let log = log();
    let finished = |id: &str| {
        let id = format!("id=\"{id}\"");
        log.lines().filter(|l| l.contains(&id) && l.contains("request finished")).count()
    };
    assert_eq!((finished("log-json"), finished("log-sse"), finished("log-path")), (1, 1, 1));
    assert!(!log.contains(MARKER), "{log}");
}
