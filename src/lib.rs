//! shishin: facts come from the index, behaviour comes from the adapter.

pub mod analysis;
pub mod answer;
pub mod cite;
pub mod cli;
pub mod engine;
pub mod http;
pub mod ingest;
pub mod language;
pub mod model;
pub mod prompt;
pub mod retrieve;
pub mod store;
