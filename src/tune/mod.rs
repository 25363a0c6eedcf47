//! Tuning: from a chat dataset to an adapter, on the very weights that serve.
//!
//! In reading order: [`parameters`] (what is trained), [`graph`] (the loss and its gradient, on top of `elementwise` and
//! `attention`).

mod attention;
mod elementwise;
pub mod graph;
pub mod parameters;
