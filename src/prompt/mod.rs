//! The prompt: instructions, passages and turns, fitted into the model's context.
//!
//! The order is instructions, passages, older turns, newest turn. The texts of `config/prompts` may
//! use the newest question before the passages as well, which the built-in ones do if it is short: a small model that knows what
//! is asked while it reads finds more (ARCHITECTURE.md has the figures). What does not fit is left out in a fixed order:
//! older turns, then passages from the last, then the end of the one passage that is left, at a sentence.
//! The newest turn is never cut.

mod shown;
mod wording;

use jiff::civil::Date;

use crate::analysis::sentences::sentence_ends;
use crate::language::Language;
use crate::model::template::{ChatTemplate, Role, TemplateError, Turn, encode_segments};
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use crate::retrieve::Passage;

pub use shown::InPrompt;
pub use wording::{Wording, WordingError};

/// Why no prompt could be made.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The newest message is too long by itself, or with one passage.
    #[error(
        "the message needs {needed} tokens and {available} are left in the context; shorten it or ask for fewer max_tokens"
    )]
    TooLong {
        /// Tokens that the smallest prompt has.
        needed: usize,
        /// Tokens that there are.
        available: usize,
    },
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A prompt file failed.
    #[error(transparent)]
    Wording(#[from] WordingError),
}

/// What a prompt is made of.
#[derive(Debug)]
pub struct PromptParts<'a> {
    /// The conversation, oldest first, ending with the question; perhaps a system turn in front.
    pub turns: &'a [Turn],
    /// Passages for `rag` and `hybrid`, best first; `None` for the modes without.
    pub passages: Option<Vec<Passage>>,
    /// The language to instruct in.
    pub language: Language,
    /// The day the answer is for.
    pub as_of: Date,
    /// Tokens that the prompt may have.
    pub budget: usize,
}

/// A prompt that fits.
#[derive(Debug)]
pub struct Prompt {
    /// Its token ids.
    pub tokens: Vec<u32>,
    /// The passages that are in it, as they stand in it.
    pub passages: Vec<Passage>,
    /// How many older turns were left out.
    pub dropped_turns: usize,
}

/// Builds prompts for one model.
#[derive(Debug)]
pub struct PromptBuilder<'a> {
    /// The model's vocabulary.
    pub tokenizer: &'a Tokenizer,
    /// The model's turn format.
    pub template: &'a ChatTemplate,
    /// The operator's prompt texts.
    pub wording: &'a Wording,
}

impl PromptBuilder<'_> {
    /// Builds the largest prompt that fits.
    ///
    /// # Errors
    /// When not even the newest turn with one passage fits, or a template fails.
    pub fn build(&self, parts: PromptParts<'_>) -> Result<Prompt, PromptError> {
        let PromptParts { turns, passages, language, as_of, budget } = parts;
        let (system, turns) = match turns.split_first() {
            Some((first, rest)) if first.role == Role::System => (Some(first.content.as_str()), rest),
            _ => (None, turns),
        };
        let mut draft = Draft { builder: self, language, as_of, budget, system, turns, passages };
        // A message that is hopeless by itself is refused before anything is tried with it.
        let newest = draft.turns.last().map_or("", |turn| turn.content.as_str());
        let needed = self.tokenizer.encode_content(newest)?.len();
        if needed > budget {
            return Err(PromptError::TooLong { needed, available: budget });
        }
        draft.drop_hopeless_turns()?;
        let mut tokens = draft.encode()?;
        while tokens.len() > budget && draft.shrink(tokens.len() - budget)? {
            tokens = draft.encode()?;
        }
        if tokens.len() > budget {
            return Err(PromptError::TooLong { needed: tokens.len(), available: budget });
        }
        let kept = draft.turns.len();
        Ok(Prompt { tokens, passages: draft.passages.unwrap_or_default(), dropped_turns: turns.len() - kept })
    }
}

/// A prompt that may still be too long.
struct Draft<'a> {
    builder: &'a PromptBuilder<'a>,
    language: Language,
    as_of: Date,
    budget: usize,
    system: Option<&'a str>,
    turns: &'a [Turn],
    passages: Option<Vec<Passage>>,
}

impl Draft<'_> {
    /// Leaves out the older turns that cannot fit whatever else goes: counted one by one, so that a
    /// long history costs one pass of the tokenizer.
    fn drop_hopeless_turns(&mut self) -> Result<(), PromptError> {
        let mut total = 0;
        for (at, turn) in self.turns.iter().enumerate().rev() {
            total += self.builder.tokenizer.encode_content(&turn.content)?.len();
            if total > self.budget {
                self.turns = &self.turns[at + 1..];
                break;
            }
        }
        self.start_with_user();
        Ok(())
    }

    /// Chat templates want a user's turn first.
    fn start_with_user(&mut self) {
        while self.turns.len() > 1 && self.turns[0].role != Role::User {
            self.turns = &self.turns[1..];
        }
    }

    fn encode(&self) -> Result<Vec<u32>, PromptError> {
        let mut instructions = match &self.passages {
            Some(passages) => {
                let newest = self.turns.last().map_or("", |turn| turn.content.as_str());
                self.builder.wording.grounded(self.language, passages, newest, self.as_of)?
            }
            None => self.builder.wording.plain(self.language, self.as_of)?,
        };
        if let Some(system) = self.system {
            instructions = format!("{}\n\n{}", instructions.trim_end(), system.trim());
        }
        let mut turns = vec![Turn { role: Role::System, content: instructions }];
        turns.extend_from_slice(self.turns);
        if let (Some(_), Some(newest)) = (&self.passages, turns.last_mut()) {
            newest.content = self.builder.wording.question(self.language, &newest.content, self.as_of)?;
        }
        Ok(encode_segments(self.builder.tokenizer, &self.builder.template.segments(&turns)?)?)
    }

    /// Leaves out the next thing; says whether there was one.
    fn shrink(&mut self, excess: usize) -> Result<bool, PromptError> {
        if self.turns.len() > 1 {
            self.turns = &self.turns[1..];
            self.start_with_user();
            return Ok(true);
        }
        match &mut self.passages {
            Some(passages) if passages.len() > 1 => {
                passages.pop();
                Ok(true)
            }
            Some(passages) => match passages.first_mut() {
                Some(passage) => shorten(passage, excess, self.builder.tokenizer),
                None => Ok(false),
            },
            None => Ok(false),
        }
    }
}

/// Cuts a passage at the last sentence end that saves at least `excess` tokens; says whether it could.
fn shorten(passage: &mut Passage, excess: usize, tokenizer: &Tokenizer) -> Result<bool, PromptError> {
    let ends: Vec<usize> =
        sentence_ends(&passage.text).filter(|end| *end > 0 && *end < passage.text.len()).collect();
    let whole = tokenizer.encode_content(&passage.text)?.len();
    // The first cut that saves enough; if none does, the shortest one, and the caller finds out.
    let mut cut = ends.first().copied();
    for end in ends.into_iter().rev() {
        if tokenizer.encode_content(&passage.text[..end])?.len() + excess <= whole {
            cut = Some(end);
            break;
        }
    }
    let Some(cut) = cut else { return Ok(false) };
    let kept = passage.text[..cut].trim_end().len();
    passage.span.end -= passage.text.len() - kept;
    passage.text.truncate(kept);
    Ok(true)
}
