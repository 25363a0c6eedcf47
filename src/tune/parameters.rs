//! What is trained: the two matrices of every adapted linear map, in one run of numbers.
//!
//! Gradients and the optimiser's moments have the same layout, so that clipping, updating, hashing and saving are loops over
//! one slice.

use std::ops::Range;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::model::config::ModelConfig;
use crate::model::tensors::Projection;

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
