//! `shishin model inspect`: what a model is made of, from its header alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

use crate::model::config::ModelConfig;
use crate::model::gguf::{Gguf, type_name};
use crate::model::tokenizer::Tokenizer;

/// Writes what a GGUF file or Hugging Face folder holds.
///
/// # Errors
/// When it cannot be read, or is of a kind that shishin cannot run: the reason is what one wants to know.
pub fn run(path: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if path.is_dir() {
        let config = ModelConfig::from_hf(&path.join("config.json"))?;
        let tokenizer = Tokenizer::from_hf(path)?;
        return report(path, &config, &tokenizer, &[], &BTreeMap::new(), json, out);
    }
    let gguf = Gguf::open(path).with_context(|| format!("{}", path.display()))?;
    let header = gguf.header();
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in &header.tensors {
        *types.entry(type_name(tensor.dtype)).or_default() += 1;
    }
    let metadata: Vec<(String, String)> =
        header.metadata.iter().map(|(key, value)| (key.clone(), value.summary())).collect();
    let config = ModelConfig::from_gguf(header)?;
    let tokenizer = Tokenizer::from_gguf(header)?;
    report(path, &config, &tokenizer, &metadata, &types, json, out)
}

fn report(
    path: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    metadata: &[(String, String)],
    types: &BTreeMap<String, usize>,
    as_json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let tokens = tokenizer.vocabulary_size();
    if as_json {
        let metadata: BTreeMap<_, _> = metadata.iter().cloned().collect();
        let report = json!({
            "path": path, "architecture": config.architecture.as_str(), "layers": config.layers,
            "hidden": config.hidden, "heads": config.heads, "kv_heads": config.kv_heads,
            "head_dim": config.head_dim, "ffn": config.ffn, "vocabulary": tokens, "context": config.context,
            "kv_bytes_per_token": config.kv_bytes_per_token(), "tensor_types": types, "metadata": metadata,
        });
        serde_json::to_writer_pretty(&mut *out, &report)?;
        return Ok(writeln!(out)?);
    }
    writeln!(out, "{}", path.display())?;
    writeln!(
        out,
        "  {}: {} layers of {} ({} heads of {}, {} for keys and values), feed-forward {}",
        config.architecture.as_str(),
        config.layers,
        config.hidden,
        config.heads,
        config.head_dim,
        config.kv_heads,
        config.ffn
    )?;
    writeln!(
        out,
        "  {tokens} tokens, context {}, {} bytes of cache per position",
        config.context,
        config.kv_bytes_per_token()
    )?;
    if !types.is_empty() {
        let list: Vec<String> = types.iter().map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(out, "  tensors: {}", list.join(", "))?;
    }
    for (key, value) in metadata {
        writeln!(out, "  {key} = {value}")?;
    }
    Ok(())
}
