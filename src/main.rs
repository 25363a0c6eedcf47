//! The `shishin` program: parse the command line, run it, say what went wrong.

#![allow(clippy::print_stderr, reason = "the last word goes to the terminal")]

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match shishin::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
