//! `shishin model`: which models there are, and fetching them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::DecimalBytes;
use serde::Serialize;

use super::progress::DownloadBar;
use super::signals::cancel_on_signal;
use crate::model::catalog::{Catalog, ModelEntry};
use crate::model::fetch::{self, FetchOptions};

/// Lists and fetches models.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

/// What to do with models.
#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Show the models that can be named, and which are on this machine
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Fetch models into the cache folder; those that are there are checked against their checksum
    Pull {
        /// Names as `model list` shows them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Show what a model is made of
    Inspect {
        /// A name that is in the cache, a GGUF file, or a Hugging Face folder
        #[arg(value_name = "NAME|PATH")]
        model: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// One model of `list --json`.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    entry: &'a ModelEntry,
    size: u64,
    present: bool,
    path: PathBuf,
}

/// Runs the subcommand and writes its answer to `out`.
pub fn run(
    args: &ModelArgs,
    catalog: &Catalog,
    options: &FetchOptions,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match &args.command {
        ModelCommand::List { json } => list(*json, catalog, options, out),
        ModelCommand::Pull { names } => pull(names, catalog, options, out),
        ModelCommand::Inspect { model, json } => inspect(model, *json, catalog, options, out),
    }
}

fn list(json: bool, catalog: &Catalog, options: &FetchOptions, out: &mut dyn Write) -> anyhow::Result<()> {
    let listed: Vec<Listed<'_>> = catalog
        .models()
        .iter()
        .map(|entry| Listed {
            entry,
            size: entry.size(),
            present: fetch::is_present(entry, &options.cache_dir),
            path: entry.load_path(&fetch::model_dir(entry, &options.cache_dir)),
        })
        .collect();
    if json {
        serde_json::to_writer_pretty(&mut *out, &listed)?;
        return Ok(writeln!(out)?);
    }
    let head = ["NAME", "ARCHITECTURE", "SIZE", "LANGUAGES", "LICENCE", "PRESENT"].map(String::from);
    let mut rows = vec![head];
    rows.extend(listed.iter().map(|Listed { entry, size, present, .. }| {
        [
            entry.name.clone(),
            entry.architecture.clone(),
            DecimalBytes(*size).to_string(),
            entry.languages.join(" "),
            entry.licence.clone(),
            if *present { "yes" } else { "no" }.to_owned(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
        if let Some(model) = i.checked_sub(1).and_then(|i| listed.get(i)) {
            writeln!(out, "    {}", model.entry.note)?;
        }
    }
    Ok(())
}

fn pull(
    names: &[String],
    catalog: &Catalog,
    options: &FetchOptions,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    // All names are looked up before anything is downloaded.
    let entries = names.iter().map(|name| catalog.get(name)).collect::<Result<Vec<_>, _>>()?;
    // Whoever pulls by hand wants to know that it is right, so what is there is hashed too.
    let options = FetchOptions { rehash: true, ..options.clone() };
    cancel_on_signal(options.cancel.clone()).context("cannot listen for Ctrl-C")?;
    for entry in entries {
        let path = fetch::ensure(entry, &options, &mut DownloadBar::stderr())?;
        writeln!(out, "{}: {} (sha256 fits)", entry.name, path.display())?;
    }
    Ok(())
}

fn inspect(
    model: &str,
    json: bool,
    catalog: &Catalog,
    options: &FetchOptions,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if let Some(path) = super::setup::as_path(model) {
        return super::inspect::run(&path, json, out);
    }
    let entry = catalog.get(model)?;
    anyhow::ensure!(
        fetch::is_present(entry, &options.cache_dir),
        "{model} is not in the cache; run `shishin model pull {model}` first"
    );
    super::inspect::run(&entry.load_path(&fetch::model_dir(entry, &options.cache_dir)), json, out)
}
