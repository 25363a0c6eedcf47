//! Settings: from the configuration file, the environment and the flags to checked values.
//!
//! [`load`] is one fallible step before any work. It lays the layers over each other (built-in, file,
//! environment, flags), remembers where each value came from, and refuses unknown keys and impossible
//! values with the place, the key and the mend. No other module reads the environment.

mod layers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::answer::{AnswerSettings, Limits, Mode};
use crate::engine::{EngineSettings, MAX_NO_REPEAT, Sampling};
use crate::kernels::Variant;
use crate::model::fetch::default_cache_dir;
use crate::model::weights::WeightForm;
use crate::quote::QuoteChoice;
use crate::retrieve::Gate;
use layers::Layers;

/// The settings file that is shipped, which holds every key with its built-in value.
pub const BUILT_IN: &str = include_str!("../../config/shishin.toml");

/// Where the settings file is looked for when no flag names one.
pub const DEFAULT_FILE: &str = "config/shishin.toml";

/// Why the settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{origin}: {reason}")]
    Syntax {
        /// The file.
        origin: String,
        /// Why, with line and column.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no key `{key}`{hint}; config/shishin.toml lists every key")]
    UnknownKey {
        /// Where it stands.
        origin: String,
        /// The key.
        key: String,
        /// Perhaps what was meant.
        hint: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{origin}: `{key}` {problem}")]
    Value {
        /// Where it stands.
        origin: String,
        /// The key.
        key: String,
        /// What is wrong, and the mend.
        problem: String,
    },
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The HTTP server.
    pub server: ServerSettings,
    /// Logs.
    pub log: LogSettings,
    /// The base model.
    pub model: ModelSettings,
    /// Adapters by name, with where they lie.
    pub adapters: Vec<(String, PathBuf)>,
    /// The engine.
    pub engine: EngineSettings,
    /// What it computes with.
    pub cpu: CpuSettings,
    /// The guideline index.
    pub index: IndexSettings,
    /// Answers.
    pub answer: AnswerSettings,
    /// The folder of prompt texts; `None` for the built-in ones.
    pub prompts: Option<PathBuf>,
    /// The folder of readers, each a folder of its embedder's name; `None` for none.
    pub readers: Option<PathBuf>,
    /// Runs of tuning over HTTP.
    pub tuning: TuningSettings,
    /// The settings file that a flag named.
    pub file: Option<PathBuf>,
}

/// Runs of tuning over HTTP.
#[derive(Debug, Clone)]
pub struct TuningSettings {
    /// The folder of files and jobs; `None` to take none.
    pub directory: Option<PathBuf>,
    /// The run that jobs are variants of.
    pub recipe: PathBuf,
    /// Largest file in bytes.
    pub file_limit: u64,
}

/// Threads and instructions.
#[derive(Debug, Clone, Copy)]
pub struct CpuSettings {
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// The kernels; `None` for the fastest that the processor has.
    pub kernels: Option<Variant>,
}

/// The HTTP server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest body in bytes.
    pub body_limit: usize,
    /// Time for running answers after a signal.
    pub drain: Duration,
    /// Time between comments on a quiet stream.
    pub keep_alive: Duration,
    /// The key to `/admin/*`; `None` lets the machine itself in only.
    pub admin_key: Option<Secret>,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// What is logged.
    pub filter: String,
}

/// The base model.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// Name or path.
    pub name: String,
    /// The form of its weights.
    pub form: WeightForm,
    /// A catalog in place of the built-in one.
    pub catalog: Option<PathBuf>,
    /// Where downloaded models are kept.
    pub cache: PathBuf,
    /// Never use the network.
    pub offline: bool,
    /// The hub's token (`HF_TOKEN`), for gated models. Never logged.
    pub hub_token: Option<Secret>,
}

/// A value that does not show itself in logs.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The guideline index.
#[derive(Debug, Clone)]
pub struct IndexSettings {
    /// The folder of guideline files.
    pub guidelines: PathBuf,
    /// The folder of built generations.
    pub directory: PathBuf,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
    /// Tokens a chunk repeats.
    pub overlap_tokens: usize,
    /// Name or path of the embedder; `None` for search by words alone.
    pub embedder: Option<String>,
    /// The operator's own list of terms that mean the same, besides the one that is shipped.
    pub synonyms: Option<PathBuf>,
    /// Generations kept besides the live one.
    pub keep_generations: usize,
    /// Time between looks for a new generation.
    pub refresh: Duration,
}

/// The sources of settings, as the program finds them; tests make their own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The settings file that a flag named.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// Flags: key, value, and how the flag is written.
    pub flags: Vec<(String, String, &'static str)>,
}

impl Sources {
    /// The environment of this process, and nothing else yet. Variables that are not UTF-8 are ignored.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_process() -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file: None, environment, flags: Vec::new() }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The settings file's keys, before they are checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    server: RawServer,
    log: RawLog,
    model: RawModel,
    adapters: std::collections::BTreeMap<String, PathBuf>,
    engine: RawEngine,
    index: RawIndex,
    answer: RawAnswer,
    sampling: RawSampling,
    tuning: RawTuning,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTuning {
    directory: PathBuf,
    recipe: PathBuf,
    file_limit_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    listen: String,
    body_limit_bytes: usize,
    drain_seconds: u64,
    keep_alive_seconds: u64,
    admin_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: LogFormat,
    filter: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: String,
    weights: WeightForm,
    catalog: PathBuf,
    cache: PathBuf,
    offline: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEngine {
    queue: usize,
    concurrent: usize,
    queue_tokens: usize,
    prefill_chunk: usize,
    context_tokens: usize,
    cache_mb: usize,
    prefix_cache: bool,
    draft_tokens: usize,
    threads: usize,
    kernels: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIndex {
    guidelines: PathBuf,
    directory: PathBuf,
    chunk_tokens: usize,
    overlap_tokens: usize,
    embedder: String,
    synonyms: PathBuf,
    passages: usize,
    min_coverage: f32,
    min_support: f32,
    hybrid_slack: f32,
    keep_generations: usize,
    refresh_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAnswer {
    default_mode: Mode,
    default_adapter: String,
    prompts: PathBuf,
    readers: PathBuf,
    quote_nearness: f32,
    quote_bearing: f32,
    quote_bar: f32,
    further_quote_bar: f32,
    reader_odds: f32,
    max_tokens: usize,
    max_tokens_limit: usize,
    max_messages: usize,
    max_message_chars: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSampling {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
    seed: u64,
}

/// The shortest admin key: what is shorter can be guessed.
const MIN_ADMIN_KEY: usize = 16;

/// The most passages that a request may ask for.
const MAX_PASSAGES: usize = 16;

/// Loads and checks the settings.
///
/// # Errors
/// The first thing that is wrong, with where it stands and the mend.
pub fn load(sources: &Sources) -> Result<Settings, ConfigError> {
    let mut layers = Layers::built_in(BUILT_IN)?;
    match &sources.file {
        Some(path) => layers.add_file(path)?,
        None if Path::new(DEFAULT_FILE).exists() => layers.add_file(Path::new(DEFAULT_FILE))?,
        None => {}
    }
    layers.add_environment(&sources.environment)?;
    for (key, value, flag) in &sources.flags {
        layers.add_text(key, value, flag)?;
    }
    let raw: Raw = layers.read()?;
    check(raw, &layers, sources)
}

fn check(mut raw: Raw, layers: &Layers, sources: &Sources) -> Result<Settings, ConfigError> {
    let within = |key: &str, value: u64, low: u64, high: u64| match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(layers.refuse(key, format!("is {value}; it must be from {low} to {high}"))),
    };
    for (key, value, low, high) in [
        ("server.body_limit_bytes", raw.server.body_limit_bytes as u64, 1 << 10, 1 << 28),
        ("tuning.file_limit_bytes", raw.tuning.file_limit_bytes, 1 << 10, 1 << 40),
        ("server.drain_seconds", raw.server.drain_seconds, 0, 3_600),
        ("server.keep_alive_seconds", raw.server.keep_alive_seconds, 1, 600),
        ("engine.queue", raw.engine.queue as u64, 1, 10_000),
        ("engine.concurrent", raw.engine.concurrent as u64, 1, 256),
        ("engine.queue_tokens", raw.engine.queue_tokens as u64, 1, 1 << 32),
        ("engine.prefill_chunk", raw.engine.prefill_chunk as u64, 1, 4_096),
        ("engine.cache_mb", raw.engine.cache_mb as u64, 1, 1 << 20),
        ("engine.draft_tokens", raw.engine.draft_tokens as u64, 0, 7),
        ("engine.threads", raw.engine.threads as u64, 0, 256),
        ("engine.context_tokens", raw.engine.context_tokens as u64, 256, 1 << 20),
        ("index.chunk_tokens", raw.index.chunk_tokens as u64, 32, 4_096),
        ("index.overlap_tokens", raw.index.overlap_tokens as u64, 0, raw.index.chunk_tokens as u64 / 2),
        ("index.passages", raw.index.passages as u64, 1, MAX_PASSAGES as u64),
        ("index.keep_generations", raw.index.keep_generations as u64, 0, 1_000),
        ("index.refresh_seconds", raw.index.refresh_seconds, 1, 86_400),
        ("answer.max_tokens_limit", raw.answer.max_tokens_limit as u64, 1, 1 << 20),
        ("answer.max_tokens", raw.answer.max_tokens as u64, 1, raw.answer.max_tokens_limit as u64),
        ("answer.max_messages", raw.answer.max_messages as u64, 1, 10_000),
        ("answer.max_message_chars", raw.answer.max_message_chars as u64, 1, 1 << 24),
    ] {
        within(key, value, low, high)?;
    }
    if raw.answer.max_tokens_limit >= raw.engine.context_tokens {
        return Err(layers.refuse(
            "answer.max_tokens_limit",
            format!("is {}; it must be below engine.context_tokens", raw.answer.max_tokens_limit),
        ));
    }
    let share = |key: &str, value: f32, low: f32, high: f32| match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(layers.refuse(key, format!("is {value}; it must be from {low} to {high}"))),
    };
    share("index.min_coverage", raw.index.min_coverage, 0.0, 1.0)?;
    // The most is a cosine of 1 and a tenth of a coverage of 1.
    share("index.min_support", raw.index.min_support, -1.0, 1.1)?;
    share("index.hybrid_slack", raw.index.hybrid_slack, 0.0, 1.0)?;
    share("answer.quote_nearness", raw.answer.quote_nearness, 0.0, 1000.0)?;
    share("answer.quote_bearing", raw.answer.quote_bearing, 0.0, 10.0)?;
    share("answer.quote_bar", raw.answer.quote_bar, 0.0, 100.0)?;
    share("answer.further_quote_bar", raw.answer.further_quote_bar, 0.0, 100.0)?;
    share("answer.reader_odds", raw.answer.reader_odds, 0.0, 10.0)?;
    share("sampling.temperature", raw.sampling.temperature, 0.0, 2.0)?;
    share("sampling.top_p", raw.sampling.top_p, f32::EPSILON, 1.0)?;
    share("sampling.repetition_penalty", raw.sampling.repetition_penalty, 0.5, 2.0)?;
    if raw.sampling.no_repeat_ngram_size > MAX_NO_REPEAT {
        let size = raw.sampling.no_repeat_ngram_size;
        let message = format!("is {size}; it must be from 0 (off) to {MAX_NO_REPEAT}");
        return Err(layers.refuse("sampling.no_repeat_ngram_size", message));
    }

    let listen = raw.server.listen.parse().map_err(|_| {
        layers.refuse(
            "server.listen",
            format!("is `{}`; write an address and a port, such as 127.0.0.1:8080", raw.server.listen),
        )
    })?;
    if !is_log_filter(&raw.log.filter) {
        return Err(layers.refuse(
            "log.filter",
            format!(
                "is `{}`, which is no filter; write a level, such as `info`, or `info,shishin::engine=debug`",
                raw.log.filter
            ),
        ));
    }
    let short = (1..MIN_ADMIN_KEY).contains(&raw.server.admin_key.trim().len());
    if short || raw.server.admin_key.trim() != raw.server.admin_key {
        let problem = format!(
            "must have at least {MIN_ADMIN_KEY} characters and no white space around it, or be empty"
        );
        return Err(layers.refuse("server.admin_key", problem));
    }
    for (key, path) in
        [("index.guidelines", &raw.index.guidelines), ("index.directory", &raw.index.directory)]
    {
        if path.as_os_str().is_empty() {
            return Err(layers.refuse(key, "is empty; name a folder".into()));
        }
    }
    if raw.model.name.trim().is_empty() {
        return Err(layers.refuse("model.name", "is empty; `shishin model list` shows the names".into()));
    }
    // What is shipped beside the program is not there for whoever has the program alone.
    raw.adapters.retain(|name, path| path.exists() || !layers.is_built_in(&format!("adapters.{name}")));
    if layers.is_built_in("answer.readers") && !raw.answer.readers.exists() {
        raw.answer.readers = PathBuf::new();
    }
    let missing = !raw.adapters.contains_key(&raw.answer.default_adapter);
    if missing && layers.is_built_in("answer.default_adapter") {
        raw.answer.default_adapter.clear();
        if layers.is_built_in("answer.default_mode") {
            raw.answer.default_mode = raw.answer.default_mode.without_adapter();
        }
    }
    for name in raw.adapters.keys() {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            let key = format!("adapters.{name}");
            return Err(layers.refuse(&key, "must be named with letters, digits, `-`, `_` or `.`".into()));
        }
    }
    let default_adapter = Some(raw.answer.default_adapter).filter(|name| !name.is_empty());
    if let Some(name) = default_adapter.as_ref().filter(|name| !raw.adapters.contains_key(*name)) {
        return Err(layers.refuse("answer.default_adapter", format!("is `{name}`, which [adapters] lacks")));
    }
    if raw.answer.default_mode.adapts() && default_adapter.is_none() {
        return Err(layers.refuse(
            "answer.default_mode",
            format!("is `{}`, which needs answer.default_adapter", raw.answer.default_mode),
        ));
    }
    let cache = match non_empty(raw.model.cache) {
        Some(cache) => cache,
        None => default_cache_dir(
            sources.variable("XDG_CACHE_HOME").map(AsRef::as_ref),
            sources.variable("HOME").map(AsRef::as_ref),
        )
        .ok_or_else(|| layers.refuse("model.cache", "is empty and there is no home folder; set it".into()))?,
    };
    let kernels = match raw.engine.kernels.as_str() {
        "auto" => None,
        name => Some(Variant::parse(name).ok_or_else(|| {
            let known = Variant::ALL.map(Variant::as_str).join(", ");
            layers.refuse("engine.kernels", format!("is `{name}`; it must be auto or one of {known}"))
        })?),
    };
    let gate = Gate { min_coverage: raw.index.min_coverage, min_support: raw.index.min_support };
    Ok(Settings {
        tuning: TuningSettings {
            directory: non_empty(raw.tuning.directory),
            recipe: raw.tuning.recipe,
            file_limit: raw.tuning.file_limit_bytes,
        },
        file: sources.file.clone(),
        server: ServerSettings {
            listen,
            body_limit: raw.server.body_limit_bytes,
            drain: Duration::from_secs(raw.server.drain_seconds),
            keep_alive: Duration::from_secs(raw.server.keep_alive_seconds),
            admin_key: Some(raw.server.admin_key).filter(|key| !key.is_empty()).map(Secret),
        },
        log: LogSettings { format: raw.log.format, filter: raw.log.filter },
        model: ModelSettings {
            name: raw.model.name,
            form: raw.model.weights,
            catalog: non_empty(raw.model.catalog),
            cache,
            offline: raw.model.offline,
            hub_token: sources.variable("HF_TOKEN").filter(|t| !t.is_empty()).map(|t| Secret(t.into())),
        },
        adapters: raw.adapters.into_iter().collect(),
        engine: EngineSettings {
            queue: raw.engine.queue,
            concurrent: raw.engine.concurrent,
            queue_tokens: raw.engine.queue_tokens,
            prefill_chunk: raw.engine.prefill_chunk,
            context: raw.engine.context_tokens,
            cache_bytes: raw.engine.cache_mb << 20,
            prefix_cache: raw.engine.prefix_cache,
            draft_tokens: raw.engine.draft_tokens,
        },
        cpu: CpuSettings { threads: raw.engine.threads, kernels },
        index: IndexSettings {
            guidelines: raw.index.guidelines,
            directory: raw.index.directory,
            chunk_tokens: raw.index.chunk_tokens,
            overlap_tokens: raw.index.overlap_tokens,
            embedder: Some(raw.index.embedder).filter(|name| !name.is_empty()),
            synonyms: non_empty(raw.index.synonyms),
            keep_generations: raw.index.keep_generations,
            refresh: Duration::from_secs(raw.index.refresh_seconds),
        },
        answer: AnswerSettings {
            default_mode: raw.answer.default_mode,
            default_adapter,
            passages: raw.index.passages,
            gate,
            hybrid_gate: gate.lowered(raw.index.hybrid_slack),
            quotes: QuoteChoice {
                nearness: raw.answer.quote_nearness,
                bearing: raw.answer.quote_bearing,
                bar: raw.answer.quote_bar,
                further_bar: raw.answer.further_quote_bar,
                reader_odds: raw.answer.reader_odds,
            },
            max_tokens: raw.answer.max_tokens,
            sampling: Sampling {
                temperature: raw.sampling.temperature,
                top_p: raw.sampling.top_p,
                top_k: raw.sampling.top_k,
                repetition_penalty: raw.sampling.repetition_penalty,
                no_repeat_ngram_size: raw.sampling.no_repeat_ngram_size,
                seed: raw.sampling.seed,
            },
            limits: Limits {
                messages: raw.answer.max_messages,
                message_chars: raw.answer.max_message_chars,
                max_tokens: raw.answer.max_tokens_limit,
                passages: MAX_PASSAGES,
            },
        },
        prompts: non_empty(raw.answer.prompts),
        readers: non_empty(raw.answer.readers),
    })
}

/// Whether every part of a filter ends in a level. The library would take any word for the name of a module,
/// and log nothing.
fn is_log_filter(filter: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |part: &str| {
        let level = part.rsplit('=').next().unwrap_or_default().trim().to_lowercase();
        levels.contains(&level.as_str())
    };
    filter.split(',').all(level) && filter.parse::<tracing_subscriber::filter::EnvFilter>().is_ok()
}

fn non_empty(path: PathBuf) -> Option<PathBuf> {
    Some(path).filter(|p| !p.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shishin.toml");
        std::fs::write(&path, file).unwrap();
        let mut environment: Vec<_> =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        environment.push(("HOME".into(), "/somewhere".into()));
        let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), "--flag")).collect();
        load(&Sources { file: Some(path), environment, flags }).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_file_is_complete_and_sound() {
        let settings = with(BUILT_IN, &[], &[]).unwrap();
        assert_eq!(settings.model.name, "qwen2.5-coder-0.5b");
        assert_eq!(settings.model.cache, Path::new("/somewhere/.cache/shishin"));
        assert_eq!(settings.answer.gate, Gate::default());
        // Library users start from the same engine.
        assert_eq!(format!("{:?}", settings.engine), format!("{:?}", EngineSettings::default()));
        // Every key is explained: a comment stands above each key or above the one before it.
        let mut explained = false;
        for line in BUILT_IN.lines() {
            match line.trim() {
                "" => explained = false,
                l if l.starts_with('#') => explained = true,
                l if l.starts_with('[') => explained = false,
                l => assert!(explained || l.starts_with("seed"), "no comment explains `{l}`"),
            }
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\n[engine]\nqueue = 5\n[adapters]\na = \"x\"\n";
        let settings = with(
            file,
            &[("SHISHIN_SERVER_LISTEN", "127.0.0.1:2"), ("SHISHIN_SAMPLING_TEMPERATURE", "0.5")],
            &[("server.listen", "127.0.0.1:3")],
        )
        .unwrap();
        assert_eq!(settings.server.listen.port(), 3);
        assert_eq!(settings.engine.queue, 5);
        assert_eq!(settings.answer.sampling.temperature, 0.5);
        let adapters: Vec<_> =
            settings.adapters.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
        let shipped = ["clinic", "radiology-summary", "referral-letter"];
        let shipped = shipped.map(|name| (name, Path::new("models/adapters").join(name)));
        assert_eq!(adapters[0], ("a", Path::new("x")));
        assert!(adapters[1..].iter().copied().eq(shipped.iter().map(|(name, path)| (*name, &**path))));
        assert_eq!(settings.readers.as_deref(), Some(Path::new("models/readers")));
        let none = with("[answer]\nreaders = \"\"\n", &[], &[]).unwrap();
        assert_eq!(none.readers, None);
    }

    #[test]
    fn what_is_wrong_is_named_with_place_key_and_mend() {
        for (file, environment, parts) in [
            (
                "[server]\nlisten_on = 1\n",
                &[][..],
                &["shishin.toml", "server.listen_on", "server.listen`?"][..],
            ),
            ("[sever]\nx = 1\n", &[], &["shishin.toml", "`sever`", "server`?"]),
            ("[engine]\nqueue = \"many\"\n", &[], &["shishin.toml", "engine.queue"]),
            ("[engine]\nqueue = 0\n", &[], &["shishin.toml", "engine.queue", "from 1 to 10000"]),
            ("[engine]\nkernels = \"sse\"\n", &[], &["engine.kernels", "`sse`", "auto", "portable"]),
            ("[engine]\ndraft_tokens = 8\n", &[], &["engine.draft_tokens", "from 0 to 7"]),
            ("[engine\n", &[], &["shishin.toml", "line 1"]),
            (
                "[answer]\ndefault_mode = \"hybrid\"\ndefault_adapter = \"\"\n",
                &[],
                &["answer.default_mode", "default_adapter"],
            ),
            ("[answer]\ndefault_mode = \"both\"\n", &[], &["answer.default_mode", "both"]),
            ("[answer]\ndefault_adapter = \"a\"\n", &[], &["answer.default_adapter", "[adapters]"]),
            ("[index]\nmin_coverage = 2.0\n", &[], &["index.min_coverage", "from 0 to 1"]),
            ("[index]\nmin_coverage = nan\n", &[], &["index.min_coverage"]),
            ("[log]\nfilter = \"blah blah\"\n", &[], &["log.filter", "info"]),
            ("[index]\ndirectory = \"\"\n", &[], &["index.directory", "empty"]),
            ("[adapters]\n\"../x\" = \"y\"\n", &[], &["adapters.../x"]),
            ("", &[("SHISHIN_SERVER_PORT", "1")], &["SHISHIN_SERVER_PORT", "no key"]),
            ("", &[("SHISHIN_ENGINE_QUEUE", "many")], &["SHISHIN_ENGINE_QUEUE", "engine.queue"]),
            ("", &[("SHISHIN_SERVER_LISTEN", "here")], &["SHISHIN_SERVER_LISTEN", "127.0.0.1:8080"]),
        ] {
            let message = with(file, environment, &[]).unwrap_err();
            for part in parts {
                assert!(message.contains(part), "`{message}` lacks `{part}`");
            }
        }
    }

    #[test]
    fn a_missing_file_is_an_error_when_a_flag_named_it() {
        let sources = Sources { file: Some("nowhere.toml".into()), ..Sources::default() };
        assert!(load(&sources).unwrap_err().to_string().contains("nowhere.toml"));
    }
}
