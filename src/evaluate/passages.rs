//! Judges the live index on questions of one's own: does it find the passage that answers, and keep silent where none does?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::metrics::Mean;
use crate::files::{self, FileError};
use crate::language::Language;
use crate::quote::{self, QuoteChoice, Signs};
use crate::retrieve::{Filter, Gate, Passage, Ranking, Retrieval, RetrieveError, SearchQuery, Snapshot};

/// Passages that are looked at for a question.
pub const DEPTH: usize = 5;

/// A question, and where its answer stands.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawQuestion")]
pub struct AskedQuestion {
    /// Names it in what is written of it.
    pub id: String,
    /// The question.
    pub question: String,
    /// The day whose editions are asked.
    pub as_of: Option<Date>,
    /// What answers it; nothing where no guideline does.
    pub answers: Vec<Place>,
}

/// Where an answer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a guideline, below headings that hold this.
    Section(String, String),
    /// In an edition of a guideline, in a passage that holds this.
    Quote(String, String, String),
}

impl Place {
    fn is_in(&self, passage: &Passage) -> bool {
        match self {
            Self::Section(guideline, section) => {
                *guideline == passage.guideline && passage.section.contains(section)
            }
            Self::Quote(guideline, edition, quote) => {
                (guideline, edition) == (&passage.guideline, &passage.edition) && passage.text.contains(quote)
            }
        }
    }
}

/// A line: a question of one's own, or one of a suite or a dataset, which say more than is asked for here.
#[derive(Deserialize)]
struct RawQuestion {
    #[serde(default)]
    id: String,
    question: Option<String>,
    as_of: Option<Date>,
    guideline: Option<String>,
    #[serde(default)]
    section: String,
    #[serde(default)]
    oracle: Vec<RawOracle>,
    #[serde(flatten)]
    more: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct RawOracle {
    guideline: String,
    edition: String,
    quote: String,
}

impl TryFrom<RawQuestion> for AskedQuestion {
    type Error = String;

    fn try_from(raw: RawQuestion) -> Result<Self, String> {
        let RawQuestion { id, question, as_of, guideline, section, oracle, more } = raw;
        // Suites and datasets name the language of each.
        if let (Some(unknown), false) = (more.keys().next(), more.contains_key("language")) {
            return Err(format!("unknown field `{unknown}`"));
        }
        let question = question.ok_or("missing field `question`")?;
        let quotes = oracle.into_iter().map(|o| Place::Quote(o.guideline, o.edition, o.quote));
        let answers = guideline.map(|guideline| Place::Section(guideline, section)).into_iter().chain(quotes);
        Ok(Self { id, question, as_of, answers: answers.collect() })
    }
}

/// Why questions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QuestionsError {
    /// The file cannot be read.
    #[error(transparent)]
    File(FileError),
    /// A line is no question.
    #[error(
        "{0}; write {{\"question\": …, \"guideline\": …, \"section\": …}}, without guideline where none answers, or lines of a suite"
    )]
    Line(FileError),
    /// There are none.
    #[error("{} holds no questions", .0.display())]
    Empty(PathBuf),
}

/// Reads questions, one a line.
///
/// # Errors
/// When the file cannot be read, or a line is no question.
pub fn read(path: &Path) -> Result<Vec<AskedQuestion>, QuestionsError> {
    let text = files::text(path).map_err(QuestionsError::File)?;
    let questions = files::json_lines(path, &text).map_err(QuestionsError::Line)?;
    if questions.is_empty() {
        return Err(QuestionsError::Empty(path.to_owned()));
    }
    Ok(questions.into_iter().map(|(_, question)| question).collect())
}

/// What a question found.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// The question's name.
    pub id: String,
    /// The language that it is asked in.
    pub language: Language,
    /// Whether a guideline answers it.
    pub answerable: bool,
    /// The rank of the first passage that answers, from 1.
    pub rank: Option<usize>,
    /// Whether one that answers is among those that a prompt shows.
    pub shown: bool,
    /// Whether the sentence of those that is preferred before a model is asked is what answers, or a part of it, or holds it; where a quote tells that.
    pub sentence: Option<bool>,
    /// Coverage and similarity of the passage that supports an answer best, by which a gate decides.
    pub best: Option<(f32, Option<f32>)>,
}

impl Judged {
    /// Whether a gate lets any passage through.
    #[must_use]
    pub fn passes(&self, gate: Gate) -> bool {
        let gate = gate.asked_in(self.language);
        self.best.is_some_and(|(coverage, similarity)| gate.lets_pass(coverage, similarity))
    }
}

/// Asks the questions, for [`DEPTH`] passages and for as many as a prompt shows, of which sentences are preferred by a choice.
///
/// # Errors
/// When the index cannot be searched.
pub fn ask(
    snapshot: &Snapshot,
    questions: &[AskedQuestion],
    filter: &Filter,
    ranking: Option<Ranking>,
    (today, shown): (Date, usize),
    choice: QuoteChoice,
) -> Result<Vec<Judged>, RetrieveError> {
    let judge = |asked: &AskedQuestion| {
        let search = |limit: usize| {
            snapshot.search(&SearchQuery {
                text: &asked.question,
                as_of: asked.as_of.unwrap_or(today),
                language: None,
                filter: Some(filter),
                limit,
                ranking,
            })
        };
        let answers = |found: &Retrieval| {
            found.passages.iter().position(|passage| asked.answers.iter().any(|place| place.is_in(passage)))
        };
        let found = search(DEPTH)?;
        let in_prompt = search(shown)?;
        let shown = answers(&in_prompt).is_some();
        Ok(Judged {
            id: asked.id.clone(),
            language: Language::detect(&asked.question),
            answerable: !asked.answers.is_empty(),
            rank: answers(&found).map(|at| at + 1),
            shown,
            sentence: sentence(snapshot, asked, &in_prompt, choice)?,
            best: in_prompt.best,
        })
    };
    questions.iter().map(judge).collect()
}

/// Whether the sentence of the passages in a prompt that is preferred before a model is asked is, or holds, what answers; `None` where no
/// quote tells.
fn sentence(
    snapshot: &Snapshot,
    asked: &AskedQuestion,
    found: &Retrieval,
    choice: QuoteChoice,
) -> Result<Option<bool>, RetrieveError> {
    let quotes: Vec<&Place> =
        asked.answers.iter().filter(|place| matches!(place, Place::Quote(..))).collect();
    if quotes.is_empty() || found.vector.is_none() {
        return Ok(None);
    }
    let possible = snapshot.signs(&asked.question, found.vector.as_deref(), &found.passages)?;
    let preference = |signs: &Signs| choice.preference(*signs);
    let Some((nearest, _)) =
        possible.units.into_iter().max_by(|a, b| preference(&a.1).total_cmp(&preference(&b.1)))
    else {
        return Ok(Some(false));
    };
    let Some(passage) = found.passages.get(nearest.n - 1) else { return Ok(Some(false)) };
    let holds = |place: &&Place| match place {
        Place::Quote(_, _, quote) => {
            place.is_in(passage) && quote::units_around(&passage.text, quote).contains(&nearest.text)
        }
        Place::Section(..) => false,
    };
    Ok(Some(quotes.iter().any(holds)))
}

/// How good the search is, over questions that a guideline answers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Found {
    /// The share whose first passage answers.
    pub recall_1: Mean,
    /// The share of which a passage answers that a prompt shows.
    pub shown: Mean,
    /// The share of which one of [`DEPTH`] passages answers.
    pub recall_5: Mean,
    /// The share whose preferred sentence in a prompt answers, over those of which a quote tells what does.
    pub sentence: Option<Mean>,
}

impl Found {
    /// `None` without such questions.
    #[must_use]
    pub fn of(judged: &[Judged]) -> Option<Self> {
        let share = |holds: &dyn Fn(&Judged) -> bool| -> Vec<f64> {
            judged.iter().filter(|j| j.answerable).map(|j| f64::from(u8::from(holds(j)))).collect()
        };
        let within = |depth: usize| share(&|j: &Judged| j.rank.is_some_and(|rank| rank <= depth));
        let first = within(1);
        let told = judged.iter().filter(|j| j.answerable).filter_map(|j| j.sentence);
        let sentences: Vec<f64> = told.map(|holds| f64::from(u8::from(holds))).collect();
        (!first.is_empty()).then(|| Self {
            recall_1: Mean::of(&first),
            shown: Mean::of(&share(&|j| j.shown)),
            recall_5: Mean::of(&within(DEPTH)),
            sentence: (!sentences.is_empty()).then(|| Mean::of(&sentences)),
        })
    }
}

/// What a gate makes of the questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gated {
    /// The coverage it asks for where there are no vectors.
    pub min_coverage: f32,
    /// The support it asks for where there are.
    pub min_support: f32,
    /// Of the questions that a guideline answers, the share that is answered.
    pub recall: f64,
    /// Of the questions that are answered, the share that a guideline answers.
    pub precision: f64,
    /// Of the questions that no guideline answers, the share that gets no answer.
    pub stopped: f64,
}

impl Gated {
    /// Counts.
    #[must_use]
    pub fn of(judged: &[Judged], gate: Gate) -> Self {
        let count = |answerable: bool| judged.iter().filter(|j| j.answerable == answerable).count() as f64;
        let passed = |answerable: bool| {
            judged.iter().filter(|j| j.answerable == answerable && j.passes(gate)).count() as f64
        };
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 1.0 };
        Self {
            min_coverage: gate.min_coverage,
            min_support: gate.min_support,
            recall: share(passed(true), count(true)),
            precision: share(passed(true), passed(true) + passed(false)),
            stopped: 1.0 - share(passed(false), count(false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_worked_out_by_hand() {
        let judged = |answerable, rank, coverage, similarity| Judged {
            id: String::new(),
            language: Language::En,
            answerable,
            rank,
            shown: rank == Some(1),
            sentence: rank.map(|rank| rank == 3),
            best: Some((coverage, similarity)),
        };
        let all = [
            judged(true, Some(1), 0.9, None),
            judged(true, Some(3), 0.1, Some(0.9)),
            judged(true, None, 0.1, Some(0.1)),
            judged(false, None, 0.5, None),
            judged(false, None, 0.2, Some(0.2)),
        ];
        let found = Found::of(&all).unwrap();
        assert!(
            (found.recall_1.mean - 1.0 / 3.0).abs() < 1e-9 && (found.recall_5.mean - 2.0 / 3.0).abs() < 1e-9
        );
        assert!((found.shown.mean - 1.0 / 3.0).abs() < 1e-9);
        assert!((found.sentence.unwrap().mean - 0.5).abs() < 1e-9);
        let gated = Gated::of(&all, Gate { min_coverage: 0.45, min_support: 0.9 });
        assert!((gated.recall - 2.0 / 3.0).abs() < 1e-9 && (gated.precision - 2.0 / 3.0).abs() < 1e-9);
        assert!((gated.stopped - 0.5).abs() < 1e-9);
        assert!(Found::of(&all[3..]).is_none());
    }

    #[test]
    fn a_line_says_where_the_answer_stands() {
        let read = |line: &str| serde_json::from_str::<AskedQuestion>(line).map(|asked| asked.answers);
        let own = r#"{"question":"a","guideline":"g","section":"s"}"#;
        assert_eq!(read(own).unwrap(), [Place::Section("g".into(), "s".into())]);
        assert!(read(r#"{"question":"a"}"#).unwrap().is_empty());
        let suite = r#"{"id":"1","language":"en","question":"a","facts":["5 mg"],"oracle":[{"guideline":"g","edition":"2","quote":"5 mg"}]}"#;
        assert_eq!(read(suite).unwrap(), [Place::Quote("g".into(), "2".into(), "5 mg".into())]);
        let error = read(r#"{"question":"a","guidline":"g"}"#).unwrap_err().to_string();
        assert!(error.contains("guidline"), "{error}");
        let passage = |edition: &str| Passage {
            guideline: "g".into(),
            edition: edition.into(),
            text: "Give 5 mg.".into(),
            ..Passage::default()
        };
        let places = read(suite).unwrap();
        assert!(places[0].is_in(&passage("2")) && !places[0].is_in(&passage("1")));
    }

    #[test]
    fn a_line_that_is_no_question_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        std::fs::write(&path, "{\"question\":\"a\"}\n\n{\"query\":\"b\"}\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("q.jsonl:3") && error.contains("query"), "{error}");
    }
}
