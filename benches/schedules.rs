//! Ten thousand random schedules of the engine, each answer held against the one that its request gets alone;
//! `cargo test --test engine` runs the first few hundred of them. Prints what they had in them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark reports by printing, or by panicking"
)]

#[path = "../tests/engine/asking.rs"]
mod asking;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/engine/schedules.rs"]
mod schedules;

fn main() {
    let started = std::time::Instant::now();
    let seen = schedules::run(10_000);
    println!("{seen:#?}");
    println!("All answers agreed, in {:.0} s.", started.elapsed().as_secs_f64());
}
