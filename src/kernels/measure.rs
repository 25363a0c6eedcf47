//! What the machine can do, measured on the spot: the limits that timings are held against.

use super::forms::{PANEL, UNPACKED};
use super::group::{GROUP, Group, TILE_ROWS};
use super::ops::{Cpu, Shared};
use super::pack::QuantType;

impl Cpu {
    /// Bytes per second that all threads together read from memory that no cache holds.
    pub fn measure_reads(&self) -> f64 {
        const BYTES: usize = 1 << 28;
        const TASK: usize = 1 << 20;
        let memory = super::memory::map(BYTES);
        let pages = Shared(memory.as_ptr().cast_mut());
        let kernels = self.kernels();
        let found = std::sync::atomic::AtomicU64::new(0);
        let pass = || {
            let begun = std::time::Instant::now();
            self.pool.run(BYTES / TASK, &|task| {
                // SAFETY: within the map, which nobody else has; the variant is available.
                let sum = unsafe { (kernels.read)(pages.at(task * TASK).cast_const(), TASK) };
                found.fetch_xor(u64::from(sum), std::sync::atomic::Ordering::Relaxed);
            });
            BYTES as f64 / begun.elapsed().as_secs_f64()
        };
        let mut memory = memory;
        memory.fill(1);
        (0..4).map(|_| pass()).fold(0.0, f64::max)
    }

    /// Multiply-adds per second of all threads together, of the kernel that multiplies many tokens, on data within
    /// the first caches.
    pub fn measure_multiply_adds(&self) -> f64 {
        const GROUPS: usize = 16;
        const TILES: usize = 4;
        const TASKS: usize = 64;
        const ROUNDS: usize = 64;
        let kernels = self.kernels();
        let weights = vec![1u8; GROUPS * UNPACKED];
        let tokens = vec![Group::ZERO; GROUPS * TILES];
        let pass = || {
            let begun = std::time::Instant::now();
            self.pool.run(TASKS, &|_| {
                let mut sums = [0f32; TILES * TILE_ROWS * PANEL];
                for _ in 0..ROUNDS {
                    // SAFETY: all buffers are as large as the numbers say; the variant is available.
                    unsafe {
                        let (w, x) = (weights.as_ptr(), tokens.as_ptr());
                        (kernels.dot_unpacked)(
                            QuantType::Q4_1,
                            w,
                            GROUPS,
                            x,
                            GROUPS,
                            TILES,
                            sums.as_mut_ptr(),
                        );
                    }
                }
            });
            let work = TASKS * ROUNDS * GROUPS * GROUP * TILES * TILE_ROWS * PANEL;
            work as f64 / begun.elapsed().as_secs_f64()
        };
        (0..5).map(|_| pass()).fold(0.0, f64::max)
    }
}
