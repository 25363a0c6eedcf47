//! `shishin dataset stats`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::super::tune::Prepared;
use super::super::{memory, printable};
use crate::config::Settings;
use crate::dataset::stats::{Counted, Prices, Spread, Stats};
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::tune::examples::Example;
use crate::tune::probe::Probe;
use crate::tune::settings::TuneSettings;

/// Flags of `shishin dataset stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The files, instead of those that the run learns from
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The run whose base, turn format and bounds count
    #[arg(long, value_name = "FILE", default_value = "config/tune.toml")]
    run: PathBuf,
    /// Do a step twice, and say how long the whole run would take and how much memory
    #[arg(long)]
    probe: bool,
    /// What tuning costs elsewhere, and an hour of this machine
    #[arg(long, value_name = "FILE", default_value = "config/prices.toml")]
    prices: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All that was counted.
#[derive(Serialize)]
struct Report {
    base: String,
    stats: Stats,
    /// How often each example is learnt, and in how many steps.
    epochs: f64,
    steps: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Probe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_bytes: Option<u64>,
    costs: Vec<Cost>,
}

#[derive(Serialize)]
struct Cost {
    at: String,
    cost: f64,
    currency: String,
    as_of: Option<String>,
}

pub(super) fn run(settings: &Settings, args: &StatsArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut tune = TuneSettings::read(&args.run)?;
    let prices = read_prices(&args.prices)?;
    if !args.files.is_empty() {
        (tune.data.train, tune.data.valid) = (args.files.clone(), Vec::new());
    }
    // What is too long is counted here, not refused.
    let most = std::mem::replace(&mut tune.data.max_tokens, usize::MAX);
    let prepared = Prepared::load(settings, &tune, &Cancel::default())?;
    let counted: Vec<Counted> = prepared.train.iter().map(|example| counted(&prepared, example)).collect();
    let stats = Stats::of(&counted, most);
    let parameters = args.probe.then(|| prepared.parameters(&tune)).transpose()?;
    let run = prepared.run(&tune, Path::new(""));
    let probe = parameters.map(|parameters| run.probe(&parameters));
    let (epochs, steps) = (run.passes(), run.steps());
    let mut costs: Vec<Cost> = prices
        .price
        .iter()
        .map(|price| Cost {
            at: format!("{} {}", price.platform, price.model),
            cost: price.of(stats.tokens.sum, epochs),
            currency: price.currency.clone(),
            as_of: Some(price.as_of.clone()),
        })
        .collect();
    if let (Some(probe), Some(own)) = (&probe, &prices.own_hour) {
        let (at, cost) = ("this machine".to_owned(), own.cost * probe.seconds / 3600.0);
        costs.insert(0, Cost { at, cost, currency: own.currency.clone(), as_of: None });
    }
    let peak_bytes = if args.probe { memory::peak_bytes() } else { None };
    let report = Report { base: prepared.name.clone(), stats, epochs, steps, probe, peak_bytes, costs };
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The prices of a file; none where there is no file.
pub(in crate::cli) fn read_prices(path: &Path) -> anyhow::Result<Prices> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Prices::default()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn counted(prepared: &Prepared, example: &Example) -> Counted {
    let learnt: Vec<u32> =
        example.tokens.iter().zip(&example.learnt).filter(|(_, learnt)| **learnt).map(|(t, _)| *t).collect();
    let text: String = learnt.iter().map(|token| prepared.model.tokenizer.display(*token)).collect();
    // Each stretch that is learnt ends a turn.
    let answers = example.learnt.windows(2).filter(|pair| !pair[0] && pair[1]).count();
    Counted { language: Language::detect(&text), answers, tokens: example.tokens.len(), learnt: learnt.len() }
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let stats = &report.stats;
    let languages: Vec<String> =
        stats.languages.iter().map(|(language, count)| format!("{count} {language}")).collect();
    writeln!(out, "{} examples ({}), tokens of {}", stats.examples, languages.join(", "), report.base)?;
    let row = |name: &str, spread: Spread| {
        let Spread { sum, min, p50, p90, max } = spread;
        format!("{name:<22} {sum:>10} {min:>8} {p50:>8} {p90:>8} {max:>8}")
    };
    writeln!(out, "{:<22} {:>10} {:>8} {:>8} {:>8} {:>8}", "", "sum", "least", "median", "90 %", "most")?;
    writeln!(out, "{}", row("tokens of an example", stats.tokens))?;
    writeln!(out, "{}", row("of them learnt", stats.learnt))?;
    writeln!(out, "{}", row("answers learnt", stats.answers))?;
    let widest = stats.histogram.iter().map(|(_, count)| *count).max().unwrap_or(1);
    for (bound, count) in &stats.histogram {
        let bar = "█".repeat((count * 40).div_ceil(widest));
        writeln!(out, "  up to {bound:>6} tokens {count:>7} {bar}")?;
    }
    let (most, longer, lost) = stats.beyond;
    if longer > 0 {
        writeln!(
            out,
            "{longer} examples have more than data.max_tokens = {most} and would be refused; {lost} tokens stand beyond it"
        )?;
    }
    if let Some(probe) = &report.probe {
        writeln!(
            out,
            "a step takes {:.1} s; the run of {} would take {} here",
            probe.step_seconds,
            length(report),
            duration(probe.seconds)
        )?;
        if let Some(peak) = report.peak_bytes {
            let all = peak + probe.prefix_bytes;
            writeln!(
                out,
                "memory: {:.1} GB, of which what the base has read {:.1} GB",
                gb(all),
                gb(probe.prefix_bytes)
            )?;
        }
    }
    for cost in &report.costs {
        let as_of = cost.as_of.as_deref().map(|day| format!(", price of {day}")).unwrap_or_default();
        writeln!(
            out,
            "{}: {:.2} {} for {}{as_of}",
            printable(&cost.at),
            cost.cost,
            printable(&cost.currency),
            length(report)
        )?;
    }
    Ok(())
}

/// How long the run is: in epochs where they are whole, else in steps.
fn length(report: &Report) -> String {
    match (report.epochs, report.steps) {
        (1.0, _) => "1 epoch".into(),
        (epochs, _) if epochs.fract() == 0.0 => format!("{epochs:.0} epochs"),
        (_, 1) => "1 step".into(),
        (_, steps) => format!("{steps} steps"),
    }
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
