//! Any bytes as a GGUF file: no panic, no tensor outside of the file, and what the header says may be asked
//! for the configuration and the tokenizer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::model::config::ModelConfig;
use shishin::model::gguf::Header;
use shishin::model::tokenizer::Tokenizer;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::parse(file) else { return };
    for tensor in &header.tensors {
        assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= file.len());
    }
    let _ = ModelConfig::from_gguf(&header);
    let _ = Tokenizer::from_gguf(&header);
});
