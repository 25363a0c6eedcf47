//! The command line: one file per subcommand.

pub mod model;
pub mod progress;
