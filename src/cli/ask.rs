//! `shishin ask`: one question from the terminal, through the very path that the server uses.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use jiff::civil::Date;
use tokio_stream::StreamExt as _;

use super::setup::{self, Running};
use super::signals::{Signals, cancel_on_signal};
use crate::answer::{AnswerEvent, Mode, Question};
use crate::config::Settings;
use crate::engine::FinishReason;
use crate::model::fetch::Cancel;
use crate::model::template::{Role, Turn};
use crate::retrieve::Passage;

/// The log filter of the built-in settings.
const DEFAULT_FILTER: &str = "info";

/// One question.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The question, in English or Japanese
    question: String,
    /// base (model alone), rag (with passages), tuned (with adapter), hybrid (with both)
    #[arg(long)]
    mode: Option<Mode>,
    /// The adapter to answer with, by the name it was loaded under
    #[arg(long)]
    adapter: Option<String>,
    /// Answer from the editions in effect on this day (YYYY-MM-DD) instead of today
    #[arg(long, value_name = "DATE")]
    as_of: Option<Date>,
    /// Tokens of the answer at the most
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 takes the most likely token, up to 2 draws more freely
    #[arg(long)]
    temperature: Option<f32>,
    /// Seed of the draws
    #[arg(long)]
    seed: Option<u64>,
    /// Print the answer, its passages and its provenance as JSON lines instead of text
    #[arg(long)]
    json: bool,
}

/// Answers the question and prints it with its sources.
///
/// # Errors
/// When the model cannot be had or the question cannot be answered as asked.
pub fn run(settings: &Settings, args: AskArgs) -> anyhow::Result<ExitCode> {
    // The answer is what one wants to see; whoever sets a filter wants the log too.
    let filter = if settings.log.filter == DEFAULT_FILTER { "warn" } else { &settings.log.filter };
    super::serve::start_logs(settings, filter)?;
    let show = std::io::stderr().is_terminal();
    let note = |what: &str| {
        if show {
            eprintln!("{what} …");
        }
    };
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let Running { answerer, engine, .. } = setup::start(settings, &cancel, &note)?;
    let question = Question {
        messages: vec![Turn { role: Role::User, content: args.question }],
        mode: args.mode,
        adapter: args.adapter,
        as_of: args.as_of,
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        seed: args.seed,
        ..Question::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut answer = answerer.answer(&question)?;
        let mut printer =
            Printer { json: args.json, passages: Vec::new(), cited: Vec::new(), invented: Vec::new() };
        loop {
            tokio::select! {
                event = answer.next() => match event {
                    Some(event) => printer.print(event)?,
                    None => break anyhow::Ok(ExitCode::SUCCESS),
                },
                // Dropping the answer stops the model; what was printed stays.
                () = signals.next() => break Ok(ExitCode::from(130)),
            }
        }
    });
    answerer.engine().abort();
    engine.join();
    result
}

struct Printer {
    json: bool,
    passages: Vec<Passage>,
    cited: Vec<usize>,
    /// Numbers cited of which there is no passage.
    invented: Vec<usize>,
}

impl Printer {
    fn print(&mut self, event: AnswerEvent) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let (name, body) = match event {
                AnswerEvent::Retrieval(retrieved) => ("retrieval", serde_json::to_value(retrieved)?),
                AnswerEvent::Quote(quote) => ("quote", serde_json::to_value(quote)?),
                AnswerEvent::Token(text) => ("token", serde_json::json!({ "text": text })),
                AnswerEvent::Citation(citation) => ("citation", serde_json::to_value(citation)?),
                AnswerEvent::Done(done) => ("done", serde_json::to_value(done)?),
                AnswerEvent::Failed(failure) => anyhow::bail!(failure),
            };
            writeln!(out, "{}", serde_json::json!({ "event": name, "data": body }))?;
            return Ok(());
        }
        match event {
            AnswerEvent::Retrieval(retrieved) => self.passages = retrieved.passages,
            AnswerEvent::Quote(quote) => writeln!(out, "> {} [{}]", super::printable(&quote.text), quote.n)?,
            AnswerEvent::Token(text) => {
                out.write_all(super::printable(&text).as_bytes())?;
                out.flush()?;
            }
            AnswerEvent::Citation(citation) if citation.exists => self.cited.push(citation.n),
            AnswerEvent::Citation(citation) => self.invented.push(citation.n),
            AnswerEvent::Done(done) => {
                writeln!(out)?;
                self.sources(&mut out)?;
                if !self.invented.is_empty() {
                    self.invented.sort_unstable();
                    self.invented.dedup();
                    let list: Vec<String> = self.invented.iter().map(|n| format!("[{n}]")).collect();
                    writeln!(
                        out,
                        "\nWarning: the answer cites {}, of which there is no passage",
                        list.join(", ")
                    )?;
                }
                if done.finish_reason == FinishReason::Length {
                    writeln!(out, "\n(cut off after {} tokens)", done.usage.completion_tokens)?;
                }
                let adapter = done.provenance.adapter.as_ref().map_or("none", |a| a.name.as_str());
                let generation = done.provenance.generation.as_deref().unwrap_or("none");
                let line = format!(
                    "mode {}, base {}, adapter {adapter}, index {generation}, as of {}; {} prompt and {} answer tokens, {:.1} s",
                    done.provenance.mode,
                    done.provenance.base.name,
                    done.provenance.as_of,
                    done.usage.prompt_tokens,
                    done.usage.completion_tokens,
                    (done.timings.prefill_ms + done.timings.decode_ms) / 1e3,
                );
                let (dim, plain) =
                    if std::io::stdout().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
                writeln!(out, "\n{dim}{line}{plain}")?;
            }
            AnswerEvent::Failed(failure) => anyhow::bail!(failure),
        }
        Ok(())
    }

    fn sources(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        if self.passages.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nSources (* cited):")?;
        for p in &self.passages {
            let mark = if self.cited.contains(&p.n) { '*' } else { ' ' };
            let section = if p.section.is_empty() { String::new() } else { format!(", {}", p.section) };
            let source = format!(
                "{mark}[{}] {}{section}\n     {}, edition {}, in effect from {}; {}",
                p.n, p.title, p.issuer, p.edition, p.effective_from, p.source
            );
            writeln!(out, "{}", super::printable(&source))?;
        }
        Ok(())
    }
}
