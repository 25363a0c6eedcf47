//! The fast decoder on unquantised weights computes what the reference decoder does.

use candle_core::{Device, Tensor};
use shishin::model::config::Architecture;
use shishin::model::fast::PackedAdapter;
use shishin::model::weights::WeightForm;

use super::common::{self, relative_error, tiny};
use super::{Alone, all_logits, cpu, load, random_adapter};

/// Keys and values are kept in half precision (5e-4 each); everything else is 32-bit sums in another order.
const SAME: f64 = 2e-3;

fn tensor(logits: Vec<f32>, rows: usize) -> Tensor {
    let vocab = logits.len() / rows;
    Tensor::from_vec(logits, (rows, vocab), &Device::Cpu).unwrap()
}

#[test]
fn every_architecture_agrees_from_both_formats() {
    for architecture in Architecture::ALL {
        let model = tiny::Tiny::new(architecture);
        let folder = tempfile::tempdir().unwrap();
        model.write(folder.path());
        let file = folder.path().join("model.gguf");
        model.write_gguf(&file);
        // Past the window of the sliding layer.
        let tokens = tiny::prompt(3 * tiny::WINDOW);
        let reference = common::all_logits(&model.load(), &tokens, None);
        for (path, form) in
            [(folder.path(), WeightForm::Stored), (&*file, WeightForm::Stored), (&*file, WeightForm::F32)]
        {
            let fast = load(path, form, cpu());
            let logits = tensor(all_logits(&fast, &tokens, None), tokens.len());
            let error = relative_error(&logits, &reference);
            assert!(error < SAME, "{architecture:?} {}: {error}", path.display());
        }
    }
}

#[test]
fn the_small_model_in_floats_agrees() {
    let path = common::model(common::SMOLLM);
    let fast = load(&path, WeightForm::F32, cpu());
    let reference = shishin::model::BaseModel::load(&path, WeightForm::F32, None).unwrap();
    let tokens = super::guideline_tokens(&fast, "en", 200);
    let logits = tensor(all_logits(&fast, &tokens, None), tokens.len());
    let error = relative_error(&logits, &common::all_logits(&reference, &tokens, None));
    assert!(error < SAME, "{error}");
}

#[test]
fn adapters_add_what_they_add_to_the_reference() {
    for architecture in Architecture::ALL {
        let model = tiny::Tiny::new(architecture);
        let folder = tempfile::tempdir().unwrap();
        model.write(folder.path());
        let reference = model.load();
        let adapter = random_adapter(folder.path(), &reference.config, 5, 1);
        let fast = load(folder.path(), WeightForm::Stored, cpu());
        let packed = PackedAdapter::pack(&adapter, &fast.decoder).unwrap();
        assert_eq!(packed.fingerprint(), adapter.fingerprint());
        let tokens = tiny::prompt(50);
        let with = common::all_logits(&reference, &tokens, Some(&adapter));
        let without = common::all_logits(&reference, &tokens, None);
        let ours = tensor(all_logits(&fast, &tokens, Some(&packed)), tokens.len());
        let error = relative_error(&ours, &with);
        assert!(error < SAME, "{architecture:?}: {error}");
        assert!(relative_error(&with, &without) > 0.05, "an adapter that does something");
    }
}

/// On a quantised base an adapter is 8-bit too; that must not add to the error that 8-bit inputs make anyway.
#[test]
fn an_adapter_on_a_quantised_base_costs_no_accuracy() {
    let path = common::model(common::SMOLLM);
    let reference = shishin::model::BaseModel::load(&path, WeightForm::F32, None).unwrap();
    let fast = super::smollm();
    let folder = tempfile::tempdir().unwrap();
    let adapter = random_adapter(folder.path(), &fast.config, 16, 3);
    let packed = PackedAdapter::pack(&adapter, &fast.decoder).unwrap();
    let tokens = super::guideline_tokens(fast, "en", 100);
    let [plain, adapted] = [None, Some((&adapter, &packed))].map(|adapter| {
        let theirs = common::all_logits(&reference, &tokens, adapter.map(|a| a.0));
        let ours = tensor(all_logits(fast, &tokens, adapter.map(|a| a.1)), tokens.len());
        (relative_error(&ours, &theirs), theirs)
    });
    let effect = relative_error(&adapted.1, &plain.1);
    println!(
        "error {:.4} without, {:.4} with an adapter that changes logits by {effect:.3}",
        plain.0, adapted.0
    );
    assert!(effect > 0.1, "an adapter that does something: {effect}");
    assert!(adapted.0 < 1.5 * plain.0, "{} with it, {} without", adapted.0, plain.0);
}

#[test]
fn what_cannot_be_run_is_refused() {
    use shishin::model::decoder::DecodeError;
    let model = tiny::Tiny::new(Architecture::Llama);
    let folder = tempfile::tempdir().unwrap();
    model.write(folder.path());
    let fast = load(folder.path(), WeightForm::Stored, cpu());
    let mut cache = shishin::kernels::KvCache::new(fast.decoder.cache_shape(), 1);
    let mut workspace = shishin::model::fast::Workspace::default();
    let piece = |tokens, position| shishin::model::fast::Piece {
        tokens,
        position,
        pages: &[0],
        adapter: None,
        before: 0,
        logits: 1,
    };
    let mut run = |pieces: &[_], cancelled: bool| {
        fast.decoder.forward(pieces, &mut cache, &mut workspace, &|| cancelled).map(<[f32]>::len)
    };
    assert!(matches!(run(&[], false), Err(DecodeError::Empty)));
    assert!(matches!(run(&[piece(&[], 0)], false), Err(DecodeError::Empty)));
    assert!(matches!(run(&[piece(&[1_000_000], 0)], false), Err(DecodeError::Token { .. })));
    assert!(matches!(run(&[piece(&[1], tiny::CONTEXT)], false), Err(DecodeError::Context { .. })));
    assert!(matches!(run(&[piece(&[1], 0)], true), Err(DecodeError::Cancelled)));
    assert_eq!(run(&[piece(&[1, 2], 0)], false).unwrap(), tiny::VOCAB);
    // Half a page further on is still within the page.
    let mut alone = Alone::new(&fast, 16, None);
    alone.run(&[1, 2, 3], 0);
    assert_eq!(alone.run(&[4], 1).len(), tiny::VOCAB);
}
