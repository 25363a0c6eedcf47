//! The `shishin` program.
fn main() {}
