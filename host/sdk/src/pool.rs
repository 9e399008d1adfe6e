//! A private pool of named threads for CPU kernels.
//!
//! Not for Python callables: those belong on threads that Python created. Not rayon's global pool:
//! nobody owns its threads, they are in the way of a fork, and another library may have set it up.
//!
//! ```
//! use crewai_native_sdk::pool::Pool;
//!
//! static KERNELS: Pool = Pool::new("example-kernel");
//!
//! let mut numbers: Vec<u32> = (0..100_000).collect();
//! KERNELS.for_each_chunk_mut(&mut numbers, 8192, |_offset, chunk| {
//!     for number in chunk {
//!         *number += 1;
//!     }
//! });
//! let sums = KERNELS.map_chunks(&numbers, 8192, |_offset, chunk| {
//!     chunk.iter().map(|&number| u64::from(number)).sum::<u64>()
//! });
//! assert_eq!(sums.iter().sum::<u64>(), 5_000_050_000);
//! ```

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{mem, ptr, thread};

use crate::atexit::{self, STOP_LIMIT};
use crate::error::{Panic, catch_panic};
use crate::process::PerProcess;

/// A fixed number of threads that share work on borrowed data with the thread that brings it.
///
/// - The threads are started at first use, again at first use after a fork, and stopped at exit.
/// - The calling thread always takes part. So a call finishes even when no thread could be started
///   or the process is exiting, and calls may be nested.
/// - No thread of the pool touches Python. Call it with the GIL released
///   ([`gil::detached`](crate::gil::detached)), and pass work that does not ask for the GIL.
/// - A panic in the work ends the call: it goes on as a panic of the calling thread, after all
///   threads have left the data.
///
/// Handing out work costs some microseconds: give a part tens of microseconds to do.
pub struct Pool {
    name: &'static str,
    limit: usize,
    workers: PerProcess<Arc<Workers>>,
}

impl Pool {
    /// Creates a pool with as many threads as the process may use processors.
    ///
    /// `name` is what debuggers and `top` show; Linux cuts it after 15 characters.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            limit: usize::MAX,
            workers: PerProcess::new(),
        }
    }

    /// Limits the number of threads, the calling one included; at least 1.
    pub const fn with_limit(mut self, limit: usize) -> Self {
        self.limit = if limit == 0 { 1 } else { limit };
        self
    }

    /// Returns how many threads work on a call, the calling one included. Starts them.
    ///
    /// Fewer than processors and limit allow when the system refused to start more.
    pub fn threads(&self) -> usize {
        self.workers().lock().alive + 1
    }

    /// Calls `work(part)` for every part from 0 up to `parts`, in any order.
    pub fn run(&self, parts: usize, work: impl Fn(usize) + Sync) {
        let helpers = parts.saturating_sub(1).min(self.limit - 1);
        if helpers == 0 {
            return (0..parts).for_each(work);
        }
        let workers = self.workers();
        let job = Arc::new(Job::new(parts, &work));
        workers.offer(&job, helpers);
        job.work_off();
        workers.withdraw(&job);
        if let Some(panic) = job.close() {
            panic.resume();
        }
    }

    /// Calls `work(offset, chunk)` for every chunk of `items`. All but the last have `size` items.
    pub fn for_each_chunk<T: Sync>(
        &self,
        items: &[T],
        size: usize,
        work: impl Fn(usize, &[T]) + Sync,
    ) {
        self.map_chunks(items, size, work);
    }

    /// Calls `work(offset, chunk)` for every chunk of `items`, each chunk exclusively.
    pub fn for_each_chunk_mut<T: Send>(
        &self,
        items: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let size = size.max(1);
        // Each lock is taken once: it is what shows the compiler that no chunk has two holders.
        let chunks: Vec<_> = items.chunks_mut(size).map(Mutex::new).collect();
        self.run(chunks.len(), |part| {
            work(part * size, &mut lock(&chunks[part]));
        });
    }

    /// Returns `work(offset, chunk)` of every chunk of `items`, in order.
    pub fn map_chunks<T: Sync, R: Send>(
        &self,
        items: &[T],
        size: usize,
        work: impl Fn(usize, &[T]) -> R + Sync,
    ) -> Vec<R> {
        let size = size.max(1);
        let results: Vec<_> = items.chunks(size).map(|_| Mutex::new(None)).collect();
        self.run(results.len(), |part| {
            let start = part * size;
            let end = items.len().min(start + size);
            let result = work(start, &items[start..end]);
            *lock(&results[part]) = Some(result);
        });
        results
            .into_iter()
            .filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    fn workers(&self) -> &Arc<Workers> {
        self.workers.get_or_init(|| {
            let processors = thread::available_parallelism().map_or(1, NonZero::get);
            let threads = if atexit::exiting() {
                1
            } else {
                processors.min(self.limit)
            };
            let workers = Workers::start(self.name, threads - 1);
            let stopped = Arc::clone(&workers);
            atexit::register(move || stopped.stop());
            workers
        })
    }
}

/// A pool that is not a `static` takes its threads along.
impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.get() {
            workers.stop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panics is the work, under no lock of the pool's but those round its own items.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Workers {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    /// A job stands here once for each helper that it wants.
    jobs: VecDeque<Arc<Job>>,
    alive: usize,
    stopping: bool,
}

impl Workers {
    fn start(name: &str, count: usize) -> Arc<Self> {
        let workers = Arc::new(Self {
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                alive: 0,
                stopping: false,
            }),
            changed: Condvar::new(),
        });
        for number in 0..count {
            let worker = Arc::clone(&workers);
            let started = thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || worker.serve());
            if started.is_err() {
                // The system is out of threads; `Pool::threads` tells.
                break;
            }
            workers.lock().alive += 1;
        }
        workers
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn offer(&self, job: &Arc<Job>, helpers: usize) {
        let mut queue = self.lock();
        if queue.stopping {
            return;
        }
        let helpers = helpers.min(queue.alive);
        queue.jobs.extend((0..helpers).map(|_| Arc::clone(job)));
        drop(queue);
        if helpers == 1 {
            self.changed.notify_one();
        } else {
            self.changed.notify_all();
        }
    }

    fn withdraw(&self, job: &Arc<Job>) {
        self.lock().jobs.retain(|other| !Arc::ptr_eq(other, job));
    }

    /// What each thread of the pool does.
    fn serve(&self) {
        loop {
            let mut queue = self
                .changed
                .wait_while(self.lock(), |queue| {
                    queue.jobs.is_empty() && !queue.stopping
                })
                .unwrap_or_else(PoisonError::into_inner);
            if queue.stopping {
                queue.alive -= 1;
                self.changed.notify_all();
                return;
            }
            let job = queue.jobs.pop_front();
            drop(queue);
            if let Some(job) = job
                && job.enter()
            {
                job.work_off();
                job.leave();
            }
        }
    }

    /// Ends the threads, each after the job that it is in. Later calls run on the calling thread.
    fn stop(&self) {
        let mut queue = self.lock();
        queue.stopping = true;
        self.changed.notify_all();
        // A thread that takes longer is left to the end of the process: it only computes.
        drop(
            self.changed
                .wait_timeout_while(queue, STOP_LIMIT, |queue| queue.alive > 0),
        );
    }
}

/// One call of [`Pool::run`].
struct Job {
    parts: usize,
    /// The first part that nobody has taken.
    next: AtomicUsize,
    /// Borrowed from the caller of `run`: see `close`.
    work: *const (dyn Fn(usize) + Sync),
    state: Mutex<JobState>,
    left: Condvar,
}

#[derive(Default)]
struct JobState {
    closed: bool,
    inside: usize,
    panic: Option<Panic>,
}

// SAFETY: `work` is what keeps these from being automatic. It points to a `Sync` closure, so it may
// be called from any thread, and `close` keeps it from being called too late.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    /// The caller must call [`Job::close`] before `work` ends its life.
    fn new<'a>(parts: usize, work: &'a (dyn Fn(usize) + Sync + 'a)) -> Self {
        Self {
            parts,
            next: AtomicUsize::new(0),
            // SAFETY: only the lifetime changes, and only the pointer is kept. It is used between
            // `enter` and `leave`, and by the caller itself before `close`; `close` waits for the
            // last `leave`, and after it no `enter` succeeds.
            work: ptr::from_ref(unsafe {
                mem::transmute::<&'a (dyn Fn(usize) + Sync + 'a), &'static (dyn Fn(usize) + Sync)>(
                    work,
                )
            }),
            state: Mutex::default(),
            left: Condvar::new(),
        }
    }

    fn enter(&self) -> bool {
        let mut state = lock(&self.state);
        state.inside += usize::from(!state.closed);
        !state.closed
    }

    fn leave(&self) {
        lock(&self.state).inside -= 1;
        self.left.notify_all();
    }

    /// Does parts until none is left, or one panics.
    fn work_off(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            // SAFETY: the job is not closed: this thread has entered it, or is the one to close it.
            let work = unsafe { &*self.work };
            if let Err(panic) = catch_panic(|| work(part)) {
                self.next.store(self.parts, Ordering::Relaxed);
                lock(&self.state).panic.get_or_insert(panic);
                return;
            }
        }
    }

    /// Lets no further thread in, waits for those inside, and returns the first panic.
    fn close(&self) -> Option<Panic> {
        let mut state = lock(&self.state);
        state.closed = true;
        let mut state = self
            .left
            .wait_while(state, |state| state.inside > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.panic.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread::ThreadId;

    use super::*;

    #[test]
    fn every_part_is_done_once() {
        let pool = Pool::new("test");
        for parts in [0, 1, 2, 3, 1000] {
            let done: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            pool.run(parts, |part| {
                done[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn chunks_cover_the_items_in_order() {
        let pool = Pool::new("test");
        let mut items: Vec<usize> = (0..1003).collect();
        for size in [0, 1, 10, 1003, 5000] {
            let copies = pool.map_chunks(&items, size, |offset, chunk| {
                assert_eq!(chunk.first(), Some(&offset));
                chunk.to_vec()
            });
            assert_eq!(copies.concat(), items);
        }
        pool.for_each_chunk_mut(&mut items, 10, |offset, chunk| {
            for (index, item) in chunk.iter_mut().enumerate() {
                *item = offset + index + 1;
            }
        });
        assert_eq!(items, (1..=1003).collect::<Vec<_>>());
    }

    #[test]
    fn several_threads_take_part_and_the_caller_is_one() {
        let pool = Pool::new("test").with_limit(2);
        let threads = pool.threads();
        // Nobody passes before as many threads as the pool claims have come.
        let all = Barrier::new(threads);
        let seen: Mutex<HashSet<ThreadId>> = Mutex::default();
        pool.run(threads, |_| {
            all.wait();
            lock(&seen).insert(thread::current().id());
        });
        assert_eq!(lock(&seen).len(), threads);
        assert!(lock(&seen).contains(&thread::current().id()));
    }

    #[test]
    fn calls_nest_and_overlap() {
        let pool = Pool::new("test");
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    pool.run(20, |_| {
                        pool.run(20, |_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 4 * 20 * 20);
    }

    #[test]
    fn a_panic_comes_to_the_caller_after_everybody_has_left() {
        let pool = Pool::new("test");
        for round in 0..100 {
            let inside = AtomicUsize::new(0);
            let caught = catch_panic(|| {
                pool.run(50, |part| {
                    inside.fetch_add(1, Ordering::SeqCst);
                    let bad = part == round % 50;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    assert!(!bad, "part {part}");
                });
            });
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            let message = caught.unwrap_err().to_string();
            assert!(
                message.ends_with(&format!("part {}", round % 50)),
                "{message}"
            );
            assert!(message.contains("pool.rs"), "{message}");
        }
        // The pool has lost no thread by it.
        let threads = pool.threads();
        let all = Barrier::new(threads);
        pool.run(threads, |_| {
            all.wait();
        });
    }

    #[test]
    fn a_stopped_pool_still_works_on_the_calling_thread() {
        let pool = Pool::new("test");
        pool.threads();
        pool.workers().stop();
        assert_eq!(pool.threads(), 1);
        let me = thread::current().id();
        pool.run(10, |_| assert_eq!(thread::current().id(), me));
    }
}
