//! The linear maps of a decoder: a frozen base weight, an optional bias, and at run time the low-rank
//! delta of whichever adapter the request named.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};

use super::lora::LoraPair;
use super::weights::Weight;

/// From this many rows on, a quantised weight is expanded to floats and multiplied densely: the
/// expansion then costs less than candle's row-by-row quantised product wastes. Below it, the weight
/// is read in its quantised form, which is what a single token wants.
const EXPAND_FROM_ROWS: usize = 8;

/// y = W x + b, and + α/r · B A x when an adapter is attached.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Maps x of shape (rows, inputs) to (rows, outputs).
    pub(super) fn forward(&self, x: &Tensor, lora: Option<&LoraPair>) -> Result<Tensor> {
        let mut y = match &self.weight {
            Weight::Dense(w) => x.matmul(&w.t()?)?,
            Weight::Quantised(w) if x.dim(0)? < EXPAND_FROM_ROWS => quantised_product(w, x)?,
            Weight::Quantised(w) => x.matmul(&expand(w, x.device())?.t()?)?,
        };
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        match lora {
            Some(pair) => y + pair.delta(x)?,
            None => Ok(y),
        }
    }
}

fn quantised_product(w: &QTensor, x: &Tensor) -> Result<Tensor> {
    match w.dtype() {
        // candle has no product for half-precision weights: those are expanded.
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => x.matmul(&expand(w, x.device())?.t()?),
        _ => x.contiguous()?.apply_op1_no_bwd(w),
    }
}

fn expand(w: &QTensor, device: &Device) -> Result<Tensor> {
    w.dequantize(device)
}
