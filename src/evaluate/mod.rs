//! Evaluation: how good retrieval is.
//!
//! On collections with known answers: [`beir`] reads one, [`retrieval`] indexes it as guidelines are indexed and asks its questions,
//! [`metrics`] judges the rankings. On the live index: [`passages`] asks questions of one's own.

pub mod beir;
pub mod metrics;
pub mod passages;
pub mod retrieval;
