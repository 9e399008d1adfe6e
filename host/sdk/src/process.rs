//! State that belongs to one process.
//!
//! A fork copies memory but only the forking thread: thread pools, runtimes, connections and held
//! locks arrive in the child as ruins. They can be neither used nor taken down, since taking down
//! means joining threads that are not there. [`PerProcess`] leaks them there and builds anew.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
// Not `parking_lot`: its table of waiting threads is shared by all locks of the process, and a
// child that was forked while another thread held one of its buckets would wait for ever.
use std::sync::{Mutex, OnceLock, PoisonError};

/// This process's id, or 0 where it must be asked for.
static ID: AtomicU32 = AtomicU32::new(0);

/// Returns the id of this process, without a system call where it is known.
///
/// It costs a nanosecond, where `getpid` takes from 50 to 700: hot paths ask several times whether a
/// fork lies behind them. It is right after every `fork` of the C library, which is what Python's
/// `os.fork` and `multiprocessing` call.
pub fn id() -> u32 {
    match ID.load(Ordering::Relaxed) {
        0 => ask_for_id(),
        id => id,
    }
}

#[cold]
fn ask_for_id() -> u32 {
    static FORKS_ARE_SEEN: OnceLock<bool> = OnceLock::new();
    let id = std::process::id();
    if *FORKS_ARE_SEEN.get_or_init(watch_forks) {
        ID.store(id, Ordering::Relaxed);
    }
    id
}

/// Has the child of every fork forget its parent's id; returns whether it will.
fn watch_forks() -> bool {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            ID.store(0, Ordering::Relaxed);
        }
        // SAFETY: the handler stores to an atomic, which is allowed between a fork and whatever
        // comes next. Extension modules are never unloaded, so it stays where it is.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) == 0 }
    }
    #[cfg(not(unix))]
    true
}

/// A value that is built at first use in each process, and rebuilt at first use after a fork.
///
/// What came through a fork is leaked: not used, not dropped, not joined.
///
/// ```
/// use crewai_native_sdk::process::PerProcess;
///
/// static TABLE: PerProcess<Vec<u32>> = PerProcess::new();
///
/// let table = TABLE.get_or_init(|| vec![1, 2, 3]);
/// assert_eq!(table.len(), 3);
/// assert!(std::ptr::eq(table, TABLE.get_or_init(Vec::new)));
/// ```
pub struct PerProcess<T> {
    current: AtomicPtr<Slot<T>>,
    // Send and Sync as the shared cell behind the pointer is.
    owned: PhantomData<OnceLock<T>>,
}

struct Slot<T> {
    pid: u32,
    building: Mutex<()>,
    value: OnceLock<T>,
}

impl<T> PerProcess<T> {
    /// Creates a cell without a value.
    pub const fn new() -> Self {
        Self {
            current: AtomicPtr::new(ptr::null_mut()),
            owned: PhantomData,
        }
    }

    /// Returns the value that this process has built, if it has.
    pub fn get(&self) -> Option<&T> {
        self.slot().value.get()
    }

    /// Returns this process's value; builds it if there is none.
    ///
    /// One thread builds while others wait. So `build` must neither call Python, for whose GIL the
    /// waiting threads may be the holders, nor use this cell again.
    pub fn get_or_init(&self, build: impl FnOnce() -> T) -> &T {
        let built = self.get_or_try_init(|| Ok::<T, std::convert::Infallible>(build()));
        match built {
            Ok(value) => value,
        }
    }

    /// As [`get_or_init`](Self::get_or_init). After an error there is still no value, and the next
    /// call tries again.
    pub fn get_or_try_init<E>(&self, build: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let slot = self.slot();
        if let Some(value) = slot.value.get() {
            return Ok(value);
        }
        // A panic in `build` leaves nothing half built behind.
        let _building = slot.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = slot.value.get() {
            return Ok(value);
        }
        let value = build()?;
        Ok(slot.value.get_or_init(|| value))
    }

    /// Returns this process's slot. The slot of another process, from before a fork, is replaced.
    fn slot(&self) -> &Slot<T> {
        let pid = id();
        let mut seen = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: `current` is null or came from `Box::into_raw` below. A published slot is
            // freed by `drop` alone, which no borrow of `self` outlives.
            if let Some(slot) = unsafe { seen.as_ref() }
                && slot.pid == pid
            {
                return slot;
            }
            let fresh = Box::into_raw(Box::new(Slot {
                pid,
                building: Mutex::new(()),
                value: OnceLock::new(),
            }));
            match self
                .current
                .compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire)
            {
                // `seen`, from before the fork, is leaked: references to it may live on.
                // SAFETY: as above; it is published now.
                Ok(_) => return unsafe { &*fresh },
                Err(other) => {
                    // SAFETY: `fresh` was not published, so nobody else knows it.
                    drop(unsafe { Box::from_raw(fresh) });
                    seen = other;
                }
            }
        }
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: as in `slot`; `&mut self` says that no reference to the slot is left.
        let ours = unsafe { current.as_ref() }.is_some_and(|slot| slot.pid == id());
        if ours {
            // SAFETY: as above, and nobody else frees it.
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Barrier, atomic::Ordering};
    use std::thread;

    use super::*;

    #[test]
    #[cfg(unix)]
    fn the_id_is_the_child_s_after_a_fork() {
        assert_eq!(id(), std::process::id());
        // SAFETY: the child does nothing but load atomics, ask for its id and end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let right = id() == std::process::id() && id() == std::process::id();
            // SAFETY: ends the child without the test harness's handlers.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = 1;
        // SAFETY: `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(id(), std::process::id());
    }

    #[test]
    fn threads_that_race_get_one_value() {
        for _ in 0..200 {
            let cell = PerProcess::new();
            let (built, start) = (AtomicUsize::new(0), Barrier::new(4));
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        let value = cell.get_or_init(|| built.fetch_add(1, Ordering::SeqCst));
                        assert_eq!(*value, 0);
                    });
                }
            });
            assert_eq!(built.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn after_an_error_or_a_panic_the_next_call_builds() {
        let cell = PerProcess::new();
        assert_eq!(cell.get_or_try_init(|| Err("no")), Err("no"));
        assert_eq!(cell.get(), None);
        crate::error::catch_panic(|| cell.get_or_init(|| panic!("no"))).unwrap_err();
        assert_eq!(cell.get_or_try_init(|| Ok::<_, ()>(7)), Ok(&7));
    }

    #[test]
    fn the_value_is_dropped_with_the_cell() {
        let value = Arc::new(());
        let cell = PerProcess::new();
        cell.get_or_init(|| value.clone());
        drop(cell);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn the_value_of_another_process_is_leaked() {
        // The fork itself is tested from Python; here the slot is given a foreign owner.
        let value = Arc::new(());
        let mut cell = PerProcess::new();
        cell.get_or_init(|| value.clone());
        // SAFETY: the slot exists, and this thread alone has it.
        unsafe { (**cell.current.get_mut()).pid += 1 };
        assert!(cell.get().is_none());
        cell.get_or_init(|| value.clone());
        assert_eq!(Arc::strong_count(&value), 3);
        drop(cell);
        assert_eq!(Arc::strong_count(&value), 2);
    }
}
