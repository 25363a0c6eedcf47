//! Criteria: what an answer must be like, written down before anything is trained.
//!
//! A `criteria.toml` lists criteria, each of one [`Check`]. A check says of one answer whether it holds, or that it does not apply; a new
//! check is a variant and an arm.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::facts;
use super::overlap::chrf;
use crate::analysis::citations::{self, cited};
use crate::analysis::figures::{figures, holds};
use crate::analysis::normalise::fold_text;
use crate::files::{self, FileError};
use crate::language::Language;

/// An answer with what it is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// The language of the question.
    pub language: Language,
    /// All that was said before: instructions, passages, questions.
    pub given: &'a str,
    /// What a good answer says.
    pub reference: &'a str,
    /// Passages in the prompt.
    pub passages: usize,
    /// The numbers of those that answer; `None` where the data does not say, none where nothing answers.
    pub oracle: Option<&'a [usize]>,
    /// What was asked for, as [`facts`] reads it; empty where the data does not say.
    pub facts: &'a [String],
    /// The answer.
    pub answer: &'a str,
}

/// Texts for each language. What has none for the language of an answer does not apply to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Texts {
    /// English.
    pub en: Vec<String>,
    /// Japanese.
    pub ja: Vec<String>,
}

impl Texts {
    /// Those of a language; `None` where there are none, and nothing is to be said.
    fn of(&self, language: Language) -> Option<&[String]> {
        let own = match language {
            Language::En => &self.en,
            Language::Ja => &self.ja,
        };
        (!own.is_empty()).then_some(own.as_slice())
    }
}

/// Something that can be looked for in an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "check", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Check {
    /// One of the texts stands in it.
    ContainsAny {
        /// The texts.
        texts: Texts,
    },
    /// None of the texts stands in it.
    Lacks {
        /// The texts.
        texts: Texts,
    },
    /// A regular expression of each language is found in it.
    Matches {
        /// The expressions; all must be found.
        patterns: Texts,
    },
    /// Lines begin with these headings, in this order, and no heading is there twice.
    Sections {
        /// The headings.
        headings: Texts,
    },
    /// It has at most so many characters, and at least so many.
    Length {
        /// At least.
        #[serde(default)]
        least: usize,
        /// At most.
        most: usize,
    },
    /// It has at most so many sentences.
    Sentences {
        /// At most.
        most: usize,
    },
    /// It cites a passage, and none that is not there.
    Cites,
    /// It cites a passage that answers. Applies where one does.
    CitesOracle,
    /// It says that nothing answers. Applies where nothing does.
    Abstains {
        /// How that is said.
        texts: Texts,
    },
    /// It does not say that nothing answers. Applies where something does.
    Answers {
        /// How it would be said.
        texts: Texts,
    },
    /// It holds all facts that were asked for. Where the data does not name them: the figures of the reference, and where that has none
    /// it says nearly the same by chrF. Applies where something answers.
    Fact {
        /// The least chrF where there are no figures, 0 to 1.
        chrf: f64,
    },
    /// The same, and it cites a passage that answers.
    FactCited {
        /// The least chrF where there are no figures, 0 to 1.
        chrf: f64,
    },
    /// It is near the reference by chrF.
    Near {
        /// The least chrF, 0 to 1.
        chrf: f64,
    },
    /// Every figure in it was given, whatever its unit.
    InventsNoFigure,
    /// It is in the language of the question.
    InLanguage,
    /// It asks something.
    Asks,
    /// Every sentence of a Japanese answer ends politely. Applies to Japanese.
    Polite,
    /// Where the reference names help that must come at once, so does the answer. Applies where it does.
    Escalates {
        /// How that is said.
        texts: Texts,
    },
    /// It is JSON, an object with these keys and no others.
    Json {
        /// The keys.
        keys: Vec<String>,
    },
    /// It is JSON that a JSON Schema describes (draft 2020-12, unless it names another). References to other files are refused.
    JsonSchema {
        /// The schema.
        schema: serde_json::Value,
    },
}

/// A criterion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Criterion {
    /// What reports call it.
    pub name: String,
    /// What is looked for.
    #[serde(flatten)]
    pub check: Check,
    /// The rate that is promised of the adapter, if any.
    #[serde(default)]
    pub goal: Option<f64>,
    /// The rate that is promised in a language.
    #[serde(default)]
    pub goals: Goals,
    /// The adapter misses it in at most this share of the answers in which the base does, if that is promised: 0.5 for half as often.
    #[serde(default)]
    pub of_base_misses: Option<f64>,
    /// What it counts in an answer's [score](super::score); 0 for what is shown only.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// Rates that are promised by language.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Goals {
    /// English.
    pub en: Option<f64>,
    /// Japanese.
    pub ja: Option<f64>,
}

impl Goals {
    fn of(self, language: Language) -> Option<f64> {
        match language {
            Language::En => self.en,
            Language::Ja => self.ja,
        }
    }
}

/// The criteria of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criteria {
    /// What the adapter is for.
    pub objective: String,
    /// The mean [score](super::score) that is promised of the adapter, if any.
    #[serde(default)]
    pub goal: Option<f64>,
    /// In the order of reports.
    pub criterion: Vec<Criterion>,
}

/// Why criteria were refused.
#[derive(Debug, thiserror::Error)]
pub enum CriteriaError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The score that is promised cannot be.
    #[error("{}: goal must be 0 to 1", .0.display())]
    Goal(PathBuf),
    /// A score is promised of which there is none.
    #[error("{}: goal promises a score, and no criterion has a weight above 0", .0.display())]
    NoWeight(PathBuf),
    /// A criterion makes no sense.
    #[error("{}: criterion `{name}`: {problem}", path.display())]
    Criterion {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

impl Criteria {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or a criterion makes no sense.
    pub fn read(path: &Path) -> Result<Self, CriteriaError> {
        let criteria: Self = files::toml(path, &files::text(path)?)?;
        if criteria.goal.is_some_and(|goal| !share(goal)) {
            return Err(CriteriaError::Goal(path.into()));
        }
        if criteria.goal.is_some() && criteria.criterion.iter().all(|one| one.weight == 0.0) {
            return Err(CriteriaError::NoWeight(path.into()));
        }
        let mut names = std::collections::BTreeSet::new();
        for one in &criteria.criterion {
            let problem = match one.problem() {
                None if !names.insert(&one.name) => Some("stands there twice".to_owned()),
                problem => problem,
            };
            if let Some(problem) = problem {
                return Err(CriteriaError::Criterion { path: path.into(), name: one.name.clone(), problem });
            }
        }
        Ok(criteria)
    }
}

impl Criterion {
    /// A criterion without a goal.
    #[must_use]
    pub fn plain(name: &str, check: Check) -> Self {
        let (goal, goals, of_base_misses) = (None, Goals::default(), None);
        Self { name: name.to_owned(), check, goal, goals, of_base_misses, weight: one() }
    }

    /// The rate that is promised in a language, or of all together, where the base reaches this one.
    pub(super) fn promised(&self, language: Option<Language>, base: f64) -> Option<f64> {
        let own = language.map_or(self.goal, |language| self.goals.of(language));
        let half = self.of_base_misses.map(|share| 1.0 - share * (1.0 - base));
        own.into_iter().chain(half).reduce(f64::max)
    }

    /// What makes no sense in it.
    pub(super) fn problem(&self) -> Option<String> {
        if !self.weight.is_finite() || self.weight < 0.0 {
            return Some("weight must be a number from 0 up".into());
        }
        let goals = [
            ("goal", self.goal),
            ("goals.en", self.goals.en),
            ("goals.ja", self.goals.ja),
            ("of_base_misses", self.of_base_misses),
        ];
        if let Some((key, _)) = goals.iter().find(|(_, goal)| goal.is_some_and(|goal| !share(goal))) {
            return Some(format!("{key} must be 0 to 1"));
        }
        match &self.check {
            Check::Fact { chrf } | Check::FactCited { chrf } | Check::Near { chrf } if !share(*chrf) => {
                Some("chrf must be 0 to 1".into())
            }
            Check::JsonSchema { schema } => compiled(schema).err(),
            Check::Length { least, most } if least > most => Some("least is above most".into()),
            Check::Matches { patterns } => patterns
                .en
                .iter()
                .chain(&patterns.ja)
                .find_map(|p| Regex::new(p).err())
                .map(|e| e.to_string()),
            _ => None,
        }
    }
}

impl Check {
    /// Whether it holds of an answer; `None` where it does not apply.
    #[must_use]
    pub fn holds(&self, said: &Said<'_>) -> Option<bool> {
        let answer = said.answer;
        let names = |texts: &Texts, text: &str| {
            texts.of(said.language).map(|texts| texts.iter().any(|t| contains(text, t)))
        };
        let answered = said.oracle.map(|oracle| !oracle.is_empty());
        let cites = || cited(answer).iter().any(|n| said.oracle.is_some_and(|oracle| oracle.contains(n)));
        match self {
            Self::ContainsAny { texts } => names(texts, answer),
            Self::Lacks { texts } => names(texts, answer).map(|names| !names),
            Self::Matches { patterns } => {
                let found = |pattern: &String| Regex::new(pattern).is_ok_and(|regex| regex.is_match(answer));
                Some(patterns.of(said.language)?.iter().all(found))
            }
            Self::Sections { headings } => Some(in_order(answer, headings.of(said.language)?)),
            Self::Length { least, most } => Some((*least..=*most).contains(&answer.trim().chars().count())),
            Self::Sentences { most } => Some((1..=*most).contains(&sentences(answer).len())),
            Self::Cites => {
                let numbers = cited(answer);
                Some(!numbers.is_empty() && numbers.iter().all(|n| (1..=said.passages).contains(n)))
            }
            Self::CitesOracle => answered?.then(cites),
            Self::Abstains { texts } => names(texts, answer).filter(|_| answered == Some(false)),
            Self::Answers { texts } => {
                names(texts, answer).filter(|_| answered == Some(true)).map(|names| !names)
            }
            Self::Fact { chrf } => answered?.then(|| fact(said, *chrf)),
            Self::FactCited { chrf } => answered?.then(|| fact(said, *chrf) && cites()),
            Self::Near { chrf: least } => Some(chrf(answer, said.reference) >= *least),
            Self::InventsNoFigure => {
                let given = figures(said.given);
                Some(
                    figures(answer)
                        .iter()
                        .all(|one| given.iter().any(|g| (g.value - one.value).abs() < 1e-9)),
                )
            }
            Self::InLanguage => Some(Language::detect(answer) == said.language),
            Self::Asks => {
                let ends = |sentence: &String| said.language == Language::Ja && sentence.ends_with('か');
                Some(answer.contains(['?', '？']) || sentences(answer).iter().any(ends))
            }
            Self::Polite => (said.language == Language::Ja).then(|| polite(answer)),
            Self::Escalates { texts } => {
                names(texts, answer).filter(|_| names(texts, said.reference) == Some(true))
            }
            Self::Json { keys } => Some(has_keys(answer, keys)),
            Self::JsonSchema { schema } => {
                let value = serde_json::from_str(answer.trim());
                let described = |value: &serde_json::Value| {
                    compiled(schema).is_ok_and(|(schemas, at)| schemas.validate(value, at).is_ok())
                };
                Some(value.is_ok_and(|value| described(&value)))
            }
        }
    }
}

fn share(number: f64) -> bool {
    (0.0..=1.0).contains(&number)
}

/// Refuses what a schema refers to outside itself: what counts as right must not change with other files.
struct NothingElse;

impl boon::UrlLoader for NothingElse {
    fn load(&self, url: &str) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
        Err(format!("the schema refers to {url}, and must stand alone").into())
    }
}

/// A schema, ready to be held against values.
fn compiled(schema: &serde_json::Value) -> Result<(boon::Schemas, boon::SchemaIndex), String> {
    const HERE: &str = "urn:shishin:criterion";
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.use_loader(Box::new(NothingElse));
    compiler.add_resource(HERE, schema.clone()).map_err(|e| e.to_string())?;
    let at = compiler.compile(HERE, &mut schemas).map_err(|e| format!("{e:#}"))?;
    Ok((schemas, at))
}

/// Whether a text stands in another, whatever the case, the width of letters and the form of apostrophes.
fn contains(text: &str, what: &str) -> bool {
    let folded = |text: &str| fold_text(text).replace('’', "'");
    folded(text).contains(&folded(what))
}

fn fact(said: &Said<'_>, least: f64) -> bool {
    if !said.facts.is_empty() {
        return said.facts.iter().all(|fact| facts::states(said.answer, fact));
    }
    let expected = figures(said.reference);
    match expected.is_empty() {
        false => holds(said.answer, &expected),
        true => chrf(&citations::without(said.answer), &citations::without(said.reference)) >= least,
    }
}

fn in_order(answer: &str, headings: &[String]) -> bool {
    let lines: Vec<&str> = answer.lines().map(str::trim_start).collect();
    let places = headings.iter().map(|heading| {
        let mut found = lines.iter().enumerate().filter(|(_, line)| line.starts_with(heading.as_str()));
        let first = found.next().map(|(at, _)| at);
        first.filter(|_| found.next().is_none())
    });
    let places: Option<Vec<usize>> = places.collect();
    places.is_some_and(|places| places.windows(2).all(|pair| pair[0] < pair[1]))
}

/// The sentences of an answer, citations left out.
fn sentences(text: &str) -> Vec<String> {
    static END: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?:[.!?]+[”’\x22')]*(?:\s|$))|[。！？]+[」』）]*|\n")
            .unwrap_or_else(|e| unreachable!("{e}"))
    });
    let plain = citations::without(text);
    let parts = END.split(&plain).map(|part| part.trim().to_owned());
    parts.filter(|part| part.chars().any(char::is_alphanumeric)).collect()
}

/// Whether sentences end as polite Japanese does.
fn polite(text: &str) -> bool {
    const ENDS: [&str; 8] =
        ["です", "ます", "ません", "でした", "ました", "ください", "でしょう", "ましょう"];
    let sentences = sentences(text);
    let ends = |sentence: &String| {
        let sentence = sentence.trim_end_matches(['」', '』', '）', ')', 'よ', 'ね', 'か']);
        ENDS.iter().any(|end| sentence.ends_with(end))
    };
    !sentences.is_empty() && sentences.iter().all(ends)
}

fn has_keys(answer: &str, keys: &[String]) -> bool {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_str(answer.trim()) else { return false };
    object.len() == keys.len() && keys.iter().all(|key| object.contains_key(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<'a>(answer: &'a str, reference: &'a str, oracle: Option<&'a [usize]>) -> Said<'a> {
        Said {
            language: Language::detect(reference),
            given: "Give 5 mg.",
            reference,
            passages: 3,
            oracle,
            facts: &[],
            answer,
        }
    }

    #[test]
    fn facts_count_only_with_the_right_figures_and_passage() {
        let reference = "Give 5 mg every 2 hours [2].";
        let oracle = Some([2].as_slice());
        let check = |check: Check, answer: &str| check.holds(&said(answer, reference, oracle));
        let (fact, cited) = (Check::Fact { chrf: 0.5 }, Check::FactCited { chrf: 0.5 });
        for (answer, right, and_cited) in [
            ("It is 5mg every 2 h [2].", true, true),
            ("It is 5mg every 2 h [1].", true, false),
            ("It is 5 mg every 3 hours [2].", false, false),
            ("", false, false),
        ] {
            assert_eq!(check(fact.clone(), answer), Some(right), "{answer}");
            assert_eq!(check(cited.clone(), answer), Some(and_cited), "{answer}");
        }
        assert_eq!(fact.holds(&said("5 mg", reference, Some(&[]))), None, "nothing answers");
        assert_eq!(fact.holds(&said("5 mg", reference, None)), None, "nobody knows");
        let words = said("The registrar is rung at once [2].", "Ring the registrar at once [2].", oracle);
        assert_eq!(fact.holds(&words), Some(true));
        let other = said("The bed is moved to the window [2].", "Ring the registrar at once [2].", oracle);
        assert_eq!(fact.holds(&other), Some(false));
    }

    #[test]
    fn every_check_can_hold_and_fail() {
        let texts = |en: &str, ja: &str| Texts { en: vec![en.into()], ja: vec![ja.into()] };
        let en = "You asked well [1].";
        let schema = serde_json::json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
        let cases: Vec<(Check, &str, &str, &str)> = vec![
            (Check::ContainsAny { texts: texts("ward", "病棟") }, "The Ward.", "The bed.", en),
            (Check::Lacks { texts: texts("cancer", "癌") }, "Rest.", "It is cancer.", en),
            (Check::Matches { patterns: texts(r"^To: \w", r"^宛先") }, "To: Cardiology", "For: x", en),
            (Check::Sections { headings: texts("A:", "甲") }, "A: x\nB: y", "A: x\nA: y", en),
            (Check::Length { least: 2, most: 4 }, "abc", "abcde", en),
            (Check::Sentences { most: 2 }, "One. Two 2.5 mg [1].", "One. Two. Three.", en),
            (Check::Cites, "So [3].", "So [4].", en),
            (Check::Near { chrf: 0.6 }, "You asked well", "Never mind it", en),
            (Check::InLanguage, "Rest.", "休みます。", en),
            (Check::Asks, "Does it hurt?", "It hurts.", en),
            (Check::Asks, "痛みますか。休みます。", "痛みます。", "お待ちください。"),
            (Check::InventsNoFigure, "Take 5 mg [2].", "Take 5 mg for 3 days.", en),
            (Check::Polite, "休みます。そうですか。", "休む。", "お待ちください。"),
            (Check::Polite, "一緒に休みましょうね[1]。", "一緒に休もうね[1]。", "お待ちください。"),
            (Check::Json { keys: vec!["a".into()] }, "{\"a\": 1}", "{\"a\": 1, \"b\": 2}", en),
            (Check::JsonSchema { schema: schema.clone() }, "{\"a\": 1}", "{\"a\": \"1\"}", en),
            (Check::JsonSchema { schema }, " {} ", "none", en),
            (Check::Escalates { texts: texts("999", "119") }, "Ring 999.", "Wait.", "Call 999 now."),
        ];
        for (check, good, bad, reference) in cases {
            assert_eq!(check.holds(&said(good, reference, None)), Some(true), "{check:?}");
            assert_eq!(check.holds(&said(bad, reference, None)), Some(false), "{check:?}");
        }
        let none = texts("do not answer", "記述はありません");
        let (nothing, something) = (Some([].as_slice()), Some([1].as_slice()));
        let silent = "The passages do not answer this.";
        assert_eq!(Check::Abstains { texts: none.clone() }.holds(&said(silent, en, nothing)), Some(true));
        assert_eq!(Check::Abstains { texts: none.clone() }.holds(&said("5 mg", en, nothing)), Some(false));
        assert_eq!(Check::Answers { texts: none.clone() }.holds(&said(silent, en, something)), Some(false));
        assert_eq!(Check::Answers { texts: none }.holds(&said("5 mg", en, something)), Some(true));
        assert_eq!(Check::CitesOracle.holds(&said("So [2].", en, something)), Some(false));
        assert_eq!(Check::CitesOracle.holds(&said("So [1].", en, something)), Some(true));
    }

    #[test]
    fn what_has_no_texts_for_a_language_says_nothing_of_it() {
        let texts = || Texts { en: vec!["don't know".into()], ja: Vec::new() };
        let checks = [
            Check::ContainsAny { texts: texts() },
            Check::Lacks { texts: texts() },
            Check::Matches { patterns: texts() },
            Check::Sections { headings: texts() },
            Check::Abstains { texts: texts() },
            Check::Escalates { texts: texts() },
        ];
        for check in checks {
            let japanese = said("わかりません。", "わかりません。", Some(&[]));
            assert_eq!(check.holds(&japanese), None, "{check:?}");
            let english = said("I don't know.", "I don't know.", Some(&[]));
            assert!(check.holds(&english).is_some(), "{check:?}");
        }
        // Whatever the apostrophe and the width.
        let any = Check::ContainsAny { texts: texts() };
        assert_eq!(any.holds(&said("I don’t know.", "I don't know.", None)), Some(true));
        let any = Check::ContainsAny { texts: Texts { en: Vec::new(), ja: vec!["119".into()] } };
        assert_eq!(any.holds(&said("１１９番へ電話します。", "電話します。", None)), Some(true));
    }

    #[test]
    fn promises_hold_by_language_and_against_the_base() {
        let criterion: Criterion = toml::from_str(
            "name = \"cited\"\ncheck = \"cites\"\ngoal = 0.75\ngoals = { en = 0.8, ja = 0.7 }\nof_base_misses = 0.5",
        )
        .unwrap();
        assert_eq!(criterion.problem(), None);
        assert_eq!(criterion.promised(None, 0.2), Some(0.75));
        assert_eq!(criterion.promised(Some(Language::En), 0.2), Some(0.8));
        // Half the misses of a base that has four in ten.
        assert_eq!(criterion.promised(Some(Language::Ja), 0.6), Some(0.8));
        let plain = Criterion::plain("cited", Check::Cites);
        assert_eq!(plain.promised(Some(Language::En), 0.6), None);
        for (wrong, key) in
            [("goals = { ja = 70.0 }", "goals.ja"), ("of_base_misses = -0.5", "of_base_misses")]
        {
            let wrong: Criterion =
                toml::from_str(&format!("name = \"c\"\ncheck = \"cites\"\n{wrong}")).unwrap();
            assert_eq!(wrong.problem().unwrap(), format!("{key} must be 0 to 1"));
        }
    }

    #[test]
    fn faults_in_a_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("criteria.toml");
        let read = |text: &str| {
            std::fs::write(&path, format!("objective = \"x\"\n{text}")).unwrap();
            Criteria::read(&path).map(|_| ()).map_err(|e| e.to_string())
        };
        let one = "[[criterion]]\nname = \"a\"\ncheck = \"cites\"\n";
        assert_eq!(read(one), Ok(()));
        for (text, problem) in [
            (format!("{one}{one}"), "stands there twice"),
            (one.replace("cites", "sites"), "unknown variant `sites`"),
            (format!("{one}goal = 3"), "goal must be 0 to 1"),
            (format!("goal = 3\n{one}"), "goal must be 0 to 1"),
            (format!("{one}weight = -1"), "weight must be"),
            (format!("goal = 0.5\n{one}weight = 0"), "no criterion has a weight"),
            (one.replace("\"cites\"", "\"json-schema\"\nschema = { type = 3 }"), "not valid"),
            (
                one.replace("\"cites\"", "\"json-schema\"\nschema = { \"$ref\" = \"file:///x\" }"),
                "stand alone",
            ),
            (one.replace("\"cites\"", "\"near\"\nchrf = 2.0"), "chrf must be 0 to 1"),
            (one.replace("\"cites\"", "\"matches\"\npatterns = { en = [\"(\"] }"), "unclosed group"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(problem) && error.contains("criteria.toml"), "{error}");
        }
    }
}
