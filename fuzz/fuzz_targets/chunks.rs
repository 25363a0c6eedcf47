//! Any text cut into chunks: no panic, and every chunk is a stretch of the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::ingest::chunk::{Sizes, chunks, estimate_tokens};

fuzz_target!(|input: (u8, u8, &str)| {
    let (limit, overlap, text) = input;
    let limit = usize::from(limit) + 1;
    let sizes = Sizes { limit, overlap: usize::from(overlap) % limit, count: &estimate_tokens };
    for chunk in chunks(text, 0, "Title", sizes) {
        assert!(text.get(chunk.span).is_some());
    }
});
