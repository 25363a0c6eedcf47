//! Models: from a name or path to weights that can be run.

pub mod catalog;
pub mod fetch;
