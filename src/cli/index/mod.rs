//! `shishin index`: build the guideline index, look at it, search it, go back.
//!
//! The operator's door to the operator path ([`crate::ingest`]), and a look through the request path's eyes
//! ([`crate::retrieve`]) without a model.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod build;
mod generations;
mod held_back;
mod search;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::ZonedDateTime;
use jiff::civil::Date;

use super::setup;
use super::signals::cancel_on_signal;
use crate::config::Settings;
use crate::ingest::Indexer;
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::retrieve::{Filter, Meaning, Ranking};

/// What to do with the index.
#[derive(Debug, Clone, Subcommand)]
pub enum IndexCommand {
    /// Build a new generation from the guideline folder and make it the live one
    Build {
        /// Refuse to build when any file has an error, instead of leaving that file out
        #[arg(long)]
        strict: bool,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Build whenever a guideline changes, until Ctrl-C
    Watch {
        /// Seconds between looks at the folder; a build begins when it was the same twice
        #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        every: u64,
    },
    /// Show the live generation, and whether it can be served
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List all generations, oldest first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an older generation the live one: the one before, or the one named
    Rollback {
        /// The generation's id (`shishin index list`)
        generation: Option<String>,
    },
    /// Check every file and every passage of a generation
    Verify {
        /// The generation's id; the live one when not given
        generation: Option<String>,
    },
    /// Search the guidelines as a question would
    Search {
        /// What is asked.
        #[command(flatten)]
        asked: Asked,
        /// How many passages to show
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
        limit: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show why a question finds what it finds
    Explain {
        /// What is asked.
        #[command(flatten)]
        asked: Asked,
        /// How many passages to explain
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
        limit: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the passages that are held back because they look suspect
    HeldBack {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let passages through that were held back; they are served after the next build
    Approve {
        /// The passages' marks, as `held-back` shows them
        #[arg(required_unless_present = "all", value_name = "MARK")]
        marks: Vec<String>,
        /// All that the live generation holds back
        #[arg(long, conflicts_with = "marks")]
        all: bool,
    },
}

/// A question, and what it is asked of.
#[derive(Debug, Clone, Args)]
pub struct Asked {
    /// The question, in English or Japanese
    query: String,
    /// Search the editions in effect on this day (YYYY-MM-DD) instead of today
    #[arg(long, value_name = "DATE")]
    as_of: Option<Date>,
    /// What to go by: words (bm25), vectors (dense), or both (fused), the default where there are vectors
    #[arg(long)]
    ranking: Option<Ranking>,
    /// Only guidelines of this issuer
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// Only guidelines that hold there
    #[arg(long, value_name = "PLACE")]
    jurisdiction: Option<String>,
    /// Only guidelines in this language: en or ja
    #[arg(long)]
    language: Option<Language>,
    /// Only guidelines with this tag; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
}

impl Asked {
    fn filter(&self) -> Filter {
        Filter {
            issuer: self.issuer.clone(),
            jurisdiction: self.jurisdiction.clone(),
            language: self.language,
            tags: self.tags.clone(),
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// What keeps it from being done; the live generation is then as it was.
pub fn run(command: IndexCommand, settings: &Settings, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let directory = &settings.index.directory;
    match command {
        IndexCommand::Build { strict, json } => build::build(&indexer(settings)?, strict, json, out),
        IndexCommand::Watch { every } => build::watch(settings, std::time::Duration::from_secs(every), out),
        IndexCommand::Status { json } => generations::status(directory, json, out),
        IndexCommand::List { json } => generations::list(directory, json, out),
        IndexCommand::Rollback { generation } => {
            generations::roll_back(directory, generation.as_deref(), out)
        }
        IndexCommand::Verify { generation } => generations::verify(directory, generation.as_deref(), out),
        IndexCommand::Search { asked, limit, json } => {
            let meaning = meaning_for(&asked, settings)?;
            search::search(settings, meaning, &asked, usize::from(limit), json, out)
        }
        IndexCommand::Explain { asked, limit, json } => {
            let meaning = meaning_for(&asked, settings)?;
            search::explain(settings, meaning, &asked, usize::from(limit), json, out)
        }
        IndexCommand::HeldBack { json } => held_back::show(directory, json, out),
        IndexCommand::Approve { marks, all } => held_back::approve(settings, &marks, all, out),
    }
}

/// What a question is compared with.
fn meaning_for(asked: &Asked, settings: &Settings) -> anyhow::Result<Option<Meaning>> {
    // What takes seconds to load comes after what is quick to refuse.
    let directory = &settings.index.directory;
    anyhow::ensure!(crate::store::current_id(directory)?.is_some(), "{}", nothing_built(directory));
    if asked.ranking == Some(Ranking::Bm25) { Ok(None) } else { setup::meaning(settings, &cancel()?) }
}

/// Everything that a build needs, loaded.
fn indexer(settings: &Settings) -> anyhow::Result<Indexer> {
    let cancel = cancel()?;
    let meaning = setup::meaning(settings, &cancel)?;
    let counter = setup::token_counter(settings, &cancel)?;
    let mut indexer = setup::indexer(settings, counter, meaning.as_ref());
    if let Some(Meaning { embedder, .. }) = meaning {
        // It is loaded already, and nobody asks questions here.
        indexer.embedder = Some(std::sync::Arc::new(move || Ok(std::sync::Arc::clone(&embedder))));
    }
    Ok(indexer)
}

fn cancel() -> anyhow::Result<Cancel> {
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    Ok(cancel)
}

fn today() -> Date {
    ZonedDateTime::now().date()
}

fn nothing_built(index_dir: &Path) -> String {
    format!("nothing has been built in {}; run `shishin index build`", index_dir.display())
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
        let IndexCommand::Search { asked, limit, json } = line.command else { panic!("another command") };
        assert_eq!(
            (asked.query.as_str(), asked.as_of.unwrap().to_string().as_str(), limit, asked.ranking, json),
            ("降圧目標", "2020-01-31", 5, None, false)
        );
        assert!(asked.filter().is_empty());
        for bad in [
            &["search", "x", "--as-of", "soon"][..],
            &["search", "x", "--limit", "0"],
            &["build", "--force", "1", "2"],
            &["search", "x", "--language", "fr"],
            &["approve"],
            &["approve", "0123", "--all"],
        ] {
            assert!(Line::try_parse_from([&["index"], bad].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn searching_what_was_never_built_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_str().unwrap().to_owned();
        let sources =
            Sources { flags: vec![("index.directory".into(), directory, "test")], ..Sources::default() };
        let settings = config::load(&Sources { environment: vec![("HOME".into(), "/".into())], ..sources });
        let command = Line::try_parse_from(["index", "search", "x", "--limit", "1"]).unwrap().command;
        let error = run(command, &settings.unwrap(), &mut std::io::sink()).unwrap_err().to_string();
        assert!(error.contains("shishin index build"), "{error}");
    }
}
