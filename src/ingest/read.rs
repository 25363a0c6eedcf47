//! Finds and reads the guideline files of a folder, within bounds.
//!
//! First step of the operator path. Links that lead out of the folder, links to folders (they can loop), hidden
//! files and whatever is no guideline are left alone; what is skipped though it looked like a guideline becomes
//! a finding. Files are listed in the order of their names, so that a build is reproducible.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::approvals::APPROVED;
use super::extract::Format;
use super::{Finding, IngestError, sidecar};

/// No folder holds more guideline files than this.
pub const MAX_FILES: usize = 100_000;
/// Folders nest no deeper than this.
const MAX_DEPTH: usize = 32;

/// A guideline file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path within the guideline folder, with `/` between the parts.
    pub name: String,
    /// What it is.
    pub format: Format,
    /// Whether its metadata stands beside it, in a file of their own.
    pub has_sidecar: bool,
}

impl SourceFile {
    /// The name of its sidecar, whether there is one or not.
    #[must_use]
    pub fn sidecar_name(&self) -> String {
        format!("{}{}", self.name, sidecar::SUFFIX)
    }

    fn sidecar_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(sidecar::SUFFIX);
        path.into()
    }
}

fn read_error(path: &Path) -> impl FnOnce(std::io::Error) -> IngestError {
    let path = path.to_owned();
    move |source| IngestError::Read { path, source }
}

/// Lists the guideline files under `root`, sorted by name, with findings about those it passed over.
pub fn list(root: &Path) -> Result<(Vec<SourceFile>, Vec<Finding>), IngestError> {
    let real_root = fs::canonicalize(root).map_err(read_error(root))?;
    let mut listing =
        Listing { root, real_root, files: Vec::new(), sidecars: Vec::new(), findings: Vec::new() };
    listing.folder(root, 0)?;
    listing.match_sidecars();
    listing.files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((listing.files, listing.findings))
}

struct Listing<'a> {
    root: &'a Path,
    real_root: PathBuf,
    files: Vec<SourceFile>,
    sidecars: Vec<String>,
    findings: Vec<Finding>,
}

impl Listing<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<(), IngestError> {
        if depth > MAX_DEPTH {
            self.skip(folder, format!("folders nest deeper than {MAX_DEPTH}; move the files up"));
            return Ok(());
        }
        for entry in fs::read_dir(folder).map_err(read_error(folder))? {
            let path = entry.map_err(read_error(folder))?.path();
            let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
            if hidden {
                continue;
            }
            let kind = fs::symlink_metadata(&path).map_err(read_error(&path))?.file_type();
            if kind.is_dir() {
                self.folder(&path, depth + 1)?;
            } else if kind.is_symlink() && path.is_dir() {
                self.skip(&path, "a link to a folder is not followed; copy the folder here".to_owned());
            } else if path.as_os_str().as_encoded_bytes().ends_with(sidecar::SUFFIX.as_bytes()) {
                if kind.is_file() || self.link_is_safe(&path) {
                    self.sidecars.push(self.name(&path));
                }
            } else if let Some(format) = Format::of(&path) {
                // A device or a pipe would never end.
                if kind.is_file() || self.link_is_safe(&path) {
                    self.file(path, format)?;
                }
            } else if let Some(mend) = other_format(&path) {
                let name = self.name(&path);
                self.findings.push(Finding::warning(&name, 1, format!("is not read; {mend}")));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, format: Format) -> Result<(), IngestError> {
        if self.files.len() == MAX_FILES {
            let path = self.root.to_owned();
            return Err(IngestError::TooMuch { path, limit: MAX_FILES, what: "guideline files" });
        }
        let name = self.name(&path);
        self.files.push(SourceFile { path, name, format, has_sidecar: false });
        Ok(())
    }

    fn match_sidecars(&mut self) {
        let mut sidecars: std::collections::HashSet<String> = self.sidecars.drain(..).collect();
        for file in &mut self.files {
            file.has_sidecar = sidecars.remove(&file.sidecar_name());
        }
        for left in sidecars {
            let file = left.strip_suffix(sidecar::SUFFIX).unwrap_or(&left);
            let message = format!("there is no guideline `{file}` beside it; rename one or the other");
            self.findings.push(Finding::error(&left, 1, message));
        }
    }

    /// A link counts only when it ends at a regular file inside the folder.
    fn link_is_safe(&mut self, path: &Path) -> bool {
        let safe = fs::canonicalize(path).is_ok_and(|to| to.starts_with(&self.real_root) && to.is_file());
        if !safe {
            self.skip(path, "not a regular file inside the guideline folder; copy the file here".to_owned());
        }
        safe
    }

    fn skip(&mut self, path: &Path, why: String) {
        let name = self.name(path);
        self.findings.push(Finding::error(&name, 1, why));
    }

    fn name(&self, path: &Path) -> String {
        let parts = path.strip_prefix(self.root).unwrap_or(path).components();
        let parts: Vec<_> = parts.map(|p| p.as_os_str().to_string_lossy()).collect();
        parts.join("/")
    }
}

/// What to do with a file that may well be a guideline, in a format that is not read.
fn other_format(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "doc" | "rtf" | "odt" | "pages" | "wpd" => Some("save it as DOCX or PDF"),
        "ppt" | "pptx" | "xls" | "xlsx" | "epub" | "ps" => Some("save it as PDF"),
        "json" => Some("write one document a line, in a .jsonl file"),
        "toml" if path.file_name().is_some_and(|name| name != APPROVED) => {
            Some("metadata of NAME belongs in NAME.meta.toml")
        }
        _ => None,
    }
}

/// Reads one file, if it is no larger than its format allows; what makes it unusable is a finding, not an error, so that one bad file
/// stops no build.
pub fn read(file: &SourceFile) -> Result<Vec<u8>, Finding> {
    bounded(&file.path, file.format.max_bytes()).map_err(|why| Finding::error(&file.name, 1, why))
}

/// Reads the sidecar of a file that has one.
pub fn read_sidecar(file: &SourceFile) -> Result<String, Finding> {
    let fault = |why: String| Finding::error(&file.sidecar_name(), 1, why);
    let bytes = bounded(&file.sidecar_path(), sidecar::MAX_BYTES).map_err(fault)?;
    String::from_utf8(bytes).map_err(|_| fault("not UTF-8; save the file as UTF-8".to_owned()))
}

/// Opens a file that is read piece by piece.
pub fn open(file: &SourceFile) -> Result<io::BufReader<io::Take<fs::File>>, Finding> {
    let limit = file.format.max_bytes();
    let opened = fs::File::open(&file.path).and_then(|f| Ok((f.metadata()?.len(), f)));
    match opened {
        Ok((length, _)) if length > limit => Err(Finding::error(&file.name, 1, too_large(limit))),
        Ok((_, opened)) => Ok(io::BufReader::new(opened.take(limit))),
        Err(error) => Err(Finding::error(&file.name, 1, format!("cannot be read: {error}"))),
    }
}

fn bounded(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(limit + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(_) if bytes.len() as u64 > limit => Err(too_large(limit)),
        Ok(_) => Ok(bytes),
    }
}

fn too_large(limit: u64) -> String {
    match limit >> 20 {
        0 => format!("larger than {} KiB", limit >> 10),
        mib => format!("larger than {mib} MiB; split it into several files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_guidelines_in_order_with_what_stands_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ja")).unwrap();
        for name in [
            "b.md",
            "a.MD",
            "ja/c.pdf",
            "ja/c.pdf.meta.toml",
            "note.txt",
            ".hidden.md",
            "x.png",
            "old.doc",
            "d.pdf.meta.toml",
            APPROVED,
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let (files, findings) = list(dir.path()).unwrap();
        let names: Vec<_> = files.iter().map(|f| (f.name.as_str(), f.has_sidecar)).collect();
        assert_eq!(names, [("a.MD", false), ("b.md", false), ("ja/c.pdf", true), ("note.txt", false)]);
        let mut found: Vec<_> = findings.iter().map(|f| f.file.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, ["d.pdf.meta.toml", "old.doc"]);
        assert_eq!(read(&files[2]).unwrap(), b"ja/c.pdf");
        assert_eq!(read_sidecar(&files[2]).unwrap(), "ja/c.pdf.meta.toml");
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = list(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }

    #[test]
    fn what_is_too_large_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.md");
        let format = Format::Markdown;
        fs::File::create(&path).unwrap().set_len(format.max_bytes() + 1).unwrap();
        let file = SourceFile { path, name: "x.md".to_owned(), format, has_sidecar: false };
        assert!(read(&file).unwrap_err().message.contains("16 MiB"));
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_folder_and_loops_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.md"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("real.md"), "real").unwrap();
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, dir.path().join(name)).unwrap();
        link(&outside.path().join("secret.md"), "out.md");
        link(&dir.path().join("real.md"), "in.md");
        link(dir.path(), "loop");
        link(&dir.path().join("gone"), "dangling.md");
        let (files, findings) = list(dir.path()).unwrap();
        assert_eq!(files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["in.md", "real.md"]);
        let mut skipped: Vec<_> = findings.iter().map(|f| f.file.as_str()).collect();
        skipped.sort_unstable();
        assert_eq!(skipped, ["dangling.md", "loop", "out.md"]);
    }
}
