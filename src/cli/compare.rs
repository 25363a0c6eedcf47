//! `shishin compare`: what passages and adapter each contribute, on a suite of questions.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

use super::dataset::ground::copy_trees;
use super::dataset::stats::read_prices;
use super::progress::Tally;
use super::signals::cancel_on_signal;
use super::{memory, setup};
use crate::analysis::synonyms::BUILT_IN;
use crate::answer::{Answerer, Mode};
use crate::config::{IndexSettings, Settings};
use crate::dataset::stats::Prices;
use crate::evaluate::compare::figures::Outcome;
use crate::evaluate::compare::gate::{self, Promise};
use crate::evaluate::compare::log::{Header, Log};
use crate::evaluate::compare::report::{self, Compared, Report, ShownArm, Timed};
use crate::evaluate::compare::suite::{Suite, SuiteQuestion};
use crate::evaluate::compare::{self, Arm};
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::model::fingerprint;
use crate::model::weights::WeightForm;

/// Where the suites of this repository are.
const SUITES: &str = "models/suites";
/// The arm that is told how to answer.
const PROMPTED: &str = "prompted";

/// Flags of `shishin compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A suite: the name of a folder in models/suites, or a folder
    #[arg(long, default_value = "clinic", value_name = "NAME|FOLDER")]
    suite: String,
    /// The models to compare on; the settings' own when none is given
    #[arg(long = "on", value_delimiter = ',', value_name = "MODEL,…")]
    models: Vec<String>,
    /// What to compare: base, prompted (the base, told by instructions and examples how to answer), rag, tuned, hybrid; all that can be
    /// had when not given
    #[arg(long, value_delimiter = ',', value_name = "MODE,…")]
    mode: Vec<String>,
    /// An adapter, or a folder with one for each model; may be repeated. Without it: the settings' default adapter
    #[arg(long, value_name = "NAME=PATH", value_parser = super::adapter_flag)]
    adapter: Vec<(String, PathBuf)>,
    /// Where answers and reports are kept; what is there already is not asked again
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Throw away the answers that are kept, and ask anew
    #[arg(long)]
    fresh: bool,
    /// Only the first N questions of each kind and language
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only the questions in this language: en or ja
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<Language>,
    /// Ask N questions of each arm once more, alone, and keep the time; and once after another, for what it finds in the cache
    #[arg(long, value_name = "N", default_value_t = 0)]
    time: usize,
    /// Fail where a promise of this file is missed
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the rates as a table of Markdown
    #[arg(long)]
    markdown: bool,
    /// Ask nothing: read the report that is kept
    #[arg(long, conflicts_with_all = ["models", "mode", "adapter", "fresh", "limit", "language", "time", "prices"])]
    kept: bool,
    /// What an hour of this machine costs
    #[arg(long, value_name = "FILE", default_value = "config/prices.toml")]
    prices: PathBuf,
}

/// Runs the subcommand.
///
/// # Errors
/// When the suite, a model, an adapter or the promises cannot be had, or answering fails.
pub fn run(settings: &Settings, args: &CompareArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let promises = args.gate.as_deref().map(gate::read).transpose()?.unwrap_or_default();
    let folder = match Path::new(&args.suite) {
        path if path.is_dir() => path.to_owned(),
        name => Path::new(SUITES).join(name),
    };
    let mut suite = Suite::read(&folder)?;
    suite.questions.retain(|question| args.language.is_none_or(|language| language == question.language));
    limit(&mut suite, args.limit);
    anyhow::ensure!(!suite.questions.is_empty(), "--language and --limit leave no question");
    let kept = args.out.clone().unwrap_or_else(|| Path::new("target/compare").join(&suite.name));
    let (mut report, timed) = match args.kept {
        true => read_kept(&kept)?,
        false => ask(settings, args, &suite, &kept)?,
    };
    if args.gate.is_some() {
        report.promises = promises.iter().flat_map(|promise| checked(promise, &report.models)).collect();
    }
    write(&kept, "report.json", &(serde_json::to_string_pretty(&report)? + "\n"))?;
    write(&kept, "times.json", &(serde_json::to_string_pretty(&timed)? + "\n"))?;
    write(&kept, "report.html", &report::page(&report, &timed)?)?;
    match (args.json, args.markdown) {
        (true, _) => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        (false, true) => write!(out, "{}", report::markdown(&report, &timed))?,
        (false, false) => {
            write!(out, "{}", report::table(&report, &timed))?;
            writeln!(out, "{}", kept.join("report.html").display())?;
        }
    }
    let missed = report.promises.iter().filter(|promise| promise.kept != Some(true)).count();
    if missed > 0 && args.gate.is_some() {
        // Not among what a program reads.
        writeln!(std::io::stderr(), "{missed} of {} promises were not kept", report.promises.len())?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Holds a promise against every model that it speaks of; one of a model that was not compared is not kept.
fn checked(promise: &Promise, models: &[Compared]) -> Vec<gate::Kept> {
    let speaks_of = |one: &&Compared| promise.model.as_ref().is_none_or(|model| *model == one.model);
    let all: Vec<gate::Kept> =
        models.iter().filter(speaks_of).map(|one| promise.check(&one.model, &one.outcome)).collect();
    if !all.is_empty() {
        return all;
    }
    let model = promise.model.clone().unwrap_or_default();
    let promise = format!("{} of {}", promise.metric, promise.arm);
    vec![gate::Kept { model, promise, found: "nothing: the model was not compared".into(), kept: None }]
}

fn read_kept(folder: &Path) -> anyhow::Result<(Report, Vec<Timed>)> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; run without --kept first", path.display()))
    };
    let report = serde_json::from_str(&read("report.json")?).context("report.json")?;
    Ok((report, serde_json::from_str(&read("times.json")?).context("times.json")?))
}

fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Keeps the first questions of each kind and language.
fn limit(suite: &mut Suite, most: Option<usize>) {
    let Some(most) = most else { return };
    let mut counts = std::collections::BTreeMap::new();
    suite.questions.retain(|question| {
        let count: &mut usize = counts.entry((question.kind, question.language)).or_default();
        *count += 1;
        *count <= most
    });
}

/// What was asked for, or everything.
fn modes(names: &[String]) -> anyhow::Result<Vec<(String, Mode)>> {
    let all = ["base", PROMPTED, "rag", "tuned", "hybrid"].map(str::to_owned);
    let mut modes: Vec<(String, Mode)> = Vec::new();
    for name in if names.is_empty() { &all[..] } else { names } {
        let parsed = if name == PROMPTED { Ok(Mode::Base) } else { name.parse::<Mode>() };
        let mode = parsed.map_err(|error| anyhow::anyhow!("{error}, and here also {PROMPTED}"))?;
        anyhow::ensure!(modes.iter().all(|(other, _)| other != name), "--mode names `{name}` twice");
        modes.push((name.clone(), mode));
    }
    Ok(modes)
}

fn ask(
    settings: &Settings,
    args: &CompareArgs,
    suite: &Suite,
    kept: &Path,
) -> anyhow::Result<(Report, Vec<Timed>)> {
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    std::fs::create_dir_all(kept).with_context(|| format!("cannot make {}", kept.display()))?;
    let models = match args.models.is_empty() {
        true => vec![settings.model.name.clone()],
        false => args.models.clone(),
    };
    let prices = read_prices(&args.prices)?;
    let modes = modes(&args.mode)?;
    for (at, model) in models.iter().enumerate() {
        let same = models[..at].iter().find(|other| folder_of(other) == folder_of(model));
        let same =
            same.map(|other| format!("--on names {other} and {model}, whose answers would share a folder"));
        anyhow::ensure!(same.is_none(), "{}; compare them one by one, with --out", same.unwrap_or_default());
    }
    for (at, (name, _)) in args.adapter.iter().enumerate() {
        let twice = args.adapter[..at].iter().any(|(other, _)| other == name);
        anyhow::ensure!(
            !twice,
            "--adapter names `{name}` twice, and arms are told apart by it; a folder may hold one for each model"
        );
    }
    let before = times_before(kept)?;
    let (mut compared, mut timed) = (Vec::new(), Vec::new());
    for model in &models {
        let place = kept.join(folder_of(model));
        let one = Asking {
            settings,
            args,
            suite,
            place: &place,
            cancel: &cancel,
            prices: &prices,
            modes: &modes,
            before: &before,
        };
        compared.push(one.model(model, &mut timed)?);
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        suite: suite.name.clone(),
        suite_sha256: suite.sha256.clone(),
        objective: suite.objective.clone(),
        only: only(args),
        models: compared,
        promises: Vec::new(),
    };
    Ok((report, timed))
}

/// What part of the suite was asked, where it was not all.
fn only(args: &CompareArgs) -> Option<String> {
    let language = args.language.map(|language| format!("questions in {}", language.tag()));
    let first = args.limit.map(|n| format!("the first {n} of each kind and language"));
    let parts: Vec<String> = language.into_iter().chain(first).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What was timed in the folder before.
fn times_before(folder: &Path) -> anyhow::Result<Vec<Timed>> {
    let path = folder.join("times.json");
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What asking one model needs.
struct Asking<'a> {
    settings: &'a Settings,
    args: &'a CompareArgs,
    suite: &'a Suite,
    /// The folder of its answers and its index.
    place: &'a Path,
    cancel: &'a Cancel,
    prices: &'a Prices,
    /// What is compared, by name.
    modes: &'a [(String, Mode)],
    /// Times that are kept.
    before: &'a [Timed],
}

impl Asking<'_> {
    fn model(&self, name: &str, timed: &mut Vec<Timed>) -> anyhow::Result<Compared> {
        let Self { settings, args, suite, place, cancel, .. } = *self;
        std::fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
        let path = place.join("lock");
        let file =
            std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let _lock =
            super::try_lock(file, &path, "another comparison is at work", "name another folder with --out")?;
        let (index, guidelines) = (place.join("index"), place.join("guidelines"));
        for old in [&index, &guidelines] {
            match std::fs::remove_dir_all(old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", old.display()));
                }
                _ => {}
            }
        }
        copy_trees(&suite.guidelines, &guidelines)?;
        let guidelines_sha256 = hash_of(&guidelines)?;
        let mut own = settings.clone();
        own.model.name = name.to_owned();
        own.index = IndexSettings { guidelines, directory: index, ..settings.index.clone() };
        if !args.adapter.is_empty() {
            own.adapters.clone_from(&args.adapter);
        }
        own.answer.limits.messages = own.answer.limits.messages.max(16);
        // Says what is being loaded.
        let bar = ProgressBar::new_spinner();
        let running = setup::start(&own, cancel, &|what| bar.set_message(what.to_owned()))?;
        bar.finish_and_clear();
        let answerer = &running.answerer;
        let stands_on = StandsOn::read(&own, &guidelines_sha256, answerer.reader().as_deref())?;
        let arms = self.arms(answerer, &stands_on)?;
        let (shown, model) = answerer.model();
        let header = Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            asked_sha256: suite.asked_sha256.clone(),
            model: shown.to_owned(),
            model_sha256: model.fingerprint.clone(),
            weights: form_of(model.form)?,
        };
        // Times of anything else are not kept.
        let run = crate::model::hex(&Sha256::digest(serde_json::to_string(&header)?));
        let key = |arm: &Arm| format!("{run} {}", arm.key());
        let path = place.join("answers.jsonl");
        if args.fresh && path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let mut log = Log::open(&path, &header, &stands_on.searched())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut tally = None;
        let mut progress = |done: usize, all: usize| {
            let what = format!("answers of {name}");
            tally.get_or_insert_with(|| Tally::stderr(&what, all, done)).at(done);
            !cancel.is_cancelled()
        };
        let result = runtime.block_on(compare::ask(answerer, suite, &arms, &mut log, &mut progress));
        let times = result
            .map_err(anyhow::Error::from)
            .and_then(|()| runtime.block_on(self.times(answerer, name, &arms, &key)));
        tally.iter().for_each(Tally::end);
        answerer.engine().abort();
        let compared = Compared {
            model: name.to_owned(),
            model_sha256: model.fingerprint.clone(),
            weights: form_of(model.form)?,
            guidelines_sha256,
            settings_sha256: stands_on.all(),
            arms: arms.iter().map(ShownArm::from).collect(),
            outcome: Outcome::of(suite, &arms, &log),
        };
        timed.extend(times?);
        drop(runtime);
        running.engine.join();
        Ok(compared)
    }

    /// The arms that were asked for, or all that can be had.
    fn arms(&self, answerer: &Arc<Answerer>, stands_on: &StandsOn) -> anyhow::Result<Vec<Arm>> {
        let loaded = answerer.adapters();
        let default = answerer.settings().default_adapter.as_ref();
        let named: Vec<&String> = match self.args.adapter.is_empty() {
            true => default.into_iter().collect(),
            false => self.args.adapter.iter().map(|(name, _)| name).collect(),
        };
        let adapters: Vec<(String, String)> = named
            .iter()
            .filter_map(|name| Some(((*name).clone(), loaded.get(*name)?.fingerprint().to_owned())))
            .collect();
        if adapters.len() < named.len() {
            let (model, loaded) = (answerer.model().0, adapters.len());
            eprintln!(
                "{model}: {loaded} of {} adapters are made for it; the others are left out",
                named.len()
            );
        }
        let mut arms: Vec<Arm> = Vec::new();
        for (name, mode) in self.modes {
            let (name, mode, prompted, settings) =
                (name.as_str(), *mode, name == PROMPTED, stands_on.of(*mode));
            if !mode.adapts() {
                arms.push(Arm { name: name.to_owned(), mode, adapter: None, prompted, settings });
                continue;
            }
            anyhow::ensure!(
                !adapters.is_empty() || self.args.mode.is_empty(),
                "mode `{mode}` needs an adapter for this model: name one with --adapter NAME=PATH"
            );
            for adapter in &adapters {
                let name = if adapters.len() > 1 { format!("{name} {}", adapter.0) } else { name.to_owned() };
                arms.push(Arm {
                    name,
                    mode,
                    adapter: Some(adapter.clone()),
                    prompted,
                    settings: settings.clone(),
                });
            }
        }
        Ok(arms)
    }

    /// How long each arm takes.
    async fn times(
        &self,
        answerer: &Answerer,
        model: &str,
        arms: &[Arm],
        key: &dyn Fn(&Arm) -> String,
    ) -> anyhow::Result<Vec<Timed>> {
        let Self { args, suite, cancel, prices, before, .. } = *self;
        let step = (suite.questions.len() / args.time.max(1)).max(1);
        let questions: Vec<&SuiteQuestion> = suite.questions.iter().step_by(step).take(args.time).collect();
        let mut all = Vec::new();
        if questions.is_empty() {
            // The same arm of the same model, whatever either was called then.
            let kept = |arm: &Arm| {
                let timed = before.iter().find(|timed| timed.key == key(arm))?.clone();
                Some(Timed { model: model.to_owned(), arm: arm.name.clone(), ..timed })
            };
            return Ok(arms.iter().filter_map(kept).collect());
        }
        let progress = &mut || !cancel.is_cancelled();
        let cached = compare::cached(answerer, suite, arms, &questions, progress).await?;
        for (arm, cached_tokens) in arms.iter().zip(cached) {
            memory::reset_peak();
            let latencies = compare::time(answerer, suite, arm, &questions, progress).await?;
            let mean = latencies.iter().map(|l| l.total_ms).sum::<f64>() / latencies.len() as f64;
            all.push(Timed {
                model: model.to_owned(),
                arm: arm.name.clone(),
                key: key(arm),
                questions: latencies.len(),
                first_ms: report::median(latencies.iter().map(|l| l.first_ms).collect()),
                total_ms: report::median(latencies.iter().map(|l| l.total_ms).collect()),
                cached_tokens: Some(cached_tokens),
                peak_bytes: memory::peak_bytes(),
                thousand: prices
                    .own_hour
                    .as_ref()
                    .map(|own| (own.cost * mean / 3600.0, own.currency.clone())),
            });
        }
        Ok(all)
    }
}

/// What a model's folder is called: its name, or of a path the last part.
fn folder_of(model: &str) -> String {
    let last = model.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(model);
    last.strip_suffix(".gguf").unwrap_or(last).to_owned()
}

/// What a form of weights is called.
fn form_of(form: WeightForm) -> anyhow::Result<String> {
    Ok(serde_json::to_value(form)?.as_str().unwrap_or_default().to_owned())
}

/// SHA-256 over the files of a folder, names and contents, whatever order the disk has them in.
fn hash_of(folder: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(file.strip_prefix(folder).unwrap_or(&file).to_string_lossy().as_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Ok(crate::model::hex(&hash.finalize()))
}

/// How passages are chosen and answers written, which no setting says: another number where that changes.
const WAY: u32 = 5;

/// What of the settings decides answers, besides model and questions: of all arms, of those that search, and of those that quote. An arm is
/// asked anew where its own part changes.
struct StandsOn {
    wording: String,
    search: String,
    quotes: String,
}

impl StandsOn {
    fn read(settings: &Settings, guidelines_sha256: &str, reader: Option<&str>) -> anyhow::Result<Self> {
        let (index, answer, quotes) = (&settings.index, &settings.answer, settings.answer.quotes);
        let gates = (answer.gate, answer.hybrid_gate);
        let own_synonyms = index.synonyms.as_ref().map(std::fs::read_to_string).transpose()?;
        let wording = format!(
            "{WAY} {} {} {}",
            setup::wording(settings)?.sha256(),
            settings.engine.context,
            answer.sampling.no_repeat_ngram_size
        );
        // What tells which sentence answers also orders passages.
        let search = format!(
            "{guidelines_sha256} {} {} {:?} {BUILT_IN} {own_synonyms:?} {} {gates:?} {} {} {reader:?}",
            index.chunk_tokens,
            index.overlap_tokens,
            index.embedder,
            answer.passages,
            quotes.nearness,
            quotes.bearing
        );
        Ok(Self { wording, search, quotes: format!("{quotes:?}") })
    }

    fn of(&self, mode: Mode) -> String {
        let search = if mode.retrieves() { &self.search } else { "" };
        let quotes = if mode.retrieves() && mode.adapts() { &self.quotes } else { "" };
        fingerprint([self.wording.as_bytes(), search.as_bytes(), quotes.as_bytes()])
    }

    fn searched(&self) -> String {
        fingerprint([self.search.as_bytes()])
    }

    fn all(&self) -> String {
        fingerprint([self.wording.as_bytes(), self.search.as_bytes(), self.quotes.as_bytes()])
    }
}
