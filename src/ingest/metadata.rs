//! The metadata of one edition, checked, with every finding at its line, wherever it is written.
//!
//! Second step of the operator path. Front matter, a file of its own or a line of JSON give `Written` values with their
//! lines; `check` makes metadata of them. Returns the value *and* all findings; the value is there only when nothing
//! found is an error.

use std::collections::BTreeMap;
use std::fmt;

use jiff::civil::Date;

use super::Finding;
use crate::language::Language;

pub(super) const TEXT_KEYS: [&str; 10] = [
    "id",
    "title",
    "edition",
    "issuer",
    "jurisdiction",
    "language",
    "effective_from",
    "effective_to",
    "source",
    "licence",
];
pub(super) const LIST_KEYS: [&str; 2] = ["supersedes", "tags"];
const OPTIONAL: [&str; 1] = ["effective_to"];
const MAX_VALUE_CHARS: usize = 500;

/// One edition of a guideline, by its two names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EditionKey {
    /// The guideline.
    pub guideline: String,
    /// Its edition.
    pub edition: String,
}

impl fmt::Display for EditionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.guideline, self.edition)
    }
}

/// The checked metadata of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontMatter {
    /// Guideline and edition.
    pub key: EditionKey,
    /// The title as readers know it.
    pub title: String,
    /// Who issued it.
    pub issuer: String,
    /// Where it holds.
    pub jurisdiction: String,
    /// The language of the text.
    pub language: Language,
    /// The first day on which it holds.
    pub effective_from: Date,
    /// The last day on which it holds, if it names one.
    pub effective_to: Option<Date>,
    /// Editions that it replaces.
    pub supersedes: Vec<EditionKey>,
    /// Where the text came from.
    pub source: String,
    /// The licence of the text.
    pub licence: String,
    /// Free subject words.
    pub tags: Vec<String>,
    /// The line of each key, counted from 1, for findings that need other files too.
    pub lines: BTreeMap<&'static str, usize>,
}

impl FrontMatter {
    /// The line of a key, or the first one.
    #[must_use]
    pub fn line(&self, key: &str) -> usize {
        self.lines.get(key).copied().unwrap_or(1)
    }
}

/// Metadata as written: values with their lines, unchecked.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Values of the keys that have one.
    pub(super) texts: BTreeMap<&'static str, Text>,
    /// Values of the keys that may have several.
    pub(super) lists: BTreeMap<&'static str, List>,
    /// Other keys, with their lines.
    pub(super) unknown: Vec<(String, usize)>,
    /// Where keys that are missing are reported.
    pub(super) line: usize,
}

#[derive(Debug)]
pub(super) struct Text {
    pub(super) value: Option<String>,
    pub(super) line: usize,
}

#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) items: Vec<String>,
    pub(super) line: usize,
}

impl Written {
    /// The key as it is known, if it has one value.
    pub(super) fn text_key(key: &str) -> Option<&'static str> {
        TEXT_KEYS.into_iter().find(|k| *k == key)
    }

    /// The key as it is known, if it may have several values.
    pub(super) fn list_key(key: &str) -> Option<&'static str> {
        LIST_KEYS.into_iter().find(|k| *k == key)
    }

    /// Notes a key that is not known.
    pub(super) fn unknown(&mut self, key: &str, line: usize) {
        self.unknown.push((key.chars().take(80).collect(), line));
    }
}

/// Checks what is written about the edition in `file`.
pub(super) fn check(file: &str, written: &Written) -> (Option<FrontMatter>, Vec<Finding>) {
    let mut check = Check { file, findings: Vec::new() };
    let front = check.all(written);
    let failed = check.findings.iter().any(Finding::is_error);
    (front.filter(|_| !failed), check.findings)
}

struct Check<'a> {
    file: &'a str,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn error(&mut self, line: usize, message: String) {
        self.findings.push(Finding::error(self.file, line, message));
    }

    fn all(&mut self, raw: &Written) -> Option<FrontMatter> {
        self.unknown_keys(raw);
        let mut lines = BTreeMap::new();
        let mut texts = BTreeMap::new();
        for key in TEXT_KEYS {
            match raw.texts.get(key) {
                Some(found) => {
                    lines.insert(key, found.line);
                    if let Some(value) = self.text(key, found) {
                        texts.insert(key, (value, found.line));
                    }
                }
                None if OPTIONAL.contains(&key) => {}
                None => self.error(raw.line, format!("`{key}` is missing; add it to the metadata")),
            }
        }
        for (key, list) in &raw.lists {
            lines.insert(*key, list.line);
        }
        let language = self.parsed(&texts, "language", |v| v.parse::<Language>().map_err(|e| e.to_string()));
        let from = self.parsed(&texts, "effective_from", date);
        let to = self.parsed(&texts, "effective_to", date);
        let id = self.parsed(&texts, "id", name);
        let edition = self.parsed(&texts, "edition", name);
        if let (Some(from), Some(to)) = (from, to)
            && to < from
        {
            let line = texts.get("effective_to").map_or(1, |t| t.1);
            self.error(line, format!("`effective_to` {to} is before `effective_from` {from}"));
        }
        let supersedes = self.supersedes(raw, id.as_deref().unwrap_or_default());
        let tags = raw.lists.get("tags").map(|l| l.items.clone()).unwrap_or_default();
        let mut take = |key: &str| texts.remove(key).map(|t| t.0);
        Some(FrontMatter {
            key: EditionKey { guideline: id?, edition: edition? },
            title: take("title")?,
            issuer: take("issuer")?,
            jurisdiction: take("jurisdiction")?,
            language: language?,
            effective_from: from?,
            effective_to: to,
            supersedes,
            source: take("source")?,
            licence: take("licence")?,
            tags,
            lines,
        })
    }

    fn unknown_keys(&mut self, raw: &Written) {
        for (key, line) in &raw.unknown {
            let known = TEXT_KEYS.iter().chain(&LIST_KEYS).find(|k| nearly(k, key));
            // A misspelt key silently loses what it says ("supersede" would leave the old edition current), so it
            // is an error; a key of another tool is not.
            match known {
                Some(known) => self.error(*line, format!("unknown key `{key}`; did you mean `{known}`?")),
                None => self.findings.push(Finding::warning(
                    self.file,
                    *line,
                    format!("unknown key `{key}` is ignored"),
                )),
            }
        }
    }

    fn text(&mut self, key: &str, found: &Text) -> Option<String> {
        let value = found.value.as_deref().map(str::trim).filter(|v| !v.is_empty());
        let line = found.line;
        match value {
            Some(v) if v.chars().count() > MAX_VALUE_CHARS => {
                self.error(line, format!("`{key}` is longer than {MAX_VALUE_CHARS} characters"));
                None
            }
            Some(v) => Some(v.to_owned()),
            None if OPTIONAL.contains(&key) => None,
            None => {
                self.error(line, format!("`{key}` is empty; give it a value"));
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        texts: &BTreeMap<&str, (String, usize)>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (value, line) = texts.get(key)?;
        parse(value).map_err(|why| self.error(*line, format!("`{key}`: {why}"))).ok()
    }

    /// `EDITION` names one of the same guideline, `ID@EDITION` one of any.
    fn supersedes(&mut self, raw: &Written, id: &str) -> Vec<EditionKey> {
        let Some(list) = raw.lists.get("supersedes") else { return Vec::new() };
        let mut keys = Vec::new();
        for item in &list.items {
            let (guideline, edition) = item.split_once('@').unwrap_or((id, item));
            match name(edition).and_then(|e| Ok((name(guideline)?, e))) {
                Ok((guideline, edition)) => keys.push(EditionKey { guideline, edition }),
                Err(_) if id.is_empty() => {}
                Err(why) => self.error(list.line, format!("`supersedes`: `{item}`: {why}")),
            }
        }
        keys
    }
}

fn date(value: &str) -> Result<Date, String> {
    let shaped = value.len() == 10 && value.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let parsed = if shaped { value.parse().ok() } else { None };
    parsed.ok_or_else(|| format!("`{value}` is no date; write it as YYYY-MM-DD, such as 2025-04-01"))
}

fn name(value: &str) -> Result<String, String> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !value.is_empty() && value.chars().count() <= 80 && value.chars().all(good) {
        Ok(value.to_owned())
    } else {
        Err(format!("`{value}` is no name; use up to 80 letters, digits, `-`, `_` and `.`"))
    }
}

/// Whether two keys differ by at most two edits, or by case and dashes only.
fn nearly(known: &str, key: &str) -> bool {
    let key: String = key.chars().take(40).flat_map(char::to_lowercase).collect::<String>().replace('-', "_");
    let key: Vec<char> = key.chars().collect();
    let mut row: Vec<usize> = (0..=key.len()).collect();
    for (i, a) in known.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in key.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    // Two edits turn a short key into any other, so they count only in longer ones.
    row[key.len()] <= if known.len() > 5 { 2 } else { 0 }
}
