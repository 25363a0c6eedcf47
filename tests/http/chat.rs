//! Good questions: events and JSON, the four modes, provenance, editions, abstaining.

use serde_json::{Value, json};
use shishin::engine::EngineSettings;
use shishin::http::HttpSettings;

use crate::bench::{HTN, ask, events, post, question, ready_state, send, small};

fn names(events: &[(String, Value)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

/// The text of all `token` events.
fn text(events: &[(String, Value)]) -> String {
    let tokens = events.iter().filter(|(name, _)| name == "token");
    tokens.map(|(_, data)| data["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn rag_streams_passages_text_and_provenance_and_json_says_the_same() {
    let streamed = ask(&question(HTN, json!({ "mode": "rag", "stream": true }))).await;
    assert_eq!(streamed.status, 200);
    assert_eq!(streamed.headers["content-type"], "text/event-stream");
    assert_eq!(streamed.headers["cache-control"], "no-store");
    assert_eq!(streamed.headers["x-accel-buffering"], "no");
    let events = events(&streamed.text());
    let order = names(&events);
    assert_eq!((order[0], order[1]), ("retrieval", "token"), "{order:?}");
    assert_eq!(order.iter().filter(|n| **n == "done").count(), 1);
    assert_eq!(*order.last().unwrap(), "done");
    let passage = &events[0].1["passages"][0];
    assert_eq!((passage["n"].as_u64(), passage["edition"].as_str()), (Some(1), Some("2025")));
    assert!(passage["text"].as_str().unwrap().contains("130/80"), "{passage}");

    let whole = ask(&question(HTN, json!({ "mode": "rag" }))).await.json();
    let done = &events.last().unwrap().1;
    assert_eq!(whole["answer"], text(&events));
    assert!(!whole["answer"].as_str().unwrap().is_empty());
    assert_eq!(whole["passages"], events[0].1["passages"]);
    // The same provenance and question: the same answer, whichever way it was asked for.
    assert_eq!(whole["provenance"], done["provenance"]);
    for count in ["prompt_tokens", "completion_tokens", "dropped_turns"] {
        assert_eq!(whole["usage"][count], done["usage"][count], "{count}");
    }
    assert_eq!(whole["usage"]["completion_tokens"], 8);
    assert_eq!(whole["finish_reason"], "length");
    let citations: Vec<&Value> =
        events.iter().filter(|(n, _)| n == "citation").map(|(_, data)| data).collect();
    assert_eq!(whole["citations"].as_array().unwrap().iter().collect::<Vec<_>>(), citations);

    let provenance = &done["provenance"];
    assert_eq!(provenance["mode"], "rag");
    assert_eq!(provenance["adapter"], Value::Null);
    assert_eq!(provenance["generation"], events[0].1["generation"]);
    for hash in [&provenance["base"]["sha256"], &provenance["prompt_sha256"]] {
        assert_eq!(hash.as_str().unwrap().len(), 64);
    }
}

#[tokio::test]
async fn base_retrieves_nothing() {
    let streamed = ask(&question(HTN, json!({ "mode": "base", "stream": true }))).await;
    assert_eq!(names(&events(&streamed.text())), ["token", "done"]);
    let whole = ask(&question(HTN, json!({ "mode": "base", "max_tokens": 1 }))).await.json();
    assert_eq!(whole["passages"], json!([]));
    assert_eq!(whole["provenance"]["generation"], Value::Null);
}

#[tokio::test]
async fn the_adapter_changes_the_answer_and_is_named_in_its_provenance() {
    let base = ask(&question("Hello", json!({ "mode": "base" }))).await.json();
    let tuned = ask(&question("Hello", json!({ "mode": "tuned", "adapter": "noise" }))).await.json();
    assert_eq!(tuned["provenance"]["adapter"]["name"], "noise");
    assert_eq!(tuned["provenance"]["adapter"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(tuned["provenance"]["prompt_sha256"], base["provenance"]["prompt_sha256"]);
    assert_ne!(tuned["answer"], base["answer"]);
}

#[tokio::test]
async fn hybrid_is_the_default_and_has_both() {
    let hybrid = ask(&question(HTN, json!({ "adapter": "noise", "max_tokens": 1 }))).await.json();
    assert_eq!(hybrid["provenance"]["mode"], "hybrid");
    assert_eq!(hybrid["provenance"]["adapter"]["name"], "noise");
    assert_eq!(hybrid["passages"][0]["edition"], "2025");
}

#[tokio::test]
async fn an_adapter_that_is_missing_or_unknown_is_explained() {
    let (status, code, message, param) = ask(&question(HTN, json!({ "mode": "tuned" }))).await.refusal();
    assert_eq!((status, code.as_str(), param.as_deref()), (422, "adapter_needed", Some("adapter")));
    assert!(message.contains("noise") && message.contains("`base`"), "{message}");
    let unknown = question(HTN, json!({ "mode": "tuned", "adapter": "kind" }));
    let (status, code, message, _) = ask(&unknown).await.refusal();
    assert_eq!((status, code.as_str()), (422, "unknown_adapter"));
    assert!(message.contains("`kind`") && message.contains("noise"), "{message}");
}

#[tokio::test]
async fn what_no_guideline_answers_is_not_answered() {
    let off = ask(&question("What is the capital of France?", json!({ "mode": "rag" }))).await.json();
    assert_eq!(off["finish_reason"], "abstained");
    assert_eq!(off["passages"], json!([]));
    assert_eq!(off["usage"]["prompt_tokens"], 0);
    assert_eq!(off["provenance"]["prompt_sha256"], Value::Null);
    assert!(!off["answer"].as_str().unwrap().is_empty());
    let streamed = question("What is the capital of France?", json!({ "mode": "rag", "stream": true }));
    assert_eq!(names(&events(&ask(&streamed).await.text())), ["retrieval", "token", "done"]);
}

/// An adapter that has learnt to decline may read what is too far from an answer for the base.
#[tokio::test]
async fn an_adapter_has_a_gate_of_its_own() {
    let near = "Which blood pressure do giraffes in the zoo have?";
    let rag = ask(&question(near, json!({ "mode": "rag", "max_tokens": 1 }))).await.json();
    assert_eq!(rag["finish_reason"], "abstained");
    let way = json!({ "mode": "hybrid", "adapter": "noise", "max_tokens": 1 });
    let hybrid = ask(&question(near, way.clone())).await.json();
    assert_ne!(hybrid["finish_reason"], "abstained", "{hybrid}");
    assert_eq!(hybrid["passages"][0]["edition"], "2025");
    let off = ask(&question("What is the capital of France?", way)).await.json();
    assert_eq!(off["finish_reason"], "abstained", "it has a gate all the same");
}

/// A conversation in which the question about hypertension was asked and answered before.
fn follow_up(text: &str) -> Value {
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    json!({
        "messages": [turn("user", HTN), turn("assistant", "Below 130/80 mmHg [1]."), turn("user", text)],
        "mode": "rag", "max_tokens": 1, "stream": false,
    })
}

#[tokio::test]
async fn a_follow_up_is_read_with_the_question_before_it_unless_it_leaves_the_subject() {
    let on = ask(&follow_up("And for adults?")).await.json();
    assert_eq!(on["passages"][0]["edition"], "2025", "{on}");
    for foreign in ["Who is the president?", "What about the weather in Paris?", "大統領は誰ですか"] {
        let off = ask(&follow_up(foreign)).await.json();
        assert_eq!(off["finish_reason"], "abstained", "{foreign}");
    }
}

#[tokio::test]
async fn the_end_of_a_long_message_is_what_is_asked() {
    let notes = "The patient slept well and took a walk in the garden. ".repeat(60);
    let long =
        ask(&question(&format!("{notes}{HTN}"), json!({ "mode": "rag", "max_tokens": 1 }))).await.json();
    assert_eq!(long["passages"][0]["edition"], "2025", "{long}");
    let pressure = "The patient has high blood pressure and hypertension. ".repeat(60);
    let other = format!(
        "{pressure}What is the capital of France? {}",
        "Tell me about the Louvre in Paris. ".repeat(60)
    );
    // The adapter's lower gate does not let the notes in either.
    for way in [json!({ "mode": "rag" }), json!({ "mode": "hybrid", "adapter": "noise" })] {
        let mut way = way;
        way["max_tokens"] = json!(1);
        let off = ask(&question(&other, way)).await.json();
        assert_eq!(off["finish_reason"], "abstained", "the beginning is out of sight");
    }
}

/// The way the engine works through a request is not part of its provenance, because it decides nothing.
#[tokio::test]
async fn neither_chunks_nor_company_nor_drafts_change_an_answer() {
    let settings = EngineSettings { prefill_chunk: 5, prefix_cache: false, draft_tokens: 0, ..small() };
    let plain = ready_state(settings, HttpSettings::default());
    let body = question(HTN, json!({ "mode": "rag", "max_tokens": 40 }));
    let plain = send(&plain, post(body.to_string())).await.json();
    let (one, two) = tokio::join!(ask(&body), ask(&body));
    for shared in [one.json(), two.json()] {
        assert_eq!(shared["answer"], plain["answer"]);
        assert_eq!(shared["provenance"], plain["provenance"]);
    }
    assert_eq!(plain["provenance"]["weights"], "stored");
    assert_eq!(plain["usage"]["cached_tokens"], 0);
    assert_eq!(plain["usage"]["drafted_tokens"], 0);
}

#[tokio::test]
async fn what_begins_alike_is_found_in_the_cache() {
    // A salt of its own, so that what other tests ask is not found.
    let about = async |text: &str, salt: &str| {
        let more = json!({ "mode": "rag", "max_tokens": 2, "cache_salt": salt });
        ask(&question(text, more)).await.json()
    };
    let count = |reply: &Value, name: &str| reply["usage"][name].as_u64().unwrap();
    let first = about(HTN, "ward-1").await;
    assert_eq!(count(&first, "cached_tokens"), 0);
    // With instructions of the client's own, which come after the passages.
    let turns = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": HTN }]);
    let own = json!({ "mode": "rag", "max_tokens": 2, "cache_salt": "ward-1", "messages": turns });
    let second = ask(&question(HTN, own)).await.json();
    assert_eq!(second["passages"], first["passages"]);
    let cached = count(&second, "cached_tokens");
    // Instructions and passages, not what follows them.
    assert!(cached > count(&second, "prompt_tokens") / 2 && cached < count(&second, "prompt_tokens"));

    let elsewhere = about(HTN, "ward-2").await;
    assert_eq!(count(&elsewhere, "cached_tokens"), 0, "another salt shares nothing");
    assert_eq!(elsewhere["answer"], first["answer"]);
    // Every token but the last, whose logits begin the answer.
    let again = about(HTN, "ward-1").await;
    assert_eq!(count(&again, "cached_tokens"), count(&again, "prompt_tokens") - 1);
    assert_eq!(again["answer"], first["answer"]);
}

#[tokio::test]
async fn the_day_chooses_the_edition() {
    let old = question(HTN, json!({ "mode": "rag", "as_of": "2020-06-01", "max_tokens": 1 }));
    let old = ask(&old).await.json();
    assert_eq!(old["passages"][0]["edition"], "2019");
    assert_eq!(old["passages"][0]["effective_to"], "2025-07-31");
    assert_eq!(old["provenance"]["as_of"], "2020-06-01");
}

#[tokio::test]
async fn japanese_questions_get_japanese_passages() {
    let body = question("成人の降圧目標は？", json!({ "mode": "rag", "stream": true, "max_tokens": 4 }));
    let events = events(&ask(&body).await.text());
    assert_eq!(events[0].1["passages"][0]["guideline"], "htn-ja");
    assert_eq!(events.last().unwrap().0, "done");
}

#[tokio::test]
async fn a_seed_draws_the_same_answer_again() {
    let drawn = async |seed: u64| {
        let more = json!({ "mode": "base", "temperature": 1.5, "top_p": 0.95, "top_k": 50, "seed": seed });
        ask(&question("Tell me a story", more)).await.json()
    };
    let (first, again, other) = (drawn(7).await, drawn(7).await, drawn(8).await);
    assert_eq!(first["answer"], again["answer"]);
    assert_eq!(first["provenance"], again["provenance"]);
    assert_ne!(first["answer"], other["answer"]);
}

#[tokio::test]
async fn stop_strings_end_the_answer() {
    let whole = ask(&question("Hello", json!({ "mode": "base" }))).await.json();
    let answer = whole["answer"].as_str().unwrap();
    let stop: String = answer.chars().skip(3).take(2).collect();
    for stop in [json!(stop), json!([stop, "never"])] {
        let cut = ask(&question("Hello", json!({ "mode": "base", "stop": stop }))).await.json();
        assert_eq!(cut["finish_reason"], "stop");
        assert!(answer.starts_with(cut["answer"].as_str().unwrap()));
        assert!(cut["answer"].as_str().unwrap().len() < answer.len());
    }
}
