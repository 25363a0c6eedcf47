//! What the tests of models share: where a model lies, golden figures, and how far two logit vectors are
//! apart. Each test program uses its own part of it.

#![allow(dead_code, reason = "each test program includes this and uses its own part")]

pub(crate) mod gguf_file;
pub(crate) mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use shishin::model::BaseModel;
use shishin::model::catalog::Catalog;
use shishin::model::decoder::Logits;
use shishin::model::fetch::{self, FetchOptions};
use shishin::model::lora::Adapter;

/// The small model that the tests always have.
pub(crate) const SMOLLM: &str = "smollm2-135m";
/// The default of `serve`: English and Japanese, byte-level BPE with biases on q, k and v.
pub(crate) const QWEN: &str = "qwen2.5-coder-0.5b";
/// SentencePiece, norms on both sides, sliding windows.
pub(crate) const GEMMA: &str = "gemma3-270m";

/// The user's cache folder: the place that `shishin serve` uses when nothing else is configured.
#[allow(clippy::disallowed_methods, reason = "a test has no configuration to take the folder from")]
fn cache_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name);
    fetch::default_cache_dir(variable("XDG_CACHE_HOME").as_deref(), variable("HOME").as_deref())
        .expect("neither XDG_CACHE_HOME nor HOME names a folder for models")
}

/// The path of a catalog model, fetched into the user's cache if it is not there yet.
pub(crate) fn model(name: &str) -> PathBuf {
    let catalog = Catalog::builtin().unwrap();
    fetch::ensure(catalog.get(name).unwrap(), &FetchOptions::new(cache_dir()), &mut ())
        .unwrap_or_else(|e| panic!("{e}"))
}

/// The path of a catalog model if it is in the user's cache; else says that the test is skipped.
pub(crate) fn cached_model(name: &str) -> Option<PathBuf> {
    let catalog = Catalog::builtin().unwrap();
    if fetch::is_present(catalog.get(name).unwrap(), &cache_dir()) {
        return Some(model(name));
    }
    println!("skipped: {name} is not in the cache (shishin model pull {name})");
    None
}

/// All three language models that are here: the small one always, the others if they are cached.
pub(crate) fn models() -> impl Iterator<Item = (&'static str, PathBuf)> {
    [SMOLLM, QWEN, GEMMA].into_iter().filter_map(|name| {
        let path = if name == SMOLLM { Some(model(name)) } else { cached_model(name) };
        path.map(|path| (name, path))
    })
}

/// A folder of public test data in `shared`, beside the repository; says that the test is skipped where there
/// is none.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found =
        repository.parent().map(|parent| parent.join("shared").join(name)).filter(|path| path.is_dir());
    if found.is_none() {
        println!("skipped: there is no ../shared/{name}");
    }
    found
}

/// A golden file below `tests/fixtures`; its README says which program made it.
pub(crate) fn fixture(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A JSON list of token ids.
pub(crate) fn ids(json: &serde_json::Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// The logits of every position of a prompt, run in one piece on an empty cache.
pub(crate) fn all_logits(model: &BaseModel, tokens: &[u32], adapter: Option<&Adapter>) -> Tensor {
    model.decoder.forward(tokens, &mut model.decoder.new_cache(), adapter, Logits::All, &|| false).unwrap()
}

/// ‖a − b‖ / ‖b‖ over all numbers of two tensors of one shape.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (mut apart, mut size) = (0.0, 0.0);
    for (a, b) in numbers(a).into_iter().zip(numbers(b)) {
        apart += f64::from(a - b).powi(2);
        size += f64::from(b).powi(2);
    }
    assert!(size > 0.0, "nothing to compare with");
    let error = (apart / size).sqrt();
    assert!(error.is_finite());
    error
}

/// The token with the highest logit in each row.
pub(crate) fn argmax(logits: &Tensor) -> Vec<u32> {
    logits.argmax(1).unwrap().to_vec1().unwrap()
}
