//! `shishin evaluate forgetting`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::super::setup;
use super::super::signals::cancel_on_signal;
use crate::config::Settings;
use crate::evaluate::forgetting::{self, Figures};
use crate::model::BaseModel;
use crate::model::fetch::Cancel;

/// Flags of `shishin evaluate forgetting`.
#[derive(Debug, Args)]
pub struct ForgettingArgs {
    /// General text, paragraphs with a blank line between them
    #[arg(value_name = "FILE", default_values = ["models/datasets/forgetting/en.txt", "models/datasets/forgetting/ja.txt"])]
    files: Vec<PathBuf>,
    /// The adapter: a PEFT folder or a GGUF-LoRA file
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// The base model, instead of the settings'
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Fail where the adapter needs more bits than the base by more than this share, in any language
    #[arg(long, value_name = "SHARE")]
    budget: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    model_sha256: &'a str,
    adapter_sha256: &'a str,
    figures: &'a [Figures],
}

pub(super) fn run(
    settings: &Settings,
    args: &ForgettingArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wording = setup::wording(settings)?;
    let mut texts = Vec::new();
    for file in &args.files {
        texts.extend(forgetting::read(file)?);
    }
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let name = args.model.as_deref().unwrap_or(&settings.model.name);
    let located = setup::locate(settings, name, &cancel)?;
    let cpu = setup::cpu(settings.cpu)?;
    let model = BaseModel::load_fast(&located.path, settings.model.form, located.sha256.as_deref(), cpu)?;
    let own = setup::for_base(&args.adapter, &located.name)
        .with_context(|| format!("{} holds no adapter for {}", args.adapter.display(), located.name))?;
    let adapter = setup::adapter(&own, &model)?;
    let figures = forgetting::measure(&model, &adapter, &texts, &wording, &|| cancel.is_cancelled())?;
    if args.json {
        let report = Report {
            model: &located.name,
            model_sha256: &model.fingerprint,
            adapter_sha256: adapter.fingerprint(),
            figures: &figures,
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{:<5} {:>6} {:>8} {:>12} {:>12} {:>9} {:>10} {:>12}",
            "lang", "texts", "tokens", "base b/byte", "with it", "change", "KL, nats", "same choice"
        )?;
        for one in &figures {
            writeln!(
                out,
                "{:<5} {:>6} {:>8} {:>12.4} {:>12.4} {:>+8.2}% {:>10.4} {:>11.1}%",
                one.language.map_or("all", |language| language.tag()),
                one.texts,
                one.tokens,
                one.base,
                one.adapter,
                100.0 * one.change,
                one.kl,
                100.0 * one.same_choice
            )?;
        }
    }
    let over = |budget: &f64| figures.iter().any(|one| one.change > *budget);
    if args.budget.as_ref().is_some_and(over) {
        writeln!(std::io::stderr(), "the adapter has forgotten more than the budget allows")?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
