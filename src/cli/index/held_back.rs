//! `shishin index held-back` and `approve`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::super::printable;
use super::{nothing_built, plural, today};
use crate::config::Settings;
use crate::ingest::approvals::{APPROVED, Approvals};
use crate::store;
use crate::store::quarantine::{self, HeldBack};

fn of_live(index_dir: &Path) -> anyhow::Result<Vec<HeldBack>> {
    let id = store::current_id(index_dir)?.with_context(|| nothing_built(index_dir))?;
    Ok(quarantine::read(&store::generation_dir(index_dir, &id))?)
}

pub(super) fn show(index_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let held_back = of_live(index_dir)?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&held_back)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for passage in &held_back {
        writeln!(
            out,
            "{}  {}:{}  {}",
            passage.hash,
            passage.file,
            passage.line,
            printable(&passage.section)
        )?;
        writeln!(out, "    {}", printable(&passage.why))?;
        for line in visible(&passage.text).lines() {
            writeln!(out, "    | {line}")?;
        }
    }
    writeln!(out, "{} held back.", plural(held_back.len(), "passage"))?;
    Ok(ExitCode::SUCCESS)
}

/// Text with its invisible characters named: they may be what is wrong with it.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}'
            | '\u{2060}'..='\u{2069}'
            | '\u{FEFF}'
            | '\u{E0000}'..='\u{E007F}' => {
                out.push_str(&format!("<U+{:04X}>", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

pub(super) fn approve(
    settings: &Settings,
    marks: &[String],
    all: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let held_back = of_live(&settings.index.directory)?;
    let chosen: Vec<&HeldBack> = match all {
        true => held_back.iter().collect(),
        false => marks
            .iter()
            .map(|mark| {
                held_back.iter().find(|passage| passage.hash == *mark).with_context(|| {
                    format!(
                        "no passage with the mark `{mark}` is held back; `shishin index held-back` shows all"
                    )
                })
            })
            .collect::<Result<_, _>>()?,
    };
    let folder = &settings.index.guidelines;
    let mut approvals = Approvals::try_read(folder)
        .map_err(|why| anyhow::anyhow!("{}: {why}; mend it first", folder.join(APPROVED).display()))?;
    for passage in &chosen {
        approvals.add(&passage.hash, &format!("{}:{}", passage.file, passage.line), today());
    }
    approvals.write(folder).with_context(|| format!("cannot write {}", folder.join(APPROVED).display()))?;
    writeln!(
        out,
        "{} approved in {}; run `shishin index build` to serve them.",
        plural(chosen.len(), "passage"),
        folder.join(APPROVED).display()
    )?;
    Ok(ExitCode::SUCCESS)
}
