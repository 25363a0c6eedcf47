//! `Cpu::linear` over all types, shapes around the borders of tiles, panels and tasks, and threads.

use half::f16;
use proptest::prelude::*;

use super::super::group::TILE_ROWS;
use super::super::{Activations, Cpu, DenseType, Matrix, Output, Pages, Part, QuantType, WeightType};
use super::{
    Random, Weight, activations, assert_close, assert_same, cpus, formats, plain, product, quantised,
    weight_types, widened,
};

/// Around the borders of tiles of 8 tokens and of their parts.
const TOKENS: [usize; 12] = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 40];
/// Around the borders of panels of 16 rows, and of tasks of four panels.
const ROWS: [usize; 11] = [1, 7, 15, 16, 17, 31, 33, 48, 63, 65, 70];

/// What is there before a product; kept where nothing is written.
const GAP: f32 = -7.5;

/// One part's results, row by row; what lies between the rows must be as it was.
fn linear(
    cpu: &Cpu,
    x: &Activations,
    tokens: usize,
    part: &Part<'_>,
    extra: usize,
    before: Option<&[f32]>,
) -> Vec<f32> {
    let rows = part.weight.rows();
    let stride = rows + extra;
    let mut to = vec![GAP; tokens * stride];
    if let Some(before) = before {
        to.chunks_exact_mut(stride)
            .zip(before.chunks_exact(rows))
            .for_each(|(to, y)| to[..rows].copy_from_slice(y));
    }
    let output = Output { to: &mut to, stride, add: before.is_some() };
    cpu.linear(x, std::slice::from_ref(part), &mut [output]);
    assert!(to.chunks_exact(stride).all(|row| row[rows..].iter().all(|v| *v == GAP)), "the gap is untouched");
    to.chunks_exact(stride).flat_map(|row| &row[..rows]).copied().collect()
}

/// Each token by itself, in plain Rust.
pub(super) fn alone(x: &[f32], part: &Part<'_>) -> Vec<f32> {
    let cpu = plain();
    let columns = part.weight.columns();
    x.chunks_exact(columns)
        .flat_map(|x| linear(&cpu, &activations(&cpu, x, columns), 1, part, 0, None))
        .collect()
}

/// Against sums in 64 bits, over quantised inputs where the weight is quantised.
fn check_against_sums(found: &[f32], w: &Weight, x: &[f32], bias: Option<&[f32]>, what: &str) {
    let (rows, columns) = (w.matrix.rows(), w.matrix.columns());
    let quantises = matches!(w.matrix.kind(), WeightType::Quantised(_));
    for (x, found) in x.chunks_exact(columns).zip(found.chunks_exact(rows)) {
        let exact = widened(x);
        let seen = if quantises { quantised(x) } else { exact.clone() };
        for (r, found) in found.iter().enumerate() {
            let bias = bias.map_or(0.0, |b| f64::from(b[r]));
            let (sum, size) = product(w.row(r), &seen);
            assert_close(*found, sum + bias, 1e-4 * (size + bias.abs()) + 1e-30, what);
            let (sum, size) = product(w.row(r), &exact);
            assert_close(*found, sum + bias, 0.03 * (size + bias.abs()) + 1e-30, what);
        }
    }
}

fn columns_of(kind: WeightType, blocks: usize) -> usize {
    match kind {
        WeightType::Quantised(kind) => blocks * kind.block().0,
        WeightType::Dense(_) => 13 * blocks + blocks % 2,
    }
}

#[test]
fn a_token_alone_in_company_and_on_any_processor_has_the_same_bits() {
    let mut random = Random(10);
    for kind in weight_types() {
        for (n, tokens) in TOKENS.into_iter().enumerate() {
            let rows = ROWS[(n * 7 + random.below(3)) % ROWS.len()];
            let columns = columns_of(
                kind,
                if kind == WeightType::Quantised(QuantType::Q4_0) { 1 + n % 5 } else { 1 + n % 3 },
            );
            let w = Weight::new(kind, rows, columns, &mut random);
            let x = random.floats(tokens * columns, 2.0);
            let bias = random.floats(rows, 1.0);
            let bias = (n % 2 == 1).then_some(&bias[..]);
            let part = Part { weight: &w.matrix, bias, deltas: &[] };
            let expected = alone(&x, &part);
            let what = format!("{kind:?}, {rows} rows, {columns} columns, {tokens} tokens");
            check_against_sums(&expected, &w, &x, bias, &what);
            let before = random.floats(tokens * rows, 1.0);
            let added: Vec<f32> = before.iter().zip(&expected).map(|(a, b)| a + b).collect();
            for cpu in (1..=3).flat_map(cpus) {
                let what = format!("{what}, {} with {} threads", cpu.variant().as_str(), cpu.threads());
                let x = activations(&cpu, &x, columns);
                assert_same(&linear(&cpu, &x, tokens, &part, n % 4, None), &expected, &what);
                assert_same(&linear(&cpu, &x, tokens, &part, 3, Some(&before)), &added, &what);
            }
        }
    }
}

#[test]
fn rows_of_more_groups_than_are_unpacked_at_a_time() {
    let mut random = Random(11);
    for kind in [QuantType::Q4_0, QuantType::Q8_0, QuantType::Q4K, QuantType::Q6K] {
        let kind = WeightType::Quantised(kind);
        let columns = if columns_of(kind, 1) == 32 { 33 * 32 } else { 5 * 256 };
        let w = Weight::new(kind, 17, columns, &mut random);
        // Unpacked from the third tile on.
        let tokens = 2 * TILE_ROWS + 3;
        let x = random.floats(tokens * columns, 1.0);
        let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
        let expected = alone(&x, &part);
        check_against_sums(&expected, &w, &x, None, "many groups");
        for cpu in cpus(2) {
            let x = activations(&cpu, &x, columns);
            let what = format!("{kind:?}, {columns} columns, {}", cpu.variant().as_str());
            assert_same(&linear(&cpu, &x, tokens, &part, 0, None), &expected, &what);
        }
    }
}

/// Few tokens and many rows are shared in longer runs of panels than many tokens are.
#[test]
fn more_rows_than_a_task_has() {
    let mut random = Random(17);
    for (kind, rows) in [(QuantType::Q4_0, 500), (QuantType::Q8_0, 1_025), (QuantType::Q5_1, 3_500)] {
        let columns = 32;
        let w =
            [rows, rows / 3].map(|rows| Weight::new(WeightType::Quantised(kind), rows, columns, &mut random));
        let parts = [0, 1].map(|n| Part { weight: &w[n].matrix, bias: None, deltas: &[] });
        for tokens in [1, 8, 9] {
            let x = random.floats(tokens * columns, 1.0);
            let expected = [0, 1].map(|n| alone(&x, &parts[n]));
            check_against_sums(&expected[0], &w[0], &x, None, "many rows");
            for cpu in (1..=3).flat_map(cpus) {
                let x = activations(&cpu, &x, columns);
                let mut found = [0, 1].map(|n| vec![GAP; expected[n].len()]);
                let [first, second] = &mut found;
                let mut outputs =
                    [(first, rows), (second, rows / 3)].map(|(to, stride)| Output { to, stride, add: false });
                cpu.linear(&x, &parts, &mut outputs);
                for n in 0..2 {
                    let what = format!("{rows} rows, {tokens} tokens, {}", cpu.variant().as_str());
                    assert_same(&found[n], &expected[n], &what);
                }
            }
        }
    }
}

#[test]
fn codes_at_their_ends_do_not_saturate() {
    // 16-bit sums of pairs would overflow first where all codes and all inputs are the largest.
    let tokens = 2 * TILE_ROWS + 3;
    for kind in QuantType::ALL {
        let (block, bytes) = kind.block();
        for code in [0x00, 0x7F, 0x80, 0xFF] {
            let mut row = vec![code; 2 * bytes];
            formats::set_scales(kind, &mut row, || f16::from_f32(0.5));
            let columns = 2 * block;
            let numbers = formats::dequantise(kind, &row).repeat(3);
            let packed = WeightType::Quantised(kind);
            let matrix = Matrix::pack(packed, (3, columns), |_| &row, &mut Pages::default()).unwrap();
            let w = Weight { matrix, numbers };
            let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
            // Of three tokens two of one sign, one that alternates; enough of them to be multiplied unpacked too.
            let x: Vec<f32> = (0..tokens * columns)
                .map(|i| match i / columns % 3 {
                    0 => 1.0,
                    1 => -1.0,
                    _ => [1.0, -1.0][i % 2],
                })
                .collect();
            for cpu in cpus(1) {
                let what = format!("{kind:?}, code {code}, {}", cpu.variant().as_str());
                let found = linear(&cpu, &activations(&cpu, &x, columns), tokens, &part, 0, None);
                check_against_sums(&found, &w, &x, None, &what);
                assert_same(&found, &alone(&x, &part), &what);
            }
        }
    }
}

#[test]
fn parts_of_different_types_do_not_disturb_each_other() {
    let mut random = Random(12);
    let quantised = WeightType::Quantised;
    let sets = [
        (
            [quantised(QuantType::Q4K), quantised(QuantType::Q6K), quantised(QuantType::Q8_0)],
            [70, 17, 1],
            512,
        ),
        (
            [
                WeightType::Dense(DenseType::F16),
                quantised(QuantType::Q5_1),
                WeightType::Dense(DenseType::F32),
            ],
            [5, 129, 33],
            96,
        ),
        (
            [quantised(QuantType::Q8_0), quantised(QuantType::Q8_0), quantised(QuantType::Q4_1)],
            [16, 16, 64],
            64,
        ),
    ];
    for (kinds, rows, columns) in sets {
        let weights = [0, 1, 2].map(|n| Weight::new(kinds[n], rows[n], columns, &mut random));
        let bias = random.floats(rows[1], 1.0);
        let parts = [0, 1, 2].map(|n| Part {
            weight: &weights[n].matrix,
            bias: (n == 1).then_some(&bias[..]),
            deltas: &[],
        });
        for tokens in [1, 8, 11] {
            let x = random.floats(tokens * columns, 1.0);
            let expected = [0, 1, 2].map(|n| alone(&x, &parts[n]));
            for cpu in (1..=3).flat_map(cpus) {
                let x = activations(&cpu, &x, columns);
                let mut found = [0, 1, 2].map(|n| vec![GAP; tokens * rows[n]]);
                let mut outputs: Vec<Output<'_>> = found
                    .iter_mut()
                    .zip(rows)
                    .map(|(to, rows)| Output { to, stride: rows, add: false })
                    .collect();
                cpu.linear(&x, &parts, &mut outputs);
                for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_same(
                        found,
                        expected,
                        &format!("part {n} of {tokens} tokens, {}", cpu.variant().as_str()),
                    );
                }
            }
        }
    }
}

#[test]
fn parts_may_share_one_buffer_side_by_side() {
    let mut random = Random(13);
    let (columns, tokens, rows) = (64, 10, [20, 9]);
    let weights =
        rows.map(|rows| Weight::new(WeightType::Quantised(QuantType::Q5_0), rows, columns, &mut random));
    let parts = [0, 1].map(|n| Part { weight: &weights[n].matrix, bias: None, deltas: &[] });
    let x = random.floats(tokens * columns, 1.0);
    let expected = [0, 1].map(|n| alone(&x, &parts[n]));
    for cpu in cpus(2) {
        let x = activations(&cpu, &x, columns);
        // The last row of an output may end with the buffer, within its stride.
        let mut found = [0, 1].map(|n| vec![GAP; (tokens - 1) * 29 + rows[n]]);
        let mut outputs = Vec::new();
        for to in &mut found {
            outputs.push(Output { to, stride: 29, add: false });
        }
        cpu.linear(&x, &parts, &mut outputs);
        for n in 0..2 {
            let rows: Vec<f32> = found[n].chunks(29).flat_map(|row| &row[..rows[n]]).copied().collect();
            assert_same(&rows, &expected[n], cpu.variant().as_str());
        }
    }
}

#[test]
fn no_tokens_no_work() {
    let w = Weight::new(WeightType::Quantised(QuantType::Q4_0), 16, 32, &mut Random(14));
    for cpu in cpus(2) {
        let x = activations(&cpu, &[], 32);
        let mut to = [GAP; 16];
        let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
        cpu.linear(&x, &[part], &mut [Output { to: &mut to, stride: 16, add: false }]);
        assert_eq!(to, [GAP; 16]);
    }
}

#[test]
fn what_is_not_finite_reaches_every_output_of_its_token_and_no_other() {
    let mut random = Random(15);
    for kind in weight_types() {
        let columns = if matches!(kind, WeightType::Quantised(_)) { columns_of(kind, 1).max(64) } else { 21 };
        let w = Weight::new(kind, 19, columns, &mut random);
        let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
        for tokens in [3, 12] {
            let sound = random.floats(tokens * columns, 1.0);
            let expected = alone(&sound, &part);
            for broken in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 17, columns - 1] {
                    let mut x = sound.clone();
                    x[columns + at] = broken;
                    for cpu in cpus(2) {
                        let what = format!("{kind:?}, {broken} in column {at}, {}", cpu.variant().as_str());
                        let y = linear(&cpu, &activations(&cpu, &x, columns), tokens, &part, 0, None);
                        let (before, rest) = y.split_at(19);
                        let (own, after) = rest.split_at(19);
                        assert_same(before, &expected[..19], &what);
                        assert_same(after, &expected[38..], &what);
                        if matches!(kind, WeightType::Quantised(_)) {
                            assert!(own.iter().all(|v| v.is_nan()), "{what}: {own:?}");
                        } else {
                            assert!(own.iter().all(|v| !v.is_finite()), "{what}: {own:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn zeros_and_the_smallest_and_largest_inputs() {
    let mut random = Random(16);
    let w = Weight::new(WeightType::Quantised(QuantType::Q8_0), 17, 64, &mut random);
    let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
    for size in [0.0, 1e-44, 1e-40, 1e-38, 1e-30, 1e30, 1e37] {
        let x = random.floats(2 * 64, size);
        let expected = alone(&x, &part);
        for cpu in cpus(1) {
            let found = linear(&cpu, &activations(&cpu, &x, 64), 2, &part, 0, None);
            assert_same(&found, &expected, &format!("inputs of {size:e}, {}", cpu.variant().as_str()));
        }
        for (x, found) in x.chunks_exact(64).zip(expected.chunks_exact(17)) {
            for (r, found) in found.iter().enumerate() {
                let (sum, magnitude) = product(w.row(r), &widened(x));
                // What is so small that 127 / x does not fit may vanish, but must not blow up.
                assert_close(*found, sum, 0.03 * magnitude + 1e-36, "sizes");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape_any_type_any_threads(
        seed: u64,
        kind in 0usize..11,
        rows in 1usize..70,
        blocks in 1usize..4,
        tokens in 1usize..26,
        threads in 1usize..4,
    ) {
        let mut random = Random(seed);
        let kind = weight_types().nth(kind).unwrap();
        let columns = columns_of(kind, blocks);
        let w = Weight::new(kind, rows, columns, &mut random);
        let x = random.floats(tokens * columns, 3.0);
        let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
        let expected = alone(&x, &part);
        check_against_sums(&expected, &w, &x, None, "any shape");
        for cpu in cpus(threads) {
            let x = activations(&cpu, &x, columns);
            assert_same(&linear(&cpu, &x, tokens, &part, 1, None), &expected, cpu.variant().as_str());
        }
    }
}
