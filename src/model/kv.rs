//! The key-value cache of one sequence on the reference decoder.

use candle_core::{Result, Tensor};

/// Buffers grow by this many positions, so that a decoded token rarely reallocates.
const GROWTH: usize = 256;

/// Keys and values of every layer, each of shape (key-value heads, positions, head_dim).
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<LayerCache>>,
    len: usize,
}

#[derive(Debug)]
struct LayerCache {
    k: Tensor,
    v: Tensor,
    capacity: usize,
}

impl KvCache {
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| None).collect(), len: 0 }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Counts positions that every layer has appended.
    pub(super) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// Puts a layer's new keys and values behind the `start` positions held, and returns all of them.
    pub(super) fn append(
        &mut self,
        layer: usize,
        start: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (heads, count, dim) = k.dims3()?;
        let end = start + count;
        let slot = &mut self.layers[layer];
        if slot.as_ref().is_none_or(|s| s.capacity < end) {
            let capacity = end.next_multiple_of(GROWTH);
            let grown = |old: Option<&Tensor>| -> Result<Tensor> {
                let buffer = Tensor::zeros((heads, capacity, dim), k.dtype(), k.device())?;
                if let Some(old) = old.filter(|_| start > 0) {
                    buffer.slice_set(&old.narrow(1, 0, start)?.contiguous()?, 1, 0)?;
                }
                Ok(buffer)
            };
            *slot = Some(LayerCache {
                k: grown(slot.as_ref().map(|s| &s.k))?,
                v: grown(slot.as_ref().map(|s| &s.v))?,
                capacity,
            });
        }
        match slot {
            Some(cache) => {
                cache.k.slice_set(&k.contiguous()?, 1, start)?;
                cache.v.slice_set(&v.contiguous()?, 1, start)?;
                // Writing into a buffer is not recorded: the new ones can be differentiated, their copies cannot.
                let behind = |kept: &Tensor, new: &Tensor| match start {
                    0 => new.contiguous(),
                    _ => Tensor::cat(&[&kept.narrow(1, 0, start)?, new], 1),
                };
                Ok((behind(&cache.k, k)?, behind(&cache.v, v)?))
            }
            None => candle_core::bail!("the key-value cache of layer {layer} is missing"),
        }
    }
}
