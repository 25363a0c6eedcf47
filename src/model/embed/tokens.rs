//! The token ids of a text for an encoder.
//!
//! Texts are content, never marks: what looks like `[SEP]` or `</s>` in a text is cut like any other text.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::unigram::Unigram;
use tokenizers::{Model as _, Tokenizer};
use unicode_normalization::UnicodeNormalization;

use super::EmbedError;

/// No more of a text is looked at, in characters: many times what any encoder's tokens hold.
const MAX_CHARS: usize = 100_000;
/// SentencePiece's mark for the space before a word.
const SPACE: char = '\u{2581}';

/// Cuts texts into tokens.
pub(super) enum TextTokenizer {
    /// A `tokenizer.json`, with the ids of the marks at both ends.
    Json {
        /// The tokenizer, without its marks.
        inner: Box<Tokenizer>,
        /// The marks.
        ends: [u32; 2],
    },
    /// Pieces with scores, as SentencePiece's unigram models have.
    Pieces(Box<Pieces>),
}

/// A unigram vocabulary with its own normalisation.
pub(super) struct Pieces {
    pub(super) model: Unigram,
    /// What single characters are replaced by before anything else.
    pub(super) replaced: HashMap<char, String>,
    /// The marks at both ends.
    pub(super) ends: [u32; 2],
}

impl TextTokenizer {
    /// Reads a folder's `tokenizer.json`.
    pub(super) fn from_json(path: &Path) -> Result<Self, EmbedError> {
        let unusable = |why: String| EmbedError::unusable(path, why);
        let bytes =
            std::fs::read(path).map_err(|source| EmbedError::Read { path: path.to_owned(), source })?;
        let mut inner = Tokenizer::from_bytes(&bytes).map_err(|e| unusable(e.to_string()))?;
        inner.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        // What the tokenizer itself puts around nothing.
        let around = inner.encode("", true).map_err(|e| unusable(e.to_string()))?;
        let ends = match around.get_ids() {
            [first, last] => [*first, *last],
            other => return Err(unusable(format!("{} marks around a text; two are expected", other.len()))),
        };
        Ok(Self::Json { inner: Box::new(inner), ends })
    }

    /// A tokenizer that was put together, with the ids of the marks at both ends.
    pub(super) fn json(mut inner: Tokenizer, ends: [u32; 2]) -> Self {
        inner.set_encode_special_tokens(true);
        Self::Json { inner: Box::new(inner), ends }
    }

    /// The ids of a text behind a prefix, marks at both ends included: at most `most` of them.
    pub(super) fn encode(&self, prefix: &str, text: &str, most: usize) -> Result<Vec<u32>, EmbedError> {
        let end = text.char_indices().nth(MAX_CHARS).map_or(text.len(), |(at, _)| at);
        let text = format!("{prefix}{}", &text[..end]);
        let (content, [first, last]) = match self {
            Self::Json { inner, ends } => {
                let encoded = inner.encode_fast(text, false);
                (encoded.map_err(|e| EmbedError::Tokens(e.to_string()))?.get_ids().to_vec(), *ends)
            }
            Self::Pieces(pieces) => (pieces.content(&text, most)?, pieces.ends),
        };
        let room = most.saturating_sub(2);
        let mut ids = Vec::with_capacity(content.len().min(room) + 2);
        ids.push(first);
        ids.extend(content.into_iter().take(room));
        ids.push(last);
        Ok(ids)
    }
}

impl Pieces {
    /// The ids of a text, at least as many of the first as are asked for.
    fn content(&self, text: &str, most: usize) -> Result<Vec<u32>, EmbedError> {
        let mut replaced = String::with_capacity(text.len());
        for c in text.chars() {
            match self.replaced.get(&c) {
                Some(other) => replaced.push_str(other),
                None => replaced.push(c),
            }
        }
        // What the map replaces one by one may still compose (a half-width kana and its voicing mark).
        let composed: String = replaced.nfc().collect();
        let mut ids = Vec::new();
        for word in composed.split_whitespace() {
            let tokens = self.model.tokenize(&format!("{SPACE}{word}"));
            ids.extend(tokens.map_err(|e| EmbedError::Tokens(e.to_string()))?.into_iter().map(|t| t.id));
            if ids.len() >= most {
                break;
            }
        }
        Ok(ids)
    }
}
