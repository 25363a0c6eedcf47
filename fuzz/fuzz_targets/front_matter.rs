//! Any text as a guideline file: no panic, and the body starts within the file at a character.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::ingest::front_matter;

fuzz_target!(|text: &str| {
    let head = front_matter::parse("guideline.md", text);
    assert!(text.is_char_boundary(head.body));
});
