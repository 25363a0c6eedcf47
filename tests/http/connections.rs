//! Over real sockets: clients that leave, clients that hang, too many of them, and the server's end.

use std::time::Duration;

use serde_json::{Value, json};
use shishin::http::HttpSettings;

use crate::bench::{Client, Live, log_line, question, ready_state, small, wait_for, wait_for_log};

/// Longer than any of these tests reads.
const LONG: u64 = 6000;
/// Drawn so hot that the end of the turn is one token among all others, and no draft is right.
const HOT: f64 = 2.0;
const NO_HURRY: Duration = Duration::from_secs(200);

fn live(settings: HttpSettings, drain: Duration) -> Live {
    Live::start(ready_state(small(), settings), drain)
}

/// A question that takes long to answer.
fn endless(text: &str, stream: bool) -> Value {
    let more = json!({ "mode": "base", "max_tokens": LONG, "temperature": HOT, "top_p": 1.0, "seed": 1 });
    let mut body = question(text, more);
    body["stream"] = json!(stream);
    body
}

/// A prompt of some 1,500 tokens, which is read in many passes.
fn long_prompt(first: &str) -> String {
    format!("{first} {}", "pain ".repeat(1500))
}

/// A question whose answer is two tokens.
fn brief(text: &str) -> Value {
    question(text, json!({ "mode": "base", "max_tokens": 2, "stream": true }))
}

/// A count of the usage at the end of an answer.
fn count(client: &Client, name: &str) -> usize {
    let text = client.text();
    let digits = text.split(&format!("\"{name}\":")).nth(1).unwrap();
    digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Waits until the engine has let go of a request, and holds the log line to it.
fn assert_cancelled(id: &str) {
    wait_for_log(id, &["cancelled by its client"]);
    wait_for_log(id, &["request finished", "finish=\"disconnected\""]);
}

#[test]
fn a_client_that_leaves_frees_the_engine() {
    let server = live(HttpSettings::default(), NO_HURRY);
    // While the prompt is read, and not one event has come yet.
    for stream in [true, false] {
        let id = if stream { "leave-prefill-sse" } else { "leave-prefill-json" };
        let client = server.post(id, &endless(&long_prompt(id), stream));
        wait_for_log(id, &["a request starts"]);
        drop(client);
        assert_cancelled(id);
        // What is asked next finds what was read of the same prompt, and that was not all of it.
        let mut again = server.post(&format!("{id}-again"), &brief(&long_prompt(id)));
        assert!(again.read_until("event: done"), "{}", again.text());
        let (cached, prompt) = (count(&again, "cached_tokens"), count(&again, "prompt_tokens"));
        assert!(prompt > 1400 && cached < prompt - 1, "{cached} of {prompt}");
    }
    // While the answer is written.
    let mut client = server.post("leave-decode", &endless("Tell me a long story", true));
    assert!(client.read_until("event: token"));
    drop(client);
    assert_cancelled("leave-decode");
    // One sequence at a time: an answer shows that the engine is free.
    let mut client = server.post("leave-after", &brief("Hello"));
    assert!(client.read_until("event: done"), "{}", client.text());
}

#[test]
fn a_full_queue_says_when_to_come_back_and_those_who_left_hold_no_place() {
    let server = live(HttpSettings::default(), NO_HURRY);
    let engine_waits = |n: usize| {
        let health = || {
            let mut client = server.connect();
            client.write(b"GET /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
            client.read_to_end()
        };
        wait_for("the queue", || health().contains(&format!("\"waiting\":{n}")).then_some(()));
    };
    let running = server.post("full-running", &endless("Tell me a long story", true));
    wait_for_log("full-running", &["a request starts"]);
    let waiting = server.post("full-waiting", &endless("And another one", true));
    engine_waits(1);

    let mut refused = server.post("full-refused", &brief("Hello"));
    assert!(refused.read_until("\"queue_full\""), "{}", refused.text());
    let text = refused.text().to_lowercase();
    assert!(text.starts_with("http/1.1 429"), "{text}");
    let after = text.split("retry-after: ").nth(1).and_then(|rest| rest.split('\r').next()).unwrap();
    assert!(after.parse::<u64>().unwrap() >= 1);

    // The one who waits leaves; the place is free while the first still runs.
    drop(waiting);
    engine_waits(0);
    let next = server.post("full-next", &endless("Hello", true));
    engine_waits(1);
    drop(running);
    wait_for_log("full-next", &["a request starts"]);
    drop(next);
}

#[test]
fn at_shutdown_a_running_answer_is_finished_and_no_other_begun() {
    let mut server = live(HttpSettings::default(), NO_HURRY);
    // A connection that idles must not hold the end up.
    let mut idle = server.connect();
    idle.write(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n");
    assert!(idle.read_until("\"status\":\"ok\""));
    let mut story = endless("Tell me a story", true);
    story["max_tokens"] = json!(400);
    let mut running = server.post("drain-running", &story);
    assert!(running.read_until("event: token"));
    server.stop();
    // The end of the idle connection shows that the server has heard.
    idle.read_to_end();
    assert!(log_line("drain-running", &["request finished"]).is_none(), "there is something to wait for");
    match Client::new(server.address) {
        // Refused, as it should be; or taken from the backlog of a socket that is about to close.
        Err(_) => {}
        Ok(mut late) => assert!(!late.read_until("HTTP/1.1 200")),
    }
    assert!(running.read_until("event: done"), "{}", running.text());
    assert_eq!(count(&running, "completion_tokens"), 400);
    server.join();
}

#[test]
fn the_deadline_ends_what_does_not_end_by_itself() {
    let settings = HttpSettings { header_timeout: NO_HURRY, ..HttpSettings::default() };
    let mut server = live(settings, Duration::from_millis(200));
    let mut half = server.connect();
    half.write(b"POST /chat HTTP/1.1\r\nhost: te");
    let mut no_body = server.connect();
    no_body.write(
        b"POST /chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
    );
    let silent = server.connect();
    let mut running = server.post("deadline-running", &endless("Tell me a long story", true));
    assert!(running.read_until("event: token"));
    let queued = server.post("deadline-queued", &endless("And another one", true));
    server.stop();
    server.join();
    assert!(running.read_until("event: error"), "{}", running.text());
    assert!(running.read_until("\"shutting_down\""), "{}", running.text());
    assert!(!running.text().contains("event: done"));
    drop((half, no_body, silent, queued));
}

#[test]
fn slow_clients_are_let_go() {
    let brief = Duration::from_millis(100);
    let settings = HttpSettings {
        header_timeout: brief,
        body_timeout: brief,
        max_connections: 2,
        body_limit: 1000,
        ..HttpSettings::default()
    };
    let server = live(settings, NO_HURRY);
    // Half a head, and nothing at all: both are closed, which makes room for the next two.
    let mut half = server.connect();
    half.write(b"GET /health HTT");
    let mut silent = server.connect();
    assert!(!half.read_until("200 OK"));
    assert!(!silent.read_until("200 OK"));
    // Half a body.
    let mut slow = server.connect();
    slow.write(
        b"POST /chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
    );
    assert!(slow.read_until("request_timeout"), "{}", slow.text());
    assert!(slow.text().starts_with("HTTP/1.1 408"));
    // A body announced too long is refused before it comes; a chunked one when it is.
    let mut long = server.connect();
    long.write(b"POST /chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 1001\r\n\r\n");
    assert!(long.read_until("body_too_large"), "{}", long.text());
    let mut chunked = server.connect();
    chunked.write(b"POST /chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        chunked.write(format!("190\r\n{}\r\n", " ".repeat(400)).as_bytes());
    }
    assert!(chunked.read_until("body_too_large"), "{}", chunked.text());
}

#[test]
fn silence_is_filled_with_comments() {
    let settings = HttpSettings { keep_alive: Duration::from_millis(20), ..HttpSettings::default() };
    let server = live(settings, NO_HURRY);
    let mut client = server.post("comments", &endless(&long_prompt("comments"), true));
    assert!(client.read_until(": keep-alive"), "{}", client.text());
}
