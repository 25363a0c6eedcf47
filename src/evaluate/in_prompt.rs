//! What may be quoted of the passages that stand in a prompt, and what tells which of it answers.

use std::collections::HashMap;

use crate::model::embed::EmbedError;
use crate::prompt::InPrompt;
use crate::quote::{self, Signed};
use crate::retrieve::Meaning;
use crate::retrieve::sentences::signs;
use crate::store::vectors::embedded_text;

/// What may be quoted of a passage, with its vectors, below its title and headings.
type Quotable = (String, Vec<(String, Vec<f32>)>);

/// Finds the signs of what may be quoted of prompts, as serving does; passages and questions that come again are embedded once.
pub struct PromptSigns<'m> {
    meaning: Option<&'m Meaning>,
    known: HashMap<String, Quotable>,
    questions: HashMap<String, Vec<f32>>,
}

impl<'m> PromptSigns<'m> {
    /// With what tells how near sentences are to a question; without it only what they say counts.
    #[must_use]
    pub fn new(meaning: Option<&'m Meaning>) -> Self {
        Self { meaning, known: HashMap::new(), questions: HashMap::new() }
    }

    /// What may be quoted of passages in answer to a question, each with its signs.
    ///
    /// # Errors
    /// When the question or a sentence has no vector.
    pub fn of(&mut self, passages: &[InPrompt<'_>], question: &str) -> Result<Signed, EmbedError> {
        let keys: Vec<String> = passages.iter().map(|p| embedded_text(p.title, p.section, p.text)).collect();
        for (passage, key) in passages.iter().zip(&keys) {
            if !self.known.contains_key(key) {
                self.known.insert(key.clone(), self.quotable(passage)?);
            }
        }
        if let Some(meaning) = self.meaning.filter(|_| !self.questions.contains_key(question)) {
            self.questions.insert(question.to_owned(), meaning.of_question(question)?);
        }
        let known = keys.iter().map(|key| &self.known[key]);
        let quotable = known.map(|(headings, sentences)| (&headings[..], &sentences[..]));
        signs(self.meaning, (question, self.questions.get(question).map(Vec::as_slice)), quotable)
    }

    fn quotable(&self, passage: &InPrompt<'_>) -> Result<Quotable, EmbedError> {
        let sentences = match self.meaning {
            Some(meaning) => {
                meaning.sentences(passage.title, passage.section, passage.text, HashMap::new())?
            }
            None => quote::possible([passage.text]).into_iter().map(|q| (q.text, Vec::new())).collect(),
        };
        Ok((embedded_text(passage.title, passage.section, ""), sentences))
    }
}
