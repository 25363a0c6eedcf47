//! An adapter packed for the kernels.

use std::ops::Range;

use super::super::config::ModelConfig;
use super::super::lora::{Adapter, AdapterFormat, LoraPair};
use super::super::tensors::Projection;
use super::floats;
use crate::kernels::{Delta, DenseType, Matrix, Pages};
use crate::model::weights::WeightError;

/// A LoRA adapter ready to be added to a pass. Its matrices are half precision where that loses nothing
/// that counts, else 32-bit floats.
#[derive(Debug)]
pub struct PackedAdapter {
    fingerprint: String,
    format: AdapterFormat,
    /// By layer and [`Projection`].
    pairs: Vec<[Option<Pair>; Projection::ALL.len()]>,
}

#[derive(Debug)]
struct Pair {
    down: Matrix,
    up: Matrix,
    scale: f32,
}

impl PackedAdapter {
    /// Packs an adapter that was bound to a model of this configuration.
    ///
    /// # Errors
    /// When a matrix cannot be read.
    pub fn pack(adapter: &Adapter, config: &ModelConfig) -> Result<Self, WeightError> {
        let mut pages = Pages::default();
        let mut pairs: Vec<[Option<Pair>; Projection::ALL.len()]> = Vec::new();
        pairs.resize_with(config.layers, Default::default);
        for (layer, projection, pair) in adapter.pairs() {
            pairs[layer][projection as usize] = Some(Pair::pack(pair, &mut pages)?);
        }
        Ok(Self { fingerprint: adapter.fingerprint().to_owned(), format: adapter.format(), pairs })
    }

    /// An adapter of random numbers on all linear maps of a model, to time with. Its fingerprint says so.
    ///
    /// # Errors
    /// When the model has no size.
    pub fn synthetic(config: &ModelConfig, rank: usize, seed: u64) -> Result<Self, WeightError> {
        use rand::{Rng as _, SeedableRng as _};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut pages = Pages::default();
        let mut matrix = |rows: usize, columns: usize| {
            let numbers: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-0.01..0.01)).collect();
            Matrix::pack_dense((rows, columns), &numbers, type_for(&numbers), &mut pages).ok_or_else(no_matrix)
        };
        let mut pairs = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            let mut layer: [Option<Pair>; Projection::ALL.len()] = Default::default();
            for p in Projection::ALL {
                let (outputs, inputs) = p.shape(config);
                let (down, up) = (matrix(rank, inputs)?, matrix(outputs, rank)?);
                layer[p as usize] = Some(Pair { down, up, scale: 2.0 });
            }
            pairs.push(layer);
        }
        let fingerprint = format!("synthetic-{rank}-{seed}");
        Ok(Self { fingerprint, format: AdapterFormat::Peft, pairs })
    }

    /// SHA-256 over configuration and weights, as [`Adapter::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The format it came in.
    pub fn format(&self) -> AdapterFormat {
        self.format
    }

    /// Bytes of all its matrices.
    pub fn bytes(&self) -> usize {
        self.pairs.iter().flatten().flatten().map(|pair| pair.down.bytes() + pair.up.bytes()).sum()
    }

    /// What it adds to a projection's results for some rows.
    pub(super) fn delta(&self, layer: usize, p: Projection, rows: Range<usize>) -> Option<Delta<'_>> {
        let pair = self.pairs.get(layer)?[p as usize].as_ref()?;
        Some(Delta { rows, down: &pair.down, up: &pair.up, scale: pair.scale })
    }
}

impl Pair {
    fn pack(pair: &LoraPair, pages: &mut Pages) -> Result<Self, WeightError> {
        let mut pack = |tensor: &candle_core::Tensor| -> Result<Matrix, WeightError> {
            let (shape, numbers) = (tensor.dims2()?, floats(tensor)?);
            Matrix::pack_dense(shape, &numbers, type_for(&numbers), pages)
                .ok_or_else(no_matrix)
        };
        Ok(Self { down: pack(&pair.a)?, up: pack(&pair.b)?, scale: pair.scale as f32 })
    }
}

fn no_matrix() -> WeightError {
    WeightError::Candle(candle_core::Error::Msg("an empty adapter matrix".into()))
}

/// bfloat16 where it is exact (adapters are often trained in it); half precision, whose 11 bits are well
/// below the noise of 8-bit activations, where no number leaves its range; else 32 bits.
fn type_for(numbers: &[f32]) -> DenseType {
    let largest = numbers.iter().fold(0f32, |top, v| top.max(v.abs()));
    if numbers.iter().all(|v| v.to_bits() & 0xFFFF == 0) {
        DenseType::Bf16
    } else if (1e-3..6e4).contains(&largest) {
        DenseType::F16
    } else {
        DenseType::F32
    }
}
