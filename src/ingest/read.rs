//! Finds and reads the guideline files of a folder, within bounds.
//!
//! First step of the operator path. Links that lead out of the folder, links to folders (they can loop), hidden
//! files and whatever is not Markdown are left alone; what is skipped though it looked like a guideline becomes
//! a finding. Files are listed in the order of their names, so that a build is reproducible.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Finding, IngestError};

/// No guideline file is larger than this.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
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
}

fn read_error(path: &Path) -> impl FnOnce(std::io::Error) -> IngestError {
    let path = path.to_owned();
    move |source| IngestError::Read { path, source }
}

/// Lists the Markdown files under `root`, sorted by name, with findings about those it passed over.
pub fn list(root: &Path) -> Result<(Vec<SourceFile>, Vec<Finding>), IngestError> {
    let real_root = fs::canonicalize(root).map_err(read_error(root))?;
    let mut listing = Listing { root, real_root, files: Vec::new(), findings: Vec::new() };
    listing.folder(root, 0)?;
    listing.files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((listing.files, listing.findings))
}

struct Listing<'a> {
    root: &'a Path,
    real_root: PathBuf,
    files: Vec<SourceFile>,
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
            } else if is_markdown(&path) && (kind.is_file() || self.link_is_safe(&path)) {
                if self.files.len() == MAX_FILES {
                    let path = self.root.to_owned();
                    return Err(IngestError::TooMuch { path, limit: MAX_FILES, what: "guideline files" });
                }
                let name = self.name(&path);
                self.files.push(SourceFile { path, name });
            }
        }
        Ok(())
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

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("md") || e.eq_ignore_ascii_case("markdown"))
}

/// Reads one file; what makes it unusable is a finding, not an error, so that one bad file stops no build.
pub fn read(file: &SourceFile) -> Result<String, Finding> {
    let mut bytes = Vec::new();
    let limited = fs::File::open(&file.path).and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = limited {
        return Err(Finding::error(&file.name, 1, format!("cannot be read: {error}")));
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let mib = MAX_FILE_BYTES >> 20;
        return Err(Finding::error(
            &file.name,
            1,
            format!("larger than {mib} MiB; split it into several files"),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&b| b == b'\n').count();
        Finding::error(&file.name, line, "not UTF-8; save the file as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_markdown_in_order_and_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ja")).unwrap();
        for name in ["b.md", "a.MD", "ja/c.markdown", "note.txt", ".hidden.md"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let (files, findings) = list(dir.path()).unwrap();
        assert_eq!(
            files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
            ["a.MD", "b.md", "ja/c.markdown"]
        );
        assert!(findings.is_empty());
        assert_eq!(read(&files[2]).unwrap(), "ja/c.markdown");
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = list(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }

    #[test]
    fn bad_utf8_and_size_are_findings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.md");
        fs::write(&path, b"one\ntwo \xff").unwrap();
        let file = SourceFile { path: path.clone(), name: "x.md".to_owned() };
        assert_eq!(read(&file).unwrap_err().line, 2);
        fs::File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
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
