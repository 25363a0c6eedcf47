//! Sizes that do not agree end in a panic that says so, before anything is read or written.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::{
    Activations, Attention, CacheShape, Cpu, Delta, Gate, Heads, KvCache, Matrix, Output, Part, QuantType,
    Span, WeightType,
};
use super::{Random, Weight, activations, cpus};

/// Runs what must panic with this message.
#[track_caller]
fn refuses(message: &str, work: impl FnOnce()) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else { panic!("was not refused: {message}") };
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let said = said.unwrap_or_default();
    assert!(said.contains(message), "said {said:?}, not {message:?}");
}

fn best() -> Cpu {
    cpus(2).next().unwrap()
}

fn weight(rows: usize, columns: usize) -> Matrix {
    Weight::new(WeightType::Quantised(QuantType::Q4_0), rows, columns, &mut Random(60)).matrix
}

fn dense(rows: usize, columns: usize) -> Matrix {
    Weight::new(WeightType::Dense(super::DenseType::F32), rows, columns, &mut Random(61)).matrix
}

fn part(weight: &Matrix) -> Part<'_> {
    Part { weight, bias: None, deltas: &[] }
}

#[test]
fn rows_and_embeddings() {
    let (cpu, w) = (best(), weight(17, 64));
    refuses("a row of another matrix", || w.row(17, &mut [0.0; 64]));
    refuses("a row of another matrix", || w.row(0, &mut [0.0; 32]));
    refuses("a row of another matrix", || w.row(usize::MAX, &mut [0.0; 64]));
    refuses("tokens of the table", || cpu.embed(&w, &[0, 17], 1.0, &mut [0.0; 128]));
    refuses("tokens of the table", || cpu.embed(&w, &[u32::MAX], 1.0, &mut [0.0; 64]));
    refuses("room for the embeddings", || cpu.embed(&w, &[0, 1], 1.0, &mut [0.0; 127]));
}

#[test]
fn norms() {
    let cpu = best();
    let mut out = Activations::default();
    refuses("whole rows", || cpu.normalise(&[1.0; 33], &[1.0; 16], 1e-5, false, &mut out));
    refuses("whole rows", || cpu.normalise(&[], &[], 1e-5, false, &mut Activations::default()));
    refuses("whole rows", || cpu.normalise_in_place(&mut [1.0; 33], &[1.0; 16], 1e-5));
    refuses("whole rows", || cpu.normalise_in_place(&mut [1.0; 33], &[], 1e-5));
}

#[test]
fn products() {
    let (cpu, w) = (best(), weight(17, 64));
    let x = activations(&cpu, &[0.5; 3 * 64], 64);
    let mut floats = Activations::default();
    floats.resize(3, 64);
    let run = |x: &Activations, part: Part<'_>, len: usize, stride: usize| {
        cpu.linear(x, &[part], &mut [Output { to: &mut vec![0.0; len], stride, add: false }]);
    };
    run(&x, part(&w), 51, 17);
    refuses("room", || run(&x, part(&w), 50, 17));
    refuses("room", || run(&x, part(&w), 51, 16));
    refuses("room", || run(&x, part(&w), 2 * 20 + 16, 20));
    refuses("room", || run(&activations(&cpu, &[], 64), part(&w), 16, 17));
    refuses("quantised weights take quantised inputs", || run(&floats, part(&w), 51, 17));
    refuses("as many inputs", || run(&x, part(&weight(17, 32)), 51, 17));
    refuses("as many inputs", || run(&x, part(&dense(17, 65)), 51, 17));
    refuses("a bias for each output", || run(&x, Part { bias: Some(&[0.0; 16]), ..part(&w) }, 51, 17));
    refuses("an output for each part", || cpu.linear(&x, &[part(&w)], &mut []));
    refuses("an output for each part", || {
        let mut to = [[0f32; 51]; 4];
        let mut outputs: Vec<Output<'_>> =
            to.iter_mut().map(|to| Output { to, stride: 17, add: false }).collect();
        cpu.linear(&x, &[part(&w), part(&w), part(&w), part(&w)], &mut outputs);
    });
    // Written to again, activations are no longer quantised.
    let mut stale = activations(&cpu, &[0.5; 3 * 64], 64);
    stale.floats_mut()[0] = 1.0;
    refuses("quantised weights take quantised inputs", || run(&stale, part(&w), 51, 17));
}

#[test]
fn deltas() {
    let (cpu, w) = (best(), weight(17, 64));
    let x = activations(&cpu, &[0.5; 3 * 64], 64);
    let mut floats = Activations::default();
    floats.resize(3, 64);
    let plain_base = dense(17, 64);
    let (down, up) = (weight(8, 64), weight(17, 32));
    let (dense_down, dense_up) = (dense(8, 64), dense(17, 8));
    let run = |x: &Activations, w: &Matrix, down: &Matrix, up: &Matrix, rows| {
        let deltas = [Delta { rows, down, up, scale: 1.0 }];
        let part = Part { deltas: &deltas, ..part(w) };
        cpu.linear(x, &[part], &mut [Output { to: &mut [0.0; 51], stride: 17, add: false }]);
    };
    run(&x, &w, &down, &up, 0..3);
    run(&x, &w, &dense_down, &dense_up, 0..3);
    refuses("a delta of these inputs", || run(&x, &w, &down, &up, 0..4));
    refuses("a delta of these inputs", || run(&x, &w, &weight(8, 32), &up, 0..3));
    refuses("a delta of these outputs", || run(&x, &w, &down, &weight(16, 32), 0..3));
    refuses("a delta of these outputs", || run(&x, &w, &weight(33, 64), &up, 0..3));
    refuses("a delta of these outputs", || run(&x, &w, &dense_down, &dense(17, 7), 0..3));
    refuses("both halves of a kind", || run(&x, &w, &down, &dense_up, 0..3));
    refuses("quantised deltas take quantised inputs", || run(&floats, &plain_base, &down, &up, 0..3));
}

#[test]
fn gates() {
    let (cpu, w, wide) = (best(), weight(17, 64), weight(32, 64));
    let x = activations(&cpu, &[0.5; 64], 64);
    let run = |gate: &Matrix, up: &Matrix, quantise: bool| {
        cpu.gated(&x, [&part(gate), &part(up)], Gate::Silu, quantise, &mut Activations::default());
    };
    run(&wide, &wide, true);
    refuses("gate and up of one size", || run(&w, &wide, false));
    refuses("whole groups", || run(&w, &w, true));
    refuses("as many inputs", || run(&w, &weight(17, 32), false));
}

#[test]
fn attention() {
    let cpu = best();
    let shape = CacheShape { layers: 2, kv_heads: 2, head_dim: 16 };
    let prepare = |layer: usize, [q, kv, angles]: [usize; 3], norms: usize, spans: &[Span<'_>]| {
        let (mut q, mut k, mut v, turn) = (vec![0.0; q], vec![0.0; kv], vec![0.0; kv], vec![0.0; angles]);
        let norm = vec![1.0; norms];
        let heads = Heads { norms: Some((&norm, &norm)), eps: 1e-5, rotation: (&turn, &turn), scale: 1.0 };
        let mut cache = KvCache::new(shape, 3);
        cpu.prepare_heads(layer, [&mut q, &mut k, &mut v], heads, spans, &mut cache);
    };
    let attend = |layer: usize, heads: usize, window: usize, q: usize, spans: &[Span<'_>]| {
        let (cache, mut out) = (KvCache::new(shape, 3), Activations::default());
        cpu.attention(
            Attention { layer, heads, window, whole: false },
            &vec![0.0; q],
            spans,
            &cache,
            &mut out,
        );
    };
    // Five rows of four query and two key-value heads.
    let sizes = [5 * 64, 5 * 32, 5 * 8];
    let span = |rows, position, pages| [Span { rows, position, pages }];
    let sound = span(0..5, 12, &[0, 2]);
    prepare(1, sizes, 16, &sound);
    attend(1, 4, 1, 5 * 64, &sound);
    refuses("keys and values", || prepare(2, sizes, 16, &sound));
    refuses("keys and values", || prepare(1, [5 * 64, 5 * 32 - 1, 5 * 8], 16, &sound));
    refuses("whole heads", || prepare(1, [5 * 64 + 5, 5 * 32, 5 * 8], 16, &sound));
    refuses("whole heads", || prepare(1, [5 * 64 + 1, 5 * 32, 5 * 8], 16, &sound));
    refuses("an angle for each row", || prepare(1, [5 * 64, 5 * 32, 5 * 16], 16, &sound));
    refuses("norms of a head", || prepare(1, sizes, 15, &sound));
    refuses("heads in groups", || attend(2, 4, 1, 5 * 64, &sound));
    refuses("heads in groups", || attend(1, 3, 1, 5 * 48, &sound));
    refuses("a query for each row", || attend(1, 4, 0, 5 * 64, &sound));
    refuses("a query for each row", || attend(1, 4, 1, 5 * 64 - 1, &sound));
    let wrong = [
        ("a page for each position", span(0..5, 12, &[0])),
        ("a page for each position", span(0..5, 28, &[0, 2])),
        ("a page for each position", span(0..5, 0, &[])),
        ("pages of this cache", span(0..5, 12, &[0, 3])),
        ("pages of this cache", span(0..5, 12, &[u32::MAX, 2])),
        ("spans in order", span(1..6, 12, &[0, 2])),
    ];
    for (message, spans) in wrong {
        refuses(message, || prepare(1, sizes, 16, &spans));
        refuses(message, || attend(1, 4, 1, 5 * 64, &spans));
    }
    let pages = [0, 1];
    let two = |second| [0..2, second].map(|rows| Span { rows, position: 0, pages: &pages });
    for second in [1..5, 3..5, 2..2] {
        refuses("spans in order", || prepare(1, sizes, 16, &two(second.clone())));
        refuses("spans in order", || attend(1, 4, 1, 5 * 64, &two(second.clone())));
    }
    refuses("a page is written by one sequence", || prepare(1, sizes, 16, &two(2..5)));
}

#[test]
fn pages() {
    let mut cache = KvCache::new(CacheShape { layers: 1, kv_heads: 1, head_dim: 8 }, 2);
    cache.copy_page(0, 1);
    for (from, to) in [(2, 0), (0, 2), (u32::MAX, 0), (0, u32::MAX)] {
        assert!(catch_unwind(AssertUnwindSafe(|| cache.copy_page(from, to))).is_err(), "{from} to {to}");
    }
}
