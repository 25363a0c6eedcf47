//! Any answer in any pieces: the same citations as in one piece, each where a marker stands.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shishin::cite::CitationFinder;

fuzz_target!(|input: (u8, Vec<&str>)| {
    let (passages, pieces) = input;
    let text = pieces.concat();
    let whole = CitationFinder::new(passages.into()).push(&text);
    let mut finder = CitationFinder::new(passages.into());
    let streamed: Vec<_> = pieces.into_iter().flat_map(|piece| finder.push(piece)).collect();
    assert_eq!(streamed, whole);
    for citation in whole {
        assert!(text[citation.span.start..citation.span.end].starts_with(['[', '［', '【']));
        assert_eq!(citation.exists, (1..=usize::from(passages)).contains(&citation.n));
    }
});
