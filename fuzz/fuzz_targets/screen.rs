//! Any text as a passage, and as a question with synonyms: no panic, and every place is one of the text.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shishin::analysis::synonyms::Synonyms;
use shishin::ingest::screen::screen;

static SYNONYMS: LazyLock<Synonyms> = LazyLock::new(|| Synonyms::built_in().unwrap());

fuzz_target!(|text: &str| {
    for suspicion in screen(text, &(0..text.len()), &[]) {
        assert!(text.is_char_boundary(suspicion.at));
    }
    for meant in SYNONYMS.find(text) {
        assert!(text.get(meant.span).is_some());
    }
});
