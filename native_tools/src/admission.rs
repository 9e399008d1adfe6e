//! Who may start now, who waits, and who is sent away.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crewai_native_sdk::process::{self, PerProcess};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::handoff::Ticket;

/// At most so many starts in any stretch of so much time.
///
/// The lock is held by threads that are attached to Python, for as long as it takes to look at one
/// end of a queue: so no fork finds it held.
#[derive(Debug)]
pub struct Rate {
    calls: usize,
    time: Duration,
    /// When the latest `calls` calls started or will, in order.
    starts: Mutex<VecDeque<Instant>>,
}

impl Rate {
    /// Allows `calls` starts, at least 1, in any `time`.
    pub const fn new(calls: usize, time: Duration) -> Self {
        Self {
            calls: if calls == 0 { 1 } else { calls },
            time,
            starts: Mutex::new(VecDeque::new()),
        }
    }

    /// Returns when a call may start that comes `now`, and counts it; or, where that is later than
    /// `latest`, counts nothing and returns it as the error.
    pub fn reserve(&self, now: Instant, latest: Instant) -> Result<Instant, Instant> {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let start = if starts.len() < self.calls {
            now
        } else {
            starts
                .front()
                .map_or(now, |&oldest| now.max(oldest + self.time))
        };
        if start > latest {
            return Err(start);
        }
        if starts.len() == self.calls {
            starts.pop_front();
        }
        starts.push_back(start);
        Ok(start)
    }
}

/// So many at a time; the others wait in the order in which they came.
pub struct Gate {
    places: usize,
    gives_way: bool,
    /// A fork takes no place along: those who hold the others are not in the child.
    inside: PerProcess<Arc<Inside>>,
}

/// What is behind a gate.
#[derive(Debug)]
pub struct Inside {
    places: usize,
    gives_way: bool,
    free: Arc<Semaphore>,
    /// By their addresses. The lock is held for a few instructions, and no other is taken under it.
    holders: Mutex<HashMap<usize, Weak<Ticket>>>,
}

impl Gate {
    /// Has `places` places, at least 1.
    pub const fn new(places: usize) -> Self {
        Self {
            places: if places == 0 { 1 } else { places },
            gives_way: false,
            inside: PerProcess::new(),
        }
    }

    /// Lets in more than it has places for where nobody could go on otherwise.
    #[must_use]
    pub const fn giving_way(mut self) -> Self {
        self.gives_way = true;
        self
    }

    /// Returns what is behind it in this process.
    pub fn inside(&self) -> &Arc<Inside> {
        self.inside.get_or_init(|| {
            let places = self.places.min(Semaphore::MAX_PERMITS);
            Arc::new(Inside {
                places,
                gives_way: self.gives_way,
                free: Arc::new(Semaphore::new(places)),
                holders: Mutex::default(),
            })
        })
    }

    /// Takes a place if one is free and nobody waits for it.
    pub fn try_enter(&self) -> Option<Place> {
        let inside = self.inside();
        let permit = Arc::clone(&inside.free).try_acquire_owned().ok()?;
        Some(Place::of(permit, Arc::clone(inside)))
    }

    /// Waits for a place. A future that is dropped gives up its turn.
    pub fn enter(&self) -> impl Future<Output = Option<Place>> + Send + use<> {
        let inside = Arc::clone(self.inside());
        async move {
            let permit = Arc::clone(&inside.free).acquire_owned().await.ok()?;
            Some(Place::of(permit, inside))
        }
    }
}

impl Inside {
    fn held(&self) -> MutexGuard<'_, HashMap<usize, Weak<Ticket>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether those who wait may be let in without a place.
    pub const fn gives_way(&self) -> bool {
        self.gives_way
    }

    /// Returns the calls that hold its places, or None while one is free or on its way to a call.
    pub fn holders(&self) -> Option<Vec<Arc<Ticket>>> {
        let held = self.held();
        let holders: Vec<_> = held.values().filter_map(Weak::upgrade).collect();
        drop(held);
        (holders.len() == self.places).then_some(holders)
    }
}

/// A place behind a gate, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    permit: Option<OwnedSemaphorePermit>,
    inside: Arc<Inside>,
    holder: usize,
    pid: u32,
}

impl Place {
    fn of(permit: OwnedSemaphorePermit, inside: Arc<Inside>) -> Self {
        Self {
            permit: Some(permit),
            inside,
            holder: 0,
            pid: process::id(),
        }
    }

    /// Says whose it is, so that those who wait for it can see what that call waits for.
    pub fn is_held_by(&mut self, ticket: &Arc<Ticket>) {
        self.holder = ticket.address();
        let mut held = self.inside.held();
        held.insert(self.holder, Arc::downgrade(ticket));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // In a forked child the gate that it belongs to is another process's ruin.
        if self.pid != process::id() {
            std::mem::forget(self.permit.take());
        } else if self.holder != 0 {
            self.inside.held().remove(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_holds_in_every_stretch_of_time() {
        let (rate, start) = (Rate::new(2, Duration::from_secs(1)), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate.reserve(at(0), at(0)), Ok(at(0)));
        assert_eq!(rate.reserve(at(900), at(900)), Ok(at(900)));
        assert_eq!(rate.reserve(at(950), at(950)), Err(at(1000)));
        assert_eq!(rate.reserve(at(950), at(9000)), Ok(at(1000)));
        assert_eq!(rate.reserve(at(960), at(1899)), Err(at(1900)));
        assert_eq!(rate.reserve(at(3000), at(3000)), Ok(at(3000)));
    }

    proptest! {
        #[test]
        fn no_stretch_has_more_starts(
            calls in 1..5usize,
            gaps in prop::collection::vec(0..400u64, 1..60),
        ) {
            let time = Duration::from_millis(500);
            let (rate, mut now) = (Rate::new(calls, time), Instant::now());
            let mut starts = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Ok(start) = rate.reserve(now, now + Duration::from_millis(700)) {
                    prop_assert!(start >= now);
                    starts.push(start);
                }
            }
            prop_assert!(starts.is_sorted());
            for window in starts.windows(calls + 1) {
                prop_assert!(window[calls] - window[0] >= time);
            }
        }
    }

    #[test]
    fn places_are_given_back() {
        let gate = Gate::new(2);
        let (first, second) = (gate.try_enter().unwrap(), gate.try_enter().unwrap());
        assert!(gate.try_enter().is_none());
        drop(first);
        let third = gate.try_enter().unwrap();
        drop((second, third));
        assert_eq!(gate.inside().free.available_permits(), 2);
    }

    #[test]
    fn who_gives_up_waiting_takes_no_place() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let gate = Gate::new(1);
        let place = gate.try_enter().unwrap();
        runtime.block_on(async {
            let soon = Duration::from_millis(1);
            assert!(tokio::time::timeout(soon, gate.enter()).await.is_err());
        });
        drop(place);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn never_more_are_inside_than_there_are_places() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (gate, inside) = (Gate::new(3), AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let handle = runtime.handle();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _place = handle.block_on(gate.enter()).unwrap();
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
