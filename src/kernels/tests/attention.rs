//! `Cpu::prepare_heads` and `Cpu::attention` against attention written out in 64 bits, over keys and
//! values rounded to half precision.

use half::f16;
use proptest::prelude::*;

use super::super::{Activations, Attention, CacheShape, Cpu, Heads, KvCache, Span};
use super::{Random, assert_close, assert_same, cpus, plain, product};

const PAGE: usize = KvCache::PAGE;
const LAYERS: usize = 2;

/// What a layer is given for one sequence, row by row.
struct Sequence {
    len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

struct Layer {
    heads: usize,
    shape: CacheShape,
    norms: Option<(Vec<f32>, Vec<f32>)>,
    scale: f32,
    window: usize,
    whole: bool,
    sequences: Vec<Sequence>,
}

const EPS: f32 = 1e-6;

impl Layer {
    fn new(
        (heads, kv_heads): (usize, usize),
        head_dim: usize,
        window: usize,
        lens: &[usize],
        random: &mut Random,
    ) -> Self {
        let shape = CacheShape { layers: LAYERS, kv_heads, head_dim };
        let norms = random.below(2) == 0;
        let norms = norms.then(|| (random.floats(head_dim, 2.0), random.floats(head_dim, 2.0)));
        let sequence = |len: &usize| {
            let angles = random.floats(len * (head_dim / 2), 4.0);
            Sequence {
                len: *len,
                q: random.floats(len * heads * head_dim, 3.0),
                k: random.floats(len * kv_heads * head_dim, 3.0),
                v: random.floats(len * kv_heads * head_dim, 3.0),
                cos: angles.iter().map(|a| a.cos()).collect(),
                sin: angles.iter().map(|a| a.sin()).collect(),
            }
        };
        let sequences = lens.iter().map(sequence).collect();
        Self { heads, shape, norms, scale: 1.0 / (head_dim as f32).sqrt(), window, whole: false, sequences }
    }

    fn preparation<'a>(&'a self, cos: &'a [f32], sin: &'a [f32]) -> Heads<'a> {
        let norms = self.norms.as_ref().map(|(q, k)| (&q[..], &k[..]));
        Heads { norms, eps: EPS, rotation: (cos, sin), scale: self.scale }
    }
}

/// A cache whose every number is no number: whoever reads what nobody wrote shows it.
fn garbage(shape: CacheShape, pages: usize) -> KvCache {
    let mut cache = KvCache::new(shape, pages);
    let len = pages * shape.page_bytes() / 2;
    let patterns = [0x7E00u16, 0xFE01, 0x7FFF, 0x7C00, 0xFC00, 0x7D55];
    for at in 0..len {
        // SAFETY: the cache holds `len` numbers, and nobody else uses it.
        unsafe { *cache.as_mut_ptr().add(at) = patterns[at % patterns.len()] };
    }
    cache
}

/// A cache and the pages of each sequence, scattered and in no order, with more of them than are needed.
struct Paged {
    cache: KvCache,
    pages: Vec<Vec<u32>>,
}

impl Paged {
    fn new(layer: &Layer, random: &mut Random) -> Self {
        let counts: Vec<usize> =
            layer.sequences.iter().map(|s| s.len.div_ceil(PAGE) + random.below(3)).collect();
        let total = counts.iter().sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..total as u32).collect();
        let mut take =
            |count: usize| (0..count).map(|_| free.swap_remove(random.below(free.len()))).collect();
        let pages = counts.into_iter().map(&mut take).collect();
        Self { cache: garbage(layer.shape, total), pages }
    }
}

/// One pass over pieces of sequences: (sequence, first position, count). Results row by row.
fn pass(cpu: &Cpu, layer: &Layer, paged: &mut Paged, pieces: &[(usize, usize, usize)]) -> Vec<f32> {
    let (width, kv) = (layer.heads * layer.shape.head_dim, layer.shape.kv_heads * layer.shape.head_dim);
    let half = layer.shape.head_dim / 2;
    let gather = |of: fn(&Sequence) -> &Vec<f32>, width: usize| -> Vec<f32> {
        let rows = |(s, from, count): &(usize, usize, usize)| {
            of(&layer.sequences[*s])[from * width..(from + count) * width].to_vec()
        };
        pieces.iter().flat_map(rows).collect()
    };
    let (mut q, mut k, mut v) = (gather(|s| &s.q, width), gather(|s| &s.k, kv), gather(|s| &s.v, kv));
    let (cos, sin) = (gather(|s| &s.cos, half), gather(|s| &s.sin, half));
    let mut spans = Vec::new();
    let mut row = 0;
    for (s, from, count) in pieces {
        spans.push(Span { rows: row..row + count, position: *from, pages: &paged.pages[*s] });
        row += count;
    }
    cpu.prepare_heads(1, [&mut q, &mut k, &mut v], layer.preparation(&cos, &sin), &spans, &mut paged.cache);
    let mut out = Activations::default();
    let attention = Attention { layer: 1, heads: layer.heads, window: layer.window, whole: layer.whole };
    cpu.attention(attention, &q, &spans, &paged.cache, &mut out);
    out.floats().to_vec()
}

/// All sequences, in passes of so many rows of each. Results sequence by sequence.
fn run(cpu: &Cpu, layer: &Layer, chunk: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut paged = Paged::new(layer, random);
    let mut results = vec![Vec::new(); layer.sequences.len()];
    let width = layer.heads * layer.shape.head_dim;
    let longest = layer.sequences.iter().map(|s| s.len).max().unwrap();
    for from in (0..longest).step_by(chunk) {
        let piece = |(n, s): (usize, &Sequence)| (from < s.len).then(|| (n, from, chunk.min(s.len - from)));
        let pieces: Vec<_> = layer.sequences.iter().enumerate().filter_map(piece).collect();
        let mut rows = &pass(cpu, layer, &mut paged, &pieces)[..];
        for (s, _, count) in pieces {
            let (own, rest) = rows.split_at(count * width);
            results[s].extend_from_slice(own);
            rows = rest;
        }
    }
    results
}

/// A head after norm and rotation, in 64 bits.
fn prepared(head: &[f32], norm: Option<&[f32]>, cos: &[f32], sin: &[f32], factor: f32) -> Vec<f64> {
    let mut x: Vec<f64> = head.iter().copied().map(f64::from).collect();
    if let Some(norm) = norm {
        let squares: f64 = x.iter().map(|v| v * v).sum();
        let scale = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
        x.iter_mut().zip(norm).for_each(|(v, w)| *v *= scale * f64::from(*w));
    }
    let half = x.len() / 2;
    for i in 0..half {
        let (a, b, c, s) = (x[i], x[i + half], f64::from(cos[i]), f64::from(sin[i]));
        (x[i], x[i + half]) = (a * c - b * s, b * c + a * s);
    }
    x.iter().map(|v| v * f64::from(factor)).collect()
}

/// Queries and keys of one sequence as `prepare_heads` leaves them.
fn prepared_by_kernels(layer: &Layer, s: &Sequence) -> (Vec<f32>, Vec<f32>) {
    let pages: Vec<u32> = (0..s.len.div_ceil(PAGE) as u32).collect();
    let (mut q, mut k, mut v) = (s.q.clone(), s.k.clone(), s.v.clone());
    let span = Span { rows: 0..s.len, position: 0, pages: &pages };
    let mut cache = KvCache::new(layer.shape, pages.len());
    plain().prepare_heads(
        0,
        [&mut q, &mut k, &mut v],
        layer.preparation(&s.cos, &s.sin),
        &[span],
        &mut cache,
    );
    (q, k)
}

/// Attention of one sequence, straight from the definition.
fn expected(layer: &Layer, s: &Sequence) -> Vec<f64> {
    let (dim, kv_heads) = (layer.shape.head_dim, layer.shape.kv_heads);
    let (q, k) = prepared_by_kernels(layer, s);
    let narrow = |x: &[f32]| x.iter().map(|v| f16::from_f32(*v).to_f64()).collect::<Vec<_>>();
    let (k, v) = (narrow(&k), narrow(&s.v));
    let mut out = Vec::new();
    for row in 0..s.len {
        for n in 0..layer.heads {
            let q = &q[(row * layer.heads + n) * dim..][..dim];
            let end = if layer.whole { s.len } else { row + 1 };
            let seen = end.saturating_sub(layer.window)..end;
            let at = |position: usize| (position * kv_heads + n / (layer.heads / kv_heads)) * dim;
            let scores: Vec<f64> =
                seen.clone().map(|position| product(q, &k[at(position)..][..dim]).0).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let sum: f64 = seen.clone().zip(&weights).map(|(position, w)| w * v[at(position) + d]).sum();
                out.push(sum / total);
            }
        }
    }
    out
}

fn check_against_definition(layer: &Layer, found: &[Vec<f32>], what: &str) {
    for (s, found) in layer.sequences.iter().zip(found) {
        for (found, expected) in found.iter().zip(expected(layer, s)) {
            assert_close(*found, expected, 3e-5, what);
        }
    }
}

/// The plain result, held to the definition; every processor, chunk and placing of pages held to its bits.
fn check(layer: &Layer, chunks: &[usize], random: &mut Random) {
    let what = format!("{} heads, {:?}, window {}", layer.heads, layer.shape, layer.window);
    let whole = run(&plain(), layer, usize::MAX, random);
    check_against_definition(layer, &whole, &what);
    for (n, cpu) in cpus(2).chain(cpus(3)).enumerate() {
        let chunk = chunks[n % chunks.len()];
        let found = run(&cpu, layer, chunk, random);
        for (found, expected) in found.iter().zip(&whole) {
            assert_same(found, expected, &format!("{what}, chunks of {chunk}, {}", cpu.variant().as_str()));
        }
    }
}

const GROUPS: [(usize, usize); 5] = [(1, 1), (3, 1), (9, 3), (7, 1), (4, 4)];
const DIMS: [usize; 7] = [8, 16, 24, 64, 80, 128, 256];
const WINDOWS: [usize; 5] = [1, 5, 16, 40, usize::MAX];

#[test]
fn every_grouping_head_size_and_window() {
    let mut random = Random(40);
    for (n, heads) in GROUPS.into_iter().enumerate() {
        for (m, dim) in DIMS.into_iter().enumerate() {
            // Across a page; across a span of 64 where heads are small.
            let lens = if dim * heads.0 <= 256 { [75, 17, 3] } else { [18, 1, 16] };
            let layer = Layer::new(heads, dim, WINDOWS[(n + m) % WINDOWS.len()], &lens, &mut random);
            check(&layer, &[usize::MAX, 1, 3, 16, 5], &mut random);
        }
    }
}

#[test]
fn windows_across_spans() {
    let mut random = Random(41);
    for window in WINDOWS.into_iter().chain([63, 64, 65]) {
        let layer = Layer::new((3, 1), 24, window, &[140, 64, 65], &mut random);
        check(&layer, &[7, 64, 17, 33, 1], &mut random);
    }
}

/// Encoders: every query sees all of its sequence, in one pass.
#[test]
fn whole_sequences_are_seen() {
    let mut random = Random(45);
    for (heads, dim) in [((4, 4), 32), ((3, 1), 24), ((2, 2), 64)] {
        let lens = [1, 15, 70, 129];
        let layer = Layer { whole: true, ..Layer::new(heads, dim, usize::MAX, &lens, &mut random) };
        check(&layer, &[usize::MAX], &mut random);
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_company() {
    let mut random = Random(42);
    let mut layer = Layer::new((4, 2), 32, usize::MAX, &[40, 21, 1, 70], &mut random);
    let together = run(&plain(), &layer, usize::MAX, &mut random);
    for cpu in cpus(2) {
        let mut paged = Paged::new(&layer, &mut random);
        // Prompts of some, then single tokens of one beside the middle of another.
        pass(&cpu, &layer, &mut paged, &[(3, 0, 50), (0, 0, 39)]);
        let width = layer.heads * layer.shape.head_dim;
        let found = pass(&cpu, &layer, &mut paged, &[(0, 39, 1), (1, 0, 21), (3, 50, 20), (2, 0, 1)]);
        let rows =
            [&together[0][39 * width..], &together[1], &together[3][50 * width..], &together[2]].concat();
        assert_same(&found, &rows, cpu.variant().as_str());
    }
    let last = layer.sequences.pop().into_iter().collect();
    let by_itself = run(&plain(), &Layer { sequences: last, ..layer }, usize::MAX, &mut random);
    assert_same(&by_itself[0], &together[3], "by itself");
}

/// A prefix computed once and its pages copied: the continuation has the bits of the whole.
#[test]
fn a_copied_page_continues_as_the_original() {
    let mut random = Random(43);
    let layer = Layer::new((2, 1), 16, usize::MAX, &[45], &mut random);
    let whole = run(&plain(), &layer, usize::MAX, &mut random);
    for cpu in cpus(1) {
        let mut paged = Paged { cache: garbage(layer.shape, 8), pages: vec![vec![6, 1, 3]] };
        pass(&cpu, &layer, &mut paged, &[(0, 0, 40)]);
        // Shared whole pages, and a copy of the one that is written on.
        paged.cache.copy_page(3, 0);
        paged.pages[0] = vec![6, 1, 0];
        let found = pass(&cpu, &layer, &mut paged, &[(0, 40, 5)]);
        assert_same(&found, &whole[0][40 * 32..], cpu.variant().as_str());
    }
}

#[test]
fn other_layers_and_pages_are_left_alone() {
    let mut random = Random(44);
    let layer = Layer::new((2, 2), 24, usize::MAX, &[20], &mut random);
    for cpu in cpus(2) {
        let mut paged = Paged { cache: garbage(layer.shape, 5), pages: vec![vec![3, 1]] };
        let numbers = |cache: &KvCache| -> Vec<u16> {
            let len = 5 * layer.shape.page_bytes() / 2;
            // SAFETY: the cache holds as many numbers, and nobody writes to it meanwhile.
            unsafe { std::slice::from_raw_parts(cache.as_ptr(), len) }.to_vec()
        };
        let before = numbers(&paged.cache);
        pass(&cpu, &layer, &mut paged, &[(0, 0, 20)]);
        let after = numbers(&paged.cache);
        let page_len = layer.shape.page_bytes() / 2;
        for page in [0, 2, 4] {
            let page = page * page_len..(page + 1) * page_len;
            assert_eq!(before[page.clone()], after[page]);
        }
        for page in [3, 1] {
            let first_layer = page * page_len..page * page_len + page_len / LAYERS;
            assert_eq!(before[first_layer.clone()], after[first_layer]);
        }
    }
}

#[test]
fn heads_are_normed_rotated_and_scaled_in_place() {
    let mut random = Random(45);
    // Enough layers that both with and without norms are among them.
    for dim in [8, 24, 64, 96].repeat(4) {
        let layer = Layer::new((4, 2), dim, usize::MAX, &[19], &mut random);
        let s = &layer.sequences[0];
        let (q, k) = prepared_by_kernels(&layer, s);
        let half = dim / 2;
        let check = |found: &[f32], from: &[f32], heads: usize, norm: Option<&Vec<f32>>, factor: f32| {
            for (n, (found, from)) in found.chunks_exact(dim).zip(from.chunks_exact(dim)).enumerate() {
                let angles = n / heads * half..(n / heads + 1) * half;
                let exact =
                    prepared(from, norm.map(|n| &n[..]), &s.cos[angles.clone()], &s.sin[angles], factor);
                found
                    .iter()
                    .zip(exact)
                    .for_each(|(found, exact)| assert_close(*found, exact, 3e-6, "a head"));
            }
        };
        check(&q, &s.q, 4, layer.norms.as_ref().map(|n| &n.0), layer.scale);
        check(&k, &s.k, 2, layer.norms.as_ref().map(|n| &n.1), 1.0);
        for cpu in cpus(2) {
            let (mut again_q, mut again_k, mut v) = (s.q.clone(), s.k.clone(), s.v.clone());
            let span = Span { rows: 0..19, position: 5, pages: &[2, 0] };
            let mut cache = garbage(layer.shape, 3);
            let heads = layer.preparation(&s.cos, &s.sin);
            cpu.prepare_heads(0, [&mut again_q, &mut again_k, &mut v], heads, &[span], &mut cache);
            assert_same(&again_q, &q, cpu.variant().as_str());
            assert_same(&again_k, &k, cpu.variant().as_str());
            assert_same(&v, &s.v, "values stay as they are");
        }
    }
}

/// A key or value that is too large for half precision, or no number, reaches whoever sees it and nobody before.
#[test]
fn what_is_not_finite_reaches_later_rows_and_no_earlier_one() {
    let mut random = Random(47);
    let dim = 16;
    for (heads, at) in [((1, 1), 5), ((3, 1), 66), ((4, 1), 30)] {
        let mut layer = Layer::new(heads, dim, usize::MAX, &[100], &mut random);
        layer.norms = None;
        let width = heads.0 * dim;
        let sound = run(&plain(), &layer, usize::MAX, &mut random);
        for broken in [1e6, -1e6, f32::INFINITY, f32::NAN] {
            for key in [true, false] {
                let s = &mut layer.sequences[0];
                let place = if key { &mut s.k[at * dim] } else { &mut s.v[at * dim] };
                let before = std::mem::replace(place, broken);
                for cpu in cpus(2) {
                    let found = &run(&cpu, &layer, usize::MAX, &mut random)[0];
                    let what = format!(
                        "{broken} in {} {at}, {}",
                        if key { "key" } else { "value" },
                        cpu.variant().as_str()
                    );
                    assert_same(&found[..at * width], &sound[0][..at * width], &what);
                    let later = found[at * width..].chunks_exact(dim);
                    assert!(later.into_iter().all(|head| !head[0].is_finite()), "{what}");
                }
                let s = &mut layer.sequences[0];
                *(if key { &mut s.k[at * dim] } else { &mut s.v[at * dim] }) = before;
            }
        }
    }
}

/// Scores so far apart that all weight is on one position, and so large that their exponentials would not
/// fit: the running maximum must be taken off first, and what was summed before it corrected.
#[test]
fn extreme_scores() {
    let mut random = Random(46);
    let (dim, len) = (16, 130);
    for rising in [true, false] {
        let mut layer = Layer::new((1, 1), dim, usize::MAX, &[len], &mut random);
        layer.norms = None;
        let s = &mut layer.sequences[0];
        s.cos.fill(1.0);
        s.sin.fill(0.0);
        s.q.fill(40.0);
        for (position, key) in s.k.chunks_exact_mut(dim).enumerate() {
            let size = if rising { position } else { len - position };
            key.fill(size as f32 / 4.0);
        }
        check(&layer, &[usize::MAX, 1, 50], &mut random);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_attention(
        seed: u64,
        kv_heads in 1usize..4,
        group in 1usize..6,
        dim in 4usize..40,
        window in 1usize..90,
        lens in proptest::collection::vec(1usize..80, 1..4),
        chunks in proptest::collection::vec(1usize..40, 3),
    ) {
        let mut random = Random(seed);
        let layer = Layer::new((kv_heads * group, kv_heads), 2 * dim, window, &lens, &mut random);
        check(&layer, &chunks, &mut random);
    }
}
