//! The bodies of the matrix kernels, generic over instruction set and weight form.
//!
//! A sum is taken in one order whatever the number of tokens that are multiplied at once: the integer part of
//! a group is exact, and groups are added up from the first to the last. So a token's result does not depend
//! on its company, which is what lets batching, chunking, cached prefixes and drafts leave answers as they
//! are, bit for bit.

use super::forms::{Form, Offset, PANEL, UNPACKED};
use super::group::{Group, Panels, TileRows};
use super::simd::Simd;

/// How far ahead weights are asked for, in bytes: about what memory delivers within its latency.
const AHEAD: usize = 4096;

/// Adds to `acc` (of shape (tokens, 16)) the products of a panel's groups with `T` tokens of a tile, from
/// token `t0` on.
///
/// # Safety
/// `w` must hold `groups` groups of form `Q`, `x` as many [`Group`]s, `acc` 16 · `T` numbers;
/// `t0 + T` ≤ 8, `groups` whole blocks.
#[inline(always)]
pub(super) unsafe fn dot_tile<S: Simd, Q: Form, const T: usize, const AHEAD_OF_MEMORY: bool>(
    w: *const u8,
    groups: usize,
    x: *const Group,
    t0: usize,
    acc: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = [S::splat(0.0); T];
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = S::load(acc.add(t * PANEL));
        }
        let (mut w, mut x) = (w, x);
        for _ in 0..groups / Q::BLOCK_GROUPS {
            if AHEAD_OF_MEMORY {
                for line in (0..Q::BLOCK_BYTES).step_by(64) {
                    S::prefetch(w.wrapping_add(AHEAD + line));
                }
            }
            for group in 0..Q::BLOCK_GROUPS {
                let codes = Q::codes::<S>(w, group);
                let (d, m) = Q::scales::<S>(w, group);
                let tile = &*x;
                for (t, slot) in sums.iter_mut().enumerate() {
                    let at = t0 + t;
                    let q = tile.q.get_unchecked(at).as_ptr();
                    let scale = S::splat(*tile.scale.get_unchecked(at));
                    match Q::OFFSET {
                        Offset::Halves => {
                            let mut first = S::splat_i(*tile.halves[0].get_unchecked(at));
                            let mut second = S::splat_i(*tile.halves[1].get_unchecked(at));
                            for j in 0..4 {
                                first = S::dot::<false>(first, codes[j], q.add(4 * j));
                                second = S::dot::<false>(second, codes[j + 4], q.add(4 * j + 16));
                            }
                            *slot = S::fma(S::to_f(first), S::mul(d, scale), *slot);
                            *slot = S::fma(S::to_f(second), S::mul(m, scale), *slot);
                        }
                        offset => {
                            let mut sum = match offset {
                                Offset::Of(n) => S::splat_i(*tile.offset[n].get_unchecked(at)),
                                _ => S::splat_i(0),
                            };
                            for (j, code) in codes.iter().take(Q::VECTORS).enumerate() {
                                sum = if Q::WIDE {
                                    S::dot::<true>(sum, *code, q.add(4 * j))
                                } else {
                                    S::dot::<false>(sum, *code, q.add(4 * j))
                                };
                            }
                            *slot = S::fma(S::to_f(sum), S::mul(d, scale), *slot);
                            if Q::OFFSET == Offset::Minimum {
                                *slot = S::fma(m, S::splat(*tile.sum.get_unchecked(at)), *slot);
                            }
                        }
                    }
                }
                x = x.add(1);
            }
            w = w.add(Q::BLOCK_BYTES);
        }
        for (t, sum) in sums.into_iter().enumerate() {
            S::store(acc.add(t * PANEL), sum);
        }
    }
}

/// [`dot_tile`] for some tokens of a tile, and panels that lie one behind the other.
///
/// # Safety
/// As [`dot_tile`] for each panel; `rows.count` ≤ `rows.room` ≤ 8 − `rows.start`; `acc` holds, for each panel, 16 numbers
/// for each token that there is room for, `stride` numbers from one panel's to the next's.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd, Q: Form>(
    w: Panels,
    x: *const Group,
    rows: TileRows,
    acc: *mut f32,
    stride: usize,
) {
    let end = rows.start + rows.room;
    // SAFETY: the contract above; every step ends within the tile. Sizes above `S::TILE` are never chosen, so that
    // they cost no code.
    unsafe {
        for panel in 0..w.count {
            let (mut t, mut left) = (rows.start, rows.count);
            let mut acc = acc.add(panel * stride);
            let codes = w.first.add(panel * w.groups / Q::BLOCK_GROUPS * Q::BLOCK_BYTES);
            while left > 0 {
                // Rounded up where there is room: reading weights once counts more than an idle row.
                let fits = |size: usize| size <= S::TILE && t + size <= end && left > size / 2;
                let step = if fits(8) {
                    dot_tile::<S, Q, 8, true>(codes, w.groups, x, t, acc);
                    8
                } else if fits(4) {
                    dot_tile::<S, Q, 4, true>(codes, w.groups, x, t, acc);
                    4
                } else if fits(2) {
                    dot_tile::<S, Q, 2, true>(codes, w.groups, x, t, acc);
                    2
                } else {
                    dot_tile::<S, Q, 1, true>(codes, w.groups, x, t, acc);
                    1
                };
                t += step;
                acc = acc.add(step * PANEL);
                left = left.saturating_sub(step);
            }
        }
    }
}

/// Unpacks groups of a panel.
///
/// # Safety
/// `w` must hold `groups` groups, whole blocks; `out` [`UNPACKED`] bytes for each.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, Q: Form>(w: *const u8, groups: usize, out: *mut u8) {
    // SAFETY: the contract above.
    unsafe {
        let (mut w, mut out) = (w, out);
        for _ in 0..groups / Q::BLOCK_GROUPS {
            for line in (0..Q::BLOCK_BYTES).step_by(64) {
                S::prefetch(w.wrapping_add(AHEAD + line));
            }
            for group in 0..Q::BLOCK_GROUPS {
                for (j, code) in Q::codes::<S>(w, group).into_iter().enumerate() {
                    S::store_b(out.add(64 * j), code);
                }
                let (d, m) = Q::scales::<S>(w, group);
                S::store(out.add(512).cast(), d);
                S::store(out.add(512 + 4 * PANEL).cast(), m);
                out = out.add(UNPACKED);
            }
            w = w.add(Q::BLOCK_BYTES);
        }
    }
}

/// Multiplies unpacked groups with whole tiles of eight tokens, which lie `stride` groups apart.
///
/// # Safety
/// As [`dot_tile`] for each tile; `acc` holds 128 numbers for each tile.
#[inline(always)]
pub(super) unsafe fn dot_unpacked<S: Simd, Q: Form>(
    w: *const u8,
    groups: usize,
    x: *const Group,
    stride: usize,
    tiles: usize,
    acc: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        for tile in 0..tiles {
            let x = x.add(tile * stride);
            let acc = acc.add(tile * 8 * PANEL);
            match S::TILE {
                8 => dot_tile::<S, super::forms::Unpacked<Q>, 8, false>(w, groups, x, 0, acc),
                2 => {
                    for t in [0, 2, 4, 6] {
                        dot_tile::<S, super::forms::Unpacked<Q>, 2, false>(
                            w,
                            groups,
                            x,
                            t,
                            acc.add(t * PANEL),
                        );
                    }
                }
                _ => {
                    for t in 0..8 {
                        dot_tile::<S, super::forms::Unpacked<Q>, 1, false>(
                            w,
                            groups,
                            x,
                            t,
                            acc.add(t * PANEL),
                        );
                    }
                }
            }
        }
    }
}

/// A type of unquantised weights.
pub(super) trait Dense {
    /// Bytes of a number.
    const BYTES: usize;
    /// 16 numbers, widened.
    ///
    /// # Safety
    /// `p` must be readable for 16 numbers.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

macro_rules! dense {
    ($(#[$doc:meta])* $name:ident, $bytes:expr, $load:ident) => {
        $(#[$doc])*
        pub(super) struct $name;
        impl Dense for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> S::F {
                // SAFETY: the trait's contract.
                unsafe { S::$load(p.cast()) }
            }
        }
    };
}

dense!(
    /// 32-bit floats.
    F32, 4, load);
dense!(
    /// Half precision.
    F16, 2, load_f16);
dense!(
    /// bfloat16.
    Bf16, 2, load_bf16);

/// Adds to `acc` (of shape (tokens, 16)) the products of `columns` columns of a dense panel (of shape
/// (columns, 16)) with `T` tokens, whose 32-bit numbers lie `stride` apart.
///
/// # Safety
/// `w` must hold 16 · `columns` numbers of type `E`, `x` `columns` numbers for each token, `acc` 16 · `T`.
#[inline(always)]
unsafe fn dense_tile<S: Simd, E: Dense, const T: usize>(
    w: *const u8,
    columns: usize,
    x: *const f32,
    stride: usize,
    acc: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = [S::splat(0.0); T];
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = S::load(acc.add(t * PANEL));
        }
        for c in 0..columns {
            let column = E::load::<S>(w.add(c * PANEL * E::BYTES));
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(column, S::splat(*x.add(t * stride + c)), *sum);
            }
        }
        for (t, sum) in sums.into_iter().enumerate() {
            S::store(acc.add(t * PANEL), sum);
        }
    }
}

/// [`dense_tile`] for any number of tokens.
///
/// # Safety
/// As [`dense_tile`].
#[inline(always)]
pub(super) unsafe fn dot_dense<S: Simd, E: Dense>(
    w: *const u8,
    columns: usize,
    x: *const f32,
    stride: usize,
    tokens: usize,
    acc: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut t = 0;
        let at = |t: usize| (x.add(t * stride), acc.add(t * PANEL));
        while S::TILE >= 8 && t + 8 <= tokens {
            let (x, acc) = at(t);
            dense_tile::<S, E, 8>(w, columns, x, stride, acc);
            t += 8;
        }
        while S::TILE >= 4 && t + 4 <= tokens {
            let (x, acc) = at(t);
            dense_tile::<S, E, 4>(w, columns, x, stride, acc);
            t += 4;
        }
        while S::TILE >= 2 && t + 2 <= tokens {
            let (x, acc) = at(t);
            dense_tile::<S, E, 2>(w, columns, x, stride, acc);
            t += 2;
        }
        while t < tokens {
            let (x, acc) = at(t);
            dense_tile::<S, E, 1>(w, columns, x, stride, acc);
            t += 1;
        }
    }
}
