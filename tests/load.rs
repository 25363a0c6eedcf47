//! Two hundred streams at once on one server: none hangs, all that asked the same are told the same, and memory
//! stays within its budget. In a program of its own, so that the memory is this test's alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[allow(dead_code, reason = "this uses its own part")]
#[path = "http/bench.rs"]
mod bench;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use shishin::engine::EngineSettings;
use shishin::http::HttpSettings;

use bench::{Client, HTN, Live, question, ready_state};

const THREADS: usize = 8;
const STREAMS_OF_A_THREAD: usize = 25;
const MB: usize = 1 << 20;
const CACHE: usize = 48 * MB;
/// What the passes, the connections and the log may take besides.
const BESIDES: usize = 64 * MB;

/// Resident memory, where the system says it this way.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
}

/// Several kinds of questions, short and long, with an adapter and without.
fn body(n: usize) -> Value {
    let more = match n % 5 {
        0 => json!({ "mode": "base", "max_tokens": 6 }),
        1 => json!({ "mode": "rag", "max_tokens": 8 }),
        2 => json!({ "mode": "hybrid", "adapter": "noise", "max_tokens": 4 }),
        3 => json!({ "mode": "base", "max_tokens": 12, "temperature": 1.0, "seed": 3 }),
        _ => json!({ "mode": "tuned", "adapter": "noise", "max_tokens": 1, "cache_salt": n.to_string() }),
    };
    let mut body = question(HTN, more);
    body["stream"] = json!(true);
    body
}

/// What a client was told: the text of an answer that came to its end, or nothing where the queue was full.
fn told(client: &mut Client) -> Option<String> {
    let whole = client.read_until("event: done") && client.read_until("\n\n");
    let text = client.text();
    if whole {
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let events = text.lines().filter_map(|line| line.strip_prefix("data: {\"text\":"));
        let pieces = events.map(|piece| serde_json::from_str::<String>(piece.trim_end_matches('}')).unwrap());
        return Some(pieces.collect());
    }
    let head = text.to_lowercase();
    assert!(head.starts_with("http/1.1 429") && head.contains("\"queue_full\""), "{text}");
    assert!(head.contains("retry-after: "), "{text}");
    None
}

fn ask(server: &Live, n: usize) -> Client {
    let mut client = server.connect();
    let body = body(n).to_string();
    // Closed by the server at the end, of an answer as of a refusal.
    client.write(
        format!(
            "POST /chat HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    );
    client
}

#[test]
fn two_hundred_streams_at_once_all_come_to_an_end() {
    let settings = EngineSettings {
        queue: 100,
        concurrent: 8,
        prefill_chunk: 128,
        context: 512,
        cache_bytes: CACHE,
        ..EngineSettings::default()
    };
    // Nobody waits to be prepared, so that only the queue refuses.
    let http = HttpSettings { preparing: THREADS * STREAMS_OF_A_THREAD, ..HttpSettings::default() };
    let server = Live::start(ready_state(settings, http), Duration::from_secs(200));
    // Alone, one after the other; by then everything is loaded.
    let alone: Vec<String> = (0..5).map(|n| told(&mut ask(&server, n)).unwrap()).collect();
    let before = resident();

    let (finished, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut most = before;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (server, alone, finished, refused) = (&server, &alone, &finished, &refused);
                scope.spawn(move || {
                    let numbers = thread * STREAMS_OF_A_THREAD..(thread + 1) * STREAMS_OF_A_THREAD;
                    let open: Vec<(usize, Client)> = numbers.map(|n| (n, ask(server, n))).collect();
                    for (n, mut client) in open {
                        match told(&mut client) {
                            Some(text) => {
                                assert_eq!(text, alone[n % 5], "the answer to question {}", n % 5);
                                finished.fetch_add(1, Ordering::Relaxed);
                            }
                            None => {
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            most = most.max(resident());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    });
    let (finished, refused) = (finished.into_inner(), refused.into_inner());
    println!("{finished} finished, {refused} refused");
    assert_eq!(finished + refused, THREADS * STREAMS_OF_A_THREAD);
    // Those that waited in the queue at least.
    assert!(finished >= 100, "{finished} finished");
    if let (Some(before), Some(most)) = (before, most) {
        println!("resident: {} MB before, {} MB at the most", before / MB, most / MB);
        assert!(most <= before + CACHE + BESIDES, "from {before} to {most} bytes");
    }
    for (n, text) in alone.iter().enumerate() {
        assert_eq!(told(&mut ask(&server, n)).as_ref(), Some(text), "afterwards as before");
    }
    let mut health = server.connect();
    health.write(b"GET /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    assert!(health.read_to_end().contains("\"waiting\":0"));
}
