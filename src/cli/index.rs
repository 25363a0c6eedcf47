//! `shishin index`: build the guideline index, look at it, search it.
//!
//! The operator's door to the operator path ([`crate::ingest`]), and a look through the request path's eyes
//! ([`crate::retrieve`]) without a model.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::ZonedDateTime;
use jiff::civil::Date;

use super::signals::cancel_on_signal;
use super::{printable, setup};
use crate::config::Settings;
use crate::ingest::{self, BuildOptions, BuildReport, BuildTools, Finding, Progress};
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::retrieve::{GuidelineIndex, Meaning, Passage, Ranking, SearchQuery};
use crate::store::Manifest;
use crate::store::publish;

/// What to do with the index.
#[derive(Debug, Clone, Subcommand)]
pub enum IndexCommand {
    /// Build a new generation from the guideline folder and make it the live one
    Build {
        /// Refuse to build when any file has an error, instead of leaving that file out
        #[arg(long)]
        strict: bool,
    },
    /// Show the live generation and the older ones
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Search the guidelines as a question would
    Search {
        /// The question, in English or Japanese
        query: String,
        /// Search the editions in effect on this day (YYYY-MM-DD) instead of today
        #[arg(long, value_name = "DATE")]
        as_of: Option<Date>,
        /// How many passages to show
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
        limit: u16,
        /// What to go by: words (bm25), vectors (dense), or both (fused), the default where there are vectors
        #[arg(long)]
        ranking: Option<Ranking>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the subcommand.
pub fn run(command: IndexCommand, settings: &Settings, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let index = &settings.index;
    match command {
        IndexCommand::Build { strict } => {
            let meaning = meaning(settings)?;
            build(&setup::build_options(index, strict), meaning.as_ref(), out)
        }
        IndexCommand::Status { json } => status(&index.directory, json, out),
        IndexCommand::Search { query, as_of, limit, ranking, json } => {
            // What takes seconds to load comes after what is quick to refuse.
            if crate::store::current_id(&index.directory)?.is_none() {
                anyhow::bail!("{}", nothing_built(&index.directory));
            }
            let meaning = if ranking == Some(Ranking::Bm25) { None } else { meaning(settings)? };
            let query = SearchQuery {
                text: &query,
                as_of: as_of.unwrap_or_else(today),
                language: None,
                filter: None,
                limit: usize::from(limit),
                ranking,
            };
            search(&index.directory, meaning, &query, json, out)
        }
    }
}

fn meaning(settings: &Settings) -> anyhow::Result<Option<Meaning>> {
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    setup::meaning(settings, &cancel)
}

fn today() -> Date {
    ZonedDateTime::now().date()
}

fn build(options: &BuildOptions, meaning: Option<&Meaning>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let bar = progress_bar()?;
    let embedder = meaning.map(|meaning| &*meaning.embedder);
    let tools = BuildTools { embedder, ..BuildTools::default() };
    let built = ingest::build_with(tools, options, today(), &mut |step| show(&bar, step));
    bar.finish_and_clear();
    match built {
        Ok(report) => {
            print_findings(&report.findings);
            print_report(&report, &options.index, out)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            print_findings(error.findings());
            Err(error).context("the index was not built; what is being served is unchanged")
        }
    }
}

fn progress_bar() -> anyhow::Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{msg:>9} {bar:32} {pos}/{len} files")?;
    Ok(ProgressBar::new(0).with_style(style))
}

fn show(bar: &ProgressBar, step: Progress) {
    let (message, done, total) = match step {
        Progress::Reading(done, total) => ("reading", done, total),
        Progress::Indexing(done, total) => ("indexing", done, total),
        Progress::Writing => {
            bar.set_message("writing");
            return;
        }
    };
    bar.set_message(message);
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}

fn print_findings(findings: &[Finding]) {
    for finding in findings {
        eprintln!("{finding}");
    }
}

fn print_report(report: &BuildReport, index_dir: &Path, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "Generation {} is live in {}.", report.generation, index_dir.display())?;
    writeln!(out, "{}", contents(&report.counts))?;
    writeln!(out, "{} in effect today.", plural(report.in_effect, "edition"))?;
    if let Some(embedded) = report.embedded {
        writeln!(out, "{} made, {} taken along.", plural(embedded.made, "vector"), embedded.reused)?;
    }
    if report.left_out > 0 {
        writeln!(out, "{} left out because of errors; see above.", plural(report.left_out, "file"))?;
    }
    Ok(())
}

fn contents(counts: &crate::store::manifest::Counts) -> String {
    let languages = Language::ALL.map(|l| format!("{l} {}", counts.chunks_by_language.get(&l).unwrap_or(&0)));
    format!(
        "{}, {}, {} ({}).",
        plural(counts.guidelines, "guideline"),
        plural(counts.editions, "edition"),
        plural(counts.chunks, "chunk"),
        languages.join(", ")
    )
}

fn plural(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

fn status(index_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let generations = publish::list(index_dir)?;
    // Opening checks versions and checksums, which listing does not.
    let opened = GuidelineIndex::open(index_dir);
    let fault = opened.as_ref().err().map(ToString::to_string);
    if json {
        let live = generations.iter().find(|g| g.1).map(|g| &g.0);
        let ids: Vec<_> = generations.iter().map(|g| g.0.id.as_str()).collect();
        let body = serde_json::json!({ "live": live, "generations": ids, "fault": fault });
        writeln!(out, "{}", serde_json::to_string_pretty(&body)?)?;
    } else {
        print_status(index_dir, &generations, fault.as_deref(), out)?;
    }
    let live = opened.is_ok_and(|index| index.snapshot().is_some());
    Ok(if live { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_status(
    index_dir: &Path,
    generations: &[(Manifest, bool)],
    fault: Option<&str>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if let Some(fault) = fault {
        eprintln!("error: {fault}");
    }
    if generations.is_empty() {
        writeln!(out, "Nothing has been built in {}; run `shishin index build`.", index_dir.display())?;
    }
    for (manifest, live) in generations {
        let mark = if *live { "live" } else { "old " };
        writeln!(out, "{mark}  {}  built {} from {}", manifest.id, manifest.created, manifest.source)?;
        writeln!(out, "      {}", contents(&manifest.counts))?;
    }
    Ok(())
}

fn nothing_built(index_dir: &Path) -> String {
    format!("nothing has been built in {}; run `shishin index build`", index_dir.display())
}

fn search(
    index_dir: &Path,
    meaning: Option<Meaning>,
    query: &SearchQuery<'_>,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let index = GuidelineIndex::open_with(index_dir, meaning)?;
    let snapshot = index.snapshot().with_context(|| nothing_built(index_dir))?;
    let found = snapshot.search(query)?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else if found.passages.is_empty() {
        writeln!(out, "No passage found among the editions in effect on {}.", query.as_of)?;
    } else {
        for passage in &found.passages {
            print_passage(passage, out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_passage(passage: &Passage, out: &mut dyn Write) -> std::io::Result<()> {
    let until = passage.effective_to.map_or_else(String::new, |d| format!(" to {d}"));
    writeln!(out, "[{}] {} ({})", passage.n, printable(&passage.title), printable(&passage.edition))?;
    if !passage.section.is_empty() {
        writeln!(out, "    {}", printable(&passage.section))?;
    }
    writeln!(
        out,
        "    {}, {}, from {}{until}",
        printable(&passage.issuer),
        printable(&passage.jurisdiction),
        passage.effective_from
    )?;
    writeln!(out, "    {}:{}..{}", passage.file, passage.span.start, passage.span.end)?;
    let similarity = passage.similarity.map_or_else(String::new, |s| format!(", similarity {s:.3}"));
    writeln!(out, "    score {:.2}, coverage {:.2}{similarity}", passage.score, passage.coverage)?;
    for line in printable(&passage.text).lines() {
        writeln!(out, "    | {line}")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;
    use crate::config::{self, Sources};

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: IndexCommand,
    }

    #[test]
    fn the_command_line_is_consistent_and_reads_dates() {
        Line::command().debug_assert();
        let line = Line::try_parse_from(["index", "search", "降圧目標", "--as-of", "2020-01-31"]).unwrap();
        let IndexCommand::Search { query, as_of, limit, ranking, json } = line.command else {
            panic!("another command")
        };
        assert_eq!(
            (query.as_str(), as_of.unwrap().to_string().as_str(), limit, ranking, json),
            ("降圧目標", "2020-01-31", 5, None, false)
        );
        for bad in [
            &["search", "x", "--as-of", "soon"],
            &["search", "x", "--limit", "0"],
            &["build", "--force", "1", "2"],
        ] {
            assert!(Line::try_parse_from([&["index"][..], &bad[..]].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn searching_what_was_never_built_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_str().unwrap().to_owned();
        let sources =
            Sources { flags: vec![("index.directory".into(), directory, "test")], ..Sources::default() };
        let settings = config::load(&Sources { environment: vec![("HOME".into(), "/".into())], ..sources });
        let command =
            IndexCommand::Search { query: "x".to_owned(), as_of: None, limit: 1, ranking: None, json: false };
        let error = run(command, &settings.unwrap(), &mut std::io::sink()).unwrap_err().to_string();
        assert!(error.contains("shishin index build"), "{error}");
    }
}
