//! What requests find of each other in the cache, and what they must not find.

use std::sync::Arc;

use shishin::engine::{Completion, EngineFailure, EngineHandle, EngineSettings, GenerateRequest};
use shishin::kernels::KvCache;
use shishin::model::config::Architecture;
use shishin::model::fast::{PackedAdapter, Piece, Workspace};
use shishin::model::lora::Adapter;

use crate::asking::{Asked, Fast, adapter, ask, cache_bytes, greedy, packed, start, tiny_model};

fn settings(model: &Fast) -> EngineSettings {
    EngineSettings { context: 400, cache_bytes: cache_bytes(model, 100), ..EngineSettings::default() }
}

/// `length` tokens, whose last `own` are this one's alone.
fn prompt(length: usize, own: usize, which: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 37 + if i < length - own { 0 } else { 5 + 3 * which }) % 256) as u32).collect()
}

/// How much of a prompt was found, and what was said.
fn found(handle: &EngineHandle, request: GenerateRequest) -> (usize, String) {
    let (text, Completion { cached_tokens, .. }) = ask(handle, request);
    (cached_tokens, text)
}

#[test]
fn a_second_request_finds_the_beginning_that_it_shares_and_says_what_it_says_without() {
    for architecture in Architecture::ALL {
        let model = tiny_model(architecture, 1);
        let (_engine, handle) = start(&model, settings(&model));
        let (_plain, without) = start(&model, EngineSettings { prefix_cache: false, ..settings(&model) });
        let first = prompt(200, 0, 0);
        assert_eq!(found(&handle, greedy(&first, 20)).0, 0);
        // Whole blocks only, some tokens of a block that goes on otherwise, and all but the last.
        for (request, shared) in [
            (prompt(160, 48, 1), 112),
            (prompt(160, 49, 2), 111),
            (prompt(160, 55, 3), 105),
            (prompt(160, 159, 4), 1),
            (first.clone(), 199),
            ([first.clone(), prompt(50, 50, 5)].concat(), 200),
        ] {
            let (cached, text) = found(&handle, greedy(&request, 20));
            assert_eq!(cached, shared, "{architecture:?}");
            assert_eq!((0, text), found(&without, greedy(&request, 20)), "{architecture:?}: {shared} shared");
        }
    }
}

/// A copy is made of a block that two texts share in part, so neither writes into the other's.
#[test]
fn who_goes_on_within_a_block_leaves_the_original_as_it_was() {
    let model = tiny_model(Architecture::Qwen3, 1);
    let (_engine, handle) = start(&model, settings(&model));
    let originals: Vec<(usize, String)> =
        [90, 100].map(|length| found(&handle, greedy(&prompt(length, 0, 0), 30))).into();
    let branches: Vec<String> =
        (0..8).map(|n| found(&handle, greedy(&prompt(100, 5 + n, n), 30)).1).collect();
    for (length, (_, text)) in [90, 100].into_iter().zip(&originals) {
        assert_eq!(found(&handle, greedy(&prompt(length, 0, 0), 30)), (length - 1, text.clone()));
    }
    for (n, text) in branches.iter().enumerate() {
        assert_eq!(found(&handle, greedy(&prompt(100, 5 + n, n), 30)), (99, text.clone()));
    }
}

#[test]
fn nothing_is_shared_between_adapters_or_salts() {
    let model = tiny_model(Architecture::Llama, 1);
    let (_engine, handle) = start(&model, settings(&model));
    let one = adapter(&model, 4, 1);
    let pack = |adapter: &Adapter| Some(Arc::new(PackedAdapter::pack(adapter, &model.decoder).unwrap()));
    let callers: Vec<(Option<Arc<PackedAdapter>>, Option<&str>)> = vec![
        (None, None),
        (None, Some("ward 1")),
        (None, Some("ward 2")),
        (pack(&one), None),
        (pack(&one.scaled(0.5)), None),
        (Some(packed(&model, 4, 2)), None),
        (Some(packed(&model, 4, 2)), Some("ward 1")),
    ];
    let request = |(adapter, salt): &(Option<Arc<PackedAdapter>>, Option<&str>)| GenerateRequest {
        adapter: adapter.clone(),
        cache_salt: salt.map(str::to_owned),
        ..greedy(&prompt(64, 0, 0), 12)
    };
    let first: Vec<(usize, String)> = callers.iter().map(|caller| found(&handle, request(caller))).collect();
    assert!(first.iter().all(|(cached, _)| *cached == 0), "{first:?}");
    // Each finds its own again, with an answer that is its adapter's.
    for (caller, (_, text)) in callers.iter().zip(&first) {
        assert_eq!(found(&handle, request(caller)), (63, text.clone()));
    }
    // A salt changes no answer; an adapter does.
    assert!(first[0].1 == first[1].1 && first[1].1 == first[2].1 && first[5].1 == first[6].1);
    assert!(first[0].1 != first[3].1 && first[3].1 != first[4].1 && first[3].1 != first[5].1);
    // The same weights loaded again are the same adapter.
    assert_eq!(found(&handle, request(&(pack(&one), None))).0, 63);
}

/// The tokens that late adapters begin with in these tests.
const INVOCATION: [u32; 2] = [9, 11];

/// What the decoder itself makes of a prompt whose beginning the base reads.
fn late_answer(model: &Fast, prompt: &[u32], begins: usize, adapter: &PackedAdapter, count: usize) -> String {
    let positions = prompt.len() + count;
    let pages: Vec<u32> = (0..positions.div_ceil(KvCache::PAGE) as u32).collect();
    let mut cache = KvCache::new(model.decoder.cache_shape(), pages.len());
    let mut workspace = Workspace::default();
    let mut run = |tokens: &[u32], position: usize, adapter: Option<&PackedAdapter>| -> u32 {
        let piece = Piece { tokens, position, pages: &pages, adapter, before: 0, logits: 1 };
        let logits = model.decoder.forward(&[piece], &mut cache, &mut workspace, &|| false).unwrap();
        let known = model.tokenizer.vocabulary_size().min(logits.len());
        let best = (0..known).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        best.unwrap() as u32
    };
    run(&prompt[..begins], 0, None);
    let mut token = run(&prompt[begins..], begins, Some(adapter));
    let mut bytes = Vec::new();
    for position in prompt.len()..prompt.len() + count {
        if model.tokenizer.is_end(token) {
            break;
        }
        bytes.extend_from_slice(model.tokenizer.text_bytes(token));
        token = run(&[token], position, Some(adapter));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_late_adapter_shares_what_is_before_it_with_the_base_and_with_others() {
    // Some tiny models say nothing but damaged characters, which are all alike.
    let mut differ = 0;
    for architecture in Architecture::ALL {
        let model = tiny_model(architecture, 1);
        let settings = EngineSettings { prefill_chunk: 64, ..settings(&model) };
        let (_engine, handle) = start(&model, settings.clone());
        let (_plain, without) = start(&model, EngineSettings { prefix_cache: false, ..settings });
        let late = |seed: u64| {
            let adapter = adapter(&model, 4, seed).invoked_by(&INVOCATION);
            Arc::new(PackedAdapter::pack(&adapter, &model.decoder).unwrap())
        };
        let (one, two) = (late(1), late(2));
        // An earlier occurrence counts for nothing; the last is in the middle of a block.
        let mut tokens = prompt(150, 0, 0);
        tokens[20..22].copy_from_slice(&INVOCATION);
        tokens[123..125].copy_from_slice(&INVOCATION);
        let with = |adapter: &Arc<PackedAdapter>| GenerateRequest {
            adapter: Some(Arc::clone(adapter)),
            ..greedy(&tokens, 20)
        };
        let expected = [&one, &two].map(|adapter| late_answer(&model, &tokens, 123, adapter, 20));
        differ += usize::from(expected[0] != expected[1]);
        let base = found(&without, greedy(&tokens, 20));

        assert_eq!(found(&handle, with(&one)), (0, expected[0].clone()), "{architecture:?}");
        assert_eq!(found(&handle, with(&two)), (123, expected[1].clone()), "{architecture:?}");
        assert_eq!(found(&handle, greedy(&tokens, 20)), (123, base.1.clone()), "{architecture:?}");
        assert_eq!(found(&handle, with(&one)), (149, expected[0].clone()), "{architecture:?}");
        assert_eq!(found(&without, with(&one)), (0, expected[0].clone()), "{architecture:?}");
        // Without its tokens it does nothing.
        let plain = prompt(150, 0, 0);
        let absent = GenerateRequest { adapter: Some(Arc::clone(&one)), ..greedy(&plain, 20) };
        assert_eq!(found(&without, absent), found(&without, greedy(&plain, 20)), "{architecture:?}");
        // Together in one pass with its base and another.
        let asked =
            [with(&one), greedy(&tokens, 20), with(&two)].map(|r| Asked::new(handle.submit(r).unwrap()));
        let said = asked.map(|asked| asked.finish().0);
        assert_eq!(said, [expected[0].clone(), base.1, expected[1].clone()], "{architecture:?}");
    }
    assert!(differ > 1);
}

#[test]
fn requests_that_come_together_read_their_common_beginning_once() {
    let model = tiny_model(Architecture::Qwen2, 1);
    let (_engine, handle) = start(&model, EngineSettings { prefill_chunk: 8, ..settings(&model) });
    let (_plain, without) = start(&model, EngineSettings { prefix_cache: false, ..settings(&model) });
    const TOGETHER: usize = 8;
    const COMMON: usize = 160;
    let request = |n: usize| greedy(&prompt(COMMON + 20, 20, n), 16);
    let asked: Vec<Asked> = (0..TOGETHER).map(|n| Asked::new(handle.submit(request(n)).unwrap())).collect();
    let mut cached = Vec::new();
    for (n, asked) in asked.into_iter().enumerate() {
        let (text, done) = asked.finish();
        cached.push(done.unwrap().cached_tokens);
        assert_eq!((0, text), found(&without, request(n)));
    }
    assert_eq!(cached.iter().sum::<usize>(), (TOGETHER - 1) * COMMON, "{cached:?}");
}

#[test]
fn what_had_to_make_way_is_read_again() {
    let model = tiny_model(Architecture::Gemma3, 1);
    let smallest = EngineSettings { cache_bytes: cache_bytes(&model, 25), ..settings(&model) };
    let (_engine, handle) = start(&model, smallest);
    let first = found(&handle, greedy(&prompt(100, 0, 0), 10));
    assert_eq!(found(&handle, greedy(&prompt(100, 0, 0), 10)), (99, first.1.clone()));
    // This one needs every block.
    assert_eq!(found(&handle, greedy(&prompt(380, 380, 1), 20)).0, 0);
    assert_eq!(found(&handle, greedy(&prompt(100, 0, 0), 10)), first);
}

#[test]
fn an_adapter_that_is_broken_fails_its_own_requests_alone() {
    let model = tiny_model(Architecture::Llama, 1);
    let (_engine, handle) = start(&model, settings(&model));
    let good = found(&handle, greedy(&prompt(60, 0, 0), 20));
    let broken = adapter(&model, 4, 1).scaled(f64::NAN);
    let broken = Arc::new(PackedAdapter::pack(&broken, &model.decoder).unwrap());
    let request = || GenerateRequest { adapter: Some(Arc::clone(&broken)), ..greedy(&prompt(60, 0, 0), 20) };
    let together: Vec<(Asked, bool)> = (0..6)
        .map(|n| {
            let fails = n % 2 == 0;
            let request = if fails { request() } else { greedy(&prompt(60, 0, 0), 20) };
            (Asked::new(handle.submit(request).unwrap()), fails)
        })
        .collect();
    for (asked, fails) in together {
        let (text, end) = asked.finish();
        match fails {
            true => assert_eq!((text.as_str(), end.unwrap_err()), ("", EngineFailure::Internal)),
            false => assert_eq!((end.unwrap().cached_tokens, text), (59, good.1.clone())),
        }
    }
}
