//! The operations of a decoder that are no products, each with its adjoint: norms, rotary embedding, gates.
//!
//! All work on rows and share them among the processor's threads; a row's result depends on no other row.

use crate::kernels::{Affine, Cpu};
use crate::model::config::Activation;

/// Rows that a task works on.
const ROWS: usize = 16;

/// eˣ with a relative error below 3·10⁻⁷, in a form that the compiler makes vectors of: 2ⁿ by the exponent bits, the rest by
/// Cephes' polynomial (S. Moshier).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer that then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let turned = x * std::f32::consts::LOG2_E + ROUND;
    let n = turned - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(turned.to_bits() << 23))
}

/// The gate's value and its derivative at x.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + exp(-x));
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// The tanh approximation of GELU and its derivative at x.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6; // √(2/π)
    const CUBE: f32 = 0.044_715;
    let inner = ROOT * (x + CUBE * x * x * x);
    // tanh(y) = 1 − 2 / (e²ʸ + 1)
    let tanh = 1.0 - 2.0 / (exp(2.0 * inner) + 1.0);
    let slope = ROOT * (1.0 + 3.0 * CUBE * x * x);
    (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope)
}

/// activation(gate) · up, into `out`.
pub(super) fn gated(
    cpu: &Cpu,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    width: usize,
    out: &mut [f32],
) {
    let chunk = ROWS * width;
    let work = out.chunks_mut(chunk).zip(gate.chunks(chunk).zip(up.chunks(chunk))).collect();
    cpu.each(work, |(out, (gate, up)): (&mut [f32], (&[f32], &[f32]))| {
        let pairs = out.iter_mut().zip(gate.iter().zip(up));
        match activation {
            Activation::Silu => pairs.for_each(|(y, (g, u))| *y = silu(*g).0 * u),
            Activation::GeluTanh => pairs.for_each(|(y, (g, u))| *y = gelu(*g).0 * u),
        }
    });
}

/// The adjoint of [`gated`]: `gate` and `up` become their own gradients, given that of the output.
pub(super) fn gated_back(
    cpu: &Cpu,
    activation: Activation,
    (gate, up): (&mut [f32], &mut [f32]),
    slope: &[f32],
    width: usize,
) {
    let chunk = ROWS * width;
    let work = gate.chunks_mut(chunk).zip(up.chunks_mut(chunk)).zip(slope.chunks(chunk)).collect();
    cpu.each(work, |((gate, up), slope): ((&mut [f32], &mut [f32]), &[f32])| {
        let all = gate.iter_mut().zip(up).zip(slope);
        let set = |((g, u), dy): ((&mut f32, &mut f32), &f32), (value, derivative): (f32, f32)| {
            *g = dy * *u * derivative;
            *u = dy * value;
        };
        match activation {
            Activation::Silu => all.for_each(|((g, u), dy)| {
                let at = silu(*g);
                set(((g, u), dy), at);
            }),
            Activation::GeluTanh => all.for_each(|((g, u), dy)| {
                let at = gelu(*g);
                set(((g, u), dy), at);
            }),
        }
    });
}

/// Σ over eight partial sums, which the compiler can keep in vectors.
#[inline(always)]
fn sum(terms: impl Fn(usize) -> f32, count: usize) -> f32 {
    let mut parts = [0f32; 16];
    let whole = count / 16 * 16;
    for start in (0..whole).step_by(16) {
        for (lane, part) in parts.iter_mut().enumerate() {
            *part += terms(start + lane);
        }
    }
    (whole..count).map(terms).sum::<f32>() + parts.iter().sum::<f32>()
}

/// The sum.
#[inline(always)]
pub(super) fn total(x: &[f32]) -> f32 {
    sum(|i| x[i], x.len())
}

/// The inner product.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let count = a.len().min(b.len());
    let (a, b) = (&a[..count], &b[..count]);
    sum(|i| a[i] * b[i], count)
}

/// The adjoint of RMSNorm (y = x · w / √(mean x² + ε)), row by row of `weight.len()` numbers: adds the gradient of x, given
/// that of y, to `to`; or sets it.
pub(super) fn norm_back(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    slope: &[f32],
    to: &mut [f32],
    add: bool,
) {
    let width = weight.len();
    let chunk = ROWS * width;
    let work = to.chunks_mut(chunk).zip(x.chunks(chunk).zip(slope.chunks(chunk))).collect();
    cpu.each(work, |(to, (x, slope)): (&mut [f32], (&[f32], &[f32]))| {
        for ((to, x), dy) in
            to.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(slope.chunks_exact(width))
        {
            let inverse = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            let along = sum(|i| x[i] * weight[i] * dy[i], width) * inverse * inverse / width as f32;
            for (((to, x), w), dy) in to.iter_mut().zip(x).zip(weight).zip(dy) {
                let gradient = inverse * (w * dy - x * along);
                *to = if add { *to + gradient } else { gradient };
            }
        }
    });
}

/// Cosines and sines of positions, of shape (positions, head_dim / 2).
#[derive(Debug, Default)]
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    pub(super) fn new(frequencies: &[f64], positions: impl Iterator<Item = usize>) -> Self {
        let (cos, sin) = positions
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .unzip();
        Self { cos, sin, half: frequencies.len() }
    }

    /// Rotates every head of every row, pairing element i with i + head_dim / 2; back when `direction` is −1.
    pub(super) fn rotate(&self, cpu: &Cpu, x: &mut [f32], width: usize, direction: f32) {
        let (half, cos, sin) = (self.half, &self.cos, &self.sin);
        let work = x.chunks_mut(ROWS * width).zip(cos.chunks(ROWS * half).zip(sin.chunks(ROWS * half)));
        cpu.each(work.collect(), |(x, (cos, sin)): (&mut [f32], (&[f32], &[f32]))| {
            let rows = x.chunks_exact_mut(width).zip(cos.chunks_exact(half).zip(sin.chunks_exact(half)));
            for (row, (cos, sin)) in rows {
                for head in row.chunks_exact_mut(2 * half) {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        let sin = sin * direction;
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
    }
}

/// y += x.
pub(super) fn add(cpu: &Cpu, x: &[f32], y: &mut [f32]) {
    const CHUNK: usize = 1 << 14;
    let work = y.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).collect();
    cpu.each(work, |(y, x): (&mut [f32], &[f32])| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
}

/// The adjoint of LayerNorm, row by row: the gradient of what was normalised, given that of the result.
pub(super) fn layer_norm_back(cpu: &Cpu, x: &[f32], norm: Affine<'_>, slope: &[f32]) -> Vec<f32> {
    let width = norm.weight.len();
    let chunk = ROWS * width;
    let mut to = vec![0f32; x.len()];
    let work = to.chunks_mut(chunk).zip(x.chunks(chunk).zip(slope.chunks(chunk))).collect();
    cpu.each(work, |(to, (x, slope)): (&mut [f32], (&[f32], &[f32]))| {
        for ((to, x), dy) in
            to.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(slope.chunks_exact(width))
        {
            let count = width as f32;
            let mean = total(x) / count;
            let variance = sum(|i| (x[i] - mean) * (x[i] - mean), width) / count;
            let inverse = 1.0 / (variance + norm.eps).sqrt();
            let weighted = dot(norm.weight, dy) / count;
            let along = sum(|i| norm.weight[i] * dy[i] * (x[i] - mean), width) * inverse * inverse / count;
            for (((to, x), w), dy) in to.iter_mut().zip(x).zip(norm.weight).zip(dy) {
                *to = inverse * (w * dy - weighted - (x - mean) * along);
            }
        }
    });
    to
}

/// The adjoint of GELU, y = x Φ(x), given x and y: the gradient of y becomes that of x.
pub(super) fn gelu_back(cpu: &Cpu, x: &[f32], y: &[f32], slope: &mut [f32]) {
    const CHUNK: usize = 1 << 14;
    /// 1 / √(2π).
    const DENSITY: f32 = 0.398_942_3;
    let work = slope.chunks_mut(CHUNK).zip(x.chunks(CHUNK).zip(y.chunks(CHUNK))).collect();
    cpu.each(work, |(slope, (x, y)): (&mut [f32], (&[f32], &[f32]))| {
        for (slope, (x, y)) in slope.iter_mut().zip(x.iter().zip(y)) {
            let below = if x.abs() > 1e-4 { y / x } else { 0.5 + DENSITY * x };
            *slope *= below + x * DENSITY * exp(-0.5 * x * x);
        }
    });
}
