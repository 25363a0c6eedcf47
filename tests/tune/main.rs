//! Tuning: the graph is held to candle's differentiation of the reference decoder, on every architecture.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod compared;
mod ends;
mod gradients;
mod killed;
mod program;
mod reader;
mod runs;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use shishin::kernels::{Cpu, Variant};
use shishin::model::BaseModel;
use shishin::model::frozen::FrozenModel;
use shishin::model::lora::{Adapter, LoraPair};
use shishin::model::tensors::Projection;
use shishin::model::weights::WeightForm;
use shishin::tune::parameters::Parameters;

fn cpu() -> Cpu {
    Cpu::new(Variant::best(), 2).unwrap()
}

fn frozen(path: &Path, form: WeightForm) -> BaseModel<FrozenModel> {
    BaseModel::load_frozen(path, form, None, cpu()).unwrap_or_else(|e| panic!("{e}"))
}

/// The parameters as candle variables, A and B of each slot, and the adapter of them.
fn variables(parameters: &Parameters) -> (Vec<(Var, Var)>, Adapter) {
    let (rank, scale) = (parameters.shape().rank, f64::from(parameters.shape().scale()));
    let mut pairs: BTreeMap<(usize, Projection), LoraPair> = BTreeMap::new();
    let mut all = Vec::new();
    for slot in parameters.slots() {
        let var = |range: std::ops::Range<usize>, shape: (usize, usize)| {
            let numbers = parameters.numbers[range].to_vec();
            Var::from_tensor(&Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()).unwrap()
        };
        let (a, b) = (var(slot.a.clone(), (rank, slot.shape.1)), var(slot.b.clone(), (slot.shape.0, rank)));
        let pair = LoraPair { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale };
        pairs.insert((slot.layer, slot.projection), pair);
        all.push((a, b));
    }
    (all, Adapter::from_pairs(pairs).unwrap())
}
