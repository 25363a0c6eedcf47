//! `shishin bench`: how fast this machine runs a model, and how near that is to what it could.
//!
//! Prefill, decoding and batches are timed on the decoder; cached prefixes and drafts on the whole engine (`bench_engine`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::bench_embedder;
use super::bench_engine::{self, DraftTimes, PrefixTimes, Spread};
use super::quality::{self, Quality};
use super::{memory, setup};
use crate::config::Settings;
use crate::kernels::{Cpu, KvCache};
use crate::model::BaseModel;
use crate::model::fast::{FastDecoder, PackedAdapter, Piece, Workspace};
use crate::model::fetch::Cancel;
use crate::model::weights::WeightForm;

/// Prompt of the sequences that are timed while they decode.
const SHORT_PROMPT: usize = 16;
/// Rank of the adapters that are made for timing.
const RANK: usize = 16;

/// Flags of `shishin bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Time these alone
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FIGURE,…")]
    only: Vec<Figure>,
    /// Tokens of the prompt that is read
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prompt: u32,
    /// Tokens that are decoded
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    generate: u32,
    /// Sequences that decode together
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8, 16], value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=256))]
    sequences: Vec<u32>,
    /// Different adapters among them
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 4], value_name = "N,…", value_parser = clap::value_parser!(u32).range(0..=64))]
    adapters: Vec<u32>,
    /// How often each is timed; the median counts
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// With --only quality: a text to compare on, or a folder of Markdown files; may be repeated
    #[arg(long, value_name = "PATH", requires = "only")]
    text: Vec<PathBuf>,
    /// With --only quality: windows of 512 tokens of each text
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    windows: u32,
    /// Write the figures as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    Load,
    Prefill,
    Decode,
    Batch,
    Prefix,
    Draft,
    /// Against the reference decoder on 32-bit weights (4 bytes each); only when asked for
    Quality,
    /// The embedder of the settings, without a model; only when asked for, and alone
    Embedder,
}

/// One timed figure.
#[derive(Debug, Serialize)]
struct Timed {
    name: &'static str,
    sequences: usize,
    adapters: usize,
    tokens: usize,
    tokens_per_s: Spread,
    /// Speed ÷ that without adapters in the same round.
    #[serde(skip_serializing_if = "Option::is_none")]
    against_none: Option<Spread>,
    /// Of what memory bandwidth and multiply-add rate, measured just before, would allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_limit: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Loading {
    /// From opening the file to the first token that could be run.
    load_s: Spread,
    /// Of the file, or of all files of a folder.
    file_bytes: u64,
    weight_bytes: usize,
    /// Of the process after loading, before any cache; where the system tells.
    resident_bytes: Option<u64>,
}

/// What the machine can do, measured on the spot.
#[derive(Debug, Clone, Copy, Serialize)]
struct Limits {
    /// All threads reading memory that no cache holds.
    read_bytes_per_s: f64,
    /// The matrix kernel on data within the caches.
    multiply_adds_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    model: String,
    sha256: String,
    kernels: &'static str,
    threads: usize,
    limits: Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    loading: Option<Loading>,
    results: Vec<Timed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<PrefixTimes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft: Option<DraftTimes>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quality: Vec<Quality>,
}

/// Times what was asked for and prints a table.
///
/// # Errors
/// When the model cannot be had, does not have room for the prompt, or the JSON file cannot be written.
pub fn run(settings: &Settings, args: &BenchArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if args.only.contains(&Figure::Embedder) {
        anyhow::ensure!(
            args.only.len() == 1,
            "--only embedder measures no model; ask for other figures apart"
        );
        return bench_embedder::run(settings, args.repeat as usize, args.json.as_deref(), out);
    }
    let wants = |figure| args.only.is_empty() || args.only.contains(&figure);
    let located = setup::locate(settings, &settings.model.name, &Cancel::default())?;
    let load = || -> anyhow::Result<(f64, BaseModel<FastDecoder>)> {
        let cpu = setup::cpu(settings.cpu)?;
        let begun = Instant::now();
        let model = BaseModel::load_fast(&located.path, settings.model.form, located.sha256.as_deref(), cpu)?;
        Ok((begun.elapsed().as_secs_f64(), model))
    };
    let mut seconds = Vec::new();
    let mut model = None;
    for _ in 0..if wants(Figure::Load) { args.repeat.max(1) } else { 1 } {
        // The model before goes first: two would not be what is measured.
        drop(model.take());
        let (took, loaded) = load()?;
        seconds.push(took);
        model = Some(loaded);
    }
    let model = Arc::new(model.context("no model")?);
    let longest = args.prompt.max(args.generate + SHORT_PROMPT as u32) as usize;
    anyhow::ensure!(
        longest < model.config.context,
        "{longest} tokens do not fit the model's context of {}; ask for fewer with --prompt and --generate",
        model.config.context
    );
    let loading = wants(Figure::Load).then(|| Loading {
        load_s: Spread::of(seconds),
        file_bytes: file_bytes(&located.path),
        weight_bytes: model.decoder.weight_bytes(),
        resident_bytes: memory::resident_bytes(),
    });
    let cpu = model.decoder.cpu();
    let limits =
        Limits { read_bytes_per_s: cpu.measure_reads(), multiply_adds_per_s: cpu.measure_multiply_adds() };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: located.name.clone(),
        sha256: model.fingerprint.clone(),
        kernels: cpu.variant().as_str(),
        threads: cpu.threads(),
        limits,
        loading,
        results: Vec::new(),
        prefix: None,
        draft: None,
        quality: Vec::new(),
    };
    let adapters: Vec<PackedAdapter> = (0..args.adapters.iter().copied().max().unwrap_or(0))
        .map(|seed| PackedAdapter::synthetic(&model.decoder, RANK, u64::from(seed)))
        .collect::<Result<_, _>>()?;
    let mut bench = Bench {
        model: &model,
        args,
        limits,
        adapters: &adapters,
        chunk: settings.engine.chunk_alone(),
        workspace: Workspace::default(),
    };
    if wants(Figure::Prefill) {
        report.results.extend(bench.prefills()?);
    }
    if wants(Figure::Decode) {
        report.results.extend(bench.decodes("decode", 1)?);
    }
    if wants(Figure::Batch) {
        for sequences in &args.sequences {
            report.results.extend(bench.decodes("batch", *sequences as usize)?);
        }
    }
    if model.template.is_some() {
        if wants(Figure::Prefix) {
            report.prefix = Some(bench_engine::prefix_times(&model, &settings.engine, args.repeat)?);
        }
        if wants(Figure::Draft) {
            report.draft = Some(bench_engine::draft_times(&model, &settings.engine, args.repeat)?);
        }
    }
    if args.only.contains(&Figure::Quality) {
        anyhow::ensure!(!args.text.is_empty(), "--only quality needs a text to compare on: --text PATH");
        let reference = BaseModel::load(&located.path, WeightForm::F32, located.sha256.as_deref())?;
        report.quality = quality::compare(&model, &reference, &args.text, args.windows as usize)?;
    }
    print(&report, out)?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the decoder's timings share.
struct Bench<'a> {
    model: &'a BaseModel<FastDecoder>,
    args: &'a BenchArgs,
    limits: Limits,
    adapters: &'a [PackedAdapter],
    /// Prompt tokens of a pass, as the engine takes them while nothing else runs.
    chunk: usize,
    workspace: Workspace,
}

/// Tokens that no cache has seen in this order.
fn tokens(model: &BaseModel<FastDecoder>, count: usize, seed: usize) -> Vec<u32> {
    let vocabulary = model.tokenizer.vocabulary_size().max(1);
    (0..count).map(|i| ((i * 7_919 + seed * 104_729 + 1_000) % vocabulary) as u32).collect()
}

impl Bench<'_> {
    fn cache(&self, positions: usize, sequences: usize) -> (KvCache, Vec<Vec<u32>>) {
        let pages = positions.div_ceil(KvCache::PAGE);
        let tables = (0..sequences).map(|s| (0..pages).map(|p| (s * pages + p) as u32).collect()).collect();
        (KvCache::new(self.model.decoder.cache_shape(), pages * sequences), tables)
    }

    /// Numbers of adapters that `sequences` can have among them.
    fn counts(&self, sequences: usize) -> Vec<usize> {
        self.args.adapters.iter().map(|n| *n as usize).filter(|n| *n <= sequences).collect()
    }

    /// Times every number of adapters in each round, so that a machine whose speed drifts is fair to all. The
    /// first round makes buffers and wakes threads, and does not count.
    fn rounds(
        &mut self,
        counts: &[usize],
        mut rate: impl FnMut(&mut Self, usize, usize) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<(usize, Spread, Option<Spread>)>> {
        let mut rates = vec![Vec::new(); counts.len()];
        for round in 0..=self.args.repeat as usize {
            for (count, rates) in counts.iter().zip(&mut rates) {
                let rate = rate(self, *count, round)?;
                if round > 0 {
                    rates.push(rate);
                }
            }
        }
        let none = counts.iter().position(|n| *n == 0).map(|at| rates[at].clone());
        let timed = counts.iter().zip(rates).map(|(count, rates)| {
            let none = none.as_ref().filter(|_| *count > 0);
            let ratio = none.map(|none| Spread::of(rates.iter().zip(none).map(|(r, n)| r / n).collect()));
            (*count, Spread::of(rates), ratio)
        });
        Ok(timed.collect())
    }

    fn prefills(&mut self) -> anyhow::Result<Vec<Timed>> {
        let count = self.args.prompt as usize;
        let timed = self.rounds(&self.counts(1), Self::prefill)?;
        let (block, head) = self.model.decoder.multiply_adds();
        let work = block as f64 + head as f64 / count as f64;
        let result = |(adapters, tokens_per_s, against_none): (usize, Spread, Option<Spread>)| Timed {
            name: "prefill",
            sequences: 1,
            adapters,
            tokens: count,
            share_of_limit: Some(tokens_per_s.median * work / self.limits.multiply_adds_per_s),
            tokens_per_s,
            against_none,
        };
        Ok(timed.into_iter().map(result).collect())
    }

    /// Tokens per second of one prompt.
    fn prefill(&mut self, adapters: usize, round: usize) -> anyhow::Result<f64> {
        let count = self.args.prompt as usize;
        let (mut cache, tables) = self.cache(count, 1);
        let adapter = if adapters == 0 { None } else { self.adapters.first() };
        let tokens = tokens(self.model, count, round);
        let begun = Instant::now();
        for start in (0..count).step_by(self.chunk) {
            let end = count.min(start + self.chunk);
            let piece = Piece {
                tokens: &tokens[start..end],
                position: start,
                pages: &tables[0],
                adapter,
                before: 0,
                logits: usize::from(end == count),
            };
            self.model.decoder.forward(&[piece], &mut cache, &mut self.workspace, &|| false)?;
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }

    fn decodes(&mut self, name: &'static str, sequences: usize) -> anyhow::Result<Vec<Timed>> {
        let counts = self.counts(sequences);
        let timed =
            self.rounds(&counts, |bench, adapters, round| bench.decode(sequences, adapters, round))?;
        let decoder = &self.model.decoder;
        let (block, head) = decoder.multiply_adds();
        let read = decoder.step_bytes() as f64 / self.limits.read_bytes_per_s;
        let compute = (block + head) as f64 * sequences as f64 / self.limits.multiply_adds_per_s;
        let result = |(adapters, tokens_per_s, against_none): (usize, Spread, Option<Spread>)| Timed {
            name,
            sequences,
            adapters,
            tokens: self.args.generate as usize * sequences,
            share_of_limit: Some(tokens_per_s.median / (sequences as f64 / read.max(compute))),
            tokens_per_s,
            against_none,
        };
        Ok(timed.into_iter().map(result).collect())
    }

    /// Tokens per second of sequences that decode together.
    fn decode(&mut self, sequences: usize, adapters: usize, round: usize) -> anyhow::Result<f64> {
        let steps = self.args.generate as usize;
        let (mut cache, tables) = self.cache(SHORT_PROMPT + steps + 1, sequences);
        let adapter =
            |s: usize| if adapters == 0 { None } else { self.adapters.get(s * adapters / sequences) };
        let decoder = &self.model.decoder;
        let mut newest: Vec<u32> = Vec::with_capacity(sequences);
        for (s, table) in tables.iter().enumerate() {
            let prompt = tokens(self.model, SHORT_PROMPT, round * sequences + s);
            let piece = Piece {
                tokens: &prompt,
                position: 0,
                pages: table,
                adapter: adapter(s),
                before: 0,
                logits: 1,
            };
            let logits = decoder.forward(&[piece], &mut cache, &mut self.workspace, &|| false)?;
            newest.push(greedy(decoder.cpu(), logits)?);
        }
        let begun = Instant::now();
        for step in 0..steps {
            let pieces: Vec<Piece<'_>> = newest
                .iter()
                .enumerate()
                .map(|(s, token)| Piece {
                    tokens: std::slice::from_ref(token),
                    position: SHORT_PROMPT + step,
                    pages: &tables[s],
                    adapter: adapter(s),
                    before: 0,
                    logits: 1,
                })
                .collect();
            let logits = decoder.forward(&pieces, &mut cache, &mut self.workspace, &|| false)?;
            let next: Vec<u32> = logits
                .chunks_exact(self.model.config.vocab)
                .map(|row| greedy(decoder.cpu(), row))
                .collect::<anyhow::Result<_>>()?;
            newest = next;
        }
        Ok((steps * sequences) as f64 / begun.elapsed().as_secs_f64())
    }
}

fn greedy(cpu: &Cpu, logits: &[f32]) -> anyhow::Result<u32> {
    let best = cpu.argmax(logits).context("the logits are not finite: the weights are broken")?;
    Ok(u32::try_from(best)?)
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let Report { model, kernels, threads, limits, .. } = report;
    writeln!(out, "{model} on {threads} threads, {kernels}")?;
    writeln!(
        out,
        "limits measured here: {:.1} GB/s of reads, {:.0} G multiply-adds/s",
        limits.read_bytes_per_s / 1e9,
        limits.multiply_adds_per_s / 1e9
    )?;
    if let Some(loading) = &report.loading {
        let resident =
            loading.resident_bytes.map_or("unknown".into(), |b| format!("{:.1} MB", b as f64 / 1e6));
        writeln!(
            out,
            "load {:.3} s; file {:.1} MB, packed weights {:.1} MB, resident {resident}",
            loading.load_s.median,
            loading.file_bytes as f64 / 1e6,
            loading.weight_bytes as f64 / 1e6,
        )?;
    }
    if !report.results.is_empty() {
        writeln!(
            out,
            "\n{:<8} {:>9} {:>8} {:>7} {:>10} {:>21} {:>9} {:>12}",
            "figure", "sequences", "adapters", "tokens", "tok/s", "min–max", "of limit", "÷ without"
        )?;
    }
    for timed in &report.results {
        let Spread { min, median, max } = timed.tokens_per_s;
        let share = timed.share_of_limit.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
        let ratio = timed.against_none.as_ref().map_or(String::new(), |r| format!("{:.3}", r.median));
        writeln!(
            out,
            "{:<8} {:>9} {:>8} {:>7} {median:>10.1} {:>21} {share:>9} {ratio:>12}",
            timed.name,
            timed.sequences,
            timed.adapters,
            timed.tokens,
            format!("{min:.1}–{max:.1}"),
        )?;
    }
    for quality in &report.quality {
        writeln!(out, "{quality}")?;
    }
    if let Some(prefix) = &report.prefix {
        writeln!(
            out,
            "\nfirst token of a prompt that is new: {:.1} ms, of one that begins alike: {:.1} ms ({} of {} tokens cached): {:.1} times less",
            prefix.miss_ms.median,
            prefix.hit_ms.median,
            prefix.cached_tokens,
            prefix.prompt_tokens,
            prefix.ratio.median
        )?;
    }
    if let Some(draft) = &report.draft {
        writeln!(
            out,
            "an answer that quotes: {:.1} tok/s, with drafts {:.1} ({} of {} right, {} tokens in all): {:.2} times; same text: {}",
            draft.off_tokens_per_s.median,
            draft.on_tokens_per_s.median,
            draft.accepted_tokens,
            draft.drafted_tokens,
            draft.completion_tokens,
            draft.ratio.median,
            if draft.same_tokens { "yes" } else { "NO" }
        )?;
    }
    Ok(())
}

fn file_bytes(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    match std::fs::read_dir(path) {
        Ok(folder) => folder.filter_map(Result::ok).map(|entry| size(&entry.path())).sum(),
        Err(_) => size(path),
    }
}
