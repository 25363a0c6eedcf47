//! The engine by its public face: answers do not depend on who else is answered, what is cached or guessed;
//! what is shared is shared rightly; who is refused, who waits, and who goes on meanwhile.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod admission;
mod asking;
#[path = "../common/mod.rs"]
mod common;
mod schedules;
mod sharing;
