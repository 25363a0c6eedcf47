//! A suite: questions with what a right answer holds, the guidelines they are asked over, and what is good style.
//!
//! `suite.toml` names files relative to itself. A question is a line of JSON; what it is about decides what it is judged by.

use std::path::{Path, PathBuf};

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::dataset::ground::Oracle;
use crate::evaluate::criteria::{Criterion, Texts};
use crate::files::{self, FileError};
use crate::language::Language;
use crate::model::template::{Role, Turn};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A fact that a guideline holds.
    Fact,
    /// A fact that differs between two editions: whoever remembers the other one is wrong on that day.
    Changed,
    /// How one speaks; whatever passages say is a help.
    Behaviour,
    /// Nothing in the guidelines answers.
    Unanswerable,
}

/// A question of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteQuestion {
    /// Its name, of its own.
    pub id: String,
    /// Its language.
    pub language: Language,
    /// What is asked for.
    pub kind: Kind,
    /// The question.
    pub question: String,
    /// The day it is asked for.
    pub as_of: Option<Date>,
    /// What a good answer says.
    #[serde(default)]
    pub reference: String,
    /// What a right answer must hold, as [`crate::evaluate::facts`] reads it.
    #[serde(default)]
    pub facts: Vec<String>,
    /// What the other edition says: wrong on that day.
    #[serde(default)]
    pub older: Vec<String>,
    /// Where the answer stands.
    #[serde(default)]
    pub oracle: Vec<Oracle>,
    /// Whether help must come at once.
    #[serde(default)]
    pub urgent: bool,
}

/// What `suite.toml` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    objective: String,
    questions: Vec<PathBuf>,
    guidelines: Vec<PathBuf>,
    max_tokens: usize,
    abstains: Texts,
    prompted: Prompted,
    style: Style,
}

/// What the base is told where it is to behave by its prompt alone.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompted {
    en: String,
    ja: String,
    shots_en: PathBuf,
    shots_ja: PathBuf,
}

/// What all answers must be like, by what was asked for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Style {
    /// Answers to clinical questions.
    pub clinical: Vec<Criterion>,
    /// Answers to patients and relatives.
    pub behaviour: Vec<Criterion>,
}

impl Style {
    /// The criteria of a kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &[Criterion] {
        match kind {
            Kind::Behaviour => &self.behaviour,
            Kind::Fact | Kind::Changed | Kind::Unanswerable => &self.clinical,
        }
    }
}

/// A suite, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    /// What it is called: its folder's name.
    pub name: String,
    /// What it is to show.
    pub objective: String,
    /// In the order of the files.
    pub questions: Vec<SuiteQuestion>,
    /// The folders that are indexed.
    pub guidelines: Vec<PathBuf>,
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// How it is said that nothing answers.
    pub abstains: Texts,
    /// What answers must be like.
    pub style: Style,
    /// Instructions and examples, by language in the order of [`Language::ALL`].
    prompted: Vec<(Language, Vec<Turn>)>,
    /// SHA-256 over all files of the suite but its guidelines.
    pub sha256: String,
    /// SHA-256 over that of it which decides answers: questions and prompts, and not what they are judged by.
    pub asked_sha256: String,
}

/// Why a suite was refused.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line, or a criterion, makes no sense.
    #[error("{place}: {problem}")]
    Fault {
        /// The file, with the line where there is one.
        place: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shot {
    question: String,
    answer: String,
}

impl Suite {
    /// Reads the suite of a folder.
    ///
    /// # Errors
    /// When a file cannot be read or makes no sense; the message names it.
    pub fn read(folder: &Path) -> Result<Self, SuiteError> {
        let mut hash = Sha256::new();
        let mut text_of = |path: &Path| -> Result<String, SuiteError> {
            let text = files::text(path)?;
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(&text);
            Ok(text)
        };
        let file = folder.join("suite.toml");
        let settings: Settings = files::toml(&file, &text_of(&file)?)?;
        for criterion in settings.style.clinical.iter().chain(&settings.style.behaviour) {
            // Promises stand in the gate's file, and style is all criteria at once.
            let plain = Criterion::plain(&criterion.name, criterion.check.clone());
            let useless = *criterion != plain;
            let useless = useless.then(|| "goals and weight mean nothing in a suite".to_owned());
            if let Some(problem) = useless.or_else(|| criterion.problem()) {
                let place = format!("{}: criterion `{}`", file.display(), criterion.name);
                return Err(SuiteError::Fault { place, problem });
            }
        }
        let mut questions: Vec<SuiteQuestion> = Vec::new();
        for name in &settings.questions {
            let path = folder.join(name);
            for (place, question) in files::json_lines::<SuiteQuestion>(&path, &text_of(&path)?)? {
                let twice = questions.iter().any(|other| other.id == question.id);
                if let Some(problem) =
                    if twice { Some("its id stands there twice") } else { fault(&question) }
                {
                    return Err(SuiteError::Fault { place, problem: format!("{}: {problem}", question.id) });
                }
                questions.push(question);
            }
        }
        let mut prompted = Vec::new();
        for language in Language::ALL {
            let (instructions, shots) = match language {
                Language::En => (&settings.prompted.en, &settings.prompted.shots_en),
                Language::Ja => (&settings.prompted.ja, &settings.prompted.shots_ja),
            };
            let path = folder.join(shots);
            let mut turns = vec![Turn { role: Role::System, content: instructions.clone() }];
            for (_, shot) in files::json_lines::<Shot>(&path, &text_of(&path)?)? {
                turns.push(Turn { role: Role::User, content: shot.question });
                turns.push(Turn { role: Role::Assistant, content: shot.answer });
            }
            prompted.push((language, turns));
        }
        if questions.is_empty() {
            let place = file.display().to_string();
            return Err(SuiteError::Fault { place, problem: "its files hold no question".into() });
        }
        let asked: Vec<_> = questions.iter().map(|q| (&q.id, &q.question, q.as_of)).collect();
        let told: Vec<_> =
            prompted.iter().flat_map(|(_, turns)| turns).map(|turn| (turn.role, &turn.content)).collect();
        let asked = serde_json::json!([asked, told, settings.max_tokens]).to_string();
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        Ok(Self {
            name,
            objective: settings.objective,
            questions,
            guidelines: settings.guidelines.iter().map(|path| folder.join(path)).collect(),
            max_tokens: settings.max_tokens,
            abstains: settings.abstains,
            style: settings.style,
            prompted,
            sha256: crate::model::hex(&hash.finalize()),
            asked_sha256: crate::model::hex(&Sha256::digest(asked)),
        })
    }

    /// Instructions and examples for the base in a language.
    #[must_use]
    pub fn prompted(&self, language: Language) -> &[Turn] {
        self.prompted.iter().find(|(own, _)| *own == language).map_or(&[], |(_, turns)| turns)
    }
}

/// What is wrong with a question.
fn fault(question: &SuiteQuestion) -> Option<&'static str> {
    let facts = matches!(question.kind, Kind::Fact | Kind::Changed);
    match question.kind {
        _ if question.question.trim().is_empty() => Some("it asks nothing"),
        _ if facts && question.facts.is_empty() => {
            Some("it names no facts; a right answer could not be told")
        }
        Kind::Changed if question.older.is_empty() => Some("it names nothing older that would be wrong"),
        Kind::Unanswerable if !question.oracle.is_empty() => Some("something answers it, by its `oracle`"),
        Kind::Fact | Kind::Changed if question.oracle.is_empty() => Some("it names no `oracle` that answers"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITE: &str = r#"
        objective = "x"
        questions = ["q.jsonl"]
        guidelines = ["g"]
        max_tokens = 9
        abstains = { en = ["no"], ja = ["無"] }
        [prompted]
        en = "Be kind."
        ja = "丁寧に。"
        shots_en = "s.jsonl"
        shots_ja = "s.jsonl"
        [style]
        behaviour = [{ name = "asks", check = "asks" }]
        clinical = [{ name = "short", check = "sentences", most = 2 }]
    "#;
    const QUESTION: &str = r#"{"id":"a","language":"en","kind":"unanswerable","question":"Why?"}"#;

    fn read(suite: &str, questions: &str) -> Result<Suite, String> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("suite.toml", suite);
        write("q.jsonl", questions);
        write("s.jsonl", "{\"question\":\"q\",\"answer\":\"a\"}\n");
        Suite::read(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_suite_knows_what_it_asks_and_how_it_is_judged() {
        let suite = read(SUITE, QUESTION).unwrap();
        assert_eq!((suite.questions.len(), suite.prompted(Language::Ja).len()), (1, 3));
        assert_eq!(suite.style.of(Kind::Behaviour)[0].name, "asks");
        let other = read(&SUITE.replace("Be kind.", "Be brief."), QUESTION).unwrap();
        assert_ne!(suite.sha256, other.sha256);
    }

    #[test]
    fn faults_are_named_with_their_place() {
        let fact = QUESTION.replace("unanswerable", "fact");
        for (suite, questions, part) in [
            (SUITE.replace("max_tokens", "max"), QUESTION.to_owned(), "suite.toml"),
            (SUITE.replace("most = 2", "most = 2, least = 1"), QUESTION.to_owned(), "least"),
            (SUITE.to_owned(), String::new(), "no question"),
            (SUITE.to_owned(), format!("{QUESTION}\n{QUESTION}"), "q.jsonl:2: a: its id stands there twice"),
            (SUITE.to_owned(), format!("\n{fact}"), "q.jsonl:2: a: it names no facts"),
            (SUITE.to_owned(), "{}".into(), "q.jsonl:1: missing field"),
        ] {
            let error = read(&suite, &questions).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
