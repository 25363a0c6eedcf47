//! shishin (指針, "the needle that points the way"; also Japanese for "guideline"): a hybrid inference
//! server for medical work in English and Japanese.
//!
//! > Facts come from the index. Behaviour comes from the adapter. One server holds both, and says of every
//! > answer what produced it.
//!
//! # A tour, in the order of the paths
//!
//! **A request** comes in through [`http`] (or [`cli`]'s `ask`), in both cases into
//! [`answer::Answerer::answer`], the spine. There a question is checked, a snapshot of the index pinned,
//! and passages are found ([`retrieve`]); if none is relevant the answer abstains. [`prompt`] fits
//! instructions, passages and turns into the model's context as typed segments, the [`engine`]'s one
//! thread runs the [`model`] on the [`kernels`] with the adapter that the request named; [`quote`] keeps its quotes to what the passages
//! say, and tells them apart in the text as it streams out, where [`cite`] finds the citations.
//!
//! **An operator's file** goes through [`ingest`] (read, metadata, editions, chunks) and [`analysis`]
//! (terms; the request path uses it too) into a new generation in the [`store`], which is swapped in whole.
//!
//! **Settings** come from [`config`], in one fallible step before any work. [`language`] tells English
//! from Japanese, and [`files`] reads what people write, for everyone.
//!
//! ARCHITECTURE.md says which module may use which, and what the code must not do.

// The request path.
pub mod http;

pub mod answer;

pub mod retrieve;

pub mod prompt;

pub mod engine;

pub mod model;

pub mod kernels;

pub mod cite;

pub mod quote;

// Proof.
pub mod evaluate;

// Tuning.
pub mod tune;

pub mod dataset;

// The operator path.
pub mod ingest;

pub mod analysis;

pub mod store;

// What both stand on, and the way in from a terminal.
pub mod config;

pub mod language;

pub mod files;

pub mod cli;
