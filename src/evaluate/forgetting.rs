//! What an adapter makes of general text, against its base: fine-tuning for one thing can cost others (catastrophic forgetting).
//!
//! Each text is put where an assistant's answer stands, after a request that says nothing about it, so that a late adapter acts on all of
//! it. Bits per byte do not depend on how a vocabulary cuts text; the divergence says how far the distributions moved apart even where the
//! right token stays as likely.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::distributions::{divergence, log_softmax, most_likely};
use crate::kernels::KvCache;
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::decoder::DecodeError;
use crate::model::fast::{FastDecoder, PackedAdapter, Piece, Workspace};
use crate::model::template::{Role, TemplateError, Turn, encode_segments};
use crate::model::tokenizer::TokenizerError;
use crate::prompt::{Wording, WordingError};
use crate::tune::examples::DAY;

/// Tokens of a text that are read; what is longer is cut off, for the base and the adapter alike.
const MOST: usize = 512;

/// A paragraph of general text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Its language.
    pub language: Language,
    /// What it says.
    pub text: String,
}

/// Why texts could not be read or weighed.
#[derive(Debug, thiserror::Error)]
pub enum ForgettingError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing in it.
    #[error("{} holds no text; write paragraphs with a blank line between them", .0.display())]
    Empty(PathBuf),
    /// The prompt cannot be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A prompt file failed.
    #[error(transparent)]
    Wording(#[from] WordingError),
    /// The model did not run, or it was asked to stop.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The paragraphs of a file: what stands between blank lines.
///
/// # Errors
/// When it cannot be read, or holds nothing.
pub fn read(path: &Path) -> Result<Vec<Text>, ForgettingError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ForgettingError::Read { path: path.to_owned(), source })?;
    let mut texts = Vec::new();
    for paragraph in text.replace("\r\n", "\n").split("\n\n").map(str::trim).filter(|p| !p.is_empty()) {
        texts.push(Text { language: Language::detect(paragraph), text: paragraph.to_owned() });
    }
    if texts.is_empty() { Err(ForgettingError::Empty(path.to_owned())) } else { Ok(texts) }
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

/// Weighs texts; the figures of all together come first, then those of each language if there are two.
///
/// # Errors
/// When a prompt cannot be made, or `stop` says so.
pub fn measure(
    model: &BaseModel<FastDecoder>,
    adapter: &PackedAdapter,
    texts: &[Text],
    wording: &Wording,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Figures>, ForgettingError> {
    let mut of: Vec<(Language, Sums)> = Vec::new();
    for text in texts {
        of.push((text.language, one(model, adapter, text, wording, stop)?));
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
    text: &Text,
    wording: &Wording,
    stop: &dyn Fn() -> bool,
) -> Result<Sums, ForgettingError> {
    let request = match text.language {
        Language::En => "Write a paragraph about anything you like.",
        Language::Ja => "好きなことについて一段落書いてください。",
    };
    let turns = [
        Turn { role: Role::System, content: wording.plain(text.language, DAY)? },
        Turn { role: Role::User, content: request.to_owned() },
    ];
    let template = model.template.as_ref().ok_or(TemplateError::Missing)?;
    let mut tokens = encode_segments(&model.tokenizer, &template.segments(&turns)?)?;
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

/// The logarithms of the probabilities of every token, before each of the last `count`.
fn predictions(
    model: &BaseModel<FastDecoder>,
    tokens: &[u32],
    count: usize,
    adapter: Option<(&PackedAdapter, usize)>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Vec<f64>>, ForgettingError> {
    let pages: Vec<u32> = (0..tokens.len().div_ceil(KvCache::PAGE) as u32).collect();
    let mut cache = KvCache::new(model.decoder.cache_shape(), pages.len());
    let mut workspace = Workspace::default();
    let piece = Piece {
        tokens,
        position: 0,
        pages: &pages,
        adapter: adapter.map(|(adapter, _)| adapter),
        before: adapter.map_or(tokens.len(), |(_, at)| at),
        logits: count + 1,
    };
    let logits = model.decoder.forward(&[piece], &mut cache, &mut workspace, stop)?;
    Ok(logits.chunks_exact(model.config.vocab).take(count).map(log_softmax).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_read_and_an_empty_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "One line.\nIts second.\n\n\r\n\r\n二つ目の段落です。\n").unwrap();
        let texts = read(&path).unwrap();
        let found: Vec<(Language, &str)> = texts.iter().map(|t| (t.language, t.text.as_str())).collect();
        assert_eq!(found, [(Language::En, "One line.\nIts second."), (Language::Ja, "二つ目の段落です。")]);
        std::fs::write(&path, "\n \n").unwrap();
        assert!(matches!(read(&path), Err(ForgettingError::Empty(_))));
        assert!(matches!(read(dir.path()), Err(ForgettingError::Read { .. })));
    }

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
