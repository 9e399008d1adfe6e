//! Limits of requests and tokens, as Python sees them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crewai_native_sdk::gil::detached;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::control::seconds;
use crate::limits::{Minute, Rates, Shared};

/// What a minute may see, counted here or, with a path, for all processes that open that file.
#[pyclass(frozen, module = "crewai_native_tasks._native")]
pub(super) struct Limiter {
    rates: Rates,
    counts: Mutex<Counts>,
}

enum Counts {
    Here(Box<Minute>),
    Shared(Shared),
}

#[pymethods]
impl Limiter {
    #[new]
    #[pyo3(signature = (*, requests=None, tokens=None, path=None))]
    fn new(
        py: Python<'_>,
        requests: Option<u64>,
        tokens: Option<u64>,
        path: Option<PathBuf>,
    ) -> PyResult<Self> {
        if requests == Some(0) || tokens == Some(0) {
            return Err(PyValueError::new_err("a minute must allow at least one"));
        }
        let counts = match path {
            None => Counts::Here(Box::default()),
            Some(path) => Counts::Shared(detached(py, || {
                Shared::open(&path).map_err(anyhow::Error::from)
            })?),
        };
        Ok(Self {
            rates: Rates { requests, tokens },
            counts: Mutex::new(counts),
        })
    }

    /// Counts a request of about `tokens`. Returns when it was admitted, or None and for how many
    /// seconds to wait before asking again. `now` is the time since the epoch, for tests.
    #[pyo3(signature = (tokens, now=None))]
    fn admit(&self, py: Python<'_>, tokens: u64, now: Option<f64>) -> PyResult<(Option<u64>, f64)> {
        let now = time(now)?;
        let rates = self.rates;
        let admitted = self.change(py, |minute| minute.admit(rates, now, tokens))?;
        Ok(match admitted {
            Ok(second) => (Some(second), 0.0),
            Err(wait) => (None, wait.as_secs_f64()),
        })
    }

    /// Takes back a request that was admitted at `when` and not made.
    fn withdraw(&self, py: Python<'_>, when: u64, tokens: u64) -> PyResult<()> {
        self.change(py, |minute| minute.withdraw(when, tokens))
    }

    /// Corrects the tokens of a request that was admitted at `when`.
    #[pyo3(signature = (when, expected, used, now=None))]
    fn settle(
        &self,
        py: Python<'_>,
        when: u64,
        expected: u64,
        used: u64,
        now: Option<f64>,
    ) -> PyResult<()> {
        let now = time(now)?;
        self.change(py, |minute| minute.settle(when, now, expected, used))
    }
}

impl Limiter {
    fn change<T: Send>(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&mut Minute) -> T + Send,
    ) -> PyResult<T> {
        // Another process may hold the file, and threads wait for each other here.
        detached(py, || {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *counts {
                Counts::Here(minute) => Ok(change(minute)),
                Counts::Shared(shared) => shared.change(change),
            }
        })
    }
}

/// Processes share the wall clock; a step back of it counts as standing still.
fn time(now: Option<f64>) -> PyResult<Duration> {
    now.map_or_else(
        || {
            Ok(SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default())
        },
        seconds,
    )
}
