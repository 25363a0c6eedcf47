//! The weights of one block, packed.

use super::super::config::ModelConfig;
use super::super::tensors::{Norm, Projection, TensorName};
use super::super::weights::{WeightError, WeightReader};
use super::floats;
use crate::kernels::{Delta, Matrix, Pages, Part, WeightType};

#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) post_ffn_norm: Option<Vec<f32>>,
    /// By [`Projection`].
    weights: Vec<Matrix>,
    biases: Vec<Option<Vec<f32>>>,
}

pub(super) fn is_quantised(weight: &Matrix) -> bool {
    matches!(weight.kind(), WeightType::Quantised(_))
}

impl Block {
    pub(super) fn load(
        config: &ModelConfig,
        reader: &WeightReader<'_>,
        layer: usize,
        pages: &mut Pages,
    ) -> Result<Self, WeightError> {
        let norm = |norm| floats(&reader.norm(TensorName::Norm(layer, norm))?);
        let mut weights = Vec::with_capacity(Projection::ALL.len());
        let mut biases = Vec::with_capacity(Projection::ALL.len());
        for p in Projection::ALL {
            weights.push(reader.packed(TensorName::Weight(layer, p), p.shape(config), pages)?);
            let has_bias = config.qkv_bias && matches!(p, Projection::Q | Projection::K | Projection::V);
            biases.push(match has_bias {
                true => Some(floats(&reader.vector(TensorName::Bias(layer, p), p.shape(config).0)?)?),
                false => None,
            });
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
            weights,
            biases,
        })
    }

    /// A projection with the deltas of a pass.
    pub(super) fn part<'a>(&'a self, p: Projection, deltas: &'a [Delta<'a>]) -> Part<'a> {
        Part { weight: &self.weights[p as usize], bias: self.biases[p as usize].as_deref(), deltas }
    }

    pub(super) fn is_quantised(&self) -> bool {
        self.weights.iter().any(is_quantised)
    }

    pub(super) fn bytes(&self) -> usize {
        self.weights.iter().map(Matrix::bytes).sum()
    }

    pub(super) fn multiply_adds(&self) -> usize {
        self.weights.iter().map(|w| w.rows() * w.columns()).sum()
    }
}
