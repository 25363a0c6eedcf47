//! Products with frozen maps.

use crate::kernels::{Activations, Cpu, Output};
use crate::model::frozen::Transposed;

/// Rows times a factor, as inputs of a product.
pub(super) fn quantised(cpu: &Cpu, x: &[f32], columns: usize, factor: f32) -> Activations {
    let mut to = Activations::default();
    to.resize(x.len() / columns, columns);
    if factor == 1.0 {
        to.floats_mut().copy_from_slice(x);
    } else {
        to.floats_mut().iter_mut().zip(x).for_each(|(y, x)| *y = x * factor);
    }
    cpu.quantise(&mut to);
    to
}

/// The gradient of a frozen map's inputs, given that of its outputs.
pub(super) fn frozen_back(cpu: &Cpu, map: &Transposed, slope: &[f32], to: &mut [f32], add: bool) {
    let (part, factor) = map.part();
    let (outputs, inputs) = map.shape();
    let x = quantised(cpu, slope, outputs, factor);
    cpu.linear(&x, &[part], &mut [Output { to, stride: inputs, add }]);
}
