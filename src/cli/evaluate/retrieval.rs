//! `shishin evaluate`: how good retrieval is, on collections with known answers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::super::setup;
use super::super::signals::cancel_on_signal;
use crate::config::Settings;
use crate::evaluate::beir::Collection;
use crate::evaluate::metrics::Mean;
use crate::evaluate::retrieval::{self, Answered, Summary};
use crate::ingest::chunk::{Sizes, estimate_tokens};
use crate::model::fetch::Cancel;
use crate::retrieve::{Meaning, Ranking};

/// Flags of `shishin evaluate retrieval`.
#[derive(Debug, Args)]
pub struct RetrievalArgs {
    /// A folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv; may be repeated
    #[arg(long, required = true, value_name = "DIR")]
    beir: Vec<PathBuf>,
    /// What to go by: bm25, dense or fused; all that the settings allow when not given
    #[arg(long, value_delimiter = ',', value_name = "MODE,…")]
    mode: Vec<Ranking>,
    /// Whose judgements: qrels/SPLIT.tsv
    #[arg(long, default_value = "test", value_name = "SPLIT")]
    split: String,
    /// Ask that many questions of each collection, spread evenly, instead of all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    questions: Option<u32>,
    /// Keep the indexes in this folder: the next run takes their vectors along
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Also say how many questions the gate of the settings would let be answered, and how many it would stop, were the documents that
    /// answer them not there
    #[arg(long)]
    gate: bool,
    /// Write the figures as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a line of JSON for each question and mode
    #[arg(long, value_name = "FILE")]
    per_query: Option<PathBuf>,
}

/// The figures of one collection.
#[derive(Debug, Serialize)]
struct Evaluated {
    collection: String,
    documents: usize,
    chunks: usize,
    questions: usize,
    build_s: f64,
    index_bytes: u64,
    modes: Vec<ModeFigures>,
}

#[derive(Debug, Serialize)]
struct ModeFigures {
    mode: Ranking,
    #[serde(flatten)]
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    collection: &'a str,
    mode: Ranking,
    #[serde(flatten)]
    answered: &'a Answered,
}

/// Runs the subcommand.
///
/// # Errors
/// When a collection cannot be read, indexed or searched, or a file cannot be written.
pub(super) fn run(
    settings: &Settings,
    args: &RetrievalArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wants_vectors = args.mode.iter().any(|mode| *mode != Ranking::Bm25);
    let meaning = if args.mode.is_empty() || wants_vectors { meaning(settings)? } else { None };
    anyhow::ensure!(
        meaning.is_some() || !wants_vectors,
        "dense and fused need vectors: name an embedder in index.embedder, or evaluate --mode bm25"
    );
    let modes = match (&args.mode[..], &meaning) {
        ([], Some(_)) => Ranking::ALL.to_vec(),
        ([], None) => vec![Ranking::Bm25],
        (chosen, _) => chosen.to_vec(),
    };
    let mut lines = Vec::new();
    let mut all = Vec::new();
    for folder in &args.beir {
        let evaluated = evaluate(settings, args, folder, &modes, meaning.as_ref(), &mut lines)?;
        print(&evaluated, out)?;
        all.push(evaluated);
    }
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> anyhow::Result<String>| -> anyhow::Result<()> {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, text()?).with_context(|| format!("cannot write {}", path.display()))
    };
    write(&args.json, &|| Ok(serde_json::to_string_pretty(&all)? + "\n"))?;
    write(&args.per_query, &|| Ok(lines.concat()))?;
    Ok(ExitCode::SUCCESS)
}

fn meaning(settings: &Settings) -> anyhow::Result<Option<Meaning>> {
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    setup::meaning(settings, &cancel)
}

fn evaluate(
    settings: &Settings,
    args: &RetrievalArgs,
    folder: &Path,
    modes: &[Ranking],
    meaning: Option<&Meaning>,
    lines: &mut Vec<String>,
) -> anyhow::Result<Evaluated> {
    let mut collection = Collection::read(folder, &args.split)?;
    if let Some(most) = args.questions {
        let step = collection.questions.len().div_ceil(most as usize).max(1);
        let mut at = 0;
        collection.questions.retain(|_| {
            at += 1;
            (at - 1) % step == 0
        });
    }
    let scratch;
    let folder = match &args.index {
        Some(kept) => kept.join(&collection.name),
        None => {
            scratch = tempfile::tempdir().context("cannot make a folder for the index")?;
            scratch.path().to_owned()
        }
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let sizes = Sizes {
        limit: settings.index.chunk_tokens,
        overlap: settings.index.overlap_tokens,
        count: &estimate_tokens,
    };
    let indexed =
        retrieval::index(&collection, &folder, sizes, &setup::search_tools(settings, meaning.cloned())?)?;
    let mut evaluated = Evaluated {
        documents: collection.documents.len(),
        chunks: indexed.documents.len(),
        questions: collection.questions.len(),
        build_s: indexed.seconds,
        index_bytes: indexed.bytes,
        modes: Vec::new(),
        collection: collection.name.clone(),
    };
    let gate = args.gate.then_some(settings.answer.gate);
    for mode in modes {
        let answered = retrieval::ask(&collection, &indexed, *mode, gate)?;
        if args.per_query.is_some() {
            for one in &answered {
                let line = Line { collection: &collection.name, mode: *mode, answered: one };
                lines.push(serde_json::to_string(&line)? + "\n");
            }
        }
        evaluated.modes.push(ModeFigures { mode: *mode, summary: Summary::of(&answered) });
    }
    Ok(evaluated)
}

fn print(evaluated: &Evaluated, out: &mut dyn Write) -> std::io::Result<()> {
    let Evaluated { collection, documents, chunks, questions, build_s, index_bytes, modes } = evaluated;
    writeln!(
        out,
        "{collection}: {documents} documents, {chunks} chunks, {questions} questions; built in {build_s:.1} s, {:.1} MB",
        *index_bytes as f64 / 1e6
    )?;
    writeln!(
        out,
        "{:<6} {:>22} {:>22} {:>22} {:>10} {:>10}",
        "mode", "nDCG@10", "MRR@10", "R@100", "median ms", "p99 ms"
    )?;
    for ModeFigures { mode, summary } in modes {
        let show = |Mean { mean, low, high }: Mean| format!("{mean:.4} ({low:.3}–{high:.3})");
        writeln!(
            out,
            "{:<6} {:>22} {:>22} {:>22} {:>10.2} {:>10.2}",
            mode.as_str(),
            show(summary.ndcg_10),
            show(summary.mrr_10),
            show(summary.recall_100),
            summary.median_ms,
            summary.p99_ms
        )?;
        if let (Some(kept), Some(stopped)) = (summary.kept, summary.stopped) {
            let kept = show(kept);
            let stopped = show(stopped);
            writeln!(
                out,
                "       gate: {kept} answered; without the documents that answer, {stopped} stopped"
            )?;
        }
    }
    writeln!(out)
}
