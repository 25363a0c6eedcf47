//! Evaluation: how good retrieval is, on collections with known answers.
//!
//! [`beir`] reads a collection, [`retrieval`] indexes it as guidelines are indexed and asks its questions, [`metrics`] judges
//! the rankings.

pub mod beir;
pub mod metrics;
pub mod retrieval;
