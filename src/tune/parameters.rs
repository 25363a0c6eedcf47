//! What is trained: the two matrices of every adapted linear map, in one run of numbers.
//!
//! Gradients and the optimiser's moments have the same layout, so that clipping, updating, hashing and saving are loops over
//! one slice.

use std::ops::Range;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::model::config::ModelConfig;
use crate::model::lora::Adapter;
use crate::model::tensors::Projection;

/// Why training cannot start from an adapter.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A map is adapted by one of the two only, or otherwise.
    #[error("layer {layer} {projection}: {found}, and the run asks for {wanted}")]
    Map {
        /// The layer.
        layer: usize,
        /// The map.
        projection: Projection,
        /// What the adapter has.
        found: String,
        /// What the settings say.
        wanted: String,
    },
    /// Its numbers cannot be read.
    #[error(transparent)]
    Numbers(#[from] candle_core::Error),
}

/// Where the two matrices of one adapted map lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The layer.
    pub layer: usize,
    /// The map.
    pub projection: Projection,
    /// (outputs, inputs) of the map.
    pub shape: (usize, usize),
    /// The numbers of A, of shape (rank, inputs).
    pub a: Range<usize>,
    /// The numbers of B, of shape (outputs, rank).
    pub b: Range<usize>,
}

/// Which maps are adapted, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraShape {
    /// Columns of A's output.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Divide by √rank instead of rank (Kalajdzievski 2023).
    pub rslora: bool,
    /// The maps.
    pub targets: Vec<Projection>,
}

impl LoraShape {
    /// What B A x is multiplied by: α/r, or α/√r.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// The matrices of all adapted maps.
#[derive(Debug, Clone)]
pub struct Parameters {
    shape: LoraShape,
    slots: Vec<Slot>,
    /// By layer and [`Projection`]: the index of a slot.
    places: Vec<[Option<usize>; Projection::ALL.len()]>,
    /// All numbers.
    pub numbers: Vec<f32>,
}

impl Parameters {
    /// New matrices: A uniform within ±1/√inputs, as PEFT's Kaiming initialisation, and B zero, so that training starts at the
    /// base model.
    #[must_use]
    pub fn new(config: &ModelConfig, shape: LoraShape, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut slots, mut numbers) = (Vec::new(), Vec::new());
        let mut places = vec![[None; Projection::ALL.len()]; config.layers];
        for (layer, places) in places.iter_mut().enumerate() {
            for projection in Projection::ALL.into_iter().filter(|p| shape.targets.contains(p)) {
                let (outputs, inputs) = projection.shape(config);
                let bound = 1.0 / (inputs as f32).sqrt();
                let a = numbers.len()..numbers.len() + shape.rank * inputs;
                let b = a.end..a.end + outputs * shape.rank;
                numbers.extend((0..a.len()).map(|_| random.random_range(-bound..bound)));
                numbers.resize(b.end, 0.0);
                places[projection as usize] = Some(slots.len());
                slots.push(Slot { layer, projection, shape: (outputs, inputs), a, b });
            }
        }
        Self { shape, slots, places, numbers }
    }

    /// Goes on from the matrices of an adapter, which must adapt the same maps at the same rank and scale.
    ///
    /// # Errors
    /// When it does not; nothing is changed then.
    pub fn start_from(&mut self, adapter: &Adapter) -> Result<(), StartError> {
        let describe = |rank: usize, scale: f64| format!("rank {rank} at scale {scale:.4}");
        let (rank, scale) = (self.shape.rank, f64::from(self.shape.scale()));
        let mut numbers = self.numbers.clone();
        for slot in &self.slots {
            let pair = adapter.pair(slot.layer, slot.projection);
            let found = pair.map(|pair| (pair.a.dims()[0], pair.scale));
            let Some(pair) =
                pair.filter(|pair| pair.a.dims()[0] == rank && (pair.scale / scale - 1.0).abs() < 1e-5)
            else {
                let found = found.map_or("not adapted".to_owned(), |(rank, scale)| describe(rank, scale));
                let (layer, projection) = (slot.layer, slot.projection);
                return Err(StartError::Map { layer, projection, found, wanted: describe(rank, scale) });
            };
            numbers[slot.a.clone()].copy_from_slice(&pair.a.flatten_all()?.to_vec1::<f32>()?);
            numbers[slot.b.clone()].copy_from_slice(&pair.b.flatten_all()?.to_vec1::<f32>()?);
        }
        if let Some((layer, projection, pair)) =
            adapter.pairs().find(|(layer, projection, _)| self.slot(*layer, *projection).is_none())
        {
            let found = describe(pair.a.dims()[0], pair.scale);
            return Err(StartError::Map { layer, projection, found, wanted: "no such map".into() });
        }
        self.numbers = numbers;
        Ok(())
    }

    /// Rank, scale and targets.
    #[must_use]
    pub fn shape(&self) -> &LoraShape {
        &self.shape
    }

    /// All adapted maps in the order of their numbers.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The place of a map's matrices.
    #[must_use]
    pub fn slot(&self, layer: usize, projection: Projection) -> Option<&Slot> {
        self.places.get(layer)?[projection as usize].map(|at| &self.slots[at])
    }
}
