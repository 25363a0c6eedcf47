//! Exponentials, gates, norms, and the quantisation that follows them.

use super::super::math;
use super::super::simd::portable::Portable;
use super::super::{Activations, Cpu, Gate, Matrix, Output, Pages, Part, QuantType, WeightType};
use super::{Random, Weight, activations, assert_close, assert_same, bits, cpus, plain};

/// eˣ of the kernels.
fn exp(x: [f32; 16]) -> [f32; 16] {
    // SAFETY: plain Rust runs everywhere.
    unsafe { math::exp::<Portable>(x) }
}

#[test]
fn exponentials_are_right_to_two_units_in_the_last_place() {
    let mut random = Random(30);
    let mut numbers: Vec<f32> = (-8_700..=8_700).map(|n| n as f32 / 100.0).collect();
    numbers.extend((0..20_000).map(|_| random.float() * 87.0));
    numbers.extend((0..20_000).map(|_| random.float()));
    numbers.extend([
        0.0,
        -0.0,
        1e-30,
        -1e-30,
        1e-45,
        0.5 * std::f32::consts::LN_2,
        -0.5 * std::f32::consts::LN_2,
    ]);
    numbers.resize(numbers.len().next_multiple_of(16), 0.0);
    for chunk in numbers.chunks_exact(16) {
        let x: [f32; 16] = chunk.try_into().unwrap();
        for (x, found) in x.into_iter().zip(exp(x)) {
            let expected = f64::from(x).exp();
            assert_close(found, expected, 2.0 * expected * f64::from(f32::EPSILON), &format!("e^{x}"));
        }
    }
    assert_eq!(exp([0.0; 16]), [1.0; 16]);
    // Beyond, the value at that end, not infinity and not what the exponent's bits would wrap to.
    for beyond in [87.1, 89.0, 1e4, 1e30, f32::INFINITY] {
        assert_eq!(exp([beyond; 16]), exp([87.0; 16]), "{beyond}");
        assert_eq!(exp([-beyond; 16]), exp([-87.0; 16]), "−{beyond}");
    }
}

fn gate_of(activation: Gate, x: f64) -> f64 {
    match activation {
        Gate::Silu => x / (1.0 + (-x).exp()),
        Gate::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// activation(gate) · up of given numbers: one column of weights, and an input of 1.
fn gated(cpu: &Cpu, gates: &[f32], ups: &[f32], activation: Gate) -> Vec<f32> {
    let weights = [gates, ups].map(|w| Matrix::pack_f32((w.len(), 1), w, &mut Pages::default()).unwrap());
    let [gate, up] = [0, 1].map(|n| Part { weight: &weights[n], bias: None, deltas: &[] });
    let (mut x, mut out) = (Activations::default(), Activations::default());
    x.resize(1, 1);
    x.floats_mut()[0] = 1.0;
    cpu.gated(&x, [&gate, &up], activation, false, &mut out);
    out.floats().to_vec()
}

#[test]
fn gates_are_the_functions_that_they_are_named_after() {
    let mut gates: Vec<f32> = (-1_000..=1_000).map(|n| n as f32 / 10.0).collect();
    gates.extend([0.0, -0.0, 1e-30, -1e-30, 1e-40, 1e4, -1e4, 1e9, -1e9, 1e30, 3e38]);
    let ups: Vec<f32> = (0..gates.len()).map(|n| if n % 2 == 0 { 1.0 } else { -0.75 }).collect();
    for activation in [Gate::Silu, Gate::Gelu] {
        let expected = gated(&plain(), &gates, &ups, activation);
        for ((gate, up), found) in gates.iter().zip(&ups).zip(&expected) {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let exact = gate_of(activation, gate) * up;
            // A large argument's own rounding is multiplied by it in the exponential. Far below 0 what the
            // exponential's end leaves is no more than 10⁻³⁷ of the input.
            let tolerance = 1e-6 * exact.abs() * (1.0 + gate.abs().min(90.0)) + 1e-37 * gate.abs() + 1e-38;
            let tolerance =
                if activation == Gate::Gelu { tolerance + 1e-7 * gate.abs().min(1e3) } else { tolerance };
            assert_close(*found, exact, tolerance, &format!("{activation:?} of {gate}"));
        }
        for cpu in (1..=2).flat_map(cpus) {
            assert_same(&gated(&cpu, &gates, &ups, activation), &expected, cpu.variant().as_str());
            for broken in [f32::NAN, f32::INFINITY] {
                let found = gated(&cpu, &[broken, 1.0, 2.0], &[1.0, broken, 1.0], activation);
                assert!(!found[0].is_finite() && !found[1].is_finite() && found[2].is_finite(), "{found:?}");
            }
        }
    }
}

#[test]
fn gated_products_of_any_width_and_number_of_tokens() {
    let mut random = Random(31);
    // The last two are more than a task of few tokens has.
    for (n, columns) in [1, 15, 16, 17, 31, 33, 70, 32, 64, 160, 1_056, 1_500].into_iter().enumerate() {
        for tokens in [1, 2, 8, 9, 17] {
            let inputs = 32;
            let kind = WeightType::Quantised(QuantType::ALL[n % 5]);
            let w = [0, 1].map(|_| Weight::new(kind, columns, inputs, &mut random));
            let bias = random.floats(columns, 1.0);
            let parts = [
                Part { weight: &w[0].matrix, bias: Some(&bias), deltas: &[] },
                Part { weight: &w[1].matrix, bias: None, deltas: &[] },
            ];
            let x = random.floats(tokens * inputs, 1.0);
            let activation = [Gate::Silu, Gate::Gelu][n % 2];
            let [gates, ups] = [0, 1].map(|n| super::products::alone(&x, &parts[n]));
            let expected = gated(&plain(), &gates, &ups, activation);
            let next = Weight::new(
                WeightType::Quantised(QuantType::Q4_0),
                5,
                columns.next_multiple_of(32),
                &mut random,
            );
            for cpu in (1..=3).flat_map(cpus) {
                let what = format!("{columns} columns, {tokens} tokens, {}", cpu.variant().as_str());
                let x = activations(&cpu, &x, inputs);
                let mut out = Activations::default();
                // What an earlier, larger product left must not matter.
                cpu.normalise(&[3.0; 40 * 192], &[1.0; 192], 1e-5, true, &mut out);
                cpu.gated(&x, [&parts[0], &parts[1]], activation, false, &mut out);
                assert_same(out.floats(), &expected, &what);
                if columns.is_multiple_of(32) {
                    cpu.gated(&x, [&parts[0], &parts[1]], activation, true, &mut out);
                    assert_same(out.floats(), &expected, &what);
                    let apart = activations(&cpu, &expected, columns);
                    assert_same(
                        &through(&cpu, &next, &out, tokens),
                        &through(&cpu, &next, &apart, tokens),
                        &what,
                    );
                }
            }
        }
    }
}

/// A product with quantised inputs, to see what they were quantised to.
fn through(cpu: &Cpu, w: &Weight, x: &Activations, tokens: usize) -> Vec<f32> {
    let rows = w.matrix.rows();
    let mut to = vec![0f32; tokens * rows];
    let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
    cpu.linear(x, &[part], &mut [Output { to: &mut to, stride: rows, add: false }]);
    to
}

#[test]
fn norms_of_any_length() {
    let mut random = Random(32);
    for columns in [1, 2, 15, 16, 17, 31, 33, 64, 100, 576] {
        for rows in [1, 8, 9, 20] {
            let mut x = random.floats(rows * columns, 5.0);
            // A row of zeros, a row of tiny and one of huge numbers.
            for (row, size) in x.chunks_exact_mut(columns).zip([1.0, 0.0, 1e-20, 1e17]) {
                row.iter_mut().for_each(|v| *v *= size);
            }
            let weight = random.floats(columns, 2.0);
            let mut expected = Activations::default();
            plain().normalise(&x, &weight, 1e-5, false, &mut expected);
            for (x, found) in x.chunks_exact(columns).zip(expected.floats().chunks_exact(columns)) {
                let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
                let scale = 1.0 / (squares / columns as f64 + f64::from(1e-5f32)).sqrt();
                for ((x, w), found) in x.iter().zip(&weight).zip(found) {
                    let y = f64::from(*x) * scale * f64::from(*w);
                    assert_close(*found, y, 2e-6 * y.abs() + 1e-30, &format!("{columns} columns"));
                }
            }
            for cpu in (1..=3).flat_map(cpus) {
                let what = format!("{columns} columns, {rows} rows, {}", cpu.variant().as_str());
                let mut out = Activations::default();
                cpu.normalise(&x, &weight, 1e-5, false, &mut out);
                assert_same(out.floats(), expected.floats(), &what);
                let mut in_place = x.clone();
                cpu.normalise_in_place(&mut in_place, &weight, 1e-5);
                assert_same(&in_place, expected.floats(), &what);
            }
        }
    }
}

#[test]
fn norms_beyond_the_range_of_squares_are_the_same_everywhere() {
    let weight = [1.0; 33];
    for (at, broken) in
        [(0, f32::NAN), (32, f32::NAN), (5, f32::INFINITY), (32, -f32::INFINITY), (3, 1e30), (32, 1e30)]
    {
        let mut x = [1.0f32; 33];
        x[at] = broken;
        let mut expected = x;
        plain().normalise_in_place(&mut expected, &weight, 1e-5);
        // Nothing that is not finite passes for a number.
        assert!(broken.is_finite() || expected[at].is_nan(), "{broken} at {at}");
        for cpu in cpus(1) {
            let mut found = x;
            cpu.normalise_in_place(&mut found, &weight, 1e-5);
            assert_same(&found, &expected, cpu.variant().as_str());
        }
    }
}

#[test]
fn a_norm_quantises_what_it_gives() {
    let mut random = Random(33);
    for (rows, columns) in [(1, 32), (3, 96), (8, 64), (13, 64), (40, 32)] {
        let (x, weight) = (random.floats(rows * columns, 4.0), random.floats(columns, 1.0));
        let w = Weight::new(WeightType::Quantised(QuantType::Q8_0), 19, columns, &mut random);
        for cpu in (1..=3).flat_map(cpus) {
            let mut out = Activations::default();
            cpu.normalise(&x, &weight, 1e-6, true, &mut out);
            let apart = activations(&cpu, out.floats(), columns);
            let what = format!("{rows} rows of {columns}, {}", cpu.variant().as_str());
            assert_same(&through(&cpu, &w, &out, rows), &through(&cpu, &w, &apart, rows), &what);
        }
    }
}

#[test]
fn activations_forget_what_they_held() {
    let mut random = Random(34);
    let w = Weight::new(WeightType::Quantised(QuantType::Q4_1), 16, 64, &mut random);
    for cpu in cpus(2) {
        let x = random.floats(3 * 64, 1.0);
        let fresh = through(&cpu, &w, &activations(&cpu, &x, 64), 3);
        let mut used = activations(&cpu, &random.floats(20 * 256, 9.0), 256);
        used.resize(3, 64);
        used.floats_mut().copy_from_slice(&x);
        cpu.quantise(&mut used);
        assert_eq!(bits(&through(&cpu, &w, &used, 3)), bits(&fresh));
    }
}
