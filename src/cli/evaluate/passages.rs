//! `shishin evaluate passages`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use jiff::ZonedDateTime;
use jiff::civil::Date;

use super::super::setup;
use super::super::signals::cancel_on_signal;
use crate::config::Settings;
use crate::evaluate::metrics::Mean;
use crate::evaluate::passages::{self, Found, Gated, Judged};
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::retrieve::{Filter, Gate, GuidelineIndex, Ranking};

/// Flags of `shishin evaluate passages`.
#[derive(Debug, Args)]
pub struct PassagesArgs {
    /// Files with a question a line, as JSON: question, and guideline and section where one answers it; or lines of a suite or a dataset
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Ask guidelines in this language only: en or ja
    #[arg(long)]
    language: Option<Language>,
    /// The day for questions that name none (YYYY-MM-DD); today when not given
    #[arg(long, value_name = "DATE")]
    as_of: Option<Date>,
    /// What to go by: bm25, dense or fused; as the settings have it when not given
    #[arg(long)]
    ranking: Option<Ranking>,
    /// Show what other gates would make of the questions
    #[arg(long)]
    sweep: bool,
    /// Print the figures, and each question, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(settings: &Settings, args: &PassagesArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut sets = Vec::new();
    for file in &args.files {
        sets.push((file.display().to_string(), passages::read(file)?));
    }
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let tools = setup::search_tools(settings, setup::meaning_and_reader(settings, &cancel)?)?;
    let index = GuidelineIndex::open_with(&settings.index.directory, tools)?;
    let nothing = || {
        format!("nothing has been built in {}; run `shishin index build`", settings.index.directory.display())
    };
    let snapshot = index.snapshot().with_context(nothing)?;
    let filter = Filter { language: args.language, ..Filter::default() };
    let today = args.as_of.unwrap_or_else(|| ZonedDateTime::now().date());
    let (gate, shown) = (settings.answer.gate, settings.answer.passages);
    let mut all: Vec<Judged> = Vec::new();
    let mut figures = Vec::new();
    for (name, questions) in &sets {
        let judged = passages::ask(
            &snapshot,
            questions,
            &filter,
            args.ranking,
            (today, shown),
            settings.answer.quotes,
        )?;
        let found = Found::of(&judged);
        if args.json {
            let gated = Gated::of(&judged, gate);
            figures.push(
                serde_json::json!({ "file": name, "found": found, "gate": gated, "questions": judged }),
            );
        } else {
            write!(out, "{name}: {} questions", judged.len())?;
            if let Some(found) = found {
                let show = |Mean { mean, low, high }: Mean| format!("{mean:.3} ({low:.2}–{high:.2})");
                let Found { recall_1, shown: in_prompts, recall_5, sentence } = found;
                write!(out, "; recall@1 {}, in prompts of {shown} {}", show(recall_1), show(in_prompts))?;
                write!(out, ", recall@{} {}", passages::DEPTH, show(recall_5))?;
                if let Some(sentence) = sentence {
                    write!(out, "; preferred sentence of a prompt {}", show(sentence))?;
                }
            }
            writeln!(out)?;
            let missed = judged.iter().filter(|j| j.answerable && j.rank.is_none()).map(|j| j.id.as_str());
            let missed: Vec<_> = missed.filter(|id| !id.is_empty()).collect();
            if !missed.is_empty() {
                writeln!(out, "    not among the first {}: {}", passages::DEPTH, missed.join(", "))?;
            }
        }
        all.extend(judged);
    }
    if args.json {
        let body = serde_json::json!({
            "generation": snapshot.generation(), "sets": figures, "gate": Gated::of(&all, gate),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&body)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let vectors = snapshot.manifest().embedder.is_some() && args.ranking != Some(Ranking::Bm25);
    let by = if vectors { "min_support" } else { "min_coverage" };
    writeln!(out, "\n{by:>12} {:>10} {:>10} {:>10}", "recall", "precision", "stopped")?;
    for gate in gates(gate, vectors, args.sweep) {
        let gated = Gated::of(&all, gate);
        let bar = if vectors { gated.min_support } else { gated.min_coverage };
        writeln!(
            out,
            "{bar:>12.2} {:>10.3} {:>10.3} {:>10.3}",
            gated.recall, gated.precision, gated.stopped
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The gate of the settings; and around it, where others are asked for.
fn gates(own: Gate, vectors: bool, sweep: bool) -> Vec<Gate> {
    let around = |n: i16| match vectors {
        true => Gate { min_support: own.min_support + 0.02 * f32::from(n), ..own },
        false => Gate { min_coverage: own.min_coverage + 0.05 * f32::from(n), ..own },
    };
    if sweep { (-6..=6).map(around).collect() } else { vec![own] }
}
