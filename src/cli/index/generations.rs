//! `shishin index status`, `list`, `rollback` and `verify`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::{contents, nothing_built};
use crate::retrieve::{GuidelineIndex, verify as verify_generation};
use crate::store::disk::Filesystem;
use crate::store::publish::{self, BuildLock};
use crate::store::{self, Manifest};

pub(super) fn status(index_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
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
        let mb = bytes(manifest) as f64 / 1e6;
        let embedder = manifest.embedder.as_ref().map_or("no vectors", |made_by| made_by.name.as_str());
        writeln!(out, "      {} {mb:.1} MB, {embedder}.", contents(&manifest.counts))?;
    }
    Ok(())
}

pub(super) fn list(index_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let generations = publish::list(index_dir)?;
    if json {
        let all: Vec<_> = generations
            .iter()
            .map(|(manifest, live)| serde_json::json!({ "live": live, "bytes": bytes(manifest), "manifest": manifest }))
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        print_status(index_dir, &generations, None, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.files.values().map(|file| file.bytes).sum()
}

pub(super) fn roll_back(index_dir: &Path, to: Option<&str>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let manifest = BuildLock::take(&Filesystem, index_dir)?.roll_back(to)?;
    writeln!(out, "Generation {} is live in {}.", manifest.id, index_dir.display())?;
    writeln!(out, "{}", contents(&manifest.counts))?;
    writeln!(out, "The next build makes a new one from the guidelines as they are then.")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn verify(index_dir: &Path, id: Option<&str>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let id = match id {
        Some(id) => id.to_owned(),
        None => store::current_id(index_dir)?.ok_or_else(|| anyhow::anyhow!(nothing_built(index_dir)))?,
    };
    let checked = verify_generation(index_dir, &id)?;
    for fault in &checked.faults {
        eprintln!("error: {fault}");
    }
    writeln!(
        out,
        "Generation {id}: {} files and {} passages checked, {} at fault.",
        checked.files,
        checked.passages,
        checked.faults.len()
    )?;
    Ok(if checked.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
