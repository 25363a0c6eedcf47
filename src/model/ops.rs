//! The few non-linear pieces of a decoder on candle tensors, written from differentiable operations:
//! candle's fused forms have no backward and cut gradients silently.

use candle_core::{D, Device, Result, Tensor};

use super::config::Rope;

/// x / √(mean(x²) + ε) · w over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// exp(x − max) / Σ over the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Cosines and sines of a run of positions, each of shape (positions, head_dim).
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Angles for positions `start .. start + count`.
    pub(super) fn new(
        rope: &Rope,
        head_dim: usize,
        start: usize,
        count: usize,
        device: &Device,
    ) -> Result<Self> {
        let frequencies = rope.frequencies(head_dim);
        let mut cos = Vec::with_capacity(count * head_dim);
        let mut sin = Vec::with_capacity(count * head_dim);
        for position in start..start + count {
            // Each half of a head sees the same angles.
            for _ in 0..2 {
                for frequency in &frequencies {
                    let (s, c) = (position as f64 * frequency).sin_cos();
                    cos.push(c as f32);
                    sin.push(s as f32);
                }
            }
        }
        Ok(Self {
            cos: Tensor::from_vec(cos, (count, head_dim), device)?,
            sin: Tensor::from_vec(sin, (count, head_dim), device)?,
        })
    }

    /// Rotates x of shape (heads, positions, head_dim), pairing element i with i + head_dim / 2.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned = Tensor::cat(&[&second.neg()?, &first], D::Minus1)?;
        x.broadcast_mul(&self.cos)? + turned.broadcast_mul(&self.sin)?
    }
}

/// An additive mask of shape (queries, keys): query i stands at position `start + i` and sees itself
/// and what is before it, at most `window` positions in all. `None` when nothing is hidden.
pub(super) fn causal_mask(
    start: usize,
    queries: usize,
    window: Option<usize>,
    device: &Device,
) -> Result<Option<Tensor>> {
    let keys = start + queries;
    let window = window.unwrap_or(usize::MAX);
    if queries == 1 && keys <= window {
        return Ok(None);
    }
    let mut mask = vec![f32::NEG_INFINITY; queries * keys];
    for i in 0..queries {
        let position = start + i;
        let first = (position + 1).saturating_sub(window);
        mask[i * keys + first..=i * keys + position].fill(0.0);
    }
    Tensor::from_vec(mask, (queries, keys), device).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::RopeScaling;

    #[test]
    fn the_mask_hides_the_future_and_what_left_the_window() {
        let mask = causal_mask(2, 2, Some(3), &Device::Cpu).unwrap().unwrap();
        let seen: Vec<Vec<bool>> = mask
            .to_vec2::<f32>()
            .unwrap()
            .into_iter()
            .map(|row| row.into_iter().map(|v| v == 0.0).collect())
            .collect();
        assert_eq!(seen, [[true, true, true, false], [false, true, true, true]]);
        assert!(causal_mask(2, 1, Some(3), &Device::Cpu).unwrap().is_none());
        assert!(causal_mask(3, 1, Some(3), &Device::Cpu).unwrap().is_some());
    }

    #[test]
    fn gradients_flow_through_norm_softmax_and_rotation() {
        let device = Device::Cpu;
        let x = candle_core::Var::randn(0f32, 1.0, (2, 3, 8), &device).unwrap();
        let w = Tensor::ones(8, candle_core::DType::F32, &device).unwrap();
        let rope = Rope { theta: 100.0, scaling: RopeScaling::None };
        let rotation = Rotation::new(&rope, 8, 5, 3, &device).unwrap();
        let y = rotation.apply(&softmax(&rms_norm(&x, &w, 1e-6).unwrap()).unwrap()).unwrap();
        let loss = y.sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let grad = grads.get(&x).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(grad > 1e-4, "{grad}");
    }
}
