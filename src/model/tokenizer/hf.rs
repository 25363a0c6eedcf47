//! A tokenizer from a Hugging Face folder's `tokenizer.json` and `tokenizer_config.json`.

use std::path::Path;

use serde_json::Value as Json;

use super::{Kind, Parts, Style, Tokenizer, TokenizerError, gguf};

impl Tokenizer {
    /// Builds the tokenizer of a Hugging Face folder. Added tokens are taken out of the file before the
    /// library sees it, so that only our own code can produce them.
    ///
    /// # Errors
    /// When a file is missing or unsound, or the tokenizer is not BPE.
    pub fn from_hf(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let fail = |reason: String| TokenizerError::Unusable(format!("{}: {reason}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
        let mut json: Json = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
        if json["model"]["type"].as_str().unwrap_or("BPE") != "BPE" {
            return Err(fail(format!("a {} model; BPE is read", json["model"]["type"])));
        }
        let added = added_tokens(&json).map_err(fail)?;
        let style = style_of(&json).map_err(fail)?;
        json["added_tokens"] = Json::Array(Vec::new());
        for key in ["post_processor", "truncation", "padding", "decoder"] {
            json[key] = Json::Null;
        }
        if matches!(style, Style::SentencePiece { .. }) {
            // Spaces are spelled by our own code.
            json["normalizer"] = Json::Null;
            json["pre_tokenizer"] = Json::Null;
        }
        let inner: tokenizers::Tokenizer = serde_json::from_value(json).map_err(|e| fail(e.to_string()))?;

        let vocab = inner.get_vocab(false);
        let highest = vocab.values().copied().chain(added.iter().map(|a| a.0)).max().unwrap_or(0);
        if highest > 1 << 22 {
            return Err(fail(format!("a token id of {highest}")));
        }
        let mut vocabulary = vec![(String::new(), Kind::Control); highest as usize + 1];
        for (text, id) in vocab {
            vocabulary[id as usize] = (text, Kind::Text);
        }
        for (id, text, kind) in &added {
            vocabulary[*id as usize] = (text.clone(), *kind);
        }

        let settings = optional_json(&folder.join("tokenizer_config.json"))?;
        let generation = optional_json(&folder.join("generation_config.json"))?;
        let id_of = |key: &str| {
            let text = settings[key].as_str().or(settings[key]["content"].as_str())?;
            vocabulary.iter().position(|(t, _)| t == text).map(|id| id as u32)
        };
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let mut ends: Vec<u32> = eos.into_iter().collect();
        match &generation["eos_token_id"] {
            Json::Array(ids) => ends.extend(ids.iter().filter_map(Json::as_u64).map(|id| id as u32)),
            other => ends.extend(other.as_u64().map(|id| id as u32)),
        }
        ends.retain(|id| (*id as usize) < vocabulary.len());
        for id in bos.iter().chain(&ends) {
            vocabulary[*id as usize].1 = Kind::Control;
        }
        let add_bos = settings["add_bos_token"].as_bool().unwrap_or(false);
        Self::new(Parts { inner, style, vocabulary, bos, eos, add_bos, ends })
    }
}

/// How pieces spell text, by the components of the file.
fn style_of(json: &Json) -> Result<Style, String> {
    if mentions(&json["decoder"], "ByteLevel") || mentions(&json["pre_tokenizer"], "ByteLevel") {
        return Ok(Style::ByteLevel);
    }
    let (normalizer, pre_tokenizer) = (&json["normalizer"], &json["pre_tokenizer"]);
    // What our own spelling of spaces stands in for; anything else would be dropped silently.
    for (component, known) in [
        (normalizer, &["Sequence", "Replace", "Prepend"][..]),
        (pre_tokenizer, &["Sequence", "Metaspace", "Split"]),
    ] {
        if let Some(kind) = kinds(component).into_iter().find(|kind| !known.contains(&kind.as_str())) {
            return Err(format!("the component `{kind}` is not supported for SentencePiece vocabularies"));
        }
    }
    let scheme = find(pre_tokenizer, "prepend_scheme").and_then(Json::as_str);
    let prefix_space = mentions(normalizer, "Prepend")
        || matches!(scheme, Some("first" | "always"))
        || find(pre_tokenizer, "add_prefix_space").and_then(Json::as_bool) == Some(true);
    Ok(Style::SentencePiece { prefix_space })
}

/// The types of a component that is a normalizer or pre-tokenizer, and of those it is made of.
fn kinds(component: &Json) -> Vec<String> {
    let own = component["type"].as_str().map(str::to_owned);
    let parts = ["normalizers", "pretokenizers"].into_iter().filter_map(|key| component[key].as_array());
    own.into_iter().chain(parts.flatten().flat_map(kinds)).collect()
}

/// The first value under a key, in a component or those it is made of.
fn find<'a>(component: &'a Json, key: &str) -> Option<&'a Json> {
    match component {
        Json::Object(map) => map.get(key).or_else(|| map.values().find_map(|v| find(v, key))),
        Json::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

/// The added tokens: id, spelling, kind.
fn added_tokens(json: &Json) -> Result<Vec<(u32, String, Kind)>, String> {
    let Some(list) = json["added_tokens"].as_array() else { return Ok(Vec::new()) };
    list.iter()
        .map(|token| {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let (Some(id), Some(text)) = (id, token["content"].as_str()) else {
                return Err(format!("an added token without id or content: {token}"));
            };
            let special = token["special"].as_bool().unwrap_or(false) || gguf::is_markup(text);
            for key in ["lstrip", "rstrip", "single_word"] {
                if !special && token[key].as_bool() == Some(true) {
                    return Err(format!("the added token {text:?} uses {key}, which is not supported"));
                }
            }
            Ok((id, text.to_owned(), if special { Kind::Control } else { Kind::Verbatim }))
        })
        .collect()
}

/// Whether a component, or any that it is made of, is of a type.
fn mentions(component: &Json, kind: &str) -> bool {
    match component {
        Json::Object(map) => {
            map.get("type").and_then(Json::as_str) == Some(kind) || map.values().any(|v| mentions(v, kind))
        }
        Json::Array(list) => list.iter().any(|v| mentions(v, kind)),
        _ => false,
    }
}

fn optional_json(path: &Path) -> Result<Json, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|e| TokenizerError::Unusable(format!("{}: {e}", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Json::Null),
        Err(e) => Err(TokenizerError::Unusable(format!("{}: {e}", path.display()))),
    }
}
