//! Chat datasets for tuning: read, and looked over before an hour of training is spent on them.
//!
//! [`read`] takes JSON Lines of `{"messages": [{"role", "content"}, …]}` apart, keeping the column of everything; [`text`] looks at
//! what is said; [`similar`] finds texts that say the same and [`same`] what of an example is held against others, [`audit`] finds what is
//! taught besides; [`mod@lint`] is the spine and puts the findings in order. [`mod@fix`] mends what can be mended; [`mod@split`] and `parts` keep the test apart; [`stats`] counts; [`forms`] reads what other programs
//! wrote and [`mod@export`] writes what they read. [`ground`] writes questions out over the passages of our own index.

pub mod audit;
mod calls;
pub mod export;
pub mod fix;
pub mod forms;
pub mod general;
pub mod ground;
pub mod lint;
mod parts;
pub mod read;
pub mod same;
pub mod similar;
pub mod split;
pub mod stats;
pub mod text;
mod vertex;

use std::fmt;

use serde::Serialize;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Training goes on; the author should know.
    Warning,
    /// The example cannot be trained on as it is, or should not be.
    Error,
}

/// Something about a dataset, where it is, and the mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What kind of finding it is.
    pub code: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{}:{}:{}: {word}[{}]: {}", self.file, self.line, self.column, self.code, self.message)
    }
}
