//! The part of `shishin bench` that times whole requests: passages read again, and drafts.

use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;

use crate::engine::{Completion, Engine, EngineEvent, EngineSettings, GenerateRequest, Sampling};
use crate::model::BaseModel;
use crate::model::fast::FastDecoder;
use crate::model::template::{Role, Turn, encode_segments};
use crate::quote::QuoteGuide;

/// Smallest, middle and largest of several timings.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// Times to the first token over the engine, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct PrefixTimes {
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) miss_ms: Spread,
    pub(super) hit_ms: Spread,
    /// Miss ÷ hit, pair by pair.
    pub(super) ratio: Spread,
}

/// Decoding an answer that quotes its prompt, over the engine.
#[derive(Debug, Serialize)]
pub(super) struct DraftTimes {
    pub(super) completion_tokens: usize,
    pub(super) drafted_tokens: usize,
    pub(super) accepted_tokens: usize,
    pub(super) off_tokens_per_s: Spread,
    pub(super) on_tokens_per_s: Spread,
    /// On ÷ off, pair by pair.
    pub(super) ratio: Spread,
    pub(super) same_tokens: bool,
}

/// Passages as a guideline index would hand them to a prompt, of about 500 tokens.
const PASSAGES: &str = include_str!("bench_passages.md");

fn chat_tokens(model: &BaseModel<FastDecoder>, salt: &str, question: &str) -> anyhow::Result<Vec<u32>> {
    let template = model.template.as_ref().context("the model has no chat template")?;
    let turns = [
        Turn { role: Role::System, content: format!("{salt}\n\n{PASSAGES}") },
        Turn { role: Role::User, content: question.into() },
    ];
    Ok(encode_segments(&model.tokenizer, &template.segments(&turns)?)?)
}

/// Runs one request through an engine.
fn complete(engine: &Engine, prompt: Vec<u32>, max_tokens: usize) -> anyhow::Result<(Completion, String)> {
    let sampling = Sampling::GREEDY;
    let request = GenerateRequest {
        prompt,
        adapter: None,
        cache_salt: None,
        sampling,
        max_tokens,
        stop: Vec::new(),
        quotes: QuoteGuide::default(),
    };
    let mut events = engine.handle().submit(request)?;
    let mut text = String::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            EngineEvent::Text(more) => text.push_str(&more),
            EngineEvent::Done(completion) => return Ok((completion, text)),
            EngineEvent::Failed(failure) => return Err(failure.into()),
        }
    }
    anyhow::bail!("the engine stopped")
}

fn engine(
    model: &Arc<BaseModel<FastDecoder>>,
    settings: &EngineSettings,
    draft_tokens: usize,
) -> anyhow::Result<Engine> {
    // Both figures are of things that must be on to be timed.
    let settings = EngineSettings { draft_tokens, prefix_cache: true, ..settings.clone() };
    Ok(Engine::start(model, &settings)?)
}

/// Times a question over passages never read before, and another over the same.
pub(super) fn prefix_times(
    model: &Arc<BaseModel<FastDecoder>>,
    settings: &EngineSettings,
    repeat: u32,
) -> anyhow::Result<PrefixTimes> {
    let engine = engine(model, settings, 0)?;
    let (mut misses, mut hits, mut last) = (Vec::new(), Vec::new(), None);
    for round in 0..=repeat {
        // Passages that were never read before, then another question over the same.
        let date = format!("In effect on 2026-01-{:02}.", round % 28 + 1);
        let first = chat_tokens(model, &date, "What is the first-line treatment?")?;
        let second = chat_tokens(model, &date, "Which dose is given to adults?")?;
        let (miss, _) = complete(&engine, first, 1)?;
        let (hit, _) = complete(&engine, second, 1)?;
        if round > 0 {
            misses.push(miss.prefill_ms);
            hits.push(hit.prefill_ms);
        }
        last = Some(hit);
    }
    let hit = last.context("no round")?;
    engine.handle().close();
    engine.join();
    Ok(PrefixTimes {
        prompt_tokens: hit.prompt_tokens,
        cached_tokens: hit.cached_tokens,
        ratio: Spread::of(misses.iter().zip(&hits).map(|(miss, hit)| miss / hit).collect()),
        miss_ms: Spread::of(misses),
        hit_ms: Spread::of(hits),
    })
}

/// Times an answer that quotes its prompt, without drafts and with them.
pub(super) fn draft_times(
    model: &Arc<BaseModel<FastDecoder>>,
    settings: &EngineSettings,
    repeat: u32,
) -> anyhow::Result<DraftTimes> {
    let drafts = EngineSettings::default().draft_tokens;
    let (off, on) = (engine(model, settings, 0)?, engine(model, settings, drafts)?);
    let prompt =
        chat_tokens(model, "Copy what is asked for, word by word.", "Copy the passages word by word.")?;
    let (mut slow, mut quick, mut last) = (Vec::new(), Vec::new(), None);
    let rate = |done: &Completion| (done.completion_tokens.max(2) - 1) as f64 / done.decode_ms * 1e3;
    for round in 0..=repeat {
        let (without, plain) = complete(&off, prompt.clone(), 128)?;
        let (with, drafted) = complete(&on, prompt.clone(), 128)?;
        if round > 0 {
            slow.push(rate(&without));
            quick.push(rate(&with));
        }
        last = Some((with, plain == drafted));
    }
    for engine in [off, on] {
        engine.handle().close();
        engine.join();
    }
    let (with, same_tokens) = last.context("no round")?;
    Ok(DraftTimes {
        completion_tokens: with.completion_tokens,
        drafted_tokens: with.drafted_tokens,
        accepted_tokens: with.accepted_tokens,
        ratio: Spread::of(quick.iter().zip(&slow).map(|(on, off)| on / off).collect()),
        off_tokens_per_s: Spread::of(slow),
        on_tokens_per_s: Spread::of(quick),
        same_tokens,
    })
}
