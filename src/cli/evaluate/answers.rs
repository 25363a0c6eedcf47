//! `shishin evaluate answers`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::super::signals::cancel_on_signal;
use super::super::{printable, setup};
use crate::config::Settings;
use crate::engine::Engine;
use crate::evaluate::answers::{self, Answer, Bar, Figure, Generation, Held, System};
use crate::evaluate::criteria::Criteria;
use crate::evaluate::likelihood::{self, Likelihood};
use crate::evaluate::metrics::Mean;
use crate::evaluate::score::{self, Score};
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::tune::card;

/// Flags of `shishin evaluate answers`.
#[derive(Debug, Args)]
pub struct AnswersArgs {
    /// Chat examples that were not learnt from, as JSON Lines; what the assistant says last is the reference
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What answers must be like
    #[arg(long, value_name = "FILE")]
    criteria: PathBuf,
    /// An adapter to compare with the base: a PEFT folder or a GGUF-LoRA file; may be repeated
    #[arg(long, value_name = "PATH")]
    adapter: Vec<PathBuf>,
    /// The base model, instead of the settings'
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only the first N examples of each file
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Tokens of an answer at the most
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,
    /// Also weigh the references: bits per byte, and whether they are preferred to the answers that examples reject (`meta.rejected`)
    #[arg(long)]
    likelihood: bool,
    /// Show the answers to N examples side by side
    #[arg(long, value_name = "N", default_value_t = 0)]
    show: usize,
    /// Fail where an adapter misses a criterion's goal
    #[arg(long, requires = "adapter")]
    gate: bool,
    /// Write the figures into the model card of each adapter (its README.md), in place of those of the same files and criteria; others stay
    #[arg(long, requires = "adapter")]
    card: bool,
    /// Print figures and answers as JSON
    #[arg(long)]
    json: bool,
}

/// All that was found.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    model_sha256: &'a str,
    adapters: Vec<(&'a str, &'a str)>,
    /// The bars of each adapter's first quotes, by the languages of the examples that have passages.
    bars: BTreeMap<&'a str, BTreeMap<Language, Bar>>,
    objective: &'a str,
    examples: usize,
    figures: &'a [Figure],
    scores: &'a [Score],
    likelihood: &'a [Likelihood],
    answers: &'a [Answer],
}

pub(super) fn run(settings: &Settings, args: &AnswersArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let criteria = Criteria::read(&args.criteria)?;
    let wording = setup::wording(settings)?;
    let held = answers::read(&args.files, args.limit, &wording)?;
    anyhow::ensure!(!held.is_empty(), "there is no example in {} files", args.files.len());
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let (located, model) = setup::base(settings, args.model.as_deref(), &cancel)?;
    let mut systems = vec![System { name: "base".into(), adapter: None }];
    let mut folders = Vec::new();
    for path in &args.adapter {
        let (own, adapter) = setup::adapter_of(path, &located.name, &model)?;
        folders.push(own);
        // Folders of one name, or called as the base is here, are told apart by their paths.
        let short = short_name(path);
        let taken = |name: &str| systems.iter().any(|system| system.name == name);
        let name = if taken(&short) { path.display().to_string() } else { short };
        anyhow::ensure!(!taken(&name), "--adapter {name} is given twice; leave one out");
        systems.push(System { name, adapter: Some(adapter) });
    }
    let model = Arc::new(model);
    let engine = Engine::start(&model, &settings.engine)?;
    let bar = ProgressBar::new((held.len() * systems.len()) as u64);
    let style = ProgressStyle::with_template("  [{bar:24}] {pos}/{len} answers  {eta}  {msg}");
    let bar = style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")));
    let mut progress = |done: usize| {
        bar.set_position(done as u64);
        !cancel.is_cancelled()
    };
    let at_once = settings.engine.concurrent.min(2 * systems.len());
    // As the server has it: quotes of passages follow the embedder too.
    let quotes = held.iter().any(|one| one.passages > 0 && one.question.is_some()) && systems.len() > 1;
    let meaning = if quotes { setup::meaning_and_reader(settings, &cancel)? } else { None };
    let generation = Generation { at_once, ..setup::generation(settings, meaning.as_ref(), args.max_tokens) };
    let asked = (&held[..], &systems[..]);
    let answers = answers::answer(&model, &engine.handle(), asked, &criteria, &generation, &mut progress)?;
    let likelihood = if args.likelihood {
        bar.set_message("weighing the references");
        let weighed = likelihood::weigh(&model, &held, &systems, &|| cancel.is_cancelled())?;
        likelihood::figures(&systems, &weighed)
    } else {
        Vec::new()
    };
    bar.finish_and_clear();
    let figures = answers::figures(&held, &systems, &criteria, &answers);
    let scores = score::scores(&held, &systems, &criteria, &answers);
    if args.json {
        let report = Report {
            model: &located.name,
            model_sha256: &model.fingerprint,
            adapters: systems
                .iter()
                .filter_map(|s| Some((s.name.as_str(), s.adapter.as_ref()?.fingerprint())))
                .collect(),
            bars: systems[1..].iter().map(|s| (s.name.as_str(), s.bars(&held, generation.quotes))).collect(),
            objective: &criteria.objective,
            examples: held.len(),
            figures: &figures,
            scores: &scores,
            likelihood: &likelihood,
            answers: &answers,
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        show(&held, &systems, &answers, args.show, out)?;
        table(&located.name, held.len(), &figures, out)?;
        for one in &scores {
            writeln!(out, "{}", score_line(one))?;
        }
        for one in &likelihood {
            write!(
                out,
                "{:<28} {:<18} {:.4} bits per byte of the references",
                "likelihood", one.system, one.bits_per_byte
            )?;
            if one.prefers.of > 0 {
                let (held, of) = (one.prefers.held, one.prefers.of);
                let p = one.against_first.map_or(String::new(), |d| format!(", p {:.4}", d.p));
                write!(out, "; preferred to what is rejected: {held} of {of}{p}")?;
            }
            writeln!(out)?;
        }
    }
    if args.card {
        for (folder, system) in folders.iter().zip(&systems[1..]) {
            let bars = system.bars(&held, generation.quotes);
            let judged = (&system.name[..], held.len(), &bars);
            let text = evaluation(judged, &criteria.objective, &figures, &scores);
            let path = card::put_evaluation(folder, &judged_on(&args.files, &args.criteria), &text)?;
            writeln!(std::io::stderr(), "written into {}", path.display())?;
        }
    }
    let missed = figures.iter().filter(|f| f.against_first.is_some() && misses(f));
    let low = |s: &&Score| s.language.is_none() && s.goal.is_some_and(|goal| s.score.mean < goal);
    let missed = missed.count() + scores.iter().filter(|s| s.against_first.is_some()).filter(low).count();
    if args.gate && missed > 0 {
        // Not among what a program reads.
        writeln!(std::io::stderr(), "{missed} goals were missed")?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a card calls an evaluation: data and criteria with their folders, because most sets call them alike.
fn judged_on(files: &[PathBuf], criteria: &Path) -> String {
    let files: Vec<String> = files.iter().map(|file| card::folder_name(file)).collect();
    format!("{} by {}", files.join(", "), card::folder_name(criteria))
}

/// The figures of an adapter and its base as a table of Markdown.
fn evaluation(
    (system, examples, bars): (&str, usize, &BTreeMap<Language, Bar>),
    objective: &str,
    figures: &[Figure],
    scores: &[Score],
) -> String {
    let bars: Vec<String> = bars.iter().map(bar_of).collect();
    let bars = match bars.is_empty() {
        true => String::new(),
        false => format!(
            " A first quote had to be likelier than all else by e to the power of {}.",
            bars.join(" and ")
        ),
    };
    let mut text = format!(
        "{objective}\n\nOn {examples} examples that nothing was learnt from; answers are greedy, intervals 95 % (Wilson's; of scores by a bootstrap), p the larger of a paired bootstrap's and of McNemar's exact test, of scores the bootstrap's.{bars}\n\n\
         | criterion | language | base | adapter | 95 % | difference | p | goal |\n| --- | --- | --: | --: | --: | --: | --: | --: |\n"
    );
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for figure in figures.iter().filter(|figure| figure.system == system && figure.against_first.is_some()) {
        let same = |other: &&Figure| {
            other.against_first.is_none()
                && other.criterion == figure.criterion
                && other.language == figure.language
        };
        let base = figures.iter().find(same).map_or("–".to_owned(), |base| percent(base.rate.rate));
        let (low, high) = figure.rate.interval;
        let (difference, p) = match &figure.against_first {
            Some(d) => (format!("{:+.1}", 100.0 * d.difference), format!("{:.4}", d.p)),
            None => Default::default(),
        };
        text.push_str(&format!(
            "| {} | {} | {base} | {} ({} of {}) | {:.1}–{:.1} | {difference} | {p} | {} |\n",
            figure.criterion,
            figure.language.map_or("all", |language| language.tag()),
            percent(figure.rate.rate),
            figure.rate.held,
            figure.rate.of,
            100.0 * low,
            100.0 * high,
            figure.goal.map(|goal| format!("{:.0} %", 100.0 * goal)).unwrap_or_default(),
        ));
    }
    for score in scores.iter().filter(|score| score.system == system) {
        text.push_str(&format!("\nMean {}\n", score_line(score)));
    }
    text
}

/// A bar in words.
fn bar_of((language, Bar { bar, own }): (&Language, &Bar)) -> String {
    let whose = if *own { "its own" } else { "`answer.quote_bar`" };
    format!("{bar} ({}, {whose})", language.tag())
}

/// A score in a line.
fn score_line(score: &Score) -> String {
    let Mean { mean, low, high } = score.score;
    let language = score.language.map_or("all", |language| language.tag());
    let mut line = format!(
        "score of {} answers by the weights, {language}, {}: {mean:.3} ({low:.3}–{high:.3})",
        score.of, score.system
    );
    if let Some(d) = &score.against_first {
        line.push_str(&format!(", {:+.3} against the base, p {:.4}", d.difference, d.p));
    }
    if let Some(goal) = score.goal {
        line.push_str(&format!(", goal {goal:.2}"));
    }
    line
}

fn misses(figure: &Figure) -> bool {
    // What the base's misses allow is rounded: a goal that is just reached is kept.
    figure.goal.is_some_and(|goal| figure.rate.rate + 1e-9 < goal)
}

/// The last part of a path, without what every adapter has.
fn short_name(path: &Path) -> String {
    // What follows a point in a folder's name is no extension.
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn table(model: &str, examples: usize, figures: &[Figure], out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{model}, {examples} examples; rates with their 95 % intervals, differences on the same examples"
    )?;
    writeln!(
        out,
        "{:<22} {:<5} {:<18} {:>9} {:>8} {:>15} {:>9} {:>8} {:>6}",
        "criterion", "lang", "system", "held", "rate", "95 %", "− base", "p", "goal"
    )?;
    for figure in figures {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let language = figure.language.map_or("all", |language| language.tag());
        let (low, high) = figure.rate.interval;
        let (difference, p) = match &figure.against_first {
            Some(d) => (format!("{:+.1}", 100.0 * d.difference), format!("{:.4}", d.p)),
            None => (String::new(), String::new()),
        };
        let goal = figure.goal.map(|goal| format!("{:.0} %", 100.0 * goal)).unwrap_or_default();
        let held = format!("{}/{}", figure.rate.held, figure.rate.of);
        let interval = format!("{:.1}–{:.1}", 100.0 * low, 100.0 * high);
        let line = format!(
            "{:<22} {language:<5} {:<18} {held:>9} {:>8} {interval:>15} {difference:>9} {p:>8} {goal:>6}",
            figure.criterion,
            figure.system,
            percent(figure.rate.rate)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn show(
    held: &[Held],
    systems: &[System],
    answers: &[Answer],
    count: usize,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for (one, answers) in held.iter().zip(answers.chunks(systems.len())).take(count) {
        let asked = one.turns.last().map_or("", |turn| turn.content.lines().next().unwrap_or(""));
        writeln!(out, "{}  {}", one.id, printable(asked))?;
        writeln!(out, "  reference: {}", printable(&one.reference))?;
        for answer in answers {
            writeln!(out, "  {}: {}", answer.system, printable(&answer.answer))?;
        }
    }
    Ok(())
}
