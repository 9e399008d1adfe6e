//! Scopes: what is running, where it is, and whether it may go on.
//!
//! A scope ends together with the scopes within it. Asking whether it has ended is a walk over a
//! few atomics, which runs do before every step. Whoever ends a scope learns what is still inside
//! foreign code (a model's call, a tool), and can wait until nothing else runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Why a scope has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Somebody asked.
    Cancelled,
    /// Its time was up.
    Expired,
}

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const EXPIRED: u8 = 2;

/// Something foreign that a run is inside of.
#[derive(Debug, Clone)]
pub struct Place {
    /// What it is.
    pub label: String,
    /// The name of the thread that is in it.
    pub thread: String,
    /// Since when.
    pub since: Instant,
}

/// One scope. `H` is what is called when it ends.
#[derive(Debug)]
pub struct Scope<H> {
    ended: AtomicU8,
    deadline: Option<Instant>,
    parent: Option<Arc<Scope<H>>>,
    inner: Mutex<Inner<H>>,
    /// Shared by a whole tree: somebody may wait for a change anywhere below.
    changes: Arc<Changes>,
}

#[derive(Debug)]
struct Inner<H> {
    children: Vec<Weak<Scope<H>>>,
    /// How many children there may be before those that are gone are swept out.
    sweep_at: usize,
    hooks: HashMap<u64, H>,
    /// The threads of the runs that have begun and not ended here.
    runs: HashMap<u64, u64>,
    places: HashMap<u64, Place>,
}

#[derive(Debug, Default)]
struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

const FEW: usize = 64;
static KEYS: AtomicU64 = AtomicU64::new(1);

fn fresh_key() -> u64 {
    KEYS.fetch_add(1, Ordering::Relaxed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Changes {
    fn note(&self) {
        *lock(&self.count) += 1;
        self.changed.notify_all();
    }
}

impl<H> Scope<H> {
    /// Opens a scope, within another where there is one, for at most `limit`.
    #[must_use]
    pub fn new(parent: Option<&Arc<Self>>, limit: Option<Duration>) -> Arc<Self> {
        let scope = Arc::new(Self {
            ended: AtomicU8::new(OPEN),
            deadline: limit.and_then(|limit| Instant::now().checked_add(limit)),
            parent: parent.cloned(),
            inner: Mutex::new(Inner {
                children: Vec::new(),
                sweep_at: FEW,
                hooks: HashMap::new(),
                runs: HashMap::new(),
                places: HashMap::new(),
            }),
            changes: parent.map_or_else(Arc::default, |parent| parent.changes.clone()),
        });
        if let Some(parent) = parent {
            let mut inner = lock(&parent.inner);
            if inner.children.len() >= inner.sweep_at {
                inner.children.retain(|child| child.strong_count() > 0);
                inner.sweep_at = FEW.max(2 * inner.children.len());
            }
            inner.children.push(Arc::downgrade(&scope));
        }
        scope
    }

    /// Returns why this scope has ended, by itself or with one around it.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            if let Some(ended) = here.own_end() {
                return Some(ended);
            }
            scope = here.parent.as_deref();
        }
        None
    }

    /// Returns why this very scope has ended.
    #[must_use]
    pub fn own_end(&self) -> Option<Ended> {
        match self.ended.load(Ordering::Acquire) {
            CANCELLED => Some(Ended::Cancelled),
            EXPIRED => Some(Ended::Expired),
            _ if self
                .deadline
                .is_some_and(|deadline| deadline <= Instant::now()) =>
            {
                Some(Ended::Expired)
            }
            _ => None,
        }
    }

    /// Returns how long it is until the time of this scope is up, or of one around it; `None` where
    /// neither has a limit.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut soonest: Option<Instant> = None;
        let mut scope = Some(self);
        while let Some(here) = scope {
            soonest = soonest.into_iter().chain(here.deadline).min();
            scope = here.parent.as_deref();
        }
        soonest.map(|deadline| deadline.saturating_duration_since(now))
    }

    /// Ends the scope. Returns the hooks to call, of this one and those within; none if it had ended.
    pub fn end(self: &Arc<Self>, why: Ended) -> Vec<H> {
        let flag = match why {
            Ended::Cancelled => CANCELLED,
            Ended::Expired => EXPIRED,
        };
        let mut hooks = Vec::new();
        if self
            .ended
            .compare_exchange(OPEN, flag, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.each_within(&mut |scope| {
                hooks.extend(lock(&scope.inner).hooks.drain().map(|(_, hook)| hook));
            });
            self.changes.note();
        }
        hooks
    }

    /// Has a hook called when the scope ends; gives it back where it has ended already.
    pub fn on_end(&self, hook: H) -> Result<u64, H> {
        let key = fresh_key();
        lock(&self.inner).hooks.insert(key, hook);
        // Either the one who ends it has seen the hook, or the hook sees the end.
        if self.ended().is_some()
            && let Some(hook) = lock(&self.inner).hooks.remove(&key)
        {
            return Err(hook);
        }
        Ok(key)
    }

    /// Takes a hook back.
    pub fn forget(&self, key: u64) -> Option<H> {
        lock(&self.inner).hooks.remove(&key)
    }

    /// Notes that a run has begun on a thread.
    pub fn begin(&self, thread: u64) -> u64 {
        let key = fresh_key();
        lock(&self.inner).runs.insert(key, thread);
        key
    }

    /// Notes that a run is over.
    pub fn over(&self, key: u64) {
        lock(&self.inner).runs.remove(&key);
        self.changes.note();
    }

    /// Notes that a run goes into foreign code.
    pub fn arrive(&self, label: String, thread: String) -> u64 {
        let key = fresh_key();
        let place = Place {
            label,
            thread,
            since: Instant::now(),
        };
        lock(&self.inner).places.insert(key, place);
        self.changes.note();
        key
    }

    /// Notes that it has come back.
    pub fn leave(&self, key: u64) {
        lock(&self.inner).places.remove(&key);
    }

    /// Waits until every run within is over or inside foreign code; those of thread `own` do not
    /// count, which cannot go on while it waits.
    ///
    /// Returns whether that came about in time.
    #[must_use]
    pub fn quiet(self: &Arc<Self>, own: u64, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            let seen = *lock(&self.changes.count);
            let mut busy = false;
            self.each_within(&mut |scope| busy |= scope.busy(own));
            if !busy {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let count = lock(&self.changes.count);
            drop(
                self.changes
                    .changed
                    .wait_timeout_while(count, left, |count| *count == seen),
            );
        }
    }

    /// Returns what is inside foreign code, here and within.
    #[must_use]
    pub fn places(self: &Arc<Self>) -> Vec<Place> {
        let mut found = Vec::new();
        self.each_within(&mut |scope| found.extend(lock(&scope.inner).places.values().cloned()));
        found.sort_by_key(|place| place.since);
        found
    }

    /// Whether a run that began here does something of its own.
    fn busy(self: &Arc<Self>, own: u64) -> bool {
        let running = lock(&self.inner).runs.values().any(|thread| *thread != own);
        running && self.places().is_empty()
    }

    fn each_within(self: &Arc<Self>, visit: &mut dyn FnMut(&Arc<Self>)) {
        visit(self);
        // Nobody visits under a lock of a scope above it.
        let children: Vec<_> = lock(&self.inner)
            .children
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for child in children {
            child.each_within(visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    type Plain = Scope<&'static str>;

    #[test]
    fn an_end_reaches_what_lies_within_and_nothing_else() {
        let root = Plain::new(None, None);
        let (left, right) = (Plain::new(Some(&root), None), Plain::new(Some(&root), None));
        let leaf = Plain::new(Some(&left), None);
        left.end(Ended::Cancelled);
        assert_eq!(leaf.ended(), Some(Ended::Cancelled));
        assert_eq!((right.ended(), root.ended()), (None, None));
        assert_eq!(
            Plain::new(Some(&leaf), None).ended(),
            Some(Ended::Cancelled)
        );
    }

    #[test]
    fn a_deadline_ends_a_scope_by_itself() {
        let root = Plain::new(None, Some(Duration::ZERO));
        let leaf = Plain::new(Some(&root), Some(Duration::from_secs(3600)));
        assert_eq!(leaf.ended(), Some(Ended::Expired));
        assert_eq!(leaf.own_end(), None);
        assert_eq!(leaf.left(), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_left_is_what_the_soonest_deadline_leaves() {
        let root = Plain::new(None, Some(Duration::from_secs(60)));
        let leaf = Plain::new(Some(&root), Some(Duration::from_secs(3600)));
        assert!(leaf.left().unwrap() <= Duration::from_secs(60));
        assert!(leaf.left().unwrap() > Duration::ZERO);
        assert_eq!(Plain::new(None, None).left(), None);
    }

    #[test]
    fn each_hook_is_called_once_by_whoever_ends_the_scope() {
        let root = Plain::new(None, None);
        let leaf = Plain::new(Some(&root), None);
        let gone = leaf.on_end("gone").unwrap();
        root.on_end("root").unwrap();
        leaf.on_end("leaf").unwrap();
        assert_eq!(leaf.forget(gone), Some("gone"));
        let mut hooks = root.end(Ended::Cancelled);
        hooks.sort_unstable();
        assert_eq!(hooks, ["leaf", "root"]);
        assert!(root.end(Ended::Expired).is_empty());
        assert_eq!(root.ended(), Some(Ended::Cancelled));
        assert_eq!(leaf.on_end("late"), Err("late"));
    }

    #[test]
    fn quiet_is_when_every_run_is_over_or_elsewhere() {
        let root = Plain::new(None, None);
        let leaf = Plain::new(Some(&root), None);
        assert!(root.quiet(0, Duration::ZERO));
        let run = leaf.begin(7);
        assert!(!root.quiet(0, Duration::ZERO));
        assert!(root.quiet(7, Duration::ZERO));
        let place = leaf.arrive("a call".to_owned(), "worker".to_owned());
        assert!(root.quiet(0, Duration::ZERO));
        assert_eq!(root.places()[0].label, "a call");
        leaf.leave(place);
        let other = leaf.clone();
        let ending = thread::spawn(move || other.over(run));
        assert!(root.quiet(0, Duration::from_secs(60)));
        ending.join().unwrap();
    }

    #[test]
    fn scopes_that_are_gone_are_forgotten() {
        let root = Plain::new(None, None);
        for _ in 0..10_000 {
            drop(Plain::new(Some(&root), None));
        }
        assert!(lock(&root.inner).children.len() <= FEW);
    }
}
