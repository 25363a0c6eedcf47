//! One body of tests over every instruction set that the machine has: each is held to plain Rust bit for
//! bit, and plain Rust to arithmetic in 64 bits, written down here a second time from the definitions.
//!
//! In reading order: `formats` (weights as files have them), `products` and `deltas` (matrix products),
//! `elementwise` (norms, gates, quantisation), `attention`, `memory` (tables, pages, the largest number),
//! `refusals` (sizes that do not agree).

mod attention;
mod deltas;
mod elementwise;
mod encode;
mod formats;
mod memory;
mod products;
mod refusals;

use super::{Activations, Cpu, DenseType, Matrix, Pages, QuantType, Variant, WeightType};

/// Numbers that are the same on every run (SplitMix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() >> 32) as usize % end
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    /// Within ±1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize, largest: f32) -> Vec<f32> {
        (0..len).map(|_| self.float() * largest).collect()
    }
}

/// Every instruction set of this machine, with so many threads.
fn cpus(threads: usize) -> impl Iterator<Item = Cpu> {
    Variant::ALL.into_iter().filter(|v| v.is_available()).map(move |v| Cpu::new(v, threads).unwrap())
}

/// What the others are held to.
fn plain() -> Cpu {
    Cpu::new(Variant::Portable, 1).unwrap()
}

/// Bit patterns; which of the many NaNs came out is nobody's concern.
fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
}

#[track_caller]
fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let differs = bits(found).iter().zip(bits(expected)).position(|(a, b)| *a != b);
    if let Some(at) = differs {
        panic!("{what}: number {at} is {:e}, not {:e}", found[at], expected[at]);
    }
}

#[track_caller]
fn assert_close(found: f32, expected: f64, tolerance: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= tolerance, "{what}: {found:e} is {error:e} from {expected:e}, more than {tolerance:e}");
}

/// Inputs of a product, quantised too.
fn activations(cpu: &Cpu, x: &[f32], columns: usize) -> Activations {
    let mut out = Activations::default();
    out.resize(x.len() / columns, columns);
    out.floats_mut().copy_from_slice(x);
    cpu.quantise(&mut out);
    out
}

/// The same numbers as quantised ones stand for.
fn quantised(x: &[f32]) -> Vec<f64> {
    let group = |group: &[f32]| {
        let largest = group.iter().fold(0f32, |top, v| top.max(v.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let scale = f64::from(largest / 127.0);
        group.iter().map(|v| f64::from((v * inverse).round_ties_even()) * scale).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(group).collect()
}

/// A matrix, and the numbers that it stands for.
struct Weight {
    matrix: Matrix,
    numbers: Vec<f32>,
}

impl Weight {
    fn new(kind: WeightType, rows: usize, columns: usize, random: &mut Random) -> Self {
        let mut pages = Pages::default();
        match kind {
            WeightType::Quantised(kind) => {
                let file: Vec<Vec<u8>> =
                    (0..rows).map(|_| formats::file_row(kind, columns, random)).collect();
                let numbers = file.iter().flat_map(|row| formats::dequantise(kind, row)).collect();
                let packed = WeightType::Quantised(kind);
                let matrix = Matrix::pack(packed, (rows, columns), |r| &file[r], &mut pages).unwrap();
                Self { matrix, numbers }
            }
            WeightType::Dense(kind) => {
                let numbers = random.floats(rows * columns, 0.1);
                let matrix = Matrix::pack_dense((rows, columns), &numbers, kind, &mut pages).unwrap();
                let numbers = numbers.into_iter().map(|v| round(v, kind)).collect();
                Self { matrix, numbers }
            }
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        let columns = self.matrix.columns();
        &self.numbers[row * columns..(row + 1) * columns]
    }
}

fn round(v: f32, kind: DenseType) -> f32 {
    match kind {
        DenseType::F32 => v,
        DenseType::F16 => half::f16::from_f32(v).to_f32(),
        DenseType::Bf16 => half::bf16::from_f32(v).to_f32(),
    }
}

/// The types that weights of a model may have.
fn weight_types() -> impl Iterator<Item = WeightType> {
    let dense = [DenseType::F32, DenseType::F16, DenseType::Bf16];
    QuantType::ALL.into_iter().map(WeightType::Quantised).chain(dense.into_iter().map(WeightType::Dense))
}

/// Σ w · x and Σ |w · x|, in 64 bits.
fn product(w: &[f32], x: &[f64]) -> (f64, f64) {
    w.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, x)| {
        let term = f64::from(*w) * x;
        (sum + term, size + term.abs())
    })
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}
