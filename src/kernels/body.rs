//! The bodies of the matrix kernels, generic over instruction set and weight form.
//!
//! A sum is taken in one order whatever the number of tokens that are multiplied at once: the integer part of
//! a group is exact, and groups are added up from the first to the last. So a token's result does not depend
//! on its company, which is what lets batching, chunking, cached prefixes and drafts leave answers as they
//! are, bit for bit.

use super::forms::{Form, Offset, PANEL, UNPACKED_CODES, UNPACKED_SCALES, Unpacked};
use super::group::{GROUP, Group, Panels, TILE_ROWS, TileRows};
use super::simd::Simd;

/// How far ahead weights are asked for, in bytes: about what memory delivers within its latency.
const AHEAD: usize = 4096;

/// The numbers of tokens from `t0` on, each in all lanes.
///
/// # Safety
/// `t0 + T` ≤ 8.
#[inline(always)]
unsafe fn splats<S: Simd, const T: usize>(of: &[i32; TILE_ROWS], t0: usize) -> [S::I; T] {
    // SAFETY: the contract above.
    unsafe {
        let mut all = [S::splat_i(0); T];
        for (t, one) in all.iter_mut().enumerate() {
            *one = S::splat_i(*of.get_unchecked(t0 + t));
        }
        all
    }
}

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
                let (d, m) = Q::scales::<S>(w, group);
                let tile = &*x;
                let q = tile.q.as_ptr().cast::<i8>().add(t0 * GROUP);
                if Q::OFFSET == Offset::Halves {
                    for (half, d) in [d, m].into_iter().enumerate() {
                        let offsets = splats::<S, T>(&tile.halves[half], t0);
                        let vectors = (4 * half, 4 * half + 4);
                        let dots = Q::dot::<S, T>((w, group), vectors, offsets, q.add(16 * half));
                        for (t, slot) in sums.iter_mut().enumerate() {
                            let scale = S::splat(*tile.scale.get_unchecked(t0 + t));
                            *slot = S::fma(S::to_f(dots[t]), S::mul(d, scale), *slot);
                        }
                    }
                } else {
                    let offsets = match Q::OFFSET {
                        Offset::Of(n) => splats::<S, T>(&tile.offset[n], t0),
                        _ => [S::splat_i(0); T],
                    };
                    let dots = Q::dot::<S, T>((w, group), (0, Q::VECTORS), offsets, q);
                    for (t, slot) in sums.iter_mut().enumerate() {
                        let scale = S::splat(*tile.scale.get_unchecked(t0 + t));
                        *slot = S::fma(S::to_f(dots[t]), S::mul(d, scale), *slot);
                        if Q::OFFSET == Offset::Minimum {
                            *slot = S::fma(m, S::splat(*tile.sum.get_unchecked(t0 + t)), *slot);
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
/// `w` must hold `groups` groups, whole blocks; `out` [`UNPACKED`](super::forms::UNPACKED) bytes for each.
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
                let (d, m) = Q::scales::<S>(w, group);
                S::store(out.cast(), d);
                S::store(out.cast::<f32>().add(PANEL), m);
                let to = out.add(UNPACKED_SCALES);
                if S::NIBBLES && Q::BITS == 8 {
                    for (j, code) in Q::codes::<S>(w, group).into_iter().enumerate() {
                        S::store_b(to.add(64 * j), S::low_nibbles(code));
                        S::store_b(to.add(UNPACKED_CODES + 64 * j), S::high_nibbles(code));
                    }
                    out = out.add(Unpacked::<Q, true>::BLOCK_BYTES);
                } else {
                    for (j, code) in Q::codes::<S>(w, group).into_iter().enumerate() {
                        S::store_b(to.add(64 * j), code);
                    }
                    out = out.add(Unpacked::<Q, false>::BLOCK_BYTES);
                }
            }
            w = w.add(Q::BLOCK_BYTES);
        }
    }
}

/// Multiplies groups that [`unpack`] has unpacked with whole tiles of eight tokens, which lie `stride` groups apart.
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
            if S::NIBBLES && Q::BITS == 8 {
                dot_whole::<S, Unpacked<Q, true>>(w, groups, x, acc);
            } else {
                dot_whole::<S, Unpacked<Q, false>>(w, groups, x, acc);
            }
        }
    }
}

/// [`dot_tile`] for all tokens of a tile, of weights that are in a cache.
///
/// # Safety
/// As [`dot_tile`].
#[inline(always)]
unsafe fn dot_whole<S: Simd, Q: Form>(w: *const u8, groups: usize, x: *const Group, acc: *mut f32) {
    // SAFETY: the contract above.
    unsafe {
        for t in (0..TILE_ROWS).step_by(S::TILE) {
            let acc = acc.add(t * PANEL);
            match S::TILE {
                8 => dot_tile::<S, Q, 8, false>(w, groups, x, t, acc),
                4 => dot_tile::<S, Q, 4, false>(w, groups, x, t, acc),
                2 => dot_tile::<S, Q, 2, false>(w, groups, x, t, acc),
                _ => dot_tile::<S, Q, 1, false>(w, groups, x, t, acc),
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
