//! Sixteen lanes in two AVX2 registers, with the byte dot product of AVX-VNNI where the processor has it.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::super::group::GROUP;
use super::Simd;

/// AVX2, FMA and F16C; and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

type F = [__m256; 2];
type I = [__m256i; 2];

/// The tree of [`Simd::reduce_add`] from eight lanes on.
#[inline(always)]
pub(super) unsafe fn reduce_add_8(v: __m256) -> f32 {
    // SAFETY: within the caller's contract.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

/// The tree of [`Simd::reduce_max`] from eight lanes on.
#[inline(always)]
pub(super) unsafe fn reduce_max_8(v: __m256) -> f32 {
    // SAFETY: within the caller's contract.
    unsafe {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

/// The largest of eight lanes.
#[inline(always)]
pub(super) unsafe fn reduce_max_i_8(v: __m256i) -> i32 {
    // SAFETY: within the caller's contract.
    unsafe {
        let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = _mm_max_epi32(v, _mm_unpackhi_epi64(v, v));
        _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32::<1>(v)))
    }
}

/// Vectors of products that are added up in 16 bits before they are widened: as many as cannot leave them, with two
/// products of a code below 2^`bits` and at most 127 each.
const fn vectors_in_16_bits(bits: u32) -> usize {
    i16::MAX as usize / (2 * 127 * ((1 << bits) - 1))
}

/// Eight lanes of [`Simd::load_bf16`].
#[inline(always)]
unsafe fn widen_bf16(v: __m128i) -> __m256 {
    // SAFETY: within the caller's contract.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v))) }
}

/// Eight lanes of [`Simd::keep`], numbered `lanes`.
#[inline(always)]
unsafe fn keep_8(v: __m256, lanes: __m256i, (from, to): (i32, i32), other: __m256) -> __m256 {
    // SAFETY: within the caller's contract.
    unsafe {
        let after = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(from - 1));
        let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lanes);
        _mm256_blendv_ps(other, v, _mm256_castsi256_ps(_mm256_and_si256(after, before)))
    }
}

#[inline(always)]
unsafe fn shift_down_4(v: __m256i) -> __m256i {
    // SAFETY: within the caller's contract.
    unsafe { _mm256_srli_epi16::<4>(v) }
}

/// 32 bytes of [`Simd::with_high_bits`].
#[inline(always)]
unsafe fn with_high_bits_8<const SHIFT: u32, const MASK: u8>(low: __m256i, high: __m256i) -> __m256i {
    // SAFETY: within the caller's contract.
    unsafe {
        // One shift to where the bits belong; what crosses a byte's border is masked away.
        let moved = if SHIFT < 4 {
            _mm256_sll_epi16(high, _mm_cvtsi32_si128(4 - SHIFT as i32))
        } else {
            _mm256_srl_epi16(high, _mm_cvtsi32_si128(SHIFT as i32 - 4))
        };
        _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8((MASK << 4) as i8)))
    }
}

/// Adds to each lane of `acc` the sum of its pair of `pairs`.
#[inline(always)]
unsafe fn add_pairs(acc: __m256i, pairs: __m256i) -> __m256i {
    // SAFETY: within the caller's contract.
    unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
}

/// [`add_pairs`], 16 times.
#[inline(always)]
unsafe fn add_pairs_16_times(acc: __m256i, pairs: __m256i) -> __m256i {
    // SAFETY: within the caller's contract.
    unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(16))) }
}

/// Adds the products of a vector with four bytes of each token: to `acc` by one instruction where there is one, else
/// two of each lane to the two halves of the lane in `pairs`.
#[inline(always)]
unsafe fn add_products<const VNNI: bool, const T: usize>(
    pairs: &mut [I; T],
    acc: &mut [I],
    w: I,
    a: *const i8,
) {
    // SAFETY: within the caller's contract.
    unsafe {
        for t in 0..T {
            let a = _mm256_set1_epi32(a.add(t * GROUP).cast::<i32>().read_unaligned());
            for half in 0..2 {
                if VNNI {
                    acc[t][half] = _mm256_dpbusd_avx_epi32(acc[t][half], w[half], a);
                } else {
                    pairs[t][half] = _mm256_add_epi16(pairs[t][half], _mm256_maddubs_epi16(w[half], a));
                }
            }
        }
    }
}

/// A function of each half. Not a closure: where one is not inlined it is compiled without the instructions.
macro_rules! both {
    ($a:expr, $f:ident) => {
        unsafe { [$f($a[0]), $f($a[1])] }
    };
    ($a:expr, $b:expr, $f:ident) => {
        unsafe { [$f($a[0], $b[0]), $f($a[1], $b[1])] }
    };
}

// SAFETY (of all blocks below): the caller has checked that the processor has these instructions, and the
// trait's contract makes the pointers valid for what is read or written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = F;
    type I = I;
    type B = I;

    const TILE: usize = 4;
    const NIBBLES: bool = !VNNI;

    #[inline(always)]
    unsafe fn splat(v: f32) -> F {
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        unsafe {
            let p = p.cast::<__m128i>();
            [_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: F) {
        unsafe {
            let p = p.cast::<__m128i>();
            _mm_storeu_si128(p, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        unsafe {
            let p = p.cast::<__m128i>();
            [widen_bf16(_mm_loadu_si128(p)), widen_bf16(_mm_loadu_si128(p.add(1)))]
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        both!(a, b, _mm256_add_ps)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        both!(a, b, _mm256_sub_ps)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        both!(a, b, _mm256_mul_ps)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        both!(a, b, _mm256_div_ps)
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        both!(a, b, _mm256_max_ps)
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        both!(a, b, _mm256_min_ps)
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        let sign = unsafe { [_mm256_set1_ps(-0.0); 2] };
        both!(sign, a, _mm256_andnot_ps)
    }
    #[inline(always)]
    unsafe fn keep(v: F, from: usize, to: usize, other: f32) -> F {
        unsafe {
            let (low, high) = (_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8));
            let range = (from as i32, to.min(16) as i32);
            let other = _mm256_set1_ps(other);
            [keep_8(v[0], low, range, other), keep_8(v[1], _mm256_add_epi32(low, high), range, other)]
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(v: F) -> f32 {
        unsafe { reduce_add_8(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: F) -> f32 {
        unsafe { reduce_max_8(_mm256_max_ps(v[0], v[1])) }
    }

    #[inline(always)]
    unsafe fn largest_magnitude(a: F, b: F) -> u32 {
        unsafe {
            let (a, b) = (Self::abs(a), Self::abs(b));
            // Without their signs, floats are in the order of their bits.
            let a = _mm256_max_epi32(_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1]));
            let b = _mm256_max_epi32(_mm256_castps_si256(b[0]), _mm256_castps_si256(b[1]));
            reduce_max_i_8(_mm256_max_epi32(a, b)) as u32
        }
    }

    #[inline(always)]
    unsafe fn splat_i(v: i32) -> I {
        unsafe { [_mm256_set1_epi32(v); 2] }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> I {
        unsafe {
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(v, v))]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> I {
        unsafe {
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v))]
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: I) {
        unsafe {
            // The lanes are within a byte, so that packing never saturates.
            let words = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(v[0], v[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        both!(a, b, _mm256_add_epi32)
    }
    #[inline(always)]
    unsafe fn and_i(a: I, mask: i32) -> I {
        let mask = unsafe { [_mm256_set1_epi32(mask); 2] };
        both!(a, mask, _mm256_and_si256)
    }
    #[inline(always)]
    unsafe fn or_i(a: I, b: I) -> I {
        both!(a, b, _mm256_or_si256)
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: I) -> I {
        unsafe {
            let by = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(a[0], by), _mm256_sll_epi32(a[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: I) -> I {
        unsafe {
            let by = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi32(a[0], by), _mm256_srl_epi32(a[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn to_f(a: I) -> F {
        both!(a, _mm256_cvtepi32_ps)
    }
    #[inline(always)]
    unsafe fn to_i(a: F) -> I {
        both!(a, _mm256_cvtps_epi32)
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        both!(a, _mm256_castsi256_ps)
    }
    #[inline(always)]
    unsafe fn reduce_add_i(v: I) -> i32 {
        unsafe {
            let v = _mm256_add_epi32(v[0], v[1]);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
            _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<1>(v)))
        }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> I {
        unsafe {
            let p = p.cast::<__m256i>();
            [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))]
        }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, v: I) {
        unsafe {
            let p = p.cast::<__m256i>();
            _mm256_storeu_si256(p, v[0]);
            _mm256_storeu_si256(p.add(1), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: I) -> I {
        let mask = unsafe { [_mm256_set1_epi8(15); 2] };
        both!(b, mask, _mm256_and_si256)
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: I) -> I {
        let moved = both!(b, shift_down_4);
        let mask = unsafe { [_mm256_set1_epi8(15); 2] };
        both!(moved, mask, _mm256_and_si256)
    }
    #[inline(always)]
    unsafe fn with_high_bits<const SHIFT: u32, const MASK: u8>(low: I, high: I) -> I {
        unsafe {
            [
                with_high_bits_8::<SHIFT, MASK>(low[0], high[0]),
                with_high_bits_8::<SHIFT, MASK>(low[1], high[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot<const BITS: u32, const T: usize>(acc: [I; T], w: &[I], a: *const i8) -> [I; T] {
        // Eight bits are two codes of four: the sum of both is as exact.
        let halved = BITS == 8 && !VNNI;
        let most = if VNNI { 1 } else { const { vectors_in_16_bits(if BITS == 8 { 4 } else { BITS }) } };
        let mut acc = acc;
        for (t, acc) in acc.iter_mut().enumerate() {
            let acc = std::slice::from_mut(acc);
            let mut a = unsafe { a.add(t * GROUP) };
            for w in w.chunks(most) {
                let mut pairs = unsafe { [[_mm256_setzero_si256(); 2]] };
                let mut upper = pairs;
                for w in w {
                    unsafe {
                        if halved {
                            add_products::<VNNI, 1>(&mut upper, acc, Self::high_nibbles(*w), a);
                            add_products::<VNNI, 1>(&mut pairs, acc, Self::low_nibbles(*w), a);
                        } else {
                            add_products::<VNNI, 1>(&mut pairs, acc, *w, a);
                        }
                        a = a.add(4);
                    }
                }
                if halved {
                    acc[0] = both!(acc[0], upper[0], add_pairs_16_times);
                }
                acc[0] = if VNNI { acc[0] } else { both!(acc[0], pairs[0], add_pairs) };
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn dot_at<const BITS: u32, const T: usize>(
        acc: [I; T],
        w: *const u8,
        vectors: usize,
        a: *const i8,
    ) -> [I; T] {
        // Vector by vector and not token by token, since few registers are left for vectors; and in loops of a length that
        // the compiler does not know, or it would undo that.
        let most = if VNNI { vectors } else { const { vectors_in_16_bits(BITS) }.min(vectors) };
        debug_assert!(most > 0 && vectors.is_multiple_of(most), "whole loops of vectors");
        let (times, each) = (vectors / most, most);
        let (times, each) = if most < 4 { (black_box(times), each) } else { (times, black_box(each)) };
        let mut acc = acc;
        for n in 0..times {
            let mut pairs = unsafe { [[_mm256_setzero_si256(); 2]; T] };
            for j in 0..each {
                unsafe {
                    let (w, a) = (w.add(64 * (n * most + j)), a.add(4 * (n * most + j)));
                    add_products::<VNNI, T>(&mut pairs, &mut acc, Self::load_b(w), a);
                }
            }
            if !VNNI {
                for (acc, pairs) in acc.iter_mut().zip(pairs) {
                    *acc = both!(*acc, pairs, add_pairs);
                }
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
