//! `shishin bench --only embedder`: how fast passages and questions become vectors.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;

use super::setup;
use crate::config::Settings;
use crate::model::embed::TextKind;
use crate::model::fetch::Cancel;
use crate::retrieve::dense::{DenseIndex, nearest};
use crate::store::vectors::{VectorKey, Vectors};

/// Passages of a round.
const PASSAGES: usize = 64;
/// Tokens of a passage.
const TOKENS: usize = 200;
/// Our own words, from which passages are cut.
const TEXT: &str = include_str!("bench_passages.md");

#[derive(Debug, Serialize)]
struct Figures {
    embedder: String,
    threads: usize,
    /// From opening the file to the first vector.
    load_s: f64,
    passages_per_s: f64,
    tokens_of_a_passage: usize,
    question_ms: f64,
    /// Exact search over [`VECTORS`] vectors.
    search_ms: f64,
}

/// Vectors that are searched.
const VECTORS: usize = 200_000;

/// Vectors of numbers without meaning: an exact search takes as long over them as over any.
fn vectors(dimensions: usize) -> Vectors {
    let mut vectors = Vectors::new(dimensions);
    let mut state = 1u32;
    let mut vector = vec![0f32; dimensions];
    for row in 0..VECTORS {
        for number in &mut vector {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *number = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        }
        vectors.push(VectorKey::of(&row.to_string()), &vector);
    }
    vectors
}

pub(super) fn run(
    settings: &Settings,
    repeat: usize,
    json: Option<&Path>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let meaning = setup::meaning(settings, &Cancel::default())?.context(
        "the settings name no embedder; set SHISHIN_INDEX_EMBEDDER to one of `shishin model list`",
    )?;
    let embedder = &meaning.embedder;
    embedder.embed(TextKind::Query, &["ready"])?;
    let load_s = begun.elapsed().as_secs_f64();
    let words: Vec<&str> = TEXT.split_whitespace().collect();
    let passage = |n: usize, words_of_it: usize| -> String {
        words.iter().cycle().skip(n * 17).take(words_of_it).copied().collect::<Vec<_>>().join(" ")
    };
    let mut passages = Vec::with_capacity(PASSAGES);
    for n in 0..PASSAGES {
        let mut length = TOKENS / 3;
        while embedder.count_tokens(TextKind::Passage, &passage(n, length + 1))? <= TOKENS {
            length += 1;
        }
        passages.push(passage(n, length));
    }
    let passages: Vec<&str> = passages.iter().map(String::as_str).collect();
    let median = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let timed = |work: &dyn Fn() -> anyhow::Result<()>, times: usize| -> anyhow::Result<f64> {
        let mut seconds = Vec::new();
        for _ in 0..times.max(1) {
            let begun = Instant::now();
            work()?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
        Ok(median(seconds))
    };
    let round = timed(&|| Ok(embedder.embed(TextKind::Passage, &passages).map(drop)?), repeat)?;
    let question = "What is the blood pressure target for a 60-year-old with diabetes and hypertension?";
    let asked = timed(&|| Ok(meaning.of_question(question).map(drop)?), 20 * repeat)?;
    let stored = vectors(embedder.dimensions());
    let index =
        DenseIndex::pack(&stored, vec![0; VECTORS], Arc::clone(&meaning.cpu)).context("no numbers")?;
    drop(stored);
    let vector = meaning.of_question(question)?;
    let searched = timed(
        &|| {
            let found = nearest(&index.cosines(&vector).ranked_by, 20, |_| true);
            anyhow::ensure!(found.len() == 20, "a search that finds too little");
            Ok(())
        },
        10 * repeat,
    )?;
    let figures = Figures {
        embedder: embedder.name().to_owned(),
        threads: meaning.cpu.threads(),
        load_s,
        passages_per_s: PASSAGES as f64 / round,
        tokens_of_a_passage: TOKENS,
        question_ms: asked * 1e3,
        search_ms: searched * 1e3,
    };
    writeln!(
        out,
        "{} on {} threads: load {:.2} s; {:.1} passages of {TOKENS} tokens a second; a question {:.2} ms; \
         the nearest of {VECTORS} vectors {:.2} ms",
        figures.embedder,
        figures.threads,
        figures.load_s,
        figures.passages_per_s,
        figures.question_ms,
        figures.search_ms
    )?;
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
