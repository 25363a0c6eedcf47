//! `shishin dataset ground`, and what else needs the passages of guidelines.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tempfile::TempDir;

use super::super::{setup, signals::cancel_on_signal};
use crate::analysis::figures::{Figure, figures};
use crate::config::{IndexSettings, Settings};
use crate::dataset::ground::{self, Grounded, Grounder, Grounding};
use crate::ingest::Indexer;
use crate::model::fetch::Cancel;
use crate::retrieve::{GuidelineIndex, Snapshot};

pub(super) fn run(
    settings: &Settings,
    items: &[PathBuf],
    guidelines: &[PathBuf],
    folder: &Path,
    grounding: Grounding,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let items = ground::read(items)?;
    let wording = setup::wording(settings)?;
    let (_work, snapshot) = temporary_index(settings, guidelines, grounding.ranked)?;
    let Grounded { rows, left_out } =
        Grounder { snapshot: &snapshot, wording: &wording, grounding }.rows(&items)?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (path, count) in ground::write(folder, &rows)? {
        writeln!(out, "{}: {count} examples", path.display())?;
    }
    for place in left_out {
        writeln!(
            out,
            "{place}: left out, since it would join two of them: it quotes guidelines of both, or says nearly what another part has"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All figures of guidelines.
pub(super) fn known_figures(settings: &Settings, guidelines: &[PathBuf]) -> anyhow::Result<Vec<Figure>> {
    let (_work, snapshot) = temporary_index(settings, guidelines, false)?;
    let mut known: Vec<Figure> = Vec::new();
    for row in 0..snapshot.manifest().counts.chunks {
        known.extend(figures(&snapshot.record(row)?.text));
    }
    known.sort_by(|a, b| a.value.total_cmp(&b.value).then_with(|| a.unit.cmp(&b.unit)));
    known.dedup();
    Ok(known)
}

/// An index of its own over all folders: as the server makes and searches it, which takes its model and its embedder; or by words
/// alone, which takes neither.
fn temporary_index(
    settings: &Settings,
    guidelines: &[PathBuf],
    as_served: bool,
) -> anyhow::Result<(TempDir, Arc<Snapshot>)> {
    let work = tempfile::tempdir().context("no folder for a temporary index")?;
    let (source, directory) = (work.path().join("guidelines"), work.path().join("index"));
    copy_trees(guidelines, &source)?;
    let index = IndexSettings { guidelines: source, directory: directory.clone(), ..settings.index.clone() };
    let index = if as_served {
        let own = Settings { index, ..settings.clone() };
        let cancel = Cancel::default();
        cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
        let meaning = setup::meaning(&own, &cancel)?;
        let count_tokens = setup::token_counter(&own, &cancel)?;
        setup::indexer(&own, count_tokens, meaning.as_ref()).build(true, &mut |_| {})?;
        GuidelineIndex::open_with(&directory, setup::search_tools(&own, meaning)?)?
    } else {
        Indexer::new(setup::build_options(&index, true)).build(true, &mut |_| {})?;
        GuidelineIndex::open(&directory)?
    };
    Ok((work, index.snapshot().context("the temporary index is empty")?))
}

/// Copies folders into one, each into a folder of its own.
pub(in crate::cli) fn copy_trees(folders: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    for (n, from) in folders.iter().enumerate() {
        copy_tree(from, &to.join(n.to_string()))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// Copies the files of a folder, and of those in it.
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
