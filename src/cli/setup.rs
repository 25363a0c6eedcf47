//! Putting the parts of an answer together, for `serve` and `ask`: model, adapters, index, engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use candle_core::Device;

use super::fetch_options;
use super::progress::DownloadBar;
use crate::analysis::synonyms::Synonyms;
use crate::answer::{Answerer, AnswererParts};
use crate::config::{CpuSettings, IndexSettings, Settings};
use crate::engine::Engine;
use crate::evaluate::answers::Generation;
use crate::ingest::chunk::estimate_tokens;
use crate::ingest::indexer::LoadEmbedder;
use crate::ingest::{BuildOptions, Indexer};
use crate::kernels::{Cpu, Variant};
use crate::model::BaseModel;
use crate::model::catalog::{Catalog, Format, Kind, ModelEntry};
use crate::model::config::ModelConfig;
use crate::model::embed::{self, EmbedError};
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::fetch::{self, Cancel};
use crate::model::gguf::Gguf;
use crate::model::lora::Adapter;
use crate::model::tokenizer::Tokenizer;
use crate::prompt::Wording;
use crate::retrieve::{GuidelineIndex, Meaning, SearchTools};

/// A running engine and what asks it.
pub struct Running {
    /// Answers questions.
    pub answerer: Arc<Answerer>,
    /// Builds the index anew.
    pub indexer: Indexer,
    /// To be closed and joined at the end.
    pub engine: Engine,
}

/// The catalog that the settings name.
///
/// # Errors
/// When it cannot be read or is unsound.
pub fn catalog(settings: &Settings) -> anyhow::Result<Catalog> {
    Ok(match &settings.model.catalog {
        Some(path) => Catalog::load(path)?,
        None => Catalog::builtin()?,
    })
}

/// Where a model lies, and the checksum that its file must have where the catalog knows one.
pub struct Located {
    /// What provenance calls it.
    pub name: String,
    /// The file or folder.
    pub path: PathBuf,
    /// SHA-256 of the file, for models of one file.
    pub sha256: Option<String>,
}

/// The path, if a model is given by one and not by its name: it has a separator or the ending of a model
/// file, or there is such a folder.
pub fn as_path(model: &str) -> Option<PathBuf> {
    let path = PathBuf::from(model);
    let is_path =
        model.contains(['/', '\\']) || path.extension().is_some_and(|e| e == "gguf") || path.is_dir();
    is_path.then_some(path)
}

/// Finds a model by path or by name; a named one is fetched if it is not here.
///
/// # Errors
/// When there is neither such a path nor such a name, or fetching fails.
pub fn locate(settings: &Settings, name: &str, cancel: &Cancel) -> anyhow::Result<Located> {
    if let Some(path) = as_path(name) {
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let name = file.strip_suffix(".gguf").unwrap_or(&file).to_owned();
        return Ok(Located { name, path, sha256: None });
    }
    let catalog = catalog(settings)?;
    let entry = catalog.get(name)?;
    anyhow::ensure!(
        entry.kind == Kind::Llm,
        "the model `{name}` makes embeddings and cannot answer; `shishin model list` shows the others"
    );
    let path = fetched(settings, entry, cancel)?;
    let sha256 = match (entry.format, entry.files.as_slice()) {
        (Format::Gguf, [file]) => Some(file.sha256.clone()),
        _ => None,
    };
    Ok(Located { name: name.to_owned(), path, sha256 })
}

/// The base model that a command names, or the settings' own, ready to answer.
///
/// # Errors
/// When it is not found, or cannot be loaded.
pub fn base(
    settings: &Settings,
    model: Option<&str>,
    cancel: &Cancel,
) -> anyhow::Result<(Located, BaseModel<FastDecoder>)> {
    let located = locate(settings, model.unwrap_or(&settings.model.name), cancel)?;
    let cpu = cpu(settings.cpu)?;
    let model = BaseModel::load_fast(&located.path, settings.model.form, located.sha256.as_deref(), cpu)?;
    Ok((located, model))
}

/// A model's file or folder; fetched if it is not here.
fn fetched(settings: &Settings, entry: &ModelEntry, cancel: &Cancel) -> anyhow::Result<PathBuf> {
    let mut options = fetch_options(settings);
    options.cancel = cancel.clone();
    Ok(fetch::ensure(entry, &options, &mut DownloadBar::stderr())?)
}

/// Where an embedder lies that is given by path or by name; a named one is fetched if it is not here.
///
/// # Errors
/// When there is no such embedder, or it cannot be fetched.
pub fn embedder(settings: &Settings, name: &str, cancel: &Cancel) -> anyhow::Result<PathBuf> {
    if let Some(path) = as_path(name) {
        return Ok(path);
    }
    let catalog = catalog(settings)?;
    let entry = catalog.get(name)?;
    anyhow::ensure!(
        entry.kind == Kind::Embedder,
        "the model `{name}` answers and makes no embeddings; `shishin model list` shows the others"
    );
    fetched(settings, entry, cancel)
}

/// The folder of an embedder's reader, if the settings name readers and there is one for it: embedders that are given by path have none.
///
/// # Errors
/// When there is no such folder of readers.
pub fn reader(settings: &Settings, embedder: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some(readers) = &settings.readers else { return Ok(None) };
    anyhow::ensure!(
        readers.is_dir(),
        "answer.readers: there is no folder {}; name the folder that holds a folder for each embedder, or nothing",
        readers.display()
    );
    let folder = readers.join(embedder);
    if as_path(embedder).is_none() && folder.join(embed::adapter::READER).is_file() {
        return Ok(Some(folder));
    }
    tracing::warn!(embedder, readers = %readers.display(), "there is no reader for this embedder; it goes by its vectors");
    Ok(None)
}

/// Loads the embedder that the settings name, and threads of its own; none where they name none. It reads no reader: what only searches needs none.
///
/// # Errors
/// When there is no such embedder, or it cannot be fetched or loaded.
pub fn meaning(settings: &Settings, cancel: &Cancel) -> anyhow::Result<Option<Meaning>> {
    let Some(name) = &settings.index.embedder else { return Ok(None) };
    load_meaning(settings, name, None, cancel).map(Some)
}

/// The same with the embedder's reader, if the settings name readers and there is one: for what answers.
///
/// # Errors
/// As [`meaning`], and when there is no such folder of readers, or the reader does not fit.
pub fn meaning_and_reader(settings: &Settings, cancel: &Cancel) -> anyhow::Result<Option<Meaning>> {
    let Some(name) = &settings.index.embedder else { return Ok(None) };
    let reader = reader(settings, name)?;
    load_meaning(settings, name, reader.as_deref(), cancel).map(Some)
}

fn load_meaning(
    settings: &Settings,
    name: &str,
    reader: Option<&Path>,
    cancel: &Cancel,
) -> anyhow::Result<Meaning> {
    let path = embedder(settings, name, cancel).context("index.embedder")?;
    let cpu = Arc::new(cpu(settings.cpu)?);
    let embedder = embed::load_with(name, &path, reader, Arc::clone(&cpu)).context("index.embedder")?;
    Ok(Meaning { embedder: Arc::from(embedder), path, cpu })
}

/// What a search works with, loaded.
///
/// # Errors
/// When the embedder or the synonyms cannot be had.
pub fn search_tools(settings: &Settings, meaning: Option<Meaning>) -> anyhow::Result<SearchTools> {
    let synonyms = match &settings.index.synonyms {
        Some(path) => Synonyms::with_file(path).context("index.synonyms")?,
        None => Synonyms::built_in()?,
    };
    Ok(SearchTools { meaning, synonyms: Arc::new(synonyms), ..SearchTools::default() })
}

/// Counts tokens as the model that will read the passages does.
///
/// # Errors
/// When its tokenizer cannot be had.
pub fn token_counter(settings: &Settings, cancel: &Cancel) -> anyhow::Result<CountTokens> {
    let located = locate(settings, &settings.model.name, cancel)?;
    let tokenizer = if located.path.is_dir() {
        Tokenizer::from_hf(&located.path)
    } else {
        Tokenizer::from_gguf(Gguf::open(&located.path)?.header())
    };
    let tokenizer = tokenizer.with_context(|| format!("the tokenizer of {}", located.name))?;
    Ok(Arc::new(move |text| count(&tokenizer, text)))
}

/// Counts the tokens of a text.
pub type CountTokens = Arc<dyn Fn(&str) -> usize + Send + Sync>;

fn count(tokenizer: &Tokenizer, text: &str) -> usize {
    tokenizer.encode_content(text).map_or_else(|_| estimate_tokens(text), |tokens| tokens.len())
}

/// What builds the index, with an embedder that is loaded anew for each build: it must not wait for questions, nor they for it.
pub fn indexer(settings: &Settings, count_tokens: CountTokens, meaning: Option<&Meaning>) -> Indexer {
    let cpu_settings = settings.cpu;
    let embedder = meaning.map(|meaning| {
        let (name, path) = (meaning.embedder.name().to_owned(), meaning.path.clone());
        let load: LoadEmbedder = Arc::new(move || {
            let cpu = cpu(cpu_settings)
                .map_err(|error| EmbedError::Unusable { path: path.clone(), why: format!("{error:#}") })?;
            Ok(Arc::from(embed::load(&name, &path, Arc::new(cpu))?))
        });
        load
    });
    Indexer { options: build_options(&settings.index, false), count_tokens, embedder }
}

/// What a build makes of the settings.
pub fn build_options(settings: &IndexSettings, strict: bool) -> BuildOptions {
    BuildOptions {
        source: settings.guidelines.clone(),
        index: settings.directory.clone(),
        chunk_tokens: settings.chunk_tokens,
        overlap_tokens: settings.overlap_tokens,
        strict,
        keep_generations: settings.keep_generations,
    }
}

/// Loads everything and starts the engine. `note` hears what is being done.
///
/// # Errors
/// The first part that cannot be had.
pub fn start(settings: &Settings, cancel: &Cancel, note: &dyn Fn(&str)) -> anyhow::Result<Running> {
    // What is quick to check comes before what is slow to load.
    let wording = wording(settings)?;
    note("opening the guideline index");
    let meaning = meaning_and_reader(settings, cancel)?;
    let index = Arc::new(GuidelineIndex::open_with(
        &settings.index.directory,
        search_tools(settings, meaning.clone())?,
    )?);
    note("looking for the model");
    let located = locate(settings, &settings.model.name, cancel)?;
    note("loading the model");
    let begun = std::time::Instant::now();
    let cpu = cpu(settings.cpu)?;
    let (kernels, threads) = (cpu.variant().as_str(), cpu.threads());
    let model = BaseModel::load_fast(&located.path, settings.model.form, located.sha256.as_deref(), cpu)?;
    model.check_chat().with_context(|| format!("the model {} cannot hold a conversation", located.name))?;
    let took = begun.elapsed().as_millis() as u64;
    tracing::info!(
        model = located.name,
        sha256 = model.fingerprint,
        kernels,
        threads,
        ms = took,
        "model loaded"
    );
    let mut adapters = BTreeMap::new();
    for (name, path) in &settings.adapters {
        note("loading adapters");
        let Some(path) = for_base(path, &located.name) else {
            tracing::warn!(
                adapter = name,
                model = located.name,
                "left out: the folder holds none for this model"
            );
            continue;
        };
        let packed = adapter(&path, &model)
            .with_context(|| format!("adapter `{name}` (set in [adapters] or by --load-adapter)"))?;
        tracing::info!(adapter = name, sha256 = packed.fingerprint(), "adapter loaded");
        adapters.insert(name.clone(), packed);
    }
    let model = Arc::new(model);
    let tokens = Arc::clone(&model);
    let indexer = indexer(settings, Arc::new(move |text| count(&tokens.tokenizer, text)), meaning.as_ref());
    if index.snapshot().is_none() {
        note("building the guideline index");
        first_build(&indexer, &index)?;
    }
    let mut answer = settings.answer.clone();
    let loaded = answer.default_adapter.as_ref().is_some_and(|name| adapters.contains_key(name));
    if answer.default_mode.adapts() && !loaded {
        let mode = answer.default_mode.without_adapter();
        tracing::warn!(
            mode = mode.as_str(),
            "requests that name no mode get this: the default adapter is left out"
        );
        answer.default_mode = mode;
    }
    let engine = Engine::start(&model, &settings.engine)?;
    let answerer = Answerer::new(AnswererParts {
        settings: answer,
        model_name: located.name,
        model,
        adapters,
        wording,
        index,
        engine: engine.handle(),
    });
    Ok(Running { answerer: Arc::new(answerer), indexer, engine })
}

/// The prompt texts that the settings name.
///
/// # Errors
/// When one cannot be read or is no template.
pub fn wording(settings: &Settings) -> anyhow::Result<Wording> {
    Ok(match &settings.prompts {
        Some(folder) => Wording::read(folder)?,
        None => Wording::built_in()?,
    })
}

/// Loads an adapter and packs it for a model.
///
/// # Errors
/// When it cannot be read, or does not fit the model.
pub fn adapter(path: &Path, model: &BaseModel<FastDecoder>) -> anyhow::Result<Arc<PackedAdapter>> {
    let adapter = matrices(path, &model.config)?;
    let packed = PackedAdapter::pack(&adapter, &model.decoder);
    Ok(Arc::new(packed.with_context(|| format!("the adapter {} cannot be packed", path.display()))?))
}

/// The matrices of an adapter, for a base of this shape.
///
/// # Errors
/// When the files cannot be read, or do not fit.
pub fn matrices(path: &Path, config: &ModelConfig) -> anyhow::Result<Adapter> {
    Ok(Adapter::load(path, config, &Device::Cpu)?)
}

/// The adapter of this base at a path, and where its files are.
///
/// # Errors
/// When there is none for this base, or it does not fit.
pub fn adapter_of(
    path: &Path,
    base: &str,
    model: &BaseModel<FastDecoder>,
) -> anyhow::Result<(PathBuf, Arc<PackedAdapter>)> {
    let own = for_base(path, base);
    let own = own.with_context(|| format!("{} holds no adapter for {base}", path.display()))?;
    let adapter = adapter(&own, model)?;
    Ok((own, adapter))
}

/// Where an adapter's files are. A folder may hold a folder for each base, called as the base is; `None` where this base has none.
pub fn for_base(path: &Path, base: &str) -> Option<PathBuf> {
    let holds_folders = || {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join("adapter_config.json")).any(|config| config.is_file())
    };
    if path.join("adapter_config.json").exists() || !holds_folders() {
        return Some(path.to_owned());
    }
    Some(path.join(base)).filter(|own| own.is_dir())
}

/// Threads and kernels as the settings have them.
///
/// # Errors
/// When the processor lacks the instructions that were asked for, or the system gives no thread.
pub fn cpu(settings: CpuSettings) -> anyhow::Result<Cpu> {
    let threads = match settings.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let variant = settings.kernels.unwrap_or_else(Variant::best);
    Cpu::new(variant, threads).context("engine.kernels; `auto` takes what the processor has")
}

/// Builds the index where nothing was ever built and there are guidelines.
fn first_build(indexer: &Indexer, index: &GuidelineIndex) -> anyhow::Result<()> {
    let folder = &indexer.options.source;
    if !folder.is_dir() {
        tracing::warn!(
            folder = %folder.display(),
            "there is no guideline folder: only the modes base and tuned will answer"
        );
        return Ok(());
    }
    let report = indexer.build(false, &mut |_| {})?;
    for finding in &report.findings {
        tracing::warn!(file = finding.file, line = finding.line, "{}", finding.message);
    }
    tracing::info!(generation = report.generation, left_out = report.left_out, "index built");
    index.refresh()?;
    Ok(())
}

/// How a command has answers generated that are judged.
pub fn generation<'m>(
    settings: &Settings,
    meaning: Option<&'m Meaning>,
    max_tokens: usize,
) -> Generation<'m> {
    Generation {
        max_tokens,
        no_repeat_ngram_size: settings.answer.sampling.no_repeat_ngram_size,
        at_once: settings.engine.concurrent,
        quotes: settings.answer.quotes,
        meaning: meaning.filter(|_| settings.answer.quotes.nearness > 0.0),
    }
}
