//! Allocations of a decoded token: how many there are, and that they do not grow with the position. In a program
//! of its own, because the counter counts for every thread of it.

#![allow(unsafe_code, reason = "an allocator is made of unsafe functions")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use shishin::kernels::{Cpu, KvCache, Variant};
use shishin::model::BaseModel;
use shishin::model::config::Architecture;
use shishin::model::fast::{FastDecoder, PackedAdapter, Piece, Workspace};
use shishin::model::lora::Adapter;
use shishin::model::tensors::Projection;
use shishin::model::weights::WeightForm;

use common::tiny;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

fn count() -> usize {
    ALLOCATIONS.load(Ordering::SeqCst)
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Of one token, without an adapter and with one on all linear maps.
const LIMIT: [usize; 2] = [0, 0];

fn load(path: &Path) -> BaseModel<FastDecoder> {
    let cpu = Cpu::new(Variant::best(), 2).unwrap();
    BaseModel::load_fast(path, WeightForm::Stored, None, cpu).unwrap()
}

fn adapter(model: &BaseModel<FastDecoder>) -> PackedAdapter {
    let folder = tempfile::tempdir().unwrap();
    let tensors = tiny::random_peft(&model.config, &Projection::ALL, |_, _| 8, 1);
    let settings = serde_json::json!({
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear",
    });
    let path = tiny::write_peft(folder.path(), "adapter", &settings, &tensors);
    let adapter = Adapter::load(&path, &model.config, &candle_core::Device::Cpu).unwrap();
    PackedAdapter::pack(&adapter, &model.decoder).unwrap()
}

/// What a thread may allocate once, when it first comes by and makes room for its own sums; and what the test
/// harness may meanwhile.
const ONCE: usize = 64;

/// Decodes one token after the other and gives the allocations of each; holds them to be the same number
/// everywhere.
fn allocations(model: &BaseModel<FastDecoder>, adapter: Option<&PackedAdapter>, positions: usize) -> usize {
    let pages: Vec<u32> = (0..positions.div_ceil(KvCache::PAGE) as u32).collect();
    let mut cache = KvCache::new(model.decoder.cache_shape(), pages.len());
    let mut workspace = Workspace::default();
    let mut counts = Vec::with_capacity(positions);
    for position in 0..positions {
        let tokens = [(position * 37 % 250) as u32];
        let piece = Piece { tokens: &tokens, position, pages: &pages, adapter, before: 0, logits: 1 };
        let before = count();
        model.decoder.forward(&[piece], &mut cache, &mut workspace, &|| false).unwrap();
        counts.push(count() - before);
    }
    // The first one makes the buffers of the workspace.
    let steady = counts[1..].iter().copied().min().unwrap();
    let once: usize = counts[1..].iter().map(|count| count - steady).sum();
    assert!(once <= ONCE, "{steady} are not enough everywhere: {counts:?}");
    steady
}

/// One test, because another one's allocations would be counted too.
#[test]
fn a_decoded_token_allocates_the_same_wherever_it_stands() {
    let both = |model: &BaseModel<FastDecoder>, positions| {
        let adapter = adapter(model);
        [None, Some(&adapter)].map(|adapter| allocations(model, adapter, positions))
    };
    for architecture in Architecture::ALL {
        let folder = tempfile::tempdir().unwrap();
        tiny::Tiny::new(architecture).write(folder.path());
        let counts = both(&load(folder.path()), tiny::CONTEXT);
        println!("{architecture:?} of two layers: {counts:?} allocations per token");
    }
    let counts = both(&load(&common::model(common::SMOLLM)), 400);
    println!("{}: {counts:?} allocations per token", common::SMOLLM);
    for (count, limit) in counts.into_iter().zip(LIMIT) {
        assert!(count <= limit, "{count} allocations per token, {limit} before");
    }
}
