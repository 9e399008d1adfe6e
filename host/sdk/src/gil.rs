//! Releasing the GIL, and locks beside it.
//!
//! Two rules keep an accelerator from dead-locking:
//!
//! 1. **Never wait while holding the GIL.** I/O, a lock, another thread: release the GIL round it
//!    ([`detached`], [`lock_detached`]). Computing above some 20 µs counts as waiting, for others.
//! 2. **Never call Python while holding a Rust lock.** Any Python call may run other threads, and
//!    one of them may want the lock. Take out what is needed, let the lock go, then call. Dropping a
//!    `Py` may run a destructor, which is a Python call, too.
//!
//! A third keeps it from crashing the interpreter's end: a thread that Python did not create enters
//! Python by [`try_attach`] only, and does without when that returns `None`.

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use pyo3::prelude::*;
use pyo3::sync::{MutexExt, RwLockExt};

use crate::atexit;
use crate::error::{Error, ResultExt, catch_panic};

/// Runs `work` with the GIL released, and turns its error, or its panic, into an exception.
///
/// ```
/// use crewai_native_sdk::gil::detached;
/// use pyo3::prelude::*;
///
/// #[pyfunction]
/// fn checksum(py: Python<'_>, data: Vec<u8>) -> PyResult<u64> {
///     detached(py, || anyhow::Ok(data.iter().map(|&byte| u64::from(byte)).sum()))
/// }
/// ```
pub fn detached<T, E, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    F: FnOnce() -> Result<T, E> + Send,
    T: Send,
    E: Into<Error> + Send,
{
    py.detach(|| catch_panic(work)).into_py()?.into_py()
}

/// Locks `mutex`; waits, if it must, with the GIL released.
///
/// The thread comes back with both the lock and the GIL: other threads must take this lock in the
/// same way, or not hold the GIL, so that the holder of the one never waits for the other.
pub fn lock_detached<'a, T>(py: Python<'_>, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
    mutex.lock_py_attached(py)
}

/// Locks `lock` for reading, as [`lock_detached`] does.
pub fn read_detached<'a, T>(py: Python<'_>, lock: &'a RwLock<T>) -> RwLockReadGuard<'a, T> {
    lock.read_py_attached(py)
}

/// Locks `lock` for writing, as [`lock_detached`] does.
pub fn write_detached<'a, T>(py: Python<'_>, lock: &'a RwLock<T>) -> RwLockWriteGuard<'a, T> {
    lock.write_py_attached(py)
}

/// Runs `work` with the GIL held, from a thread that Python did not create.
///
/// Returns `None`, without running `work`, when there is no interpreter or the process is exiting.
/// Once `work` runs, the exit waits for it. `work` runs in an empty `contextvars` context: see
/// [`Context`](crate::context::Context).
///
/// [`Python::try_attach`] alone is not enough: under the stable ABI it cannot see that the
/// interpreter is being torn down, and a thread that asks for the GIL then never returns.
pub fn try_attach<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let _pass = atexit::enter()?;
    Python::try_attach(work)
}
