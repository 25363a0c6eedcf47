//! Tuning: from a chat dataset to an adapter, on the very weights that serve.
//!
//! In reading order: [`settings`] (`tune.toml`), [`examples`] (conversations as tokens with a mask), [`run`] (the spine: `self_test`,
//! steps, evaluation, stops; `progress` is what it tells of itself; [`probe`] goes before it, [`dump`] writes it down), [`batch`] and [`prefixes`] (what runs at once, and what the base has read before, `prefix_folder` on disk), [`graph`] (the loss and its gradient, on top of `elementwise`,
//! `attention`, `dropout`, `maps` and [`loss`]), [`parameters`] and
//! [`optimiser`] (what moves and how), [`checkpoint`] and [`metrics`] (what survives), [`tensorboard`] and [`mod@plot`] (what people look at), [`output`] (the adapter as others read it) and its [`card`]; [`queue`] (runs that a server was asked for). [`reader`] trains an adapter of the embedder.

mod attention;
pub mod batch;
pub mod card;
pub mod checkpoint;
mod dropout;
pub mod dump;
mod elementwise;
pub mod examples;
pub mod files;
pub mod graph;
pub mod loss;
mod maps;
pub mod metrics;
pub mod optimiser;
pub mod output;
pub mod parameters;
pub mod plot;
mod prefix_folder;
pub mod prefixes;
pub mod probe;
mod progress;
pub mod queue;
pub mod reader;
pub mod run;
mod self_test;
pub mod settings;
pub mod tensorboard;
