//! `shishin evaluate quoting`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::super::progress::Tally;
use super::super::setup;
use super::super::signals::cancel_on_signal;
use crate::config::Settings;
use crate::evaluate::answers;
use crate::evaluate::in_prompt::PromptSigns;
use crate::evaluate::quoting::{self, FEWEST, Found};
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::model::lora::{QUOTING, Quoting};
use crate::tune::checkpoint::write_whole;

/// Flags of `shishin evaluate quoting`.
#[derive(Debug, Args)]
pub struct QuotingArgs {
    /// Chat examples that were not learnt from, as `shishin dataset ground --quotes` writes them: valid.jsonl
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The adapter: a PEFT folder
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// The base model, instead of the settings'
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only the first N examples of each file
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The share of the examples that passages answer in which the adapter shall quote
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    answered: f64,
    /// Write the bars into the adapter's folder, where evaluations find them, and the server when it loads the adapter
    #[arg(long)]
    write: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    adapter: &'a str,
    /// What counted besides the adapter, where something did: the bars hold with that alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    reader: Option<ReaderCounted<'a>>,
    bars: &'a [Found],
}

#[derive(Serialize)]
struct ReaderCounted<'a> {
    sha256: &'a str,
    reader_odds: f32,
}

pub(super) fn run(settings: &Settings, args: &QuotingArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let sound = args.answered > 0.0 && args.answered <= 1.0;
    anyhow::ensure!(sound, "--answered is {}; it must be above 0 and at most 1", args.answered);
    let wording = setup::wording(settings)?;
    let held = answers::read(&args.files, args.limit, &wording)?;
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let (located, model) = setup::base(settings, args.model.as_deref(), &cancel)?;
    let (folder, adapter) = setup::adapter_of(&args.adapter, &located.name, &model)?;
    anyhow::ensure!(
        folder.is_dir() || !args.write,
        "{} is no folder, and bars stand beside a PEFT adapter: name its folder, or leave out --write",
        folder.display()
    );
    let learnt = setup::matrices(&folder, &model.config)?.fingerprint().to_owned();
    let mut tally = Tally::stderr("beginnings", held.len(), 0);
    let stop = || cancel.is_cancelled();
    let choice = settings.answer.quotes;
    let meaning = if choice.reader_odds > 0.0 { setup::meaning_and_reader(settings, &cancel)? } else { None };
    let mut signs = PromptSigns::new(meaning.as_ref());
    let decisions =
        quoting::decisions(&model, &adapter, &held, (choice, &mut signs), &stop, &mut |done| tally.at(done))?;
    tally.end();
    let found: Vec<Found> =
        Language::ALL.into_iter().filter_map(|l| quoting::bar(&decisions, l, args.answered)).collect();
    anyhow::ensure!(
        !found.is_empty(),
        "a bar needs {FEWEST} examples of a language over passages whose answer begins with a quote, and as many whose answer does not; name more files"
    );
    for language in Language::ALL.into_iter().filter(|l| found.iter().all(|one| one.language != *l)) {
        let of =
            |quoted| decisions.iter().filter(|one| one.language == language && one.quoted == quoted).count();
        if of(true) + of(false) > 0 {
            let (tag, answered, declined) = (language.tag(), of(true), of(false));
            writeln!(
                std::io::stderr(),
                "{tag}: no new bar; {answered} examples begin with a quote and {declined} do not, and {FEWEST} of each are needed"
            )?;
        }
    }
    let reader = meaning.as_ref().and_then(|meaning| meaning.embedder.reader());
    let reader_odds = choice.reader_odds;
    let counted = reader.map(|sha256| ReaderCounted { sha256, reader_odds });
    if let Some(ReaderCounted { sha256, .. }) = &counted {
        writeln!(
            std::io::stderr(),
            "with answer.reader_odds at {reader_odds} and the reader {sha256}; these bars hold with both alone"
        )?;
    }
    if args.json {
        serde_json::to_writer_pretty(
            &mut *out,
            &Report { model: &located.name, adapter: &learnt, reader: counted, bars: &found },
        )?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{:<5} {:>7} {:>9} {:>8} {:>9} {:>8} {:>6}",
            "lang", "bar", "answered", "of", "declined", "of", "area"
        )?;
        for one in &found {
            writeln!(
                out,
                "{:<5} {:>7.2} {:>8.1}% {:>8} {:>8.1}% {:>8} {:>6.3}",
                one.language.tag(),
                one.bar,
                100.0 * one.answered.rate,
                one.answered.of,
                100.0 * one.declined.rate,
                one.declined.of,
                one.area
            )?;
        }
    }
    if args.write {
        // Those of languages of which none was found stay.
        let mut bars = adapter.bars().clone();
        bars.extend(found.iter().map(|one| (one.language, one.bar)));
        let quoting = Quoting { adapter: learnt, bars };
        let path = folder.join(QUOTING);
        let text = serde_json::to_string_pretty(&quoting)? + "\n";
        write_whole(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(std::io::stderr(), "written into {}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
