//! shishin: facts come from the index, behaviour comes from the adapter.

pub mod model;
