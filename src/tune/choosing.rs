//! Learning which sentence is quoted as it is served: among what may be quoted, and beside what other signs say of each.
//!
//! In serving, an adapter's own opinion of a sentence is multiplied by what its nearness to the question and its bearing on it say
//! ([`QuoteChoice`]). Who has learnt that choice alone says again what those know already, and is sure of it. Learnt beside them, as experts are
//! whose opinions are multiplied (Hinton 2002, products of experts), the adapter makes up for what they do not know, and where they are right has
//! nothing to learn.

use std::collections::{BTreeMap, HashMap};

use super::batch::Open;
use crate::model::tokenizer::Tokenizer;
use crate::quote::{Quote, QuoteChoice, QuoteGuide, Signs};

/// Of a prompt with passages and a question, what may be quoted, each with its signs.
pub type SignsOf<'a> = dyn Fn(&str, &str) -> Result<Vec<(Quote, Signs)>, String> + 'a;

/// Finds what is open where answers choose what they quote.
pub struct Choosing<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens by their bytes; a vocabulary may spell some in two ways.
    ids: HashMap<&'a [u8], Vec<u32>>,
    /// Bytes of the longest.
    longest: usize,
    signs: &'a SignsOf<'a>,
    choice: QuoteChoice,
}

impl<'a> Choosing<'a> {
    /// With the signs that `signs` finds, as `choice` weighs them.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, signs: &'a SignsOf<'a>, choice: QuoteChoice) -> Self {
        let mut ids: HashMap<&[u8], Vec<u32>> = HashMap::new();
        for id in (0..).take(tokenizer.vocabulary_size()).filter(|id| !tokenizer.is_control(*id)) {
            let bytes = tokenizer.text_bytes(id);
            if !bytes.is_empty() {
                ids.entry(bytes).or_default().push(id);
            }
        }
        let longest = ids.keys().map(|bytes| bytes.len()).max().unwrap_or_default();
        Self { tokenizer, ids, longest, signs, choice }
    }

    /// Of an answer's tokens, those that choose among several units of the prompt's passages, by their places, with all that may stand there.
    ///
    /// # Errors
    /// When the signs cannot be found.
    pub(super) fn of(
        &self,
        prompt: &str,
        question: &str,
        answer: &[u32],
    ) -> Result<Vec<(usize, Open)>, String> {
        let mut guide = QuoteGuide::choosing((self.signs)(prompt, question)?, self.choice);
        let mut choices = Vec::new();
        for (at, id) in answer.iter().enumerate() {
            if !guide.watches() {
                break;
            }
            let open = self.open(&guide);
            // What the tokenizer writes as no unit goes on is learnt among all tokens.
            if open.len() > 1 && open.iter().any(|(other, _)| other == id) {
                choices.push((at, open.into()));
            }
            guide.push(self.tokenizer.text_bytes(*id));
        }
        Ok(choices)
    }

    /// All tokens that a unit goes on with, each with the preference of the best that does. Behind the mark alone something else than a quote
    /// may follow, in serving too; an adapter that quotes gives that next to nothing, so it is left out of account.
    fn open(&self, guide: &QuoteGuide) -> Vec<(u32, f32)> {
        let mut open = BTreeMap::new();
        for rest in guide.open() {
            for end in 1..=rest.len().min(self.longest) {
                let Some(ids) = self.ids.get(&rest[..end]) else { continue };
                if let Some(preference) = guide.preference(&rest[..end]) {
                    open.extend(ids.iter().map(|id| (*id, preference)));
                }
            }
        }
        open.into_iter().collect()
    }
}
