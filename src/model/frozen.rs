//! A base model's weights for training: packed as the fast decoder has them, and each matrix a second time
//! transposed, which is what a gradient is multiplied with on its way back.
//!
//! The forward products are those of serving, so that an adapter learns on the very weights, and the very rounding, that
//! it will run with. The transposed copy of a quantised matrix is 8-bit: a block of the file runs along the
//! inputs and cannot be read across.

use super::config::ModelConfig;
use super::fast::floats;
use super::tensors::{Norm, Projection, TensorName};
use super::weights::{Weight, WeightError, WeightReader};
use crate::kernels::{Cpu, Matrix, Pages, Part, WeightType};

/// A base model's weights, to train adapters on.
#[derive(Debug)]
pub struct FrozenModel {
    config: ModelConfig,
    cpu: Cpu,
    /// Token embeddings.
    pub embedding: Matrix,
    /// The layers.
    pub blocks: Vec<FrozenBlock>,
    /// Weights of the norm before the head.
    pub output_norm: Vec<f32>,
    /// The map to logits.
    pub head: FrozenLinear,
}

/// A linear map that is not trained.
#[derive(Debug)]
pub struct FrozenLinear {
    /// The weight, of shape (outputs, inputs).
    pub weight: Matrix,
    /// The way back.
    pub back: Transposed,
    bias: Option<Vec<f32>>,
}

/// A linear map's weight transposed: what a gradient of its outputs is multiplied with, to be that of its inputs.
#[derive(Debug)]
pub struct Transposed {
    /// Of shape (inputs, outputs), times `1 / scale`.
    matrix: Matrix,
    /// What gradients are multiplied by before.
    scale: f32,
}

impl Transposed {
    /// Of a weight of shape (outputs, inputs), in 8 bits where the weight is quantised; `None` where it is empty, or in 8 bits and not finite.
    #[must_use]
    pub fn of(
        kind: WeightType,
        (outputs, inputs): (usize, usize),
        numbers: &[f32],
        pages: &mut Pages,
    ) -> Option<Self> {
        let numbers = transposed(numbers, outputs, inputs);
        let (matrix, scale) = match kind {
            WeightType::Quantised(_) if outputs.is_multiple_of(32) => {
                Matrix::pack_q8((inputs, outputs), &numbers, pages)?
            }
            _ => (Matrix::pack_f32((inputs, outputs), &numbers, pages)?, 1.0),
        };
        Some(Self { matrix, scale })
    }

    /// (outputs, inputs) of the map.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.matrix.columns(), self.matrix.rows())
    }

    /// The map of gradients of the outputs to gradients of the inputs, and what they are to be multiplied by before.
    #[must_use]
    pub fn part(&self) -> (Part<'_>, f32) {
        (Part { weight: &self.matrix, bias: None, deltas: &[] }, self.scale)
    }
}

/// The weights of a layer.
#[derive(Debug)]
pub struct FrozenBlock {
    /// Of the norm before attention.
    pub attention_norm: Vec<f32>,
    /// Of the norms of each query and key head.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Of the norm after attention.
    pub post_attention_norm: Option<Vec<f32>>,
    /// Of the norm before the feed-forward block.
    pub ffn_norm: Vec<f32>,
    /// Of the norm after the feed-forward block.
    pub post_ffn_norm: Option<Vec<f32>>,
    /// By [`Projection`].
    pub linears: Vec<FrozenLinear>,
}

impl FrozenLinear {
    fn load(
        reader: &WeightReader<'_>,
        name: TensorName,
        shape: (usize, usize),
        bias: Option<Vec<f32>>,
        pages: &mut Pages,
    ) -> Result<Self, WeightError> {
        let weight = reader.packed(name, shape, pages)?;
        let numbers = match reader.matrix(name, shape)? {
            Weight::Dense(tensor) => floats(&tensor)?,
            Weight::Quantised(tensor) => floats(&tensor.dequantize(&candle_core::Device::Cpu)?)?,
        };
        let broken =
            || WeightError::Candle(candle_core::Error::Msg(format!("{} is not finite", name.gguf())));
        let back = Transposed::of(weight.kind(), shape, &numbers, pages).ok_or_else(broken)?;
        Ok(Self { weight, back, bias })
    }

    /// The forward map.
    pub fn part(&self) -> Part<'_> {
        Part { weight: &self.weight, bias: self.bias.as_deref(), deltas: &[] }
    }

    /// Bytes of both copies.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.back.matrix.bytes()
    }
}

/// A matrix of shape (rows, columns) as (columns, rows), in blocks that stay in a cache.
fn transposed(numbers: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut to = vec![0f32; numbers.len()];
    for first_row in (0..rows).step_by(BLOCK) {
        for first_column in (0..columns).step_by(BLOCK) {
            for row in first_row..rows.min(first_row + BLOCK) {
                for column in first_column..columns.min(first_column + BLOCK) {
                    to[column * rows + row] = numbers[row * columns + column];
                }
            }
        }
    }
    to
}

impl FrozenModel {
    /// Reads all weights; refuses a file that lacks one, or holds one that would not be used.
    pub(super) fn load(
        config: &ModelConfig,
        reader: WeightReader<'_>,
        cpu: Cpu,
    ) -> Result<Self, WeightError> {
        let mut pages = Pages::default();
        let vocab = (config.vocab, config.hidden);
        let embedding = reader.packed(TensorName::Embedding, vocab, &mut pages)?;
        let head = if reader.has(TensorName::Head) { TensorName::Head } else { TensorName::Embedding };
        let head = FrozenLinear::load(&reader, head, vocab, None, &mut pages)?;
        let blocks = (0..config.layers)
            .map(|layer| FrozenBlock::load(config, &reader, layer, &mut pages))
            .collect::<Result<Vec<_>, _>>()?;
        let output_norm = floats(&reader.norm(TensorName::OutputNorm)?)?;
        reader.finish()?;
        Ok(Self { config: config.clone(), cpu, embedding, blocks, output_norm, head })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The instruction set and threads it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Whether some weight is quantised.
    pub fn is_quantised(&self) -> bool {
        let mut linears = self.blocks.iter().flat_map(|block| &block.linears);
        linears.any(|linear| matches!(linear.weight.kind(), WeightType::Quantised(_)))
    }

    /// Bytes of all packed matrices.
    pub fn bytes(&self) -> usize {
        let linears = self.blocks.iter().flat_map(|block| &block.linears);
        self.embedding.bytes() + self.head.bytes() + linears.map(FrozenLinear::bytes).sum::<usize>()
    }
}

impl FrozenBlock {
    fn load(
        config: &ModelConfig,
        reader: &WeightReader<'_>,
        layer: usize,
        pages: &mut Pages,
    ) -> Result<Self, WeightError> {
        let norm = |norm| floats(&reader.norm(TensorName::Norm(layer, norm))?);
        let mut linears = Vec::with_capacity(Projection::ALL.len());
        for p in Projection::ALL {
            let has_bias = config.qkv_bias && matches!(p, Projection::Q | Projection::K | Projection::V);
            let bias = match has_bias {
                true => Some(floats(&reader.vector(TensorName::Bias(layer, p), p.shape(config).0)?)?),
                false => None,
            };
            linears.push(FrozenLinear::load(
                reader,
                TensorName::Weight(layer, p),
                p.shape(config),
                bias,
                pages,
            )?);
        }
        let qk_norm = match config.qk_norm {
            true => Some((norm(Norm::Query)?, norm(Norm::Key)?)),
            false => None,
        };
        let (post_attention_norm, post_ffn_norm) = match config.post_norms {
            true => (Some(norm(Norm::PostAttention)?), Some(norm(Norm::PostFfn)?)),
            false => (None, None),
        };
        Ok(Self {
            attention_norm: norm(Norm::Attention)?,
            qk_norm,
            post_attention_norm,
            ffn_norm: norm(Norm::Ffn)?,
            post_ffn_norm,
            linears,
        })
    }
}
