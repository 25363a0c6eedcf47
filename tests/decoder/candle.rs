//! Logits against candle-transformers 0.11.1: its quantised models on the real files, and its
//! full-precision models on tiny random ones.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma3, llama, quantized_llama, quantized_qwen2, qwen2, qwen3};
use serde_json::{Value as Json, json};
use shishin::model::BaseModel;
use shishin::model::config::{Architecture, RopeScaling};
use shishin::model::decoder::Logits;
use shishin::model::gguf::Gguf;
use shishin::model::tensors::{Norm, Projection, TensorName};
use shishin::model::weights::WeightForm;

use super::common::gguf_file::unpermute;
use super::common::tiny::{self, Tiny};
use super::{common, load, one_large_model, smollm};

const CPU: Device = Device::Cpu;

/// For weights in 32-bit floats on both sides only the order of sums differs.
const FULL_PRECISION: f64 = 1e-5;

/// The same with up to 30 layers on top of one another; measured 9e-7 for SmolLM2, 1.2e-6 for
/// Qwen, 8e-7 for Gemma.
const REAL_FILE: f64 = 1e-5;

fn batch(tokens: &[u32]) -> Tensor {
    Tensor::new(tokens, &CPU).unwrap().unsqueeze(0).unwrap()
}

/// A sentence in both languages, for the models that know both.
const TEXT: &str = "A fever above 38 °C for three days. 発熱が三日続くとき";

/// Runs tokens one by one through both and returns each position's relative error.
fn token_by_token(
    model: &BaseModel,
    tokens: &[u32],
    mut theirs: impl FnMut(&Tensor, usize) -> candle_core::Result<Tensor>,
) -> Vec<f64> {
    let mut cache = model.decoder.new_cache();
    let position = |(at, token): (usize, &u32)| {
        let ours = model.decoder.forward(&[*token], &mut cache, None, Logits::Last, &|| false).unwrap();
        common::relative_error(&ours, &theirs(&batch(&[*token]), at).unwrap())
    };
    tokens.iter().enumerate().map(position).collect()
}

/// Holds the stored form to a quantised model of candle's on the same file.
///
/// Both multiply with the same quantised products, so the first position, where attention has nothing to
/// choose, must agree to the last bits (measured: no difference at all, for both models). From the second on, rotary
/// tables differ in their last bit (candle makes them in 32-bit floats, we in 64), and a product rounds its
/// inputs to 8 bits: the first value that falls to the other side carries on through all layers. What is
/// left to compare is the size of that rounding: measured up to 0.03 for SmolLM2 and for Qwen on this
/// text, 0.11 on another, as much as lies between candle's quantised model and our F32 form. That the rest is
/// equal is shown without rounding, on unpacked files, below.
fn as_stored(
    path: &Path,
    peer: impl FnOnce(Content, &mut File) -> Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>,
) {
    let model = load(path, WeightForm::Stored);
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let tokens = model.tokenizer.encode_content(TEXT).unwrap();
    let errors = token_by_token(&model, &tokens[..6], peer(content, &mut file));
    let shown: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
    println!("{}: {}", path.display(), shown.join(" "));
    assert!(errors[0] < 1e-6);
    assert!(errors.iter().all(|e| *e < 0.2));
}

#[test]
fn smollm_agrees_with_quantized_llama() {
    as_stored(&common::model(common::SMOLLM), |content, file| {
        let mut model = quantized_llama::ModelWeights::from_gguf(content, file, &CPU).unwrap();
        Box::new(move |x, at| model.forward(x, at))
    });
}

#[test]
fn qwen_agrees_with_quantized_qwen2() {
    let Some(path) = common::cached_model(common::QWEN) else { return };
    let _alone = one_large_model();
    as_stored(&path, |content, file| {
        let mut model = quantized_qwen2::ModelWeights::from_gguf(content, file, &CPU).unwrap();
        Box::new(move |x, at| model.forward(x, at))
    });
}

/// Holds the F32 form of a real file to candle's full-precision model on the same file, unpacked.
///
/// It is also what Gemma is held to: candle's `quantized_gemma3` has SiLU where Gemma's configuration says
/// GELU, so it cannot be a yardstick.
pub(crate) fn unpacked(path: &Path, model: &BaseModel) {
    let gguf = Gguf::open(path).unwrap();
    let c = &model.config;
    let gemma = c.architecture == Architecture::Gemma3;
    let mut names = vec![TensorName::Embedding, TensorName::OutputNorm, TensorName::Head];
    for layer in 0..c.layers {
        names.extend(Projection::ALL.map(|p| TensorName::Weight(layer, p)));
        names.extend(Projection::ALL.map(|p| TensorName::Bias(layer, p)));
        names.extend([Norm::Attention, Norm::Ffn].map(|norm| TensorName::Norm(layer, norm)));
        if gemma {
            names.extend(
                [Norm::Query, Norm::Key, Norm::PostAttention, Norm::PostFfn]
                    .map(|norm| TensorName::Norm(layer, norm)),
            );
        }
    }
    names.retain(|name| gguf.header().tensor(&name.gguf()).is_some());
    let tensors: HashMap<String, Tensor> = names
        .into_iter()
        .map(|name| {
            let tensor = gguf.dense(&name.gguf(), &CPU).unwrap();
            let tensor = match name {
                // Gemma's checkpoints, and so candle, hold norm weights less one.
                TensorName::Norm(..) | TensorName::OutputNorm if gemma => (tensor - 1.0).unwrap(),
                TensorName::Weight(_, Projection::Q) if c.interleaved_qk => unpermute(&tensor, c.heads),
                TensorName::Weight(_, Projection::K) if c.interleaved_qk => unpermute(&tensor, c.kv_heads),
                _ => tensor,
            };
            (name.hf(c.architecture), tensor)
        })
        .collect();
    let mut config = json!({
        "attention_bias": false, "head_dim": c.head_dim, "hidden_size": c.hidden,
        "intermediate_size": c.ffn, "num_attention_heads": c.heads, "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads, "rms_norm_eps": c.norm_eps, "rope_theta": c.rope.theta,
        "vocab_size": c.vocab, "max_position_embeddings": 1024, "sliding_window": 1024,
        "use_sliding_window": false, "max_window_layers": c.layers, "hidden_act": "silu",
        "tie_word_embeddings": !tensors.contains_key("lm_head.weight"),
    });
    if let Some(sliding) = &c.sliding {
        config["hidden_activation"] = json!("gelu_pytorch_tanh");
        config["query_pre_attn_scalar"] = json!(c.head_dim);
        config["rope_local_base_freq"] = json!(sliding.rope.theta);
        config["sliding_window"] = json!(sliding.window);
        config["sliding_window_pattern"] = json!(sliding.pattern);
    }
    let mut tokens = model.tokenizer.encode_content(TEXT).unwrap();
    tokens.splice(0..0, model.tokenizer.bos());
    let theirs = full_precision(c.architecture, &config, tensors, &tokens);
    let ours = common::all_logits(model, &tokens, None).narrow(0, tokens.len() - 1, 1).unwrap();
    let error = common::relative_error(&ours, &theirs);
    println!("{}: {error:.1e}", path.display());
    assert!(error < REAL_FILE, "{error:.1e}");
}

#[test]
fn smollm_agrees_with_llama_on_the_unpacked_file() {
    unpacked(&common::model(common::SMOLLM), smollm());
}

/// The last position's logits of candle-transformers' full-precision model, of shape (1, vocab).
fn full_precision(
    architecture: Architecture,
    config: &Json,
    tensors: HashMap<String, Tensor>,
    tokens: &[u32],
) -> Tensor {
    fn parsed<T: serde::de::DeserializeOwned>(config: &Json) -> T {
        serde_json::from_value(config.clone()).unwrap()
    }
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &CPU);
    let tokens = batch(tokens);
    let logits = match architecture {
        Architecture::Llama => {
            let config = parsed::<llama::LlamaConfig>(config).into_config(false);
            let mut cache = llama::Cache::new(true, DType::F32, &config, &CPU).unwrap();
            llama::Llama::load(weights, &config).unwrap().forward(&tokens, 0, &mut cache)
        }
        Architecture::Qwen2 => {
            qwen2::ModelForCausalLM::new(&parsed(config), weights).unwrap().forward(&tokens, 0)
        }
        Architecture::Qwen3 => {
            qwen3::ModelForCausalLM::new(&parsed(config), weights).unwrap().forward(&tokens, 0)
        }
        Architecture::Gemma3 => {
            gemma3::Model::new(false, &parsed(config), weights).unwrap().forward(&tokens, 0)
        }
    };
    let logits = logits.unwrap();
    let vocab = logits.elem_count();
    logits.reshape((1, vocab)).unwrap()
}

/// Ours against theirs for every length of prompt given.
fn agrees(tiny: &Tiny, peer_config: &Json, lengths: &[usize]) {
    let model = tiny.load();
    for &length in lengths {
        let tokens = tiny::prompt(length);
        let theirs = full_precision(tiny.architecture, peer_config, tiny.tensors.clone(), &tokens);
        let ours = common::all_logits(&model, &tokens, None).narrow(0, length - 1, 1).unwrap();
        let error = common::relative_error(&ours, &theirs);
        assert!(error < FULL_PRECISION, "{:?}, {length} tokens: {error:.1e}", tiny.architecture);
    }
}

#[test]
fn every_architecture_agrees_on_random_weights() {
    for architecture in Architecture::ALL {
        let tiny = Tiny::new(architecture);
        let mut peer_config = tiny.config.clone();
        let mut lengths = vec![1, 2, 33];
        if architecture == Architecture::Gemma3 {
            // candle lets a sliding layer see one position more than the window says.
            peer_config["sliding_window"] = json!(tiny::WINDOW - 1);
            lengths.push(tiny::WINDOW + 23);
        } else {
            lengths.push(300);
        }
        agrees(&tiny, &peer_config, &lengths);
    }
}

#[test]
fn the_long_context_rope_of_llama_3_agrees_in_both_formats() {
    let mut tiny = Tiny::new(Architecture::Llama);
    let plain = common::all_logits(&tiny.load(), &tiny::prompt(90), None);
    // So short an original context that all three ranges of wavelengths occur.
    tiny.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 200,
    });
    agrees(&tiny, &tiny.config.clone(), &[90]);

    let folder = tiny.load();
    let RopeScaling::PerFrequency(divisors) = &folder.config.rope.scaling else { panic!("no scaling") };
    let distinct = divisors.iter().filter(|d| **d != 1.0 && **d != 8.0).count();
    assert!(divisors.contains(&1.0) && divisors.contains(&8.0) && distinct > 0, "{divisors:?}");
    tiny.gguf_only.push(("rope_freqs.weight".into(), Tensor::new(divisors.as_slice(), &CPU).unwrap()));
    let scaled = common::all_logits(&folder, &tiny::prompt(90), None);
    let file = common::all_logits(&tiny.load_gguf(), &tiny::prompt(90), None);
    assert!(common::relative_error(&file, &scaled) < 1e-6);
    assert!(common::relative_error(&plain, &scaled) > 1e-3, "the scaling does nothing");
}

/// The permuted rows of llama's query and key, and gemma's norms, come out as they are in the checkpoint.
#[test]
fn both_formats_of_one_model_give_the_same_logits() {
    for architecture in Architecture::ALL {
        let tiny = Tiny::new(architecture);
        let (folder, file) = (tiny.load(), tiny.load_gguf());
        assert!(!folder.config.interleaved_qk);
        assert_eq!(file.config.interleaved_qk, architecture == Architecture::Llama);
        let tokens = tiny::prompt(70);
        let (a, b) = (common::all_logits(&file, &tokens, None), common::all_logits(&folder, &tokens, None));
        let error = common::relative_error(&a, &b);
        assert!(error < 1e-6, "{architecture:?}: {error:.1e}");
    }
}
