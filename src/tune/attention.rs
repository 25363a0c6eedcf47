//! Attention over whole sequences, causal or to all tokens, with its adjoint.
//!
//! Scores are made a block of queries at a time and never kept: the way back makes them again from queries, keys and
//! the normaliser of each row, as Dao et al. 2022 (FlashAttention) do. Sequences that are packed into one batch do not see
//! each other. A sequence may have more keys than rows: those in front are of tokens that ran before and get no gradient.

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
    /// Whether it sees what is behind it as well, and everything in front.
    pub(super) whole: bool,
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

    /// Keys that some query of a block sees, of all of a sequence.
    fn keys(self, queries: &Range<usize>, of: &Sequence) -> Range<usize> {
        if self.whole {
            return 0..of.keys.len();
        }
        (queries.start + 1).saturating_sub(self.window)..queries.end
    }

    /// Keys that one query sees, counted from the first of its block.
    fn seen(self, query: usize, keys: &Range<usize>) -> Range<usize> {
        if self.whole {
            return 0..keys.len();
        }
        (query + 1).saturating_sub(self.window).max(keys.start) - keys.start..query + 1 - keys.start
    }
}

/// A sequence of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Its rows.
    pub(super) rows: Range<usize>,
    /// Its rows in the matrices of keys and values, the last of which are those of `rows`.
    pub(super) keys: Range<usize>,
}

impl Sequence {
    /// Keys in front of its own.
    pub(super) fn prefix(&self) -> usize {
        self.keys.len() - self.rows.len()
    }

    /// Blocks of queries, counted from the first key.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.keys.len();
        (self.prefix()..end).step_by(QUERIES).map(move |start| start..end.min(start + QUERIES))
    }

    /// The rows of queries, counted from the first key.
    fn query_rows(&self, queries: &Range<usize>) -> Range<usize> {
        let shift = |at: usize| self.rows.start + at - self.prefix();
        shift(queries.start)..shift(queries.end)
    }

    /// The rows of keys, counted from the first.
    fn key_rows(&self, keys: &Range<usize>) -> Range<usize> {
        self.keys.start + keys.start..self.keys.start + keys.end
    }
}

/// Columns of one head over some rows of a matrix whose rows have `width` numbers.
fn head_view(x: &[f32], rows: Range<usize>, width: usize, head: usize, dim: usize) -> View<'_> {
    View::strided(&x[rows.start * width + head * dim..], (rows.len(), dim), width)
}

/// Scores of a block of queries, counted from the sequence's first key, over the keys it may see.
fn scores(
    h: Heads,
    q: &[f32],
    k: &[f32],
    of: &Sequence,
    head: usize,
    queries: &Range<usize>,
    to: &mut Vec<f32>,
) {
    let keys = h.keys(queries, of);
    to.resize(queries.len() * keys.len(), 0.0);
    let q = head_view(q, of.query_rows(queries), h.width(), head, h.dim);
    let k = head_view(k, of.key_rows(&keys), h.kv_width(), h.kv_of(head), h.dim);
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
    sequences: &[Sequence],
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
    logs: &mut [f32],
) {
    let rows = q.len() / h.width();
    let places: Vec<(usize, &Sequence)> =
        sequences.iter().flat_map(|one| (0..h.heads).map(move |head| (head, one))).collect();
    let mut results: Vec<HeadResult> = places
        .iter()
        .map(|(_, s)| HeadResult { outputs: vec![0.0; s.rows.len() * h.dim], logs: vec![0.0; s.rows.len()] })
        .collect();
    cpu.each(places.iter().zip(&mut results).collect(), |((head, of), result)| {
        let mut block = Vec::new();
        for queries in of.blocks() {
            let keys = h.keys(&queries, of);
            scores(h, q, k, of, *head, &queries, &mut block);
            let first = queries.start - of.prefix();
            for (row, query) in block.chunks_exact_mut(keys.len()).zip(queries.clone()) {
                let seen = h.seen(query, &keys);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                let row = &mut row[seen];
                let top = row.iter().fold(f32::NEG_INFINITY, |top, s| top.max(*s));
                row.iter_mut().for_each(|s| *s = exp(*s - top));
                let sum = total(row);
                row.iter_mut().for_each(|s| *s /= sum);
                result.logs[query - of.prefix()] = top + sum.ln();
            }
            let p = View::new(&block, (queries.len(), keys.len()));
            let v = head_view(v, of.key_rows(&keys), h.kv_width(), h.kv_of(*head), h.dim);
            let to = &mut result.outputs[first * h.dim..(first + queries.len()) * h.dim];
            product(p, v, 1.0, &mut ViewMut::new(to, (queries.len(), h.dim)), 0.0);
        }
    });
    for ((head, of), result) in places.iter().zip(&results) {
        for (row, own) in of.rows.clone().zip(result.outputs.chunks_exact(h.dim)) {
            out[row * h.width() + head * h.dim..][..h.dim].copy_from_slice(own);
        }
        logs[head * rows + of.rows.start..head * rows + of.rows.end].copy_from_slice(&result.logs);
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

/// The adjoint of [`attend`]: gradients of q, k and v of all rows, given that of the outputs.
pub(super) fn attend_back(
    cpu: &Cpu,
    h: Heads,
    sequences: &[Sequence],
    kept: Kept<'_>,
    slope: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let rows = kept.q.len() / h.width();
    let places: Vec<(usize, &Sequence)> =
        sequences.iter().flat_map(|one| (0..h.heads).map(move |head| (head, one))).collect();
    let mut results: Vec<HeadSlopes> = places
        .iter()
        .map(|(_, s)| {
            let zeros = || vec![0f32; s.rows.len() * h.dim];
            HeadSlopes { q: zeros(), k: zeros(), v: zeros() }
        })
        .collect();
    cpu.each(places.iter().zip(&mut results).collect(), |((head, of), result)| {
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let prefix = of.prefix();
        for queries in of.blocks() {
            let keys = h.keys(&queries, of);
            let shape = (queries.len(), keys.len());
            scores(h, kept.q, kept.k, of, *head, &queries, &mut p);
            // The gradient of the weights: dO Vᵀ.
            ds.resize(p.len(), 0.0);
            let d_out = head_view(slope, of.query_rows(&queries), h.width(), *head, h.dim);
            let v = head_view(kept.v, of.key_rows(&keys), h.kv_width(), h.kv_of(*head), h.dim);
            product(d_out, v.transposed(), 1.0, &mut ViewMut::new(&mut ds, shape), 0.0);
            let blocks = p.chunks_exact_mut(keys.len()).zip(ds.chunks_exact_mut(keys.len()));
            for ((p, ds), (query, row)) in blocks.zip(queries.clone().zip(of.query_rows(&queries))) {
                let seen = h.seen(query, &keys);
                for outside in [0..seen.start, seen.end..keys.len()] {
                    p[outside.clone()].fill(0.0);
                    ds[outside].fill(0.0);
                }
                let columns = head * h.dim..(head + 1) * h.dim;
                let o = &kept.out[row * h.width()..][columns.clone()];
                let d_o = &slope[row * h.width()..][columns];
                let along = dot(o, d_o);
                let log = kept.logs[head * rows + row];
                for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
                    *p = exp(*p - log);
                    *ds = *p * (*ds - along);
                }
            }
            let k = head_view(kept.k, of.key_rows(&keys), h.kv_width(), h.kv_of(*head), h.dim);
            let q = head_view(kept.q, of.query_rows(&queries), h.width(), *head, h.dim);
            let to = &mut result.q[(queries.start - prefix) * h.dim..(queries.end - prefix) * h.dim];
            product(View::new(&ds, shape), k, h.scale, &mut ViewMut::new(to, (queries.len(), h.dim)), 0.0);
            // Of the keys, the sequence's own.
            let own = keys.start.max(prefix)..keys.end;
            let view = |x| View::strided(x, (queries.len(), own.len()), keys.len()).transposed();
            let (p, ds) = (view(&p[own.start - keys.start..]), view(&ds[own.start - keys.start..]));
            let numbers = (own.start - prefix) * h.dim..(own.end - prefix) * h.dim;
            let to = &mut result.k[numbers.clone()];
            product(ds, q, h.scale, &mut ViewMut::new(to, (own.len(), h.dim)), 1.0);
            let to = &mut result.v[numbers];
            product(p, d_out, 1.0, &mut ViewMut::new(to, (own.len(), h.dim)), 1.0);
        }
    });
    [&mut *dk, &mut *dv].into_iter().for_each(|slopes| slopes.fill(0.0));
    // In a fixed order, so that the sums are the same on any number of threads.
    for ((head, of), result) in places.iter().zip(&results) {
        for row in of.rows.clone() {
            let own = (row - of.rows.start) * h.dim..(row - of.rows.start + 1) * h.dim;
            dq[row * h.width() + head * h.dim..][..h.dim].copy_from_slice(&result.q[own.clone()]);
            let place = row * h.kv_width() + h.kv_of(*head) * h.dim;
            let sums = [(&mut *dk, &result.k), (&mut *dv, &result.v)];
            for (to, from) in sums {
                to[place..place + h.dim].iter_mut().zip(&from[own.clone()]).for_each(|(y, x)| *y += x);
            }
        }
    }
}
