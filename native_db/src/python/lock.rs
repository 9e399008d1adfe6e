//! A named lock as a context manager.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use crate::lock::{Attempt, Guard, NamedLock};

/// How long a signal, such as Ctrl-C, may have to wait for a thread that waits for a lock.
const SIGNAL_CHECKS: Duration = Duration::from_millis(100);

/// Holds the lock that a file stands for while its block runs.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct FileLock {
    path: PathBuf,
    timeout: Duration,
    /// Only locked while attached to Python, so never held by another thread when a fork happens.
    guard: Mutex<Option<Guard>>,
}

impl FileLock {
    fn acquire(&self, py: Python<'_>) -> PyResult<Option<Guard>> {
        let raise = |error: Arc<std::io::Error>| {
            PyOSError::new_err((
                error.raw_os_error().unwrap_or(libc::EIO),
                error.to_string(),
                self.path.clone().into_os_string(),
            ))
        };
        let attempt = py.detach(|| NamedLock::at(&self.path).acquire());
        let mut waiting = match attempt.map_err(raise)? {
            Attempt::Held(guard) => return Ok(Some(guard)),
            Attempt::Waiting(waiting) => waiting,
        };
        let start = Instant::now();
        loop {
            let left = self.timeout.saturating_sub(start.elapsed());
            let limit = left.min(SIGNAL_CHECKS);
            if let Some(guard) = py.detach(|| waiting.wait(limit)).map_err(raise)? {
                return Ok(Some(guard));
            }
            if left.is_zero() {
                py.detach(|| drop(waiting));
                return Ok(None);
            }
            py.check_signals()?;
        }
    }
}

#[pymethods]
impl FileLock {
    /// A lock on the file at `path`, for which to wait at most `timeout` seconds.
    #[new]
    fn new(path: PathBuf, timeout: f64) -> Self {
        Self {
            path,
            // Longer than anybody waits, and not a number, are for ever.
            timeout: if timeout <= 0.0 {
                Duration::ZERO
            } else {
                Duration::try_from_secs_f64(timeout).unwrap_or(Duration::MAX)
            },
            guard: Mutex::default(),
        }
    }

    /// Takes the lock; whether it did within the time.
    fn acquire_in_time(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(held) = self.acquire(py)? else {
            return Ok(false);
        };
        // There is none yet: whoever had it has dropped it, or this would not be held.
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(true)
    }

    /// Lets the lock go, on whichever thread.
    fn release(&self, py: Python<'_>) {
        let held = self
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        py.detach(|| drop(held));
    }

    /// The process that holds the lock, as far as the system tells.
    fn holder(&self, py: Python<'_>) -> Option<u32> {
        py.detach(|| NamedLock::at(&self.path).holder())
    }
}
