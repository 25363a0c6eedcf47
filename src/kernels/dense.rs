//! Products of plain 32-bit matrices, and sharing other work out: what training needs besides the decoder's kernels.
//!
//! The products are the `gemm` crate's, cut among our own threads: two pools would take each other's cores.

use std::sync::{Mutex, PoisonError};

use super::ops::{Cpu, Shared};

/// Rows or columns of a result that a task computes at the least.
const SMALLEST_PART: usize = 16;

/// A matrix to read, of shape (rows, columns), over numbers that lie `strides` apart.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<'a> View<'a> {
    /// Rows that follow each other.
    ///
    /// # Panics
    /// When there are fewer numbers.
    pub fn new(data: &'a [f32], (rows, columns): (usize, usize)) -> Self {
        Self::strided(data, (rows, columns), columns)
    }

    /// Rows that begin `stride` apart.
    ///
    /// # Panics
    /// When there are fewer numbers.
    pub fn strided(data: &'a [f32], shape: (usize, usize), stride: usize) -> Self {
        assert!(data.len() >= extent(shape, (stride, 1)), "numbers for the matrix");
        Self { data, shape, strides: (stride, 1) }
    }

    /// Rows become columns.
    #[must_use]
    pub fn transposed(self) -> Self {
        let ((rows, columns), (row, column)) = (self.shape, self.strides);
        Self { data: self.data, shape: (columns, rows), strides: (column, row) }
    }
}

/// A matrix to write, of shape (rows, columns).
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: &'a mut [f32],
    shape: (usize, usize),
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// Rows that follow each other.
    ///
    /// # Panics
    /// When there are fewer numbers.
    pub fn new(data: &'a mut [f32], shape: (usize, usize)) -> Self {
        Self::strided(data, shape, shape.1)
    }

    /// Rows that begin `stride` apart.
    ///
    /// # Panics
    /// When there are fewer numbers, or rows overlap.
    pub fn strided(data: &'a mut [f32], shape: (usize, usize), stride: usize) -> Self {
        assert!(stride >= shape.1 && data.len() >= extent(shape, (stride, 1)), "room for the matrix");
        Self { data, shape, stride }
    }
}

/// Numbers from the first to the last of a matrix.
fn extent((rows, columns): (usize, usize), (row, column): (usize, usize)) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row + (columns - 1) * column + 1 }
}

/// keep · c + scale · a b, on this thread.
///
/// # Panics
/// When shapes do not agree.
pub fn product(a: View<'_>, b: View<'_>, scale: f32, c: &mut ViewMut<'_>, keep: f32) {
    check(a, b, c);
    let part = (0, 0, c.shape.0, c.shape.1);
    // SAFETY: shapes are checked; the part is the whole, which is borrowed mutably.
    unsafe { product_part(a, b, scale, Shared(c.data.as_mut_ptr()), c.stride, keep, part) };
}

fn check(a: View<'_>, b: View<'_>, c: &ViewMut<'_>) {
    assert!(a.shape.1 == b.shape.0 && c.shape == (a.shape.0, b.shape.1), "shapes of a product");
}

/// The part of a product that begins at (row, column) and has (rows, columns).
///
/// # Safety
/// Shapes must agree, the part must lie within the result, and nobody else may use it meanwhile.
unsafe fn product_part(
    a: View<'_>,
    b: View<'_>,
    scale: f32,
    c: Shared<f32>,
    stride: usize,
    keep: f32,
    (row, column, rows, columns): (usize, usize, usize, usize),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let signed = |n: usize| n.cast_signed();
    // SAFETY: views hold all numbers of their shapes; the caller's contract for the result.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            a.shape.1,
            c.at(row * stride + column),
            1,
            signed(stride),
            keep != 0.0,
            a.data.as_ptr().add(row * a.strides.0),
            signed(a.strides.1),
            signed(a.strides.0),
            b.data.as_ptr().add(column * b.strides.1),
            signed(b.strides.1),
            signed(b.strides.0),
            keep,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl Cpu {
    /// keep · c + scale · a b, shared among the threads.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn product(&self, a: View<'_>, b: View<'_>, scale: f32, c: &mut ViewMut<'_>, keep: f32) {
        check(a, b, c);
        let (rows, columns) = c.shape;
        let longer = rows.max(columns);
        let size = longer.div_ceil(self.threads()).next_multiple_of(SMALLEST_PART);
        let (to, stride) = (Shared(c.data.as_mut_ptr()), c.stride);
        self.share(longer <= size, longer.div_ceil(size), &|at| {
            let (start, count) = (at * size, size.min(longer - at * size));
            let part = if rows >= columns { (start, 0, count, columns) } else { (0, start, rows, count) };
            // SAFETY: shapes are checked; parts are disjoint and within the result, which is borrowed mutably.
            unsafe { product_part(a, b, scale, to, stride, keep, part) };
        });
    }

    /// Hands each of the pieces of work to one of the threads.
    pub fn each<T: Send>(&self, work: Vec<T>, task: impl Fn(T) + Sync) {
        let slots: Vec<Mutex<Option<T>>> = work.into_iter().map(|piece| Mutex::new(Some(piece))).collect();
        self.share(slots.len() <= 1, slots.len(), &|at| {
            let piece = slots[at].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(piece) = piece {
                task(piece);
            }
        });
    }
}
