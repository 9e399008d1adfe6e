//! How often something may be done, exactly, however many do it at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often something was done.
#[derive(Debug, Default)]
pub struct Quota(AtomicU64);

impl Quota {
    /// Takes one of `limit` uses, before what it is for is done. False: there is none left, and
    /// none was taken.
    pub fn claim(&self, limit: u64) -> bool {
        // The count orders nothing else between threads.
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < limit).then_some(used + 1)
            })
            .is_ok()
    }

    /// Returns how many uses were taken.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
            let (quota, start) = (Quota::default(), Barrier::new(8));
            let taken: usize = thread::scope(|scope| {
                let work = || {
                    start.wait();
                    (0..200).filter(|_| quota.claim(limit)).count()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            });
            assert_eq!(taken as u64, limit.min(1600));
            assert_eq!(quota.used(), limit.min(1600));
            assert!(quota.claim(limit.min(1600) + 1));
            assert!(!quota.claim(1));
        }
    }
}
