//! Losses and gradients against the reference decoder, differentiated by candle.

use std::sync::Arc;

use candle_core::{D, Tensor};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use shishin::model::BaseModel;
use shishin::model::config::Architecture;
use shishin::model::decoder::Logits;
use shishin::model::tensors::Projection;
use shishin::model::weights::WeightForm;
use shishin::tune::batch::{Batch, Target};
use shishin::tune::graph::{Graph, Regularisation};
use shishin::tune::parameters::{LoraShape, Parameters};

use super::common::tiny;
use super::{frozen, variables};

/// Sums in another order, in 32 bits.
const SAME: f64 = 2e-4;

/// Parameters with a B that is not zero, so that A has a gradient.
fn parameters(model: &BaseModel<impl Sized>, rank: usize) -> Parameters {
    let shape =
        LoraShape { rank, alpha: 2.0 * rank as f64, rslora: false, targets: Projection::ALL.to_vec() };
    let mut parameters = Parameters::new(&model.config, shape, 7);
    let mut random = ChaCha8Rng::seed_from_u64(8);
    for slot in parameters.slots().to_vec() {
        parameters.numbers[slot.b].iter_mut().for_each(|b| *b = random.random_range(-0.2..0.2));
    }
    parameters
}

/// Two sequences, one past gemma's window, with targets in the middle and at the end of each.
fn batch() -> Batch {
    let tokens = [tiny::prompt(2 * tiny::WINDOW), tiny::prompt(29)].concat();
    let spans = vec![0..2 * tiny::WINDOW, 2 * tiny::WINDOW..2 * tiny::WINDOW + 29];
    let target = |row: usize| Target { row, token: tokens[row + 1], weight: 0.1 + (row % 3) as f32 * 0.2 };
    let rows = (30..50).chain(70..79).chain(85..108);
    Batch { targets: rows.map(target).collect(), tokens, spans, prefixes: Vec::new() }
}

/// −log p of the targets by the reference decoder, one tensor for each sequence; `before` are what the base reads before each.
fn reference_nll(
    reference: &BaseModel,
    adapter: Option<&shishin::model::lora::Adapter>,
    batch: &Batch,
    before: &[Vec<u32>],
) -> (Tensor, Tensor) {
    let (mut nlls, mut logs) = (Vec::new(), Vec::new());
    for (at, span) in batch.spans.iter().enumerate() {
        let mut cache = reference.decoder.new_cache();
        if let Some(before) = before.get(at).filter(|before| !before.is_empty()) {
            reference.decoder.forward(before, &mut cache, None, Logits::Last, &|| false).unwrap();
        }
        let tokens = &batch.tokens[span.clone()];
        let logits = reference.decoder.forward(tokens, &mut cache, adapter, Logits::All, &|| false).unwrap();
        // candle's own log_softmax, whose fused form has no backward, written out.
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1).unwrap().detach()).unwrap();
        let sum = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
        let log_p = shifted.broadcast_sub(&sum).unwrap();
        for target in batch.targets.iter().filter(|t| span.contains(&t.row)) {
            let row = log_p.get(target.row - span.start).unwrap();
            nlls.push(row.get(target.token as usize).unwrap().neg().unwrap());
            logs.push(row);
        }
    }
    (Tensor::stack(&nlls, 0).unwrap(), Tensor::stack(&logs, 0).unwrap())
}

fn weights(batch: &Batch) -> Tensor {
    let weights: Vec<f32> = batch.targets.iter().map(|t| t.weight).collect();
    Tensor::new(weights, &candle_core::Device::Cpu).unwrap()
}

/// |found − expected| ÷ |expected|.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut expected.iter().map(|v| f64::from(*v))).max(1e-12)
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_architecture_has_the_gradients_that_candle_finds() {
    for architecture in Architecture::ALL {
        for kl in [0.0f32, 0.7] {
            compare(architecture, kl, &[], SAME);
        }
    }
}

/// The first sequence goes on within gemma's window of what the base has read, the second beyond it, the third has read nothing.
#[test]
fn late_adapters_have_the_gradients_that_candle_finds_behind_a_cache() {
    for architecture in Architecture::ALL {
        for kl in [0.0f32, 0.7] {
            let before = [tiny::prompt(tiny::WINDOW / 2), tiny::prompt(2 * tiny::WINDOW + 5)];
            // The keys and values of the base are kept in half precision.
            compare(architecture, kl, &before, 4e-3);
        }
    }
}

fn compare(architecture: Architecture, kl: f32, before: &[Vec<u32>], tolerance: f64) {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::Tiny::new(architecture);
    model.write(folder.path());
    let (reference, ours) = (model.load(), frozen(folder.path(), WeightForm::Stored));
    let (parameters, mut batch) = (parameters(&ours, 5), batch());
    let mut graph = Graph::new(&ours.decoder);
    batch.prefixes =
        before.iter().map(|tokens| Some(Arc::new(graph.prefix(tokens, WeightForm::Stored)))).collect();

    let (vars, adapter) = variables(&parameters);
    let (nll, log_q) = reference_nll(&reference, Some(&adapter), &batch, before);
    let mut loss = nll.clone();
    let (_, log_p) = reference_nll(&reference, None, &batch, before);
    let divergence = (log_p.exp().unwrap() * (log_p - log_q).unwrap()).unwrap().sum(1).unwrap();
    if kl > 0.0 {
        loss = (loss + (&divergence * f64::from(kl)).unwrap()).unwrap();
    }
    let loss = (loss * weights(&batch)).unwrap().sum_all().unwrap();
    let expected = loss.backward().unwrap();

    let mut slopes = vec![0f32; parameters.numbers.len()];
    let regularisation = Regularisation { kl, ..Regularisation::default() };
    let losses = graph.gradients(&batch, &parameters, regularisation, &mut slopes);
    let mut checkpointing = Graph::new(&ours.decoder).checkpointing(true);
    for dropout in [0.0, 0.3, 0.3] {
        let regularisation = Regularisation { dropout, seed: 5, kl };
        let mut found = [vec![0f32; parameters.numbers.len()], vec![0f32; parameters.numbers.len()]];
        let [kept, again] = &mut found;
        let first = graph.gradients(&batch, &parameters, regularisation, kept);
        let second = checkpointing.gradients(&batch, &parameters, regularisation, again);
        assert!(first.nll == second.nll && first.kl == second.kl, "{architecture:?}, dropout {dropout}");
        assert!(kept == again, "{architecture:?}, dropout {dropout}: with checkpoints");
    }
    let name = format!("{architecture:?}, kl {kl}, {} prefixes", before.len());
    let error_of_losses = error(&losses.nll, &numbers(&nll));
    assert!(error_of_losses < tolerance, "{name}: losses: {error_of_losses}");
    if kl > 0.0 {
        assert!(error(&losses.kl, &numbers(&divergence)) < tolerance, "{name}: divergences");
    }
    assert_eq!(graph.losses(&batch, Some(&parameters)).nll, losses.nll, "{name}");
    for (slot, (a, b)) in parameters.slots().iter().zip(&vars) {
        for (what, range, var) in [("A", &slot.a, a), ("B", &slot.b, b)] {
            let expected = numbers(expected.get(var).unwrap());
            let error = error(&slopes[range.clone()], &expected);
            let (layer, projection) = (slot.layer, slot.projection);
            assert!(error < tolerance, "{name}: {what} of layer {layer} {projection}: {error}");
        }
    }
}
