//! A small pool of threads for work of microseconds: they spin a moment between two pieces of work and
//! park when there is none.
//!
//! Work is a number of tasks that whoever is free takes one by one. The caller works too and waits only
//! for threads that have begun: on a machine where another program holds a core, it does that core's
//! share itself.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a thread without work looks for some before it parks: some 100 µs.
const SPINS: u32 = 2_000;

/// The state word: 32 bits of epoch, one bit that says whether threads may begin, 16 bits of how many have.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = 0xFFFF;
const EPOCH: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The work at hand. The pointer is dereferenced only between a successful entry and the leave.
#[derive(Clone, Copy)]
struct Work {
    task: *const Task<'static>,
    count: usize,
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    work: UnsafeCell<Option<Work>>,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written only by the one caller of `Pool::run` that holds its lock, while the state is closed
// and nobody is inside, and read only by threads that have entered, which the state's orderings put after
// the write. The task is `Sync`, so that calling it from there is sound.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is not owned.
unsafe impl Send for Shared {}

/// The threads.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads`, the caller of [`run`](Self::run) being one of them.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let others = threads.clamp(1, 1 << 10) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            parked: (0..others).map(|_| AtomicBool::new(false)).collect(),
            panicked: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(others), running: Mutex::new(()) };
        for index in 0..others {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kernel-{}", index + 1);
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// How many threads work, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.shared.parked.len() + 1
    }

    /// Calls `task` once for each number below `count`, on whatever threads are free, and returns when all calls
    /// have. A panic of a task is passed on.
    ///
    /// Must not be called from within a task: the pool runs one piece of work at a time.
    pub(super) fn run(&self, count: usize, task: &Task<'_>) {
        if count <= 1 || self.workers.is_empty() {
            return (0..count).for_each(task);
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by threads that are inside, and `Closing` waits for
        // them before this frame ends, on unwinding too.
        let erased: *const Task<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        // SAFETY: the state is closed and nobody is inside, as the last run left it; the lock keeps others away.
        unsafe { *shared.work.get() = Some(Work { task: erased, count }) };
        shared.next.store(0, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) / EPOCH).wrapping_add(1) & (u64::MAX / EPOCH);
        shared.state.store((epoch * EPOCH) | OPEN, Ordering::SeqCst);
        {
            let _closing = Closing(shared);
            for (parked, worker) in shared.parked.iter().zip(&self.workers) {
                if parked.load(Ordering::SeqCst) {
                    worker.thread().unpark();
                }
            }
            shared.take_tasks(count, task);
        }
        drop(running);
        let panicked = shared.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // Its panics are caught; there is nothing to learn from the result.
            let _ = worker.join();
        }
    }
}

/// Lets nobody begin any more, and waits for those who have.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0u32;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(SPINS) {
                // The thread that is waited for may need this core.
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl Shared {
    fn take_tasks(&self, count: usize, task: &Task<'_>) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            task(index);
        }
    }

    /// The loop of a thread.
    fn work(&self, index: usize) {
        let mut seen = 0;
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state / EPOCH != seen {
                let entered = state + 1;
                if self.state.compare_exchange(state, entered, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    seen = state / EPOCH;
                    self.run_entered();
                    self.state.fetch_sub(1, Ordering::AcqRel);
                    spins = 0;
                }
                continue;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            self.parked[index].store(true, Ordering::SeqCst);
            // Whoever opened before seeing the flag is seen here; whoever opens after it unparks.
            let state = self.state.load(Ordering::SeqCst);
            if (state & OPEN == 0 || state / EPOCH == seen) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.parked[index].store(false, Ordering::SeqCst);
            spins = 0;
        }
    }

    fn run_entered(&self) {
        // SAFETY: this thread is inside, so that the work was written before, and its task outlives the stay.
        let Some(work) = (unsafe { *self.work.get() }) else { return };
        // SAFETY: as above.
        let task = unsafe { &*work.task };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(work.count, task))) {
            self.panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_numbers() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 7, 100, 1_000] {
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|task| {
                    calls[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_runs_after_long_pauses() {
        let pool = Pool::new(4).unwrap();
        let total = AtomicUsize::new(0);
        for round in 0..2_000 {
            pool.run(5, &|task| {
                total.fetch_add(task, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                // Long enough for every thread to park.
                std::thread::park_timeout(std::time::Duration::from_millis(20));
            }
        }
        assert_eq!(total.load(Ordering::Relaxed), 2_000 * 10);
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_lives() {
        let pool = Pool::new(3).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|task| assert!(task != 57, "task 57"));
        }));
        assert!(panic.is_err());
        let total = AtomicUsize::new(0);
        pool.run(10, &|task| {
            total.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(total.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(4, &|_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4_000);
    }
}
