//! Small models, and plain ways to ask an engine. Each program that includes this uses its own part.

#![allow(dead_code, reason = "the benchmark asks in one way only")]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use shishin::engine::{
    Completion, Engine, EngineEvent, EngineFailure, EngineHandle, EngineSettings, GenerateRequest, Sampling,
};
use shishin::kernels::{Cpu, Variant};
use shishin::model::BaseModel;
use shishin::model::config::Architecture;
use shishin::model::fast::{FastDecoder, PackedAdapter};
use shishin::model::lora::Adapter;
use shishin::model::tensors::Projection;
use shishin::model::weights::WeightForm;
use shishin::quote::QuoteGuide;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use crate::common::{self, tiny};

pub(crate) type Fast = BaseModel<FastDecoder>;

/// Long enough for the slowest machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
});

/// A model of two layers.
pub(crate) fn tiny_model(architecture: Architecture, threads: usize) -> Arc<Fast> {
    let folder = tempfile::tempdir().unwrap();
    tiny::Tiny::new(architecture).write(folder.path());
    let cpu = Cpu::new(Variant::best(), threads).unwrap();
    Arc::new(BaseModel::load_fast(folder.path(), WeightForm::Stored, None, cpu).unwrap())
}

/// An adapter of random matrices on all linear maps.
pub(crate) fn adapter(model: &Fast, rank: usize, seed: u64) -> Adapter {
    let folder = tempfile::tempdir().unwrap();
    let tensors = tiny::random_peft(&model.config, &Projection::ALL, |_, _| rank, seed);
    let settings = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 4 * rank, "target_modules": "all-linear",
    });
    let path = tiny::write_peft(folder.path(), "adapter", &settings, &tensors);
    Adapter::load(&path, &model.config, &candle_core::Device::Cpu).unwrap()
}

pub(crate) fn packed(model: &Fast, rank: usize, seed: u64) -> Arc<PackedAdapter> {
    Arc::new(PackedAdapter::pack(&adapter(model, rank, seed), &model.decoder).unwrap())
}

/// The small real model, loaded once.
pub(crate) fn smollm() -> Arc<Fast> {
    static MODEL: LazyLock<Arc<Fast>> = LazyLock::new(|| {
        let cpu = Cpu::new(Variant::best(), 2).unwrap();
        Arc::new(BaseModel::load_fast(&common::model(common::SMOLLM), WeightForm::Stored, None, cpu).unwrap())
    });
    Arc::clone(&MODEL)
}

pub(crate) const GREEDY: Sampling = Sampling::GREEDY;

/// Drawn so hot that the end of the turn is one token among all others.
pub(crate) const HOT: Sampling = Sampling { temperature: 2.0, ..GREEDY };

pub(crate) fn greedy(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        adapter: None,
        cache_salt: None,
        sampling: GREEDY,
        max_tokens,
        stop: Vec::new(),
        quotes: QuoteGuide::default(),
    }
}

/// Bytes of cache for this many pages of a model.
pub(crate) fn cache_bytes(model: &Fast, pages: usize) -> usize {
    pages * model.decoder.cache_shape().page_bytes()
}

#[allow(clippy::needless_pass_by_value, reason = "each test writes its settings where it starts")]
pub(crate) fn start(model: &Arc<Fast>, settings: EngineSettings) -> (Engine, EngineHandle) {
    let engine = Engine::start(model, &settings).unwrap();
    let handle = engine.handle();
    (engine, handle)
}

/// A request that was taken, and what has come of it so far.
pub(crate) struct Asked {
    events: Receiver<EngineEvent>,
    pub(crate) text: String,
    /// Events with text.
    pub(crate) texts: usize,
    pub(crate) end: Option<Result<Completion, EngineFailure>>,
}

impl Asked {
    pub(crate) fn new(events: Receiver<EngineEvent>) -> Self {
        Self { events, text: String::new(), texts: 0, end: None }
    }

    fn take(&mut self, event: EngineEvent) {
        assert!(self.end.is_none(), "an event after the last one");
        match event {
            EngineEvent::Text(text) => {
                assert!(!text.is_empty(), "an event that says nothing");
                self.text.push_str(&text);
                self.texts += 1;
            }
            EngineEvent::Done(completion) => self.end = Some(Ok(completion)),
            EngineEvent::Failed(failure) => self.end = Some(Err(failure)),
        }
    }

    /// Takes what has come already.
    pub(crate) fn look(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.take(event),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    assert!(self.end.is_some(), "the answer has no end");
                    return;
                }
            }
        }
    }

    /// Waits for the next event; `false` when there is none left.
    pub(crate) fn step(&mut self) -> bool {
        let event = match self.events.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => RUNTIME
                .block_on(async { tokio::time::timeout(PATIENCE, self.events.recv()).await })
                .unwrap_or_else(|_| panic!("waited in vain after {:?}", self.text)),
        };
        match event {
            Some(event) => self.take(event),
            None => {
                assert!(self.end.is_some(), "the answer has no end");
                return false;
            }
        }
        true
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> (String, Result<Completion, EngineFailure>) {
        while self.step() {}
        (self.text, self.end.unwrap())
    }
}

/// Submits a request and waits for its end.
pub(crate) fn ask(handle: &EngineHandle, request: GenerateRequest) -> (String, Completion) {
    let (text, end) = Asked::new(handle.submit(request).unwrap()).finish();
    (text, end.unwrap())
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
