//! The reference decoder against other programs and against itself.
//!
//! [`llama_cpp`] holds greedy continuations of real models to llama.cpp's; [`candle`] holds logits to
//! candle-transformers, on the real files and on tiny random models of every architecture; [`cache`]
//! holds the decoder to itself when a prompt comes in pieces, and tries what it must refuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

mod cache;
mod candle;
#[path = "../common/mod.rs"]
mod common;
mod llama_cpp;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use shishin::model::BaseModel;
use shishin::model::weights::WeightForm;

/// The small model as 32-bit floats, loaded once for all tests.
fn smollm() -> &'static BaseModel {
    static MODEL: OnceLock<BaseModel> = OnceLock::new();
    MODEL.get_or_init(|| load(&common::model(common::SMOLLM), WeightForm::F32))
}

fn load(path: &Path, form: WeightForm) -> BaseModel {
    BaseModel::load(path, form, None).unwrap_or_else(|e| panic!("{e}"))
}

/// Held while a model of gigabytes is in memory, so that there is one of them at a time.
fn one_large_model() -> MutexGuard<'static, ()> {
    static LARGE: Mutex<()> = Mutex::new(());
    LARGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The golden continuations and candle's model in one test each for the larger two: their floats are
/// gigabytes and take seconds to unpack.
#[test]
fn qwen_in_floats_agrees_with_llama_cpp_and_candle() {
    let Some(path) = common::cached_model(common::QWEN) else { return };
    let _alone = one_large_model();
    let model = load(&path, WeightForm::F32);
    llama_cpp::every_choice_is_the_same(&model, "qwen2.5-coder-0.5b-f32");
    candle::unpacked(&path, &model);
}

/// One of the prompts is longer than the sliding window.
#[test]
fn gemma_in_floats_agrees_with_llama_cpp_and_candle() {
    let Some(path) = common::cached_model(common::GEMMA) else { return };
    let _alone = one_large_model();
    let model = load(&path, WeightForm::F32);
    llama_cpp::every_choice_is_the_same(&model, "gemma3-270m-f32");
    let (_, window) = model.config.layer_attention(0);
    assert!(llama_cpp::longest("gemma3-270m-f32") > window.unwrap());
    candle::unpacked(&path, &model);
}
