//! Any bytes as a chat dataset: no panic; what `fix` writes is sound and stays as it is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::dataset::fix::fix;
use shishin::dataset::read;

fuzz_target!(|bytes: &[u8]| {
    let first = fix(bytes);
    for line in &first.lines {
        assert!(read::parse(line).0.is_some(), "{line}");
    }
    let again = fix(first.lines.join("\n").as_bytes());
    assert_eq!((&again.lines, again.changes.len()), (&first.lines, 0));
});
