//! Sixteen lanes at a time: the few vector operations that every kernel is written in, once for each
//! instruction set.
//!
//! A kernel body is one generic function over [`Simd`]; `variants` compiles it for each instruction set.
//! All floating-point operations here are exactly rounded IEEE operations on single lanes (a fused
//! multiply-add is one), and the two reductions have a fixed tree, so **every variant gives the same bits**.
//! That is what the tests hold them to, and why an answer does not depend on the processor it ran on.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod portable;

/// Lanes of a vector of 32-bit numbers; a weight panel has as many rows.
pub(super) const LANES: usize = 16;

/// An instruction set.
///
/// Bodies must reach these functions through loops and functions that are always inlined, not through closures:
/// where a closure is not inlined, it is compiled without the instructions, and every operation in it is a call.
///
/// # Safety
/// Every function must only be called where the processor has the instructions of the set; pointers must
/// be valid for the 16 lanes (64 bytes of `B`) read or written. None of them needs alignment.
#[allow(clippy::missing_safety_doc, reason = "the trait's own section holds for each of its functions")]
pub(super) trait Simd: Copy {
    /// 16 floats.
    type F: Copy;
    /// 16 signed 32-bit integers.
    type I: Copy;
    /// 64 bytes: 4 for each lane.
    type B: Copy;

    /// Tokens whose sums a matrix kernel keeps in registers at a time.
    const TILE: usize;
    /// [`Self::dot_at`] takes no codes of eight bits, and is given their halves instead: faster where nothing multiplies
    /// and adds four bytes at once.
    const NIBBLES: bool;

    unsafe fn splat(v: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// 16 half-precision numbers, widened.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Rounded to the nearest half-precision number, ties to even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    /// 16 bfloat16 numbers, widened.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each lane; `b` where `a` is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each lane; `b` where `a` is not a number.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// Lanes `from..to` of `v`, the others `other`.
    unsafe fn keep(v: Self::F, from: usize, to: usize, other: f32) -> Self::F;
    /// The sum, in the tree (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
    unsafe fn reduce_add(v: Self::F) -> f32;
    /// The largest lane, in the same tree.
    unsafe fn reduce_max(v: Self::F) -> f32;

    /// The largest magnitude among the lanes of both, as bits: of no number if one is none, else infinite if one is.
    unsafe fn largest_magnitude(a: Self::F, b: Self::F) -> u32;

    unsafe fn splat_i(v: i32) -> Self::I;
    /// 16 unsigned bytes, widened.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// 16 signed bytes, widened.
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// The low byte of each lane.
    unsafe fn store_i8(p: *mut i8, v: Self::I);
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn and_i(a: Self::I, mask: i32) -> Self::I;
    unsafe fn or_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I;
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Rounded to the nearest integer, ties to even. Lanes must be within ±2³¹.
    unsafe fn to_i(a: Self::F) -> Self::I;
    /// The float with these bits.
    unsafe fn from_bits(a: Self::I) -> Self::F;
    unsafe fn reduce_add_i(v: Self::I) -> i32;

    unsafe fn load_b(p: *const u8) -> Self::B;
    unsafe fn store_b(p: *mut u8, v: Self::B);
    /// The low four bits of each byte.
    unsafe fn low_nibbles(b: Self::B) -> Self::B;
    /// The high four bits of each byte, moved down.
    unsafe fn high_nibbles(b: Self::B) -> Self::B;
    /// `low | ((high >> SHIFT) & MASK) << 4`, byte by byte.
    unsafe fn with_high_bits<const SHIFT: u32, const MASK: u8>(low: Self::B, high: Self::B) -> Self::B;
    /// Adds to each lane of each token's `acc` the products of its four unsigned bytes of each vector of `w` with four
    /// signed bytes of the token, which are the same for all lanes. Token t's bytes begin at `a + t · GROUP`: four for
    /// the first vector, and so on. Bytes of `w` are below 2^`BITS`; no signed byte is −128.
    unsafe fn dot<const BITS: u32, const T: usize>(
        acc: [Self::I; T],
        w: &[Self::B],
        a: *const i8,
    ) -> [Self::I; T];
    /// [`Self::dot`] with 4 or 8 vectors from `w` on, which are in a cache; `BITS` below 8 where [`Self::NIBBLES`].
    #[inline(always)]
    unsafe fn dot_at<const BITS: u32, const T: usize>(
        acc: [Self::I; T],
        w: *const u8,
        vectors: usize,
        a: *const i8,
    ) -> [Self::I; T] {
        // SAFETY: the trait's contract.
        unsafe {
            let mut all = [Self::load_b(w); 8];
            for (j, one) in all.iter_mut().enumerate().take(vectors) {
                *one = Self::load_b(w.add(64 * j));
            }
            Self::dot::<BITS, T>(acc, &all[..vectors], a)
        }
    }
    /// Asks for the cache line at `p`, which need not be readable.
    unsafe fn prefetch(p: *const u8);
}
