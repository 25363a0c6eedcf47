//! The operator path: guideline files in, one new generation of the index out.
//!
//! In path order: [`read`] (files of the folder, bounded) → [`extract`] (text from each format) with [`metadata`] (from
//! [`front_matter`], a [`sidecar`] or a line of [`json_lines`], every finding with file and line), once for each file
//! (`documents`) → [`editions`] (which edition holds from when until when) → [`chunk`] (retrievable pieces with byte spans) →
//! [`screen`] (what looks suspect is held back until it is among the [`approvals`]) → [`embedding`] → [`mod@build`] (the
//! spine: writes them into a generation beside the live one and swaps it in).
//!
//! Nothing here touches what is being served: until the last rename a build only adds files, and when it fails
//! the live generation stays.

pub mod approvals;
pub mod build;
pub mod chunk;
pub(crate) mod documents;
pub mod editions;
pub mod embedding;
pub mod extract;
pub mod front_matter;
pub mod indexer;
pub mod json_lines;
pub mod metadata;
pub mod read;
pub mod screen;
pub(crate) mod segment;
pub mod sidecar;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

pub use build::{BuildOptions, BuildReport, BuildTools, Progress, build, build_with};
pub use embedding::Embedded;
pub use indexer::Indexer;

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

/// Collects findings: the first thousand of them in full, the others counted, so that a hostile folder cannot fill memory.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: Vec<Finding>,
    more: usize,
    with_errors: std::collections::HashSet<String>,
}

impl Findings {
    /// Findings that are kept.
    pub(crate) const KEPT: usize = 1_000;

    pub(crate) fn push(&mut self, finding: Finding) {
        if finding.is_error() && !self.with_errors.contains(&finding.file) {
            self.with_errors.insert(finding.file.clone());
        }
        if self.kept.len() < Self::KEPT {
            self.kept.push(finding);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.push(finding));
    }

    /// Files of which something is left out.
    pub(crate) fn files_with_errors(&self) -> usize {
        self.with_errors.len()
    }

    /// Those that were kept, by file and line, and the number of others.
    pub(crate) fn sorted(mut self) -> (Vec<Finding>, usize) {
        (self.take(), self.more)
    }

    pub(crate) fn take(&mut self) -> Vec<Finding> {
        let mut kept = std::mem::take(&mut self.kept);
        kept.sort_by(|a, b| (&a.file, a.line, &a.message).cmp(&(&b.file, b.line, &b.message)));
        kept
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
    #[error("`{path}` has no guideline that can be indexed ({}); put guidelines there, with their metadata", errors_in(.findings))]
    Empty {
        /// The guideline folder.
        path: PathBuf,
        /// What kept its files out.
        findings: Vec<Finding>,
    },
    /// A text that was put aside cannot be read back.
    #[error("a text that was put aside cannot be read back: {source}; run `shishin index build` again")]
    Spool {
        /// Why.
        source: std::io::Error,
    },
    /// No thread for the build.
    #[error("cannot start a thread for the build: {source}; try again")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
    /// A fault of ours.
    #[error("the build panicked; the log has the reason, and the index is as it was")]
    Panicked,
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
