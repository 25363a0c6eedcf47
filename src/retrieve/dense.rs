//! Dense search: which chunks mean something like the question, by the products of their vectors with its own.
//!
//! Runs beside [`lexical`](super::lexical), on the same snapshot. The search is exact: every vector is multiplied, 8 bits a
//! number, by the kernels that also run the models, so that 200,000 chunks of 384 dimensions are a matter of milliseconds. Vectors have unit
//! length, so a product is a cosine.

use std::sync::Arc;

use crate::kernels::{Activations, Cpu, Matrix, Output, Pages, Part};
use crate::store::vectors::Vectors;

/// Rows that are packed at a time: bounds the memory that packing takes besides the result.
const SLAB_ROWS: usize = 1 << 14;

/// What a document's cosine counts, beside its chunk's: a chunk out of the middle often does not say what it is about.
const DOCUMENT_SHARE: f32 = 0.8;

/// A chunk by its number in the generation, and how near it is to the question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// The chunk's number.
    pub row: usize,
    /// The cosine, −1 to 1.
    pub score: f32,
}

/// The vectors of a generation, packed for searching.
pub struct DenseIndex {
    chunks: Packed,
    /// The direction of each document: the mean of its chunks' vectors.
    documents: Packed,
    /// The document of each chunk.
    owners: Vec<usize>,
    dimensions: usize,
    cpu: Arc<Cpu>,
}

impl std::fmt::Debug for DenseIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DenseIndex")
            .field("rows", &self.rows())
            .field("dimensions", &self.dimensions)
            .finish()
    }
}

/// The cosines of a question with the chunks, in order of the chunks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cosines {
    /// With each chunk.
    pub chunks: Vec<f32>,
    /// With each chunk, and its document's share: what chunks are ranked by.
    pub ranked_by: Vec<f32>,
}

impl DenseIndex {
    /// Packs vectors, to be searched by the threads of `cpu`; `owners` are the numbers of the chunks' documents. `None` when a vector
    /// holds what is no number, or there is not a document for each.
    #[must_use]
    pub fn pack(vectors: &Vectors, owners: Vec<usize>, cpu: Arc<Cpu>) -> Option<Self> {
        let dimensions = vectors.dimensions();
        if owners.len() != vectors.rows() {
            return None;
        }
        let row = |row: usize, to: &mut Vec<f32>| to.extend(vectors.row(row).iter().map(|n| n.to_f32()));
        let chunks = Packed::pack(vectors.rows(), dimensions, row)?;
        let count = owners.iter().max().map_or(0, |last| last + 1);
        // Numbers beyond the chunks' own would only come of a broken index.
        if count > owners.len() {
            return None;
        }
        let mut means = vec![0f32; count * dimensions];
        for (row, owner) in owners.iter().enumerate() {
            let mean = &mut means[owner * dimensions..(owner + 1) * dimensions];
            mean.iter_mut().zip(vectors.row(row)).for_each(|(sum, number)| *sum += number.to_f32());
        }
        for mean in means.chunks_exact_mut(dimensions.max(1)) {
            let length = mean.iter().map(|n| n * n).sum::<f32>().sqrt();
            if length > 0.0 {
                mean.iter_mut().for_each(|n| *n /= length);
            }
        }
        let mean = |row: usize, to: &mut Vec<f32>| {
            to.extend_from_slice(&means[row * dimensions..(row + 1) * dimensions]);
        };
        let documents = Packed::pack(count, dimensions, mean)?;
        Some(Self { chunks, documents, owners, dimensions, cpu })
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Chunks in it.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.owners.len()
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let packed =
            [&self.chunks, &self.documents].map(|p| p.slabs.iter().map(|s| s.0.bytes()).sum::<usize>());
        packed[0] + packed[1] + size_of_val(&self.owners[..])
    }

    /// The cosine of the question's vector with every chunk's.
    ///
    /// # Panics
    /// When the question's vector has another number of dimensions.
    #[must_use]
    pub fn cosines(&self, question: &[f32]) -> Cosines {
        assert_eq!(question.len(), self.dimensions, "a question of these dimensions");
        let chunks = self.chunks.products(question, &self.cpu);
        let documents = self.documents.products(question, &self.cpu);
        let share = |(cosine, owner): (&f32, &usize)| cosine + DOCUMENT_SHARE * documents[*owner];
        let ranked_by = chunks.iter().zip(&self.owners).map(share).collect();
        Cosines { chunks, ranked_by }
    }
}

/// Vectors as the kernels multiply them: matrices of up to [`SLAB_ROWS`] rows, and the factor of each.
struct Packed {
    slabs: Vec<(Matrix, f32)>,
    rows: usize,
}

impl Packed {
    fn pack(rows: usize, dimensions: usize, row: impl Fn(usize, &mut Vec<f32>)) -> Option<Self> {
        let mut pages = Pages::default();
        let mut slabs = Vec::with_capacity(rows.div_ceil(SLAB_ROWS));
        for start in (0..rows).step_by(SLAB_ROWS) {
            let own = start..rows.min(start + SLAB_ROWS);
            let mut numbers = Vec::with_capacity(own.len() * dimensions);
            own.clone().for_each(|at| row(at, &mut numbers));
            slabs.push(Matrix::pack_q8((own.len(), dimensions), &numbers, &mut pages)?);
        }
        Some(Self { slabs, rows })
    }

    fn products(&self, question: &[f32], cpu: &Cpu) -> Vec<f32> {
        let mut scores = vec![0.0; self.rows];
        let Some((first, _)) = self.slabs.first() else { return scores };
        let (mut whole, mut split) = (Activations::default(), Activations::default());
        // Filled up with zeros, as the vectors are.
        whole.resize(1, first.columns());
        whole.floats_mut()[..question.len()].copy_from_slice(question);
        whole.floats_mut()[question.len()..].fill(0.0);
        // 16 bits of the question: only the vectors' own rounding is left.
        cpu.split(&whole, &mut split);
        let mut products = Vec::new();
        for ((slab, factor), scores) in self.slabs.iter().zip(scores.chunks_mut(SLAB_ROWS)) {
            products.resize(2 * slab.rows(), 0.0);
            let part = Part { weight: slab, bias: None, deltas: &[] };
            let output = Output { to: &mut products, stride: slab.rows(), add: false };
            cpu.linear(&split, &[part], &mut [output]);
            let (high, low) = products.split_at(slab.rows());
            for ((score, high), low) in scores.iter_mut().zip(high).zip(low) {
                *score = (high + low) * factor;
            }
        }
        scores
    }
}

/// The nearest `limit` of the chunks that `keep` lets pass, nearest first; of equally near ones the first.
#[must_use]
pub fn nearest(scores: &[f32], limit: usize, keep: impl Fn(usize) -> bool) -> Vec<Near> {
    let order = |a: &Near, b: &Near| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row));
    let mut best: Vec<Near> = Vec::with_capacity(2 * limit.min(scores.len()));
    let mut bar = f32::NEG_INFINITY;
    for (row, &score) in scores.iter().enumerate() {
        // Most chunks are far away; the order is made only of those that are not.
        if score < bar || !keep(row) {
            continue;
        }
        best.push(Near { row, score });
        if best.len() >= 2 * limit.max(1) {
            best.select_nth_unstable_by(limit.max(1) - 1, order);
            best.truncate(limit.max(1));
            bar = best.iter().fold(f32::INFINITY, |low, near| low.min(near.score));
        }
    }
    best.sort_unstable_by(order);
    best.truncate(limit);
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::kernels::Variant;
    use crate::store::vectors::VectorKey;

    fn unit(dimensions: usize, seed: u64) -> Vec<f32> {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let vector: Vec<f32> = (0..dimensions).map(|_| random.random_range(-1.0..1.0)).collect();
        let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.into_iter().map(|v| v / length).collect()
    }

    fn index(rows: usize, dimensions: usize) -> (Vectors, DenseIndex) {
        let mut vectors = Vectors::new(dimensions);
        for row in 0..rows {
            vectors.push(VectorKey::of(&row.to_string()), &unit(dimensions, row as u64));
        }
        let cpu = Arc::new(Cpu::new(Variant::best(), 2).unwrap());
        let owners = (0..rows).map(|row| row / 3).collect();
        let packed = DenseIndex::pack(&vectors, owners, cpu).unwrap();
        (vectors, packed)
    }

    #[test]
    fn scores_are_cosines_to_three_digits() {
        for (rows, dimensions) in [(1, 384), (50, 384), (SLAB_ROWS + 3, 40)] {
            let (vectors, packed) = index(rows, dimensions);
            let question = unit(dimensions, 1 << 40);
            let Cosines { chunks, ranked_by } = packed.cosines(&question);
            assert_eq!((chunks.len(), ranked_by.len()), (rows, rows));
            let product =
                |row: &[half::f16]| -> f32 { row.iter().zip(&question).map(|(a, b)| a.to_f32() * b).sum() };
            for (row, score) in chunks.iter().enumerate() {
                let exact = product(vectors.row(row));
                assert!((score - exact).abs() < 4e-3, "row {row}: {score} for {exact}");
            }
            // The last document of all, whose chunks may be fewer.
            let own: Vec<usize> = ((rows - 1) / 3 * 3..rows).collect();
            let mut mean = vec![0f32; dimensions];
            for row in &own {
                mean.iter_mut().zip(vectors.row(*row)).for_each(|(m, n)| *m += n.to_f32());
            }
            let length = mean.iter().map(|n| n * n).sum::<f32>().sqrt();
            let about: f32 = mean.iter().zip(&question).map(|(a, b)| a / length * b).sum();
            for row in own {
                let exact = product(vectors.row(row)) + DOCUMENT_SHARE * about;
                assert!((ranked_by[row] - exact).abs() < 7e-3, "row {row}");
            }
        }
    }

    #[test]
    fn no_vectors_are_no_trouble() {
        let (_, packed) = index(0, 8);
        assert_eq!(packed.cosines(&unit(8, 0)), Cosines::default());
        assert!(nearest(&[], 5, |_| true).is_empty());
    }

    #[test]
    fn owners_must_fit() {
        let mut vectors = Vectors::new(8);
        vectors.push(VectorKey::of("x"), &unit(8, 1));
        let cpu = Arc::new(Cpu::new(Variant::best(), 1).unwrap());
        assert!(DenseIndex::pack(&vectors, vec![], Arc::clone(&cpu)).is_none());
        assert!(DenseIndex::pack(&vectors, vec![7], cpu).is_none());
    }

    proptest! {
        #[test]
        fn the_nearest_are_those_that_sorting_gives(
            scores in proptest::collection::vec((-4i8..4).prop_map(|v| f32::from(v) / 4.0), 0..80),
            limit in 0usize..12,
            skip in 1usize..4,
        ) {
            let keep = |row: usize| row.is_multiple_of(skip);
            let mut all: Vec<usize> = (0..scores.len()).filter(|row| keep(*row)).collect();
            all.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
            all.truncate(limit);
            let found: Vec<usize> = nearest(&scores, limit, keep).into_iter().map(|near| near.row).collect();
            prop_assert_eq!(found, all);
        }
    }
}
