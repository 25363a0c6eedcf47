//! The forms that weights are kept in: one for each type of GGUF, the same numbers in the same bytes,
//! interleaved.
//!
//! A matrix is cut into panels of 16 rows (the last one padded), a panel into blocks of 32 or 256 columns,
//! and the 16 rows of a block lie side by side, so that one vector holds four columns of each row. The
//! types are those of ggml (`ggml-common.h`); a weight is `scale · (code − offset)` or
//! `scale · code + minimum`.

use super::simd::{LANES, Simd};

/// Rows of a panel.
pub(crate) const PANEL: usize = LANES;

/// What is done about codes that are stored unsigned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offset {
    /// Nothing: there is a minimum.
    Minimum,
    /// Subtract 8, 16 or 128: index into [`Group::offset`](super::group::Group::offset).
    Of(usize),
    /// Subtract 32; each half of a group has a scale of its own.
    Halves,
}

/// A form of quantised weights.
///
/// # Safety
/// Blocks must be readable for `BLOCK_BYTES`, `group` below `BLOCK_GROUPS`.
#[allow(clippy::missing_safety_doc, reason = "the trait's own section holds for both functions")]
pub(super) trait Form {
    const OFFSET: Offset;
    /// Bits of a code.
    const BITS: u32;
    /// Vectors of codes of a group that are not all zero.
    const VECTORS: usize = 8;
    /// Groups of 32 columns in a block.
    const BLOCK_GROUPS: usize;
    /// Bytes of a block of 16 rows.
    const BLOCK_BYTES: usize;

    /// The codes of a group: vector j holds columns 4j to 4j + 3 of the 16 rows.
    unsafe fn codes<S: Simd>(block: *const u8, group: usize) -> [S::B; 8];
    /// [`Simd::dot`] of the vectors `from..to` of a group with `T` tokens: all, or a half of those with [`Offset::Halves`].
    #[inline(always)]
    unsafe fn dot<S: Simd, const T: usize>(
        (block, group): (*const u8, usize),
        (from, to): (usize, usize),
        acc: [S::I; T],
        a: *const i8,
    ) -> [S::I; T] {
        // SAFETY: the traits' contracts.
        unsafe {
            let codes = &Self::codes::<S>(block, group)[from..to];
            match Self::BITS {
                4 => S::dot::<4, T>(acc, codes, a),
                5 => S::dot::<5, T>(acc, codes, a),
                _ => S::dot::<8, T>(acc, codes, a),
            }
        }
    }
    /// Scales and minima of a group, or the scales of its two halves.
    unsafe fn scales<S: Simd>(block: *const u8, group: usize) -> (S::F, S::F);
}

/// `acc + 16 · high`, token by token.
#[inline(always)]
unsafe fn add_16_times<S: Simd, const T: usize>(acc: [S::I; T], high: [S::I; T]) -> [S::I; T] {
    let mut acc = acc;
    for (acc, high) in acc.iter_mut().zip(high) {
        // SAFETY: within the contract of `Form`.
        *acc = unsafe { S::add_i(*acc, S::shl_i::<4>(high)) };
    }
    acc
}

/// 4-bit codes: vector v of 64 bytes holds columns of vector 2v in its low nibbles, of 2v + 1 in its high ones.
#[inline(always)]
unsafe fn nibbles<S: Simd>(p: *const u8) -> [S::B; 8] {
    // SAFETY: within the contract of `Form`; every group has 256 bytes of nibbles.
    unsafe {
        let v = [S::load_b(p), S::load_b(p.add(64)), S::load_b(p.add(128)), S::load_b(p.add(192))];
        [
            S::low_nibbles(v[0]),
            S::high_nibbles(v[0]),
            S::low_nibbles(v[1]),
            S::high_nibbles(v[1]),
            S::low_nibbles(v[2]),
            S::high_nibbles(v[2]),
            S::low_nibbles(v[3]),
            S::high_nibbles(v[3]),
        ]
    }
}

/// 8-bit codes.
#[inline(always)]
unsafe fn bytes<S: Simd>(p: *const u8) -> [S::B; 8] {
    // SAFETY: within the contract of `Form`; such a group has 512 bytes.
    unsafe {
        [
            S::load_b(p),
            S::load_b(p.add(64)),
            S::load_b(p.add(128)),
            S::load_b(p.add(192)),
            S::load_b(p.add(256)),
            S::load_b(p.add(320)),
            S::load_b(p.add(384)),
            S::load_b(p.add(448)),
        ]
    }
}

/// The fifth bits: bit j of a byte belongs to vector j.
#[inline(always)]
unsafe fn with_fifth_bits<S: Simd>(low: [S::B; 8], p: *const u8) -> [S::B; 8] {
    // SAFETY: within the contract of `Form`; such a group has 64 bytes of fifth bits.
    unsafe {
        let high = S::load_b(p);
        [
            S::with_high_bits::<0, 1>(low[0], high),
            S::with_high_bits::<1, 1>(low[1], high),
            S::with_high_bits::<2, 1>(low[2], high),
            S::with_high_bits::<3, 1>(low[3], high),
            S::with_high_bits::<4, 1>(low[4], high),
            S::with_high_bits::<5, 1>(low[5], high),
            S::with_high_bits::<6, 1>(low[6], high),
            S::with_high_bits::<7, 1>(low[7], high),
        ]
    }
}

/// Bytes of nibbles, of fifth bits, and of 16 half-precision scales.
pub(super) const NIBBLES: usize = 256;
pub(super) const FIFTH: usize = 64;
pub(super) const HALF_SCALES: usize = 2 * PANEL;

macro_rules! plain_form {
    ($(#[$doc:meta])* $name:ident, $offset:expr, high: $high:expr, minimum: $minimum:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Form for $name {
            const OFFSET: Offset = $offset;
            const BITS: u32 = if $high { 5 } else { 4 };
            const BLOCK_GROUPS: usize = 1;
            const BLOCK_BYTES: usize =
                NIBBLES + if $high { FIFTH } else { 0 } + if $minimum { 2 } else { 1 } * HALF_SCALES;

            #[inline(always)]
            unsafe fn codes<S: Simd>(block: *const u8, _: usize) -> [S::B; 8] {
                // SAFETY: the trait's contract.
                unsafe {
                    let low = nibbles::<S>(block);
                    if $high { with_fifth_bits::<S>(low, block.add(NIBBLES)) } else { low }
                }
            }
            #[inline(always)]
            unsafe fn scales<S: Simd>(block: *const u8, _: usize) -> (S::F, S::F) {
                // SAFETY: the trait's contract.
                unsafe {
                    let p = block.add(NIBBLES + if $high { FIFTH } else { 0 });
                    let d = S::load_f16(p.cast());
                    (d, if $minimum { S::load_f16(p.add(HALF_SCALES).cast()) } else { d })
                }
            }
        }
    };
}

plain_form!(
    /// 4 bits − 8, a scale.
    Q4_0, Offset::Of(0), high: false, minimum: false);
plain_form!(
    /// 4 bits, a scale and a minimum.
    Q4_1, Offset::Minimum, high: false, minimum: true);
plain_form!(
    /// 5 bits − 16, a scale.
    Q5_0, Offset::Of(1), high: true, minimum: false);
plain_form!(
    /// 5 bits, a scale and a minimum.
    Q5_1, Offset::Minimum, high: true, minimum: true);

/// 8 bits, a scale. The codes are stored with 128 added.
pub(super) struct Q8_0;

impl Form for Q8_0 {
    const OFFSET: Offset = Offset::Of(2);
    const BITS: u32 = 8;
    const BLOCK_GROUPS: usize = 1;
    const BLOCK_BYTES: usize = 512 + HALF_SCALES;

    #[inline(always)]
    unsafe fn codes<S: Simd>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: the trait's contract.
        unsafe { bytes::<S>(block) }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(block: *const u8, _: usize) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        let d = unsafe { S::load_f16(block.add(512).cast()) };
        (d, d)
    }
}

/// [`Q8_0`] of 16 columns, for the second half of a low-rank delta: most have a rank of 16 or less.
pub(super) struct Q8Half;

impl Form for Q8Half {
    const OFFSET: Offset = Offset::Of(2);
    const BITS: u32 = 8;
    const VECTORS: usize = 4;
    const BLOCK_GROUPS: usize = 1;
    const BLOCK_BYTES: usize = 256 + HALF_SCALES;

    #[inline(always)]
    unsafe fn codes<S: Simd>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: the trait's contract.
        unsafe {
            let v = [
                S::load_b(block),
                S::load_b(block.add(64)),
                S::load_b(block.add(128)),
                S::load_b(block.add(192)),
            ];
            [v[0], v[1], v[2], v[3], v[0], v[1], v[2], v[3]]
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(block: *const u8, _: usize) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        let d = unsafe { S::load_f16(block.add(256).cast()) };
        (d, d)
    }
}

/// Bytes of the twelve 6-bit-packed scales and minima of 16 rows, byte i of all rows side by side.
pub(super) const K_SCALES: usize = 12 * PANEL;

/// Scale and minimum of one of eight groups: `d · scale` and `−dmin · minimum`, each 6 bits, packed as in
/// ggml's `get_scale_min_k4`.
#[inline(always)]
unsafe fn k_scales<S: Simd>(p: *const u8, group: usize) -> (S::F, S::F) {
    // SAFETY: within the contract of `Form`; such a block has 12 · 16 bytes of scales, then d and dmin.
    unsafe {
        let (scale, minimum) = if group < 4 {
            let (scale, minimum) = (S::load_u8(p.add(group * PANEL)), S::load_u8(p.add((group + 4) * PANEL)));
            (S::and_i(scale, 63), S::and_i(minimum, 63))
        } else {
            let both = S::load_u8(p.add((group + 4) * PANEL));
            let scale = S::shl_i::<4>(S::shr_i::<6>(S::load_u8(p.add((group - 4) * PANEL))));
            let minimum = S::shl_i::<4>(S::shr_i::<6>(S::load_u8(p.add(group * PANEL))));
            (S::or_i(S::and_i(both, 15), scale), S::or_i(S::shr_i::<4>(both), minimum))
        };
        let d = S::load_f16(p.add(K_SCALES).cast());
        let dmin = S::load_f16(p.add(K_SCALES + HALF_SCALES).cast());
        let minimum = S::sub(S::splat(0.0), S::mul(dmin, S::to_f(minimum)));
        (S::mul(d, S::to_f(scale)), minimum)
    }
}

macro_rules! k_form {
    ($(#[$doc:meta])* $name:ident, high: $high:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Form for $name {
            const OFFSET: Offset = Offset::Minimum;
            const BITS: u32 = if $high { 5 } else { 4 };
            const BLOCK_GROUPS: usize = 8;
            const BLOCK_BYTES: usize =
                8 * (NIBBLES + if $high { FIFTH } else { 0 }) + K_SCALES + 2 * HALF_SCALES;

            #[inline(always)]
            unsafe fn codes<S: Simd>(block: *const u8, group: usize) -> [S::B; 8] {
                // SAFETY: the trait's contract.
                unsafe {
                    let p = block.add(group * (NIBBLES + if $high { FIFTH } else { 0 }));
                    let low = nibbles::<S>(p);
                    if $high { with_fifth_bits::<S>(low, p.add(NIBBLES)) } else { low }
                }
            }
            #[inline(always)]
            unsafe fn scales<S: Simd>(block: *const u8, group: usize) -> (S::F, S::F) {
                // SAFETY: the trait's contract.
                unsafe { k_scales::<S>(block.add(8 * (NIBBLES + if $high { FIFTH } else { 0 })), group) }
            }
        }
    };
}

k_form!(
    /// 4 bits; eight groups share a scale of scales and one of minima.
    Q4K, high: false);
k_form!(
    /// 5 bits; eight groups share a scale of scales and one of minima.
    Q5K, high: true);

/// Bytes of the upper two bits of a group: in vector h of 64 bytes, bits 2f and 2f + 1 of a byte belong to
/// vector 4h + f.
pub(super) const SIXTH: usize = 128;
/// Bytes of a group of [`Q6K`].
pub(super) const Q6K_GROUP: usize = NIBBLES + SIXTH;

/// The codes of 16 columns.
#[inline(always)]
unsafe fn q6k_half<S: Simd>(group: *const u8, half: usize) -> [S::B; 4] {
    // SAFETY: within the contract of `Form`; such a group has `Q6K_GROUP` bytes.
    unsafe {
        let v = [S::load_b(group.add(128 * half)), S::load_b(group.add(128 * half + 64))];
        let high = S::load_b(group.add(NIBBLES + 64 * half));
        [
            S::with_high_bits::<0, 3>(S::low_nibbles(v[0]), high),
            S::with_high_bits::<2, 3>(S::high_nibbles(v[0]), high),
            S::with_high_bits::<4, 3>(S::low_nibbles(v[1]), high),
            S::with_high_bits::<6, 3>(S::high_nibbles(v[1]), high),
        ]
    }
}

/// 6 bits − 32; 16 columns share an 8-bit scale, and 256 the scale of those.
pub(super) struct Q6K;

impl Form for Q6K {
    const OFFSET: Offset = Offset::Halves;
    const BITS: u32 = 6;
    const BLOCK_GROUPS: usize = 8;
    const BLOCK_BYTES: usize = 8 * Q6K_GROUP + 16 * PANEL + HALF_SCALES;

    #[inline(always)]
    unsafe fn codes<S: Simd>(block: *const u8, group: usize) -> [S::B; 8] {
        // SAFETY: the trait's contract.
        unsafe {
            let p = block.add(group * Q6K_GROUP);
            let ([a, b, c, d], [e, f, g, h]) = (q6k_half::<S>(p, 0), q6k_half::<S>(p, 1));
            [a, b, c, d, e, f, g, h]
        }
    }
    /// The vectors are one of the halves: unpacking the other as well would cost registers.
    #[inline(always)]
    unsafe fn dot<S: Simd, const T: usize>(
        (block, group): (*const u8, usize),
        (from, _): (usize, usize),
        acc: [S::I; T],
        a: *const i8,
    ) -> [S::I; T] {
        // SAFETY: the traits' contracts.
        unsafe { S::dot::<6, T>(acc, &q6k_half::<S>(block.add(group * Q6K_GROUP), from / 4), a) }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(block: *const u8, group: usize) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        unsafe {
            let p = block.add(8 * Q6K_GROUP);
            let d = S::load_f16(p.add(16 * PANEL).cast());
            let p = p.add(2 * group * PANEL);
            (S::mul(d, S::to_f(S::load_i8(p))), S::mul(d, S::to_f(S::load_i8(p.add(PANEL)))))
        }
    }
}

/// A form unpacked: 32-bit scales and a byte for each code (for each half of it, the low ones first, if `HALVED`), for as long
/// as many tokens are multiplied with it.
pub(super) struct Unpacked<Q, const HALVED: bool>(std::marker::PhantomData<Q>);

/// Bytes of the scales and minima of an unpacked group of 16 rows, which come first.
pub(super) const UNPACKED_SCALES: usize = 2 * 4 * PANEL;
/// Bytes of the codes of an unpacked group, or of their halves of one kind.
pub(super) const UNPACKED_CODES: usize = 512;
/// Bytes of an unpacked group at the most.
pub(super) const UNPACKED: usize = UNPACKED_SCALES + 2 * UNPACKED_CODES;

impl<Q: Form, const HALVED: bool> Form for Unpacked<Q, HALVED> {
    const OFFSET: Offset = Q::OFFSET;
    const BITS: u32 = Q::BITS;
    const VECTORS: usize = Q::VECTORS;
    const BLOCK_GROUPS: usize = 1;
    const BLOCK_BYTES: usize = UNPACKED_SCALES + UNPACKED_CODES * if HALVED { 2 } else { 1 };

    #[inline(always)]
    unsafe fn codes<S: Simd>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: the trait's contract.
        unsafe { bytes::<S>(block.add(UNPACKED_SCALES)) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd, const T: usize>(
        (block, _): (*const u8, usize),
        (from, to): (usize, usize),
        acc: [S::I; T],
        a: *const i8,
    ) -> [S::I; T] {
        // SAFETY: the traits' contracts.
        unsafe {
            let codes = block.add(UNPACKED_SCALES + 64 * from);
            if HALVED {
                let high = codes.add(UNPACKED_CODES);
                let high = S::dot_at::<4, T>([S::splat_i(0); T], high, to - from, a);
                return S::dot_at::<4, T>(add_16_times::<S, T>(acc, high), codes, to - from, a);
            }
            match Self::BITS {
                4 => S::dot_at::<4, T>(acc, codes, to - from, a),
                5 => S::dot_at::<5, T>(acc, codes, to - from, a),
                6 => S::dot_at::<6, T>(acc, codes, to - from, a),
                _ => S::dot_at::<8, T>(acc, codes, to - from, a),
            }
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(block: *const u8, _: usize) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        unsafe { (S::load(block.cast()), S::load(block.add(4 * PANEL).cast())) }
    }
}
