//! The inputs of matrix products.

use super::group::{GROUP, Group, TILE_ROWS};
use super::memory::at_least;

/// Inputs of matrix products, of shape (rows, columns): as floats, and quantised in tiles of eight rows.
#[derive(Debug, Default)]
pub struct Activations {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) floats: Vec<f32>,
    pub(super) groups: Vec<Group>,
    pub(super) quantised: bool,
}

impl Activations {
    /// Makes room for (rows, columns); the old content is gone.
    pub(super) fn reshape(&mut self, rows: usize, columns: usize, quantised: bool) {
        (self.rows, self.columns, self.quantised) = (rows, columns, quantised);
        at_least(&mut self.floats, rows * columns);
        let groups = if quantised { rows.div_ceil(TILE_ROWS) * (columns / GROUP) } else { 0 };
        if self.groups.len() < groups {
            self.groups.resize(groups, Group::ZERO);
        }
    }

    /// Groups of a row.
    pub(super) fn row_groups(&self) -> usize {
        self.columns / GROUP
    }

    /// Makes room for (rows, columns), to be written through [`floats_mut`](Self::floats_mut).
    pub fn resize(&mut self, rows: usize, columns: usize) {
        self.reshape(rows, columns, false);
    }

    /// The numbers, row by row.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        self.quantised = false;
        &mut self.floats[..self.rows * self.columns]
    }

    /// The numbers, row by row.
    pub fn floats(&self) -> &[f32] {
        &self.floats[..self.rows * self.columns]
    }
}
