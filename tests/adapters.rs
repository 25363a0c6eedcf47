//! Adapters at run time: equal to a base whose weights hold the delta, nothing at scale 0, honoured in
//! every key that decides the scale, and refused by name when anything does not fit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use common::gguf_file;
use common::tiny::{self, Random, Tiny, peft_name, random_peft, write_peft};
use serde_json::{Value as Json, json};
use shishin::model::BaseModel;
use shishin::model::config::{Architecture, ModelConfig};
use shishin::model::gguf::{Gguf, Value};
use shishin::model::lora::{Adapter, AdapterFormat};
use shishin::model::tensors::{Projection, TensorName};
use shishin::model::weights::WeightForm;
use tempfile::TempDir;

/// At run time the delta is added to the product, merged it is added to the weight: other roundings.
const MERGED: f64 = 1e-4;

fn plain_config(rank: usize) -> Json {
    json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear",
        "bias": "none", "some_key_of_a_newer_version": {"a": 1},
    })
}

fn load(path: &Path, config: &ModelConfig) -> Result<Adapter, String> {
    Adapter::load(path, config, &Device::Cpu).map_err(|e| e.to_string())
}

/// W + scale · B A for every pair of the PEFT tensors.
fn delta(tensors: &HashMap<String, Tensor>, layer: usize, projection: Projection, scale: f64) -> Tensor {
    let half = |half| &tensors[&peft_name(layer, projection, half)];
    (half('B').matmul(half('A')).unwrap() * scale).unwrap()
}

/// A tiny model with the delta in its weights; `scale` gives α/r of each projection.
fn merged(
    tiny: &Tiny,
    adapter: &HashMap<String, Tensor>,
    targets: &[Projection],
    scale: impl Fn(usize, Projection) -> f64,
) -> BaseModel {
    let mut merged = Tiny { tensors: tiny.tensors.clone(), ..Tiny::new(tiny.architecture) };
    for layer in 0..tiny::LAYERS {
        for &projection in targets {
            let name = TensorName::Weight(layer, projection).hf(tiny.architecture);
            let delta = delta(adapter, layer, projection, scale(layer, projection));
            let weight = (&merged.tensors[&name] + delta).unwrap();
            merged.tensors.insert(name, weight);
        }
    }
    merged.load()
}

/// Base, base with adapter, and merged model on one prompt: the adapter must equal the merged weights and
/// differ from the base by far more than it may differ from them.
fn equals(base: &BaseModel, adapter: &Adapter, merged: &BaseModel, tokens: &[u32]) {
    let plain = common::all_logits(base, tokens, None);
    let adapted = common::all_logits(base, tokens, Some(adapter));
    let expected = common::all_logits(merged, tokens, None);
    let error = common::relative_error(&adapted, &expected);
    let effect = common::relative_error(&adapted, &plain);
    println!("{:?}: error {error:.1e}, effect {effect:.1e}", base.config.architecture);
    assert!(error < MERGED, "{error:.1e}");
    assert!(effect > 100.0 * MERGED, "the adapter hardly does anything: {effect:.1e}");
}

#[test]
fn at_run_time_equals_merged_for_every_architecture_and_both_formats() {
    for architecture in Architecture::ALL {
        let tiny = Tiny::new(architecture);
        let folder = tiny.load();
        let tensors = random_peft(&folder.config, &Projection::ALL, |_, _| 4, 3);
        let dir = TempDir::new().unwrap();
        let path = write_peft(dir.path(), "a", &plain_config(4), &tensors);
        let merged = merged(&tiny, &tensors, &Projection::ALL, |_, _| 2.0);
        // On the GGUF form of llama the rows of q and k are permuted; the adapter's are not.
        for base in [&folder, &tiny.load_gguf()] {
            let adapter = load(&path, &base.config).unwrap();
            assert_eq!(adapter.format(), AdapterFormat::Peft);
            assert_eq!(adapter.pairs().count(), tiny::LAYERS * Projection::ALL.len());
            equals(base, &adapter, &merged, &tiny::prompt(50));
        }
    }
}

/// The small real model as 32-bit floats, loaded once.
fn smollm() -> &'static BaseModel {
    static MODEL: OnceLock<BaseModel> = OnceLock::new();
    MODEL.get_or_init(|| BaseModel::load(&common::model(common::SMOLLM), WeightForm::F32, None).unwrap())
}

#[test]
fn at_run_time_equals_merged_on_a_real_file() {
    let base = smollm();
    let tensors = random_peft(&base.config, &Projection::ALL, |_, _| 8, 5);
    let dir = TempDir::new().unwrap();
    let adapter = load(&write_peft(dir.path(), "a", &plain_config(8), &tensors), &base.config).unwrap();

    // The same file, unpacked, with the delta added where llama.cpp's converter would have put it.
    let gguf = Gguf::open(&common::model(common::SMOLLM)).unwrap();
    let header = gguf.header();
    let mut unpacked: HashMap<String, Tensor> = header
        .tensors
        .iter()
        .map(|info| (info.name.clone(), gguf.dense(&info.name, &Device::Cpu).unwrap()))
        .collect();
    for layer in 0..base.config.layers {
        for projection in Projection::ALL {
            let delta = in_llama_order(delta(&tensors, layer, projection, 2.0), projection, &base.config);
            let name = TensorName::Weight(layer, projection).gguf();
            let weight = (&unpacked[&name] + delta).unwrap();
            unpacked.insert(name, weight);
        }
    }
    let metadata: Vec<(String, Value)> = header.metadata.clone().into_iter().collect();
    let path = dir.path().join("merged.gguf");
    gguf_file::write(&path, &metadata, &unpacked.into_iter().collect::<Vec<_>>());
    let merged = BaseModel::load(&path, WeightForm::F32, None).unwrap();
    let tokens = base.tokenizer.encode_content("Drink water when you have a fever, and rest.").unwrap();
    equals(base, &adapter, &merged, &tokens);
}

/// Rows of a matrix on q or k as a llama-architecture GGUF has them.
fn in_llama_order(matrix: Tensor, projection: Projection, config: &ModelConfig) -> Tensor {
    match projection {
        Projection::Q => gguf_file::permute(&matrix, config.heads),
        Projection::K => gguf_file::permute(&matrix, config.kv_heads),
        _ => matrix,
    }
}

#[test]
fn scale_zero_is_the_base_to_the_last_bit() {
    let real = smollm();
    let tiny = Tiny::new(Architecture::Gemma3).load();
    for base in [real, &tiny] {
        let tensors = random_peft(&base.config, &Projection::ALL, |_, _| 8, 7);
        let dir = TempDir::new().unwrap();
        let adapter = load(&write_peft(dir.path(), "a", &plain_config(8), &tensors), &base.config).unwrap();
        let tokens = tiny::prompt(20);
        let bits = |adapter: Option<&Adapter>| -> Vec<u32> {
            let logits = common::all_logits(base, &tokens, adapter).flatten_all().unwrap();
            logits.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        let plain = bits(None);
        assert!(bits(Some(&adapter)) != plain);
        assert!(bits(Some(&adapter.scaled(0.0))) == plain);
        assert!(bits(Some(&adapter.scaled(1.0))) == bits(Some(&adapter)));
        assert_ne!(adapter.scaled(0.0).fingerprint(), adapter.fingerprint());
    }
}

/// An attached and a bare request do not touch one another: the base is the base after an adapter ran.
#[test]
fn the_base_is_untouched_by_an_adapter() {
    let base = Tiny::new(Architecture::Llama).load();
    let tensors = random_peft(&base.config, &Projection::ALL, |_, _| 4, 9);
    let dir = TempDir::new().unwrap();
    let adapter = load(&write_peft(dir.path(), "a", &plain_config(4), &tensors), &base.config).unwrap();
    let tokens = tiny::prompt(10);
    let before = common::all_logits(&base, &tokens, None);
    common::all_logits(&base, &tokens, Some(&adapter));
    let after = common::all_logits(&base, &tokens, None);
    assert_eq!(before.to_vec2::<f32>().unwrap(), after.to_vec2::<f32>().unwrap());
}

/// rsLoRA, and ranks and alphas by pattern, give the scales that PEFT documents.
#[test]
fn every_key_that_decides_the_scale_is_honoured() {
    let tiny = Tiny::new(Architecture::Qwen2);
    let base = tiny.load();
    let targets = [Projection::Q, Projection::V, Projection::Down];
    let rank = |layer, projection| if (layer, projection) == (1, Projection::V) { 2 } else { 4 };
    let tensors = random_peft(&base.config, &targets, rank, 11);
    let dir = TempDir::new().unwrap();
    let config = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": true,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {"down_proj": 16, "layers.0.*.q_proj": 1},
    });
    let adapter = load(&write_peft(dir.path(), "a", &config, &tensors), &base.config).unwrap();
    let scale = |layer: usize, projection: Projection| {
        let alpha = match (layer, projection) {
            (_, Projection::Down) => 16.0,
            (0, Projection::Q) => 1.0,
            _ => 6.0,
        };
        alpha / (rank(layer, projection) as f64).sqrt()
    };
    for (layer, projection, pair) in adapter.pairs() {
        assert!((pair.scale - scale(layer, projection)).abs() < 1e-12, "layer {layer} {projection}");
    }
    equals(&base, &adapter, &merged(&tiny, &tensors, &targets, scale), &tiny::prompt(40));

    // PEFT's defaults: rank and alpha of 8.
    let tensors = random_peft(&base.config, &[Projection::O], |_, _| 8, 1);
    let config = json!({"peft_type": "LORA", "target_modules": ["o_proj"]});
    let adapter = load(&write_peft(dir.path(), "b", &config, &tensors), &base.config).unwrap();
    assert!(adapter.pairs().all(|(_, _, pair)| pair.scale == 1.0));
}

/// Two patterns may match one module. PEFT takes the first as the file has them, whatever their spelling.
#[test]
fn the_first_pattern_of_the_file_wins() {
    let base = Tiny::new(Architecture::Qwen2).load();
    let tensors = random_peft(&base.config, &[Projection::Q], |_, _| 4, 11);
    let dir = TempDir::new().unwrap();
    let scales = |patterns: &str| -> Vec<f64> {
        let path = write_peft(dir.path(), "a", &json!({}), &tensors);
        let config = format!(
            r#"{{"peft_type":"LORA","r":4,"lora_alpha":4,"target_modules":["q_proj"],"alpha_pattern":{patterns}}}"#
        );
        fs::write(path.join("adapter_config.json"), config).unwrap();
        load(&path, &base.config).unwrap().pairs().map(|(_, _, pair)| pair.scale).collect()
    };
    assert_eq!(scales(r#"{"q_proj": 8, "layers.0.self_attn.q_proj": 12}"#), [2.0, 2.0]);
    assert_eq!(scales(r#"{"layers.0.self_attn.q_proj": 12, "q_proj": 8}"#), [3.0, 2.0]);
}

/// Writes PEFT tensors as llama.cpp's converter writes an adapter.
fn write_gguf_lora(
    path: &Path,
    architecture: Architecture,
    config: &ModelConfig,
    alpha: f64,
    tensors: &HashMap<String, Tensor>,
) {
    let mut out = Vec::new();
    for layer in 0..config.layers {
        for projection in Projection::ALL {
            for half in ['A', 'B'] {
                let Some(tensor) = tensors.get(&peft_name(layer, projection, half)) else { continue };
                let tensor = match (half, architecture) {
                    ('B', Architecture::Llama) => in_llama_order(tensor.clone(), projection, config),
                    _ => tensor.clone(),
                };
                let half = half.to_ascii_lowercase();
                out.push((format!("{}.lora_{half}", TensorName::Weight(layer, projection).gguf()), tensor));
            }
        }
    }
    gguf_file::write(path, &lora_metadata(architecture.as_str(), alpha), &out);
}

fn lora_metadata(architecture: &str, alpha: f64) -> Vec<(String, Value)> {
    let text = |key: &str, value: &str| (key.to_owned(), Value::Str(value.to_owned()));
    vec![
        text("general.type", "adapter"),
        text("adapter.type", "lora"),
        text("general.architecture", architecture),
        ("adapter.lora.alpha".to_owned(), Value::Float(alpha)),
    ]
}

#[test]
fn a_gguf_adapter_is_the_same_as_its_peft_form() {
    for architecture in Architecture::ALL {
        let tiny = Tiny::new(architecture);
        for base in [tiny.load(), tiny.load_gguf()] {
            let tensors = random_peft(&base.config, &Projection::ALL, |_, _| 4, 13);
            let dir = TempDir::new().unwrap();
            let peft = load(&write_peft(dir.path(), "a", &plain_config(4), &tensors), &base.config).unwrap();
            let file = dir.path().join("a.gguf");
            write_gguf_lora(&file, architecture, &base.config, 8.0, &tensors);
            let gguf = load(&file, &base.config).unwrap();
            assert_eq!(gguf.format(), AdapterFormat::GgufLora);
            let tokens = tiny::prompt(30);
            let [a, b] = [&peft, &gguf].map(|adapter| common::all_logits(&base, &tokens, Some(adapter)));
            let error = common::relative_error(&b, &a);
            assert!(error < 1e-6, "{architecture:?}: {error:.1e}");
            let plain = common::all_logits(&base, &tokens, None);
            assert!(common::relative_error(&a, &plain) > 1e-2);
        }
    }
}

#[test]
fn adapters_of_others_load_and_change_the_logits() {
    for (name, folder) in [
        (common::SMOLLM, "smollm-135m-instruct-medical-flashcards-5ep"),
        (common::QWEN, "qwen2.5-0.5b-instruct-r8-qv"),
        (common::GEMMA, "gemma3-270m-it-svg-r4"),
    ] {
        let Some(folder) = common::shared(&format!("data/adapters/{folder}")) else { continue };
        let path =
            if name == common::SMOLLM { Some(common::model(name)) } else { common::cached_model(name) };
        let Some(path) = path else { continue };
        let base = BaseModel::load(&path, WeightForm::Stored, None).unwrap();
        let adapter = load(&folder, &base.config).unwrap();
        let tokens = base.tokenizer.encode_content("What lowers blood pressure without drugs?").unwrap();
        let plain = common::all_logits(&base, &tokens, None);
        let effect = common::relative_error(&common::all_logits(&base, &tokens, Some(&adapter)), &plain);
        println!("{name}: {} pairs, effect {effect:.2}", adapter.pairs().count());
        assert!(effect > 1e-2, "{name}: the adapter does nothing");
        let off = common::all_logits(&base, &tokens, Some(&adapter.scaled(0.0)));
        assert_eq!(off.to_vec2::<f32>().unwrap(), plain.to_vec2::<f32>().unwrap());

        // On any other base it is refused, with tensors and shapes.
        let other = Tiny::new(Architecture::Llama).load();
        let refusal = load(&folder, &other.config).unwrap_err();
        assert!(refusal.contains("does not fit") && refusal.contains("and "), "{refusal}");
    }
}

/// What is said of a sound adapter after a test changed its configuration and tensors.
fn refusal(spoil: impl FnOnce(&mut Json, &mut HashMap<String, Tensor>)) -> String {
    let base = Tiny::new(Architecture::Llama).load();
    let mut tensors = random_peft(&base.config, &Projection::ALL, |_, _| 4, 15);
    let mut config = plain_config(4);
    spoil(&mut config, &mut tensors);
    let dir = TempDir::new().unwrap();
    let folder = write_peft(dir.path(), "a", &config, &tensors);
    let error = load(&folder, &base.config).unwrap_err();
    assert!(error.contains(&folder.display().to_string()), "{error}");
    error
}

/// What is said of a sound PEFT folder, or of what stands in its place, after a test changed its files.
fn refusal_of_files(spoil: impl FnOnce(&Path)) -> String {
    let base = Tiny::new(Architecture::Llama).load();
    let tensors = random_peft(&base.config, &Projection::ALL, |_, _| 4, 15);
    let dir = TempDir::new().unwrap();
    let folder = write_peft(dir.path(), "a", &plain_config(4), &tensors);
    load(&folder, &base.config).unwrap();
    spoil(&folder);
    let error = load(&folder, &base.config).unwrap_err();
    assert!(error.contains(&folder.display().to_string()), "{error}");
    error
}

#[test]
fn other_kinds_of_adapters_are_refused_by_name() {
    for (key, value, name) in [
        ("peft_type", json!("IA3"), "IA3"),
        ("peft_type", json!("LOKR"), "LOKR"),
        ("use_dora", json!(true), "DoRA"),
        ("use_qalora", json!(true), "QALoRA"),
        ("bias", json!("lora_only"), "bias = lora_only"),
        ("lora_bias", json!(true), "lora_bias"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("trainable_token_indices", json!([1, 2]), "trainable_token_indices"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("layer_replication", json!([[0, 1], [0, 1]]), "layer_replication"),
    ] {
        let error = refusal(|config, _| config[key] = value);
        assert!(error.contains(name) && error.contains("does not implement"), "{error}");
    }
    let error = refusal(|config, _| config["r"] = json!(0));
    assert!(error.contains("r = 0"), "{error}");
    let error = refusal(|config, _| config["r"] = json!(5));
    assert!(error.contains("rank 4") && error.contains("says 5"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_all_named() {
    let b = peft_name(1, Projection::Q, 'B');
    let error = refusal(|_, tensors| drop(tensors.remove(&b)));
    assert!(error.contains("layer 1 q_proj: lora_B is missing"), "{error}");

    let extra = "base_model.model.model.layers.0.mlp.router.lora_A.weight";
    let error = refusal(|_, tensors| {
        let tensor = tensors[&b].clone();
        tensors.insert(extra.into(), tensor);
    });
    assert!(error.contains(extra), "{error}");

    let error = refusal(|_, tensors| {
        drop(tensors.remove(&peft_name(0, Projection::Up, 'A')));
        drop(tensors.remove(&peft_name(0, Projection::Up, 'B')));
    });
    assert!(error.contains("layer 0 up_proj is a target and has no tensors"), "{error}");

    let error = refusal(|config, _| config["target_modules"] = json!(["q_proj"]));
    assert!(error.contains("target_modules") && error.contains("and "), "{error}");

    let mut random = Random::new(1);
    let error = refusal(|_, tensors| {
        tensors.insert(b.clone(), random.tensor(&[12, 4], 0.0, 1.0));
        tensors.insert(peft_name(0, Projection::Down, 'A'), random.tensor(&[3, tiny::FFN], 0.0, 1.0));
        tensors.insert(peft_name(7, Projection::K, 'A'), random.tensor(&[4, tiny::HIDDEN], 0.0, 1.0));
    });
    for part in [b.as_str(), "[12, 4]", "lora_A has rank 3 and lora_B 4", "the base has 2 layers"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }

    // A rank of nothing would divide by it.
    let error = refusal(|config, tensors| {
        config["rank_pattern"] = json!({"layers.0.self_attn.q_proj": 0});
        let empty = |shape: [usize; 2]| Tensor::zeros(&shape[..], candle_core::DType::F32, &Device::Cpu);
        tensors.insert(peft_name(0, Projection::Q, 'A'), empty([0, tiny::HIDDEN]).unwrap());
        tensors.insert(peft_name(0, Projection::Q, 'B'), empty([tiny::HIDDEN, 0]).unwrap());
    });
    assert!(error.contains("layer 0 q_proj: a rank of 0"), "{error}");
}

#[test]
fn unsound_files_are_refused() {
    let weights = "adapter_model.safetensors";
    let config = "adapter_config.json";
    let error = refusal_of_files(|folder| fs::remove_file(folder.join(config)).unwrap());
    assert!(error.contains(config), "{error}");
    let error = refusal_of_files(|folder| fs::write(folder.join(config), "{").unwrap());
    assert!(error.contains(config), "{error}");
    let error = refusal_of_files(|folder| fs::remove_file(folder.join(weights)).unwrap());
    assert!(error.contains(weights), "{error}");
    for keep in [0, 7, 100, 2000] {
        let error = refusal_of_files(|folder| {
            let bytes = fs::read(folder.join(weights)).unwrap();
            assert!(bytes.len() > keep);
            fs::write(folder.join(weights), &bytes[..keep]).unwrap();
        });
        assert!(error.contains(weights), "{error}");
    }
    let error = refusal_of_files(|folder| {
        fs::rename(folder.join(weights), folder.join("adapter_model.bin")).unwrap();
    });
    assert!(error.contains("adapter_model.bin") && error.contains("safe_serialization"), "{error}");
    let error = refusal_of_files(|folder| fs::remove_dir_all(folder).unwrap());
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn gguf_files_that_are_no_adapter_for_this_base_are_refused() {
    let gguf = |metadata: Vec<(String, Value)>, name: &str| {
        let tensor = Random::new(1).tensor(&[4, tiny::HIDDEN], 0.0, 1.0);
        refusal_of_files(|path| {
            fs::remove_dir_all(path).unwrap();
            gguf_file::write(path, &metadata, &[(name.to_owned(), tensor)]);
        })
    };
    let name = "blk.0.attn_q.weight.lora_a";
    let error = refusal_of_files(|path| {
        fs::remove_dir_all(path).unwrap();
        Tiny::new(Architecture::Llama).write_gguf(path);
    });
    assert!(error.contains("general.type"), "{error}");
    let mut model = lora_metadata("llama", 8.0);
    model[0].1 = Value::Str("model".into());
    let error = gguf(model, name);
    assert!(error.contains("`model`: this is no adapter"), "{error}");
    let mut vector = lora_metadata("llama", 8.0);
    vector[1].1 = Value::Str("control_vector".into());
    let error = gguf(vector, name);
    assert!(error.contains("control_vector") && error.contains("does not implement"), "{error}");
    let error = gguf(lora_metadata("qwen2", 8.0), name);
    assert!(error.contains("made for `qwen2` and the base is `llama`"), "{error}");
    let error = gguf(lora_metadata("llama", 8.0), name);
    assert!(error.contains("layer 0 q_proj: lora_B is missing"), "{error}");
    let error = gguf(lora_metadata("llama", 8.0), "token_embd.weight.lora_a");
    assert!(error.contains("token_embd.weight.lora_a"), "{error}");
    let error = refusal_of_files(|path| {
        fs::remove_dir_all(path).unwrap();
        fs::write(path, b"PK\x03\x04 no adapter").unwrap();
    });
    assert!(error.contains("does not start with `GGUF`"), "{error}");
}

#[test]
fn the_fingerprint_follows_content_and_not_the_name() {
    let base = Tiny::new(Architecture::Llama).load();
    let dir = TempDir::new().unwrap();
    let print = |name: &str, config: &Json, seed: u64| {
        let tensors = random_peft(&base.config, &Projection::ALL, |_, _| 4, seed);
        let path = write_peft(dir.path(), name, config, &tensors);
        load(&path, &base.config).unwrap().fingerprint().to_owned()
    };
    let first = print("a", &plain_config(4), 1);
    assert_eq!(first, print("another-name", &plain_config(4), 1));
    let mut config = plain_config(4);
    config["lora_alpha"] = json!(9);
    let others = [print("a", &config, 1), print("a", &plain_config(4), 2)];
    assert!(!others.contains(&first) && others[0] != others[1]);
}
