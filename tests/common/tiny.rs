//! Models of two layers with random weights, as a Hugging Face folder and as a GGUF file.
//!
//! They show what real files cannot: the same weights through both loaders, shapes of an architecture
//! that no cached model has, and weights that a test may change.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};
use shishin::model::BaseModel;
use shishin::model::config::{Architecture, ModelConfig};
use shishin::model::gguf::Value;
use shishin::model::tensors::{Norm, Projection, TensorName};
use shishin::model::weights::WeightForm;
use tempfile::TempDir;

use super::gguf_file;

pub(crate) const LAYERS: usize = 2;
pub(crate) const HIDDEN: usize = 32;
pub(crate) const HEADS: usize = 4;
pub(crate) const FFN: usize = 48;
/// A few rows more than there are tokens, as real checkpoints have.
pub(crate) const VOCAB: usize = 264;
pub(crate) const CONTEXT: usize = 600;
/// The window of gemma's first layer; the second sees everything.
pub(crate) const WINDOW: usize = 40;

const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: [(&str, &str); 2] = [("t", "h"), ("th", "e")];
const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A model's weights by their names in a checkpoint, and its `config.json`.
pub(crate) struct Tiny {
    pub(crate) architecture: Architecture,
    pub(crate) config: Json,
    pub(crate) tensors: HashMap<String, Tensor>,
    /// Tensors that only the GGUF form has.
    pub(crate) gguf_only: Vec<(String, Tensor)>,
}

impl Tiny {
    /// Random weights of a family, the same ones every time. llama and qwen3 have a head of their own,
    /// qwen2 and gemma3 use their embeddings.
    pub(crate) fn new(architecture: Architecture) -> Self {
        let config = config(architecture);
        let mut tiny = Self { architecture, config, tensors: HashMap::new(), gguf_only: Vec::new() };
        let mut random = Random::new(17);
        let gemma = architecture == Architecture::Gemma3;
        let mut put = |name: TensorName, shape: &[usize], mean: f32, spread: f32| {
            tiny.tensors.insert(name.hf(architecture), random.tensor(shape, mean, spread));
        };
        put(TensorName::Embedding, &[VOCAB, HIDDEN], 0.0, 1.0);
        if matches!(architecture, Architecture::Llama | Architecture::Qwen3) {
            put(TensorName::Head, &[VOCAB, HIDDEN], 0.0, 0.5);
        }
        // Gemma's checkpoints store norm weights less one.
        let norm_mean = if gemma { 0.0 } else { 1.0 };
        put(TensorName::OutputNorm, &[HIDDEN], norm_mean, 0.3);
        for layer in 0..LAYERS {
            for projection in Projection::ALL {
                let (rows, columns) = shape(architecture, projection);
                put(TensorName::Weight(layer, projection), &[rows, columns], 0.0, 0.4);
                let biased = matches!(projection, Projection::Q | Projection::K | Projection::V);
                if biased && architecture == Architecture::Qwen2 {
                    put(TensorName::Bias(layer, projection), &[rows], 0.0, 0.5);
                }
            }
            let mut norms = vec![Norm::Attention, Norm::Ffn];
            if matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3) {
                norms.extend([Norm::Query, Norm::Key]);
            }
            if gemma {
                norms.extend([Norm::PostAttention, Norm::PostFfn]);
            }
            for norm in norms {
                let length =
                    if matches!(norm, Norm::Query | Norm::Key) { head_dim(architecture) } else { HIDDEN };
                put(TensorName::Norm(layer, norm), &[length], norm_mean, 0.3);
            }
        }
        tiny
    }

    /// Writes the Hugging Face folder.
    pub(crate) fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let json = |name: &str, value: &Json| fs::write(folder.join(name), value.to_string()).unwrap();
        json("config.json", &self.config);
        json("tokenizer.json", &tokenizer_json());
        json(
            "tokenizer_config.json",
            &json!({"eos_token": "<|im_end|>", "bos_token": null, "chat_template": TEMPLATE}),
        );
        candle_core::safetensors::save(&self.tensors, folder.join("model.safetensors")).unwrap();
    }

    /// Writes and loads the folder.
    pub(crate) fn load(&self) -> BaseModel {
        let dir = TempDir::new().unwrap();
        self.write(dir.path());
        BaseModel::load(dir.path(), WeightForm::F32, None).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Writes the same model as llama.cpp's converter would: q and k permuted for llama, norm weights
    /// in full for gemma.
    pub(crate) fn write_gguf(&self, path: &Path) {
        let permuted = self.architecture == Architecture::Llama;
        let tensors: Vec<(String, Tensor)> = self
            .names()
            .into_iter()
            .map(|name| {
                let tensor = &self.tensors[&name.hf(self.architecture)];
                let tensor = match name {
                    TensorName::Weight(_, Projection::Q) if permuted => gguf_file::permute(tensor, HEADS),
                    TensorName::Weight(_, Projection::K) if permuted => {
                        gguf_file::permute(tensor, kv_heads(self.architecture))
                    }
                    TensorName::Norm(..) | TensorName::OutputNorm
                        if self.architecture == Architecture::Gemma3 =>
                    {
                        (tensor + 1.0).unwrap()
                    }
                    _ => tensor.clone(),
                };
                (name.gguf(), tensor)
            })
            .chain(self.gguf_only.iter().cloned())
            .collect();
        gguf_file::write(path, &self.metadata(), &tensors);
    }

    /// Loads the GGUF form.
    pub(crate) fn load_gguf(&self) -> BaseModel {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("tiny.gguf");
        self.write_gguf(&path);
        BaseModel::load(&path, WeightForm::F32, None).unwrap_or_else(|e| panic!("{e}"))
    }

    fn names(&self) -> Vec<TensorName> {
        let mut all = vec![TensorName::Embedding, TensorName::OutputNorm, TensorName::Head];
        for layer in 0..LAYERS {
            for projection in Projection::ALL {
                all.push(TensorName::Weight(layer, projection));
                all.push(TensorName::Bias(layer, projection));
            }
            for norm in
                [Norm::Attention, Norm::Query, Norm::Key, Norm::PostAttention, Norm::Ffn, Norm::PostFfn]
            {
                all.push(TensorName::Norm(layer, norm));
            }
        }
        // Two names of a family that lacks one of them may share a spelling; each tensor goes out once.
        let mut seen = std::collections::HashSet::new();
        let gemma = self.architecture == Architecture::Gemma3;
        all.retain(|name| {
            let foreign = !gemma && matches!(name, TensorName::Norm(_, Norm::PostAttention | Norm::PostFfn));
            let hf = name.hf(self.architecture);
            !foreign && self.tensors.contains_key(&hf) && seen.insert(hf)
        });
        assert_eq!(all.len(), self.tensors.len());
        all
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let name = self.architecture.as_str();
        let uint = |key: &str, value: usize| (format!("{name}.{key}"), Value::Uint(value as u64));
        let float =
            |key: &str, value: &Json| (format!("{name}.{key}"), Value::Float(value.as_f64().unwrap()));
        let mut tokens: Vec<String> = Vec::new();
        let mut types = Vec::new();
        for (text, control) in vocabulary() {
            tokens.push(text);
            types.push(if control { 3 } else { 1 });
        }
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::Str(name.to_owned())),
            uint("embedding_length", HIDDEN),
            uint("block_count", LAYERS),
            uint("attention.head_count", HEADS),
            uint("attention.head_count_kv", kv_heads(self.architecture)),
            uint("attention.key_length", head_dim(self.architecture)),
            uint("feed_forward_length", FFN),
            uint("context_length", CONTEXT),
            float("attention.layer_norm_rms_epsilon", &self.config["rms_norm_eps"]),
            float("rope.freq_base", &self.config["rope_theta"]),
            ("tokenizer.ggml.model".to_owned(), Value::Str("gpt2".to_owned())),
            ("tokenizer.ggml.pre".to_owned(), Value::Str("gpt-2".to_owned())),
            ("tokenizer.ggml.tokens".to_owned(), Value::Strs(tokens)),
            ("tokenizer.ggml.token_type".to_owned(), Value::Ints(types)),
            (
                "tokenizer.ggml.merges".to_owned(),
                Value::Strs(MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect()),
            ),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::Uint(260)),
            ("tokenizer.chat_template".to_owned(), Value::Str(TEMPLATE.to_owned())),
        ];
        if self.architecture == Architecture::Gemma3 {
            metadata.push(uint("attention.sliding_window", WINDOW));
            metadata.push(uint("attention.sliding_window_pattern", 2));
            metadata.push(float("rope.local_freq_base", &self.config["rope_local_base_freq"]));
        }
        metadata
    }
}

/// Qwen3 and Gemma choose the head size apart from the hidden size; the others divide.
pub(crate) fn head_dim(architecture: Architecture) -> usize {
    match architecture {
        Architecture::Llama | Architecture::Qwen2 => HIDDEN / HEADS,
        Architecture::Qwen3 | Architecture::Gemma3 => 16,
    }
}

/// One in Gemma, as in the smallest real one: candle's `gemma3` fails on a prompt with more.
pub(crate) fn kv_heads(architecture: Architecture) -> usize {
    if architecture == Architecture::Gemma3 { 1 } else { 2 }
}

/// Rows and columns of a projection.
pub(crate) fn shape(architecture: Architecture, projection: Projection) -> (usize, usize) {
    let head_dim = head_dim(architecture);
    match projection {
        Projection::Q => (HEADS * head_dim, HIDDEN),
        Projection::K | Projection::V => (kv_heads(architecture) * head_dim, HIDDEN),
        Projection::O => (HIDDEN, HEADS * head_dim),
        Projection::Gate | Projection::Up => (FFN, HIDDEN),
        Projection::Down => (HIDDEN, FFN),
    }
}

/// `config.json`, with every key that candle-transformers asks for.
fn config(architecture: Architecture) -> Json {
    let gemma = architecture == Architecture::Gemma3;
    let mut config = json!({
        "model_type": if gemma { "gemma3_text" } else { architecture.as_str() },
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads(architecture),
        "head_dim": head_dim(architecture),
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "attention_bias": false,
        "hidden_act": "silu",
        "tie_word_embeddings": matches!(architecture, Architecture::Qwen2 | Architecture::Gemma3),
        "use_sliding_window": false,
        "sliding_window": CONTEXT,
        "max_window_layers": LAYERS,
    });
    if gemma {
        for (key, value) in [
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("query_pre_attn_scalar", json!(head_dim(architecture))),
            ("sliding_window", json!(WINDOW)),
            ("sliding_window_pattern", json!(2)),
            ("rope_theta", json!(1_000_000.0)),
            ("rope_local_base_freq", json!(10_000.0)),
        ] {
            config[key] = value;
        }
    }
    config
}

/// The tokens by id: the 256 byte characters, `th`, `the`, and the control tokens.
fn vocabulary() -> Vec<(String, bool)> {
    let mut next = 0x100;
    let bytes = (0..=255u8).map(|byte| {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let character = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
        (character.to_string(), false)
    });
    let merged = MERGES.iter().map(|(a, b)| (format!("{a}{b}"), false));
    let control = CONTROL.iter().map(|text| ((*text).to_owned(), true));
    bytes.chain(merged).chain(control).collect()
}

fn tokenizer_json() -> Json {
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    for (id, (text, control)) in vocabulary().into_iter().enumerate() {
        if control {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        } else {
            vocab.insert(text, json!(id));
        }
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": MERGES.map(|(a, b)| format!("{a} {b}")),
        },
    })
}

/// Random tensors that are the same on every machine.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Numbers spread evenly over `mean ± spread`.
    pub(crate) fn tensor(&mut self, shape: &[usize], mean: f32, spread: f32) -> Tensor {
        let count = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|_| mean + self.0.random_range(-spread..spread)).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }
}

/// A prompt of valid ids for the tiny vocabulary.
pub(crate) fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 37 + 11) % 256) as u32).collect()
}

/// A PEFT adapter of random matrices on all linear maps, or those of `targets`.
pub(crate) fn random_peft(
    config: &ModelConfig,
    targets: &[Projection],
    rank: impl Fn(usize, Projection) -> usize,
    seed: u64,
) -> HashMap<String, Tensor> {
    let mut random = Random::new(seed);
    let mut tensors = HashMap::new();
    for layer in 0..config.layers {
        for &projection in targets {
            let (outputs, inputs) = projection.shape(config);
            let rank = rank(layer, projection);
            let spread = 1.0 / (inputs as f32).sqrt();
            tensors.insert(peft_name(layer, projection, 'A'), random.tensor(&[rank, inputs], 0.0, spread));
            tensors.insert(peft_name(layer, projection, 'B'), random.tensor(&[outputs, rank], 0.0, 0.05));
        }
    }
    tensors
}

/// The name of an adapter's tensor in PEFT's files.
pub(crate) fn peft_name(layer: usize, projection: Projection, half: char) -> String {
    format!(
        "base_model.model.model.layers.{layer}.{}.{}.lora_{half}.weight",
        projection.hf_block(),
        projection.hf_module()
    )
}

/// Writes a PEFT folder below `dir` and returns its path.
pub(crate) fn write_peft(
    dir: &Path,
    name: &str,
    config: &Json,
    tensors: &HashMap<String, Tensor>,
) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(tensors, folder.join("adapter_model.safetensors")).unwrap();
    folder
}
