//! A pair of low-rank matrices, packed for the kernels.

use std::ops::Range;

use crate::kernels::{Delta, DenseType, Matrix, Pages};

/// B A x times a scale, beside what a linear map gives.
#[derive(Debug)]
pub(in crate::model) struct LowRank {
    down: Matrix,
    up: Matrix,
    scale: f32,
}

/// A matrix's shape, and its numbers row by row.
type Numbers<'a> = ((usize, usize), &'a [f32]);

/// Inputs come in groups of this many.
const QUANTISED_COLUMNS: usize = 32;

impl LowRank {
    /// Packs A, of shape (rank, inputs), and B, of shape (outputs, rank), for inputs that are quantised or not; `None` when one is empty.
    pub(in crate::model) fn of(
        a: Numbers<'_>,
        b: Numbers<'_>,
        scale: f32,
        quantised: bool,
        pages: &mut Pages,
    ) -> Option<Self> {
        // The projection's own inputs may be unquantised in a base that is otherwise not; A of such a width
        // cannot be cut into groups either.
        if quantised && a.0.1.is_multiple_of(QUANTISED_COLUMNS) {
            let mut pack = |(shape, numbers)| Matrix::pack_q8(shape, numbers, pages);
            let ((down, by), (up, and_by)) = (pack(a)?, pack(b)?);
            return Some(Self { down, up, scale: scale * by * and_by });
        }
        let mut pack =
            |(shape, numbers): Numbers<'_>| Matrix::pack_dense(shape, numbers, type_for(numbers), pages);
        Some(Self { down: pack(a)?, up: pack(b)?, scale })
    }

    /// Bytes of both matrices.
    pub(in crate::model) fn bytes(&self) -> usize {
        self.down.bytes() + self.up.bytes()
    }

    /// What it adds to some rows.
    pub(in crate::model) fn delta(&self, rows: Range<usize>) -> Delta<'_> {
        Delta { rows, down: &self.down, up: &self.up, scale: self.scale }
    }
}

/// bfloat16 where it is exact (adapters are often trained in it); half precision, whose 11 bits are well
/// below the noise of 8-bit activations, where no number leaves its range; else 32 bits.
fn type_for(numbers: &[f32]) -> DenseType {
    let largest = numbers.iter().fold(0f32, |top, v| top.max(v.abs()));
    if numbers.iter().all(|v| v.to_bits() & 0xFFFF == 0) {
        DenseType::Bf16
    } else if (1e-3..6e4).contains(&largest) {
        DenseType::F16
    } else {
        DenseType::F32
    }
}
