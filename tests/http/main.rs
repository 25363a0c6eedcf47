//! The HTTP layer on a real model: what `POST /chat` streams and returns, what it refuses and how, what
//! happens when clients leave, when there are too many, and when the server stops.

// clippy.toml lets the tests unwrap and print; this lets what they share do so.
#![allow(clippy::unwrap_used)]

mod admin;
mod bench;
mod chat;
mod compare;
mod connections;
mod malformed;
mod observed;
