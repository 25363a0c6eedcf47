//! `shishin tune`: from chat examples to an adapter.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::{memory, printable, setup, signals};
use crate::config::Settings;
use crate::model::BaseModel;
use crate::model::fetch::Cancel;
use crate::model::fingerprint;
use crate::model::frozen::FrozenModel;
use crate::model::lora::Adapter;
use crate::tune::card::Card;
use crate::tune::examples::{self, Example, ExampleMaker, Source};
use crate::tune::output::{write_gguf, write_peft};
use crate::tune::parameters::Parameters;
use crate::tune::probe;
use crate::tune::run::{Outcome, Run, Step, Summary, Watch};
use crate::tune::settings::{LoraSettings, TrainingSettings, TuneSettings};

/// What to train.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// The run's settings
    #[arg(long, value_name = "FILE", default_value = "config/tune.toml")]
    run: PathBuf,
    /// Print so many examples token by token, those that are learnt between » and «, those that weigh more by training.quote_weight with ◆
    /// behind them, and train nothing
    #[arg(long, value_name = "N")]
    preview: Option<usize>,
    /// Write every step's examples as tokens, the adapter that training starts from and its losses token by token on the first step into a
    /// folder, and train nothing: another program can then do the same run
    #[arg(long, value_name = "FOLDER", conflicts_with = "preview")]
    dump: Option<PathBuf>,
    /// Train a few steps with each of these learning rates, say what came of it, and keep nothing
    #[arg(long, value_name = "RATE,…", value_delimiter = ',', conflicts_with_all = ["preview", "dump"])]
    rates: Vec<f64>,
    /// So many steps
    #[arg(long, value_name = "N", default_value_t = 20, requires = "rates")]
    rate_steps: usize,
    /// As a server's job: with lower priority, until standard input closes
    #[arg(long, hide = true)]
    job: bool,
    /// Also write the adapter as a GGUF file, for llama.cpp
    #[arg(long)]
    gguf: bool,
    /// Throw away what an earlier run has left in the output folder; refused while one is at work there
    #[arg(long)]
    restart: bool,
}

/// Runs the command.
///
/// # Errors
/// When the settings or data are unsound, the base cannot be loaded, or the run fails.
pub fn run(settings: &Settings, args: &TuneArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let tune = TuneSettings::read(&args.run)?;
    let cancel = Cancel::default();
    signals::cancel_on_signal(cancel.clone())?;
    if args.job {
        become_a_job(&cancel);
    }
    let prepared = Prepared::load(settings, &tune, &cancel)?;
    let Prepared { name, model, invocation, train, valid, replayed, .. } = &prepared;
    if let Some(count) = args.preview {
        preview(model, train, count, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.rates.is_empty() {
        return rates(&prepared, &tune, args, cancel, out);
    }
    let folder = tune.output.join("run");
    let _lock = enter(&folder, args.job, args.restart)?;
    describe(model, name, (train, valid), out)?;
    if !tune.data.replay.is_empty()
        && let Some(short) = short_of_replay(train.len(), *replayed, tune.data.replay_share)
    {
        writeln!(out, "{short}")?;
    }
    let run = prepared.run(&tune, &folder);
    let mut parameters = prepared.parameters(&tune)?;
    if let Some(folder) = &args.dump {
        let losses = run.first_losses(&parameters, &|| cancel.is_cancelled())?;
        return dump(&run, &tune, name, (&parameters, losses), invocation.as_deref(), folder, out);
    }
    let outcome = run.train(parameters.clone(), &mut Terminal::new(cancel))?;
    let summary = match outcome {
        Outcome::Done(summary) => summary.interpolated(&parameters.numbers, tune.lora.interpolation),
        Outcome::Stopped(step) => {
            writeln!(out, "stopped after step {step}; the same command goes on from there")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    parameters.numbers.clone_from(&summary.numbers);
    write_peft(&tune.output, name, &parameters, tune.lora.dropout, invocation.as_deref())?;
    let card = Card {
        settings: &tune,
        base: (name, &model.fingerprint),
        data: prepared.sources.clone(),
        replayed: prepared.replayed,
        counts: counts(train),
        start: prepared.start.as_ref().map(Adapter::fingerprint),
        summary: &summary,
    };
    card.write(&tune.output)?;
    if args.gguf {
        write_gguf(&tune.output.join("adapter.gguf"), &model.config, &parameters, invocation.as_deref())?;
    }
    if tune.lora.interpolation < 1.0 {
        writeln!(out, "written {} of the way; losses are those of all of it", tune.lora.interpolation)?;
    }
    report(&summary, &tune.output, out)?;
    Ok(ExitCode::SUCCESS)
}

/// A run's base and data, loaded.
pub(super) struct Prepared {
    /// What the base is called.
    pub(super) name: String,
    /// The base.
    pub(super) model: BaseModel<FrozenModel>,
    /// What a late adapter begins with; `None` for one that is there from the start.
    invocation: Option<Vec<u32>>,
    /// The adapter to go on from.
    start: Option<Adapter>,
    /// What is learnt from.
    pub(super) train: Vec<Example>,
    /// So many of them, the last, were drawn to be learnt along.
    replayed: usize,
    /// What was read: to learn from, to draw from, and to say when to stop.
    sources: [Vec<Source>; 3],
    /// What says when to stop.
    valid: Vec<Example>,
    /// General text, which must not become less likely.
    general: Vec<Example>,
}

impl Prepared {
    /// Loads the base and reads the examples.
    ///
    /// # Errors
    /// When the base cannot be had, or an example cannot be trained on.
    pub(super) fn load(settings: &Settings, tune: &TuneSettings, cancel: &Cancel) -> anyhow::Result<Self> {
        let located = setup::locate(settings, &tune.base, cancel)?;
        let mut cpu = settings.cpu;
        if tune.training.threads > 0 {
            cpu.threads = tune.training.threads;
        }
        let (sha256, weights) = (located.sha256.as_deref(), tune.training.weights);
        let model = BaseModel::load_frozen(&located.path, weights, sha256, setup::cpu(cpu)?)?;
        let template = model.template.as_ref().context("the base model has no chat template")?;
        let wording = setup::wording(settings)?;
        let marks = tune
            .lora
            .begins
            .marks(template)
            .context("lora.begins: choose another place, such as \"answer\"")?;
        let invocation = marks.map(|marks| model.tokenizer.encode_template(&marks)).transpose()?;
        let maker = ExampleMaker {
            tokenizer: &model.tokenizer,
            template,
            wording: tune.data.instructions.then_some(&wording),
            max_tokens: tune.data.max_tokens,
            invocation: invocation.clone(),
            choices: tune.training.quote_weight != 1.0,
        };
        let from = tune.lora.from.as_deref();
        let start = from.map(|path| started(path, &model, invocation.as_deref())).transpose()?;
        let (mut train, learnt_from) = maker.read_sourced(&tune.data.train)?;
        let (replay, drawn_from) = maker.read_sourced(&tune.data.replay)?;
        let learnt = train.len();
        train.extend(replayed(replay, learnt, tune.data.replay_share, tune.training.seed));
        let replayed = train.len() - learnt;
        let (valid, looked_at) = maker.read_sourced(&tune.data.valid)?;
        let general = maker.texts(&tune.budget.texts, &wording)?;
        let sources = [learnt_from, drawn_from, looked_at];
        Ok(Self { name: located.name, model, invocation, start, train, replayed, sources, valid, general })
    }

    /// The run, with its files in a folder.
    pub(super) fn run<'a>(&'a self, tune: &'a TuneSettings, folder: &'a Path) -> Run<'a> {
        // The tokens stand for files, instructions and turn format alike; what changes no number does not make another run.
        let numbers = TrainingSettings {
            threads: 0,
            prefix_megabytes: 0,
            prefix_folder: PathBuf::new(),
            prefix_gigabytes: 0,
            checkpoint_every: 1,
            gradient_checkpointing: false,
            ..tune.training.clone()
        };
        let lora = LoraSettings { from: None, interpolation: 1.0, ..tune.lora.clone() };
        let settings = serde_json::to_string(&(&lora, &numbers)).unwrap_or_default();
        let budget = tune.budget.forgetting;
        let mut parts =
            vec![settings, examples::fingerprint(&self.train), examples::fingerprint(&self.valid)];
        parts.extend(self.start.iter().map(|start| start.fingerprint().to_owned()));
        if let Some(budget) = budget {
            parts.extend([budget.to_string(), examples::fingerprint(&self.general)]);
        }
        let identity = fingerprint(parts.iter().map(String::as_bytes));
        Run {
            settings: &tune.training,
            dropout: tune.lora.dropout,
            model: &self.model,
            train: &self.train,
            valid: &self.valid,
            budget: budget.map(|budget| (self.general.as_slice(), budget)),
            folder,
            identity,
        }
    }

    /// The numbers that training starts from.
    ///
    /// # Errors
    /// When the adapter to go on from is of another shape.
    pub(super) fn parameters(&self, tune: &TuneSettings) -> anyhow::Result<Parameters> {
        let mut parameters = Parameters::new(&self.model.config, tune.shape(), tune.training.seed);
        if let Some(start) = &self.start {
            parameters.start_from(start).context("lora.from is no adapter to go on from")?;
        }
        Ok(parameters)
    }
}

/// The adapter to go on from.
fn started(
    path: &Path,
    model: &BaseModel<FrozenModel>,
    invocation: Option<&[u32]>,
) -> anyhow::Result<Adapter> {
    let adapter = setup::matrices(path, &model.config).context("lora.from")?;
    let place = |tokens: Option<&[u32]>| {
        let shown = |tokens: &[u32]| tokens.iter().map(|id| model.tokenizer.display(*id)).collect::<String>();
        tokens.map_or("at the first token".to_owned(), |tokens| {
            format!("at “{}”", printable(&shown(tokens)).trim())
        })
    };
    anyhow::ensure!(
        adapter.invocation() == invocation,
        "lora.from: {} begins {}, and by lora.begins the run does {}",
        path.display(),
        place(adapter.invocation()),
        place(invocation)
    );
    Ok(adapter)
}

/// So many of the examples that are learnt along, chosen by the seed, that they are their share of all; all of them where there are fewer.
fn replayed(mut replay: Vec<Example>, others: usize, share: f64, seed: u64) -> Vec<Example> {
    let wanted = (others as f64 * share / (1.0 - share)).round() as usize;
    replay.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    replay.truncate(wanted);
    replay
}

/// Says where there are too few examples to learn along for their share.
fn short_of_replay(all: usize, replayed: usize, share: f64) -> Option<String> {
    // A whole one is wanted.
    let short = (replayed as f64 + 1.0) < share * all as f64;
    short.then(|| {
        let (found, asked) = (100.0 * replayed as f64 / all as f64, 100.0 * share);
        format!(
            "data.replay holds {replayed} examples, {found:.1} % of what is learnt, where data.replay_share asks for {asked:.0} %"
        )
    })
}

fn describe(
    model: &BaseModel<FrozenModel>,
    name: &str,
    (train, valid): (&[Example], &[Example]),
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let count = |examples: &[Example]| {
        let (examples, tokens, learnt) = counts(examples);
        format!("{examples} examples, {tokens} tokens, {learnt} of them learnt")
    };
    let cpu = model.decoder.cpu();
    writeln!(
        out,
        "{name}: {} MB of weights, {} threads, {}",
        model.decoder.bytes() / 1_000_000,
        cpu.threads(),
        cpu.variant().as_str()
    )?;
    writeln!(out, "train: {}", count(train))?;
    writeln!(out, "valid: {}", count(valid))
}

/// Examples, tokens, and tokens that are learnt.
fn counts(examples: &[Example]) -> (usize, usize, usize) {
    let tokens = examples.iter().map(|e| e.tokens.len()).sum();
    let learnt = examples.iter().flat_map(|e| &e.learnt).filter(|learnt| **learnt).count();
    (examples.len(), tokens, learnt)
}

fn report(summary: &Summary, folder: &Path, out: &mut dyn Write) -> std::io::Result<()> {
    if let Some((first, best)) = summary.valid {
        writeln!(
            out,
            "validation loss {first:.4} → {best:.4} at step {} of {}",
            summary.chosen, summary.steps
        )?;
    }
    // Of this process alone; the seconds are those of all processes that worked on the run.
    let memory =
        memory::peak_bytes().map(|bytes| format!(" in at most {:.1} GB of memory", bytes as f64 / 1e9));
    let memory = memory.unwrap_or_default();
    writeln!(out, "trained for {:.0} s{memory}; sha256 of the numbers {}", summary.seconds, summary.hash)?;
    writeln!(out, "{}: serve it with --load-adapter NAME={}", folder.display(), folder.display())
}

/// The file in a run's folder that only one run at a time holds.
const LOCK: &str = "run.lock";

/// Makes a run's folder and keeps other runs out of it for as long as the file lives; empties it if asked, which only its holder may.
pub(super) fn enter(folder: &Path, wait: bool, restart: bool) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = lock(folder, wait)?;
    if restart {
        empty(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    Ok(lock)
}

/// Removes all but the lock: a new file of that name would keep nobody out who holds the old one.
fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Keeps another run out of the folder for as long as this one lasts; a killed one leaves no lock behind.
fn lock(folder: &Path, wait: bool) -> anyhow::Result<std::fs::File> {
    let path = folder.join(LOCK);
    let file = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    // The process of a server that was killed ends in a moment.
    if wait {
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        return Ok(file);
    }
    super::try_lock(file, &path, "another run is at work", "choose another output")
}

/// Gives way to who serves, and ends with it.
fn become_a_job(cancel: &Cancel) {
    // Where the system does not allow it the run is only in the way a little more.
    #[cfg(unix)]
    let _ = rustix::process::nice(10);
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        // Ends when the server closes its end, or is no more.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        cancel.cancel();
    });
}

/// Tries learning rates.
fn rates(
    prepared: &Prepared,
    tune: &TuneSettings,
    args: &TuneArgs,
    cancel: Cancel,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let sound = |rate: &f64| *rate > 0.0 && *rate < 1.0;
    anyhow::ensure!(args.rates.iter().all(sound), "--rates must be above 0 and below 1");
    let run = prepared.run(tune, Path::new(""));
    let tried =
        run.rates(&prepared.parameters(tune)?, &args.rates, args.rate_steps, &mut Terminal::new(cancel))?;
    writeln!(out, "{:>10} {:>10} {:>10}", "rate", "train", "valid")?;
    for one in &tried {
        let shown = |loss: Option<f64>| loss.map_or("–".to_owned(), |loss| format!("{loss:.4}"));
        writeln!(out, "{:>10e} {:>10} {:>10}", one.rate, shown(one.train), shown(one.valid))?;
    }
    if let Some(best) = probe::best(&tried) {
        writeln!(out, "lowest with {best:e}: write it as training.learning_rate")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A run, step by step, for another program.
fn dump(
    run: &Run<'_>,
    tune: &TuneSettings,
    base: &str,
    (parameters, first_losses): (&Parameters, Vec<Vec<f32>>),
    invocation: Option<&[u32]>,
    folder: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    write_peft(folder, base, parameters, tune.lora.dropout, invocation)?;
    let path = folder.join("steps.jsonl");
    let cannot = || format!("cannot write {}", path.display());
    let mut lines = BufWriter::new(File::create(&path).with_context(cannot)?);
    run.dump(first_losses, &mut lines).with_context(cannot)?;
    lines.flush().with_context(cannot)?;
    writeln!(out, "{}: {} steps", path.display(), run.steps())?;
    Ok(ExitCode::SUCCESS)
}

/// Examples token by token.
fn preview(
    model: &BaseModel<FrozenModel>,
    examples: &[Example],
    count: usize,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for example in examples.iter().take(count) {
        writeln!(out, "{} ({} tokens)", example.place, example.tokens.len())?;
        let mut inside = false;
        let mut line = String::new();
        for (at, (token, learnt)) in example.tokens.iter().zip(&example.learnt).enumerate() {
            if at > 0 && at == example.late {
                line.push_str("⟨the adapter begins⟩");
            }
            if *learnt != inside {
                line.push_str(if *learnt { "»" } else { "«" });
                inside = *learnt;
            }
            line.push_str(&printable(&model.tokenizer.display(*token)));
            // What chooses a quote, where that weighs more.
            line.push(if example.choices.binary_search(&at).is_ok() { '◆' } else { '·' });
        }
        if inside {
            line.push('«');
        }
        writeln!(out, "{line}\n")?;
    }
    Ok(())
}

/// A bar on a terminal, lines elsewhere; both on standard error.
pub(super) struct Terminal {
    bar: Option<ProgressBar>,
    cancel: Cancel,
}

impl Terminal {
    pub(super) fn new(cancel: Cancel) -> Self {
        Self { bar: None, cancel }
    }
}

impl Watch for Terminal {
    fn note(&mut self, line: &str) {
        // Nothing can be said about a standard error that is gone.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn step(&mut self, step: &Step) {
        let valid = step.valid.map(|loss| format!("  valid {loss:.4}")).unwrap_or_default();
        let speed = step.tokens as f64 / step.seconds.max(1e-9);
        let line = format!("loss {:.4}{valid}  {speed:.0} tok/s", step.loss);
        if !std::io::stderr().is_terminal() {
            return self.note(&format!("step {}/{}  {line}", step.step, step.steps));
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(step.steps as u64).with_position(step.step as u64 - 1);
            bar.reset_eta();
            let style = ProgressStyle::with_template("  [{bar:24}] {pos}/{len}  {msg}  {eta}");
            style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")))
        });
        bar.set_position(step.step as u64);
        bar.set_message(line);
    }

    fn stop(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_emptied_only_by_who_holds_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let first = enter(&folder, false, false).unwrap();
        std::fs::write(folder.join("checkpoint.safetensors"), "numbers").unwrap();
        std::fs::create_dir(folder.join("more")).unwrap();
        std::fs::write(folder.join("more/file"), "").unwrap();
        let names = || {
            let entries = std::fs::read_dir(&folder).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let refused = enter(&folder, false, true).unwrap_err().to_string();
        assert!(refused.contains("another run is at work"), "{refused}");
        assert_eq!(names(), ["checkpoint.safetensors", "more", LOCK]);
        drop(first);
        let second = enter(&folder, false, true).unwrap();
        assert_eq!(names(), [LOCK]);
        // What it holds is still what others look at.
        assert!(enter(&folder, false, true).is_err());
        drop(second);
    }

    #[test]
    fn what_is_learnt_along_is_a_share_that_the_seed_draws() {
        let example = |n: u32| Example {
            place: format!("replay.jsonl:{n}"),
            tokens: vec![n],
            learnt: vec![true],
            choices: Vec::new(),
            late: 0,
        };
        let all: Vec<Example> = (1..=40).map(example).collect();
        let drawn = |others: usize, share: f64, seed: u64| -> Vec<u32> {
            replayed(all.clone(), others, share, seed).iter().map(|example| example.tokens[0]).collect()
        };
        // A tenth of all is one to nine others.
        assert_eq!(drawn(90, 0.1, 1).len(), 10);
        assert_eq!(drawn(9, 0.1, 1).len(), 1);
        assert_eq!(drawn(10, 0.5, 1).len(), 10);
        assert!(drawn(10, 0.0, 1).is_empty());
        // There may be fewer than the share asks for; then it is all of them, each once.
        let mut few = drawn(400, 0.5, 1);
        few.sort_unstable();
        assert_eq!(few, (1..=40).collect::<Vec<u32>>());
        // Which, only the seed says, and it draws from all of the file.
        assert_eq!(drawn(10, 0.5, 7), drawn(10, 0.5, 7));
        assert_ne!(drawn(10, 0.5, 7), drawn(10, 0.5, 8));
        assert!(drawn(10, 0.5, 7).iter().any(|n| *n > 20), "not the first of them");
        assert!(replayed(Vec::new(), 10, 0.5, 1).is_empty());
        let short = short_of_replay(4151, 474, 0.2).unwrap();
        assert!(short.contains("474 examples, 11.4 %") && short.contains("asks for 20 %"), "{short}");
        for enough in [(5, 1, 0.2), (6, 1, 0.2), (1, 0, 0.5)] {
            assert_eq!(short_of_replay(enough.0, enough.1, enough.2), None);
        }
    }
}
