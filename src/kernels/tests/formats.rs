//! Packed weights against the block formats of files, read as ggml's `dequantize_row_*` reads them.

use half::f16;
use proptest::prelude::*;

use super::super::{DenseType, Matrix, Pages, QuantType, WeightType};
use super::{Random, round};

/// Where the half-precision scales of a block lie.
fn scales_at(kind: QuantType) -> &'static [usize] {
    match kind {
        QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 | QuantType::Q8Half => &[0],
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K => &[0, 2],
        QuantType::Q6K => &[208],
    }
}

/// A scale of either sign, now and then zero or subnormal.
fn scale(random: &mut Random) -> f16 {
    match random.below(16) {
        0 => f16::from_bits(random.pick(&[0, 0x8000])),
        1 => f16::from_bits(random.pick(&[0, 0x8000]) | (1 + random.below(0x3FF)) as u16),
        _ => f16::from_f32(random.float() * 0.02),
    }
}

/// The bytes of a row: any codes, sane scales.
pub(super) fn file_row(kind: QuantType, columns: usize, random: &mut Random) -> Vec<u8> {
    let (block, bytes) = kind.block();
    let mut row: Vec<u8> = (0..columns / block * bytes).map(|_| random.bits() as u8).collect();
    set_scales(kind, &mut row, || scale(random));
    row
}

/// Writes the half-precision scales of a row's blocks.
pub(super) fn set_scales(kind: QuantType, row: &mut [u8], mut scale: impl FnMut() -> f16) {
    for block in row.chunks_exact_mut(kind.block().1) {
        for at in scales_at(kind) {
            block[*at..at + 2].copy_from_slice(&scale().to_le_bytes());
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The numbers of a row, block by block, in the order of operations of `ggml-quants.c`.
pub(super) fn dequantise(kind: QuantType, row: &[u8]) -> Vec<f32> {
    let one = match kind {
        QuantType::Q4_0 => q4_0,
        QuantType::Q4_1 => q4_1,
        QuantType::Q5_0 => q5_0,
        QuantType::Q5_1 => q5_1,
        QuantType::Q8_0 | QuantType::Q8Half => q8_0,
        QuantType::Q4K => q4_k,
        QuantType::Q5K => q5_k,
        QuantType::Q6K => q6_k,
    };
    row.chunks_exact(kind.block().1).flat_map(one).collect()
}

/// Columns j and j + 16 share byte j; a number is made of its code and column.
fn halves(codes: &[u8], value: impl Fn(u8, usize) -> f32) -> Vec<f32> {
    let low = codes.iter().enumerate().map(|(j, byte)| value(byte & 0x0F, j));
    let high = codes.iter().enumerate().map(|(j, byte)| value(byte >> 4, j + 16));
    low.chain(high).collect()
}

fn q4_0(block: &[u8]) -> Vec<f32> {
    let d = half(block);
    halves(&block[2..], |code, _| (i32::from(code) - 8) as f32 * d)
}

fn q4_1(block: &[u8]) -> Vec<f32> {
    let (d, m) = (half(block), half(&block[2..]));
    halves(&block[4..], |code, _| f32::from(code) * d + m)
}

fn fifth_bit(bytes: &[u8], column: usize) -> u8 {
    (bytes[column / 8] >> (column % 8) & 1) * 16
}

fn q5_0(block: &[u8]) -> Vec<f32> {
    let d = half(block);
    halves(&block[6..], |code, c| (i32::from(code + fifth_bit(&block[2..6], c)) - 16) as f32 * d)
}

fn q5_1(block: &[u8]) -> Vec<f32> {
    let (d, m) = (half(block), half(&block[2..]));
    halves(&block[8..], |code, c| f32::from(code + fifth_bit(&block[4..8], c)) * d + m)
}

fn q8_0(block: &[u8]) -> Vec<f32> {
    let d = half(block);
    block[2..].iter().map(|code| f32::from(*code as i8) * d).collect()
}

/// `get_scale_min_k4`.
fn scale_and_minimum(j: usize, q: &[u8]) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        ((q[j + 4] & 0x0F) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(block: &[u8]) -> Vec<f32> {
    let (d, min) = (half(block), half(&block[2..]));
    let mut out = Vec::new();
    for (j, bytes) in block[16..].chunks_exact(32).enumerate() {
        for shift in [0, 4] {
            let (scale, minimum) = scale_and_minimum(2 * j + shift / 4, &block[4..16]);
            let (d, m) = (d * scale, min * minimum);
            out.extend(bytes.iter().map(|byte| d * f32::from((byte >> shift) & 0x0F) - m));
        }
    }
    out
}

fn q5_k(block: &[u8]) -> Vec<f32> {
    let (d, min) = (half(block), half(&block[2..]));
    let high = &block[16..48];
    let mut out = Vec::new();
    for (j, bytes) in block[48..].chunks_exact(32).enumerate() {
        for shift in [0, 4] {
            let (scale, minimum) = scale_and_minimum(2 * j + shift / 4, &block[4..16]);
            let (d, m) = (d * scale, min * minimum);
            let mask = 1u8 << (2 * j + shift / 4);
            out.extend(bytes.iter().zip(high).map(|(byte, high)| {
                let fifth = if high & mask != 0 { 16 } else { 0 };
                d * f32::from(((byte >> shift) & 0x0F) + fifth) - m
            }));
        }
    }
    out
}

fn q6_k(block: &[u8]) -> Vec<f32> {
    let d = half(&block[208..]);
    let mut out = vec![0f32; 256];
    for n in 0..2 {
        let (low, high) = (&block[64 * n..64 * n + 64], &block[128 + 32 * n..160 + 32 * n]);
        let scales = &block[192 + 8 * n..200 + 8 * n];
        let y = &mut out[128 * n..128 * n + 128];
        for l in 0..32 {
            let q = [
                (low[l] & 0x0F) | ((high[l] & 3) << 4),
                (low[l + 32] & 0x0F) | (((high[l] >> 2) & 3) << 4),
                (low[l] >> 4) | (((high[l] >> 4) & 3) << 4),
                (low[l + 32] >> 4) | (((high[l] >> 6) & 3) << 4),
            ];
            for (quarter, q) in q.into_iter().enumerate() {
                let scale = f32::from(scales[l / 16 + 2 * quarter] as i8);
                y[l + 32 * quarter] = d * scale * (i32::from(q) - 32) as f32;
            }
        }
    }
    out
}

fn check_rows(kind: QuantType, columns: usize, file: &[Vec<u8>]) {
    let mut pages = Pages::default();
    let packed = WeightType::Quantised(kind);
    let matrix = Matrix::pack(packed, (file.len(), columns), |r| &file[r], &mut pages).unwrap();
    assert_eq!(Some(matrix.bytes()), packed.packed_bytes(file.len(), columns));
    let mut row = vec![0f32; columns];
    for (r, bytes) in file.iter().enumerate() {
        matrix.row(r, &mut row);
        let expected = dequantise(kind, bytes);
        assert_eq!(expected.len(), columns);
        for (c, (found, expected)) in row.iter().zip(&expected).enumerate() {
            assert!(found == expected, "{kind:?}: row {r}, column {c} is {found:e}, not {expected:e}");
        }
    }
}

#[test]
fn packed_rows_are_what_the_file_says() {
    let mut random = Random(1);
    for kind in QuantType::ALL.into_iter().chain([QuantType::Q8Half]) {
        let columns = 2 * kind.block().0;
        let mut file: Vec<Vec<u8>> = (0..37).map(|_| file_row(kind, columns, &mut random)).collect();
        // Each byte value at each place: every code, scale of scales and fifth bit, −128 among them.
        for value in 0..=255u8 {
            let mut row = vec![value; 2 * kind.block().1];
            set_scales(kind, &mut row, || scale(&mut random));
            file.push(row);
        }
        check_rows(kind, columns, &file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_is_packed_as_the_file_says(
        seed: u64,
        kind in 0usize..9,
        rows in 1usize..40,
        blocks in 1usize..5,
    ) {
        let kind = QuantType::ALL.get(kind).copied().unwrap_or(QuantType::Q8Half);
        let mut random = Random(seed);
        let columns = blocks * kind.block().0;
        let file: Vec<Vec<u8>> = (0..rows).map(|_| file_row(kind, columns, &mut random)).collect();
        check_rows(kind, columns, &file);
    }
}

#[test]
fn dense_rows_are_the_rounded_numbers() {
    let mut random = Random(2);
    for kind in [DenseType::F32, DenseType::F16, DenseType::Bf16] {
        for (rows, columns) in [(1, 1), (16, 5), (17, 33), (40, 100)] {
            let mut numbers = random.floats(rows * columns, 3.0);
            // Subnormal in half precision, and in 32 bits.
            numbers[0] = 3e-6;
            numbers[rows * columns - 1] = -1e-40;
            let mut pages = Pages::default();
            let matrix = Matrix::pack_dense((rows, columns), &numbers, kind, &mut pages).unwrap();
            let mut row = vec![0f32; columns];
            for (r, numbers) in numbers.chunks_exact(columns).enumerate() {
                matrix.row(r, &mut row);
                assert!(row.iter().zip(numbers).all(|(found, v)| *found == round(*v, kind)), "{kind:?}");
            }
        }
    }
}

#[test]
fn eight_bits_keep_each_block_to_half_a_step() {
    let mut random = Random(3);
    for (rows, columns) in [(1, 1), (5, 4), (17, 16), (16, 17), (33, 32), (3, 40), (20, 96)] {
        for size in [1e-30, 1e-3, 1.0, 1e30] {
            let mut numbers = random.floats(rows * columns, size);
            for (row, numbers) in numbers.chunks_exact_mut(columns).enumerate() {
                // Rows of very different sizes share one factor.
                let size = [1.0, 1e-2, 0.0][row % 3];
                numbers.iter_mut().for_each(|v| *v *= size);
            }
            let (matrix, factor) = Matrix::pack_q8((rows, columns), &numbers, &mut Pages::default()).unwrap();
            let kind = if columns <= 16 { QuantType::Q8Half } else { QuantType::Q8_0 };
            let block = kind.block().0;
            assert_eq!(matrix.kind(), WeightType::Quantised(kind));
            assert_eq!((matrix.rows(), matrix.columns()), (rows, columns.next_multiple_of(block)));
            assert_eq!(factor.log2().fract(), 0.0, "a power of two");
            let mut row = vec![0f32; matrix.columns()];
            for (r, numbers) in numbers.chunks_exact(columns).enumerate() {
                matrix.row(r, &mut row);
                assert!(row[columns..].iter().all(|v| *v == 0.0), "filled up with zeros");
                for (found, numbers) in row.chunks_exact(block).zip(numbers.chunks(block)) {
                    let largest = numbers.iter().fold(0f32, |top, v| top.max(v.abs()));
                    // Half a step; the step itself is rounded to half precision.
                    let tolerance = 0.6 * largest / 127.0 + 4e-6 * factor;
                    for (found, v) in found.iter().zip(numbers) {
                        assert!((found * factor - v).abs() <= tolerance, "{} is {v}", found * factor);
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_not_packed() {
    let mut pages = Pages::default();
    let row = [0u8; 18];
    let q4 = WeightType::Quantised(QuantType::Q4_0);
    assert!(Matrix::pack(q4, (3, 32), |_| &row, &mut pages).is_some());
    assert!(Matrix::pack(q4, (0, 32), |_| &row, &mut pages).is_none());
    assert!(Matrix::pack(q4, (3, 0), |_| &[], &mut pages).is_none());
    assert!(Matrix::pack(q4, (3, 33), |_| &row, &mut pages).is_none());
    assert!(Matrix::pack(q4, (3, 64), |_| &row, &mut pages).is_none());
    assert!(Matrix::pack(q4, (3, 32), |r| &row[..18 - r / 2], &mut pages).is_none());
    assert!(Matrix::pack_f32((2, 3), &[0.0; 5], &mut pages).is_none());
    assert!(Matrix::pack_f32((usize::MAX, 3), &[0.0; 5], &mut pages).is_none());
    assert!(Matrix::pack_q8((2, 3), &[0.0; 5], &mut pages).is_none());
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(Matrix::pack_q8((1, 3), &[1.0, broken, 0.0], &mut pages).is_none(), "{broken}");
    }
}
