//! The decoder against itself: prompts in pieces, cancelling, and what must be refused.

use std::cell::Cell;

use candle_core::Tensor;
use serde_json::json;
use shishin::model::BaseModel;
use shishin::model::config::Architecture;
use shishin::model::decoder::{DecodeError, Logits};
use shishin::model::weights::WeightForm;
use tempfile::TempDir;

use super::common::tiny::{self, Tiny};
use super::{common, load, smollm};

/// Runs a prompt in chunks; the logits of all positions.
fn in_chunks(model: &BaseModel, tokens: &[u32], size: usize) -> Tensor {
    let mut cache = model.decoder.new_cache();
    let parts: Vec<Tensor> = tokens
        .chunks(size)
        .map(|chunk| model.decoder.forward(chunk, &mut cache, None, Logits::All, &|| false).unwrap())
        .collect();
    assert_eq!(cache.len(), tokens.len());
    Tensor::cat(&parts, 0).unwrap()
}

/// 300 positions: the cache grows past its first 256, and gemma's first layer slides.
#[test]
fn a_prompt_in_pieces_gives_the_same_logits() {
    for architecture in Architecture::ALL {
        let model = Tiny::new(architecture).load();
        let tokens = tiny::prompt(300);
        let whole = common::all_logits(&model, &tokens, None);
        for size in [1, 7, 64, 299] {
            let error = common::relative_error(&in_chunks(&model, &tokens, size), &whole);
            assert!(error < 1e-5, "{architecture:?} in chunks of {size}: {error:.1e}");
        }
    }
}

#[test]
fn a_real_prompt_in_pieces_gives_the_same_logits() {
    let model = smollm();
    let text = "Measure blood pressure on both arms, and again after five minutes of rest. ".repeat(5);
    let tokens = &model.tokenizer.encode_content(&text).unwrap()[..64];
    let whole = common::all_logits(model, tokens, None);
    for size in [7, 63] {
        let error = common::relative_error(&in_chunks(model, tokens, size), &whole);
        assert!(error < 1e-5, "in chunks of {size}: {error:.1e}");
    }
}

/// From eight rows on, a quantised weight is expanded to floats block by block: what comes out is then the
/// F32 form's result but for the order of sums. Measured 6e-7.
#[test]
fn a_stored_model_reads_a_prompt_as_its_unpacked_form_does() {
    let stored = load(&common::model(common::SMOLLM), WeightForm::Stored);
    let tokens = stored.tokenizer.encode_content("Rest, drink water, and measure the fever again.").unwrap();
    assert!(tokens.len() >= 8);
    let (a, b) = (common::all_logits(&stored, &tokens, None), common::all_logits(smollm(), &tokens, None));
    let error = common::relative_error(&a, &b);
    println!("smollm2-135m, stored against F32: {error:.1e}");
    assert!(error < 1e-5, "{error:.1e}");
}

#[test]
fn the_last_position_is_the_last_of_all() {
    let model = Tiny::new(Architecture::Qwen2).load();
    let tokens = tiny::prompt(12);
    let all = common::all_logits(&model, &tokens, None);
    let last = model
        .decoder
        .forward(&tokens, &mut model.decoder.new_cache(), None, Logits::Last, &|| false)
        .unwrap();
    assert_eq!((all.dims(), last.dims()), (&[12, tiny::VOCAB][..], &[1, tiny::VOCAB][..]));
    assert!(common::relative_error(&last, &all.narrow(0, 11, 1).unwrap()) < 1e-6);
}

#[test]
fn cancelling_stops_between_layers() {
    let model = smollm();
    let asked = Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() == 3
    };
    let result =
        model.decoder.forward(&[1, 2, 3], &mut model.decoder.new_cache(), None, Logits::Last, &cancelled);
    assert!(matches!(result, Err(DecodeError::Cancelled)), "{result:?}");
    assert_eq!(asked.get(), 3);
}

#[test]
fn impossible_runs_are_errors_and_leave_the_cache_as_it_was() {
    let model = Tiny::new(Architecture::Llama).load();
    let mut cache = model.decoder.new_cache();
    let mut run = |tokens: &[u32]| model.decoder.forward(tokens, &mut cache, None, Logits::Last, &|| false);
    let vocab = u32::try_from(tiny::VOCAB).unwrap();
    assert!(matches!(run(&[0, vocab]), Err(DecodeError::Token { token, .. }) if token == vocab));
    assert!(matches!(run(&[]), Err(DecodeError::Empty)));
    let over = tiny::CONTEXT + 1;
    assert!(matches!(run(&tiny::prompt(over)), Err(DecodeError::Context { asked, context })
            if (asked, context) == (over, tiny::CONTEXT)));
    run(&tiny::prompt(tiny::CONTEXT)).unwrap();
    assert!(matches!(run(&[0]), Err(DecodeError::Context { asked, .. }) if asked == over));
    assert_eq!(cache.len(), tiny::CONTEXT);
}

/// A checkpoint that would compute something else is refused with the name of the tensor or the key.
#[test]
fn unsound_folders_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Tiny)| {
        let mut tiny = Tiny::new(Architecture::Qwen2);
        change(&mut tiny);
        let dir = TempDir::new().unwrap();
        tiny.write(dir.path());
        let error = BaseModel::load(dir.path(), WeightForm::F32, None).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        error
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let missing = refused(&|tiny| drop(tiny.tensors.remove(name)));
    assert!(missing.contains(name), "{missing}");
    let extra = refused(&|tiny| {
        let tensor = tiny.tensors[name].clone();
        drop(tiny.tensors.insert("model.layers.1.mlp.router.weight".into(), tensor));
    });
    assert!(extra.contains("model.layers.1.mlp.router.weight"), "{extra}");
    let shape = refused(&|tiny| {
        let tensor = tiny.tensors[name].t().unwrap().contiguous().unwrap();
        drop(tiny.tensors.insert(name.into(), tensor));
    });
    assert!(shape.contains(name) && shape.contains("[32, 48]"), "{shape}");
    let heads = refused(&|tiny| tiny.config["num_key_value_heads"] = json!(3));
    assert!(heads.contains("4 heads over 3"), "{heads}");
    let activation = refused(&|tiny| tiny.config["hidden_act"] = json!("relu"));
    assert!(activation.contains("relu"), "{activation}");
    let kind = refused(&|tiny| tiny.config["model_type"] = json!("mamba"));
    assert!(kind.contains("mamba"), "{kind}");
}

/// `transformers` 5 puts the rope into `rope_parameters` and lists the layers; it is the same model.
#[test]
fn both_ways_to_write_a_rope_are_read() {
    for architecture in Architecture::ALL {
        let mut tiny = Tiny::new(architecture);
        let gemma = architecture == Architecture::Gemma3;
        tiny.config["rope_theta"] = json!(123_456.0);
        tiny.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
        let older = tiny.load().config;

        let global = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 123_456.0});
        tiny.config["rope_parameters"] = match gemma {
            true => json!({
                "full_attention": global,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            }),
            false => global,
        };
        for key in ["rope_theta", "rope_scaling", "rope_local_base_freq"] {
            tiny.config.as_object_mut().unwrap().remove(key);
        }
        let first = if gemma { "sliding_attention" } else { "full_attention" };
        tiny.config["layer_types"] = json!([first, "full_attention"]);
        assert_eq!(tiny.load().config, older);

        tiny.config["layer_types"] = json!([first, "sliding_attention"]);
        let dir = TempDir::new().unwrap();
        tiny.write(dir.path());
        let error = BaseModel::load(dir.path(), WeightForm::F32, None).unwrap_err().to_string();
        assert!(error.contains("sliding_attention") && error.contains("layer 1"), "{error}");
    }
}

#[test]
fn a_file_other_than_the_expected_one_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("tiny.gguf");
    Tiny::new(Architecture::Llama).write_gguf(&path);
    let sum = BaseModel::load(&path, WeightForm::Stored, None).unwrap().fingerprint;
    BaseModel::load(&path, WeightForm::Stored, Some(&sum)).unwrap();
    let other = "0".repeat(64);
    let error = BaseModel::load(&path, WeightForm::Stored, Some(&other)).unwrap_err().to_string();
    assert!(error.contains(&sum) && error.contains(&other), "{error}");
}
