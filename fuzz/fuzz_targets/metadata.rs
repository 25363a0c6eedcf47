//! Any text as a sidecar and as JSON Lines: no panic, and a finding wherever there is no document.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::ingest::{json_lines, sidecar};

fuzz_target!(|text: &str| {
    let (front, findings) = sidecar::parse("a.pdf.meta.toml", text);
    assert!(front.is_some() || !findings.is_empty());
    let (mut documents, mut found) = (0, 0);
    let read: Result<(), std::io::Error> =
        json_lines::read("a.jsonl", text.as_bytes(), &mut |_| found += 1, &mut |_| {
            documents += 1;
            Ok(())
        });
    assert!(read.is_ok());
    // A byte order mark is no text.
    let text = text.trim_start_matches('\u{feff}');
    assert!(documents + found > 0 || text.lines().all(|line| line.trim().is_empty()));
});
