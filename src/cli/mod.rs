//! The command line: one file per subcommand.

pub mod ask;
pub mod bench;
mod bench_embedder;
mod bench_engine;
pub mod compare;
pub mod dataset;
pub mod evaluate;
pub mod index;
pub mod inspect;
mod memory;
pub mod model;
pub mod progress;
mod quality;
pub mod reader;
pub mod serve;
pub mod setup;
mod signals;
pub mod tune;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::config::{self, Settings, Sources};
use crate::model::fetch::FetchOptions;

/// A hybrid inference server for medical questions in English and Japanese: facts come from an index of
/// guidelines, behaviour comes from a LoRA adapter, and every answer says which passages, model and
/// adapter produced it.
#[derive(Debug, Parser)]
#[command(name = "shishin", version, arg_required_else_help = true, infer_subcommands = true)]
#[command(
    after_help = "Settings: config/shishin.toml < SHISHIN_* variables < flags. Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
pub struct Cli {
    /// Read settings from this file instead of config/shishin.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer questions over HTTP; fetches the model and builds the index the first time
    Serve {
        #[command(flatten)]
        model: ModelFlags,
        #[command(flatten)]
        adapters: AdapterFlags,
        /// Address and port to listen on, such as 127.0.0.1:8080
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<String>,
    },
    /// Ask one question and see the answer with its sources
    Ask {
        #[command(flatten)]
        model: ModelFlags,
        #[command(flatten)]
        adapters: AdapterFlags,
        #[command(flatten)]
        ask: ask::AskArgs,
    },
    /// Time a model on this machine: reading prompts, writing answers, batches, adapters, caches
    Bench {
        #[command(flatten)]
        model: ModelFlags,
        /// Threads; 0 for all cores
        #[arg(long, value_name = "N")]
        threads: Option<u32>,
        /// auto, avx512-vnni, avx-vnni, avx2 or portable
        #[arg(long, value_name = "NAME")]
        kernels: Option<String>,
        #[command(flatten)]
        bench: bench::BenchArgs,
    },
    /// List, fetch and inspect models
    Model(model::ModelArgs),
    /// Look over chat datasets before training on them
    #[command(subcommand)]
    Dataset(dataset::DatasetCommand),
    /// Train an adapter on chat examples; a run that was ended goes on where it stood
    Tune {
        #[command(flatten)]
        tune: tune::TuneArgs,
    },
    /// Train and judge readers: what tells which sentence of the passages answers
    #[command(subcommand)]
    Reader(reader::ReaderCommand),
    /// Judge what the search finds, what an adapter answers, and what it forgot
    #[command(subcommand)]
    Evaluate(evaluate::EvaluateCommand),
    /// Have the base, the base with passages, with an adapter, and with both answer a suite of questions, and prove what each contributes
    Compare(compare::CompareArgs),
    /// Build, inspect and search the guideline index
    #[command(subcommand)]
    Index(index::IndexCommand),
}

/// Flags that say what runs; they override the settings of the same meaning.
#[derive(Debug, Args)]
struct ModelFlags {
    /// A model's name (`shishin model list`), a GGUF file, or a Hugging Face folder
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Never use the network
    #[arg(long)]
    offline: bool,
}

/// Which adapters to load.
#[derive(Debug, Args)]
struct AdapterFlags {
    /// Load an adapter (a PEFT folder or a GGUF-LoRA file) under a name; may be repeated
    #[arg(long = "load-adapter", value_name = "NAME=PATH", value_parser = adapter_flag)]
    load: Vec<(String, PathBuf)>,
}

fn adapter_flag(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write NAME=PATH, such as clinic=models/adapters/clinic".into()),
    }
}

impl ModelFlags {
    fn add_to(&self, sources: &mut Sources) {
        if let Some(model) = &self.model {
            sources.flags.push(("model.name".into(), model.clone(), "--model"));
        }
        if self.offline {
            sources.flags.push(("model.offline".into(), "true".into(), "--offline"));
        }
    }
}

impl AdapterFlags {
    fn add_to(&self, sources: &mut Sources) {
        for (name, path) in &self.load {
            let value = path.to_string_lossy().into_owned();
            sources.flags.push((format!("adapters.{name}"), value, "--load-adapter"));
        }
    }
}

impl Cli {
    /// Loads the settings and runs the subcommand.
    ///
    /// # Errors
    /// Whatever stops the subcommand, ready to be shown to a person.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut sources = Sources { file: self.config, ..Sources::of_process() };
        if let Command::Serve { model, .. } | Command::Ask { model, .. } | Command::Bench { model, .. } =
            &self.command
        {
            model.add_to(&mut sources);
        }
        if let Command::Serve { adapters, .. } | Command::Ask { adapters, .. } = &self.command {
            adapters.add_to(&mut sources);
        }
        if let Command::Serve { listen: Some(listen), .. } = &self.command {
            sources.flags.push(("server.listen".into(), listen.clone(), "--listen"));
        }
        if let Command::Bench { threads, kernels, .. } = &self.command {
            if let Some(threads) = threads {
                sources.flags.push(("engine.threads".into(), threads.to_string(), "--threads"));
            }
            if let Some(kernels) = kernels {
                sources.flags.push(("engine.kernels".into(), kernels.clone(), "--kernels"));
            }
        }
        if let Some((key, _, flag)) = sources
            .flags
            .iter()
            .enumerate()
            .find_map(|(n, f)| sources.flags[..n].iter().any(|g| g.0 == f.0).then_some(f))
        {
            anyhow::bail!("{flag} sets {key} twice; give each adapter a name of its own");
        }
        let settings = config::load(&sources)?;
        match self.command {
            Command::Serve { .. } => serve::run(&settings),
            Command::Ask { ask, .. } => ask::run(&settings, ask),
            Command::Bench { bench, .. } => bench::run(&settings, &bench, &mut std::io::stdout().lock()),
            Command::Model(args) => {
                let catalog = setup::catalog(&settings)?;
                model::run(&args, &catalog, &fetch_options(&settings), &mut std::io::stdout().lock())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Dataset(command) => dataset::run(&settings, &command, &mut std::io::stdout().lock()),
            Command::Tune { tune } => tune::run(&settings, &tune, &mut std::io::stdout().lock()),
            Command::Reader(command) => reader::run(&settings, &command, &mut std::io::stdout().lock()),
            Command::Evaluate(command) => evaluate::run(&settings, command, &mut std::io::stdout().lock()),
            Command::Compare(args) => compare::run(&settings, &args, &mut std::io::stdout().lock()),
            Command::Index(command) => index::run(command, &settings, &mut std::io::stdout().lock()),
        }
    }
}

/// Text of others as a terminal may show it: control characters, which could move the cursor or hide what
/// follows, become visible stand-ins.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Keeps another process out of a folder for as long as the file is held; a killed one leaves no lock behind.
///
/// # Errors
/// When another process holds it: `busy`, and the mend.
fn try_lock(file: std::fs::File, path: &Path, busy: &str, mend: &str) -> anyhow::Result<std::fs::File> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let folder = path.parent().unwrap_or(path);
            anyhow::bail!("{busy} in {}; wait for it, or {mend}", folder.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn fetch_options(settings: &Settings) -> FetchOptions {
    let mut options = FetchOptions::new(settings.model.cache.clone());
    options.offline = settings.model.offline;
    options.hub_token = settings.model.hub_token.as_ref().map(|secret| secret.0.clone());
    options
}
