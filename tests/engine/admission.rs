//! Who is taken, who is refused and told when to come back, who waits, and who goes on meanwhile.

use std::time::Duration;

use shishin::engine::{
    Engine, EngineFailure, EngineHandle, EngineSettings, GenerateRequest, StartError, SubmitError,
};
use shishin::model::config::Architecture;

use crate::asking::{Asked, HOT, ask, cache_bytes, greedy, smollm, start, tiny_model, wait_until};

/// Tokens that no test waits for.
const LONG: usize = 6_000;

fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|i| 1_000 + ((i * 7_919) % 30_000) as u32).collect()
}

/// A request that runs until its client leaves.
fn endless(length: usize) -> GenerateRequest {
    GenerateRequest { sampling: HOT, ..greedy(&prompt(length), LONG) }
}

fn submit(handle: &EngineHandle, request: GenerateRequest) -> Asked {
    Asked::new(handle.submit(request).unwrap())
}

/// An engine that is kept busy by one request, so that others wait.
fn busy(settings: &EngineSettings) -> (Engine, EngineHandle, Asked) {
    let (engine, handle) =
        start(&smollm(), EngineSettings { concurrent: 1, context: 8192, ..settings.clone() });
    let mut running = submit(&handle, endless(20));
    running.step();
    assert_eq!((handle.waiting(), handle.waiting_tokens()), (0, 0));
    (engine, handle, running)
}

#[test]
fn a_queue_is_full_of_requests_and_who_leaves_makes_room() {
    let (_engine, handle, running) = busy(&EngineSettings { queue: 2, ..EngineSettings::default() });
    let first = submit(&handle, endless(30));
    let second = submit(&handle, greedy(&prompt(40), 2));
    for _ in 0..3 {
        let Err(SubmitError::QueueFull { waiting, tokens, retry_after }) = handle.submit(endless(1)) else {
            panic!("the queue takes two");
        };
        assert_eq!((waiting, tokens), (2, 70));
        assert!(retry_after >= Duration::from_secs(1) && retry_after.subsec_nanos() == 0, "{retry_after:?}");
    }
    drop(first);
    wait_until("the one who left gives up the place", || handle.waiting() == 1);
    assert_eq!(handle.waiting_tokens(), 40);
    let third = submit(&handle, greedy(&prompt(50), 2));
    assert!(matches!(handle.submit(endless(1)), Err(SubmitError::QueueFull { waiting: 2, tokens: 90, .. })));
    drop(running);
    for asked in [second, third] {
        assert_eq!(asked.finish().1.unwrap().completion_tokens, 2);
    }
    assert_eq!((handle.waiting(), handle.waiting_tokens()), (0, 0));
}

#[test]
fn a_queue_is_full_of_tokens_but_takes_any_request_when_nobody_waits() {
    let settings = EngineSettings { queue: 10, queue_tokens: 100, ..EngineSettings::default() };
    let (_engine, handle, _running) = busy(&settings);
    let full = |length| match handle.submit(endless(length)) {
        Err(SubmitError::QueueFull { waiting, tokens, retry_after }) => {
            assert!(retry_after >= Duration::from_secs(1));
            (waiting, tokens)
        }
        other => panic!("{other:?}"),
    };
    let large = submit(&handle, endless(150));
    assert_eq!(full(1), (1, 150));
    drop(large);
    wait_until("the queue is empty", || handle.waiting() == 0);
    let _sixty = submit(&handle, endless(60));
    assert_eq!(full(41), (1, 60));
    let _forty = submit(&handle, endless(40));
    assert_eq!(full(1), (2, 100));
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let model = tiny_model(Architecture::Llama, 1);
    let pages = cache_bytes(&model, 10);
    let settings = EngineSettings { context: 160, cache_bytes: pages, ..EngineSettings::default() };
    let (_engine, handle) = start(&model, settings.clone());
    let submit = |prompt: usize, answer: usize| handle.submit(greedy(&vec![1; prompt], answer)).map(drop);
    assert_eq!(submit(100, 61), Err(SubmitError::TooLong { asked: 161, context: 160 }));
    assert_eq!(submit(161, 0), Err(SubmitError::TooLong { asked: 161, context: 160 }));
    assert!(matches!(submit(1, usize::MAX), Err(SubmitError::TooLong { context: 160, .. })));
    assert!(submit(0, 10).is_err(), "there is nothing to answer");
    assert_eq!(submit(100, 60), Ok(()));
    let (_, done) = ask(&handle, greedy(&vec![1; 159], 1));
    assert_eq!((done.prompt_tokens, done.completion_tokens), (159, 1));

    // One byte less, and one position more.
    for settings in [
        EngineSettings { cache_bytes: pages - 1, ..settings.clone() },
        EngineSettings { context: 161, ..settings },
    ] {
        let error = Engine::start(&model, &settings).unwrap_err();
        assert!(matches!(error, StartError::Cache { .. }));
        let message = error.to_string();
        assert!(message.contains("raise it") && message.contains("engine.cache_mb"), "{message}");
        assert!(message.contains("engine.context_tokens"), "{message}");
    }
}

#[test]
fn while_a_long_prompt_is_read_others_go_on() {
    const CHUNK: usize = 64;
    const PROMPT: usize = 1_600;
    let settings =
        EngineSettings { context: 8192, prefill_chunk: CHUNK, draft_tokens: 0, ..EngineSettings::default() };
    let (_engine, handle) = start(&smollm(), settings);
    let mut writing = submit(&handle, endless(20));
    writing.step();
    let mut long = submit(&handle, greedy(&prompt(PROMPT), 8));
    writing.look();
    let before = writing.texts;
    while long.texts == 0 && long.end.is_none() {
        assert!(long.step());
    }
    writing.look();
    // A token for every pass, except those that end within a character and show nothing.
    let meanwhile = writing.texts - before;
    assert!(meanwhile >= PROMPT / CHUNK * 3 / 4, "{meanwhile} tokens while {PROMPT} were read");
    assert!(writing.end.is_none());
}

#[test]
fn who_leaves_gives_back_memory_to_who_waits() {
    let model = smollm();
    const CONTEXT: usize = 2_048;
    let settings = EngineSettings {
        concurrent: 4,
        context: CONTEXT,
        cache_bytes: cache_bytes(&model, CONTEXT / 16),
        draft_tokens: 0,
        ..EngineSettings::default()
    };
    let (_engine, handle) = start(&model, settings);
    // All the memory but a page, as long as it runs.
    let mut large = submit(&handle, GenerateRequest { max_tokens: CONTEXT - 16 - 20, ..endless(20) });
    large.step();
    let mut waits = submit(&handle, greedy(&prompt(30), 4));
    for _ in 0..5 {
        assert!(large.step());
    }
    waits.look();
    assert_eq!((handle.waiting(), waits.texts), (1, 0), "there is a place, and no memory");
    let small = submit(&handle, greedy(&prompt(5), 4));
    drop(large);
    for asked in [waits, small] {
        asked.finish().1.unwrap();
    }
}

#[test]
fn an_engine_that_closes_finishes_and_one_that_aborts_says_so() {
    let model = tiny_model(Architecture::Llama, 1);
    let settings = EngineSettings {
        concurrent: 1,
        context: 200,
        cache_bytes: cache_bytes(&model, 40),
        ..EngineSettings::default()
    };
    let (engine, handle) = start(&model, settings);
    let taken: Vec<Asked> = (0..5).map(|n| submit(&handle, greedy(&[n; 100], 40))).collect();
    handle.close();
    assert!(matches!(handle.submit(greedy(&[1], 1)), Err(SubmitError::ShuttingDown)));
    for asked in taken {
        asked.finish().1.unwrap();
    }
    engine.join();

    let (engine, handle, running) = busy(&EngineSettings::default());
    let waits = submit(&handle, greedy(&prompt(10), 4));
    handle.abort();
    for asked in [running, waits] {
        assert_eq!(asked.finish().1.unwrap_err(), EngineFailure::ShuttingDown);
    }
    engine.join();
}
