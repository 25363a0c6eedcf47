//! The `shishin` program: parse the command line, run it, say what went wrong.

#![allow(clippy::print_stderr, reason = "the last word goes to the terminal")]

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // The default hook prints the panic's message, which may quote a question.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("error: a bug in shishin at {}:{}", place.file(), place.line()),
        None => eprintln!("error: a bug in shishin"),
    }));
    match shishin::cli::Cli::parse().run() {
        Ok(code) => code,
        // `shishin … | head` closes the pipe when it has seen enough.
        Err(error) if closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}
