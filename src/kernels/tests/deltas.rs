//! Low-rank deltas: added to the rows they are of, and to no other.

use std::ops::Range;

use proptest::prelude::*;

use super::super::{Cpu, Delta, DenseType, Gate, Matrix, Output, Pages, Part, QuantType, WeightType};
use super::products::alone;
use super::{
    Activations, Random, Weight, activations, assert_close, assert_same, cpus, plain, product, quantised,
    widened,
};

/// How a delta's halves are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kept {
    Dense(DenseType),
    EightBits,
}

struct Low {
    down: Weight,
    up: Weight,
    scale: f32,
}

impl Low {
    fn new(kept: Kept, rank: usize, (rows, columns): (usize, usize), random: &mut Random) -> Self {
        let mut half = |rows: usize, columns: usize| {
            let numbers = random.floats(rows * columns, 0.3);
            let mut pages = Pages::default();
            let (matrix, factor) = match kept {
                Kept::Dense(kind) => {
                    (Matrix::pack_dense((rows, columns), &numbers, kind, &mut pages).unwrap(), 1.0)
                }
                Kept::EightBits => Matrix::pack_q8((rows, columns), &numbers, &mut pages).unwrap(),
            };
            let mut numbers = vec![0f32; rows * matrix.columns()];
            numbers.chunks_exact_mut(matrix.columns()).enumerate().for_each(|(r, row)| matrix.row(r, row));
            (Weight { matrix, numbers }, factor)
        };
        let ((down, first), (up, second)) = (half(rank, columns), half(rows, rank));
        Self { down, up, scale: 0.5 * first * second }
    }

    fn of(&self, rows: Range<usize>) -> Delta<'_> {
        Delta { rows, down: &self.down.matrix, up: &self.up.matrix, scale: self.scale }
    }

    /// up · (down · x) · scale, row by row: the number, and how far off the kernels may be.
    fn expected(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let eight_bits = matches!(self.up.matrix.kind(), WeightType::Quantised(_));
        let x = if eight_bits { quantised(x) } else { widened(x) };
        let mut low: Vec<f64> = (0..self.down.matrix.rows())
            .map(|r| product(self.down.row(r), &x).0 * f64::from(self.scale))
            .collect();
        low.resize(self.up.matrix.columns(), 0.0);
        // Half a step of each group of 32 columns.
        let steps: Vec<f64> = low
            .chunks(32)
            .flat_map(|group| {
                let largest = group.iter().fold(0f64, |top, v| top.max(v.abs()));
                group.iter().map(move |_| if eight_bits { 0.51 * largest / 127.0 } else { 0.0 })
            })
            .collect();
        let row = |r: usize| {
            let (sum, size) = product(self.up.row(r), &low);
            (sum, product(self.up.row(r), &steps).1 + 1e-4 * size)
        };
        (0..self.up.matrix.rows()).map(row).collect()
    }
}

fn linear(cpu: &Cpu, x: &Activations, tokens: usize, part: &Part<'_>) -> Vec<f32> {
    let rows = part.weight.rows();
    let mut to = vec![0f32; tokens * rows];
    cpu.linear(x, std::slice::from_ref(part), &mut [Output { to: &mut to, stride: rows, add: false }]);
    to
}

/// Which delta, for which rows of the batch.
type Spread<'a> = [(&'a Low, Range<usize>)];

/// Each token by itself, in plain Rust, with the delta that it has in the batch.
fn alone_with(x: &[f32], base: &Part<'_>, spread: &Spread<'_>) -> Vec<f32> {
    let cpu = plain();
    let columns = base.weight.columns();
    let token = |(t, x): (usize, &[f32])| {
        let own: Vec<Delta<'_>> =
            spread.iter().filter(|(_, rows)| rows.contains(&t)).map(|(low, _)| low.of(0..1)).collect();
        linear(&cpu, &activations(&cpu, x, columns), 1, &Part { deltas: &own, ..base.clone() })
    };
    x.chunks_exact(columns).enumerate().flat_map(token).collect()
}

/// A base and deltas in company: bits of each token alone; sums of the definition; bits of the base outside.
fn check(base: &Part<'_>, x: &[f32], spread: &Spread<'_>, threads: usize, what: &str) {
    let (rows, columns) = (base.weight.rows(), base.weight.columns());
    let tokens = x.len() / columns;
    let without = alone(x, base);
    let expected = alone_with(x, base, spread);
    for (t, x) in x.chunks_exact(columns).enumerate() {
        let own = t * rows..(t + 1) * rows;
        let (without, with) = (&without[own.clone()], &expected[own]);
        match spread.iter().find(|(_, rows)| rows.contains(&t)) {
            None => assert_same(with, without, what),
            Some((low, _)) => {
                for ((sum, tolerance), (with, without)) in
                    low.expected(x).into_iter().zip(with.iter().zip(without))
                {
                    let base = f64::from(*without);
                    assert_close(*with, base + sum, tolerance + 1e-5 * (base.abs() + sum.abs()), what);
                }
            }
        }
    }
    let deltas: Vec<Delta<'_>> = spread.iter().map(|(low, rows)| low.of(rows.clone())).collect();
    for cpu in cpus(threads) {
        let found =
            linear(&cpu, &activations(&cpu, x, columns), tokens, &Part { deltas: &deltas, ..base.clone() });
        assert_same(&found, &expected, &format!("{what}, {} with {threads} threads", cpu.variant().as_str()));
    }
}

#[test]
fn deltas_of_every_rank_reach_their_rows_and_no_other() {
    let mut random = Random(20);
    let quantised = WeightType::Quantised(QuantType::Q4_1);
    let dense = WeightType::Dense(DenseType::F32);
    let kinds = [
        (quantised, Kept::EightBits),
        (quantised, Kept::Dense(DenseType::F32)),
        (dense, Kept::Dense(DenseType::Bf16)),
        (dense, Kept::EightBits),
    ];
    for (base, kept) in kinds {
        for (n, rank) in [1, 4, 8, 16, 17, 32, 40].into_iter().enumerate() {
            let (rows, columns, tokens) = ([21, 70, 16][n % 3], [64, 96][n % 2], 21);
            let w = Weight::new(base, rows, columns, &mut random);
            let low = Low::new(kept, rank, (rows, columns), &mut random);
            let x = random.floats(tokens * columns, 1.0);
            let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
            for of in [0..21, 0..1, 3..6, 5..11, 8..16, 7..9, 20..21] {
                let what = format!("{base:?}, {kept:?}, rank {rank}, rows {of:?}");
                check(&part, &x, &[(&low, of)], 1 + n % 3, &what);
            }
        }
    }
}

#[test]
fn several_deltas_of_one_part() {
    let mut random = Random(21);
    for kept in [Kept::EightBits, Kept::Dense(DenseType::F32), Kept::Dense(DenseType::F16)] {
        let (rows, columns, tokens) = (70, 64, 30);
        let w = Weight::new(WeightType::Quantised(QuantType::Q8_0), rows, columns, &mut random);
        // Of different ranks, so that what lies between them differs too.
        let lows = [8, 40, 16, 1].map(|rank| Low::new(kept, rank, (rows, columns), &mut random));
        let bias = random.floats(rows, 1.0);
        let x = random.floats(tokens * columns, 1.0);
        let part = Part { weight: &w.matrix, bias: Some(&bias), deltas: &[] };
        let [a, b, c, d] = &lows;
        for threads in 1..=3 {
            check(&part, &x, &[(a, 0..3), (b, 3..11), (c, 13..24), (d, 24..30)], threads, "in order");
            check(&part, &x, &[(c, 25..30), (a, 9..10), (b, 0..2)], threads, "out of order");
            check(&part, &x, &[(b, 0..1), (b, 1..2), (d, 2..3), (b, 29..30)], threads, "single rows");
            check(&part, &x, &[(a, 4..4), (b, 4..6)], threads, "of no rows");
        }
    }
}

/// Few tokens and many rows are shared in longer runs of panels than many tokens are.
#[test]
fn deltas_of_more_rows_than_a_task_has() {
    let mut random = Random(24);
    let (rows, columns) = (1_000, 32);
    let w = Weight::new(WeightType::Quantised(QuantType::Q4_1), rows, columns, &mut random);
    for kept in [Kept::EightBits, Kept::Dense(DenseType::F32)] {
        let lows = [8, 33].map(|rank| Low::new(kept, rank, (rows, columns), &mut random));
        let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
        for (tokens, threads) in [(6, 1), (8, 2), (10, 3)] {
            let x = random.floats(tokens * columns, 1.0);
            check(&part, &x, &[(&lows[0], 1..3), (&lows[1], 3..6)], threads, "many rows");
        }
    }
}

/// Some parts have deltas and some not; dense and quantised ones side by side.
#[test]
fn deltas_of_several_parts() {
    let mut random = Random(22);
    let (columns, tokens) = (64, 19);
    let rows = [33, 8, 70];
    let w = rows.map(|rows| Weight::new(WeightType::Quantised(QuantType::Q4_0), rows, columns, &mut random));
    let first = Low::new(Kept::EightBits, 40, (rows[0], columns), &mut random);
    let third = Low::new(Kept::Dense(DenseType::F32), 8, (rows[2], columns), &mut random);
    let x = random.floats(tokens * columns, 1.0);
    let parts = [0, 1, 2].map(|n| Part { weight: &w[n].matrix, bias: None, deltas: &[] });
    let spreads = [vec![(&first, 2..17)], vec![], vec![(&third, 0..9), (&third, 12..19)]];
    let expected = [0, 1, 2].map(|n| alone_with(&x, &parts[n], &spreads[n]));
    let deltas =
        [0, 1, 2].map(|n| spreads[n].iter().map(|(low, rows)| low.of(rows.clone())).collect::<Vec<_>>());
    for cpu in (1..=3).flat_map(cpus) {
        let x = activations(&cpu, &x, columns);
        let parts = [0, 1, 2].map(|n| Part { deltas: &deltas[n], ..parts[n].clone() });
        let mut found = rows.map(|rows| vec![0f32; tokens * rows]);
        let mut outputs: Vec<Output<'_>> =
            found.iter_mut().zip(rows).map(|(to, rows)| Output { to, stride: rows, add: false }).collect();
        cpu.linear(&x, &parts, &mut outputs);
        for n in 0..3 {
            assert_same(&found[n], &expected[n], &format!("part {n}, {}", cpu.variant().as_str()));
        }
    }
}

#[test]
fn gated_products_have_deltas_too() {
    let mut random = Random(23);
    let (rows, columns, tokens) = (96, 64, 11);
    let w = [0, 1].map(|_| Weight::new(WeightType::Quantised(QuantType::Q5_1), rows, columns, &mut random));
    let lows = [8, 17].map(|rank| Low::new(Kept::EightBits, rank, (rows, columns), &mut random));
    let x = random.floats(tokens * columns, 1.0);
    let run = |cpu: &Cpu, x: &[f32], deltas: [Vec<Delta<'_>>; 2]| {
        let parts = [0, 1].map(|n| Part { weight: &w[n].matrix, bias: None, deltas: &deltas[n] });
        let mut out = Activations::default();
        let x = activations(cpu, x, columns);
        cpu.gated(&x, [&parts[0], &parts[1]], Gate::Silu, true, &mut out);
        out.floats().to_vec()
    };
    let token = |(t, x): (usize, &[f32])| {
        let own =
            |n: usize, rows: Range<usize>| if rows.contains(&t) { vec![lows[n].of(0..1)] } else { vec![] };
        run(&plain(), x, [own(0, 3..10), own(1, 0..5)])
    };
    let expected: Vec<f32> = x.chunks_exact(columns).enumerate().flat_map(token).collect();
    for cpu in (1..=3).flat_map(cpus) {
        let found = run(&cpu, &x, [vec![lows[0].of(3..10)], vec![lows[1].of(0..5)]]);
        assert_same(&found, &expected, cpu.variant().as_str());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_deltas(
        seed: u64,
        eight_bits: bool,
        rows in 1usize..50,
        groups in 1usize..4,
        tokens in 1usize..20,
        ranks in proptest::collection::vec(1usize..45, 1..4),
        threads in 1usize..4,
    ) {
        let mut random = Random(seed);
        let columns = 32 * groups;
        let kept = if eight_bits { Kept::EightBits } else { Kept::Dense(DenseType::F32) };
        let kind = random.pick(&[QuantType::Q4_0, QuantType::Q5_1, QuantType::Q8_0]);
        let w = Weight::new(WeightType::Quantised(kind), rows, columns, &mut random);
        let low = |rank| Low::new(kept, rank, (rows, columns), &mut random);
        let lows: Vec<Low> = ranks.into_iter().map(low).collect();
        let x = random.floats(tokens * columns, 1.0);
        let mut next = 0;
        let mut spread = Vec::new();
        for low in &lows {
            let start = next + random.below(tokens - next + 1);
            let end = start + random.below(tokens - start + 1);
            next = end;
            spread.push((low, start..end));
        }
        let part = Part { weight: &w.matrix, bias: None, deltas: &[] };
        check(&part, &x, &spread, threads, "any deltas");
    }
}
