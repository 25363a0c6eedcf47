//! Greedy continuations of the real models against llama.cpp's, both computing with 32-bit floats on the
//! same unpacked weights. `tests/fixtures/README.md` says how the golden ids were made.

use candle_core::Tensor;
use shishin::model::BaseModel;
use shishin::model::decoder::Logits;

use super::{common, smollm};

/// Where llama.cpp's best two logits are closer than this, rounding may choose either. In the golden files
/// of 32-bit floats only one step of Qwen's comes near, with 0.0105; no step has needed it so far.
const TIE: f64 = 0.02;

struct Prompt {
    name: String,
    prompt: Vec<u32>,
    ids: Vec<u32>,
    /// How far the runner-up was behind; unknown where a token ends within a character.
    gaps: Vec<Option<f64>>,
}

fn prompts(file: &str) -> Vec<Prompt> {
    let json = common::fixture(&format!("greedy/{file}.json"));
    let prompts = json["prompts"].as_array().unwrap();
    prompts
        .iter()
        .map(|p| Prompt {
            name: p["name"].as_str().unwrap().to_owned(),
            prompt: common::ids(&p["prompt_ids"]),
            ids: common::ids(&p["ids"]),
            gaps: p["gap"].as_array().unwrap().iter().map(serde_json::Value::as_f64).collect(),
        })
        .collect()
}

/// Our choice at every step when llama.cpp's tokens are fed, whatever we would have chosen before: one
/// difference then costs one step and not all that follow.
fn choices(model: &BaseModel, prompt: &Prompt) -> Vec<u32> {
    let (last, first) = prompt.prompt.split_last().unwrap();
    let mut cache = model.decoder.new_cache();
    let mut run = |tokens: &[u32], logits| -> Tensor {
        model.decoder.forward(tokens, &mut cache, None, logits, &|| false).unwrap()
    };
    run(first, Logits::Last);
    let fed: Vec<u32> = [&[*last], &prompt.ids[..prompt.ids.len() - 1]].concat();
    common::argmax(&run(&fed, Logits::All))
}

/// Every step of every prompt of a golden file, of which there must be five.
pub(crate) fn every_choice_is_the_same(model: &BaseModel, file: &str) {
    let prompts = prompts(file);
    assert!(prompts.len() >= 5, "{file} has {} prompts", prompts.len());
    for prompt in &prompts {
        let ours = choices(model, prompt);
        assert_eq!(ours.len(), prompt.ids.len());
        for (step, (ours, theirs)) in ours.iter().zip(&prompt.ids).enumerate() {
            let tie = prompt.gaps[step].is_some_and(|gap| gap < TIE);
            assert!(ours == theirs || tie, "{file} {} step {step}: {ours}, not {theirs}", prompt.name);
        }
    }
}

#[test]
fn smollm_continues_five_prompts_as_llama_cpp_does() {
    let model = smollm();
    let prompts = prompts("smollm2-135m-f32");
    assert!(prompts.len() >= 5);
    for Prompt { name, prompt, ids, .. } in prompts {
        let mut cache = model.decoder.new_cache();
        let mut feed = prompt;
        for (step, theirs) in ids[..24].iter().enumerate() {
            let logits = model.decoder.forward(&feed, &mut cache, None, Logits::Last, &|| false).unwrap();
            let ours = common::argmax(&logits)[0];
            assert_eq!(ours, *theirs, "{name} step {step}");
            feed = vec![ours];
        }
    }
}

#[test]
fn smollm_chooses_the_same_when_all_steps_run_at_once() {
    every_choice_is_the_same(smollm(), "smollm2-135m-f32");
}

/// The tokens of the longest prompt of a golden file.
pub(crate) fn longest(file: &str) -> usize {
    prompts(file).iter().map(|p| p.prompt.len()).max().unwrap()
}
