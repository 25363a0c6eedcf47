//! Any bytes as a guideline of any format: no panic that is not contained, and marks within the text at characters.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::ingest::extract::{Format, extract};

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (kind, bytes) = input;
    let formats = [Format::Markdown, Format::Text, Format::Html, Format::Pdf, Format::Docx];
    let Ok(read) = extract(formats[usize::from(kind) % formats.len()], bytes) else { return };
    assert!(read.hidden.iter().all(|range| read.text.get(range.clone()).is_some()));
    assert!(read.pages.iter().all(|at| read.text.is_char_boundary(*at)));
});
