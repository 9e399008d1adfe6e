//! A counter that threads share.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts calls, from several threads at once.
#[derive(Debug, Default)]
pub struct Calls(AtomicU64);

impl Calls {
    /// Counts one.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::Calls;

    #[test]
    fn threads_count_together() {
        let calls = Calls::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| calls.add()));
            }
        });
        assert_eq!(calls.total(), 4000);
    }
}
