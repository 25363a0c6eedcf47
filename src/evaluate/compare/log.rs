//! What has been answered already, on disk: a run that was ended asks only what is missing.
//!
//! The first line says what all answers stand on; every other is a question with its passages and answers, each with what it stands on besides.
//! A line that a crash cut short is left out and asked again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::quote::Quote;
use crate::retrieve::Passage;

/// What the answers of a log have in common. Those of another header are of another run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// shishin's version.
    pub version: String,
    /// The questions and prompts of the suite.
    pub asked_sha256: String,
    /// The base model.
    pub model: String,
    /// Its checksum.
    pub model_sha256: String,
    /// The form its weights are kept in.
    pub weights: String,
}

/// A passage as the prompt showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its number, from 1.
    pub n: usize,
    /// The guideline.
    pub guideline: String,
    /// The edition.
    pub edition: String,
    /// Its title.
    pub title: String,
    /// The heading path.
    pub section: String,
    /// The text.
    pub text: String,
}

impl From<Passage> for Shown {
    fn from(passage: Passage) -> Self {
        let Passage { n, guideline, edition, title, section, text, .. } = passage;
        Self { n, guideline, edition, title, section, text }
    }
}

/// What one arm answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// What makes the arm what it is: see [`super::Arm::key`].
    pub key: String,
    /// What of the passages it quoted before it answered.
    #[serde(default)]
    pub quotes: Vec<Quote>,
    /// What it said.
    pub answer: String,
    /// What the server added about editions that are not in effect.
    pub note: Option<String>,
    /// Whether it was given passages.
    pub grounded: bool,
    /// Why it ended.
    pub finish: String,
    /// SHA-256 of the prompt's tokens; none where the model was not asked.
    pub prompt_sha256: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
}

/// A question with its passages and some of its answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The question.
    pub id: String,
    /// SHA-256 of what was searched, and how: see [`Log::open`].
    #[serde(default)]
    pub searched: String,
    /// The passages, where an arm retrieves.
    pub passages: Vec<Shown>,
    /// The answers.
    pub replies: Vec<Reply>,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The answers stand on something else.
    #[error(
        "{} holds answers of another run ({differs} differs); name another folder with --out, or ask anew with --fresh",
        path.display()
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        differs: String,
    },
    /// A line in the middle is damaged.
    #[error("{}:{line}: {source}; ask anew with --fresh", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// The answers so far, and where more go.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    searched: String,
    answered: BTreeMap<String, Answered>,
}

impl Log {
    /// Opens the log of a run, or begins it. Passages of an earlier run that `searched` otherwise are left aside; its answers are told by their
    /// keys.
    ///
    /// # Errors
    /// When the disk fails, or the file is of another run.
    pub fn open(path: &Path, header: &Header, searched: &str) -> Result<Self, LogError> {
        let io = |source| LogError::Io { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut text = String::new();
        // A crash may have cut a character in two.
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        text.push_str(&String::from_utf8_lossy(&bytes[..whole]));
        file.set_len(whole as u64).map_err(io)?;
        file.seek(std::io::SeekFrom::End(0)).map_err(io)?;
        let searched = searched.to_owned();
        let mut log = Self { path: path.to_owned(), file, searched, answered: BTreeMap::new() };
        let mut lines = text.lines();
        let Some(first) = lines.next() else {
            log.write(header)?;
            return Ok(log);
        };
        let damaged = |line, source| LogError::Line { path: path.to_owned(), line, source };
        let own: Header = serde_json::from_str(first).map_err(|source| damaged(1, source))?;
        if let Some(differs) = own.differs(header) {
            return Err(LogError::Other { path: path.to_owned(), differs: differs.to_owned() });
        }
        for (n, line) in lines.enumerate() {
            log.take(serde_json::from_str(line).map_err(|source| damaged(n + 2, source))?);
        }
        Ok(log)
    }

    fn take(&mut self, more: Answered) {
        let known = self.answered.entry(more.id.clone()).or_default();
        known.id = more.id;
        if known.passages.is_empty() && more.searched == self.searched {
            known.passages = more.passages;
        }
        for reply in more.replies {
            known.replies.retain(|other| other.key != reply.key);
            known.replies.push(reply);
        }
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), LogError> {
        let io = |source| LogError::Io { path: self.path.clone(), source };
        let mut bytes = serde_json::to_vec(line).map_err(|error| io(error.into()))?;
        bytes.push(b'\n');
        self.file.write_all(&bytes).and_then(|()| self.file.sync_data()).map_err(io)
    }

    /// Adds answers; they are on disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn add(&mut self, answered: Answered) -> Result<(), LogError> {
        let answered = Answered { searched: self.searched.clone(), ..answered };
        self.write(&answered)?;
        self.take(answered);
        Ok(())
    }

    /// What is known of a question.
    #[must_use]
    pub fn of(&self, id: &str) -> Option<&Answered> {
        self.answered.get(id)
    }
}

impl Header {
    fn differs(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("shishin's version", &self.version, &other.version),
            ("the questions or their prompts", &self.asked_sha256, &other.asked_sha256),
            ("the model", &self.model, &other.model),
            ("the model's checksum", &self.model_sha256, &other.model_sha256),
            ("the form of the weights", &self.weights, &other.weights),
        ];
        pairs.into_iter().find(|(_, own, other)| own != other).map(|(name, ..)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let s = |text: &str| text.to_owned();
        Header { version: s("1"), asked_sha256: s("a"), model: s("m"), model_sha256: s("b"), weights: s("w") }
    }

    fn answered(id: &str, key: &str, answer: &str) -> Answered {
        let reply = Reply {
            quotes: vec![Quote { n: 1, text: "Give 5 mg.".into() }],
            key: key.into(),
            answer: answer.into(),
            note: None,
            grounded: false,
            finish: "stop".into(),
            prompt_sha256: None,
            prompt_tokens: 3,
            answer_tokens: 2,
        };
        Answered { id: id.into(), replies: vec![reply], ..Answered::default() }
    }

    #[test]
    fn answers_outlive_a_crash_at_any_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = Log::open(&path, &header(), "s").unwrap();
        log.add(answered("q1", "base", "あ")).unwrap();
        log.add(answered("q1", "rag", "b")).unwrap();
        log.add(answered("q2", "base", "い")).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let ends: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let log = Log::open(&path, &header(), "s").unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let replies: usize = log.answered.values().map(|one| one.replies.len()).sum();
            assert_eq!(replies, whole.saturating_sub(1), "cut at {cut}");
            drop(log);
            let mut log = Log::open(&path, &header(), "s").unwrap();
            log.add(answered("q9", "base", "c")).unwrap();
            assert_eq!(Log::open(&path, &header(), "s").unwrap().of("q9").unwrap().replies[0].answer, "c");
        }
    }

    #[test]
    fn answers_of_another_run_are_not_mixed_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        drop(Log::open(&path, &header(), "s").unwrap());
        let other = Header { weights: "v".into(), ..header() };
        let error = Log::open(&path, &other, "s").unwrap_err().to_string();
        assert!(error.contains("the form of the weights differs") && error.contains("--fresh"), "{error}");
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(Log::open(&path, &header(), "s").unwrap_err().to_string().contains("log.jsonl:1"));
    }

    #[test]
    fn passages_of_another_search_are_left_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let shown = |text: &str| {
            let s = str::to_owned;
            vec![Shown {
                n: 1,
                guideline: s("g"),
                edition: s("e"),
                title: s("t"),
                section: s("s"),
                text: s(text),
            }]
        };
        let add = |searched: &str, key: &str, text: &str| {
            let mut log = Log::open(&path, &header(), searched).unwrap();
            log.add(Answered { passages: shown(text), ..answered("q", key, "a") }).unwrap();
        };
        add("then", "rag then", "old");
        add("now", "rag now", "new");
        for (searched, text) in [("then", "old"), ("now", "new")] {
            let log = Log::open(&path, &header(), searched).unwrap();
            let of = log.of("q").unwrap();
            assert_eq!((of.passages[0].text.as_str(), of.replies.len()), (text, 2));
        }
        assert!(Log::open(&path, &header(), "later").unwrap().of("q").unwrap().passages.is_empty());
    }
}
