//! LoRA adapters: low-rank deltas that a request adds to the base model's linear maps at run time.
//!
//! The base weights are never touched, so `base` and `rag` requests run the base exactly. An adapter is
//! either bound whole to the model's shapes or refused with the list of what did not fit.
//!
//! Sources: Hu et al. 2021 (LoRA, scale α/r), Kalajdzievski 2023 (rsLoRA, scale α/√r), Greenewald et al. 2025 (activated LoRA: the
//! adapter begins at its invocation tokens); formats: PEFT
//! folders (`peft`) and llama.cpp's GGUF-LoRA (`gguf`).

pub(crate) mod gguf;
mod peft;
mod quoting;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::config::ModelConfig;
use super::tensors::Projection;
use super::weights::shortened;

pub use quoting::{QUOTING, QuoteBars, Quoting};

/// One projection's delta: scale · B A.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// A, of shape (rank, inputs).
    pub a: Tensor,
    /// B, of shape (outputs, rank).
    pub b: Tensor,
    /// α/r, or α/√r for rsLoRA.
    pub scale: f64,
}

impl LoraPair {
    /// The delta for x of shape (rows, inputs): shape (rows, outputs).
    pub(super) fn delta(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.a.t()?)?.matmul(&self.b.t()?)? * self.scale
    }
}

/// The format an adapter came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterFormat {
    /// A PEFT folder.
    Peft,
    /// A GGUF file with `general.type = adapter`.
    GgufLora,
}

/// A LoRA adapter, bound to the shapes of one base model.
#[derive(Debug, Clone)]
pub struct Adapter {
    format: AdapterFormat,
    fingerprint: String,
    invocation: Option<Vec<u32>>,
    bars: QuoteBars,
    pairs: BTreeMap<(usize, Projection), LoraPair>,
}

/// Why an adapter was refused.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file cannot be read.
    #[error("cannot read the adapter file {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The adapter is of a kind that is not implemented.
    #[error("the adapter {} uses {what}, which shishin does not implement; only plain LoRA (and rsLoRA) is served", path.display())]
    Unsupported {
        /// The adapter.
        path: PathBuf,
        /// The feature's name.
        what: String,
    },
    /// Some tensors do not fit the base model, or are missing.
    #[error("the adapter {} does not fit the base model: {misfits}", path.display())]
    Misfit {
        /// The adapter.
        path: PathBuf,
        /// What did not fit, for each tensor.
        misfits: String,
    },
}

impl Adapter {
    /// Loads a PEFT folder or a GGUF-LoRA file and binds every tensor to the model's shapes.
    ///
    /// # Errors
    /// When a file is unreadable, the adapter is of another kind than LoRA, or any tensor does not fit.
    pub fn load(path: &Path, config: &ModelConfig, device: &Device) -> Result<Self, AdapterError> {
        if path.is_dir() { peft::load(path, config, device) } else { gguf::load(path, config, device) }
    }

    /// An adapter of matrices that are at hand, such as those that are being trained.
    ///
    /// # Errors
    /// When a matrix cannot be read.
    pub fn from_pairs(pairs: BTreeMap<(usize, Projection), LoraPair>) -> candle_core::Result<Self> {
        let mut parts = Vec::new();
        for ((layer, projection), pair) in &pairs {
            parts.push(format!("{layer} {projection} {}", pair.scale).into_bytes());
            for matrix in [&pair.a, &pair.b] {
                let numbers = matrix.flatten_all()?.to_vec1::<f32>()?;
                parts.push(numbers.iter().flat_map(|v| v.to_le_bytes()).collect());
            }
        }
        let fingerprint = super::fingerprint(parts.iter().map(Vec::as_slice));
        Ok(Self {
            format: AdapterFormat::Peft,
            fingerprint,
            invocation: None,
            bars: QuoteBars::default(),
            pairs,
        })
    }

    /// The same adapter, beginning at these tokens; its fingerprint says so.
    pub fn invoked_by(&self, tokens: &[u32]) -> Self {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let fingerprint = super::fingerprint([self.fingerprint.as_bytes(), b"late", &bytes]);
        Self { fingerprint, invocation: Some(tokens.to_vec()), ..self.clone() }
    }

    /// SHA-256 over configuration and weights, in hexadecimal: what tells two adapters apart, whatever
    /// they are called.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The format it came in.
    pub fn format(&self) -> AdapterFormat {
        self.format
    }

    /// For an adapter that begins late: the tokens that it begins with. It acts from their last occurrence in the prompt on, and not at
    /// all where they do not occur; what is before is the base's own, and can be shared with it.
    pub fn invocation(&self) -> Option<&[u32]> {
        self.invocation.as_deref()
    }

    /// From where on it begins to quote; of a PEFT folder with a `quoting.json` only. They are no part of its fingerprint, which tells what was
    /// learnt.
    pub fn bars(&self) -> &QuoteBars {
        &self.bars
    }

    /// The delta of a projection, where the adapter has one.
    pub fn pair(&self, layer: usize, projection: Projection) -> Option<&LoraPair> {
        self.pairs.get(&(layer, projection))
    }

    /// All deltas by layer and projection.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, Projection, &LoraPair)> {
        self.pairs.iter().map(|(&(layer, projection), pair)| (layer, projection, pair))
    }

    /// The same adapter with every scale multiplied by `factor`; its fingerprint says so.
    pub fn scaled(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        for pair in scaled.pairs.values_mut() {
            pair.scale *= factor;
        }
        scaled.fingerprint = super::fingerprint([self.fingerprint.as_bytes(), &factor.to_le_bytes()]);
        scaled
    }
}

/// Where a list of tokens occurs last in another.
#[must_use]
pub fn last_of(tokens: &[u32], what: &[u32]) -> Option<usize> {
    if what.is_empty() {
        return None;
    }
    tokens.windows(what.len()).rposition(|window| window == what)
}

/// Collects the A and B of each projection, and every complaint, before anything is accepted.
struct Binder<'a> {
    path: &'a Path,
    config: &'a ModelConfig,
    halves: BTreeMap<(usize, Projection), (Option<Tensor>, Option<Tensor>)>,
    misfits: Vec<String>,
}

/// Which of the two matrices of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    A,
    B,
}

impl<'a> Binder<'a> {
    fn new(path: &'a Path, config: &'a ModelConfig) -> Self {
        Self { path, config, halves: BTreeMap::new(), misfits: Vec::new() }
    }

    fn misfit(&mut self, what: String) {
        self.misfits.push(what);
    }

    /// Takes one matrix after holding its shape against the model's.
    fn put(&mut self, name: &str, layer: usize, projection: Projection, half: Half, tensor: Tensor) {
        if layer >= self.config.layers {
            return self.misfit(format!("{name} (the base has {} layers)", self.config.layers));
        }
        let (outputs, inputs) = projection.shape(self.config);
        let dims = tensor.dims();
        let fits = match half {
            Half::A => dims.len() == 2 && dims[1] == inputs,
            Half::B => dims.len() == 2 && dims[0] == outputs,
        };
        if !fits {
            let expected = if half == Half::A { format!("[r, {inputs}]") } else { format!("[{outputs}, r]") };
            return self.misfit(format!("{name} has the shape {dims:?}, the base needs {expected}"));
        }
        let pair = self.halves.entry((layer, projection)).or_default();
        let slot = if half == Half::A { &mut pair.0 } else { &mut pair.1 };
        if slot.replace(tensor).is_some() {
            self.misfit(format!("{name} stands there twice"));
        }
    }

    /// Pairs the halves up. `scale` gives the scale of a projection for the rank found, or a complaint.
    fn finish(
        mut self,
        scale: impl Fn(usize, Projection, usize) -> Result<f64, String>,
    ) -> Result<BTreeMap<(usize, Projection), LoraPair>, AdapterError> {
        let mut pairs = BTreeMap::new();
        for ((layer, projection), halves) in std::mem::take(&mut self.halves) {
            let place = format!("layer {layer} {projection}");
            match halves {
                // Scales divide by the rank.
                (Some(a), Some(_)) if a.dims()[0] == 0 => self.misfit(format!("{place}: a rank of 0")),
                (Some(a), Some(b)) if a.dims()[0] == b.dims()[1] => {
                    match scale(layer, projection, a.dims()[0]) {
                        Ok(scale) => {
                            pairs.insert((layer, projection), LoraPair { a, b, scale });
                        }
                        Err(complaint) => self.misfit(format!("{place}: {complaint}")),
                    }
                }
                (Some(a), Some(b)) => {
                    let ranks = (a.dims()[0], b.dims()[1]);
                    self.misfit(format!("{place}: lora_A has rank {} and lora_B {}", ranks.0, ranks.1));
                }
                (Some(_), None) => self.misfit(format!("{place}: lora_B is missing")),
                (None, _) => self.misfit(format!("{place}: lora_A is missing")),
            }
        }
        if pairs.is_empty() && self.misfits.is_empty() {
            self.misfit("it holds no LoRA tensor at all".into());
        }
        if !self.misfits.is_empty() {
            return Err(AdapterError::Misfit { path: self.path.into(), misfits: shortened(&self.misfits) });
        }
        Ok(pairs)
    }
}
