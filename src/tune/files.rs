//! Files to learn from that came over HTTP: a folder of JSON Lines, each known by its name. What an operator has put there counts as well.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use super::checkpoint::sync_folder;
use crate::dataset::lint::{Against, Purpose, lint};
use crate::dataset::{Finding, Severity};

/// Bytes of a name at the most; file systems take 255.
const LONGEST_NAME: usize = 200;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Its name, by which jobs ask for it.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it came, in seconds since 1970.
    pub created_at: u64,
}

/// Why there is no such file, or why one is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not a name.
    #[error(
        "`{0}` is no name of a file: letters, digits, `.`, `-` and `_`, no `.` first, {LONGEST_NAME} bytes at the most"
    )]
    Name(String),
    /// There is none.
    #[error(
        "there is no file `{0}`; POST it to /v1/files, or put it into the folder `files` of tuning.directory"
    )]
    Unknown(String),
    /// It cannot be learnt from.
    #[error("{0}")]
    Faults(String),
    /// The name is taken.
    #[error("there is another file `{0}`; delete that one first, or choose another name")]
    Taken(String),
    /// More bytes than are taken.
    #[error("the file is larger than {0} bytes")]
    TooLarge(u64),
    /// The disk.
    #[error("{0}")]
    Disk(String),
}

/// The folder.
#[derive(Debug, Clone)]
pub struct DataFiles {
    folder: PathBuf,
    /// Held while a file is looked over, which takes several times its size in memory: one after the other.
    looking: Arc<Mutex<()>>,
}

impl DataFiles {
    /// Opens the folder, and throws away what was on its way when a server ended.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        std::fs::create_dir_all(folder).map_err(|e| disk("create", folder, &e))?;
        for entry in std::fs::read_dir(folder).map_err(|e| disk("read", folder, &e))?.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(UPLOAD) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Self { folder: folder.to_owned(), looking: Arc::default() })
    }

    /// All files, the newest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<DataFile>, FileError> {
        let entries = std::fs::read_dir(&self.folder).map_err(|e| disk("read", &self.folder, &e))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        // One that is deleted meanwhile is left out.
        let mut files: Vec<DataFile> = names.filter_map(|name| self.get(&name).ok()).collect();
        files.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.name.cmp(&b.name)));
        Ok(files)
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<DataFile, FileError> {
        let path = self.path(name)?;
        let known = path.metadata().map_err(|e| disk("read", &path, &e))?;
        let created = known.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let created_at = created.map_or(0, |at| at.as_secs());
        Ok(DataFile { name: name.to_owned(), bytes: known.len(), created_at })
    }

    /// Where one of them lies.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn path(&self, name: &str) -> Result<PathBuf, FileError> {
        check_name(name)?;
        let path = self.folder.join(name);
        if path.is_file() { Ok(path) } else { Err(FileError::Unknown(name.to_owned())) }
    }

    /// Where one of them lies that can be learnt from.
    ///
    /// # Errors
    /// When there is none of that name, or it has faults or too few examples.
    pub fn learnable(&self, name: &str) -> Result<PathBuf, FileError> {
        let path = self.path(name)?;
        self.look_over(name, &path, Purpose::Learning)?;
        Ok(path)
    }

    /// Where one of them lies that can say when to stop, for which few examples will do.
    ///
    /// # Errors
    /// When there is none of that name, or it has faults.
    pub fn sound(&self, name: &str) -> Result<PathBuf, FileError> {
        let path = self.path(name)?;
        self.look_over(name, &path, Purpose::HeldOut)?;
        Ok(path)
    }

    /// Refuses what is wrong with the file that lies there and is called so.
    fn look_over(&self, name: &str, path: &Path, purpose: Purpose) -> Result<(), FileError> {
        let _one = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        // Where it lies for now is nobody's business.
        let called = |message: &str| message.replace(&path.display().to_string(), name);
        let against = Against { purpose, ..Against::default() };
        let report = lint(&[path], &against).map_err(|e| FileError::Faults(called(&e.to_string())))?;
        // Tuning refuses examples with tools; better before it has begun.
        let stops = |finding: &&Finding| {
            finding.severity == Severity::Error
                || (purpose == Purpose::Learning && finding.code == "tools-untrained")
        };
        match report.findings.iter().find(stops) {
            None => Ok(()),
            Some(first) => Err(FileError::Faults(format!(
                "`{name}` has {} faults, the first in line {}: {}; `shishin dataset lint` lists all",
                report.findings.iter().filter(stops).count(),
                first.line,
                called(&first.message)
            ))),
        }
    }

    /// Takes a file away.
    ///
    /// # Errors
    /// When there is none of that name, or the disk refuses.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.path(name)?;
        std::fs::remove_file(&path).map_err(|e| disk("delete", &path, &e))
    }

    /// Begins a file of at most so many bytes.
    ///
    /// # Errors
    /// When the name is none, or the disk refuses.
    pub fn begin(&self, name: &str, limit: u64) -> Result<Upload, FileError> {
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        check_name(name)?;
        let n = BEGUN.fetch_add(1, Ordering::Relaxed);
        let aside = self.folder.join(format!("{UPLOAD}{}-{n}", std::process::id()));
        let file = File::create_new(&aside).map_err(|e| disk("write", &aside, &e))?;
        Ok(Upload { files: self.clone(), name: name.to_owned(), file, aside, left: limit, limit })
    }
}

/// What the names of files begin with that are not whole.
const UPLOAD: &str = ".upload-";

/// A file on its way; dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    files: DataFiles,
    name: String,
    file: File,
    aside: PathBuf,
    left: u64,
    limit: u64,
}

impl Upload {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// When there are too many, or the disk refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(FileError::TooLarge(self.limit))?;
        self.file.write_all(bytes).map_err(|e| disk("write", &self.aside, &e))
    }

    /// Looks the file over and gives it its name. One that is there already with the same bytes stays. Whether its examples are enough is
    /// asked when a job learns from it: what it is for is not known yet.
    ///
    /// # Errors
    /// When it cannot be learnt from, another one has its name, or the disk refuses.
    pub fn finish(self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|e| disk("write", &self.aside, &e))?;
        self.files.look_over(&self.name, &self.aside, Purpose::HeldOut)?;
        let folder = &self.files.folder;
        let path = folder.join(&self.name);
        // Unlike a renaming, a second name does not replace what is there; where there are none, the name is reserved first.
        let named = match std::fs::hard_link(&self.aside, &path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                File::create_new(&path).and_then(|_| std::fs::rename(&self.aside, &path))
            }
            other => other,
        };
        match named {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let same = same_bytes(&self.aside, &path).map_err(|e| disk("read", &path, &e))?;
                return if same { Ok(()) } else { Err(FileError::Taken(self.name.clone())) };
            }
            Err(e) => return Err(disk("write", &path, &e)),
        }
        sync_folder(folder).map_err(|e| disk("write in", folder, &e))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.aside);
    }
}

fn check_name(name: &str) -> Result<(), FileError> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    match name.is_empty() || name.len() > LONGEST_NAME || name.starts_with('.') || !name.chars().all(plain) {
        true => Err(FileError::Name(name.chars().take(50).collect())),
        false => Ok(()),
    }
}

fn same_bytes(one: &Path, other: &Path) -> std::io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut files = [
        std::io::BufReader::new(File::open(one)?).bytes(),
        std::io::BufReader::new(File::open(other)?).bytes(),
    ];
    loop {
        match files.each_mut().map(|bytes| bytes.next().transpose()) {
            [Ok(None), Ok(None)] => return Ok(true),
            [Ok(one), Ok(other)] if one == other => {}
            [Ok(_), Ok(_)] => return Ok(false),
            [Err(error), _] | [_, Err(error)] => return Err(error),
        }
    }
}

fn disk(what: &str, path: &Path, error: &std::io::Error) -> FileError {
    FileError::Disk(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(answer: &str) -> String {
        let row = |n: usize| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is {n} and {n}?\"}},{{\"role\":\"assistant\",\"content\":\"{answer} {}.\"}}]}}\n",
                2 * n
            )
        };
        (0..12).map(row).collect()
    }

    fn upload(files: &DataFiles, name: &str, text: &str) -> Result<(), FileError> {
        let mut upload = files.begin(name, 10_000)?;
        for piece in text.as_bytes().chunks(100) {
            upload.write(piece)?;
        }
        upload.finish()
    }

    fn names(files: &DataFiles) -> Vec<String> {
        files.list().unwrap().into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn files_come_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let files = DataFiles::open(folder.path()).unwrap();
        upload(&files, "ward.jsonl", &rows("It is")).unwrap();
        upload(&files, "ward.jsonl", &rows("It is")).unwrap();
        assert!(matches!(upload(&files, "ward.jsonl", &rows("It was")), Err(FileError::Taken(_))));
        let twice = rows("It is") + &rows("It is");
        for faulty in ["{]", "", &twice] {
            let error = upload(&files, "faulty.jsonl", faulty).unwrap_err();
            assert!(matches!(&error, FileError::Faults(why) if !why.contains("upload")), "{error}");
        }
        assert!(matches!(
            upload(&files, "large.jsonl", &"\n".repeat(10_001)),
            Err(FileError::TooLarge(10_000))
        ));
        for name in ["", ".hidden", "a/b", "..", "a b", "a\\b", &"a".repeat(201), &"指針".repeat(34)] {
            assert!(matches!(files.begin(name, 1), Err(FileError::Name(_))), "{name}");
            assert!(matches!(files.path(name), Err(FileError::Name(_))), "{name}");
        }
        let mut begun = files.begin("begun.jsonl", 10).unwrap();
        begun.write(b"{").unwrap();
        drop(begun);
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["ward.jsonl"], "nothing else is left");
        let few: String = rows("It is").lines().take(3).map(|line| format!("{line}\n")).collect();
        upload(&files, "valid.jsonl", &few).unwrap();
        files.sound("valid.jsonl").unwrap();
        let error = files.learnable("valid.jsonl").unwrap_err();
        assert!(matches!(&error, FileError::Faults(why) if why.contains("at least 10")), "{error}");
        files.remove("valid.jsonl").unwrap();
        let known = files.get("ward.jsonl").unwrap();
        assert_eq!(known.bytes, rows("It is").len() as u64);
        assert_eq!(std::fs::read_to_string(files.learnable("ward.jsonl").unwrap()).unwrap(), rows("It is"));

        // What was on its way when a server ended is thrown away; what operators put there counts, and hidden files are theirs.
        for name in [".upload-9-9", ".note.part", "by-hand.jsonl"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        let files = DataFiles::open(folder.path()).unwrap();
        assert!(!folder.path().join(".upload-9-9").exists() && folder.path().join(".note.part").exists());
        let mut all = names(&files);
        all.sort();
        assert_eq!(all, ["by-hand.jsonl", "ward.jsonl"]);
        assert!(matches!(files.learnable("by-hand.jsonl"), Err(FileError::Faults(_))));
        files.remove("by-hand.jsonl").unwrap();
        assert!(matches!(files.remove("by-hand.jsonl"), Err(FileError::Unknown(_))));
        assert_eq!(names(&files), ["ward.jsonl"]);
    }
}
