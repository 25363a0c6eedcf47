//! `POST /compare`: the modes side by side, and what it refuses.

use axum::http::Request;
use serde_json::{Value, json};

use crate::bench::{HTN, Reply, SHARED, ask, events, question, send};

async fn compare(body: &Value) -> Reply {
    let request = Request::post("/compare").header("content-type", "application/json");
    send(&SHARED, request.body(body.to_string().into()).unwrap()).await
}

#[tokio::test]
async fn the_modes_answer_side_by_side_as_each_does_alone() {
    let modes = ["base", "rag", "tuned", "hybrid"];
    let body = question(HTN, json!({ "modes": modes, "adapter": "noise", "stream": true }));
    let reply = compare(&body).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    let events = events(&reply.text());
    let mut generations = Vec::new();
    for mode in modes {
        let own: Vec<&(String, Value)> = events.iter().filter(|(_, data)| data["mode"] == mode).collect();
        let text: String = own
            .iter()
            .filter(|(name, _)| name == "token")
            .map(|(_, data)| data["text"].as_str().unwrap())
            .collect();
        let (last, done) = own.last().unwrap();
        assert_eq!((last.as_str(), &done["provenance"]["mode"]), ("done", &json!(mode)));
        let retrieved = own.iter().find(|(name, _)| name == "retrieval");
        assert_eq!(retrieved.is_some(), ["rag", "hybrid"].contains(&mode));
        generations.extend(retrieved.map(|(_, data)| data["generation"].clone()));
        let mut alone = json!({ "mode": mode });
        if ["tuned", "hybrid"].contains(&mode) {
            alone["adapter"] = json!("noise");
        }
        let alone = ask(&question(HTN, alone)).await.json();
        assert_eq!((&alone["answer"], &alone["provenance"]), (&json!(text), &done["provenance"]), "{mode}");
        assert!(done["timings"]["decode_ms"].is_number());
    }
    assert_eq!(
        events.iter().filter(|(_, data)| data["mode"].is_null()).count(),
        0,
        "every event names its mode"
    );
    assert_eq!(generations[0], generations[1]);

    let whole = compare(&question(HTN, json!({ "modes": ["rag", "base"] }))).await.json();
    let answered: Vec<&Value> =
        whole["answers"].as_array().unwrap().iter().map(|answer| &answer["provenance"]["mode"]).collect();
    assert_eq!(answered, ["rag", "base"]);
    // Without an adapter to go by, the modes that need none.
    let whole = compare(&question(HTN, json!({}))).await.json();
    assert_eq!(whole["answers"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_before_anything_is_said() {
    for (more, code, part) in [
        (json!({ "modes": [] }), "invalid_value", "one mode or more"),
        (json!({ "modes": ["rag", "rag"] }), "invalid_value", "each once"),
        (json!({ "modes": ["rags"] }), "unknown_mode", "rags"),
        (json!({ "mode": "rag" }), "invalid_value", "takes `modes`"),
        (json!({ "modes": ["base", "tuned"] }), "adapter_needed", "noise"),
        (json!({ "modes": ["tuned"], "adapter": "none" }), "unknown_adapter", "none"),
    ] {
        let reply = compare(&question(HTN, more.clone())).await;
        let (_, found, message, _) = reply.refusal();
        assert!(message.contains(part), "{more}: {message}");
        assert_eq!(found, code, "{more}: {message}");
    }
    let (_, _, message, param) = ask(&question(HTN, json!({ "modes": ["rag"] }))).await.refusal();
    assert!(message.contains("/compare") && param.as_deref() == Some("modes"), "{message}");
}
