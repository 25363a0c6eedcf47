//! The command line: one file per subcommand.

pub mod index;
pub mod model;
pub mod progress;
