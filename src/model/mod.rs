//! The base model: finding it, loading it, and running it.
//!
//! In the order of a load: [`catalog`] and [`fetch`] bring the file, [`gguf`] or safetensors give its
//! bytes, [`config`] says what it is made of, [`tokenizer`] and [`template`] turn conversations into
//! token ids, and [`fast`] turns token ids into logits, with a [`lora`] adapter added where a request
//! names one. [`decoder`] is the same in plain tensor operations: the yardstick. [`frozen`] holds the weights for training.

pub mod catalog;
pub mod config;
pub mod decoder;
pub mod embed;
pub mod fast;
pub mod fetch;
pub mod frozen;
pub mod gguf;
pub mod kv;
mod linear;
pub mod lora;
mod lowrank;
mod mapped;
mod ops;
pub mod template;
pub mod tensors;
pub mod tokenizer;
pub mod weights;

use std::path::{Path, PathBuf};

use candle_core::Device;
use sha2::{Digest, Sha256};

use crate::kernels::Cpu;
use config::{Architecture, ConfigError, ModelConfig};
use decoder::Decoder;
use fast::FastDecoder;
use frozen::FrozenModel;
use gguf::{Gguf, GgufError};
use template::{ChatTemplate, TemplateError};
use tokenizer::{Tokenizer, TokenizerError};
use weights::{WeightError, WeightForm, WeightReader, WeightSource};

/// A base model, loaded and ready to answer: by default on the reference decoder, for serving on the
/// [`FastDecoder`].
#[derive(Debug)]
pub struct BaseModel<D = Decoder> {
    /// What it is made of.
    pub config: ModelConfig,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How it marks turns; pretrained models may have none.
    pub template: Option<ChatTemplate>,
    /// Its weights.
    pub decoder: D,
    /// The form the weights are kept in.
    pub form: WeightForm,
    /// SHA-256 in hexadecimal: of the GGUF file, or over name, length and bytes of every file of a folder
    /// that decides an answer.
    pub fingerprint: String,
}

/// Why a base model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the model {}: {cause}", path.display())]
pub struct ModelError {
    path: PathBuf,
    cause: Box<ModelErrorCause>,
}

/// The step of loading that failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelErrorCause {
    /// There is nothing at the path, or nothing readable.
    #[error("{0}")]
    Read(std::io::Error),
    /// The GGUF file is unsound.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The configuration is unsupported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer is unsupported.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is unsound.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Weights are missing or misshapen.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The file is not the one that was asked for.
    #[error("its sha256 is {found}, and {expected} was expected; delete it and run `shishin model pull`")]
    Checksum {
        /// What the file has.
        found: String,
        /// What it should have.
        expected: String,
    },
}

impl BaseModel {
    /// Loads a GGUF file, or a Hugging Face folder (`config.json`, `*.safetensors`, `tokenizer.json`), on the
    /// reference decoder.
    ///
    /// `expected_sha256`, where known, is held against the file before anything else is believed.
    ///
    /// # Errors
    /// When a file is missing, unsound, of an unsupported kind, or not the expected one.
    pub fn load(path: &Path, form: WeightForm, expected_sha256: Option<&str>) -> Result<Self, ModelError> {
        let build =
            |config: &ModelConfig, reader: WeightReader<'_>| Decoder::load(config, reader, &Device::Cpu);
        load_with(path, form, expected_sha256, build)
    }
}

impl BaseModel<()> {
    /// As [`BaseModel::load`], but without a decoder: to count a model's tokens. The files are read and held against their hash all the same.
    ///
    /// # Errors
    /// As [`BaseModel::load`], but for weights that are missing or misshapen.
    pub fn load_words(path: &Path, expected_sha256: Option<&str>) -> Result<Self, ModelError> {
        load_with(path, WeightForm::Stored, expected_sha256, |_, _| Ok(()))
    }
}

impl BaseModel<FastDecoder> {
    /// As [`BaseModel::load`], on the fast decoder.
    ///
    /// # Errors
    /// As [`BaseModel::load`], and when a weight is of a type that the kernels do not have.
    pub fn load_fast(
        path: &Path,
        form: WeightForm,
        expected_sha256: Option<&str>,
        cpu: Cpu,
    ) -> Result<Self, ModelError> {
        let build = |config: &ModelConfig, reader: WeightReader<'_>| FastDecoder::load(config, reader, cpu);
        load_with(path, form, expected_sha256, build)
    }
}

impl BaseModel<FrozenModel> {
    /// As [`BaseModel::load`], to train adapters on.
    ///
    /// # Errors
    /// As [`BaseModel::load_fast`].
    pub fn load_frozen(
        path: &Path,
        form: WeightForm,
        expected_sha256: Option<&str>,
        cpu: Cpu,
    ) -> Result<Self, ModelError> {
        let build = |config: &ModelConfig, reader: WeightReader<'_>| FrozenModel::load(config, reader, cpu);
        load_with(path, form, expected_sha256, build)
    }
}

fn load_with<D>(
    path: &Path,
    form: WeightForm,
    expected: Option<&str>,
    build: impl FnOnce(&ModelConfig, WeightReader<'_>) -> Result<D, WeightError>,
) -> Result<BaseModel<D>, ModelError> {
    let loaded = if path.is_dir() {
        load_folder(path, form, expected, build)
    } else {
        load_gguf(path, form, expected, build)
    };
    loaded.map_err(|cause| ModelError { path: path.to_owned(), cause: Box::new(cause) })
}

fn load_gguf<D>(
    path: &Path,
    form: WeightForm,
    expected: Option<&str>,
    build: impl FnOnce(&ModelConfig, WeightReader<'_>) -> Result<D, WeightError>,
) -> Result<BaseModel<D>, ModelErrorCause> {
    let device = &Device::Cpu;
    let gguf = Gguf::open(path)?;
    let fingerprint = hex(&Sha256::digest(gguf.bytes()));
    check(&fingerprint, expected)?;
    let header = gguf.header();
    let mut config = ModelConfig::from_gguf(header)?;
    if header.tensor("rope_freqs.weight").is_some() {
        let factors = gguf.dense("rope_freqs.weight", device)?;
        config.set_rope_factors(factors.to_vec1::<f32>().map_err(WeightError::from)?)?;
    }
    let tokenizer = Tokenizer::from_gguf(header)?;
    let template = chat_template(header.str_opt("tokenizer.chat_template")?, &config, &tokenizer)?;
    let decoder = build(&config, WeightReader::new(WeightSource::Gguf(&gguf), &config, form, device))?;
    Ok(BaseModel { config, tokenizer, template, decoder, form, fingerprint })
}

fn load_folder<D>(
    folder: &Path,
    form: WeightForm,
    expected: Option<&str>,
    build: impl FnOnce(&ModelConfig, WeightReader<'_>) -> Result<D, WeightError>,
) -> Result<BaseModel<D>, ModelErrorCause> {
    let device = &Device::Cpu;
    let config = ModelConfig::from_hf(&folder.join("config.json"))?;
    let files = weights::map_safetensors(folder)?;
    let fingerprint = folder_fingerprint(folder, &files)?;
    check(&fingerprint, expected)?;
    let tokenizer = Tokenizer::from_hf(folder)?;
    let template = chat_template(folder_template(folder)?.as_deref(), &config, &tokenizer)?;
    let tensors = weights::parse_safetensors(&files)?;
    let decoder =
        build(&config, WeightReader::new(WeightSource::Safetensors(tensors), &config, form, device))?;
    Ok(BaseModel { config, tokenizer, template, decoder, form, fingerprint })
}

impl<D> BaseModel<D> {
    /// Renders and tokenises a conversation, so that a model that cannot chat is refused at the start and
    /// not at the first question.
    ///
    /// # Errors
    /// When it has no template, or the template does not take a system turn and a follow-up.
    pub fn check_chat(&self) -> Result<(), ModelErrorCause> {
        use template::{Role, Turn};
        let template = self.template.as_ref().ok_or(TemplateError::Missing)?;
        let turns = [Role::System, Role::User, Role::Assistant, Role::User]
            .map(|role| Turn { role, content: "text".into() });
        template::encode_segments(&self.tokenizer, &template.segments(&turns)?)?;
        Ok(())
    }
}

fn check(found: &str, expected: Option<&str>) -> Result<(), ModelErrorCause> {
    match expected {
        Some(expected) if expected != found => {
            Err(ModelErrorCause::Checksum { found: found.to_owned(), expected: expected.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The files of a folder, besides its weights, that decide what a model answers.
const FOLDER_FILES: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// The fingerprint of a folder: names and bytes of all files that decide an answer.
fn folder_fingerprint(folder: &Path, weights: &[mapped::MappedFile]) -> Result<String, ModelErrorCause> {
    let mut files = Vec::new();
    for name in FOLDER_FILES {
        match std::fs::read(folder.join(name)) {
            Ok(bytes) => files.push((name, bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ModelErrorCause::Read(e)),
        }
    }
    let files = files.iter().map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]);
    let weights =
        weights.iter().map(|file| [file.path().file_name().unwrap_or_default().as_encoded_bytes(), &**file]);
    Ok(fingerprint(files.chain(weights).flatten()))
}

/// SHA-256 of the parts in hexadecimal, each part preceded by its length so that no two splits of the same
/// bytes are the same.
pub(crate) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    hex(&digest(parts))
}

/// [`fingerprint`] as bytes.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The model's own template, or Gemma's turn format, whose pretrained files bring none. A tokenizer with
/// ids past the embedding is refused on the way: it belongs to another model.
fn chat_template(
    source: Option<&str>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>, ModelErrorCause> {
    if tokenizer.vocabulary_size() > config.vocab {
        return Err(TokenizerError::Unusable(format!(
            "it has {} tokens and the embedding {} rows",
            tokenizer.vocabulary_size(),
            config.vocab
        ))
        .into());
    }
    Ok(match source {
        Some(source) => Some(ChatTemplate::new(source, tokenizer)?),
        None if config.architecture == Architecture::Gemma3 => Some(ChatTemplate::gemma(tokenizer)?),
        None => None,
    })
}

/// `chat_template.jinja`, or the entry of `tokenizer_config.json`.
fn folder_template(folder: &Path) -> Result<Option<String>, ModelErrorCause> {
    let optional = |name: &str| match std::fs::read_to_string(folder.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelErrorCause::Read(e)),
    };
    if let Some(source) = optional("chat_template.jinja")? {
        return Ok(Some(source));
    }
    let Some(settings) = optional("tokenizer_config.json")? else { return Ok(None) };
    let json: serde_json::Value = serde_json::from_str(&settings)
        .map_err(|e| TokenizerError::Unusable(format!("tokenizer_config.json: {e}")))?;
    // Some files name several templates; the one for conversations is called `default`.
    let listed = json["chat_template"].as_array().into_iter().flatten();
    let default = listed.filter(|t| t["name"] == "default").find_map(|t| t["template"].as_str());
    Ok(json["chat_template"].as_str().or(default).map(str::to_owned))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
