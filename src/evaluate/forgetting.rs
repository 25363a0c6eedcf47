//! What an adapter makes of text, against its base: fine-tuning for one thing can cost others (catastrophic forgetting).
//!
//! [`crate::dataset::general`] says what is put before general text. What the base itself has answered to tasks is weighed behind those
//! tasks. Bits per byte do not depend on how a vocabulary cuts text; the divergence says how far the distributions moved apart even where the
//! right token stays as likely.

use serde::Serialize;

use super::answers::{Answer, Held};
use super::distributions::{divergence, most_likely, predictions};
use crate::dataset::general::Text;
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::decoder::DecodeError;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::template::{TemplateError, Turn, encode_segments};
use crate::model::tokenizer::TokenizerError;
use crate::prompt::{Wording, WordingError};

/// Tokens of a text that are read; what is longer is cut off, for the base and the adapter alike.
const MOST: usize = 512;

/// Why texts could not be weighed.
#[derive(Debug, thiserror::Error)]
pub enum ForgettingError {
    /// The prompt cannot be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model did not run, or it was asked to stop.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// A text, and what is said before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// Its language.
    pub language: Language,
    /// The turns before it.
    pub before: Vec<Turn>,
    /// The text, where an answer stands.
    pub text: String,
}

impl Placed {
    /// General texts.
    ///
    /// # Errors
    /// When the operator's instructions are no template.
    pub fn general(texts: &[Text], wording: &Wording) -> Result<Vec<Self>, WordingError> {
        let one = |Text { language, text }: &Text, before: [Turn; 2]| Self {
            language: *language,
            before: before.into(),
            text: text.clone(),
        };
        texts.iter().map(|text| Ok(one(text, text.before(wording)?))).collect()
    }

    /// What the first of so many systems, the base, has answered; where it said something.
    #[must_use]
    pub fn answered(held: &[Held], answers: &[Answer], systems: usize) -> Vec<Self> {
        let first = answers.iter().step_by(systems.max(1));
        let said = held.iter().zip(first).filter(|(_, answer)| !answer.answer.is_empty());
        said.map(|(one, answer)| Self {
            language: one.language,
            before: one.turns.clone(),
            text: answer.answer.clone(),
        })
        .collect()
    }
}

/// How the base and an adapter predict texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Of which language; `None` for all.
    pub language: Option<Language>,
    /// How many texts.
    pub texts: usize,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Bits per byte by the base.
    pub base: f64,
    /// And by the adapter.
    pub adapter: f64,
    /// By what share the adapter needs more bits.
    pub change: f64,
    /// The mean of KL(base ‖ adapter), in nats a token.
    pub kl: f64,
    /// Share of the tokens where both would say the same.
    pub same_choice: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    texts: usize,
    tokens: usize,
    bytes: usize,
    base: f64,
    adapter: f64,
    kl: f64,
    same: usize,
}

impl Sums {
    fn join(mut self, other: &Self) -> Self {
        self.texts += other.texts;
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.base += other.base;
        self.adapter += other.adapter;
        self.kl += other.kl;
        self.same += other.same;
        self
    }

    fn figures(&self, language: Option<Language>) -> Figures {
        let bits = |nats: f64| nats / std::f64::consts::LN_2 / self.bytes.max(1) as f64;
        let tokens = self.tokens.max(1) as f64;
        Figures {
            language,
            texts: self.texts,
            tokens: self.tokens,
            base: bits(self.base),
            adapter: bits(self.adapter),
            change: self.adapter / self.base.max(f64::MIN_POSITIVE) - 1.0,
            kl: self.kl / tokens,
            same_choice: self.same as f64 / tokens,
        }
    }
}

/// Weighs texts; the figures of all together come first, then those of each language if there are two. `weighed` is told how many are done.
///
/// # Errors
/// When a prompt cannot be made, or `stop` says so.
pub fn measure(
    model: &BaseModel<FastDecoder>,
    adapter: &PackedAdapter,
    texts: &[Placed],
    stop: &dyn Fn() -> bool,
    weighed: &mut dyn FnMut(usize),
) -> Result<Vec<Figures>, ForgettingError> {
    let mut of: Vec<(Language, Sums)> = Vec::new();
    for text in texts {
        of.push((text.language, one(model, adapter, text, stop)?));
        weighed(of.len());
    }
    let sum = |language: Option<Language>| {
        let own = of.iter().filter(|(l, _)| language.is_none_or(|language| *l == language));
        own.fold(Sums::default(), |sums, (_, one)| sums.join(one))
    };
    let mut figures = vec![sum(None).figures(None)];
    let used: Vec<Language> =
        Language::ALL.into_iter().filter(|language| of.iter().any(|(l, _)| l == language)).collect();
    if used.len() > 1 {
        figures.extend(used.into_iter().map(|language| sum(Some(language)).figures(Some(language))));
    }
    Ok(figures)
}

fn one(
    model: &BaseModel<FastDecoder>,
    adapter: &PackedAdapter,
    text: &Placed,
    stop: &dyn Fn() -> bool,
) -> Result<Sums, ForgettingError> {
    let template = model.template.as_ref().ok_or(TemplateError::Missing)?;
    let mut tokens = encode_segments(&model.tokenizer, &template.segments(&text.before)?)?;
    let (begins, prompt) = (adapter.begins(&tokens), tokens.len());
    let mut own = model.tokenizer.encode_content(&text.text)?;
    own.truncate(MOST);
    // A token may be part of a character; only what the vocabulary can write again has a length in bytes.
    let bytes = match own.len() < MOST {
        true => text.text.len(),
        false => own.iter().map(|token| model.tokenizer.display(*token).len()).sum(),
    };
    tokens.extend(&own);
    let base = predictions(model, &tokens, own.len(), None, stop)?;
    let adapted = predictions(model, &tokens, own.len(), begins.map(|at| (adapter, at)), stop)?;
    let mut sums = Sums { texts: 1, tokens: own.len(), bytes, ..Sums::default() };
    for (n, (p, q)) in base.iter().zip(&adapted).enumerate() {
        let next = tokens[prompt + n] as usize;
        sums.base -= p[next];
        sums.adapter -= q[next];
        sums.kl += divergence(p, q);
        sums.same += usize::from(most_likely(p) == most_likely(q));
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_become_bits_per_byte() {
        let half = Sums {
            texts: 1,
            tokens: 4,
            bytes: 8,
            base: 8.0 * std::f64::consts::LN_2,
            adapter: 12.0 * std::f64::consts::LN_2,
            kl: 2.0,
            same: 1,
        };
        let figures = half.join(&half).figures(None);
        assert!((figures.base - 1.0).abs() < 1e-12 && (figures.adapter - 1.5).abs() < 1e-12);
        assert!((figures.change - 0.5).abs() < 1e-12);
        assert_eq!((figures.kl, figures.same_choice, figures.texts), (0.5, 0.25, 2));
    }
}
