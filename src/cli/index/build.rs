//! `shishin index build` and `watch`.

use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::super::signals::Signals;
use super::{contents, plural};
use crate::config::Settings;
use crate::ingest::approvals::APPROVED;
use crate::ingest::{BuildReport, Finding, Indexer, IngestError, Progress, read};

pub(super) fn build(
    indexer: &Indexer,
    strict: bool,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let bar = progress_bar()?;
    let built = indexer.build(strict, &mut |step| show(&bar, step));
    bar.finish_and_clear();
    match built {
        Ok(report) if json => {
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(report) => {
            print_findings(&report.findings, report.more_findings);
            print_report(&report, &indexer.options.index, out)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            print_findings(error.findings(), 0);
            Err(error).context("the index was not built; what is being served is unchanged")
        }
    }
}

/// Builds now if the folder is not what the live generation was built from, and whenever it changes. A build that fails is told, and the
/// folder watched further.
pub(super) fn watch(settings: &Settings, every: Duration, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // From here on a signal ends the waiting, and is never lost between two waits.
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    let indexer = super::indexer(settings)?;
    writeln!(
        out,
        "Watching {}; Ctrl-C ends it. What is being served changes when a build is done.",
        indexer.options.source.display()
    )?;
    let mut built: Option<Vec<Seen>> = None;
    let mut before: Option<Vec<Seen>> = None;
    loop {
        let now = look(&indexer.options.source);
        match &now {
            Ok(now) if built.as_ref() != Some(now) && before.as_ref() == Some(now) => {
                // What changes during the build is seen in the next round.
                built = Some(now.clone());
                match build(&indexer, false, false, out) {
                    Ok(_) => {}
                    Err(error) => eprintln!("error: {error:#}"),
                }
                out.flush()?;
            }
            Ok(_) => {}
            Err(error) if before.is_some() || built.is_none() => eprintln!("error: {error}"),
            Err(_) => {}
        }
        before = now.ok();
        let stop = runtime.block_on(async {
            tokio::select! {
                () = signals.next() => true,
                () = tokio::time::sleep(every) => false,
            }
        });
        if stop {
            writeln!(out, "Stopped watching.")?;
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What tells whether a file has changed. Looking now and then works on every file system, those of networks and containers included,
/// where notifications do not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    name: String,
    modified: Option<SystemTime>,
    bytes: u64,
}

fn look(folder: &Path) -> Result<Vec<Seen>, IngestError> {
    let (files, _) = read::list(folder)?;
    let mut paths: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
    paths.extend(files.iter().filter(|file| file.has_sidecar).map(|file| folder.join(file.sidecar_name())));
    paths.push(folder.join(APPROVED));
    let seen = paths.into_iter().map(|path| {
        let found = std::fs::metadata(&path).ok();
        Seen {
            modified: found.as_ref().and_then(|found| found.modified().ok()),
            bytes: found.map_or(0, |found| found.len()),
            name: path.to_string_lossy().into_owned(),
        }
    });
    Ok(seen.collect())
}

fn progress_bar() -> anyhow::Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{msg:>9} {bar:32} {pos}/{len} ({eta} left)")?;
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

fn print_findings(findings: &[Finding], more: usize) {
    for finding in findings {
        eprintln!("{}", super::super::printable(&finding.to_string()));
    }
    if more > 0 {
        eprintln!("and {} more", plural(more, "finding"));
    }
}

fn print_report(report: &BuildReport, index_dir: &Path, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "Generation {} is live in {}.", report.generation, index_dir.display())?;
    writeln!(out, "{}", contents(&report.counts))?;
    let files: Vec<_> = report.files.iter().map(|(format, n)| format!("{format} {n}")).collect();
    writeln!(out, "Read: {}. {} in effect today.", files.join(", "), plural(report.in_effect, "edition"))?;
    if let Some(embedded) = report.embedded {
        writeln!(out, "{} made, {} taken along.", plural(embedded.made, "vector"), embedded.reused)?;
    }
    if report.left_out > 0 {
        writeln!(out, "{} left out because of errors; see above.", plural(report.left_out, "file"))?;
    }
    if report.held_back > 0 {
        writeln!(
            out,
            "{} held back: look at them with `shishin index held-back`, let them through with `shishin index approve`.",
            plural(report.held_back, "passage")
        )?;
    }
    Ok(())
}
