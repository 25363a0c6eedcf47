//! The `shishin` program: parse the command line, run it, say what went wrong.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // The default hook prints the panic's message, which may quote a question.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => say(&format!("error: a bug in shishin at {}:{}", place.file(), place.line())),
        None => say("error: a bug in shishin"),
    }));
    match shishin::cli::Cli::parse().run() {
        Ok(code) => code,
        // `shishin … | head` closes the pipe when it has seen enough.
        Err(error) if closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Says a last word to the terminal, if there still is one: a failure to write must not panic.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The error and its causes in one line, each cause once: many messages already quote theirs.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
