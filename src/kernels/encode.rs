//! The operations that only encoders have: LayerNorm over a residual connection, and GELU by the error function.

use super::activations::Activations;
use super::group::{GROUP, TILE_ROWS};
use super::ops::{Cpu, Shared};

/// Weight and bias of a LayerNorm.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// What the normalised number is multiplied by.
    pub weight: &'a [f32],
    /// What is added then.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl Cpu {
    /// x ← LayerNorm(x + y), row by row; quantised too.
    ///
    /// # Panics
    /// When sizes do not agree, or rows are not whole groups of 32 columns.
    pub fn add_layer_norm(&self, x: &mut Activations, y: &[f32], norm: Affine<'_>) {
        let (rows, columns) = (x.rows, x.columns);
        assert!(columns.is_multiple_of(GROUP) && y.len() == rows * columns, "as many rows, of whole groups");
        assert!(norm.weight.len() == columns && norm.bias.len() == columns, "a weight for each column");
        let affine = (Shared(norm.weight.as_ptr().cast_mut()), Shared(norm.bias.as_ptr().cast_mut()));
        let kernels = self.kernels();
        self.each_tile(x, |row| {
            // SAFETY: within both buffers, a row of this task alone; the variant is available.
            unsafe {
                let own = (affine.0.at(0).cast_const(), affine.1.at(0).cast_const());
                (kernels.add_layer_norm)(row.floats, y.as_ptr().add(row.start), own, columns, norm.eps);
            }
        });
    }

    /// x ← x · Φ(x) for each number; quantised too.
    ///
    /// # Panics
    /// When rows are not whole groups of 32 columns.
    pub fn gelu(&self, x: &mut Activations) {
        let columns = x.columns;
        assert!(columns.is_multiple_of(GROUP), "whole groups");
        let kernels = self.kernels();
        self.each_tile(x, |row| {
            // SAFETY: a row of this task alone; the variant is available.
            unsafe { (kernels.gelu_erf)(row.floats, columns / super::simd::LANES) };
        });
    }

    /// Changes each row, then quantises it.
    fn each_tile(&self, x: &mut Activations, change: impl Fn(Row) + Sync) {
        let (rows, columns) = (x.rows, x.columns);
        x.reshape(rows, columns, true);
        let kernels = self.kernels();
        let (floats, groups) = (Shared(x.floats.as_mut_ptr()), Shared(x.groups.as_mut_ptr()));
        let row_groups = x.row_groups();
        self.share(rows <= TILE_ROWS, rows.div_ceil(TILE_ROWS), &|tile| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                let start = row * columns;
                change(Row { floats: floats.at(start), start });
                // SAFETY: within both buffers, tiles are disjoint, and the variant is available.
                unsafe {
                    let to = groups.at(tile * row_groups);
                    (kernels.quantise)(floats.at(start).cast_const(), row_groups, to, row % TILE_ROWS);
                }
            }
        });
    }
}

/// A row in hand.
struct Row {
    floats: *mut f32,
    /// Its first number's place in the buffer.
    start: usize,
}
