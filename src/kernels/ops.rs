//! The operations that a decoder is made of: safe, checked, and shared among the pool's threads.

use std::cell::RefCell;

use super::activations::Activations;
use super::group::{GROUP, TILE_ROWS};
use super::pack::Matrix;
use super::pool::Pool;
use super::variants::{Kernels, Variant};

/// Rows up to which small operations are not worth handing out.
const ALONE: usize = TILE_ROWS;

thread_local! {
    /// Accumulators and unpacked weights of a thread, kept from task to task.
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
pub(super) struct Scratch {
    pub(super) floats: Vec<f32>,
    pub(super) bytes: Vec<u8>,
}

/// A pointer that threads write through, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: the users of a `Shared` write disjoint parts of a buffer that is borrowed mutably meanwhile.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

/// An instruction set and threads.
#[derive(Debug)]
pub struct Cpu {
    pub(super) pool: Pool,
    variant: Variant,
}

impl Cpu {
    /// Threads for the kernels of `variant`.
    ///
    /// # Errors
    /// When the processor lacks the instructions, or the system gives no thread.
    pub fn new(variant: Variant, threads: usize) -> std::io::Result<Self> {
        if !variant.is_available() {
            let message = format!("this processor has no {} instructions", variant.as_str());
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, message));
        }
        Ok(Self { pool: Pool::new(threads)?, variant })
    }

    /// The instruction set in use.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub(super) fn kernels(&self) -> &'static Kernels {
        self.variant.kernels()
    }

    /// Runs `task` for each of `count` pieces on the pool, or here when there is too little to share.
    pub(super) fn share(&self, alone: bool, count: usize, task: &(dyn Fn(usize) + Sync)) {
        if alone { (0..count).for_each(task) } else { self.pool.run(count, task) }
    }

    /// Copies rows of an embedding table, times `scale`, into `to`.
    ///
    /// # Panics
    /// When a token has no row, or `to` has another size.
    pub fn embed(&self, table: &Matrix, tokens: &[u32], scale: f32, to: &mut [f32]) {
        let columns = table.columns();
        assert_eq!(to.len(), tokens.len() * columns, "room for the embeddings");
        assert!(tokens.iter().all(|t| (*t as usize) < table.rows()), "tokens of the table");
        let shared = Shared(to.as_mut_ptr());
        self.share(tokens.len() <= ALONE, tokens.len(), &|i| {
            // SAFETY: row i of a buffer that holds all rows, written by this task alone.
            let row = unsafe { std::slice::from_raw_parts_mut(shared.at(i * columns), columns) };
            table.row(tokens[i] as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|v| *v *= scale);
            }
        });
    }

    /// RMSNorm of each row, into `out`; quantised too if asked.
    ///
    /// # Panics
    /// When sizes do not agree.
    pub fn normalise(&self, x: &[f32], weight: &[f32], eps: f32, quantise: bool, out: &mut Activations) {
        let columns = weight.len();
        assert!(columns > 0 && x.len().is_multiple_of(columns), "whole rows");
        let rows = x.len() / columns;
        out.reshape(rows, columns, quantise);
        let kernels = self.kernels();
        let (floats, groups) = (Shared(out.floats.as_mut_ptr()), Shared(out.groups.as_mut_ptr()));
        let row_groups = out.row_groups();
        self.share(rows <= ALONE, rows.div_ceil(TILE_ROWS), &|tile| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                let y = floats.at(row * columns);
                // SAFETY: both rows are within their buffers, tiles are disjoint, and the variant is available.
                unsafe {
                    (kernels.rms_norm)(x.as_ptr().add(row * columns), weight.as_ptr(), columns, eps, y);
                    if quantise {
                        (kernels.quantise)(y, row_groups, groups.at(tile * row_groups), row % TILE_ROWS);
                    }
                }
            }
        });
    }

    /// RMSNorm of each row in place.
    ///
    /// # Panics
    /// When sizes do not agree.
    pub fn normalise_in_place(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        let columns = weight.len();
        assert!(columns > 0 && x.len().is_multiple_of(columns), "whole rows");
        let rows = x.len() / columns;
        let (kernels, shared) = (self.kernels(), Shared(x.as_mut_ptr()));
        self.share(rows <= ALONE, rows, &|row| {
            let y = shared.at(row * columns);
            // SAFETY: rows are disjoint and within the buffer, and the variant is available.
            unsafe {
                (kernels.rms_norm)(y, weight.as_ptr(), columns, eps, y);
            }
        });
    }

    /// Quantises what was written through [`Activations::floats_mut`].
    pub fn quantise(&self, x: &mut Activations) {
        let (rows, columns) = (x.rows, x.columns);
        x.reshape(rows, columns, true);
        let kernels = self.kernels();
        let (floats, groups) = (Shared(x.floats.as_mut_ptr()), Shared(x.groups.as_mut_ptr()));
        let row_groups = x.row_groups();
        self.share(rows <= ALONE, rows.div_ceil(TILE_ROWS), &|tile| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                // SAFETY: within both buffers, tiles are disjoint, and the variant is available.
                unsafe {
                    let x = floats.at(row * columns).cast_const();
                    (kernels.quantise)(x, row_groups, groups.at(tile * row_groups), row % TILE_ROWS);
                }
            }
        });
    }

    /// Doubles the rows: what 8 bits make of each, then, behind all of those, what they leave over. The products of both
    /// together are those of 16-bit inputs.
    pub fn split(&self, x: &Activations, out: &mut Activations) {
        let (rows, columns) = (x.rows, x.columns);
        out.reshape(2 * rows, columns, false);
        out.floats[..rows * columns].copy_from_slice(x.floats());
        out.floats[rows * columns..2 * rows * columns].fill(0.0);
        self.quantise(out);
        let groups = out.row_groups();
        for row in 0..rows {
            let records = &out.groups[row / TILE_ROWS * groups..][..groups];
            let (from, t) = (row * columns, row % TILE_ROWS);
            for (g, record) in records.iter().enumerate() {
                for (c, code) in record.q[t].iter().enumerate() {
                    let at = from + g * GROUP + c;
                    let rest = out.floats[at] - f32::from(*code) * record.scale[t];
                    out.floats[rows * columns + at] = rest;
                }
            }
        }
        self.quantise(out);
    }

    /// The index of the largest number, the first on a tie; `None` when one is not finite, or there is none.
    pub fn argmax(&self, numbers: &[f32]) -> Option<usize> {
        // SAFETY: the slice holds as many numbers as it says, and the variant is available.
        let at = unsafe { (self.kernels().argmax)(numbers.as_ptr(), numbers.len()) };
        (at < numbers.len()).then_some(at)
    }
}
