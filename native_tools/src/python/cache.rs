//! The results of one `CacheHandler`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::exceptions::PyException;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};

use super::copying::Copier;
use crate::canonical::canonical;
use crate::results::{Counts, Policy, Results};

/// What an entry takes beside its key and its result, in bytes.
const ENTRY: u64 = 160;

/// Sums over all caches of the process, those that are gone included.
static TOTALS: Mutex<Counts> = Mutex::new(Counts {
    hits: 0,
    misses: 0,
    evictions: 0,
    expirations: 0,
    refusals: 0,
    entries: 0,
    weight: 0,
});

/// Results of tool calls by tool and arguments.
///
/// Both locks are only held while attached to Python, and no Python code runs under them: so nobody
/// waits for them, and none is held by another thread when a fork happens.
#[pyclass(frozen, weakref, module = "crewai_native_tools._native")]
pub(super) struct ResultCache {
    results: Mutex<Results<Py<PyAny>>>,
    policy: Py<PyAny>,
    models: Option<Py<PyType>>,
    clock: Option<Py<PyAny>>,
    started: Instant,
}

impl ResultCache {
    /// Does `work`, adds what it counted to the totals, and drops what it removed, in that order:
    /// dropping runs Python code.
    fn with<T>(&self, work: impl FnOnce(&mut Results<Py<PyAny>>, &mut Vec<Py<PyAny>>) -> T) -> T {
        let mut gone = Vec::new();
        let mut results = lock(&self.results);
        let before = results.counts();
        let answer = work(&mut results, &mut gone);
        lock(&TOTALS).add_change(&before, &results.counts());
        drop(results);
        answer
    }

    fn now(&self, py: Python<'_>) -> PyResult<u64> {
        match &self.clock {
            None => Ok(self.started.elapsed().as_nanos() as u64),
            Some(clock) => Ok(nanoseconds(clock.call0(py)?.extract(py)?)),
        }
    }

    /// Asks for a tool's policy when its first result comes.
    fn introduce(&self, py: Python<'_>, tool: &str) -> PyResult<()> {
        if lock(&self.results).knows(tool) {
            return Ok(());
        }
        let (ttl, max_weight): (Option<f64>, Option<u64>) =
            self.policy.call1(py, (tool,))?.extract(py)?;
        let policy = Policy {
            ttl: ttl.map(nanoseconds),
            max_weight,
        };
        lock(&self.results).introduce(tool, policy);
        Ok(())
    }
}

#[pymethods]
impl ResultCache {
    /// `policy(tool)` gives a tool's time to live in seconds and the bytes that its results may
    /// take; `max_bytes` is for all of them; `models` is the class of models that are copied.
    #[new]
    #[pyo3(signature = (policy, *, max_bytes=None, models=None, clock=None))]
    fn new(
        policy: Py<PyAny>,
        max_bytes: Option<u64>,
        models: Option<Py<PyType>>,
        clock: Option<Py<PyAny>>,
    ) -> Self {
        Self {
            results: Mutex::new(Results::new(max_bytes)),
            policy,
            models,
            clock,
            started: Instant::now(),
        }
    }

    /// Keeps a result, unless it cannot be copied, is heavier than a bound, or is None.
    fn add(
        &self,
        tool: &Bound<'_, PyString>,
        input: &Bound<'_, PyString>,
        output: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = output.py();
        // A text that is not Unicode is no key. JSON that `json.dumps` wrote never is such.
        let (Ok(tool), Ok(input)) = (tool.to_str(), input.to_str()) else {
            return Ok(());
        };
        self.introduce(py, tool)?;
        let key = canonical(input);
        if output.is_none() {
            self.with(|results, gone| results.forget(tool, &key, gone));
            return Ok(());
        }
        let models = self.models.as_ref().map(|models| models.bind(py));
        match Copier::copy_and_weigh(output, models) {
            Ok((copy, weight)) => {
                let weight = weight.saturating_add(ENTRY + key.len() as u64);
                let now = self.now(py)?;
                let copy = copy.unbind();
                self.with(|results, gone| results.put(tool, &key, copy, weight, now, gone));
                Ok(())
            }
            Err(error) => self.refuse(py, tool, &key, error),
        }
    }

    /// The result of the same arguments, in whatever order they stand, or None.
    fn read<'py>(
        &self,
        tool: &Bound<'py, PyString>,
        input: &Bound<'py, PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = tool.py();
        let (Ok(tool), Ok(input)) = (tool.to_str(), input.to_str()) else {
            return Ok(None);
        };
        let (key, now) = (canonical(input), self.now(py)?);
        let found = self.with(|results, gone| {
            let found = results.get(tool, &key, now, gone);
            found.map(|result| result.clone_ref(py))
        });
        let Some(found) = found else { return Ok(None) };
        let models = self.models.as_ref().map(|models| models.bind(py));
        match Copier::copy(found.bind(py), models) {
            Ok(copy) => Ok(Some(copy)),
            Err(error) => self.refuse(py, tool, &key, error).map(|()| None),
        }
    }

    /// Drops every result.
    fn clear(&self) {
        self.with(|results, gone| *gone = results.clear());
    }

    /// What has happened in this cache, and what it holds, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = lock(&self.results).counts();
        by_name(py, &counts)
    }

    fn __len__(&self) -> usize {
        lock(&self.results).counts().entries as usize
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.policy)?;
        visit.call(&self.models)?;
        visit.call(&self.clock)?;
        // Never locked here: whoever holds it allocates nothing that could start a collection.
        if let Ok(results) = self.results.try_lock() {
            for result in results.values() {
                visit.call(result)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.clear();
    }
}

impl ResultCache {
    /// Counts a result that cannot be copied. What is no `Exception`, such as Ctrl-C, is raised.
    fn refuse(&self, py: Python<'_>, tool: &str, key: &str, error: PyErr) -> PyResult<()> {
        self.with(|results, gone| results.refuse(tool, key, gone));
        if error.is_instance_of::<PyException>(py) {
            Ok(())
        } else {
            Err(error)
        }
    }
}

impl Drop for ResultCache {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A copy of a result, as [`ResultCache::read`] gives it; `models` is the class of models that are
/// copied.
#[pyfunction]
#[pyo3(signature = (result, models=None))]
pub(super) fn copied<'py>(
    result: &Bound<'py, PyAny>,
    models: Option<&Bound<'py, PyType>>,
) -> PyResult<Bound<'py, PyAny>> {
    Copier::copy(result, models)
}

/// The sums over all caches of the process, by name.
#[pyfunction]
pub(super) fn totals(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let counts = *lock(&TOTALS);
    by_name(py, &counts)
}

fn by_name<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let names = PyDict::new(py);
    for (name, count) in [
        ("hits", counts.hits),
        ("misses", counts.misses),
        ("evictions", counts.evictions),
        ("expirations", counts.expirations),
        ("refusals", counts.refusals),
        ("entries", counts.entries),
        ("bytes", counts.weight),
    ] {
        names.set_item(name, count)?;
    }
    Ok(names)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
