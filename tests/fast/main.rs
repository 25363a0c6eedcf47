//! The fast decoder against the reference decoder, and against itself: whatever the instruction set, the
//! company in a pass, the chunks of a prompt and the threads, its logits are the same bits.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod invariance;
mod quality;
mod reference;

use std::path::Path;
use std::sync::LazyLock;

use shishin::kernels::{Cpu, KvCache, Variant};
use shishin::model::BaseModel;
use shishin::model::config::ModelConfig;
use shishin::model::fast::{FastDecoder, PackedAdapter, Piece, Workspace};
use shishin::model::lora::Adapter;
use shishin::model::tensors::Projection;
use shishin::model::weights::WeightForm;

pub(crate) type Fast = BaseModel<FastDecoder>;

pub(crate) fn cpu() -> Cpu {
    Cpu::new(Variant::best(), 2).unwrap()
}

pub(crate) fn load(path: &Path, form: WeightForm, cpu: Cpu) -> Fast {
    BaseModel::load_fast(path, form, None, cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// The small model as it is served, loaded once for all tests.
pub(crate) fn smollm() -> &'static Fast {
    static MODEL: LazyLock<Fast> =
        LazyLock::new(|| load(&common::model(common::SMOLLM), WeightForm::Stored, cpu()));
    &MODEL
}

/// One sequence with pages of its own.
pub(crate) struct Alone<'m> {
    model: &'m Fast,
    cache: KvCache,
    workspace: Workspace,
    pages: Vec<u32>,
    position: usize,
    adapter: Option<&'m PackedAdapter>,
}

impl<'m> Alone<'m> {
    pub(crate) fn new(model: &'m Fast, positions: usize, adapter: Option<&'m PackedAdapter>) -> Self {
        let count = positions.div_ceil(KvCache::PAGE);
        // In no order, so that a page's place is not its number.
        let pages = (0..count as u32).map(|n| n ^ 1).map(|n| if n as usize >= count { n - 1 } else { n });
        Self {
            model,
            cache: KvCache::new(model.decoder.cache_shape(), count),
            workspace: Workspace::default(),
            pages: pages.collect(),
            position: 0,
            adapter,
        }
    }

    /// Runs the next tokens; the logits of the last `logits` of them.
    pub(crate) fn run(&mut self, tokens: &[u32], logits: usize) -> Vec<f32> {
        let piece = Piece {
            tokens,
            position: self.position,
            pages: &self.pages,
            adapter: self.adapter,
            before: 0,
            logits,
        };
        self.position += tokens.len();
        let model = self.model;
        model.decoder.forward(&[piece], &mut self.cache, &mut self.workspace, &|| false).unwrap().to_vec()
    }
}

/// Logits of every position of a prompt that is run in one piece.
pub(crate) fn all_logits(model: &Fast, tokens: &[u32], adapter: Option<&PackedAdapter>) -> Vec<f32> {
    Alone::new(model, tokens.len(), adapter).run(tokens, tokens.len())
}

/// An adapter of random matrices on all linear maps.
pub(crate) fn random_adapter(folder: &Path, config: &ModelConfig, rank: usize, seed: u64) -> Adapter {
    let tensors = common::tiny::random_peft(config, &Projection::ALL, |_, _| rank, seed);
    let settings = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear",
    });
    let path = common::tiny::write_peft(folder, &format!("adapter-{seed}"), &settings, &tensors);
    Adapter::load(&path, config, &candle_core::Device::Cpu).unwrap()
}

/// English and Japanese text of the sample guidelines, as tokens.
pub(crate) fn guideline_tokens(model: &Fast, language: &str, count: usize) -> Vec<u32> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("index/guidelines").join(language);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut tokens = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(file).unwrap();
        // The front matter is no prose.
        let body = text.splitn(3, "---").last().unwrap().to_owned();
        tokens.extend(model.tokenizer.encode_content(&body).unwrap());
        if tokens.len() >= count {
            break;
        }
    }
    tokens.truncate(count);
    assert_eq!(tokens.len(), count, "enough text");
    tokens
}
