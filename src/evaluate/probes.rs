//! Probes: short requests that the base and an adapter both answer, and that a check of their own judges. They tell whether an adapter
//! still follows instructions, copies, cites what answers, says where nothing does, and refuses what must be refused.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::answers::{Answer, Held, System};
use super::criteria::{Check, Criteria, Criterion, Said};
use super::rates::{Difference, Rate};
use crate::dataset::general::DAY;
use crate::files::{self, FileError};
use crate::language::Language;
use crate::model::template::{Role, Turn};
use crate::prompt::{Wording, WordingError};
use crate::retrieve::Passage;

/// Decides the resamples of every difference.
const SEED: u64 = 1;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something plain to do, in a form that was asked for.
    Instruction,
    /// Something to be given back letter by letter.
    Copy,
    /// A question over passages of which one answers.
    Citation,
    /// A question over passages that do not answer it.
    Abstention,
    /// Something that must be refused.
    Refusal,
    /// Something that looks like it and must not be.
    Safe,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Instruction, Self::Copy, Self::Citation, Self::Abstention, Self::Refusal, Self::Safe];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Instruction => "instruction",
            Self::Copy => "copy",
            Self::Citation => "citation",
            Self::Abstention => "abstention",
            Self::Refusal => "refusal",
            Self::Safe => "safe",
        }
    }
}

/// A probe.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its name.
    pub id: String,
    /// Its language.
    pub language: Language,
    /// What it is for.
    pub kind: Kind,
    /// The request.
    pub question: String,
    /// What is shown with it, as in `rag` and `hybrid`; none for a request alone.
    #[serde(default)]
    pub passages: Vec<ProbePassage>,
    /// The numbers of those that answer, from 1.
    #[serde(default)]
    pub oracle: Vec<usize>,
    /// What the answer must be like.
    pub check: Check,
}

/// A passage of a probe.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbePassage {
    /// Its title.
    pub title: String,
    /// Its edition.
    #[serde(default)]
    pub edition: String,
    /// What it says.
    pub text: String,
}

impl Probe {
    /// What makes no sense in it.
    fn problem(&self) -> Option<String> {
        let reads = matches!(self.kind, Kind::Citation | Kind::Abstention);
        let among = |n: &usize| (1..=self.passages.len()).contains(n);
        if reads == self.passages.is_empty() {
            return Some("citation and abstention need passages, and the other kinds have none".into());
        }
        if !self.oracle.iter().all(among) {
            return Some(format!("oracle must number passages, from 1 to {}", self.passages.len()));
        }
        if (self.kind == Kind::Citation) == self.oracle.is_empty() {
            return Some(
                "citation needs the numbers of the passages that answer in `oracle`, and nothing else does"
                    .into(),
            );
        }
        Criterion::plain(&self.id, self.check.clone()).problem()
    }
}

/// Why probes were refused.
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is no probe.
    #[error(
        "{place}: {problem}; write id, language, kind (instruction, copy, citation, abstention, refusal or safe), question, check and, for citation and abstention, passages and oracle"
    )]
    Line {
        /// file:line.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// The operator's instructions are no template.
    #[error(transparent)]
    Wording(#[from] WordingError),
}

/// Reads probes, one a line.
///
/// # Errors
/// When the file cannot be read, or a line is no probe.
pub fn read(path: &Path) -> Result<Vec<Probe>, ProbesError> {
    let mut probes: Vec<Probe> = Vec::new();
    let lines = files::json_lines::<Probe>(path, &files::text(path)?).map_err(|error| match error {
        FileError::Line { place, problem } => ProbesError::Line { place, problem },
        other => other.into(),
    })?;
    for (place, probe) in lines {
        let fault = |problem| ProbesError::Line { place: place.clone(), problem };
        if probes.iter().any(|other| other.id == probe.id) {
            return Err(fault(format!("the id `{}` stands there twice", probe.id)));
        }
        if let Some(problem) = probe.problem() {
            return Err(fault(problem));
        }
        probes.push(probe);
    }
    Ok(probes)
}

/// The probes as examples to answer.
///
/// # Errors
/// When the operator's instructions are no template.
pub fn held(probes: &[Probe], wording: &Wording) -> Result<Vec<Held>, ProbesError> {
    let one = |probe: &Probe| {
        let Probe { language, question, .. } = probe;
        let passages: Vec<Passage> =
            probe.passages.iter().zip(1..).map(|(own, n)| own.shown(n, *language)).collect();
        let (instructions, asked) = match passages.is_empty() {
            true => (wording.plain(*language, DAY)?, question.clone()),
            false => (
                wording.grounded(*language, &passages, question, DAY)?,
                wording.question(*language, question, DAY)?,
            ),
        };
        Ok(Held {
            id: probe.id.clone(),
            language: *language,
            turns: vec![
                Turn { role: Role::System, content: instructions },
                Turn { role: Role::User, content: asked },
            ],
            reference: String::new(),
            passages: passages.len(),
            oracle: (!passages.is_empty()).then(|| probe.oracle.clone()),
            question: (!passages.is_empty()).then(|| question.clone()),
            facts: Vec::new(),
            rejected: None,
        })
    };
    probes.iter().map(one).collect()
}

impl ProbePassage {
    fn shown(&self, n: usize, language: Language) -> Passage {
        let Self { title, edition, text } = self.clone();
        Passage { n, title, edition, text, language, ..Passage::default() }
    }
}

/// No criteria: each probe has its own check.
#[must_use]
pub fn criteria() -> Criteria {
    Criteria { objective: "Nothing is lost.".into(), goal: None, criterion: Vec::new() }
}

/// How often the base and an adapter passed probes of a kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeFigure {
    /// The kind.
    pub kind: Kind,
    /// In which language; `None` for all.
    pub language: Option<Language>,
    /// The base.
    pub base: Rate,
    /// The adapter.
    pub adapter: Rate,
    /// The adapter's rate minus the base's.
    pub difference: Difference,
}

/// Whether an answer passes its probe.
#[must_use]
pub fn passed(probe: &Probe, answer: &Answer) -> bool {
    let said = Said {
        language: probe.language,
        given: &probe.question,
        reference: "",
        passages: probe.passages.len(),
        oracle: (!probe.passages.is_empty()).then_some(probe.oracle.as_slice()),
        facts: &[],
        answer: &answer.answer,
    };
    probe.check.holds(&said) == Some(true)
}

/// Counts the answers of two systems, the base first.
#[must_use]
pub fn figures(probes: &[Probe], systems: &[System; 2], answers: &[Answer]) -> Vec<ProbeFigure> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        for language in [None, Some(Language::En), Some(Language::Ja)] {
            let (mut base, mut adapter) = (Vec::new(), Vec::new());
            for (probe, answers) in probes.iter().zip(answers.chunks_exact(systems.len())) {
                if probe.kind == kind && language.is_none_or(|l| l == probe.language) {
                    base.push(passed(probe, &answers[0]));
                    adapter.push(passed(probe, &answers[1]));
                }
            }
            let Some(difference) = Difference::between(&base, &adapter, SEED) else { continue };
            all.push(ProbeFigure {
                kind,
                language,
                base: Rate::of(&base),
                adapter: Rate::of(&adapter),
                difference,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_that_are_no_probes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            super::read(&path).map_err(|error| error.to_string())
        };
        let read_of = |oracle: &[usize]| {
            format!(
                r#"{{"id":"b","language":"en","kind":"citation","question":"q","check":{{"check":"cites-oracle"}},
                "passages":[{{"title":"t","text":"x"}}],"oracle":{oracle:?}}}"#
            )
            .replace('\n', "")
        };
        assert_eq!(read(&read_of(&[1])).unwrap()[0].passages.len(), 1);
        let good = r#"{"id":"a","language":"en","kind":"safe","question":"q","check":{"check":"asks"}}"#;
        assert_eq!(read(good).unwrap().len(), 1);
        let twice = format!("{good}\n\n{good}");
        let bad =
            good.replace("{\"check\":\"asks\"}", "{\"check\":\"matches\",\"patterns\":{\"en\":[\"(\"]}}");
        for (text, part) in [
            (twice.as_str(), "p.jsonl:3: the id `a`"),
            ("{}", "p.jsonl:1: missing"),
            (&bad, "unclosed group"),
            (&good.replace("safe", "citation"), "need passages"),
            (&good.replace("\"q\"", "\"q\",\"oracle\":[1]"), "from 1 to 0"),
            (&read_of(&[]), "in `oracle`"),
            (&read_of(&[3]), "from 1 to 1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
