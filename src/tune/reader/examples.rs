//! What a reader learns from: questions with the sentences of their passages, and which of them are quoted, if any.

use std::path::PathBuf;

use serde_json::Value;

use crate::files::{self, FileError};
use crate::model::embed::{EmbedError, Model, TextKind};
use crate::prompt::InPrompt;
use crate::quote::{self, Bearing, Candidate};
use crate::retrieve::sentences::candidates;
use crate::store::vectors::embedded_text;
use crate::tune::examples::Source;

/// A question over passages.
#[derive(Debug, Clone, PartialEq)]
pub struct ReaderExample {
    /// File and line, for messages.
    pub place: String,
    /// The question's tokens, marks at both ends included.
    pub question: Vec<u32>,
    /// What may be quoted.
    pub sentences: Vec<Sentence>,
}

impl ReaderExample {
    /// Whether some sentence answers.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.sentences.iter().any(|sentence| sentence.answers)
    }

    /// Tokens that are read for it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.question.len() + self.sentences.iter().map(|sentence| sentence.tokens.len()).sum::<usize>()
    }
}

/// A sentence that may be quoted.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    /// Its tokens behind those of its headings.
    pub tokens: Vec<u32>,
    /// How much likelier it answers by what it says and where it stands: see [`Bearing::on`].
    pub bearing: f32,
    /// Whether the example quotes it.
    pub answers: bool,
}

/// Why there is nothing to learn from.
#[derive(Debug, thiserror::Error)]
pub enum ReaderExamplesError {
    /// A file cannot be read, or a line is no JSON.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not what `shishin dataset ground --quotes` writes.
    #[error("{place}: {why}; readers learn from what `shishin dataset ground --quotes` writes")]
    Line {
        /// File and line.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A text cannot be cut into tokens.
    #[error(transparent)]
    Tokens(#[from] EmbedError),
    /// No line has anything to learn.
    #[error(
        "{} {} no example that quotes its passages; readers learn from what `shishin dataset ground --quotes` writes",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        if .0.len() == 1 { "has" } else { "have" }
    )]
    None(Vec<PathBuf>),
}

/// Examples of some files, and what was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReaderExamples {
    /// Those with something to learn.
    pub examples: Vec<ReaderExample>,
    /// The files.
    pub sources: Vec<Source>,
    /// Lines without passages, or a question about them.
    pub without: usize,
}

impl ReaderExamples {
    /// Reads files of chat examples that quote their passages.
    ///
    /// # Errors
    /// When a file cannot be read, a line is no example, or there is nothing to learn.
    pub(crate) fn read(paths: &[PathBuf], model: &Model) -> Result<Self, ReaderExamplesError> {
        let mut all = Self { examples: Vec::new(), sources: Vec::new(), without: 0 };
        for path in paths {
            let text = files::text(path)?;
            all.sources.push(Source::of(path, text.as_bytes()));
            for (place, row) in files::json_lines(path, &text)? {
                match example(place, &row, model)? {
                    Some(example) => all.examples.push(example),
                    None => all.without += 1,
                }
            }
        }
        if !all.examples.iter().any(ReaderExample::is_answered) && !paths.is_empty() {
            return Err(ReaderExamplesError::None(paths.to_vec()));
        }
        Ok(all)
    }
}

/// What may be quoted of a passage, without vectors: a reader makes its own.
type NoVectors = Vec<(String, Vec<f32>)>;

/// The example on a line; `None` where it has no passages, or no question about them.
fn example(place: String, row: &Value, model: &Model) -> Result<Option<ReaderExample>, ReaderExamplesError> {
    let wrong = |why: &str| ReaderExamplesError::Line { place: place.clone(), why: why.to_owned() };
    let turns = row["messages"].as_array().filter(|turns| !turns.is_empty());
    let turns = turns.ok_or_else(|| wrong("it has no `messages`"))?;
    let content = |turn: Option<&'_ Value>| turn.and_then(|turn| turn["content"].as_str().map(str::to_owned));
    let prompt = content(turns.first()).ok_or_else(|| wrong("its first message has no text"))?;
    let answer = content(turns.last()).ok_or_else(|| wrong("its last message has no text"))?;
    let shown: Vec<InPrompt<'_>> = InPrompt::of(&prompt).collect();
    let (quotes, _) = quote::split(&answer, shown.iter().map(|one| one.text));
    let Some(question) = row["meta"]["question"].as_str() else { return Ok(None) };
    let quotable: Vec<(String, NoVectors)> = shown
        .iter()
        .map(|one| {
            let sentences = quote::possible([one.text]).into_iter().map(|quote| (quote.text, Vec::new()));
            (embedded_text(one.title, one.section, ""), sentences.collect())
        })
        .collect();
    let all = candidates(None, quotable.iter().map(|(headings, sentences)| (&headings[..], &sentences[..])));
    let said: Vec<Candidate<'_>> = all.iter().map(|(.., candidate)| *candidate).collect();
    let mut sentences = Vec::with_capacity(said.len());
    for (candidate, bearing) in said.iter().zip(Bearing::of(question).on(&said)) {
        let tokens = model.tokens(TextKind::Passage, &candidate.embedded())?;
        let answers = quotes.iter().any(|quote| quote.text == candidate.text);
        sentences.push(Sentence { tokens, bearing, answers });
    }
    if quotes.is_empty() && !row["meta"]["oracle"].as_array().is_none_or(Vec::is_empty) {
        return Err(wrong("its passages answer, and its answer quotes none of them"));
    }
    let question = model.tokens(TextKind::Query, question)?;
    let example = ReaderExample { place, question, sentences };
    // What is quoted of no passage here would be taken for nothing that answers.
    let whole = !example.sentences.is_empty() && example.is_answered() != quotes.is_empty();
    Ok(whole.then_some(example))
}
