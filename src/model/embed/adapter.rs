//! Low-rank adapters of an encoder (LoRA: Hu et al. 2021), on every linear map of every block, as PEFT folders.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::EmbedError;
use super::encoder::Encoder;
use crate::kernels::{Delta, Matrix, Pages, WeightType};
use crate::model::fingerprint;
use crate::model::lowrank::LowRank;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The file by which a folder is known for a reader's.
pub const READER: &str = "reader.json";
/// A rank above it is no adapter any more.
const MAX_RANK: usize = 1 << 10;

/// The linear maps of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderMap {
    /// To queries.
    Query,
    /// To keys.
    Key,
    /// To values.
    Value,
    /// From what was attended to.
    AttentionOut,
    /// Into the feed-forward layer.
    Up,
    /// Out of it.
    Down,
}

impl EncoderMap {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Query, Self::Key, Self::Value, Self::AttentionOut, Self::Up, Self::Down];

    /// What Hugging Face's `BertModel` calls it within a layer.
    fn module(self) -> &'static str {
        match self {
            Self::Query => "attention.self.query",
            Self::Key => "attention.self.key",
            Self::Value => "attention.self.value",
            Self::AttentionOut => "attention.output.dense",
            Self::Up => "intermediate.dense",
            Self::Down => "output.dense",
        }
    }
}

/// The sizes that decide how an adapter's numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterShape {
    /// Blocks.
    pub layers: usize,
    /// Numbers of a token's vector.
    pub hidden: usize,
    /// Numbers within a feed-forward layer.
    pub ffn: usize,
    /// Rows of A, columns of B.
    pub rank: usize,
}

/// Where the two matrices of a map lie in the run of all numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// (outputs, inputs) of the map.
    pub shape: (usize, usize),
    /// A, of shape (rank, inputs).
    pub a: Range<usize>,
    /// B, of shape (outputs, rank).
    pub b: Range<usize>,
}

impl AdapterShape {
    fn of_map(self, map: EncoderMap) -> (usize, usize) {
        match map {
            EncoderMap::Up => (self.ffn, self.hidden),
            EncoderMap::Down => (self.hidden, self.ffn),
            _ => (self.hidden, self.hidden),
        }
    }

    fn numbers_of(self, map: EncoderMap) -> usize {
        let (outputs, inputs) = self.of_map(map);
        self.rank * (outputs + inputs)
    }

    /// How many numbers there are.
    #[must_use]
    pub fn count(self) -> usize {
        self.layers * EncoderMap::ALL.into_iter().map(|map| self.numbers_of(map)).sum::<usize>()
    }

    /// Where a map's matrices lie.
    #[must_use]
    pub fn place(self, layer: usize, map: EncoderMap) -> Place {
        let before = EncoderMap::ALL.into_iter().take_while(|other| *other != map);
        let start = layer * (self.count() / self.layers.max(1))
            + before.map(|map| self.numbers_of(map)).sum::<usize>();
        let shape = self.of_map(map);
        let a = start..start + self.rank * shape.1;
        Place { shape, b: a.end..a.end + shape.0 * self.rank, a }
    }

    fn places(self) -> impl Iterator<Item = (usize, EncoderMap, Place)> {
        let maps = (0..self.layers).flat_map(|layer| EncoderMap::ALL.map(|map| (layer, map)));
        maps.map(move |(layer, map)| (layer, map, self.place(layer, map)))
    }
}

/// An adapter of an encoder, as numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderAdapter {
    /// How they lie.
    pub shape: AdapterShape,
    /// What B A x is multiplied by: α / rank.
    pub scale: f32,
    /// The score that stands for no sentence, beside which the others are weighed.
    pub none: f32,
    /// All matrices.
    pub numbers: Vec<f32>,
}

/// The keys of `adapter_config.json` that decide what is added.
#[derive(Debug, Deserialize)]
struct Config {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
}

/// What a reader is besides an adapter: `reader.json`, which is written last and ties the files together.
#[derive(Debug, Serialize, Deserialize)]
struct ReaderFile {
    /// What the embedder that it was trained on is called, and its SHA-256.
    embedder: String,
    embedder_sha256: String,
    /// See [`EncoderAdapter::none`].
    score_of_none: f32,
    /// SHA-256 of the other two files.
    adapter_sha256: String,
}

fn name_of(layer: usize, map: EncoderMap, half: char) -> String {
    format!("base_model.model.encoder.layer.{layer}.{}.lora_{half}.weight", map.module())
}

impl EncoderAdapter {
    /// Whether all that is written of it, numbers in half precision among it, is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let mut numbers = self.numbers.iter().map(|number| half::f16::from_f32(*number));
        numbers.all(half::f16::is_finite) && self.scale.is_finite() && self.none.is_finite()
    }

    /// The files of a reader's folder in the order in which they are to be written, a PEFT adapter with numbers in half precision among them,
    /// with their names; and their fingerprint.
    ///
    /// # Errors
    /// When the numbers cannot be written so.
    pub fn files(
        &self,
        (base, base_sha256): (&str, &str),
    ) -> Result<ReaderFiles, safetensors::SafeTensorError> {
        let half = |range: Range<usize>| -> Vec<u8> {
            self.numbers[range].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
        };
        let mut parts = Vec::new();
        for (layer, map, place) in self.shape.places() {
            let rank = self.shape.rank;
            parts.push((name_of(layer, map, 'A'), vec![rank, place.shape.1], half(place.a)));
            parts.push((name_of(layer, map, 'B'), vec![place.shape.0, rank], half(place.b)));
        }
        let views = parts.iter().map(|(name, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes)?))
        });
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = safetensors::serialize(views, Some(metadata))?;
        let config = json!({
            "peft_type": "LORA",
            "task_type": "FEATURE_EXTRACTION",
            "base_model_name_or_path": base,
            "inference_mode": true,
            "r": self.shape.rank,
            "lora_alpha": f64::from(self.scale) * self.shape.rank as f64,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": ["query", "key", "value", "intermediate.dense", "output.dense"],
        });
        let config = format!("{config:#}\n").into_bytes();
        let reader = ReaderFile {
            embedder: base.to_owned(),
            embedder_sha256: base_sha256.to_owned(),
            score_of_none: self.none,
            adapter_sha256: fingerprint([&config[..], &weights]),
        };
        let reader = serde_json::to_string_pretty(&reader).unwrap_or_default() + "\n";
        let sha256 = fingerprint([reader.as_bytes()]);
        Ok(ReaderFiles {
            files: [(WEIGHTS, weights), (CONFIG, config), (READER, reader.into_bytes())],
            sha256,
        })
    }

    /// Reads a folder that [`files`](Self::files) wrote for an embedder; gives its fingerprint too.
    ///
    /// # Errors
    /// When a file cannot be read, or it is the reader of another embedder.
    pub(super) fn read(
        folder: &Path,
        encoder: &Encoder,
        base_sha256: &str,
    ) -> Result<(Self, String), EmbedError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| EmbedError::ReadReader { path, source })
        };
        let (reader, config, weights) = (read(READER)?, read(CONFIG)?, read(WEIGHTS)?);
        let unusable = |why: String| EmbedError::UnusableReader { path: folder.to_owned(), why };
        let own: ReaderFile =
            serde_json::from_slice(&reader).map_err(|e| unusable(format!("{READER}: {e}")))?;
        if own.embedder_sha256 != base_sha256 {
            return Err(unusable(format!(
                "it was trained on `{}` of SHA-256 {}, and this embedder's is {base_sha256}",
                own.embedder, own.embedder_sha256
            )));
        }
        if own.adapter_sha256 != fingerprint([&config[..], &weights]) {
            return Err(unusable(format!(
                "{CONFIG} and {WEIGHTS} are not those that {READER} was written with"
            )));
        }
        let found: Config =
            serde_json::from_slice(&config).map_err(|e| unusable(format!("{CONFIG}: {e}")))?;
        if !(1..=MAX_RANK).contains(&found.r) || found.use_rslora {
            return Err(unusable(format!("{CONFIG}: a rank of {}, or a scale by its root", found.r)));
        }
        let shape = encoder.adapter_shape(found.r);
        let tensors = SafeTensors::deserialize(&weights).map_err(|e| unusable(format!("{WEIGHTS}: {e}")))?;
        let mut numbers = vec![0f32; shape.count()];
        for (layer, map, place) in shape.places() {
            let halves =
                [('A', place.a, [shape.rank, place.shape.1]), ('B', place.b, [place.shape.0, shape.rank])];
            for (half, range, expected) in halves {
                let name = name_of(layer, map, half);
                let view = tensors.tensor(&name).map_err(|e| unusable(format!("{name}: {e}")))?;
                if view.shape() != expected || view.dtype() != Dtype::F16 {
                    let (dtype, shape) = (view.dtype(), view.shape());
                    return Err(unusable(format!(
                        "{name} is {dtype:?} of shape {shape:?}, not F16 of {expected:?}"
                    )));
                }
                let values =
                    view.data().as_chunks::<2>().0.iter().map(|two| half::f16::from_le_bytes(*two).to_f32());
                numbers[range].iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
        }
        if tensors.len() != 2 * EncoderMap::ALL.len() * shape.layers {
            return Err(unusable(format!("{WEIGHTS} holds tensors that belong to no map of this encoder")));
        }
        let scale = (found.lora_alpha / found.r as f64) as f32;
        let adapter = Self { shape, scale, none: own.score_of_none, numbers };
        if !adapter.is_finite() {
            return Err(unusable("it has numbers that are not finite".into()));
        }
        Ok((adapter, fingerprint([&reader[..]])))
    }
}

/// What a reader's folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderFiles {
    /// Names and bytes, in the order in which they are to be written.
    pub files: [(&'static str, Vec<u8>); 3],
    /// The reader's fingerprint, as answers that it counts in give it.
    pub sha256: String,
}

/// An adapter packed for the kernels.
#[derive(Debug)]
pub(crate) struct PackedEncoderAdapter {
    layers: Vec<[LowRank; EncoderMap::ALL.len()]>,
}

impl PackedEncoderAdapter {
    /// `None` when a matrix is empty.
    pub(crate) fn pack(adapter: &EncoderAdapter, encoder: &Encoder) -> Option<Self> {
        let EncoderAdapter { shape, scale, numbers, .. } = adapter;
        let quantised = |weight: &Matrix| matches!(weight.kind(), WeightType::Quantised(_));
        let mut pages = Pages::default();
        let mut layers = Vec::with_capacity(shape.layers);
        for layer in 0..shape.layers {
            let mut packed = Vec::with_capacity(EncoderMap::ALL.len());
            for map in EncoderMap::ALL {
                let Place { shape: (outputs, inputs), a, b } = shape.place(layer, map);
                packed.push(LowRank::of(
                    ((shape.rank, inputs), &numbers[a]),
                    ((outputs, shape.rank), &numbers[b]),
                    *scale,
                    quantised(&encoder.linear(layer, map).weight),
                    &mut pages,
                )?);
            }
            layers.push(packed.try_into().ok()?);
        }
        Some(Self { layers })
    }

    /// What it adds to a map's results of all rows.
    pub(super) fn delta(&self, layer: usize, map: EncoderMap, rows: usize) -> Delta<'_> {
        self.layers[layer][map as usize].delta(0..rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_lie_behind_one_another() {
        let shape = AdapterShape { layers: 3, hidden: 32, ffn: 64, rank: 4 };
        let mut end = 0;
        for (_, _, place) in shape.places() {
            assert_eq!(place.a.start, end);
            assert_eq!((place.a.len(), place.b.len()), (4 * place.shape.1, 4 * place.shape.0));
            assert_eq!(place.a.end, place.b.start);
            end = place.b.end;
        }
        assert_eq!(end, shape.count());
    }
}
