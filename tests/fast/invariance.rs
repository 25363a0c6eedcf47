//! The same bits whatever the instruction set, the threads, the chunks and the company.

use shishin::kernels::{Cpu, KvCache, Variant};
use shishin::model::fast::{PackedAdapter, Piece, Workspace};
use shishin::model::weights::WeightForm;

use super::common;
use super::{Alone, all_logits, guideline_tokens, load, random_adapter, smollm};

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_instruction_set_and_number_of_threads_gives_the_same_bits() {
    for (name, path) in common::models() {
        let mut expected = None;
        for variant in Variant::ALL.into_iter().filter(|v| v.is_available()) {
            let count = if variant == Variant::Portable { 3 } else { 40 };
            let threads = if variant == Variant::Portable { 2 } else { 3 };
            let model = load(&path, WeightForm::Stored, Cpu::new(variant, threads).unwrap());
            let tokens = guideline_tokens(&model, "en", 40);
            let logits = bits(&all_logits(&model, &tokens[..count], None));
            let expected = expected.get_or_insert_with(|| logits.clone());
            assert_eq!(logits, expected[..logits.len()], "{name} on {}", variant.as_str());
        }
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    let model = smollm();
    let tokens = guideline_tokens(model, "en", 150);
    let whole = bits(&all_logits(model, &tokens, None));
    let vocab = model.config.vocab;
    for sizes in [&[1][..], &[7], &[16], &[64, 1, 5], &[9, 100]] {
        let mut alone = Alone::new(model, tokens.len(), None);
        let (mut at, mut logits) = (0, Vec::new());
        for size in sizes.iter().cycle() {
            let end = tokens.len().min(at + size);
            logits.extend(alone.run(&tokens[at..end], end - at));
            at = end;
            if at == tokens.len() {
                break;
            }
        }
        assert_eq!(logits.len(), tokens.len() * vocab);
        assert!(bits(&logits) == whole, "chunks of {sizes:?}");
    }
}

#[test]
fn company_does_not_change_a_bit() {
    let model = smollm();
    let folder = tempfile::tempdir().unwrap();
    let adapters: Vec<PackedAdapter> = (0..2)
        .map(|n| {
            let adapter = random_adapter(folder.path(), &model.config, 4 + 16 * n, n as u64);
            PackedAdapter::pack(&adapter, &model.decoder).unwrap()
        })
        .collect();
    let text = guideline_tokens(model, "en", 400);
    // Prompts of several lengths, with no adapter, one and the other.
    let requests: Vec<(&[u32], Option<&PackedAdapter>)> = vec![
        (&text[..33], None),
        (&text[40..41], Some(&adapters[0])),
        (&text[50..107], Some(&adapters[1])),
        (&text[110..119], None),
        (&text[120..260], Some(&adapters[0])),
        (&text[300..317], Some(&adapters[1])),
    ];
    let alone: Vec<Vec<u32>> =
        requests.iter().map(|(tokens, adapter)| bits(&all_logits(model, tokens, *adapter))).collect();
    assert!(alone[1] != bits(&all_logits(model, requests[1].0, None)), "an adapter that does something");

    let pages: Vec<Vec<u32>> = (0..requests.len() as u32).map(|n| (n * 20..n * 20 + 10).collect()).collect();
    let mut cache = KvCache::new(model.decoder.cache_shape(), 130);
    let pieces: Vec<Piece<'_>> = requests
        .iter()
        .zip(&pages)
        .map(|((tokens, adapter), pages)| Piece {
            tokens,
            position: 0,
            pages,
            adapter: *adapter,
            before: 0,
            logits: tokens.len(),
        })
        .collect();
    let mut workspace = Workspace::default();
    let together = model.decoder.forward(&pieces, &mut cache, &mut workspace, &|| false).unwrap();
    let mut rest = together;
    for (request, expected) in alone.iter().enumerate() {
        let (own, after) = rest.split_at(expected.len());
        rest = after;
        assert!(bits(own) == *expected, "request {request}");
    }
    assert!(rest.is_empty());
}
