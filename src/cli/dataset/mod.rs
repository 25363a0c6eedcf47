//! `shishin dataset`: look over chat datasets before an hour of training is spent on them.

mod convert;
pub(super) mod ground;
mod replay;
pub(super) mod stats;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::{printable, setup};
use crate::config::Settings;
use crate::dataset::Finding;
use crate::dataset::export::Platform;
use crate::dataset::ground::Grounding;
use crate::dataset::lint::{Against, Beyond, Purpose, Report, TokenLimit, lint};
use crate::dataset::read::Message;
use crate::dataset::split::Shares;
use crate::model::BaseModel;
use crate::model::fetch::Cancel;
use crate::prompt::Wording;
use crate::tune::examples::{ExampleError, ExampleMaker};

/// What to do with a dataset.
#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Find faults in JSON Lines of messages: form, order, empty or damaged text, duplicates, leakage between files, personal data, facts
    /// that nobody gave, lopsided shares
    ///
    /// Fewer than 10 examples are an error, but for files called valid, validation, val, dev, test or eval, which are not learnt from.
    Lint {
        /// The files; what stands in two of them leaks
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Warn of examples of which `tune` makes more tokens than this for the settings' model, with the server's instructions where they bring none
        #[arg(long, value_name = "N")]
        max_tokens: Option<usize>,
        /// A folder of guidelines whose figures answers may hold; may be repeated
        #[arg(long, value_name = "FOLDER")]
        guidelines: Vec<PathBuf>,
        /// None of the files is to learn from, so that few examples are no error
        #[arg(long)]
        held_out: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Count tokens, lengths and languages, and say what training would take: time, memory, money
    Stats(stats::StatsArgs),
    /// Write parts to learn from, to say when to stop, and to judge by; what is nearly the same stays in one part
    Split {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The folder for train.jsonl, valid.jsonl and test.jsonl
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Share to judge by
        #[arg(long, value_name = "SHARE", default_value_t = Shares::default().test)]
        test: f64,
        /// Share that says when to stop
        #[arg(long, value_name = "SHARE", default_value_t = Shares::default().valid)]
        valid: f64,
        /// Decides which goes where
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Mend what can be mended without inventing anything, and put the rest aside
    Fix {
        /// The file
        file: PathBuf,
        /// Where the sound examples go
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Where the lines go that cannot be mended [default: OUT with .rejected behind it]
        #[arg(long, value_name = "FILE")]
        rejected: Option<PathBuf>,
    },
    /// Read ShareGPT, Alpaca, prompt and completion, typed parts, or Vertex's contents, as JSON Lines or one JSON list
    Import {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Where the examples go
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write a file as a platform takes it, or say why it would not
    Export {
        /// The file
        file: PathBuf,
        /// Whose form: openai, vertex or hf
        #[arg(long, value_name = "PLATFORM")]
        to: Platform,
        /// Where it goes
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Have the base answer general questions, one a line, to be learnt along (`data.replay`)
    Replay {
        /// The questions
        questions: PathBuf,
        /// Where its answers go
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The base model, instead of the settings'
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
        /// Tokens of an answer at the most; answers that reach it are left out
        #[arg(long, value_name = "N", default_value_t = 200)]
        max_tokens: usize,
    },
    /// Write questions, answers and quotes out as chat examples over passages of the guidelines, and split them
    Ground {
        /// JSON Lines of items: id, language, and question, answer, oracle; or a question that nothing answers; or messages, passages
        #[arg(required = true, value_name = "FILE")]
        items: Vec<PathBuf>,
        /// A folder of guidelines that the passages come from; may be repeated
        #[arg(long, required = true, value_name = "FOLDER")]
        guidelines: Vec<PathBuf>,
        /// The folder for train.jsonl, valid.jsonl and test.jsonl
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Passages of an example, the answering one among them
        #[arg(long, value_name = "N", default_value_t = 5)]
        passages: usize,
        /// How often each question to learn from is written out, each time among other passages
        #[arg(long, value_name = "N", default_value_t = 1)]
        variants: usize,
        /// Share of the questions that are asked again without the passage that answers
        #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
        without: f64,
        /// The largest share of the rows to learn from in which nothing answers
        #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
        declined: f64,
        /// Begin answers with lines `> …` that repeat what they answer from, which the server takes out and shows apart
        #[arg(long)]
        quotes: bool,
        /// Search as the server does (words and meaning) and show the first N in that order, the answering one last if it is not among them; without it by words, and places and numbers are drawn
        #[arg(long)]
        ranked: bool,
        /// Decides places and choices
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
}

/// Runs the subcommand. Errors in the data are a failure.
///
/// # Errors
/// When a file cannot be read, or the model's tokenizer cannot be had.
pub fn run(settings: &Settings, command: &DatasetCommand, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match command {
        DatasetCommand::Lint { files, max_tokens, guidelines, held_out, json } => {
            let purpose = if *held_out { Purpose::HeldOut } else { Purpose::Named };
            look_over(settings, files, (*max_tokens, guidelines, purpose), *json, out)
        }
        DatasetCommand::Stats(args) => stats::run(settings, args, out),
        DatasetCommand::Split { files, out: folder, test, valid, seed } => {
            let share = |share: f64| (0.0..1.0).contains(&share);
            anyhow::ensure!(
                share(*test) && share(*valid) && test + valid < 1.0,
                "--test and --valid must be at least 0, and together below 1"
            );
            convert::split_files(files, folder, Shares { test: *test, valid: *valid }, *seed, out)
        }
        DatasetCommand::Fix { file, out: to, rejected } => {
            convert::fix_file(file, to, rejected.as_deref(), out)
        }
        DatasetCommand::Replay { questions, out: to, model, max_tokens } => {
            replay::run(settings, questions, to, (model.as_deref(), *max_tokens), out)
        }
        DatasetCommand::Import { files, out: to } => convert::import_files(files, to, out),
        DatasetCommand::Export { file, to, out: path } => convert::export_file(file, *to, path, out),
        DatasetCommand::Ground {
            items,
            guidelines,
            out: folder,
            passages,
            variants,
            without,
            declined,
            quotes,
            ranked,
            seed,
        } => {
            anyhow::ensure!((1..=20).contains(passages), "--passages must be 1 to 20");
            anyhow::ensure!((0.0..=1.0).contains(without), "--without must be 0 to 1");
            anyhow::ensure!((1..=20).contains(variants), "--variants must be 1 to 20");
            anyhow::ensure!((0.0..=1.0).contains(declined), "--declined must be 0 to 1");
            let grounding = Grounding {
                passages: *passages,
                variants: *variants,
                without: *without,
                declined: *declined,
                quotes: *quotes,
                ranked: *ranked,
                seed: *seed,
            };
            ground::run(settings, items, guidelines, folder, grounding, out)
        }
    }
}

fn look_over(
    settings: &Settings,
    files: &[PathBuf],
    (max_tokens, guidelines, purpose): (Option<usize>, &[PathBuf], Purpose),
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let words = max_tokens.map(|_| Words::load(settings)).transpose()?;
    let beyond =
        |messages: &[Message], most| words.as_ref().map_or(Ok(None), |words| words.beyond(messages, most));
    let limit = max_tokens.map(|most| TokenLimit { beyond: &beyond, most });
    let known = if guidelines.is_empty() { None } else { Some(ground::known_figures(settings, guidelines)?) };
    let mut paths = Vec::new();
    for file in files {
        anyhow::ensure!(file.is_file(), "{} is no file", file.display());
        paths.push(file.as_path());
    }
    let against = Against { limit, known: known.as_deref(), purpose };
    let report = lint(&paths, &against).context("the dataset cannot be read")?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What tells how many tokens `tune` makes of an example.
struct Words {
    model: BaseModel<()>,
    wording: Wording,
}

impl Words {
    fn load(settings: &Settings) -> anyhow::Result<Self> {
        let located = setup::locate(settings, &settings.model.name, &Cancel::default())?;
        let model = BaseModel::load_words(&located.path, located.sha256.as_deref())?;
        model.check_chat().with_context(|| format!("{} cannot chat", located.name))?;
        Ok(Self { model, wording: setup::wording(settings)? })
    }

    /// What is too much of an example, or why it cannot be trained on.
    fn beyond(&self, messages: &[Message], most: usize) -> Result<Option<Beyond>, String> {
        let maker = ExampleMaker {
            tokenizer: &self.model.tokenizer,
            template: self.model.template.as_ref().ok_or("the model has no chat template")?,
            wording: Some(&self.wording),
            max_tokens: most,
            invocation: None,
            choices: false,
        };
        maker.beyond(messages).map_err(|error| match error {
            ExampleError::Line { problem, .. } => problem,
            other => other.to_string(),
        })
    }
}

fn list(findings: &[Finding], out: &mut dyn Write) -> std::io::Result<()> {
    for finding in findings {
        writeln!(out, "{}", printable(&finding.to_string()))?;
    }
    Ok(())
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    list(&report.findings, out)?;
    for (file, examples) in &report.examples {
        writeln!(out, "{file}: {examples} examples can be trained on")?;
    }
    let errors = report.errors();
    writeln!(out, "{errors} errors, {} warnings", report.findings.len() - errors)
}
