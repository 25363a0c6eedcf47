//! The prompt texts of `config/prompts`: what the model is told, and what is said when nothing was found.

use std::path::{Path, PathBuf};

use jiff::civil::Date;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};

use crate::language::Language;
use crate::retrieve::{NotInEffect, Passage, Span, Why};

/// Why the prompt texts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WordingError {
    /// A file cannot be read.
    #[error("cannot read the prompt {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no valid Jinja, or asks for something that is not there.
    #[error("the prompt `{name}` fails: {reason}")]
    Template {
        /// Its file name.
        name: String,
        /// Why, with the line.
        reason: String,
    },
}

/// Instructions a prompt file may take: far more than one needs, few enough to end at once.
const FUEL: u64 = 100_000;

/// Stands in for a question or a passage when the texts are checked.
const MARK: &str = "⟨sample⟩";

/// Purpose, and the texts built into the program.
const BUILT_IN: [(&str, &str); 10] = [
    ("grounded.en.jinja", include_str!("../../config/prompts/grounded.en.jinja")),
    ("grounded.ja.jinja", include_str!("../../config/prompts/grounded.ja.jinja")),
    ("question.en.jinja", include_str!("../../config/prompts/question.en.jinja")),
    ("question.ja.jinja", include_str!("../../config/prompts/question.ja.jinja")),
    ("plain.en.jinja", include_str!("../../config/prompts/plain.en.jinja")),
    ("plain.ja.jinja", include_str!("../../config/prompts/plain.ja.jinja")),
    ("abstain.en.jinja", include_str!("../../config/prompts/abstain.en.jinja")),
    ("abstain.ja.jinja", include_str!("../../config/prompts/abstain.ja.jinja")),
    ("outdated.en.jinja", include_str!("../../config/prompts/outdated.en.jinja")),
    ("outdated.ja.jinja", include_str!("../../config/prompts/outdated.ja.jinja")),
];

/// The ten prompt texts: instructions with passages and the wrapping of the question that goes with
/// them, instructions without passages, what is said when nothing was found, and what is said of editions that
/// match and are not in effect; each in English and in Japanese.
#[derive(Debug)]
pub struct Wording {
    environment: Environment<'static>,
    sha256: String,
}

impl Wording {
    /// The texts built into the program.
    ///
    /// # Errors
    /// Never in practice; a test renders them all.
    pub fn built_in() -> Result<Self, WordingError> {
        Self::of(BUILT_IN.map(|(name, text)| (name, text.to_owned())))
    }

    /// The texts of a folder, all ten of them.
    ///
    /// # Errors
    /// When a file is missing, unreadable, or does not render.
    pub fn read(folder: &Path) -> Result<Self, WordingError> {
        let mut texts = BUILT_IN.map(|(name, _)| (name, String::new()));
        for (name, text) in &mut texts {
            let path = folder.join(*name);
            *text = std::fs::read_to_string(&path).map_err(|source| WordingError::Read { path, source })?;
        }
        Self::of(texts)
    }

    fn of(texts: [(&'static str, String); BUILT_IN.len()]) -> Result<Self, WordingError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // With it, errors quote the question.
        environment.set_debug(false);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let sha256 = crate::model::hex(&crate::model::digest(texts.iter().map(|(_, text)| text.as_bytes())));
        for (name, text) in texts {
            environment.add_template_owned(name, text).map_err(|e| failed(name, &e))?;
        }
        let wording = Self { environment, sha256 };
        wording.check()?;
        Ok(wording)
    }

    /// SHA-256 of all ten texts.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Renders every text with a sample: one that cannot render, or leaves out what it is for, should
    /// stop the program at its start, not a request.
    fn check(&self) -> Result<(), WordingError> {
        let passage = Passage {
            n: 1,
            guideline: "sample".into(),
            title: "title".into(),
            edition: "1".into(),
            section: "section".into(),
            issuer: "issuer".into(),
            jurisdiction: "everywhere".into(),
            language: Language::En,
            source: "source".into(),
            licence: "licence".into(),
            file: "file".into(),
            span: Span { start: 0, end: MARK.len() },
            score: 1.0,
            coverage: 1.0,
            text: MARK.into(),
            chunk_id: "sample".into(),
            ..Passage::default()
        };
        let holds = |name: &str, text: &str, what: &str| match text.contains(MARK) {
            true => Ok(()),
            false => {
                Err(WordingError::Template { name: name.to_owned(), reason: format!("it leaves out {what}") })
            }
        };
        for language in Language::ALL {
            // With a question and without: a text may leave it out, and either way must render.
            for question in ["question", ""] {
                let grounded =
                    self.grounded(language, std::slice::from_ref(&passage), question, Date::default())?;
                holds(&format!("grounded.{language}.jinja"), &grounded, "the passages' text")?;
            }
            let question = self.question(language, MARK, Date::default())?;
            holds(&format!("question.{language}.jinja"), &question, "the question")?;
            self.plain(language, Date::default())?;
            self.abstain(language, Date::default())?;
            for why in [Why::Replaced, Why::Expired, Why::NotYet] {
                let edition = NotInEffect {
                    guideline: "sample".into(),
                    title: MARK.into(),
                    edition: "1".into(),
                    why,
                    effective_from: Date::default(),
                    effective_to: Some(Date::default()),
                    replaced_by: Some("sample@2".into()),
                    coverage: 1.0,
                    similarity: None,
                };
                let outdated = self.outdated(language, &[edition])?;
                holds(&format!("outdated.{language}.jinja"), &outdated, "the edition's title")?;
            }
        }
        Ok(())
    }

    /// Instructions and passages, perhaps with the question that they were found for.
    ///
    /// # Errors
    /// When the text fails to render.
    pub fn grounded(
        &self,
        language: Language,
        passages: &[Passage],
        question: &str,
        as_of: Date,
    ) -> Result<String, WordingError> {
        self.render(&format!("grounded.{language}.jinja"), passages, question, as_of)
    }

    /// The newest question, wrapped in a reminder of what matters, for the modes with passages.
    ///
    /// # Errors
    /// When the text fails to render.
    pub fn question(&self, language: Language, question: &str, as_of: Date) -> Result<String, WordingError> {
        self.render(&format!("question.{language}.jinja"), &[], question, as_of)
    }

    /// Instructions for the modes without passages.
    ///
    /// # Errors
    /// When the text fails to render.
    pub fn plain(&self, language: Language, as_of: Date) -> Result<String, WordingError> {
        self.render(&format!("plain.{language}.jinja"), &[], "", as_of)
    }

    /// The answer that is given when nothing relevant was found.
    ///
    /// # Errors
    /// When the text fails to render.
    pub fn abstain(&self, language: Language, as_of: Date) -> Result<String, WordingError> {
        Ok(self.render(&format!("abstain.{language}.jinja"), &[], "", as_of)?.trim().to_owned())
    }

    /// What is said of editions that match the question and are not in effect.
    ///
    /// # Errors
    /// When the text fails to render.
    pub fn outdated(&self, language: Language, editions: &[NotInEffect]) -> Result<String, WordingError> {
        let name = format!("outdated.{language}.jinja");
        let template = self.environment.get_template(&name).map_err(|e| failed(&name, &e))?;
        let editions = Value::from(Serde(editions));
        let text = template.render(context! { editions }).map_err(|e| failed(&name, &e))?;
        Ok(text.trim().to_owned())
    }

    fn render(
        &self,
        name: &str,
        passages: &[Passage],
        question: &str,
        as_of: Date,
    ) -> Result<String, WordingError> {
        let passages = Value::from(Serde(passages));
        self.environment
            .get_template(name)
            .and_then(|t| t.render(context! { passages, question, as_of => as_of.to_string() }))
            .map_err(|e| failed(name, &e))
    }
}

fn failed(name: &str, error: &minijinja::Error) -> WordingError {
    WordingError::Template { name: name.to_owned(), reason: format!("{error:#}") }
}
