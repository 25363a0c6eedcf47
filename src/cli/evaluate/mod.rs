//! `shishin evaluate`: judge the search, on collections with known answers and on questions of one's own, and the answers of adapters.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod answers;
mod forgetting;
mod passages;
mod quoting;
mod retrieval;

use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Settings;

/// What to evaluate.
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Have the base and adapters answer held-out examples, and judge the answers by criteria
    Answers(answers::AnswersArgs),
    /// Weigh what an adapter has cost elsewhere: bits per byte of general text, and how far the next token's distribution has moved
    Forgetting(forgetting::ForgettingArgs),
    /// Find from where on an adapter should begin to quote, in each language: the bar at which it still answers most of what passages answer
    Quoting(quoting::QuotingArgs),
    /// Index collections in the form of BEIR, ask their questions, and judge what is found
    Retrieval(retrieval::RetrievalArgs),
    /// Ask the live index questions of your own, and judge what is found and when it keeps silent
    Passages(passages::PassagesArgs),
}

/// Runs the subcommand.
///
/// # Errors
/// When what is to be evaluated cannot be read, indexed or searched.
pub fn run(settings: &Settings, command: EvaluateCommand, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match command {
        EvaluateCommand::Answers(args) => answers::run(settings, &args, out),
        EvaluateCommand::Forgetting(args) => forgetting::run(settings, &args, out),
        EvaluateCommand::Quoting(args) => quoting::run(settings, &args, out),
        EvaluateCommand::Retrieval(args) => retrieval::run(settings, &args, out),
        EvaluateCommand::Passages(args) => passages::run(settings, &args, out),
    }
}
