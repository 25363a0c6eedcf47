//! GGUF-LoRA files: `general.type = adapter`, tensors `blk.{i}.attn_q.weight.lora_a` and `.lora_b`.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Adapter, AdapterError, AdapterFormat, Binder, Half, QuoteBars};
use crate::model::config::ModelConfig;
use crate::model::fingerprint;
use crate::model::gguf::{Gguf, unpermuted_rows};
use crate::model::tensors::Projection;

/// The key of the tokens that an adapter begins with.
pub(crate) const INVOCATION: &str = "adapter.alora.invocation_tokens";

pub(super) fn load(path: &Path, config: &ModelConfig, device: &Device) -> Result<Adapter, AdapterError> {
    let read = |reason: String| AdapterError::Read { path: path.into(), reason };
    let unsupported = |what: &str| AdapterError::Unsupported { path: path.into(), what: what.into() };
    let gguf = Gguf::open(path).map_err(|e| read(e.to_string()))?;
    let header = gguf.header();
    let text = |key: &str| header.str(key).map_err(|e| read(e.to_string()));
    let kind = text("general.type")?;
    if kind != "adapter" {
        return Err(read(format!("general.type is `{kind}`: this is no adapter")));
    }
    let kind = text("adapter.type")?;
    if kind != "lora" {
        return Err(unsupported(&format!("the adapter type `{kind}`")));
    }
    let invocation = header.ints_opt(INVOCATION).map_err(|e| read(e.to_string()))?;
    let invocation: Option<Vec<u32>> = invocation
        .filter(|tokens| !tokens.is_empty())
        .map(|tokens| tokens.iter().map(|token| u32::try_from(*token)).collect::<Result<_, _>>())
        .transpose()
        .map_err(|_| read(format!("{INVOCATION} holds what is no token")))?;
    let architecture = text("general.architecture")?;
    if architecture != config.architecture.as_str() {
        return Err(AdapterError::Misfit {
            path: path.into(),
            misfits: format!(
                "it was made for `{architecture}` and the base is `{}`",
                config.architecture.as_str()
            ),
        });
    }
    let alpha = header.float("adapter.lora.alpha").map_err(|e| read(e.to_string()))?;

    let mut binder = Binder::new(path, config);
    for info in &header.tensors {
        let Some((layer, projection, half)) = place_of(&info.name) else {
            binder.misfit(format!("{} belongs to nothing that shishin adapts", info.name));
            continue;
        };
        let tensor = gguf.dense(&info.name, device).map_err(|e| read(e.to_string()))?;
        let tensor = match half {
            Half::B => in_checkpoint_order(tensor, projection, config).map_err(|e| read(e.to_string()))?,
            Half::A => tensor,
        };
        binder.put(&info.name, layer, projection, half, tensor);
    }
    // llama.cpp divides by the rank of each pair; an alpha of 0 means "do not scale".
    let pairs = binder.finish(|_, _, rank| Ok(if alpha == 0.0 { 1.0 } else { alpha / rank as f64 }))?;
    let fingerprint = fingerprint([gguf.bytes()]);
    let bars = QuoteBars::default();
    Ok(Adapter { format: AdapterFormat::GgufLora, fingerprint, invocation, bars, pairs })
}

/// llama-architecture files permute the rows of B for query and key as they do the base's; our base is
/// in the checkpoint's order, so B goes back to it too.
fn in_checkpoint_order(
    b: Tensor,
    projection: Projection,
    config: &ModelConfig,
) -> candle_core::Result<Tensor> {
    let Some(heads) = interleaved_heads(projection, config) else { return Ok(b) };
    match unpermuted_rows(b.dim(0)?, heads) {
        Some(rows) => {
            let rows: Vec<u32> = rows.map(|r| r as u32).collect();
            b.index_select(&Tensor::new(rows.as_slice(), b.device())?, 0)
        }
        // A shape that cannot be permuted cannot fit either; the binder names it.
        None => Ok(b),
    }
}

/// The heads whose rows of B a file interleaves: for llama always, whatever form the base is in.
pub(crate) fn interleaved_heads(projection: Projection, config: &ModelConfig) -> Option<usize> {
    let llama = config.architecture == crate::model::config::Architecture::Llama;
    match projection {
        Projection::Q if llama => Some(config.heads),
        Projection::K if llama => Some(config.kv_heads),
        _ => None,
    }
}

/// `blk.3.attn_q.weight.lora_a` → (3, Q, A).
fn place_of(name: &str) -> Option<(usize, Projection, Half)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, half) = rest.split_once(".weight.")?;
    let half = match half {
        "lora_a" => Half::A,
        "lora_b" => Half::B,
        _ => return None,
    };
    let projection = Projection::ALL.into_iter().find(|p| p.gguf() == module)?;
    Some((layer.parse().ok()?, projection, half))
}
