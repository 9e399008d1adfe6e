//! How often something may be done, exactly, however many do it at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number of uses that threads take from.
#[derive(Debug)]
pub struct Quota {
    limit: u64,
    used: AtomicU64,
}

impl Quota {
    /// Allows `limit` uses.
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// Takes a use, before what it is for is done. False: there is none left, and none was taken.
    pub fn claim(&self) -> bool {
        // The count orders nothing else between threads.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.limit).then_some(used + 1)
            })
            .is_ok()
    }

    /// Returns how many uses were taken; never more than there are.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn threads_take_exactly_as_many_as_there_are() {
        for limit in [0, 1, 7, 1000] {
            let (quota, start) = (Quota::new(limit), Barrier::new(8));
            let taken: usize = thread::scope(|scope| {
                let work = || {
                    start.wait();
                    (0..200).filter(|_| quota.claim()).count()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            });
            assert_eq!(taken as u64, limit.min(1600));
            assert_eq!(quota.used(), limit.min(1600));
        }
    }
}
