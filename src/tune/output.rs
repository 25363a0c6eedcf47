//! The finished adapter, as PEFT and llama.cpp read it.
//!
//! PEFT: `adapter_config.json` and `adapter_model.safetensors` (Hugging Face PEFT's format). llama.cpp: a GGUF file of
//! `general.type = adapter`, whose B of query and key has its rows interleaved on the llama architecture.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::checkpoint::{CheckpointError, write_whole};
use super::parameters::Parameters;
use crate::model::config::ModelConfig;
use crate::model::fingerprint;
use crate::model::gguf::unpermuted_rows;
use crate::model::lora::gguf::{INVOCATION, interleaved_heads};
use crate::model::lora::{QUOTING, Quoting};

/// Why an adapter cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] CheckpointError),
    /// A format refuses the numbers.
    #[error("cannot write the adapter: {0}")]
    Format(String),
}

impl From<candle_core::Error> for OutputError {
    fn from(error: candle_core::Error) -> Self {
        Self::Format(error.to_string())
    }
}

/// Writes a PEFT folder's two files, numbers in half precision. `invocation` are the tokens that a late adapter begins with.
///
/// # Errors
/// When the disk refuses.
pub fn write_peft(
    folder: &Path,
    base: &str,
    parameters: &Parameters,
    dropout: f32,
    invocation: Option<&[u32]>,
) -> Result<(), OutputError> {
    let shape = parameters.shape();
    let half = |range: &std::ops::Range<usize>| -> Vec<u8> {
        parameters.numbers[range.clone()].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
    };
    let mut parts = Vec::new();
    for slot in parameters.slots() {
        let p = slot.projection;
        let stem = format!("base_model.model.model.layers.{}.{}.{}", slot.layer, p.hf_block(), p.hf_module());
        parts.push((format!("{stem}.lora_A.weight"), vec![shape.rank, slot.shape.1], half(&slot.a)));
        parts.push((format!("{stem}.lora_B.weight"), vec![slot.shape.0, shape.rank], half(&slot.b)));
    }
    let format = |e: safetensors::SafeTensorError| OutputError::Format(e.to_string());
    let views = parts
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(format)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(format)?;
    write_whole(&folder.join("adapter_model.safetensors"), &bytes)?;
    let modules: Vec<&str> = shape.targets.iter().map(|p| p.hf_module()).collect();
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": dropout,
        "use_rslora": shape.rslora,
        "bias": "none",
        "target_modules": modules,
    });
    if let Some(tokens) = invocation {
        config["alora_invocation_tokens"] = json!(tokens);
    }
    let text = format!("{config:#}\n");
    write_whole(&folder.join("adapter_config.json"), text.as_bytes())?;
    // Bars that were found of other numbers are wrong of these, and the adapter would not load with them.
    if Quoting::read(folder, &fingerprint([text.as_bytes(), &bytes])).is_err() {
        let path = folder.join(QUOTING);
        std::fs::remove_file(&path)
            .map_err(|error| OutputError::Format(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// Writes a GGUF-LoRA file, numbers in half precision. `invocation` are the tokens that a late adapter begins with.
///
/// # Errors
/// When the disk refuses.
pub fn write_gguf(
    path: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    invocation: Option<&[u32]>,
) -> Result<(), OutputError> {
    let shape = parameters.shape();
    // llama.cpp divides by the rank.
    let alpha = f64::from(shape.scale()) * shape.rank as f64;
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    for slot in parameters.slots() {
        let name = format!("blk.{}.{}.weight", slot.layer, slot.projection.gguf());
        let a = parameters.numbers[slot.a.clone()].to_vec();
        let a = Tensor::from_vec(a, (shape.rank, slot.shape.1), &Device::Cpu)?;
        let mut b = parameters.numbers[slot.b.clone()].to_vec();
        if let Some(heads) = interleaved_heads(slot.projection, config) {
            let rows = unpermuted_rows(slot.shape.0, heads)
                .ok_or_else(|| OutputError::Format(format!("{name} has no whole heads")))?;
            let plain = b.clone();
            for (row, stored) in rows.enumerate() {
                let (from, to) = (row * shape.rank, stored * shape.rank);
                b[to..to + shape.rank].copy_from_slice(&plain[from..from + shape.rank]);
            }
        }
        let b = Tensor::from_vec(b, (slot.shape.0, shape.rank), &Device::Cpu)?;
        tensors.push((format!("{name}.lora_a"), QTensor::quantize(&a, GgmlDType::F16)?));
        tensors.push((format!("{name}.lora_b"), QTensor::quantize(&b, GgmlDType::F16)?));
    }
    let text = |value: &str| Value::String(value.to_owned());
    let mut metadata = vec![
        ("general.architecture", text(config.architecture.as_str())),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(alpha as f32)),
    ];
    if let Some(tokens) = invocation {
        metadata.push((INVOCATION, Value::Array(tokens.iter().map(|token| Value::U32(*token)).collect())));
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let named: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &named)?;
    Ok(write_whole(path, bytes.get_ref())?)
}
