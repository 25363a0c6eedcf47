//! Evaluation: how good retrieval is, and how good answers are.
//!
//! On collections with known answers: [`beir`] reads one, [`retrieval`] indexes it as guidelines are indexed and asks its questions,
//! [`metrics`] judges the rankings. On the live index: [`passages`] asks questions of one's own.
//!
//! Answers: [`criteria`] say what they must be like ([`facts`], [`crate::analysis`] and [`overlap`] recognise what is in them), [`answers`]
//! has held-out examples answered and judged ([`in_prompt`] finds their passages again), [`score`] adds up what holds by its weight, [`likelihood`] weighs their references,
//! [`rates`] says how certain the outcome is. [`forgetting`] weighs what an adapter cost
//! elsewhere, by [`distributions`] and [`probes`], and [`quoting`] finds from where on it should quote. [`compare`] has base, passages, adapter and both answer the same questions.

pub mod answers;
pub mod beir;
pub mod compare;
pub mod criteria;
pub mod distributions;
pub mod facts;
pub mod forgetting;
pub mod in_prompt;
pub mod likelihood;
pub mod metrics;
pub mod overlap;
pub mod passages;
pub mod probes;
pub mod quoting;
pub mod rates;
pub mod reading;
pub mod retrieval;
pub mod score;
