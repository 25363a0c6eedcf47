//! LayerNorm and GELU of encoders, against 64 bits and between instruction sets.

use super::super::{Activations, Affine, Cpu};
use super::{Random, assert_close, assert_same, cpus, plain};

fn of(rows: usize, columns: usize, numbers: &[f32]) -> Activations {
    let mut x = Activations::default();
    x.resize(rows, columns);
    x.floats_mut().copy_from_slice(numbers);
    x
}

/// Φ(x), by Simpson's rule over the density.
fn normal(x: f64) -> f64 {
    const STEPS: usize = 4_000;
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let width = x.abs() / STEPS as f64;
    let sum: f64 = (0..=STEPS)
        .map(|n| {
            let factor = if n == 0 || n == STEPS { 1.0 } else { [2.0, 4.0][n % 2] };
            factor * density(n as f64 * width)
        })
        .sum();
    0.5 + x.signum() * sum * width / 3.0
}

fn gelu(cpu: &Cpu, numbers: &[f32]) -> Vec<f32> {
    let mut x = of(1, numbers.len(), numbers);
    cpu.gelu(&mut x);
    x.floats().to_vec()
}

#[test]
fn gelu_is_that_of_the_error_function() {
    let numbers: Vec<f32> = (-384..384).map(|n| n as f32 / 64.0).collect();
    let found = gelu(&plain(), &numbers);
    for (x, found) in numbers.iter().zip(&found) {
        let expected = f64::from(*x) * normal(f64::from(*x));
        assert_close(*found, expected, 2e-6, &format!("gelu({x})"));
    }
    let far = gelu(&plain(), &[[40.0, -40.0, 1e20, -1e20].repeat(8)].concat());
    assert_eq!((far[0], far[2]), (40.0, 1e20));
    assert!(far[1].abs() < 1e-30 && far[3].abs() < 1e-30, "{far:?}");
    let mut broken = vec![1.0; 32];
    broken[3] = f32::NAN;
    assert!(gelu(&plain(), &broken)[3].is_nan());
    for cpu in cpus(2) {
        assert_same(&gelu(&cpu, &numbers), &found, cpu.variant().as_str());
    }
}

#[test]
fn layer_norm_is_that_of_the_definition() {
    let mut random = Random(60);
    for (rows, columns) in [(1, 32), (7, 96), (40, 384)] {
        let (x, y) = (random.floats(rows * columns, 5.0), random.floats(rows * columns, 5.0));
        let (weight, bias) = (random.floats(columns, 2.0), random.floats(columns, 2.0));
        let norm = Affine { weight: &weight, bias: &bias, eps: 1e-5 };
        let run = |cpu: &Cpu| {
            let mut x = of(rows, columns, &x);
            cpu.add_layer_norm(&mut x, &y, norm);
            x.floats().to_vec()
        };
        let found = run(&plain());
        for (row, found) in found.chunks_exact(columns).enumerate() {
            let at = row * columns;
            let sum = |n: usize| f64::from(x[at + n]) + f64::from(y[at + n]);
            let mean = (0..columns).map(sum).sum::<f64>() / columns as f64;
            let variance = (0..columns).map(|n| (sum(n) - mean).powi(2)).sum::<f64>() / columns as f64;
            for (n, found) in found.iter().enumerate() {
                let normal = (sum(n) - mean) / (variance + 1e-5).sqrt();
                let expected = normal * f64::from(weight[n]) + f64::from(bias[n]);
                assert_close(*found, expected, 2e-5, "a normalised number");
            }
        }
        for cpu in cpus(3) {
            assert_same(&run(&cpu), &found, cpu.variant().as_str());
        }
    }
}
