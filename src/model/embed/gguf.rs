//! Reads a BERT-family encoder from a GGUF file: architecture `bert`, as llama.cpp's converter writes it.
//!
//! The converter has moved things: a word's beginning is marked with `▁` in place of marking its continuations with `##`, and the
//! positions that RoBERTa keeps for padding are cut off.

use std::path::Path;

use candle_core::Device;
use sha2::{Digest as _, Sha256};
use tokenizers::Tokenizer;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, Precompiled};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::encoder::{Pooling, Shape};
use super::tokens::TextTokenizer;
use super::{EmbedError, Model, Prefixes, folder};
use crate::model::gguf::{Gguf, GgufError, Header};

/// The first bytes of such a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Marks the beginning of a word.
const BEGINS: char = '\u{2581}';

pub(super) fn read(path: &Path) -> Result<Model, EmbedError> {
    let gguf = Gguf::open(path).map_err(|e| EmbedError::unusable(path, e.to_string()))?;
    parse(&gguf).map_err(|why| EmbedError::unusable(path, why))
}

fn parse(gguf: &Gguf) -> Result<Model, String> {
    let header = gguf.header();
    let shown = |e: GgufError| e.to_string();
    let architecture = header.str("general.architecture").map_err(shown)?;
    if architecture != "bert" {
        return Err(format!("a model of the architecture `{architecture}`; bert is run"));
    }
    let size = |key: &str| header.usize(&format!("bert.{key}")).map_err(shown);
    let pooling = match header.usize_opt("bert.pooling_type").map_err(shown)? {
        None | Some(1) => Pooling::Mean,
        Some(2) => Pooling::First,
        Some(other) => return Err(format!("pooling {other}; 1 (the mean) and 2 (the first token) are run")),
    };
    let tokens = header.strs("tokenizer.ggml.tokens").map_err(shown)?;
    let shape = Shape {
        hidden: size("embedding_length")?,
        layers: size("block_count")?,
        heads: size("attention.head_count")?,
        ffn: size("feed_forward_length")?,
        vocab: tokens.len(),
        positions: size("context_length")?,
        first_position: 0,
        eps: header.float("bert.attention.layer_norm_epsilon").map_err(shown)? as f32,
        pooling,
    };
    shape.check()?;
    let numbers = |name: &str, shape: &[usize]| -> Result<Vec<f32>, String> {
        let name = gguf_name(name).ok_or_else(|| format!("`{name}` has no name in GGUF"))?;
        let tensor = gguf.dense(&name, &Device::Cpu).map_err(shown)?;
        // A lone row may be written without its count.
        let rows: usize = shape.iter().product();
        if tensor.elem_count() != rows || tensor.dims().last() != shape.last() {
            return Err(format!("`{name}` is of shape {:?} in place of {shape:?}", tensor.dims()));
        }
        tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(|e| e.to_string())
    };
    let encoder = folder::encoder(&numbers, shape)?;
    let name = header.str_opt("general.name").map_err(shown)?.unwrap_or_default();
    let is_e5 = name.split(['-', '/', '_', ' ']).any(|part| part.eq_ignore_ascii_case("e5"));
    Ok(Model {
        encoder,
        tokenizer: tokenizer(header, tokens)?,
        prefixes: if is_e5 { Prefixes::e5() } else { Prefixes::default() },
        max_tokens: shape.positions,
        fingerprint: crate::model::hex(&Sha256::digest(gguf.bytes())),
    })
}

/// What GGUF calls a tensor of a Hugging Face folder.
fn gguf_name(name: &str) -> Option<String> {
    let (stem, half) = name.rsplit_once('.')?;
    let stem = match stem {
        "embeddings.word_embeddings" => "token_embd".to_owned(),
        "embeddings.position_embeddings" => "position_embd".to_owned(),
        "embeddings.token_type_embeddings" => "token_types".to_owned(),
        "embeddings.LayerNorm" => "token_embd_norm".to_owned(),
        _ => {
            let (layer, part) = stem.strip_prefix("encoder.layer.")?.split_once('.')?;
            let part = match part {
                "attention.self.query" => "attn_q",
                "attention.self.key" => "attn_k",
                "attention.self.value" => "attn_v",
                "attention.output.dense" => "attn_output",
                "attention.output.LayerNorm" => "attn_output_norm",
                "intermediate.dense" => "ffn_up",
                "output.dense" => "ffn_down",
                "output.LayerNorm" => "layer_output_norm",
                _ => return None,
            };
            format!("blk.{layer}.{part}")
        }
    };
    Some(format!("{stem}.{half}"))
}

fn tokenizer(header: &Header, tokens: &[String]) -> Result<TextTokenizer, String> {
    let shown = |e: GgufError| e.to_string();
    let kind = header.str("tokenizer.ggml.model").map_err(shown)?;
    // The converter calls the marks at both ends either way.
    let mark = |names: [&str; 2]| -> Result<u32, String> {
        for name in names {
            if let Some(id) = header.usize_opt(&format!("tokenizer.ggml.{name}_token_id")).map_err(shown)? {
                return if id < tokens.len() { Ok(id as u32) } else { Err(format!("`{name}` is no token")) };
            }
        }
        Err(format!("tokenizer.ggml.{}_token_id is missing", names[0]))
    };
    let unknown = header.usize_opt("tokenizer.ggml.unknown_token_id").map_err(shown)?;
    let (ends, inner) = match kind {
        "bert" => ([mark(["cls", "bos"])?, mark(["seperator", "eos"])?], word_pieces(tokens, unknown)?),
        "t5" => ([mark(["bos", "cls"])?, mark(["eos", "seperator"])?], unigram(header, tokens, unknown)?),
        other => return Err(format!("a tokenizer of the kind `{other}`; bert and t5 are run")),
    };
    Ok(TextTokenizer::json(inner, ends))
}

/// WordPiece, as BERT has it.
fn word_pieces(tokens: &[String], unknown: Option<usize>) -> Result<Tokenizer, String> {
    let is_mark = |token: &str| token.starts_with('[') && token.ends_with(']') && token.len() > 2;
    let mut vocabulary = serde_json::Map::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        let own = match token.strip_prefix(BEGINS) {
            Some(beginning) => beginning.to_owned(),
            None if is_mark(token) => token.clone(),
            None => format!("##{token}"),
        };
        vocabulary.insert(own, id.into());
    }
    let cased = tokens.iter().any(|t| !is_mark(t) && t.chars().any(|c| c.is_ascii_uppercase()));
    let unknown = unknown.and_then(|id| tokens.get(id)).map_or("[UNK]", String::as_str).to_owned();
    // Through its own form, because the type of its vocabulary is not for others to name.
    let form = serde_json::json!({
        "type": "WordPiece",
        "vocab": vocabulary,
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    });
    let model: WordPiece = serde_json::from_str(&form.to_string()).map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizer = BertNormalizer::new(true, true, None, !cased);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(tokenizer)
}

/// SentencePiece's unigram model, as XLM-RoBERTa has it.
fn unigram(header: &Header, tokens: &[String], unknown: Option<usize>) -> Result<Tokenizer, String> {
    let shown = |e: GgufError| e.to_string();
    let scores = header.floats_opt("tokenizer.ggml.scores").map_err(shown)?.unwrap_or_default();
    if scores.len() != tokens.len() {
        return Err("tokenizer.ggml.scores has not a score for each token".to_owned());
    }
    let vocabulary = tokens.iter().cloned().zip(scores.iter().map(|s| f64::from(*s))).collect();
    let model = Unigram::from(vocabulary, unknown, false).map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    if let Some(map) = header.ints_opt("tokenizer.ggml.precompiled_charsmap").map_err(shown)? {
        let bytes: Vec<u8> = map.iter().map(|byte| *byte as u8).collect();
        let normalizer = Precompiled::from(&bytes).map_err(|e| e.to_string())?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit),
        PreTokenizerWrapper::Metaspace(Metaspace::new(BEGINS, PrependScheme::Always, true)),
    ])));
    Ok(tokenizer)
}
