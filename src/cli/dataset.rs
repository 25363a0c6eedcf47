//! `shishin dataset`: look over chat datasets before an hour of training is spent on them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::{printable, setup};
use crate::config::{IndexSettings, Settings};
use crate::dataset::ground::{self, Grounder, Grounding};
use crate::dataset::lint::{Report, TokenLimit, lint};
use crate::ingest::Indexer;
use crate::model::fetch::Cancel;
use crate::retrieve::GuidelineIndex;

/// What to do with a dataset.
#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Find faults in JSON Lines of messages: form, order, empty or damaged text, duplicates, leakage between files, personal data
    Lint {
        /// The files; what stands in two of them leaks
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Warn of examples with more tokens of the settings' model than this
        #[arg(long, value_name = "N")]
        max_tokens: Option<usize>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write questions, answers and quotes out as chat examples over passages of the guidelines, and split them
    Ground {
        /// JSON Lines of items: id, language, and question, answer, oracle; or a question that nothing answers; or messages, passages
        #[arg(required = true, value_name = "FILE")]
        items: Vec<PathBuf>,
        /// A folder of guidelines that the passages come from; may be repeated
        #[arg(long, required = true, value_name = "FOLDER")]
        guidelines: Vec<PathBuf>,
        /// The folder for train.jsonl, valid.jsonl and test.jsonl
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Passages of an example, the answering one among them
        #[arg(long, value_name = "N", default_value_t = 5)]
        passages: usize,
        /// How often each question to learn from is written out, each time among other passages
        #[arg(long, value_name = "N", default_value_t = 1)]
        variants: usize,
        /// Share of the questions that are asked again without the passage that answers
        #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
        without: f64,
        /// Decides places and choices
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
}

/// Runs the subcommand. Errors in the data are a failure.
///
/// # Errors
/// When a file cannot be read, or the model's tokenizer cannot be had.
pub fn run(settings: &Settings, command: &DatasetCommand, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match command {
        DatasetCommand::Lint { files, max_tokens, json } => {
            look_over(settings, files, *max_tokens, *json, out)
        }
        DatasetCommand::Ground { items, guidelines, out: folder, passages, variants, without, seed } => {
            anyhow::ensure!((1..=20).contains(passages), "--passages must be 1 to 20");
            anyhow::ensure!((0.0..=1.0).contains(without), "--without must be 0 to 1");
            anyhow::ensure!((1..=20).contains(variants), "--variants must be 1 to 20");
            let grounding =
                Grounding { passages: *passages, variants: *variants, without: *without, seed: *seed };
            ground_items(settings, items, guidelines, folder, grounding, out)
        }
    }
}

fn ground_items(
    settings: &Settings,
    items: &[PathBuf],
    guidelines: &[PathBuf],
    folder: &Path,
    grounding: Grounding,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let items = ground::read(items)?;
    let wording = setup::wording(settings)?;
    // An index of its own over all folders, searched by words alone: the same on every machine.
    let work = tempfile::tempdir().context("no folder for a temporary index")?;
    let (source, directory) = (work.path().join("guidelines"), work.path().join("index"));
    for (n, from) in guidelines.iter().enumerate() {
        copy_tree(from, &source.join(n.to_string()))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let index = IndexSettings { guidelines: source, directory: directory.clone(), ..settings.index.clone() };
    Indexer::new(setup::build_options(&index, true)).build(true, &mut |_| {})?;
    let index = GuidelineIndex::open(&directory)?;
    let snapshot = index.snapshot().context("the temporary index is empty")?;
    let rows = Grounder { snapshot: &snapshot, wording: &wording, grounding }.rows(&items)?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (path, count) in ground::write(folder, &rows)? {
        writeln!(out, "{}: {count} examples", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            std::fs::copy(path, target)?;
        }
    }
    Ok(())
}

fn look_over(
    settings: &Settings,
    files: &[PathBuf],
    max_tokens: Option<usize>,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let counter = max_tokens.map(|_| setup::token_counter(settings, &Cancel::default())).transpose()?;
    let limit = match (&counter, max_tokens) {
        (Some(count), Some(most)) => Some(TokenLimit { count: &**count, most }),
        _ => None,
    };
    let mut paths = Vec::new();
    for file in files {
        anyhow::ensure!(file.is_file(), "{} is no file", file.display());
        paths.push(file.as_path());
    }
    let report = lint(&paths, limit.as_ref()).context("the dataset cannot be read")?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    for finding in &report.findings {
        writeln!(out, "{}", printable(&finding.to_string()))?;
    }
    for (file, examples) in &report.examples {
        writeln!(out, "{file}: {examples} examples can be trained on")?;
    }
    let errors = report.errors();
    writeln!(out, "{errors} errors, {} warnings", report.findings.len() - errors)
}
