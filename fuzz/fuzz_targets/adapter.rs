//! Any bytes as the two files of a PEFT folder: no panic; what is accepted fits the base.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use candle_core::Device;
use libfuzzer_sys::fuzz_target;
use shishin::model::config::ModelConfig;
use shishin::model::lora::Adapter;
use tempfile::TempDir;

static BASE: LazyLock<(TempDir, ModelConfig)> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    let path = dir.path().join("config.json");
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
    });
    fs::write(&path, config.to_string()).expect("a file in it");
    let config = ModelConfig::from_hf(&path).expect("a sound configuration");
    (dir, config)
});

fuzz_target!(|files: (&[u8], &[u8])| {
    let (dir, config) = &*BASE;
    fs::write(dir.path().join("adapter_config.json"), files.0).expect("a file in it");
    fs::write(dir.path().join("adapter_model.safetensors"), files.1).expect("a file in it");
    if let Ok(adapter) = Adapter::load(dir.path(), config, &Device::Cpu) {
        for (_, projection, pair) in adapter.pairs() {
            let (outputs, inputs) = projection.shape(config);
            assert_eq!((pair.b.dims()[0], pair.a.dims()[1]), (outputs, inputs));
            assert!(pair.scale.is_finite());
        }
    }
});
