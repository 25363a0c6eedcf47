//! Collections of documents, questions and judgements in the form of BEIR: `corpus.jsonl`, `queries.jsonl` and
//! `qrels/SPLIT.tsv` in one folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::metrics::Judged;

/// No line is longer than this, and no file has more of them.
const MAX_LINE_BYTES: u64 = 16 << 20;
const MAX_LINES: usize = 10_000_000;

/// A document.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Document {
    /// Its name in judgements.
    #[serde(rename = "_id")]
    pub id: String,
    /// Its title; may be empty.
    #[serde(default)]
    pub title: String,
    /// Its text.
    pub text: String,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Asked {
    /// Its name in judgements.
    #[serde(rename = "_id")]
    pub id: String,
    /// The question.
    pub text: String,
}

/// A collection.
#[derive(Debug)]
pub struct Collection {
    /// The folder's name.
    pub name: String,
    /// The documents, in order of the file.
    pub documents: Vec<Document>,
    /// The questions that have a relevant document, in order of the file, with their judgements.
    pub questions: Vec<(Asked, Judged)>,
}

/// Why a collection cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BeirError {
    /// A file cannot be read.
    #[error(
        "cannot read `{path}`: {source}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{path}:{line}: {why}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing is left to measure.
    #[error(
        "`{0}` has no question with a relevant document; check that the split's judgements belong to these questions"
    )]
    Empty(PathBuf),
}

impl Collection {
    /// Reads a collection's documents, and the questions of a split.
    ///
    /// # Errors
    /// When a file is missing or a line of it is broken.
    pub fn read(folder: &Path, split: &str) -> Result<Self, BeirError> {
        let mut documents = Vec::new();
        let json = |why: serde_json::Error| why.to_string();
        each_line(&folder.join("corpus.jsonl"), |_, line| {
            documents.push(serde_json::from_str::<Document>(line).map_err(json)?);
            Ok(())
        })?;
        let mut judged: HashMap<String, Judged> = HashMap::new();
        each_line(&folder.join("qrels").join(format!("{split}.tsv")), |number, line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let [question, document, gain] = columns[..] else {
                return Err(format!("{} columns in place of query-id, corpus-id and score", columns.len()));
            };
            match gain.trim().parse::<i64>() {
                Ok(gain) => {
                    let gain = u32::try_from(gain.max(0)).map_err(|_| format!("a score of {gain}"))?;
                    judged.entry(question.to_owned()).or_default().insert(document.to_owned(), gain);
                    Ok(())
                }
                // The head line.
                Err(_) if number == 1 => Ok(()),
                Err(_) => Err(format!("`{gain}` is no score")),
            }
        })?;
        let mut questions = Vec::new();
        each_line(&folder.join("queries.jsonl"), |_, line| {
            let asked: Asked = serde_json::from_str(line).map_err(json)?;
            if let Some(judged) = judged.remove(&asked.id).filter(|j| j.values().any(|gain| *gain > 0)) {
                questions.push((asked, judged));
            }
            Ok(())
        })?;
        if questions.is_empty() || documents.is_empty() {
            return Err(BeirError::Empty(folder.to_owned()));
        }
        let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = name.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, documents, questions })
    }
}

/// Calls `take` for each line that is not blank, with its number.
fn each_line(path: &Path, mut take: impl FnMut(usize, &str) -> Result<(), String>) -> Result<(), BeirError> {
    let failed = |source| BeirError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    for number in 1.. {
        let wrong = |why: String| BeirError::Line { path: path.to_owned(), line: number, why };
        bytes.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes).map_err(failed)?;
        if read == 0 {
            break;
        }
        if number > MAX_LINES || (read as u64 == MAX_LINE_BYTES && !bytes.ends_with(b"\n")) {
            return Err(wrong(format!("more than {MAX_LINES} lines, or one of {MAX_LINE_BYTES} bytes")));
        }
        let line = std::str::from_utf8(&bytes).map_err(|_| wrong("not UTF-8".to_owned()))?;
        if !line.trim().is_empty() {
            take(number, line.trim_end_matches(['\n', '\r'])).map_err(wrong)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(corpus: &str, queries: &str, qrels: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("qrels")).unwrap();
        fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
        fs::write(dir.path().join("queries.jsonl"), queries).unwrap();
        fs::write(dir.path().join("qrels/test.tsv"), qrels).unwrap();
        dir
    }

    const CORPUS: &str =
        "{\"_id\":\"d1\",\"title\":\"T\",\"text\":\"x\"}\n\n{\"_id\":\"d2\",\"text\":\"y\",\"more\":1}\r\n";
    const QUERIES: &str = "{\"_id\":\"q1\",\"text\":\"a\"}\n{\"_id\":\"q2\",\"text\":\"b\"}\n";

    #[test]
    fn questions_with_relevant_documents_are_kept() {
        let dir = folder(CORPUS, QUERIES, "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t-1\n");
        let read = Collection::read(dir.path(), "test").unwrap();
        assert_eq!(read.documents.len(), 2);
        assert_eq!(read.questions.len(), 1);
        assert_eq!(read.questions[0].1["d1"], 2);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            (folder("{\"_id\":\"d\"}\n", QUERIES, "q1\td\t1\n"), "corpus.jsonl:1: missing field `text`"),
            (folder(CORPUS, QUERIES, "h\th\th\nq1\td1\n"), "test.tsv:2: 2 columns"),
            (folder(CORPUS, QUERIES, "q1\td1\t1\nq1\td2\tx\n"), "test.tsv:2: `x` is no score"),
            (folder(CORPUS, QUERIES, "q9\td1\t1\n"), "no question with a relevant document"),
        ];
        for (dir, part) in cases {
            let error = Collection::read(dir.path(), "test").unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let dir = folder(CORPUS, QUERIES, "");
        assert!(Collection::read(dir.path(), "dev").unwrap_err().to_string().contains("dev.tsv"));
    }
}
