//! The manifest: what a generation holds, what it was built with, and the checksum of each of its files.
//!
//! Written last by a build, read first by a reader, which refuses a generation that it would misread (another
//! schema or analysis) or that is not as it was written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{DOCUMENTS, IN_USE, MANIFEST, StoreError, io_error, schema};
use crate::analysis;
use crate::language::Language;

/// The version of this file's own form.
pub const FORMAT: u32 = 1;

/// How much of everything a generation holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Guidelines, each counted once however many editions it has.
    pub guidelines: usize,
    /// Editions, one per file.
    pub editions: usize,
    /// Chunks.
    pub chunks: usize,
    /// Chunks of each language.
    pub chunks_by_language: BTreeMap<Language, usize>,
}

/// One file of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// Its sha256 in hexadecimal.
    pub sha256: String,
}

/// An embedder, and what its vectors depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// What it is called.
    pub name: String,
    /// Its fingerprint.
    pub sha256: String,
}

/// What a generation holds and what it was built with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the manifest's form.
    pub format: u32,
    /// The generation.
    pub id: String,
    /// The version of the fields.
    pub schema: u32,
    /// The version of the analysis.
    pub analysis: String,
    /// What made the vectors of its chunks; none where there are none.
    #[serde(default)]
    pub embedder: Option<MadeBy>,
    /// sha256 over the names and texts of the guidelines.
    pub corpus: String,
    /// When it was built, RFC 3339.
    pub created: String,
    /// Name of the guideline folder.
    pub source: String,
    /// What it holds.
    pub counts: Counts,
    /// Its files.
    pub files: BTreeMap<String, FileSum>,
}

impl Manifest {
    /// Reads the manifest of the generation in `dir`.
    pub fn read(dir: &Path, id: &str) -> Result<Self, StoreError> {
        let path = dir.join(MANIFEST);
        let damaged = |why: String| StoreError::Damaged { path: path.clone(), why };
        let bytes = fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { id: id.to_owned(), path: dir.to_owned() },
            _ => io_error("read", &path)(e),
        })?;
        // The version is looked at before the rest, which another version may have changed.
        let any: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let format = any.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if format != u64::from(FORMAT) {
            return Err(version(id, "manifest format", &format, &FORMAT));
        }
        let manifest: Self = serde_json::from_value(any).map_err(|e| damaged(e.to_string()))?;
        if manifest.id != id {
            return Err(damaged(format!("it is the manifest of `{}`", manifest.id)));
        }
        Ok(manifest)
    }

    /// Refuses a generation whose terms or fields this program would misread.
    pub fn check_versions(&self) -> Result<(), StoreError> {
        if self.schema != schema::VERSION {
            return Err(version(&self.id, "schema", &self.schema, &schema::VERSION));
        }
        if self.analysis != analysis::VERSION {
            return Err(version(&self.id, "analysis", &self.analysis, &analysis::VERSION));
        }
        Ok(())
    }

    /// Compares every file with its checksum.
    pub fn check_files(&self, dir: &Path) -> Result<(), StoreError> {
        self.files.keys().try_for_each(|name| self.check_file(dir, name))
    }

    /// Compares one file with its checksum; one that the generation does not have is missing.
    pub fn check_file(&self, dir: &Path, name: &str) -> Result<(), StoreError> {
        let path = dir.join(name);
        let damaged = |why: &str| StoreError::Damaged { path: path.clone(), why: why.to_owned() };
        let want = self.files.get(name).ok_or_else(|| damaged("it is missing"))?;
        let found = match sum_file(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing")),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        if found.bytes != want.bytes {
            return Err(damaged("its length differs"));
        }
        if found.sha256 != want.sha256 {
            return Err(damaged("its sha256 differs"));
        }
        Ok(())
    }
}

fn version(id: &str, what: &'static str, found: &dyn ToString, wanted: &dyn ToString) -> StoreError {
    StoreError::Version { id: id.to_owned(), what, found: found.to_string(), wanted: wanted.to_string() }
}

/// Sums up the files of a finished generation, those of the folder within included; lock files are no part of it.
pub(super) fn sum_files(dir: &Path) -> Result<BTreeMap<String, FileSum>, StoreError> {
    let mut files = BTreeMap::new();
    for (folder, prefix) in [(dir.to_owned(), String::new()), (dir.join(DOCUMENTS), format!("{DOCUMENTS}/"))]
    {
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let path = entry.map_err(io_error("list", &folder))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if name.ends_with(".lock") || name == IN_USE || name == MANIFEST || !path.is_file() {
                continue;
            }
            files.insert(format!("{prefix}{name}"), sum_file(&path).map_err(io_error("read", &path))?);
        }
    }
    Ok(files)
}

fn sum_file(path: &Path) -> io::Result<FileSum> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(FileSum { bytes, sha256: hex(&hash.finalize()) });
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest as version 1 of the format writes it; it must stay readable.
    const V1: &str = r#"{"format":1,"id":"g1","schema":3,"analysis":"v2","corpus":"00","created":"2026-11-24T00:00:00Z",
        "source":"guidelines","counts":{"guidelines":1,"editions":2,"chunks":3,"chunks_by_language":{"en":2,"ja":1}},
        "files":{"meta.json":{"bytes":2,"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}}"#;

    #[test]
    fn reads_the_recorded_format_and_checks_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MANIFEST), V1).unwrap();
        fs::write(dir.path().join("meta.json"), "{}").unwrap();
        let manifest = Manifest::read(dir.path(), "g1").unwrap();
        assert_eq!(manifest.counts.chunks_by_language[&Language::Ja], 1);
        manifest.check_versions().unwrap();
        manifest.check_files(dir.path()).unwrap();
        fs::write(dir.path().join("meta.json"), "[]").unwrap();
        assert!(manifest.check_files(dir.path()).unwrap_err().to_string().contains("sha256"));
        fs::remove_file(dir.path().join("meta.json")).unwrap();
        assert!(manifest.check_files(dir.path()).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn other_versions_are_refused_with_the_mend() {
        let dir = tempfile::tempdir().unwrap();
        for (change, to) in
            [("\"format\":1", "\"format\":2"), ("\"schema\":3", "\"schema\":9"), ("\"v2\"", "\"v0\"")]
        {
            fs::write(dir.path().join(MANIFEST), V1.replacen(change, to, 1)).unwrap();
            let refused = Manifest::read(dir.path(), "g1").and_then(|m| m.check_versions()).unwrap_err();
            assert!(matches!(refused, StoreError::Version { .. }), "{refused}");
            assert!(refused.to_string().contains("shishin index build"));
        }
    }
}
