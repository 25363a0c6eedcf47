//! `shishin dataset`: look over chat datasets before an hour of training is spent on them.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::{printable, setup};
use crate::config::Settings;
use crate::dataset::lint::{Report, TokenLimit, lint};
use crate::model::fetch::Cancel;

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
}

/// Runs the subcommand. Errors in the data are a failure.
///
/// # Errors
/// When a file cannot be read, or the model's tokenizer cannot be had.
pub fn run(settings: &Settings, command: &DatasetCommand, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let DatasetCommand::Lint { files, max_tokens, json } = command;
    let counter = max_tokens.map(|_| setup::token_counter(settings, &Cancel::default())).transpose()?;
    let limit = match (&counter, max_tokens) {
        (Some(count), Some(most)) => Some(TokenLimit { count: &**count, most: *most }),
        _ => None,
    };
    let mut paths = Vec::new();
    for file in files {
        anyhow::ensure!(file.is_file(), "{} is no file", file.display());
        paths.push(file.as_path());
    }
    let report = lint(&paths, limit.as_ref()).context("the dataset cannot be read")?;
    if *json {
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
