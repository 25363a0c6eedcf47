//! Reads a Hugging Face folder of a BERT-family encoder: `config.json`, `model.safetensors`, `tokenizer.json`, and
//! what `sentence-transformers` writes beside them.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::encoder::{Block, Encoder, Linear, Norm, Pooling, Shape};
use super::tokens::TextTokenizer;
use super::{EmbedError, Model, Prefixes};
use crate::kernels::{DenseType, Matrix, Pages};
use crate::model::mapped::MappedFile;

pub(super) fn read(folder: &Path) -> Result<Model, EmbedError> {
    let config_path = folder.join("config.json");
    let config = json(&config_path)?;
    let unusable = |why: String| EmbedError::unusable(&config_path, why);
    let pooling = pooling(&optional_json(&folder.join("1_Pooling/config.json"))?)
        .map_err(|why| EmbedError::unusable(&folder.join("1_Pooling/config.json"), why))?;
    let shape = shape(&config, pooling).map_err(unusable)?;
    shape.check().map_err(unusable)?;

    let path = folder.join("model.safetensors");
    let file = MappedFile::open(&path).map_err(|source| EmbedError::Read { path: path.clone(), source })?;
    let tensors = SafeTensors::deserialize(&file).map_err(|e| EmbedError::unusable(&path, e.to_string()))?;
    let tensors = Tensors(&tensors);
    let encoder = encoder(&|name, shape| tensors.numbers(name, shape), shape)
        .map_err(|why| EmbedError::unusable(&path, why))?;
    let tokenizer = TextTokenizer::from_json(&folder.join("tokenizer.json"))?;

    let sentences = optional_json(&folder.join("sentence_bert_config.json"))?;
    let room = shape.positions - shape.first_position;
    let max_tokens = sentences["max_seq_length"].as_u64().map_or(room, |n| (n as usize).min(room)).max(2);
    let prefixes =
        prefixes(folder, &config, &optional_json(&folder.join("config_sentence_transformers.json"))?);
    let mut hash = Sha256::new();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = folder.join(name);
        let bytes =
            MappedFile::open(&path).map_err(|source| EmbedError::Read { path: path.clone(), source })?;
        hash.update(Sha256::digest(&*bytes));
    }
    // What else the vectors depend on.
    hash.update(format!("{max_tokens} {pooling:?} {prefixes:?}"));
    Ok(Model { encoder, tokenizer, prefixes, max_tokens, fingerprint: crate::model::hex(&hash.finalize()) })
}

fn json(path: &Path) -> Result<Json, EmbedError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| EmbedError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|e| EmbedError::unusable(path, e.to_string()))
}

fn optional_json(path: &Path) -> Result<Json, EmbedError> {
    if path.exists() { json(path) } else { Ok(Json::Null) }
}

fn shape(config: &Json, pooling: Pooling) -> Result<Shape, String> {
    let kind = config["model_type"].as_str().unwrap_or_default();
    // RoBERTa's positions begin behind that of the padding.
    let first_position = match kind {
        "bert" => 0,
        "xlm-roberta" | "roberta" => config["pad_token_id"].as_u64().unwrap_or(1) as usize + 1,
        other => return Err(format!("a model of type `{other}`; bert, roberta and xlm-roberta are run")),
    };
    for (key, known) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
        if let Some(other) = config[key].as_str().filter(|value| *value != known) {
            return Err(format!("`{key}` is `{other}`; `{known}` is run"));
        }
    }
    let size = |key: &str| {
        config[key].as_u64().map(|n| n as usize).ok_or_else(|| format!("`{key}` is missing or no number"))
    };
    Ok(Shape {
        hidden: size("hidden_size")?,
        layers: size("num_hidden_layers")?,
        heads: size("num_attention_heads")?,
        ffn: size("intermediate_size")?,
        vocab: size("vocab_size")?,
        positions: size("max_position_embeddings")?,
        first_position,
        eps: config["layer_norm_eps"].as_f64().ok_or("`layer_norm_eps` is missing")? as f32,
        pooling,
    })
}

/// How `sentence-transformers` makes one vector; the mean where it says nothing.
fn pooling(config: &Json) -> Result<Pooling, String> {
    let modes: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    match modes[..] {
        [] | ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        _ => Err(format!("the pooling {}; the mean and the first token are run", modes.join(" and "))),
    }
}

/// What the model's own files say; those of E5 for a model of that name, which its files do not tell.
fn prefixes(folder: &Path, config: &Json, sentences: &Json) -> Prefixes {
    let prompts = &sentences["prompts"];
    let prompt = |names: &[&str]| names.iter().find_map(|name| prompts[*name].as_str()).map(str::to_owned);
    if let (Some(query), Some(passage)) = (prompt(&["query"]), prompt(&["passage", "document"])) {
        return Prefixes { query, passage };
    }
    let names = [folder.file_name().and_then(|n| n.to_str()), config["_name_or_path"].as_str()];
    let is_e5 = |name: &str| name.split(['-', '/', '_']).any(|part| part.eq_ignore_ascii_case("e5"));
    match names.into_iter().flatten().any(is_e5) {
        true => Prefixes::e5(),
        false => Prefixes::default(),
    }
}

struct Tensors<'a>(&'a SafeTensors<'a>);

impl Tensors<'_> {
    /// A tensor's numbers; some files put all names below the model's.
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let found = ["", "bert.", "roberta."].iter().find_map(|p| self.0.tensor(&format!("{p}{name}")).ok());
        let view = found.ok_or_else(|| format!("`{name}` is missing"))?;
        if view.shape() != shape {
            return Err(format!("`{name}` is of shape {:?} in place of {shape:?}", view.shape()));
        }
        let bytes = view.data();
        let halves = || bytes.as_chunks::<2>().0.iter();
        Ok(match view.dtype() {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(format!("`{name}` is of type {other:?}; F32, F16 and BF16 are read")),
        })
    }
}

/// Reads a tensor of a name and a shape.
pub(super) type ReadTensor<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>, String> + 'a;

/// Packs an encoder of tensors that are read by the names and shapes that they have in a folder.
pub(super) fn encoder(numbers: &ReadTensor<'_>, shape: Shape) -> Result<Encoder, String> {
    let norm = |name: &str, hidden: usize| -> Result<Norm, String> {
        let weight = numbers(&format!("{name}.weight"), &[hidden])?;
        Ok(Norm { weight, bias: numbers(&format!("{name}.bias"), &[hidden])? })
    };
    let Shape { hidden, layers, ffn, vocab, positions, .. } = shape;
    let mut pages = Pages::default();
    let table = numbers("embeddings.word_embeddings.weight", &[vocab, hidden])?;
    let words = Matrix::pack_dense((vocab, hidden), &table, DenseType::F16, &mut pages);
    let mut table = numbers("embeddings.position_embeddings.weight", &[positions, hidden])?;
    // The type of all tokens is the first one, of two for BERT and of one for RoBERTa.
    let types =
        [2, 1].iter().find_map(|n| numbers("embeddings.token_type_embeddings.weight", &[*n, hidden]).ok());
    let types = types.ok_or("`embeddings.token_type_embeddings.weight` is missing or of another shape")?;
    for row in table.chunks_exact_mut(hidden) {
        row.iter_mut().zip(&types).for_each(|(number, common)| *number += common);
    }
    let mut blocks = Vec::with_capacity(layers);
    for layer in 0..layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let mut linear = |part: &str, outputs: usize, inputs: usize| -> Result<Linear, String> {
            let part = name(part);
            let own = numbers(&format!("{part}.weight"), &[outputs, inputs])?;
            let weight = Matrix::pack_q8_plain((outputs, inputs), &own, &mut pages);
            let weight = weight.ok_or_else(|| format!("`{part}` holds what is no number"))?;
            Ok(Linear { weight, bias: numbers(&format!("{part}.bias"), &[outputs])? })
        };
        blocks.push(Block {
            attention: [
                linear("attention.self.query", hidden, hidden)?,
                linear("attention.self.key", hidden, hidden)?,
                linear("attention.self.value", hidden, hidden)?,
            ],
            attention_out: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: norm(&name("attention.output.LayerNorm"), hidden)?,
            up: linear("intermediate.dense", ffn, hidden)?,
            down: linear("output.dense", hidden, ffn)?,
            ffn_norm: norm(&name("output.LayerNorm"), hidden)?,
        });
    }
    Ok(Encoder {
        shape,
        words: words.ok_or("the word embeddings hold what is no number")?,
        positions: table,
        norm: norm("embeddings.LayerNorm", hidden)?,
        blocks,
    })
}
