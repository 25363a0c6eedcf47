//! `/admin/index` and `GET /search`: who may, builds beside answers, going back, and searching without a model.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use shishin::engine::EngineSettings;
use shishin::http::{AdminKey, AppState, HttpSettings};
use shishin::ingest::{BuildOptions, Indexer};
use shishin::retrieve::GuidelineIndex;
use tempfile::TempDir;

use crate::bench::{HTN, Live, answerer_over, events, guideline, log, question, send, wait_for};

const KEY: &str = "a key of some length";
const CLIENTS: usize = 8;
const ROUNDS: usize = 5;

/// A server with an index of its own that it can build.
struct Clinic {
    dir: TempDir,
    state: AppState,
}

impl Clinic {
    fn new(settings: HttpSettings) -> Self {
        log();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("guidelines")).unwrap();
        let clinic = Self { state: AppState::new(settings), dir };
        clinic.write_round(0);
        let indexer = Indexer::new(BuildOptions {
            source: clinic.source(),
            index: clinic.dir.path().join("index"),
            chunk_tokens: 120,
            overlap_tokens: 20,
            strict: false,
            keep_generations: 2,
        });
        indexer.build(true, &mut |_| {}).unwrap();
        let index = Arc::new(GuidelineIndex::open(&indexer.options.index).unwrap());
        let engine = EngineSettings { queue: 64, concurrent: 4, context: 1024, ..EngineSettings::default() };
        clinic.state.set_indexer(indexer);
        clinic.state.set_ready(answerer_over(index, engine));
        clinic
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("guidelines")
    }

    /// Guidelines that all name the round in which they were written.
    fn write_round(&self, round: usize) {
        for (id, topic) in [
            ("htn", "hypertension"),
            ("stroke", "hypertension after a stroke"),
            ("ckd", "hypertension with kidney disease"),
        ] {
            let head = format!(
                "title: {topic}\nid: {id}\nlanguage: en\nedition: 2025\neffective_from: 2025-08-01\ntags: [{id}, adults]\n"
            );
            let body = format!(
                "# Target\n\nThe blood pressure target for adults with {topic} is below 130/80 mmHg (round {round}).\n"
            );
            guideline(&self.source(), &format!("{id}.md"), &head, &body);
        }
    }
}

/// A request to a live server on a connection of its own: status and body.
fn call(server: &Live, method: &str, path: &str, more: &str, body: &str) -> (u16, String) {
    let mut client = server.connect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more}\r\n",
        server.address,
        body.len()
    );
    client.write(format!("{head}{body}").as_bytes());
    let answer = client.read_to_end();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

fn json_of(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// The data of a chunked body.
fn unchunked(mut body: &str) -> String {
    let mut data = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        data.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap_or("");
    }
    data
}

#[tokio::test]
async fn who_may() {
    let open = Clinic::new(HttpSettings::default()).state;
    let asked = |method: &str, path: &str, key: Option<&str>| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.body(Body::empty()).unwrap()
    };
    let request = |path: &str, key: Option<&str>| asked("GET", path, key);
    // Without a connection there is no peer, so nobody may.
    assert_eq!(send(&open, request("/admin/index", None)).await.refusal().1, "forbidden");
    let settings = HttpSettings { admin_key: Some(AdminKey::new(KEY)), ..HttpSettings::default() };
    let state = Clinic::new(settings).state;
    let refused = send(&state, request("/admin/index", Some("another"))).await;
    assert_eq!((refused.refusal().0, refused.headers["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
    assert_eq!(send(&state, request("/admin/index/generations", None)).await.refusal().0, 401);
    assert_eq!(send(&state, request("/admin/index", Some(KEY))).await.json()["state"], "idle");
    // Data and runs of tuning have the same door; behind it this server says that it does not tune.
    for (method, path) in [
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files/ward.jsonl"),
        ("DELETE", "/v1/files/ward.jsonl"),
        ("GET", "/v1/files/ward.jsonl/content"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1"),
        ("POST", "/v1/fine_tuning/jobs/ftjob-1/cancel"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1/events"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1/checkpoints"),
    ] {
        let refused = send(&open, asked(method, path, None)).await.refusal();
        assert_eq!((refused.0, refused.1.as_str()), (403, "forbidden"), "{method} {path}");
        for key in [None, Some("another"), Some("")] {
            let refused = send(&state, asked(method, path, key)).await.refusal();
            assert_eq!((refused.0, refused.1.as_str()), (401, "unauthorized"), "{method} {path} {key:?}");
        }
        let let_in = send(&state, asked(method, path, Some(KEY))).await.refusal();
        assert_eq!((let_in.0, let_in.1.as_str()), (404, "tuning_off"), "{method} {path}");
    }
    assert!(!log().contains(KEY));
}

#[test]
fn a_build_is_started_followed_and_undone() {
    let clinic = Clinic::new(HttpSettings::default());
    let mut server = Live::start(clinic.state.clone(), Duration::from_secs(5));
    let first =
        json_of(&call(&server, "GET", "/health", "", "").1)["generation"].as_str().unwrap().to_owned();
    clinic.write_round(1);
    fs::write(clinic.source().join("broken.md"), "no front matter").unwrap();
    let (status, body) = call(&server, "POST", "/admin/index", "accept: text/event-stream\r\n", "");
    assert_eq!(status, 200, "{body}");
    let followed = events(&unchunked(&body));
    let (name, last) = followed.last().unwrap();
    assert_eq!(name, "done", "{followed:?}");
    assert!(followed[..followed.len() - 1].iter().all(|(name, _)| name == "progress"), "{followed:?}");
    assert_eq!(last["report"]["findings"][0]["file"], "broken.md");
    let second = last["report"]["generation"].as_str().unwrap();
    assert_ne!(second, first);
    assert_eq!(json_of(&call(&server, "GET", "/health", "", "").1)["generation"], second, "live at once");

    let (status, body) = call(&server, "POST", "/admin/index", "", r#"{"strict":true}"#);
    assert_eq!(status, 202, "{body}");
    let failed = wait_for("the strict build to fail", || {
        let status = json_of(&call(&server, "GET", "/admin/index", "", "").1);
        (status["state"] == "failed").then_some(status)
    });
    assert_eq!(failed["findings"][0]["file"], "broken.md");
    let (_, body) = call(&server, "GET", "/admin/index/events", "", "");
    assert_eq!(events(&unchunked(&body)).len(), 1, "{body}");

    let (status, body) = call(&server, "POST", "/admin/index/rollback", "", "");
    assert_eq!((status, json_of(&body)["live"].as_str()), (200, Some(first.as_str())), "{body}");
    let (_, body) = call(&server, "GET", "/search?q=blood+pressure&limit=1", "", "");
    assert!(json_of(&body)["passages"][0]["text"].as_str().unwrap().contains("round 0"), "{body}");
    assert_eq!(call(&server, "POST", "/admin/index/rollback", "", "").0, 409, "nothing is older");
    let unknown = r#"{"generation":"../../x"}"#;
    assert_eq!(call(&server, "POST", "/admin/index/rollback", "", unknown).0, 404);
    let again = json!({ "generation": second }).to_string();
    assert_eq!(call(&server, "POST", "/admin/index/rollback", "", &again).0, 200);
    let (_, body) = call(&server, "GET", "/admin/index/generations", "", "");
    let all = json_of(&body)["generations"].as_array().unwrap().clone();
    assert_eq!(all.iter().map(|g| g["live"].as_bool().unwrap()).collect::<Vec<_>>(), [false, true]);
    // A page in a browser may not.
    for (method, head) in
        [("POST", "origin: http://evil.example\r\n"), ("GET", "sec-fetch-site: cross-site\r\n")]
    {
        assert_eq!(call(&server, method, "/admin/index", head, "").0, 403, "{head}");
    }
    assert_eq!(call(&server, "GET", "/admin/index", "sec-fetch-site: none\r\n", "").0, 200);
    server.stop();
    server.join();
}

#[test]
fn while_the_index_is_built_again_and_again_every_answer_is_of_one_generation() {
    let clinic = Clinic::new(HttpSettings { preparing: CLIENTS, ..HttpSettings::default() });
    let mut server = Live::start(clinic.state.clone(), Duration::from_secs(5));
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rounds: std::sync::Mutex<std::collections::BTreeMap<String, usize>> = std::sync::Mutex::default();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, over, asked, rounds) = (&server, &over, &asked, &rounds);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let (status, body) = if client % 2 == 0 {
                        let body = question(HTN, json!({ "mode": "rag", "max_tokens": 1, "passages": 3 }));
                        call(server, "POST", "/chat", "", &body.to_string())
                    } else {
                        call(server, "GET", "/search?q=blood+pressure+target&limit=3", "", "")
                    };
                    assert_eq!(status, 200, "{body}");
                    let body = json_of(&body);
                    let generation = match client % 2 {
                        0 => body["provenance"]["generation"].as_str(),
                        _ => body["generation"].as_str(),
                    };
                    let passages = body["passages"].as_array().unwrap();
                    assert!(!passages.is_empty());
                    for passage in passages {
                        let text = passage["text"].as_str().unwrap();
                        let round = text.split("(round ").nth(1).unwrap().split(')').next().unwrap();
                        let round: usize = round.parse().unwrap();
                        let mut rounds = rounds.lock().unwrap();
                        let of_generation = *rounds.entry(generation.unwrap().to_owned()).or_insert(round);
                        assert_eq!(round, of_generation, "an answer mixes generations");
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 1..=ROUNDS {
            clinic.write_round(round);
            let before = asked.load(Ordering::SeqCst);
            let (status, body) = call(&server, "POST", "/admin/index", "", "");
            assert_eq!(status, 202, "{body}");
            wait_for("a build and some answers", || {
                let done = json_of(&call(&server, "GET", "/admin/index", "", "").1)["state"] == "done";
                (done && asked.load(Ordering::SeqCst) >= before + CLIENTS).then_some(())
            });
        }
        over.store(true, Ordering::SeqCst);
    });
    let rounds = rounds.into_inner().unwrap();
    assert!(rounds.len() > ROUNDS / 2, "hardly a generation was seen: {rounds:?}");
    server.stop();
    server.join();
}

#[tokio::test]
async fn searching_filters_and_names_what_was_replaced() {
    let clinic = Clinic::new(HttpSettings::default());
    let search = |query: &str| {
        let request = Request::get(format!("/search?{query}")).body(Body::empty()).unwrap();
        let state = clinic.state.clone();
        async move { send(&state, request).await }
    };
    let found = search("q=blood+pressure+target+in+hypertension&tag=CKD&tag=adults").await.json();
    assert_eq!(found["relevant"], true);
    let guidelines: Vec<_> =
        found["passages"].as_array().unwrap().iter().map(|p| p["guideline"].clone()).collect();
    assert_eq!(guidelines, ["ckd"]);
    assert_eq!(search("q=blood+pressure&issuer=nobody").await.json()["passages"], json!([]));
    let all = search("q=blood+pressure&issuer=%20TEST%20society&language=en&jurisdiction=int").await.json();
    assert_eq!(all["passages"].as_array().unwrap().len(), 3);
    assert_eq!(search("q=x&limit=0").await.refusal().3.as_deref(), Some("limit"));
    assert!(!log().contains("CKD"), "no query is logged");

    let filtered = question(HTN, json!({ "mode": "rag", "max_tokens": 1, "filter": { "tags": ["stroke"] } }));
    let request = |body: &Value| {
        let request = Request::post("/chat").header("content-type", "application/json");
        request.body(Body::from(body.to_string())).unwrap()
    };
    let answered = send(&clinic.state, request(&filtered)).await.json();
    assert_eq!(answered["passages"][0]["guideline"], "stroke");
    let wrong = question(HTN, json!({ "filter": { "language": "fr" } }));
    assert_eq!(send(&clinic.state, request(&wrong)).await.refusal().3.as_deref(), Some("filter.language"));
}
