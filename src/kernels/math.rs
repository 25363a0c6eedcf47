//! The element-wise pieces: RMSNorm, rotary embedding, gates, exponentials.

use super::simd::{LANES, Simd};

/// eˣ to about one unit in the last place, for x within ±87; beyond, the value at that end.
///
/// x = n · ln 2 + r with |r| ≤ ln 2 / 2; eʳ by the polynomial of degree 6 of Cephes' `expf` (Moshier).
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has checked the instruction set.
    unsafe {
        let c = |v| S::splat(v);
        let x = S::min(S::max(x, c(-87.0)), c(87.0));
        let n = S::to_i(S::mul(x, c(std::f32::consts::LOG2_E)));
        let nf = S::to_f(n);
        // ln 2 in two parts, so that the product with n is exact in the first.
        let r = S::fma(nf, c(-0.693_359_4), x);
        let r = S::fma(nf, c(2.121_944_4e-4), r);
        let mut p = c(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = S::fma(p, r, c(coefficient));
        }
        let p = S::fma(p, S::mul(r, r), S::add(r, c(1.0)));
        S::mul(p, S::from_bits(S::shl_i::<23>(S::add_i(n, S::splat_i(127)))))
    }
}

/// x / (1 + e^(−s·x)): SiLU for s = 1.
#[inline(always)]
unsafe fn sigmoid_gate<S: Simd>(x: S::F, argument: S::F) -> S::F {
    // SAFETY: the caller has checked the instruction set.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), argument));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// The feed-forward gate of [`Activation`](crate::model::config::Activation), times `up`.
#[inline(always)]
pub(super) unsafe fn gated<S: Simd, const GELU: bool>(gate: S::F, up: S::F) -> S::F {
    // SAFETY: the caller has checked the instruction set.
    unsafe {
        let argument = if GELU {
            // 0.5 · (1 + tanh u) = sigmoid(2u), with u = √(2/π) · (x + 0.044715 x³).
            let cube = S::mul(S::mul(gate, gate), gate);
            let inner = S::fma(cube, S::splat(0.044_715), gate);
            S::mul(inner, S::splat(2.0 * 0.797_884_6))
        } else {
            gate
        };
        S::mul(sigmoid_gate::<S>(gate, argument), up)
    }
}

/// gate ← activation(gate) · up, over 16 · `vectors` numbers.
///
/// # Safety
/// Both must hold that many.
#[inline(always)]
pub(super) unsafe fn gate_rows<S: Simd, const GELU: bool>(gate: *mut f32, up: *const f32, vectors: usize) {
    // SAFETY: the contract above.
    unsafe {
        for at in (0..vectors).map(|v| v * LANES) {
            let y = gated::<S, GELU>(S::load(gate.add(at)), S::load(up.add(at)));
            S::store(gate.add(at), y);
        }
    }
}

/// y = x / √(mean(x²) + ε) · w over `n` numbers. The squares are summed in 16 lanes, column by column.
///
/// # Safety
/// All three must hold `n` numbers; `y` may be `x`.
#[inline(always)]
pub(super) unsafe fn rms_norm<S: Simd>(x: *const f32, w: *const f32, n: usize, eps: f32, y: *mut f32) {
    // SAFETY: the contract above.
    unsafe {
        let whole = n / LANES * LANES;
        let mut squares = S::splat(0.0);
        for at in (0..whole).step_by(LANES) {
            let v = S::load(x.add(at));
            squares = S::fma(v, v, squares);
        }
        let mut sum = S::reduce_add(squares);
        for at in whole..n {
            let v = *x.add(at);
            sum = v.mul_add(v, sum);
        }
        let scale = 1.0 / (sum / n as f32 + eps).sqrt();
        let factor = S::splat(scale);
        for at in (0..whole).step_by(LANES) {
            let v = S::mul(S::mul(S::load(x.add(at)), factor), S::load(w.add(at)));
            S::store(y.add(at), v);
        }
        for at in whole..n {
            *y.add(at) = *x.add(at) * scale * *w.add(at);
        }
    }
}

/// x ← (x + y − mean) / √(variance + ε) · w + b over `n` numbers: the residual connection and LayerNorm of an encoder
/// (Ba et al. 2016), the variance that of the whole row.
///
/// # Safety
/// `n` must be a multiple of 16, and all must hold `n` numbers.
#[inline(always)]
pub(super) unsafe fn add_layer_norm<S: Simd>(
    x: *mut f32,
    y: *const f32,
    (w, b): (*const f32, *const f32),
    n: usize,
    eps: f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = S::splat(0.0);
        for at in (0..n).step_by(LANES) {
            let v = S::add(S::load(x.add(at)), S::load(y.add(at)));
            S::store(x.add(at), v);
            sums = S::add(sums, v);
        }
        let mean = S::splat(S::reduce_add(sums) / n as f32);
        let mut squares = S::splat(0.0);
        for at in (0..n).step_by(LANES) {
            let v = S::sub(S::load(x.add(at)), mean);
            squares = S::fma(v, v, squares);
        }
        let factor = S::splat(1.0 / (S::reduce_add(squares) / n as f32 + eps).sqrt());
        for at in (0..n).step_by(LANES) {
            let v = S::mul(S::sub(S::load(x.add(at)), mean), factor);
            S::store(x.add(at), S::fma(v, S::load(w.add(at)), S::load(b.add(at))));
        }
    }
}

/// x ← x · Φ(x): GELU with the error function itself, as encoders use it.
///
/// erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5 · 10⁻⁷ everywhere.
///
/// # Safety
/// `x` must hold `vectors` · 16 numbers.
#[inline(always)]
pub(super) unsafe fn gelu_erf<S: Simd>(x: *mut f32, vectors: usize) {
    // SAFETY: the contract above.
    unsafe {
        for at in (0..vectors).map(|v| v * LANES) {
            let v = S::load(x.add(at));
            let z = S::mul(S::abs(v), S::splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = S::div(S::splat(1.0), S::fma(z, S::splat(0.327_591_1), S::splat(1.0)));
            let mut p = S::splat(1.061_405_4);
            for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6] {
                p = S::fma(p, t, S::splat(coefficient));
            }
            let e = exp::<S>(S::sub(S::splat(0.0), S::mul(z, z)));
            // ½ · erfc(|x| / √2): Φ(x) is that for a negative x, and 1 less that for a positive one.
            let tail = S::mul(S::mul(S::mul(p, t), e), S::splat(0.5));
            // x · Φ(x) = max(x, 0) − |x| · tail, without cancellation on either side.
            let y = S::fma(S::sub(S::splat(0.0), S::abs(v)), tail, S::max(v, S::splat(0.0)));
            // `max` gives the other where one is no number; adding x − x brings it back.
            S::store(x.add(at), S::add(y, S::sub(v, v)));
        }
    }
}

/// Rotates one head in place: element i and element i + half by the angle whose cosine and sine are given,
/// then multiplies by `factor`.
///
/// # Safety
/// `x` must hold 2 · `half` numbers, `cos` and `sin` `half`.
#[inline(always)]
pub(super) unsafe fn rotate<S: Simd>(
    x: *mut f32,
    cos: *const f32,
    sin: *const f32,
    half: usize,
    factor: f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let whole = half / LANES * LANES;
        let f = S::splat(factor);
        for at in (0..whole).step_by(LANES) {
            let (a, b) = (S::load(x.add(at)), S::load(x.add(half + at)));
            let (c, s) = (S::load(cos.add(at)), S::load(sin.add(at)));
            let minus = S::sub(S::splat(0.0), s);
            S::store(x.add(at), S::mul(S::fma(b, minus, S::mul(a, c)), f));
            S::store(x.add(half + at), S::mul(S::fma(a, s, S::mul(b, c)), f));
        }
        for at in whole..half {
            let (a, b) = (*x.add(at), *x.add(half + at));
            let (c, s) = (*cos.add(at), *sin.add(at));
            *x.add(at) = b.mul_add(0.0 - s, a * c) * factor;
            *x.add(half + at) = a.mul_add(s, b * c) * factor;
        }
    }
}

/// The index of the largest number, the first on a tie; `usize::MAX` when one of them is not finite.
///
/// # Safety
/// `x` must hold `n` numbers.
#[inline(always)]
pub(super) unsafe fn argmax<S: Simd>(x: *const f32, n: usize) -> usize {
    const BLOCK: usize = 64 * LANES;
    // SAFETY: the contract above.
    unsafe {
        let (mut best, mut at) = (f32::NEG_INFINITY, usize::MAX);
        let mut finite = S::splat(0.0);
        for start in (0..n).step_by(BLOCK) {
            let len = BLOCK.min(n - start);
            let whole = len / LANES * LANES;
            let mut top = S::splat(f32::NEG_INFINITY);
            for i in (start..start + whole).step_by(LANES) {
                let v = S::load(x.add(i));
                top = S::max(v, top);
                finite = S::add(finite, S::sub(v, v));
            }
            let mut largest = S::reduce_max(top);
            for i in start + whole..start + len {
                let v = *x.add(i);
                if !v.is_finite() {
                    return usize::MAX;
                }
                largest = largest.max(v);
            }
            if largest > best {
                (best, at) = (largest, start);
            }
        }
        if !S::reduce_add(finite).is_finite() || at == usize::MAX {
            return usize::MAX;
        }
        while *x.add(at) != best {
            at += 1;
        }
        at
    }
}

/// Reads `bytes` bytes, a multiple of 256, and gives something that depends on all of them.
///
/// # Safety
/// `p` must be readable for as many.
#[inline(always)]
pub(super) unsafe fn read<S: Simd>(p: *const u8, bytes: usize) -> u32 {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        for at in (0..bytes).step_by(256) {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(p.add(at + 64 * n).cast()));
            }
        }
        let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
        S::reduce_add(sum).to_bits()
    }
}
