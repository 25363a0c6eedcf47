//! shishin: facts come from the index, behaviour comes from the adapter.

pub mod cli;
pub mod model;
