//! Activations as the matrix kernels read them: 8-bit codes with one scale for every 32 columns.

use super::simd::{LANES, Simd};

/// Columns that share a scale, in weights and activations alike.
pub(crate) const GROUP: usize = 32;
/// Rows (tokens) that are laid out side by side.
pub(crate) const TILE_ROWS: usize = 8;

/// 32 columns of 8 tokens. A token's value is `q · scale`; the sums are what a weight form needs that has a
/// minimum, or whose codes are stored with an offset to make them unsigned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Group {
    /// Codes, −127 to 127.
    pub(super) q: [[i8; GROUP]; TILE_ROWS],
    /// The scale: the largest magnitude / 127.
    pub(super) scale: [f32; TILE_ROWS],
    /// scale · Σq.
    pub(super) sum: [f32; TILE_ROWS],
    /// −8 · Σq, −16 · Σq, −128 · Σq.
    pub(super) offset: [[i32; TILE_ROWS]; 3],
    /// −32 · Σq over the first and the second 16 columns.
    pub(super) halves: [[i32; TILE_ROWS]; 2],
    /// To a power of two, so that no group straddles more cache lines than it must.
    padding: [i32; TILE_ROWS],
}

/// Which rows of a tile are multiplied.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileRows {
    /// The first.
    pub(super) start: usize,
    /// How many.
    pub(super) count: usize,
    /// How many there is room for: some more than `count` may be computed.
    pub(super) room: usize,
}

/// Panels of a quantised matrix, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    /// The first one's bytes.
    pub(super) first: *const u8,
    /// How many.
    pub(super) count: usize,
    /// Groups of columns in each.
    pub(super) groups: usize,
}

impl Group {
    /// All zero.
    pub(crate) const ZERO: Self = Self {
        q: [[0; GROUP]; TILE_ROWS],
        scale: [0.0; TILE_ROWS],
        sum: [0.0; TILE_ROWS],
        offset: [[0; TILE_ROWS]; 3],
        halves: [[0; TILE_ROWS]; 2],
        padding: [0; TILE_ROWS],
    };
}

/// Quantises 32 columns of one token: q = round(x · 127 / max|x|).
///
/// A column that is not a number, or infinite, makes the scale so too, and with it every output that
/// depends on the group: broken weights show in the logits, they are not clamped away.
///
/// # Safety
/// `x` must be readable for 32 numbers; the instruction set must be there.
#[inline(always)]
pub(super) unsafe fn quantise_group<S: Simd>(x: *const f32, group: &mut Group, t: usize) {
    // SAFETY: the contract above.
    unsafe {
        let (a, b) = (S::load(x), S::load(x.add(LANES)));
        let largest = f32::from_bits(S::largest_magnitude(a, b));
        let finite = largest.is_finite();
        let scale = if finite { largest / 127.0 } else { f32::NAN };
        // A group of numbers too small for that has codes of 0.
        let inverse = if finite && largest > 0.0 { 127.0 / largest } else { 0.0 };
        let inverse = S::splat(if inverse.is_finite() { inverse } else { 0.0 });
        let (a, b) = if finite { (a, b) } else { (S::splat(0.0), S::splat(0.0)) };
        let (qa, qb) = (S::to_i(S::mul(a, inverse)), S::to_i(S::mul(b, inverse)));
        let q = group.q[t].as_mut_ptr();
        S::store_i8(q, qa);
        S::store_i8(q.add(LANES), qb);
        let (first, second) = (S::reduce_add_i(qa), S::reduce_add_i(qb));
        let sum = first + second;
        group.scale[t] = scale;
        group.sum[t] = scale * sum as f32;
        for (slot, factor) in group.offset.iter_mut().zip([8, 16, 128]) {
            slot[t] = -factor * sum;
        }
        group.halves[0][t] = -32 * first;
        group.halves[1][t] = -32 * second;
    }
}
