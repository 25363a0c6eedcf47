//! How often the sentence that is preferred is one that answers: of chat examples that quote their passages, by the cosine of vectors alone,
//! with what sentences say, and with a reader.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::in_prompt::PromptSigns;
use crate::files::{self, FileError};
use crate::model::embed::EmbedError;
use crate::prompt::InPrompt;
use crate::quote::{self, NEARNESS, QuoteChoice, Signed};
use crate::retrieve::Meaning;

/// A question over passages that answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    prompt: String,
    question: String,
    quotes: Vec<String>,
}

/// How many were found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Of so many questions.
    pub of: usize,
    /// By the cosine of vectors.
    pub cosine: usize,
    /// With what sentences say.
    pub signs: usize,
    /// With the reader's nearness in place of the cosine; `None` without one.
    pub reader: Option<usize>,
}

/// Why nothing could be counted.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    /// A file cannot be read, or a line is no JSON.
    #[error(transparent)]
    File(#[from] FileError),
    /// It has nothing to judge by.
    #[error("{} has no example that quotes its passages; `shishin dataset ground --quotes` writes such", .0.display())]
    None(PathBuf),
    /// A text cannot be embedded.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// Someone asked to stop.
    #[error("stopped")]
    Stopped,
}

/// The examples of a file that quote their passages.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn read(path: &Path) -> Result<Vec<Asked>, ReadingError> {
    let rows = files::json_lines::<Value>(path, &files::text(path)?)?;
    let all: Vec<Asked> = rows.iter().filter_map(|(_, row)| asked(row)).collect();
    if all.is_empty() { Err(ReadingError::None(path.to_owned())) } else { Ok(all) }
}

fn asked(row: &Value) -> Option<Asked> {
    let turns = row["messages"].as_array()?;
    let prompt = turns.first()?["content"].as_str()?.to_owned();
    let (quotes, _) =
        quote::split(turns.last()?["content"].as_str()?, InPrompt::of(&prompt).map(|one| one.text));
    let question = row["meta"]["question"].as_str()?.to_owned();
    let quotes: Vec<String> = quotes.into_iter().map(|quote| quote.text).collect();
    (!quotes.is_empty()).then_some(Asked { prompt, question, quotes })
}

impl Reading {
    /// Counts over some questions; `progress` is told of each.
    ///
    /// # Errors
    /// When a text cannot be embedded, or someone asked to stop.
    pub fn of(
        asked: &[Asked],
        without: &Meaning,
        with: Option<&Meaning>,
        stop: &dyn Fn() -> bool,
        progress: &mut dyn FnMut(),
    ) -> Result<Self, ReadingError> {
        let mut all = Self { reader: with.map(|_| 0), ..Self::default() };
        let mut plain = PromptSigns::new(Some(without));
        let mut read = PromptSigns::new(with);
        for one in asked {
            if stop() {
                return Err(ReadingError::Stopped);
            }
            let passages: Vec<InPrompt<'_>> = InPrompt::of(&one.prompt).collect();
            let signs = plain.of(&passages, &one.question)?;
            let choice = |bearing| QuoteChoice { nearness: NEARNESS, bearing, ..QuoteChoice::default() };
            all.of += 1;
            all.cosine += usize::from(finds(&signs, choice(0.0), &one.quotes));
            all.signs += usize::from(finds(&signs, choice(1.0), &one.quotes));
            if let Some(found) = &mut all.reader {
                let signs = read.of(&passages, &one.question)?;
                *found += usize::from(finds(&signs, choice(1.0), &one.quotes));
            }
            progress();
        }
        Ok(all)
    }

    /// All together.
    #[must_use]
    pub fn sum(all: &[Self]) -> Self {
        let sum = |count: fn(&Self) -> usize| all.iter().map(count).sum();
        let reader = all.iter().map(|one| one.reader).sum::<Option<usize>>();
        Self { of: sum(|r| r.of), cosine: sum(|r| r.cosine), signs: sum(|r| r.signs), reader }
    }
}

/// Whether the sentence that is preferred is quoted.
fn finds(signs: &Signed, choice: QuoteChoice, quotes: &[String]) -> bool {
    let best = signs.units.iter().max_by(|a, b| choice.preference(a.1).total_cmp(&choice.preference(b.1)));
    best.is_some_and(|(quote, _)| quotes.contains(&quote.text))
}
