//! `shishin reader`: train what tells which sentence answers, and judge it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::progress::Tally;
use super::tune::{Terminal, enter};
use super::{setup, signals};
use crate::config::Settings;
use crate::evaluate::reading::{self, Asked, Reading};
use crate::model::embed;
use crate::model::fetch::Cancel;
use crate::retrieve::Meaning;
use crate::tune::checkpoint::write_whole;
use crate::tune::reader::settings::ReaderSettings;
use crate::tune::reader::{Found, ReaderOutcome, ReaderRun, ReaderSummary};

/// What to do with readers.
#[derive(Debug, Subcommand)]
pub enum ReaderCommand {
    /// Train a reader on the quotes of chat examples; a run that was ended goes on where it stood
    Train(TrainArgs),
    /// Count how often the sentence that is preferred is one that answers, without a reader and with it
    Evaluate(EvaluateArgs),
}

/// What to train.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The run's settings
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    /// Throw away what an earlier run has left in the output folder; refused while one is at work there
    #[arg(long)]
    restart: bool,
}

/// What to judge.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Chat examples that were not learnt from, as `shishin dataset ground --quotes` writes them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The reader's folder, instead of the settings' own
    #[arg(long, value_name = "PATH")]
    reader: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the settings or data are unsound, the embedder cannot be loaded, or the run fails.
pub fn run(settings: &Settings, command: &ReaderCommand, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match command {
        ReaderCommand::Train(args) => train(settings, args, out),
        ReaderCommand::Evaluate(args) => evaluate(settings, args, out),
    }
}

fn train(settings: &Settings, args: &TrainArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let reader = ReaderSettings::read(&args.run)?;
    let cancel = Cancel::default();
    signals::cancel_on_signal(cancel.clone())?;
    let path = setup::embedder(settings, &reader.embedder, &cancel).context("embedder")?;
    let cpu = setup::cpu(settings.cpu)?;
    let run = ReaderRun::load(&reader, &path, &cpu)?;
    let folder = reader.output.join("run");
    let _lock = enter(&folder, false, args.restart)?;
    let (learnt, looked) = (run.train.examples.len(), run.valid.examples.len());
    writeln!(
        out,
        "{learnt} examples to learn from and {looked} to look at; {} and {} lines have no passages, no question, or quote what is in none",
        run.train.without, run.valid.without
    )?;
    let summary = match run.train(&folder, &mut Terminal::new(cancel))? {
        ReaderOutcome::Done(summary) => summary,
        ReaderOutcome::Stopped(step) => {
            writeln!(out, "stopped after step {step}; the same command goes on from there")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let written = summary.adapter.files((&reader.embedder, run.embedder()))?;
    for (name, bytes) in &written.files {
        write_whole(&reader.output.join(name), bytes)?;
    }
    write_whole(&reader.output.join("README.md"), card(&reader, &run, &summary, &written.sha256).as_bytes())?;
    if let Some(looks) = summary.valid {
        writeln!(out, "{}", found(looks))?;
    }
    writeln!(
        out,
        "written into {}; {} steps in {:.0} s",
        reader.output.display(),
        summary.steps,
        summary.seconds
    )?;
    Ok(ExitCode::SUCCESS)
}

/// What came of a run, by what was held out.
fn found([before, after]: [Found; 2]) -> String {
    format!(
        "Of {} held-out examples whose passages answer, the sentence that it prefers answers in {:.1} %; token by token without training in {:.1} %. The area under the curve of telling them from {} that nothing answers is {:.3} (before {:.3}), the loss {:.4} (before {:.4}).",
        after.answered,
        100.0 * after.share,
        100.0 * before.share,
        after.of - after.answered,
        after.area,
        before.area,
        after.loss,
        before.loss
    )
}

/// What a reader is, for people.
fn card(reader: &ReaderSettings, run: &ReaderRun<'_>, summary: &ReaderSummary, sha256: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let training = &reader.training;
    let _ = writeln!(text, "# A reader for `{}`\n\n{}\n", reader.embedder, reader.objective);
    let _ = writeln!(text, "- embedder: SHA-256 `{}`", run.embedder());
    if let Some(licence) = &reader.licence {
        let _ = writeln!(text, "- licence: {licence}");
    }
    let _ = writeln!(
        text,
        "- {} numbers: rank {}, α {}, on all linear maps of all layers",
        summary.adapter.numbers.len(),
        reader.lora.rank,
        reader.lora.alpha
    );
    let _ = writeln!(
        text,
        "- {} steps of {} examples in {:.0} s, learning rate {} at most, seed {}; SHA-256 `{sha256}`",
        summary.steps, training.batch, summary.seconds, training.learning_rate, training.seed
    );
    let _ = writeln!(text, "\n| file | SHA-256 | lines | used for |\n| --- | --- | ---: | --- |");
    for (sources, used) in [(&run.train.sources, "learning"), (&run.valid.sources, "looking")] {
        for source in sources {
            let _ = writeln!(text, "| `{}` | `{}` | {} | {used} |", source.name, source.sha256, source.lines);
        }
    }
    if let Some(looks) = summary.valid {
        let _ = writeln!(text, "\n{}", found(looks));
    }
    let _ = writeln!(text, "\nMade by shishin {}, by `shishin reader train`.", env!("CARGO_PKG_VERSION"));
    text
}

fn evaluate(settings: &Settings, args: &EvaluateArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let asked: Vec<Vec<Asked>> =
        args.files.iter().map(|file| reading::read(file)).collect::<Result<_, _>>()?;
    let cancel = Cancel::default();
    signals::cancel_on_signal(cancel.clone())?;
    let name = settings.index.embedder.clone().context("index.embedder names no embedder")?;
    let without = setup::meaning(settings, &cancel)?.context("index.embedder names no embedder")?;
    let folder = match &args.reader {
        Some(folder) => Some(folder.clone()),
        None => setup::reader(settings, &name)?,
    };
    let with = folder.map(|folder| with_reader(&name, &without, &folder)).transpose()?;
    let mut tally = Tally::stderr("questions", asked.iter().map(Vec::len).sum(), 0);
    let mut done = 0;
    let mut readings = Vec::new();
    for of_file in &asked {
        let mut count = || {
            done += 1;
            tally.at(done);
        };
        readings.push(Reading::of(of_file, &without, with.as_ref(), &|| cancel.is_cancelled(), &mut count)?);
    }
    tally.end();
    if args.json {
        let all: Vec<_> = args
            .files
            .iter()
            .zip(&readings)
            .map(|(file, r)| serde_json::json!({"file": file, "reading": r}))
            .collect();
        serde_json::to_writer_pretty(
            &mut *out,
            &serde_json::json!({
                "embedder": without.embedder.fingerprint(),
                "reader": with.as_ref().and_then(|with| with.embedder.reader()),
                "files": all,
            }),
        )?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:>6} {:>8} {:>8} {:>8}  found by: the cosine, with what sentences say, with the reader",
        "of", "cosine", "signs", "reader"
    )?;
    let all = Reading::sum(&readings);
    for (name, reading) in args
        .files
        .iter()
        .map(|file| file.display().to_string())
        .chain(["all".to_owned()])
        .zip(readings.iter().chain([&all]))
    {
        let share = |found: usize| format!("{:.1}%", 100.0 * found as f64 / reading.of.max(1) as f64);
        let reader = reading.reader.map_or("–".to_owned(), share);
        writeln!(
            out,
            "{:>6} {:>8} {:>8} {:>8}  {name}",
            reading.of,
            share(reading.cosine),
            share(reading.signs),
            reader
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The same embedder with a reader.
fn with_reader(name: &str, without: &Meaning, folder: &Path) -> anyhow::Result<Meaning> {
    let embedder = embed::load_with(name, &without.path, Some(folder), Arc::clone(&without.cpu))?;
    Ok(Meaning { embedder: Arc::from(embedder), ..without.clone() })
}
