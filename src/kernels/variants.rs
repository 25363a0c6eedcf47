//! The kernels compiled for each instruction set, and the choice among them.

use super::attend::{Attend, attend};
use super::body::{self, Bf16, F16, F32};
use super::forms::{Form, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8Half};
use super::group::{GROUP, Group, Panels, TileRows, quantise_group};
use super::math;
use super::pack::{DenseType, QuantType};
use super::simd::Simd as _;
use super::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX2.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Variant {
    /// All of them, the fastest first.
    pub const ALL: [Self; 4] = [Self::Avx512Vnni, Self::AvxVnni, Self::Avx2, Self::Portable];

    /// Its name in settings, logs and `/health`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::AvxVnni => "avx-vnni",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// The variant of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == name)
    }

    /// Whether this processor (and operating system) has the instructions.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            };
            match self {
                Self::Avx512Vnni => {
                    avx2()
                        && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vnni")
                }
                Self::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
                Self::Avx2 => avx2(),
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The fastest one that this processor has.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|v| v.is_available()).unwrap_or(Self::Portable)
    }

    pub(super) fn kernels(self) -> &'static Kernels {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => &avx_vnni::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &avx2::KERNELS,
            _ => &portable::KERNELS,
        }
    }
}

/// The kernels of one variant. Each is as safe to call as the body that it names, on a processor that
/// [has](Variant::is_available) the variant.
pub(super) struct Kernels {
    /// [`body::dot`].
    pub(super) dot: unsafe fn(QuantType, Panels, *const Group, TileRows, *mut f32, usize),
    /// [`body::unpack`].
    pub(super) unpack: unsafe fn(QuantType, *const u8, usize, *mut u8),
    /// [`body::dot_unpacked`].
    pub(super) dot_unpacked: unsafe fn(QuantType, *const u8, usize, *const Group, usize, usize, *mut f32),
    /// [`body::dot_dense`].
    pub(super) dot_dense: unsafe fn(DenseType, *const u8, usize, *const f32, usize, usize, *mut f32),
    /// [`group::quantise_group`](super::group::quantise_group) over consecutive groups of one token.
    pub(super) quantise: unsafe fn(*const f32, usize, *mut Group, usize),
    /// [`math::rms_norm`].
    pub(super) rms_norm: unsafe fn(*const f32, *const f32, usize, f32, *mut f32),
    /// [`math::add_layer_norm`].
    pub(super) add_layer_norm: unsafe fn(*mut f32, *const f32, (*const f32, *const f32), usize, f32),
    /// [`math::gelu_erf`].
    pub(super) gelu_erf: unsafe fn(*mut f32, usize),
    /// [`math::rotate`].
    pub(super) rotate: unsafe fn(*mut f32, *const f32, *const f32, usize, f32),
    /// [`math::gate_rows`] with SiLU.
    pub(super) silu: unsafe fn(*mut f32, *const f32, usize),
    /// [`math::gate_rows`] with GELU.
    pub(super) gelu: unsafe fn(*mut f32, *const f32, usize),
    /// [`attend`].
    pub(super) attend: unsafe fn(&Attend<'_>, *mut f32),
    /// Stores a vector of 16 as half-precision numbers.
    pub(super) store_f16: unsafe fn(*mut u16, *const f32),
    /// Asks for bytes that will be needed soon.
    pub(super) prefetch: unsafe fn(*const u8, usize),
    /// Reads bytes, whole lines, and gives something that depends on all of them.
    pub(super) read: unsafe fn(*const u8, usize) -> u32,
    /// Index of the largest of the numbers, the first such; `usize::MAX` where one is not a number or +∞.
    pub(super) argmax: unsafe fn(*const f32, usize) -> usize,
}

macro_rules! by_type {
    ($kind:expr, $kernel:ident($($argument:expr),*)) => {
        match $kind {
            QuantType::Q4_0 => $kernel::<Q4_0>($($argument),*),
            QuantType::Q4_1 => $kernel::<Q4_1>($($argument),*),
            QuantType::Q5_0 => $kernel::<Q5_0>($($argument),*),
            QuantType::Q5_1 => $kernel::<Q5_1>($($argument),*),
            QuantType::Q8_0 => $kernel::<Q8_0>($($argument),*),
            QuantType::Q8Half => $kernel::<Q8Half>($($argument),*),
            QuantType::Q4K => $kernel::<Q4K>($($argument),*),
            QuantType::Q5K => $kernel::<Q5K>($($argument),*),
            QuantType::Q6K => $kernel::<Q6K>($($argument),*),
        }
    };
}

macro_rules! variant {
    ($module:ident, $simd:ty $(, $features:literal)?) => {
        /// The bodies with one instruction set enabled.
        mod $module {
            #![allow(clippy::undocumented_unsafe_blocks, reason = "contracts of the bodies, passed on")]
            use super::*;
            type S = $simd;

            $(#[target_feature(enable = $features)])?
            unsafe fn dot_one<Q: Form>(
                w: Panels, x: *const Group, rows: TileRows, acc: *mut f32, stride: usize,
            ) {
                unsafe { body::dot::<S, Q>(w, x, rows, acc, stride) }
            }
            unsafe fn dot(
                kind: QuantType, w: Panels, x: *const Group, rows: TileRows, acc: *mut f32, stride: usize,
            ) {
                unsafe { by_type!(kind, dot_one(w, x, rows, acc, stride)) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn unpack_one<Q: Form>(w: *const u8, groups: usize, out: *mut u8) {
                unsafe { body::unpack::<S, Q>(w, groups, out) }
            }
            unsafe fn unpack(kind: QuantType, w: *const u8, groups: usize, out: *mut u8) {
                unsafe { by_type!(kind, unpack_one(w, groups, out)) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dot_unpacked_one<Q: Form>(
                w: *const u8, groups: usize, x: *const Group, stride: usize, tiles: usize, acc: *mut f32,
            ) {
                unsafe { body::dot_unpacked::<S, Q>(w, groups, x, stride, tiles, acc) }
            }
            unsafe fn dot_unpacked(
                kind: QuantType, w: *const u8, groups: usize, x: *const Group, stride: usize, tiles: usize, acc: *mut f32,
            ) {
                unsafe { by_type!(kind, dot_unpacked_one(w, groups, x, stride, tiles, acc)) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dot_dense(
                kind: DenseType, w: *const u8, columns: usize, x: *const f32, stride: usize, tokens: usize, acc: *mut f32,
            ) {
                unsafe {
                    match kind {
                        DenseType::F32 => body::dot_dense::<S, F32>(w, columns, x, stride, tokens, acc),
                        DenseType::F16 => body::dot_dense::<S, F16>(w, columns, x, stride, tokens, acc),
                        DenseType::Bf16 => body::dot_dense::<S, Bf16>(w, columns, x, stride, tokens, acc),
                    }
                }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn quantise(x: *const f32, groups: usize, out: *mut Group, t: usize) {
                unsafe {
                    for g in 0..groups {
                        quantise_group::<S>(x.add(g * GROUP), &mut *out.add(g), t);
                    }
                }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn rms_norm(x: *const f32, w: *const f32, n: usize, eps: f32, y: *mut f32) {
                unsafe { math::rms_norm::<S>(x, w, n, eps, y) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_layer_norm(
                x: *mut f32, y: *const f32, affine: (*const f32, *const f32), n: usize, eps: f32,
            ) {
                unsafe { math::add_layer_norm::<S>(x, y, affine, n, eps) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gelu_erf(x: *mut f32, vectors: usize) {
                unsafe { math::gelu_erf::<S>(x, vectors) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn rotate(x: *mut f32, cos: *const f32, sin: *const f32, half: usize, factor: f32) {
                unsafe { math::rotate::<S>(x, cos, sin, half, factor) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn silu(gate: *mut f32, up: *const f32, vectors: usize) {
                unsafe { math::gate_rows::<S, false>(gate, up, vectors) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gelu(gate: *mut f32, up: *const f32, vectors: usize) {
                unsafe { math::gate_rows::<S, true>(gate, up, vectors) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn attend_one(a: &Attend<'_>, scratch: *mut f32) {
                unsafe { attend::<S>(a, scratch) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn store_f16(to: *mut u16, from: *const f32) {
                unsafe { S::store_f16(to, S::load(from)) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn prefetch(p: *const u8, bytes: usize) {
                for line in (0..bytes).step_by(64) {
                    unsafe { S::prefetch(p.wrapping_add(line)) }
                }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn read(p: *const u8, bytes: usize) -> u32 {
                unsafe { math::read::<S>(p, bytes) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn argmax(x: *const f32, n: usize) -> usize {
                unsafe { math::argmax::<S>(x, n) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                dot, unpack, dot_unpacked, dot_dense, quantise, rms_norm, add_layer_norm, gelu_erf, rotate,
                silu, gelu,
                attend: attend_one, store_f16, prefetch, read, argmax,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
variant!(avx512, Avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
#[cfg(target_arch = "x86_64")]
variant!(avx_vnni, Avx2<true>, "avx2,fma,f16c,avxvnni");
#[cfg(target_arch = "x86_64")]
variant!(avx2, Avx2<false>, "avx2,fma,f16c");
variant!(portable, Portable);
