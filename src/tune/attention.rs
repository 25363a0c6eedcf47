//! Causal attention over whole sequences, with its adjoint.
//!
//! Scores are made a block of queries at a time and never kept: the way back makes them again from queries, keys and
//! the normaliser of each row, as Dao et al. 2022 (FlashAttention) do. Sequences that are packed into one batch do not see
//! each other.

use std::ops::Range;

use super::elementwise::{dot, exp, total};
use crate::kernels::{Cpu, View, ViewMut, product};

/// Queries that are worked on together: their scores over a thousand keys are 256 kB.
const QUERIES: usize = 64;

/// Shape of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) scale: f32,
    /// Positions that a query sees, itself included.
    pub(super) window: usize,
}

impl Heads {
    fn width(self) -> usize {
        self.heads * self.dim
    }

    fn kv_width(self) -> usize {
        self.kv_heads * self.dim
    }

    fn kv_of(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// Keys that some query of a block sees.
    fn keys(self, queries: &Range<usize>) -> Range<usize> {
        (queries.start + 1).saturating_sub(self.window)..queries.end
    }

    /// Keys that one query sees, counted from the first of its block.
    fn seen(self, query: usize, keys: &Range<usize>) -> Range<usize> {
        (query + 1).saturating_sub(self.window).max(keys.start) - keys.start..query + 1 - keys.start
    }
}

/// Columns of one head over some rows of a matrix whose rows have `width` numbers.
fn head_view(x: &[f32], rows: Range<usize>, width: usize, head: usize, dim: usize) -> View<'_> {
    View::strided(&x[rows.start * width + head * dim..], (rows.len(), dim), width)
}

/// Scores of a block of queries over the keys it may see.
fn scores(
    h: Heads,
    q: &[f32],
    k: &[f32],
    base: usize,
    head: usize,
    queries: &Range<usize>,
    to: &mut Vec<f32>,
) {
    let keys = h.keys(queries);
    let at = |r: &Range<usize>| base + r.start..base + r.end;
    to.resize(queries.len() * keys.len(), 0.0);
    let q = head_view(q, at(queries), h.width(), head, h.dim);
    let k = head_view(k, at(&keys), h.kv_width(), h.kv_of(head), h.dim);
    product(q, k.transposed(), h.scale, &mut ViewMut::new(to, (queries.len(), keys.len())), 0.0);
}

/// A head's results: its outputs, of shape (rows, dim), and the logarithm of each row's normaliser.
struct HeadResult {
    outputs: Vec<f32>,
    logs: Vec<f32>,
}

/// softmax(q kᵀ · scale) v for each sequence and head, into `out` of the shape of q; `logs`, of shape (heads, rows), takes the
/// logarithm of the normaliser of each row.
pub(super) fn attend(
    cpu: &Cpu,
    h: Heads,
    spans: &[Range<usize>],
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
    logs: &mut [f32],
) {
    let rows = q.len() / h.width();
    let places: Vec<(usize, Range<usize>)> =
        spans.iter().flat_map(|span| (0..h.heads).map(move |head| (head, span.clone()))).collect();
    let mut results: Vec<HeadResult> = places
        .iter()
        .map(|(_, s)| HeadResult { outputs: vec![0.0; s.len() * h.dim], logs: vec![0.0; s.len()] })
        .collect();
    cpu.each(places.iter().zip(&mut results).collect(), |((head, span), result)| {
        let mut block = Vec::new();
        for start in (0..span.len()).step_by(QUERIES) {
            let queries = start..span.len().min(start + QUERIES);
            let keys = h.keys(&queries);
            scores(h, q, k, span.start, *head, &queries, &mut block);
            for (row, query) in block.chunks_exact_mut(keys.len()).zip(queries.clone()) {
                let seen = h.seen(query, &keys);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                let row = &mut row[seen];
                let top = row.iter().fold(f32::NEG_INFINITY, |top, s| top.max(*s));
                row.iter_mut().for_each(|s| *s = exp(*s - top));
                let sum = total(row);
                row.iter_mut().for_each(|s| *s /= sum);
                result.logs[query] = top + sum.ln();
            }
            let p = View::new(&block, (queries.len(), keys.len()));
            let keys = span.start + keys.start..span.start + keys.end;
            let v = head_view(v, keys, h.kv_width(), h.kv_of(*head), h.dim);
            let to = &mut result.outputs[queries.start * h.dim..queries.end * h.dim];
            product(p, v, 1.0, &mut ViewMut::new(to, (queries.len(), h.dim)), 0.0);
        }
    });
    for ((head, span), result) in places.iter().zip(&results) {
        for (row, own) in span.clone().zip(result.outputs.chunks_exact(h.dim)) {
            out[row * h.width() + head * h.dim..][..h.dim].copy_from_slice(own);
        }
        logs[head * rows + span.start..head * rows + span.end].copy_from_slice(&result.logs);
    }
}

/// What a layer's attention kept of its way forward.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) out: &'a [f32],
    pub(super) logs: &'a [f32],
}

/// A head's gradients: of its queries, and its share of those of the keys and values.
struct HeadSlopes {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// The adjoint of [`attend`] for the rows from `first` on: gradients of q, k and v of those rows, given that of the outputs. All
/// four are of the rows from `first` on; with `first` above 0 there is one sequence.
pub(super) fn attend_back(
    cpu: &Cpu,
    h: Heads,
    spans: &[Range<usize>],
    kept: Kept<'_>,
    first: usize,
    slope: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let rows = kept.q.len() / h.width();
    let places: Vec<(usize, Range<usize>)> =
        spans.iter().flat_map(|span| (0..h.heads).map(move |head| (head, span.clone()))).collect();
    let mut results: Vec<HeadSlopes> = places
        .iter()
        .map(|(_, s)| {
            let zeros = || vec![0f32; s.len() * h.dim];
            HeadSlopes { q: zeros(), k: zeros(), v: zeros() }
        })
        .collect();
    cpu.each(places.iter().zip(&mut results).collect(), |((head, span), result)| {
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        // Rows without a gradient pass none on.
        let begin = first.saturating_sub(span.start).min(span.len());
        let mut start = begin;
        while start < span.len() {
            let queries = start..span.len().min(start + QUERIES);
            start = queries.end;
            let keys = h.keys(&queries);
            let shape = (queries.len(), keys.len());
            let at = |r: &Range<usize>| span.start + r.start..span.start + r.end;
            scores(h, kept.q, kept.k, span.start, *head, &queries, &mut p);
            // The gradient of the weights: dO Vᵀ.
            ds.resize(p.len(), 0.0);
            let own = at(&queries);
            let d_out = head_view(slope, own.start - first..own.end - first, h.width(), *head, h.dim);
            let v = head_view(kept.v, at(&keys), h.kv_width(), h.kv_of(*head), h.dim);
            product(d_out, v.transposed(), 1.0, &mut ViewMut::new(&mut ds, shape), 0.0);
            let blocks = p.chunks_exact_mut(keys.len()).zip(ds.chunks_exact_mut(keys.len()));
            for ((p, ds), query) in blocks.zip(queries.clone()) {
                let row = span.start + query;
                let seen = h.seen(query, &keys);
                for outside in [0..seen.start, seen.end..keys.len()] {
                    p[outside.clone()].fill(0.0);
                    ds[outside].fill(0.0);
                }
                let columns = head * h.dim..(head + 1) * h.dim;
                let o = &kept.out[row * h.width()..][columns.clone()];
                let d_o = &slope[(row - first) * h.width()..][columns];
                let along = dot(o, d_o);
                let log = kept.logs[head * rows + row];
                for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
                    *p = exp(*p - log);
                    *ds = *p * (*ds - along);
                }
            }
            let (p, ds) = (View::new(&p, shape), View::new(&ds, shape));
            let key_numbers = keys.start * h.dim..keys.end * h.dim;
            let k = head_view(kept.k, at(&keys), h.kv_width(), h.kv_of(*head), h.dim);
            let q = head_view(kept.q, at(&queries), h.width(), *head, h.dim);
            let to = &mut result.q[queries.start * h.dim..queries.end * h.dim];
            product(ds, k, h.scale, &mut ViewMut::new(to, (queries.len(), h.dim)), 0.0);
            let to = &mut result.k[key_numbers.clone()];
            product(ds.transposed(), q, h.scale, &mut ViewMut::new(to, (keys.len(), h.dim)), 1.0);
            let to = &mut result.v[key_numbers];
            product(p.transposed(), d_out, 1.0, &mut ViewMut::new(to, (keys.len(), h.dim)), 1.0);
        }
    });
    [&mut *dk, &mut *dv].into_iter().for_each(|slopes| slopes.fill(0.0));
    // In a fixed order, so that the sums are the same on any number of threads.
    for ((head, span), result) in places.iter().zip(&results) {
        for row in span.start.max(first)..span.end {
            let own = (row - span.start) * h.dim..(row - span.start + 1) * h.dim;
            dq[(row - first) * h.width() + head * h.dim..][..h.dim].copy_from_slice(&result.q[own.clone()]);
            let place = (row - first) * h.kv_width() + h.kv_of(*head) * h.dim;
            let sums = [(&mut *dk, &result.k), (&mut *dv, &result.v)];
            for (to, from) in sums {
                to[place..place + h.dim].iter_mut().zip(&from[own.clone()]).for_each(|(y, x)| *y += x);
            }
        }
    }
}
