//! A worker process for Python: see [`crate::workers`].

use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use crewai_native_sdk::ResultExt;
use crewai_native_sdk::gil::detached;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::workers::{self, Exchange, Progress};

/// A worker process. One thread at a time calls it.
#[pyclass(frozen, module = "crewai_native_tools._native")]
struct WorkerProcess {
    /// Never waited for, so never held while another thread waits for the GIL.
    worker: Mutex<workers::Worker>,
    pid: i32,
}

impl WorkerProcess {
    fn claim(&self) -> PyResult<MutexGuard<'_, workers::Worker>> {
        match self.worker.try_lock() {
            Ok(worker) => Ok(worker),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err(format!(
                "worker {} is being called by another thread",
                self.pid
            ))),
        }
    }
}

#[pymethods]
impl WorkerProcess {
    /// Starts a program whose standard input is its end of the socket.
    #[new]
    fn new(py: Python<'_>, program: OsString, arguments: Vec<OsString>) -> PyResult<Self> {
        let worker = py
            .detach(|| workers::Worker::start(&program, &arguments))
            .into_py()?;
        Ok(Self {
            pid: worker.pid(),
            worker: Mutex::new(worker),
        })
    }

    /// Its process id, and its group's.
    #[getter]
    fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it is alive, idle and silent.
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        let worker = self.claim()?;
        let worker = &*worker;
        Ok(py.detach(|| worker.ready()))
    }

    /// Sends a message and waits, without the GIL, for the answer of at most `most` bytes.
    ///
    /// Returns `("answered", bytes)`, `("timeout", None)`, `("large", bytes announced)` or
    /// `("ended", (signal or None, exit code or None, last words))`. But for the first, the worker
    /// is of no more use. What a signal handler raises is raised.
    #[pyo3(signature = (message, *, most, timeout=None))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        message: &Bound<'py, PyBytes>,
        most: u64,
        timeout: Option<f64>,
    ) -> PyResult<(&'static str, Bound<'py, PyAny>)> {
        let deadline = match timeout {
            None => None,
            Some(seconds) => {
                let timeout = Duration::try_from_secs_f64(seconds.max(0.0)).map_err(|error| {
                    PyValueError::new_err(format!("timeout is {seconds}: {error}"))
                })?;
                Instant::now().checked_add(timeout)
            }
        };
        let mut worker = self.claim()?;
        let worker = &mut *worker;
        // Bytes do not change, and `message` keeps them.
        let mut exchange = Exchange::new(message.as_bytes(), most, deadline);
        loop {
            match detached(py, || exchange.advance(worker))? {
                Progress::Interrupted => py.check_signals()?,
                Progress::Answered(answer) => {
                    return Ok(("answered", PyBytes::new(py, &answer).into_any()));
                }
                Progress::TimedOut => return Ok(("timeout", py.None().into_bound(py))),
                Progress::TooLarge(length) => {
                    return Ok(("large", length.into_pyobject(py)?.into_any()));
                }
                Progress::Ended(end) => {
                    let end = (end.signal, end.code, end.words).into_pyobject(py)?;
                    return Ok(("ended", end.into_any()));
                }
            }
        }
    }

    /// Kills it with its process group. Does nothing in a process that was forked from its own.
    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        let mut worker = self.claim()?;
        let worker = &mut *worker;
        py.detach(|| worker.kill());
        Ok(())
    }

    /// Kills it with what it has started while another thread is in `call`, which says that it has
    /// ended. Afterwards its id may be another process's: who calls this sees to it that the other
    /// thread does not `kill` it meanwhile.
    fn kill_busy(&self, py: Python<'_>) {
        py.detach(|| workers::end_group(self.pid));
    }
}

/// Adds what only POSIX systems have.
pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<WorkerProcess>()?;
    module.add_function(wrap_pyfunction!(follow_parent, module)?)
}

/// Makes this process, a worker, end with its parent: see [`workers::follow_parent`].
#[pyfunction]
fn follow_parent(socket: i32) -> PyResult<()> {
    workers::follow_parent(socket).into_py()
}
