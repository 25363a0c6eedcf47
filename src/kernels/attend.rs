//! Attention over the paged cache: online softmax over spans of 64 positions, no score matrix.
//!
//! Spans are counted from position 0 and a query's sums do not depend on which other queries are in hand,
//! so that a token's result is the same whether its prompt came in one piece, in chunks, or partly from
//! the cache. Source of the method: Milakov and Gimelshein 2018 (online softmax), Dao et al. 2022.

use super::math::exp;
use super::simd::{LANES, Simd};

/// Positions of a page.
pub(crate) const PAGE: usize = LANES;
/// Pages whose scores are held at a time.
const SPAN_PAGES: usize = 4;
const SPAN: usize = SPAN_PAGES * PAGE;
/// Queries that share what is loaded.
const QUERIES: usize = 4;

/// The queries of one sequence that share a key-value head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attend<'a> {
    /// Where each page's keys (of shape (head_dim, 16)) and values (of shape (16, padded head_dim)) of this head lie,
    /// as half-precision numbers from the start of `cache`.
    pub(super) pages: &'a [u32],
    /// Half-precision numbers of a page, all layers and heads together.
    pub(super) page_len: usize,
    /// From the start of a page to this head's keys, and from there to its values.
    pub(super) keys_at: usize,
    pub(super) values_at: usize,
    pub(super) cache: *const u16,
    /// Numbers of a head; the same rounded up to whole vectors.
    pub(super) dim: usize,
    pub(super) padded: usize,
    /// The first query's numbers; further heads of the group lie `dim` apart, further rows `row_stride`.
    pub(super) q: *const f32,
    pub(super) row_stride: usize,
    pub(super) heads: usize,
    pub(super) rows: usize,
    /// Position of the first row; the others follow it.
    pub(super) position: usize,
    /// Positions that a query sees, itself included.
    pub(super) window: usize,
    /// Where the positions end that every query sees; 0 where a query sees none behind its own.
    pub(super) whole: usize,
    /// Where results go, laid out like `q`.
    pub(super) out: *mut f32,
}

/// Numbers of scratch space that [`attend`] needs.
pub(super) fn scratch_len(queries: usize, padded: usize) -> usize {
    queries.next_multiple_of(QUERIES) * (padded + LANES + 1)
}

/// # Safety
/// All pages up to the last row's position, or to `whole`, must be written for this head; `scratch` must hold
/// [`scratch_len`] numbers for `heads · rows` queries.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(a: &Attend<'_>, scratch: *mut f32) {
    // SAFETY: the contract above; indices stay within the sizes that it names.
    unsafe {
        let count = a.rows * a.heads;
        let rounded = count.next_multiple_of(QUERIES);
        // Per query: output, sum of weights by lane, largest score so far.
        let (outputs, sums) = (scratch, scratch.add(rounded * a.padded));
        let largest = sums.add(rounded * LANES);
        for at in (0..rounded * (a.padded + LANES)).step_by(LANES) {
            S::store(scratch.add(at), S::splat(0.0));
        }
        for query in 0..rounded {
            *largest.add(query) = f32::NEG_INFINITY;
        }
        let query_at = |query: usize| (query / a.heads) * a.row_stride + (query % a.heads) * a.dim;
        let seen_by = |query: usize| {
            let end = if a.whole > 0 { a.whole } else { a.position + query / a.heads + 1 };
            (end.saturating_sub(a.window), end)
        };
        let first = seen_by(0).0 / SPAN * SPAN;
        let last = seen_by(count - 1).1;
        for span in (first..last).step_by(SPAN) {
            let pages: [*const u16; SPAN_PAGES] = std::array::from_fn(|p| {
                // Beyond the last page the first one stands in; its scores are masked.
                let page = a.pages.get(span / PAGE + p).or(a.pages.get(span / PAGE));
                a.cache.add(page.map_or(0, |page| *page as usize) * a.page_len + a.keys_at)
            });
            for chunk in (0..count).step_by(QUERIES) {
                let len = QUERIES.min(count - chunk);
                // The chunk as a whole sees positions `from..to` of this span.
                let from = seen_by(chunk).0.max(span);
                let to = seen_by(chunk + len - 1).1.min(span + SPAN);
                let chunk_range = (from, to);
                if from >= to {
                    continue;
                }
                let q: [*const f32; QUERIES] =
                    std::array::from_fn(|i| a.q.add(query_at(chunk + i.min(len - 1))));
                let mut weights = [[0f32; SPAN]; QUERIES];
                scores::<S>(&pages, &q, a.dim, &mut weights);
                let mut corrections = [1f32; QUERIES];
                let mut all_see_all = true;
                for i in 0..len {
                    let (from, to) = seen_by(chunk + i);
                    let (from, to) =
                        (from.clamp(span, span + SPAN) - span, to.clamp(span, span + SPAN) - span);
                    all_see_all &= (from + span, to + span) == chunk_range;
                    let state = (largest.add(chunk + i), sums.add((chunk + i) * LANES));
                    corrections[i] = soften::<S>(&mut weights[i], from, to, state);
                }
                let values: [*const u16; SPAN_PAGES] = pages.map(|page| page.add(a.values_at));
                let out = outputs.add(chunk * a.padded);
                let range = (from - span, to - span, all_see_all);
                mix::<S>(&values, &weights, &corrections, a.padded, range, out);
            }
        }
        for query in 0..count {
            let total = S::reduce_add(S::load(sums.add(query * LANES)));
            let (from, to) = (outputs.add(query * a.padded), a.out.add(query_at(query)));
            let inverse = 1.0 / total;
            for d in 0..a.dim {
                *to.add(d) = *from.add(d) * inverse;
            }
        }
    }
}

/// Scores of four queries with the 64 positions of four pages.
///
/// # Safety
/// Each page holds `dim` · 16 keys, each query `dim` numbers.
#[inline(always)]
unsafe fn scores<S: Simd>(
    pages: &[*const u16; SPAN_PAGES],
    q: &[*const f32; QUERIES],
    dim: usize,
    out: &mut [[f32; SPAN]; QUERIES],
) {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = [[S::splat(0.0); SPAN_PAGES]; QUERIES];
        for d in 0..dim {
            let mut keys = [S::splat(0.0); SPAN_PAGES];
            for (keys, page) in keys.iter_mut().zip(pages) {
                *keys = S::load_f16(page.add(d * PAGE));
            }
            for i in 0..QUERIES {
                let x = S::splat(*q[i].add(d));
                for p in 0..SPAN_PAGES {
                    sums[i][p] = S::fma(keys[p], x, sums[i][p]);
                }
            }
        }
        for (row, sums) in out.iter_mut().zip(sums) {
            for (p, sum) in sums.into_iter().enumerate() {
                S::store(row.as_mut_ptr().add(p * PAGE), sum);
            }
        }
    }
}

/// Turns the scores of positions `from..to` of a span into weights and the others into 0; brings the
/// running maximum and sum up to date. Returns the factor for what was summed before.
///
/// # Safety
/// The state must point to a number and to 16 numbers.
#[inline(always)]
unsafe fn soften<S: Simd>(
    scores: &mut [f32; SPAN],
    from: usize,
    to: usize,
    (largest, sums): (*mut f32, *mut f32),
) -> f32 {
    // SAFETY: the contract above.
    unsafe {
        let within = |p: usize| {
            let start = p * PAGE;
            (from.clamp(start, start + PAGE) - start, to.clamp(start, start + PAGE) - start)
        };
        if from >= to {
            scores.fill(0.0);
            return 1.0;
        }
        let p = scores.as_mut_ptr();
        let mut masked = [S::splat(0.0); SPAN_PAGES];
        // A score that is not finite makes the sum, and so the result, no number: exponentials would hide it.
        let mut finite = S::splat(0.0);
        for (page, masked) in masked.iter_mut().enumerate() {
            let (from, to) = within(page);
            let score = S::load(p.add(page * PAGE));
            *masked = S::keep(score, from, to, f32::NEG_INFINITY);
            finite = S::add(finite, S::keep(S::sub(score, score), from, to, 0.0));
        }
        let top = S::reduce_max(S::max(S::max(masked[0], masked[1]), S::max(masked[2], masked[3])));
        let old = *largest;
        let new = if top > old { top } else { old };
        let mut lanes = [0f32; LANES];
        S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(old - new)));
        let correction = if old == f32::NEG_INFINITY { 0.0 } else { lanes[0] };
        let shift = S::splat(new);
        // A loop: a closure would be compiled without the instruction set where it is not inlined.
        let mut weights = [S::splat(0.0); SPAN_PAGES];
        for (page, weight) in weights.iter_mut().enumerate() {
            let (from, to) = within(page);
            *weight = S::keep(exp::<S>(S::sub(masked[page], shift)), from, to, 0.0);
        }
        let sum = S::add(S::add(weights[0], weights[1]), S::add(weights[2], weights[3]));
        let sum = S::add(sum, finite);
        S::store(sums, S::fma(S::load(sums), S::splat(correction), sum));
        for (page, weight) in weights.into_iter().enumerate() {
            S::store(p.add(page * PAGE), weight);
        }
        *largest = new;
        correction
    }
}

/// out ← out · correction + Σ weight · value over positions `from..to` of a span, for four queries.
///
/// # Safety
/// Each page holds 16 · `padded` values, `out` 4 · `padded` numbers.
#[inline(always)]
unsafe fn mix<S: Simd>(
    pages: &[*const u16; SPAN_PAGES],
    weights: &[[f32; SPAN]; QUERIES],
    corrections: &[f32; QUERIES],
    padded: usize,
    (from, to, all_see_all): (usize, usize, bool),
    out: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut d = 0;
        while d + 4 * LANES <= padded {
            mix_columns::<S, 4>(pages, weights, corrections, padded, (from, to, all_see_all), out, d);
            d += 4 * LANES;
        }
        while d + 2 * LANES <= padded {
            mix_columns::<S, 2>(pages, weights, corrections, padded, (from, to, all_see_all), out, d);
            d += 2 * LANES;
        }
        while d < padded {
            mix_columns::<S, 1>(pages, weights, corrections, padded, (from, to, all_see_all), out, d);
            d += LANES;
        }
    }
}

/// [`mix`] for `V` vectors of columns from `d` on.
///
/// # Safety
/// As [`mix`], and `d` + 16 · `V` ≤ `padded`.
#[inline(always)]
unsafe fn mix_columns<S: Simd, const V: usize>(
    pages: &[*const u16; SPAN_PAGES],
    weights: &[[f32; SPAN]; QUERIES],
    corrections: &[f32; QUERIES],
    padded: usize,
    (from, to, all_see_all): (usize, usize, bool),
    out: *mut f32,
    d: usize,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; QUERIES];
        for position in from..to {
            let row = pages.get_unchecked(position / PAGE).add(position % PAGE * padded + d);
            let mut values = [S::splat(0.0); V];
            for (v, value) in values.iter_mut().enumerate() {
                *value = S::load_f16(row.add(v * LANES));
            }
            for i in 0..QUERIES {
                let weight = *weights[i].get_unchecked(position);
                // Not seen by this query of the four; its value may be infinite.
                if !all_see_all && weight == 0.0 {
                    continue;
                }
                let weight = S::splat(weight);
                for (sum, value) in sums[i].iter_mut().zip(values) {
                    *sum = S::fma(value, weight, *sum);
                }
            }
        }
        for i in 0..QUERIES {
            let correction = S::splat(corrections[i]);
            for (v, sum) in sums[i].iter().enumerate() {
                let at = out.add(i * padded + d + v * LANES);
                S::store(at, S::fma(S::load(at), correction, *sum));
            }
        }
    }
}
