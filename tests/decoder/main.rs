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
