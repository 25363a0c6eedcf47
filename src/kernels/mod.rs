//! The arithmetic of the fast decoder on CPUs: quantised matrix products, attention over a paged cache, norms,
//! rotary embedding; and the threads to run it on.
//!
//! Everything unsafe of the crate (but the memory map of weight files) is here, behind safe operations on
//! [`Cpu`] that check sizes and share work among threads. In reading order: `simd` (16 lanes, once for each
//! instruction set), `group` and `forms` (how activations and weights lie in memory), `body`, `math` and
//! `attend` (the kernels), `variants` (compiled for each instruction set), `pack`, `cache` and `memory` (what
//! they work on), `pool` (threads), `ops`, `product`, `heads` and `encode` (the operations), `dense` (plain products, for training), `measure` (what they could do).
//!
//! Two properties hold throughout and are tested: every instruction set gives the same bits, and a token's
//! result does not depend on the tokens that it is computed together with.

#![allow(unsafe_code, reason = "vector instructions, and memory that threads share")]

mod activations;
mod attend;
mod body;
mod cache;
mod dense;
mod encode;
mod forms;
mod group;
mod heads;
mod math;
mod measure;
mod memory;
mod ops;
mod pack;
mod pool;
mod product;
mod simd;
mod variants;

#[cfg(test)]
mod tests;

pub use activations::Activations;
pub use cache::{CacheShape, KvCache};
pub use dense::{View, ViewMut, product};
pub use encode::Affine;
pub use heads::{Attention, Heads, Span};
pub use memory::Pages;
pub use ops::Cpu;
pub use pack::{DenseType, Matrix, QuantType, WeightType};
pub use product::{Delta, Gate, Output, Part};
pub use variants::Variant;
