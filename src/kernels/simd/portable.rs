//! Sixteen lanes in plain Rust: what every other instruction set is held to, and what runs where none of
//! them is there.

use half::{bf16, f16};

use super::super::group::GROUP;
use super::{LANES, Simd};

/// Arrays and loops.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];
type I = [i32; LANES];
type B = [u8; 4 * LANES];

#[inline(always)]
fn zip<T: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn tree<T: Copy>(mut v: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            v[i] = f(v[i], v[i + width]);
        }
    }
    v[0]
}

// SAFETY (of all blocks below): the trait's contract makes the pointers valid for what is read or written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Simd for Portable {
    type F = F;
    type I = I;
    type B = B;

    const TILE: usize = 1;
    const NIBBLES: bool = false;

    #[inline(always)]
    unsafe fn splat(v: f32) -> F {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: F) {
        unsafe { p.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: F) {
        let bits = v.map(|x| f16::from_f32(x).to_bits());
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| bf16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn keep(v: F, from: usize, to: usize, other: f32) -> F {
        std::array::from_fn(|i| if (from..to).contains(&i) { v[i] } else { other })
    }
    #[inline(always)]
    unsafe fn reduce_add(v: F) -> f32 {
        tree(v, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn reduce_max(v: F) -> f32 {
        tree(v, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn largest_magnitude(a: F, b: F) -> u32 {
        let bits = a.iter().chain(&b).map(|x| x.abs().to_bits());
        bits.max().unwrap_or(0)
    }

    #[inline(always)]
    unsafe fn splat_i(v: i32) -> I {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> I {
        unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> I {
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: I) {
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(v.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn and_i(a: I, mask: i32) -> I {
        a.map(|x| x & mask)
    }
    #[inline(always)]
    unsafe fn or_i(a: I, b: I) -> I {
        zip(a, b, |x, y| x | y)
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: I) -> I {
        a.map(|x| x << N)
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: I) -> I {
        a.map(|x| ((x as u32) >> N) as i32)
    }
    #[inline(always)]
    unsafe fn to_f(a: I) -> F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn to_i(a: F) -> I {
        a.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        a.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    unsafe fn reduce_add_i(v: I) -> i32 {
        tree(v, i32::wrapping_add)
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> B {
        unsafe { p.cast::<B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, v: B) {
        unsafe { p.cast::<B>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: B) -> B {
        b.map(|x| x & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: B) -> B {
        b.map(|x| x >> 4)
    }
    #[inline(always)]
    unsafe fn with_high_bits<const SHIFT: u32, const MASK: u8>(low: B, high: B) -> B {
        zip(low, high, |l, h| l | ((h >> SHIFT) & MASK) << 4)
    }
    #[inline(always)]
    unsafe fn dot<const BITS: u32, const T: usize>(acc: [I; T], w: &[B], a: *const i8) -> [I; T] {
        let mut acc = acc;
        for (t, acc) in acc.iter_mut().enumerate() {
            for (j, w) in w.iter().enumerate() {
                let a = unsafe { a.add(t * GROUP).cast::<[i8; 4]>().add(j).read_unaligned() };
                for (lane, slot) in acc.iter_mut().enumerate() {
                    *slot += (0..4).map(|b| i32::from(w[4 * lane + b]) * i32::from(a[b])).sum::<i32>();
                }
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
