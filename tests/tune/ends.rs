//! Runs that end otherwise than with an adapter: when they are asked to, wherever they are, and where a number is none.

use candle_core::{Device, Tensor};
use shishin::model::config::Architecture;
use shishin::model::tensors::TensorName;
use shishin::tune::examples::Example;
use shishin::tune::run::{Outcome, RunError, Step};
use shishin::tune::settings::TrainingSettings;

use super::common::tiny::Tiny;
use super::runs::{Watcher, Workplace, done, record, settings};

#[test]
fn a_run_that_is_asked_to_stop_does_so_in_checks_and_looks_too() {
    let mut place = Workplace::new(Architecture::Llama);
    // Each example runs alone: the self-test asks three times whether to stop, a look at two examples twice, a step once for each of three.
    let settings = TrainingSettings { row_tokens: 1, evaluate_every: 1, epochs: 2, ..settings() };
    let end = |place: &Workplace, name: &str| {
        done(place.run(&place.folder(name), &settings, &mut Watcher::new(usize::MAX)).unwrap()).hash
    };
    let whole = end(&place, "whole");
    for looks in 0..16 {
        let name = format!("stopped after {looks}");
        let mut watcher = Watcher::new(looks);
        let stopped = place.run(&place.folder(&name), &settings, &mut watcher).unwrap();
        // The look belongs to its step: it is done before anything else when the run goes on.
        let (step, written) = match looks {
            0..=7 => (0, 0),
            8..=9 => (1, 0),
            10..=12 => (1, 1),
            13..=14 => (2, 1),
            _ => (2, 2),
        };
        assert_eq!((stopped, watcher.losses.len()), (Outcome::Stopped(step), written), "{looks}");
        let said = |what: &str| watcher.notes.iter().any(|note| note.starts_with(what));
        assert_eq!((said("self-test"), said("validation loss")), (looks > 2, looks > 4), "{looks}");
        assert_eq!(end(&place, &name), whole, "{looks}");
        assert_eq!(record(&place.folder(&name)), record(&place.folder("whole")), "{looks}");
    }
    // The budget's text is looked at twice more: by the base after the first look, and at each look.
    place.budget = Some((place.valid.clone(), 1e9));
    let whole = end(&place, "whole with a budget");
    for (looks, step) in [(5, 0), (6, 0), (12, 1), (13, 1)] {
        let name = format!("stopped after {looks} with a budget");
        let stopped = place.run(&place.folder(&name), &settings, &mut Watcher::new(looks)).unwrap();
        assert_eq!(stopped, Outcome::Stopped(step), "{looks}");
        // Asked to stop once more where it goes on: nothing is lost by that either.
        let again = place.run(&place.folder(&name), &settings, &mut Watcher::new(1)).unwrap();
        assert_eq!(again, Outcome::Stopped(step), "{looks}");
        assert_eq!(end(&place, &name), whole, "{looks}");
        assert_eq!(record(&place.folder(&name)), record(&place.folder("whole with a budget")), "{looks}");
    }
}

/// A token that stands in no example.
const BROKEN: u32 = b'Z' as u32;

/// A base to which that token says no number.
fn broken() -> Workplace {
    let mut tiny = Tiny::new(Architecture::Llama);
    let name = TensorName::Embedding.hf(Architecture::Llama);
    let mut rows: Vec<Vec<f32>> = tiny.tensors[&name].to_vec2().unwrap();
    rows[BROKEN as usize].fill(f32::NAN);
    let shape = (rows.len(), rows[0].len());
    tiny.tensors.insert(name, Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap());
    Workplace::of(&tiny, false)
}

/// Puts it where something is still to be said after it.
fn spoil(example: &mut Example) {
    let at = example.learnt.windows(2).position(|pair| pair[0] && pair[1]).unwrap();
    example.tokens[at] = BROKEN;
}

/// The step, what was no number, and where.
fn not_finite(ended: Result<Outcome, RunError>) -> (usize, &'static str, String) {
    match ended {
        Err(RunError::NotFinite { step, what, place, .. }) => (step, what, place),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_names_the_example() {
    let mut place = broken();
    let settings = settings();
    let folder = place.folder("train");
    // Not the first of its step, and not of the first step, whose examples the self-test takes.
    let spoilt = place.spine(&folder, &settings).members(2)[1].place.clone();
    spoil(place.train.iter_mut().find(|example| example.place == spoilt).unwrap());
    let ended = place.run(&folder, &settings, &mut Watcher::new(usize::MAX));
    let message = ended.as_ref().unwrap_err().to_string();
    assert!(message.contains(&format!("step 2: the loss of {spoilt} is NaN")), "{message}");
    assert_eq!(not_finite(ended), (2, "loss", spoilt));

    // Nor does a validation loss that is none become the lowest.
    let mut place = broken();
    spoil(&mut place.valid[1]);
    let ended = place.run(&place.folder("valid"), &settings, &mut Watcher::new(usize::MAX));
    assert_eq!(not_finite(ended), (0, "loss", place.valid[1].place.clone()));
    // A step of infinite length.
    let place = Workplace::new(Architecture::Llama);
    let far = TrainingSettings { learning_rate: 1e39, evaluate_every: 1, checkpoint_every: 1, ..settings };
    for _ in 0..2 {
        let ended = place.run(&place.folder("far"), &far, &mut Watcher::new(usize::MAX));
        let (step, what, found) = not_finite(ended);
        assert_eq!((step, what), (1, "loss"));
        assert!(found.contains("valid.jsonl:"), "{found}");
    }
}

#[test]
fn a_gradient_that_is_no_number_is_laid_at_its_own_example() {
    let mut place = Workplace::new(Architecture::Qwen2);
    let settings = TrainingSettings { quote_weight: f32::INFINITY, ..settings() };
    let folder = place.folder("run");
    let spoilt = place.spine(&folder, &settings).members(2)[2].place.clone();
    let example = place.train.iter_mut().find(|example| example.place == spoilt).unwrap();
    // Its loss is a number, which is shown without weights; its gradient is not.
    example.choices = example.learnt.iter().position(|learnt| *learnt).into_iter().collect();
    let ended = place.run(&folder, &settings, &mut Watcher::new(usize::MAX));
    assert_eq!(not_finite(ended), (2, "gradient", spoilt));
}

#[test]
fn a_step_counts_the_tokens_that_ran() {
    for late in [false, true] {
        let place = Workplace::with(Architecture::Llama, late);
        let settings = TrainingSettings { steps: 1, batch: 7, ..settings() };
        done(place.run(&place.folder("run"), &settings, &mut Watcher::new(usize::MAX)).unwrap());
        let record = std::fs::read_to_string(place.folder("run").join("metrics.jsonl")).unwrap();
        let step: Step = serde_json::from_str(record.lines().nth(1).unwrap()).unwrap();
        let ran: usize = place.train.iter().map(|example| example.active().len()).sum();
        let all: usize = place.train.iter().map(|example| example.tokens.len()).sum();
        assert_eq!((step.tokens, ran < all), (ran, late));
    }
}
