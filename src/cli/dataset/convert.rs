//! `shishin dataset split`, `fix`, `import` and `export`. What they write appears whole or not at all.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::super::printable;
use crate::dataset::export::{self, Platform};
use crate::dataset::split::{self, Shares, Split};
use crate::dataset::{Finding, Severity, fix, forms, read, same};
use crate::files;
use crate::tune::checkpoint::write_whole;

fn text_of(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write_lines(path: &Path, lines: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    Ok(write_whole(path, text.as_bytes())?)
}

fn failed(findings: &[Finding]) -> ExitCode {
    let errors = findings.iter().any(|finding| finding.severity == Severity::Error);
    if errors { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

pub(super) fn split_files(
    from: &[PathBuf],
    folder: &Path,
    shares: Shares,
    seed: u64,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let (mut lines, mut examples) = (Vec::new(), Vec::new());
    for path in from {
        for (number, line) in files::lines(&text_of(path)?) {
            let (example, faults) = read::parse(line);
            let Some(example) = example else {
                anyhow::bail!(
                    "{}:{number}: {}; `shishin dataset fix` mends what can be mended",
                    path.display(),
                    read::reason(&faults)
                );
            };
            examples.push(example);
            lines.push(line.to_owned());
        }
    }
    anyhow::ensure!(!lines.is_empty(), "there is no example in {} files", from.len());
    let texts = same::texts(&examples.iter().collect::<Vec<_>>());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let parts = split::split(&texts, shares, seed);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for part in Split::ALL {
        let path = folder.join(format!("{}.jsonl", part.as_str()));
        let own: Vec<String> =
            lines.iter().zip(&parts).filter(|(_, of)| **of == part).map(|(line, _)| line.clone()).collect();
        writeln!(out, "{}: {} examples", path.display(), own.len())?;
        write_lines(&path, own)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn fix_file(
    file: &Path,
    to: &Path,
    rejected: Option<&Path>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let aside = rejected.map_or_else(|| PathBuf::from(format!("{}.rejected", to.display())), Path::to_owned);
    anyhow::ensure!(aside != to, "--rejected and --out are both {}; name two files", to.display());
    anyhow::ensure!(
        aside != file,
        "--rejected would write over {}, which is read; name another file",
        file.display()
    );
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let fixed = fix::fix(&bytes);
    for (line, what) in &fixed.changes {
        writeln!(out, "{}:{line}: {}", file.display(), printable(what))?;
    }
    // As they stood, byte for byte, and first: where the file itself is written over they stand nowhere else.
    let stood: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let lines: BTreeSet<usize> = fixed.rejected.iter().map(|(line, ..)| *line).collect();
    let raw: Vec<u8> = lines.iter().flat_map(|line| [stood[line - 1], b"\n".as_slice()].concat()).collect();
    if !raw.is_empty() {
        write_whole(&aside, &raw)?;
    }
    write_lines(to, fixed.lines.iter().cloned())?;
    writeln!(out, "{}: {} examples", to.display(), fixed.lines.len())?;
    if fixed.rejected.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for (line, _, why) in &fixed.rejected {
        writeln!(out, "{}:{line}: put aside: {}", file.display(), printable(why))?;
    }
    writeln!(out, "{}: {} lines that cannot be mended here", aside.display(), lines.len())?;
    Ok(ExitCode::FAILURE)
}

pub(super) fn import_files(files: &[PathBuf], to: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (mut lines, mut findings) = (Vec::new(), Vec::new());
    for path in files {
        let imported = forms::import(path).with_context(|| format!("cannot read {}", path.display()))?;
        lines.extend(imported.examples.iter().map(ToString::to_string));
        findings.extend(imported.findings);
    }
    super::list(&findings, out)?;
    anyhow::ensure!(!lines.is_empty(), "there is no example in {} files; nothing was written", files.len());
    writeln!(out, "{}: {} examples", to.display(), lines.len())?;
    write_lines(to, lines)?;
    Ok(failed(&findings))
}

pub(super) fn export_file(
    file: &Path,
    platform: Platform,
    to: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let (lines, findings) = export::export(&file.display().to_string(), &text_of(file)?, platform);
    super::list(&findings, out)?;
    let code = failed(&findings);
    if code == ExitCode::SUCCESS {
        writeln!(out, "{}: {} examples", to.display(), lines.len())?;
        write_lines(to, lines)?;
    } else {
        writeln!(out, "nothing was written; mend what is named above")?;
    }
    Ok(code)
}
