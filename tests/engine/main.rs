//! The engine by its public face: answers do not depend on who else is answered, what is cached or guessed;
//! what is shared is shared rightly; who is refused, who waits, and who goes on meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

mod admission;
mod asking;
#[path = "../common/mod.rs"]
mod common;
mod schedules;
mod sharing;
