//! Attention over the paged cache: preparing heads, storing keys and values, and the attention itself.

use std::ops::Range;

use smallvec::SmallVec;

use super::activations::Activations;
use super::attend::{self, Attend};
use super::cache::KvCache;
use super::forms::PANEL;
use super::memory::at_least;
use super::ops::{Cpu, SCRATCH, Shared};

/// Rows of a sequence that attend together.
const ATTEND_ROWS: usize = 16;

/// Rows of one sequence in a batch: consecutive positions.
#[derive(Debug, Clone)]
pub struct Span<'a> {
    /// The batch's rows.
    pub rows: Range<usize>,
    /// The first row's position.
    pub position: usize,
    /// The sequence's pages, one for every 16 positions.
    pub pages: &'a [u32],
}

/// How heads are prepared before attention: norms of queries and keys, rotation, scale.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Weights of the norms of query and key heads.
    pub norms: Option<(&'a [f32], &'a [f32])>,
    /// Epsilon of those norms.
    pub eps: f32,
    /// Cosines and sines of each row, of shape (rows, head_dim / 2).
    pub rotation: (&'a [f32], &'a [f32]),
    /// Factor on queries.
    pub scale: f32,
}

/// What a layer's attention works with.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// The layer.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Positions that a query sees, itself included.
    pub window: usize,
    /// Whether a query sees what stands behind it too, to the end of its span: encoders do.
    pub whole: bool,
}

impl Cpu {
    /// Prepares the heads of a layer and stores keys and values: norms and rotation of `q` (in place) and `k`, of shapes
    /// (rows, heads · head_dim) and (rows, kv_heads · head_dim).
    ///
    /// # Panics
    /// When sizes do not agree, a span's position has no page, or two spans would write the same page.
    pub fn prepare_heads(
        &self,
        layer: usize,
        [q, k, v]: [&mut [f32]; 3],
        heads: Heads<'_>,
        spans: &[Span<'_>],
        cache: &mut KvCache,
    ) {
        let shape = cache.shape();
        let (dim, kv) = (shape.head_dim, shape.kv_heads * shape.head_dim);
        let half = dim / 2;
        let rows = spans.last().map_or(0, |s| s.rows.end);
        check_spans(spans, rows, cache);
        check_written(spans);
        assert!(
            rows > 0 && q.len().is_multiple_of(rows) && (q.len() / rows).is_multiple_of(dim),
            "whole heads"
        );
        assert!(k.len() == rows * kv && v.len() == rows * kv && layer < shape.layers, "keys and values");
        let (cos, sin) = heads.rotation;
        assert!(cos.len() == rows * half && sin.len() == rows * half, "an angle for each row");
        assert!(heads.norms.is_none_or(|(q, k)| q.len() == dim && k.len() == dim), "norms of a head");
        let q_width = q.len() / rows;
        let kernels = self.kernels();
        let (q, k, v) = (Shared(q.as_mut_ptr()), Shared(k.as_mut_ptr()), Shared(v.as_mut_ptr()));
        let (page_len, store) = (shape.page_len(), Shared(cache.as_mut_ptr()));
        let prepare = |row: usize| {
            let span = &spans[spans.partition_point(|span| span.rows.end <= row)];
            let position = span.position + row - span.rows.start;
            let (slot, page) = (position % KvCache::PAGE, span.pages[position / KvCache::PAGE]);
            let turn = |head: *mut f32, norm: Option<&[f32]>, factor: f32| {
                // SAFETY: `head` points to a head of this row, which is this task's alone; there are `half` angles for
                // each row; the variant is available.
                unsafe {
                    if let Some(norm) = norm {
                        (kernels.rms_norm)(head, norm.as_ptr(), dim, heads.eps, head);
                    }
                    (kernels.rotate)(
                        head,
                        cos.as_ptr().add(row * half),
                        sin.as_ptr().add(row * half),
                        half,
                        factor,
                    );
                }
            };
            for head in (0..q_width).step_by(dim) {
                turn(q.at(row * q_width + head), heads.norms.map(|n| n.0), heads.scale);
            }
            for head in 0..shape.kv_heads {
                let key = k.at(row * kv + head * dim);
                turn(key, heads.norms.map(|n| n.1), 1.0);
                let (keys_at, values_at) = shape.places(layer, head);
                let keys = store.at(page as usize * page_len + keys_at);
                let values = keys.wrapping_add(values_at + slot * shape.padded());
                let value = v.at(row * kv + head * dim);
                // SAFETY: this head's place in a page of the cache, in the slot of this row, which no other task writes
                // (positions differ, or pages do); the heads hold `dim` numbers.
                unsafe {
                    let (mut wide, mut narrow) = ([0f32; PANEL], [0u16; PANEL]);
                    for d in (0..dim).step_by(PANEL) {
                        let len = PANEL.min(dim - d);
                        std::ptr::copy_nonoverlapping(key.add(d).cast_const(), wide.as_mut_ptr(), len);
                        (kernels.store_f16)(narrow.as_mut_ptr(), wide.as_ptr());
                        for (i, number) in narrow[..len].iter().enumerate() {
                            *keys.add((d + i) * KvCache::PAGE + slot) = *number;
                        }
                        wide = [0.0; PANEL];
                        std::ptr::copy_nonoverlapping(value.add(d).cast_const(), wide.as_mut_ptr(), len);
                        (kernels.store_f16)(values.add(d), wide.as_ptr());
                        wide = [0.0; PANEL];
                    }
                }
            }
        };
        // Keys of the 16 positions of a page share cache lines: long runs of rows stay with one thread.
        let run = if rows > 2 * KvCache::PAGE { KvCache::PAGE } else { 1 };
        self.share(rows <= 2, rows.div_ceil(run), &|task| {
            (task * run..rows.min((task + 1) * run)).for_each(prepare);
        });
    }

    /// Attention of each row over its own sequence, up to itself or over all of it. `q` is what [`prepare_heads`](Self::prepare_heads) left; the
    /// results have its shape.
    ///
    /// # Panics
    /// When sizes do not agree, or a span's position has no page.
    pub fn attention(
        &self,
        attention: Attention,
        q: &[f32],
        spans: &[Span<'_>],
        cache: &KvCache,
        out: &mut Activations,
    ) {
        let shape = cache.shape();
        let rows = spans.last().map_or(0, |s| s.rows.end);
        check_spans(spans, rows, cache);
        let (dim, width) = (shape.head_dim, attention.heads * shape.head_dim);
        assert!(
            attention.layer < shape.layers && attention.heads.is_multiple_of(shape.kv_heads),
            "heads in groups"
        );
        assert!(q.len() == rows * width && attention.window > 0, "a query for each row");
        out.reshape(rows, width, false);
        let group = attention.heads / shape.kv_heads;
        let tiles = |span: &Span<'_>| span.rows.len().div_ceil(ATTEND_ROWS);
        let count = spans.iter().map(tiles).sum::<usize>();
        let (kernels, shared) = (self.kernels(), Shared(out.floats.as_mut_ptr()));
        let store = Shared(cache.as_ptr().cast_mut());
        self.share(rows == 0, count * shape.kv_heads, &|task| {
            // From the last to the first: later rows see more, and no thread should be left with such a one at the end.
            let mut tile = count - 1 - task / shape.kv_heads;
            let mut rest = spans;
            while let [first, after @ ..] = rest
                && tile >= tiles(first)
            {
                tile -= tiles(first);
                rest = after;
            }
            let Some(span) = rest.first() else { return };
            let start = span.rows.start + tile * ATTEND_ROWS;
            let count = ATTEND_ROWS.min(span.rows.end - start);
            let head = task % shape.kv_heads;
            let (keys_at, values_at) = shape.places(attention.layer, head);
            let at = start * width + head * group * dim;
            let work = Attend {
                pages: span.pages,
                page_len: shape.page_len(),
                keys_at,
                values_at,
                cache: store.at(0).cast_const(),
                dim,
                padded: shape.padded(),
                q: q.as_ptr().wrapping_add(at),
                row_stride: width,
                heads: group,
                rows: count,
                position: span.position + (start - span.rows.start),
                window: attention.window,
                whole: if attention.whole { span.position + span.rows.len() } else { 0 },
                out: shared.at(at),
            };
            SCRATCH.with_borrow_mut(|scratch| {
                let scratch =
                    at_least(&mut scratch.floats, attend::scratch_len(count * group, shape.padded()));
                // SAFETY: `check_spans` has seen that every page up to the last position is one of the cache's; queries and
                // results of these rows and heads are within their buffers, and the results are this task's alone.
                unsafe {
                    (kernels.attend)(&work, scratch.as_mut_ptr());
                }
            });
        });
    }
}

/// Pages that rows are stored in belong to one span each: threads write them without asking each other.
fn check_written(spans: &[Span<'_>]) {
    let mut pages: SmallVec<[u32; 64]> = SmallVec::new();
    for span in spans {
        let last = (span.position + span.rows.len() - 1) / KvCache::PAGE;
        pages.extend_from_slice(&span.pages[span.position / KvCache::PAGE..=last]);
    }
    pages.sort_unstable();
    assert!(pages.windows(2).all(|pair| pair[0] != pair[1]), "a page is written by one sequence");
}

fn check_spans(spans: &[Span<'_>], rows: usize, cache: &KvCache) {
    let mut next = 0;
    for span in spans {
        assert!(span.rows.start == next && span.rows.end > next, "spans in order, without gaps");
        next = span.rows.end;
        let last = span.position + span.rows.len() - 1;
        assert!(last / KvCache::PAGE < span.pages.len(), "a page for each position");
        assert!(span.pages.iter().all(|p| (*p as usize) < cache.pages()), "pages of this cache");
    }
    assert_eq!(next, rows, "all rows");
}
