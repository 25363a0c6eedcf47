//! `shishin evaluate forgetting`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::super::signals::cancel_on_signal;
use super::super::{printable, setup};
use crate::config::Settings;
use crate::dataset::general;
use crate::engine::Engine;
use crate::evaluate::answers::{self, Answer, System};
use crate::evaluate::forgetting::{self, Figures};
use crate::evaluate::probes::{self, Kind, Probe, ProbeFigure};
use crate::model::fetch::Cancel;

/// Flags of `shishin evaluate forgetting`.
#[derive(Debug, Args)]
pub struct ForgettingArgs {
    /// General text, paragraphs with a blank line between them
    #[arg(value_name = "FILE", default_values = ["models/datasets/forgetting/en.txt", "models/datasets/forgetting/ja.txt"])]
    files: Vec<PathBuf>,
    /// The adapter: a PEFT folder or a GGUF-LoRA file
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// The base model, instead of the settings'
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Requests that both answer, each with a check of its own: whether the adapter still does what it is told, and refuses what it must
    #[arg(long, value_name = "FILE", default_value = "models/datasets/forgetting/probes.jsonl")]
    probes: PathBuf,
    /// Weigh texts only, and ask no probes
    #[arg(long, conflicts_with = "probes")]
    no_probes: bool,
    /// Show the answers to N probes that only one of both passes
    #[arg(long, value_name = "N", default_value_t = 0)]
    show: usize,
    /// Fail where the adapter needs more bits than the base by more than this share, in any language, or refuses less than the base
    #[arg(long, value_name = "SHARE")]
    budget: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    model_sha256: &'a str,
    adapter_sha256: &'a str,
    figures: &'a [Figures],
    probes: &'a [ProbeFigure],
    answers: &'a [Answer],
}

/// Tokens of an answer to a probe.
const PROBE_TOKENS: usize = 96;

pub(super) fn run(
    settings: &Settings,
    args: &ForgettingArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wording = setup::wording(settings)?;
    let probes = if args.no_probes { Vec::new() } else { probes::read(&args.probes)? };
    let held = probes::held(&probes, &wording)?;
    let mut texts = Vec::new();
    for file in &args.files {
        texts.extend(general::read(file)?);
    }
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let (located, model) = setup::base(settings, args.model.as_deref(), &cancel)?;
    let (_, adapter) = setup::adapter_of(&args.adapter, &located.name, &model)?;
    let figures = forgetting::measure(&model, &adapter, &texts, &wording, &|| cancel.is_cancelled())?;
    let model = Arc::new(model);
    let sha256 = adapter.fingerprint().to_owned();
    let systems = [
        System { name: "base".into(), adapter: None },
        System { name: "adapter".into(), adapter: Some(adapter) },
    ];
    let answers = if held.is_empty() {
        Vec::new()
    } else {
        let engine = Engine::start(&model, &settings.engine)?;
        let generation = setup::generation(settings, None, PROBE_TOKENS);
        let mut going = |_| !cancel.is_cancelled();
        let asked = (&held[..], &systems[..]);
        answers::answer(&model, &engine.handle(), asked, &probes::criteria(), &generation, &mut going)?
    };
    let probed = probes::figures(&probes, &systems, &answers);
    if args.json {
        let report = Report {
            model: &located.name,
            model_sha256: &model.fingerprint,
            adapter_sha256: &sha256,
            figures: &figures,
            probes: &probed,
            answers: &answers,
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{:<5} {:>6} {:>8} {:>12} {:>12} {:>9} {:>10} {:>12}",
            "lang", "texts", "tokens", "base b/byte", "with it", "change", "KL, nats", "same choice"
        )?;
        for one in &figures {
            writeln!(
                out,
                "{:<5} {:>6} {:>8} {:>12.4} {:>12.4} {:>+8.2}% {:>10.4} {:>11.1}%",
                one.language.map_or("all", |language| language.tag()),
                one.texts,
                one.tokens,
                one.base,
                one.adapter,
                100.0 * one.change,
                one.kl,
                100.0 * one.same_choice
            )?;
        }
        show(&probes, &answers, args.show, out)?;
        table(&probed, out)?;
    }
    if args.budget.is_some() {
        let less = |one: &&ProbeFigure| {
            one.kind == Kind::Refusal && one.language.is_none() && one.adapter.held < one.base.held
        };
        if let Some(one) = probed.iter().find(less) {
            let (adapter, base) = (one.adapter.held, one.base.held);
            writeln!(
                std::io::stderr(),
                "the adapter refuses {adapter} of {} probes, the base {base}",
                one.base.of
            )?;
            return Ok(ExitCode::FAILURE);
        }
    }
    let over = |budget: &f64| figures.iter().any(|one| one.change > *budget);
    if args.budget.as_ref().is_some_and(over) {
        writeln!(std::io::stderr(), "the adapter has forgotten more than the budget allows")?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn table(figures: &[ProbeFigure], out: &mut dyn Write) -> std::io::Result<()> {
    if figures.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "{:<12} {:<5} {:>10} {:>10} {:>12} {:>8}",
        "probes", "lang", "base", "with it", "difference", "p"
    )?;
    for one in figures {
        writeln!(
            out,
            "{:<12} {:<5} {:>10} {:>10} {:>+11.1} {:>9.4}",
            one.kind.as_str(),
            one.language.map_or("all", |language| language.tag()),
            format!("{}/{}", one.base.held, one.base.of),
            format!("{}/{}", one.adapter.held, one.adapter.of),
            100.0 * one.difference.difference,
            one.difference.p
        )?;
    }
    Ok(())
}

/// Answers to probes of which only one was passed.
fn show(probes: &[Probe], answers: &[Answer], count: usize, out: &mut dyn Write) -> std::io::Result<()> {
    let pairs = probes.iter().zip(answers.chunks_exact(2));
    let differs = |(probe, pair): &(&Probe, &[Answer])| {
        probes::passed(probe, &pair[0]) != probes::passed(probe, &pair[1])
    };
    for (probe, pair) in pairs.filter(differs).take(count) {
        writeln!(out, "{}  {}", probe.id, printable(&probe.question))?;
        for answer in pair {
            writeln!(out, "  {}: {}", answer.system, printable(&answer.answer))?;
        }
    }
    Ok(())
}
