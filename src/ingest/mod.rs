//! The operator path: guideline files in, one new generation of the index out.
//!
//! In path order: [`read`] (files of the folder, bounded) → [`front_matter`] (metadata, every finding with file
//! and line) → [`editions`] (which edition holds from when until when) → [`chunk`] (retrievable pieces with byte
//! spans) → [`mod@build`] (the spine: writes them into a generation beside the live one and swaps it in).
//!
//! Nothing here touches what is being served: until the last rename a build only adds files, and when it fails
//! the live generation stays.

pub mod build;
pub mod chunk;
pub mod editions;
pub mod embedding;
pub mod front_matter;
pub mod read;
pub(crate) mod segment;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

pub use build::{BuildOptions, BuildReport, BuildTools, Progress, build, build_with};
pub use embedding::Embedded;

use crate::model::embed::EmbedError;
use crate::store::StoreError;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is indexed all the same.
    Warning,
    /// The file is left out; a strict build is refused.
    Error,
}

/// Something about a guideline file that its author should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// The file, relative to the guideline folder.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl Finding {
    /// A finding that leaves the file out.
    pub fn error(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, file: file.to_owned(), line, message: message.into() }
    }

    /// A finding that does not.
    pub fn warning(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, file: file.to_owned(), line, message: message.into() }
    }

    /// Whether it leaves the file out.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_error() { "error" } else { "warning" };
        write!(f, "{}:{}: {word}: {}", self.file, self.line, self.message)
    }
}

/// Why no generation was built. The live one is unchanged in every case.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The guideline folder could not be read.
    #[error("cannot read `{path}`: {source}; check that the guideline folder exists and is readable")]
    Read {
        /// What was being read.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The folder holds more than a build takes.
    #[error("`{path}` holds more than {limit} {what}; split the guidelines over several indexes")]
    TooMuch {
        /// The guideline folder.
        path: PathBuf,
        /// The bound.
        limit: usize,
        /// What there is too much of.
        what: &'static str,
    },
    /// A strict build met findings.
    #[error("{} in the guidelines and the build is strict; mend them or build without --strict", errors_in(.0))]
    Refused(Vec<Finding>),
    /// Nothing was left to index.
    #[error("`{path}` has no guideline that can be indexed ({}); put Markdown files with front matter there", errors_in(.findings))]
    Empty {
        /// The guideline folder.
        path: PathBuf,
        /// What kept its files out.
        findings: Vec<Finding>,
    },
    /// A file changed between its two readings.
    #[error("`{file}` changed while the index was being built; run `shishin index build` again")]
    Changed {
        /// The file, relative to the guideline folder.
        file: String,
    },
    /// A chunk has no vector.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The generation could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IngestError {
    /// The findings behind the error, if it is about the guidelines.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Refused(findings) | Self::Empty { findings, .. } => findings,
            _ => &[],
        }
    }
}

fn errors_in(findings: &[Finding]) -> String {
    match findings.iter().filter(|f| f.is_error()).count() {
        0 => "no errors".to_owned(),
        1 => "1 error".to_owned(),
        n => format!("{n} errors"),
    }
}
