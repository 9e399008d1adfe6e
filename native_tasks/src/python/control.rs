//! Scopes and gates, as Python sees them.
//!
//! Their locks are held for moments and never while Python code runs, so a signal handler, which
//! Python runs between its own instructions, never meets a lock that its own thread holds.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::create_exception;
use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::prelude::*;

use crate::control::{self, Ended};

/// How long Ctrl-C may go unnoticed.
pub(super) const BETWEEN_SIGNAL_CHECKS: Duration = Duration::from_millis(50);

create_exception!(
    crewai_native_tasks,
    Cancelled,
    PyBaseException,
    "The run was asked to end. Not an Exception: CrewAI would carry on after one."
);

/// Something that can be ended, with all that runs in it. See `crewai_native_tasks.control`.
#[pyclass(frozen, weakref, module = "crewai_native_tasks._native")]
pub(super) struct Scope(Arc<control::Scope<Py<PyAny>>>);

#[pymethods]
impl Scope {
    #[new]
    #[pyo3(signature = (parent=None, limit=None))]
    fn new(parent: Option<&Bound<'_, Self>>, limit: Option<f64>) -> PyResult<Self> {
        let limit = limit.map(seconds).transpose()?;
        let parent = parent.map(|parent| &parent.get().0);
        Ok(Self(control::Scope::new(parent, limit)))
    }

    /// Raises `Cancelled` if this scope has ended, or one around it.
    fn check(&self) -> PyResult<()> {
        match self.0.ended() {
            None => Ok(()),
            Some(Ended::Cancelled) => Err(Cancelled::new_err("the run was cancelled")),
            Some(Ended::Expired) => Err(Cancelled::new_err("the time of the run is up")),
        }
    }

    /// Whether this scope has ended, or one around it.
    #[getter]
    fn ended(&self) -> bool {
        self.0.ended().is_some()
    }

    /// Whether the time of this very scope is up.
    #[getter]
    fn expired(&self) -> bool {
        self.0.own_end() == Some(Ended::Expired)
    }

    /// Whether it has ended since its time is up, or that of one around it.
    #[getter]
    fn overdue(&self) -> bool {
        self.0.ended() == Some(Ended::Expired)
    }

    /// Seconds until its time is up, or that of one around it; None where neither has a limit.
    #[getter]
    fn left(&self) -> Option<f64> {
        self.0.left().map(|left| left.as_secs_f64())
    }

    /// Ends it, and calls the hooks of all within; waits for nothing.
    #[pyo3(signature = (*, expired=false))]
    fn end(&self, py: Python<'_>, expired: bool) {
        let why = if expired {
            Ended::Expired
        } else {
            Ended::Cancelled
        };
        for hook in self.0.end(why) {
            if let Err(error) = hook.call0(py) {
                error.write_unraisable(py, Some(hook.bind(py)));
            }
        }
    }

    /// Has `hook()` called when it ends, or now; returns a key for `forget`.
    fn on_end(&self, py: Python<'_>, hook: Py<PyAny>) -> PyResult<u64> {
        match self.0.on_end(hook) {
            Ok(key) => Ok(key),
            Err(hook) => hook.call0(py).map(|_| 0),
        }
    }

    /// Takes a hook back.
    fn forget(&self, key: u64) {
        // Dropped after the lock: that may run Python code.
        drop(self.0.forget(key));
    }

    /// Notes that a run begins on a thread; returns a key for `over`.
    fn begin(&self, thread: u64) -> u64 {
        self.0.begin(thread)
    }

    /// Notes that a run is over.
    fn over(&self, key: u64) {
        self.0.over(key);
    }

    /// Notes that a run goes into foreign code; returns a key for `leave`.
    fn arrive(&self, label: String, thread: String) -> u64 {
        self.0.arrive(label, thread)
    }

    /// Notes that it has come back.
    fn leave(&self, key: u64) {
        self.0.leave(key);
    }

    /// Waits until nothing runs but foreign code and thread `own`; returns whether it came to that.
    fn quiet(&self, py: Python<'_>, own: u64, within: f64) -> PyResult<bool> {
        let within = seconds(within)?;
        let scope = &self.0;
        Ok(py.detach(|| scope.quiet(own, within)))
    }

    /// What is inside foreign code: label, thread, seconds.
    fn places(&self) -> Vec<(String, String, f64)> {
        let places = self.0.places().into_iter();
        places
            .map(|place| {
                (
                    place.label,
                    place.thread,
                    place.since.elapsed().as_secs_f64(),
                )
            })
            .collect()
    }
}

/// Opens once, and lets through whoever waits. Safe to open from a signal handler.
#[pyclass(frozen, module = "crewai_native_tasks._native")]
pub(super) struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

#[pymethods]
impl Gate {
    #[new]
    fn new() -> Self {
        Self {
            open: Mutex::new(false),
            opened: Condvar::new(),
        }
    }

    /// Opens it.
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Waits until it is open, for at most `limit` seconds; returns whether it is. Ctrl-C works.
    #[pyo3(signature = (limit=None))]
    fn wait(&self, py: Python<'_>, limit: Option<f64>) -> PyResult<bool> {
        let limit = limit.map(seconds).transpose()?;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let now = Instant::now();
            let slice = deadline.map_or(BETWEEN_SIGNAL_CHECKS, |deadline| {
                deadline
                    .saturating_duration_since(now)
                    .min(BETWEEN_SIGNAL_CHECKS)
            });
            let open = py.detach(|| {
                let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = self
                    .opened
                    .wait_timeout_while(open, slice, |open| !*open)
                    .unwrap_or_else(PoisonError::into_inner);
                *waited.0
            });
            if open || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(open);
            }
            py.check_signals()?;
        }
    }
}

/// Turns seconds from Python into a duration.
pub(super) fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        PyValueError::new_err(format!("{value} is not a time in seconds, from 0 upward"))
    })
}
