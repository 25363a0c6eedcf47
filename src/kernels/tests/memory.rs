//! Embedding tables, the largest number, pages of the cache, regions of memory, names of variants.

use super::super::{CacheShape, Cpu, DenseType, KvCache, Pages, QuantType, Variant, WeightType};
use super::{Random, Weight, assert_same, cpus, weight_types};

#[test]
fn embeddings_are_rows_times_a_factor() {
    let mut random = Random(50);
    for kind in weight_types() {
        let columns = if let WeightType::Quantised(kind) = kind { 2 * kind.block().0 } else { 21 };
        let w = Weight::new(kind, 40, columns, &mut random);
        for count in [0, 1, 8, 9, 30] {
            let tokens: Vec<u32> = (0..count).map(|_| random.below(40) as u32).collect();
            for (scale, cpu) in
                [1.0, 7.25, -0.1].into_iter().flat_map(|scale| cpus(2).map(move |cpu| (scale, cpu)))
            {
                let expected: Vec<f32> =
                    tokens.iter().flat_map(|t| w.row(*t as usize)).map(|v| v * scale).collect();
                let mut found = vec![f32::NAN; count * columns];
                cpu.embed(&w.matrix, &tokens, scale, &mut found);
                assert_same(&found, &expected, &format!("{kind:?}, {count} tokens"));
            }
        }
    }
}

/// The definition.
fn first_largest(x: &[f32]) -> Option<usize> {
    if x.iter().any(|v| !v.is_finite()) {
        return None;
    }
    (0..x.len()).reduce(|best, at| if x[at] > x[best] { at } else { best })
}

const LENGTHS: [usize; 13] = [0, 1, 2, 15, 16, 17, 31, 33, 1023, 1024, 1025, 2047, 2500];

#[test]
fn the_largest_number_wherever_it_is() {
    let mut random = Random(51);
    for cpu in cpus(1) {
        for len in LENGTHS {
            let mut x = random.floats(len, 10.0);
            assert_eq!(cpu.argmax(&x), first_largest(&x), "{len} numbers");
            for at in [0, 1, 14, 15, 16, 1022, 1023, 1024, 2047, 2048, 2499, len.saturating_sub(1)] {
                if at < len {
                    let before = std::mem::replace(&mut x[at], 11.0);
                    assert_eq!(cpu.argmax(&x), Some(at), "{len} numbers, {at}");
                    x[at] = before;
                }
            }
        }
    }
}

#[test]
fn the_first_of_equals_wins() {
    let mut random = Random(52);
    for cpu in cpus(1) {
        for len in LENGTHS {
            // Few values, so that there are ties within vectors, among them and among blocks.
            for _ in 0..8 {
                let x: Vec<f32> = (0..len).map(|_| random.pick(&[-1.0, 0.0, -0.0, 2.0])).collect();
                assert_eq!(cpu.argmax(&x), first_largest(&x), "{x:?}");
            }
            for value in [0.0, -3.0, f32::MIN, f32::MAX, 1e-45] {
                assert_eq!(cpu.argmax(&vec![value; len]), (len > 0).then_some(0), "{len} times {value}");
            }
        }
    }
}

#[test]
fn there_is_no_largest_among_what_is_no_number() {
    let mut random = Random(53);
    for cpu in cpus(1) {
        for len in LENGTHS {
            for broken in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 7, 15, 16, 1023, 1024, 2495, len.saturating_sub(1)] {
                    let mut x = random.floats(len, 1.0);
                    if at < len {
                        x[at] = broken;
                        assert_eq!(cpu.argmax(&x), None, "{broken} at {at} of {len}");
                    }
                }
                assert_eq!(cpu.argmax(&vec![broken; len]), None);
            }
        }
    }
}

#[test]
fn a_page_is_copied_with_all_its_layers() {
    let shape = CacheShape { layers: 3, kv_heads: 2, head_dim: 24 };
    // Keys (24, 16) and values (16, 32) of each head, in half precision.
    assert_eq!(shape.page_bytes(), 3 * 2 * 16 * (24 + 32) * 2);
    let mut cache = KvCache::new(shape, 3);
    assert_eq!((cache.pages(), cache.shape()), (3, shape));
    let len = shape.page_bytes() / 2;
    let numbers = |cache: &mut KvCache| {
        // SAFETY: the cache holds three pages of `len` numbers, and is borrowed for as long as they are.
        unsafe { std::slice::from_raw_parts_mut(cache.as_mut_ptr(), 3 * len) }.to_vec()
    };
    assert!(numbers(&mut cache).iter().all(|v| *v == 0));
    for at in 0..3 * len {
        // SAFETY: as above.
        unsafe { *cache.as_mut_ptr().add(at) = at as u16 };
    }
    let before = numbers(&mut cache);
    cache.copy_page(2, 0);
    cache.copy_page(1, 1);
    let after = numbers(&mut cache);
    assert_eq!(after[..len], before[2 * len..]);
    assert_eq!(after[len..], before[len..]);
}

#[test]
fn regions_are_aligned_zeroed_and_apart() {
    for mut pages in
        [Pages::default(), Pages::with_capacity(1 << 20), Pages::with_capacity((1 << 25) + 12_345)]
    {
        let mut regions = Vec::new();
        let mut sizes: Vec<usize> = vec![1, 63, 64, 65, 0, 1000, 1 << 20];
        // More than the least that is asked of the system, so that there are several chunks.
        sizes.extend([(1 << 25) + 1, 3, 1 << 24, 1 << 24, 77]);
        for (n, size) in sizes.into_iter().enumerate() {
            let region = pages.fill(size, |bytes| {
                assert!(bytes.iter().all(|b| *b == 0), "a region starts as zeros");
                bytes.fill(n as u8 + 1);
            });
            assert_eq!(region.len(), size);
            assert_eq!(region.as_ptr() as usize % 64, 0);
            regions.push(region);
        }
        // They outlive what gave them out, and nobody has written on another's.
        drop(pages);
        for (n, region) in regions.iter().enumerate() {
            assert!(region.iter().all(|b| *b == n as u8 + 1), "region {n}");
        }
    }
}

#[test]
fn a_clone_is_the_same_memory() {
    let mut random = Random(54);
    let [a, b] = [0, 1].map(|_| Weight::new(WeightType::Dense(DenseType::F32), 3, 3, &mut random).matrix);
    assert!(a.is_same_memory(&a.clone()));
    assert!(!a.is_same_memory(&b));
}

#[test]
fn packed_sizes_are_the_files_with_whole_panels() {
    let q4 = WeightType::Quantised(QuantType::Q4_0);
    assert_eq!(q4.row_bytes(96), Some(54));
    assert_eq!(q4.row_bytes(95), None);
    assert_eq!(q4.packed_bytes(17, 96), Some(32 * 54));
    assert_eq!(WeightType::Dense(DenseType::Bf16).packed_bytes(16, 5), Some(160));
}

#[test]
fn variants_go_by_their_names_and_run_only_where_they_can() {
    for variant in Variant::ALL {
        assert_eq!(Variant::parse(variant.as_str()), Some(variant));
        match Cpu::new(variant, 2) {
            Ok(cpu) => {
                assert!(variant.is_available());
                assert_eq!((cpu.variant(), cpu.threads()), (variant, 2));
            }
            Err(error) => {
                assert!(!variant.is_available());
                assert!(error.to_string().contains(variant.as_str()), "{error}");
            }
        }
    }
    assert!(Variant::Portable.is_available() && Variant::best().is_available());
    assert_eq!(Variant::parse("sse2"), None);
}
