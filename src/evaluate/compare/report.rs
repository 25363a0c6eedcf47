//! What was found, for people: a table for the terminal, one for a README, and a page that needs nothing else to be read.

use std::fmt::Write as _;

use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

use super::Arm;
use super::figures::{Conflict, METRICS, Outcome};
use super::gate::Kept;
use crate::language::Language;

/// An arm as reports name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownArm {
    /// What it is called.
    pub name: String,
    /// What it draws on.
    pub mode: String,
    /// Its adapter's name and SHA-256.
    pub adapter: Option<(String, String)>,
    /// Whether it is told by instructions and examples how to answer.
    pub prompted: bool,
}

impl From<&Arm> for ShownArm {
    fn from(arm: &Arm) -> Self {
        let Arm { name, mode, adapter, prompted, settings: _ } = arm;
        Self { name: name.clone(), mode: mode.to_string(), adapter: adapter.clone(), prompted: *prompted }
    }
}

/// What was found of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// The model.
    pub model: String,
    /// Its checksum.
    pub model_sha256: String,
    /// The form its weights are kept in.
    pub weights: String,
    /// The guidelines that were indexed, as a SHA-256.
    #[serde(default)]
    pub guidelines_sha256: String,
    /// What else decides answers, as a SHA-256: how passages were searched and prompts worded.
    #[serde(default)]
    pub settings_sha256: String,
    /// Its arms.
    pub arms: Vec<ShownArm>,
    /// What was found.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All that was found. It holds no times: the same run makes the same report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// shishin's version.
    pub version: String,
    /// The suite.
    pub suite: String,
    /// Its checksum.
    pub suite_sha256: String,
    /// What it is to show.
    pub objective: String,
    /// Why it is not the whole suite; `None` where it is.
    #[serde(default)]
    pub only: Option<String>,
    /// Model by model.
    pub models: Vec<Compared>,
    /// What was promised and came of it.
    pub promises: Vec<Kept>,
}

/// How long an arm took on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// The model.
    pub model: String,
    /// The arm.
    pub arm: String,
    /// What makes model and arm what they are. Times of another are not kept.
    #[serde(default)]
    pub key: String,
    /// So many questions were asked, one at a time, nothing of them having been read before.
    pub questions: usize,
    /// Median time to the first piece of the answer, in milliseconds.
    pub first_ms: f64,
    /// Median time to its end, in milliseconds.
    pub total_ms: f64,
    /// Tokens of its prompt that it found in the cache, when all arms are asked one after another: the mean. Files of before do not say.
    #[serde(default)]
    pub cached_tokens: Option<f64>,
    /// The most memory that the process had meanwhile, in bytes, where the system tells.
    pub peak_bytes: Option<u64>,
    /// What a thousand such answers cost, where it is known what an hour of the machine does.
    pub thousand: Option<(f64, String)>,
}

/// The middle of a list; the mean of both middles where there are two.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = values.len() / 2;
    match (values.get(at), at.checked_sub(1).and_then(|before| values.get(before))) {
        (Some(high), Some(low)) if values.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

/// A p as it is read; resamples and their number set what can be told apart.
fn p_value(p: f64) -> String {
    if p < 0.001 { "<.001".to_owned() } else { format!("{p:.3}") }
}

fn percent(rate: f64) -> String {
    format!("{:.0} %", 100.0 * rate)
}

/// The rates as a table of Markdown: a row for each metric, a column for each arm, and the times where they were taken.
#[must_use]
pub fn markdown(report: &Report, timed: &[Timed]) -> String {
    let mut text = String::new();
    for one in &report.models {
        let questions = one.outcome.rows.len();
        let names: Vec<&str> = one.arms.iter().map(|arm| arm.name.as_str()).collect();
        let _ = writeln!(text, "{} ({questions} questions)\n", one.model);
        let _ = writeln!(text, "| | {} |", names.join(" | "));
        let _ = writeln!(text, "| --- |{}", " ---: |".repeat(names.len()));
        for metric in &METRICS {
            let cell = |arm: &&str| match one.outcome.figure(metric.id, arm, None) {
                Some(figure) => {
                    let (low, high) = figure.rate.interval;
                    let (low, high) = (100.0 * low, 100.0 * high);
                    format!("{} ({low:.0}–{high:.0})", percent(figure.rate.rate))
                }
                None => "–".to_owned(),
            };
            let cells: Vec<String> = names.iter().map(cell).collect();
            if cells.iter().any(|cell| cell != "–") {
                let less = if metric.lower { ", less is better" } else { "" };
                let _ = writeln!(text, "| {}{less} | {} |", metric.title, cells.join(" | "));
            }
        }
        let own = |arm: &str| timed.iter().find(|t| t.model == one.model && t.arm == arm);
        if names.iter().any(|arm| own(arm).is_some()) {
            let row = |title: &str, of: &dyn Fn(&Timed) -> String| {
                let cells = names.iter().map(|arm| own(arm).map_or("–".to_owned(), of));
                format!("| {title} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
            };
            text += &row("first piece of an answer", &|t| format!("{:.1} s", t.first_ms / 1e3));
            text += &row("whole answer", &|t| format!("{:.1} s", t.total_ms / 1e3));
            let cached =
                |t: &Timed| t.cached_tokens.map_or("–".to_owned(), |tokens| format!("{tokens:.0}"));
            text += &row("prompt tokens in the cache, asked in this order", &cached);
            let peak =
                |t: &Timed| t.peak_bytes.map_or("–".to_owned(), |b| format!("{:.1} GB", b as f64 / 1e9));
            text += &row("most memory meanwhile", &peak);
            if timed.iter().any(|t| t.model == one.model && t.thousand.is_some()) {
                let cost = |t: &Timed| {
                    t.thousand.as_ref().map_or("–".to_owned(), |(cost, of)| format!("{cost:.2} {of}"))
                };
                text += &row("a thousand answers, one at a time", &cost);
            }
        }
        for conflict in &one.outcome.conflicts {
            let _ = writeln!(text, "\n{}.", in_words(conflict));
        }
        text.push('\n');
    }
    text
}

/// What came of questions where memory and passages are at odds.
fn in_words(conflict: &Conflict) -> String {
    let Conflict { arm, remembers, of, passage, memory } = conflict;
    format!(
        "where {remembers} says what the other edition says ({of}): {arm} is right {passage} times, says the same {memory} times, neither {} times",
        of - passage - memory
    )
}

/// The figures for a terminal.
#[must_use]
pub fn table(report: &Report, timed: &[Timed]) -> String {
    let mut text = String::new();
    for one in &report.models {
        let outcome = &one.outcome;
        let (questions, last) = (outcome.rows.len(), one.arms.last().map_or("", |arm| arm.name.as_str()));
        let _ = writeln!(
            text,
            "{}, {questions} questions; rates with their 95 % intervals, and by how much {last} is above on the same questions",
            one.model
        );
        let _ = writeln!(
            text,
            "{:<21} {:<4} {:<14} {:>9} {:>8} {:>13} {:>13} {:>8}",
            "metric", "lang", "arm", "held", "rate", "95 %", last, "p"
        );
        for metric in &METRICS {
            for figure in outcome.figures.iter().filter(|figure| figure.metric == metric.id) {
                let language = figure.language.map_or("all", Language::tag);
                let (low, high) = figure.rate.interval;
                let contrast = outcome.contrast(metric.id, (last, &figure.arm), figure.language);
                let (difference, p) = match contrast.filter(|_| figure.arm != last) {
                    // Where only some of its questions are asked of both, that says how many.
                    Some(d) if d.of < figure.rate.of => {
                        (format!("{:+.1} of {}", 100.0 * d.difference, d.of), p_value(d.p))
                    }
                    Some(d) => (format!("{:+.1}", 100.0 * d.difference), p_value(d.p)),
                    None => Default::default(),
                };
                let line = format!(
                    "{:<21} {language:<4} {:<14} {:>9} {:>7.1}% {:>13} {difference:>13} {p:>8}",
                    metric.id,
                    figure.arm,
                    format!("{}/{}", figure.rate.held, figure.rate.of),
                    100.0 * figure.rate.rate,
                    format!("{:.1}–{:.1}", 100.0 * low, 100.0 * high),
                );
                let _ = writeln!(text, "{}", line.trim_end());
            }
        }
        for effort in &outcome.effort {
            let time = timed.iter().find(|t| t.model == one.model && t.arm == effort.arm);
            let time = time.map_or(String::new(), |t| {
                let cost = t.thousand.as_ref();
                let cost =
                    cost.map_or(String::new(), |(cost, of)| format!(", {cost:.2} {of} a thousand answers"));
                let cached = t
                    .cached_tokens
                    .map_or(String::new(), |tokens| format!("; {tokens:.0} of them in the cache"));
                format!(
                    "{cached}; first piece after {:.2} s, all after {:.2} s (median of {}){cost}",
                    t.first_ms / 1e3,
                    t.total_ms / 1e3,
                    t.questions
                )
            });
            let _ = writeln!(
                text,
                "{:<14} {:.0} answer and {:.0} prompt tokens{time}; {} not asked, {} cut off",
                effort.arm, effort.answer_tokens, effort.prompt_tokens, effort.not_asked, effort.cut_off
            );
        }
        let missed: Vec<String> = outcome
            .missed
            .iter()
            .filter(|missed| missed.answers > 0)
            .map(|missed| format!("{} {} ({})", missed.arm, missed.criterion, missed.answers))
            .collect();
        if !missed.is_empty() {
            let _ = writeln!(text, "style missed: {}", missed.join(", "));
        }
        for conflict in &outcome.conflicts {
            let _ = writeln!(text, "{}", in_words(conflict));
        }
        text.push('\n');
    }
    if let Some(only) = report.only.as_ref().filter(|_| !report.promises.is_empty()) {
        let _ = writeln!(text, "of a part of the suite: {only}");
    }
    for promise in &report.promises {
        let mark = match promise.kept {
            Some(true) => "kept",
            Some(false) => "MISSED",
            None => "not compared",
        };
        let _ = writeln!(text, "{mark:<12} {}: {}; found {}", promise.model, promise.promise, promise.found);
    }
    text
}

/// Why no page could be written.
#[derive(Debug, thiserror::Error)]
#[error("the report's page cannot be written: {0}")]
pub struct PageError(#[from] minijinja::Error);

/// The report as one page of HTML, which loads nothing.
///
/// # Errors
/// When the page's template fails, which is a fault of this program.
pub fn page(report: &Report, timed: &[Timed]) -> Result<String, PageError> {
    let mut environment = Environment::new();
    // The ending makes all that is put in safe to be read as HTML.
    environment.add_template("report.html", include_str!("report.html"))?;
    environment.add_filter("percent", |rate: f64| format!("{:.1}", 100.0 * rate));
    environment.add_filter("p", p_value);
    environment.add_filter("signed", |points: f64| format!("{:+.1}", 100.0 * points));
    environment.add_filter("seconds", |ms: f64| format!("{:.2} s", ms / 1e3));
    let metrics: Vec<_> = METRICS
        .iter()
        .map(|m| context! { id => m.id, title => m.title, lower => m.lower, of => m.counted })
        .collect();
    Ok(environment
        .get_template("report.html")?
        .render(context! { report => Serde(report), timed => Serde(timed), metrics })?)
}
