//! The states of flows, for Python.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::engine::{Durability, Engine, Statistics};
use crate::flow::{self, Base, Entry, Foreign, Packed, Saved};

use super::error::raise;
use super::handle::Handle;

/// Bytes of states kept in memory to make deltas against; above it the kept ones are let go.
const BASE_BYTES: usize = 32 << 20;

/// A store of flow states. Times are microseconds since 1970 UTC; states are JSON text.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct FlowStore {
    handle: Handle,
    durability: Durability,
    /// The newest whole state of each flow that was saved lately. Only locked while attached to
    /// Python, so never held by another thread when a fork happens. What it says need not be true
    /// any more: the transaction that relies on it looks.
    bases: Mutex<HashMap<String, Arc<Base>>>,
}

impl FlowStore {
    fn bases(&self) -> MutexGuard<'_, HashMap<String, Arc<Base>>> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, uuid: &str, saved: Saved) {
        let mut bases = self.bases();
        match saved {
            Saved::Whole(base) => {
                let held: usize = bases.values().map(|base| base.text.len()).sum();
                if held + base.text.len() > BASE_BYTES {
                    bases.clear();
                }
                bases.insert(uuid.to_owned(), Arc::new(base));
            }
            Saved::Delta(state, size) => {
                if let Some(base) = bases.get_mut(uuid).filter(|base| base.state == state) {
                    Arc::make_mut(base).grown_by(size);
                }
            }
        }
    }
}

#[pymethods]
impl FlowStore {
    /// A handle on the file at `path`; opens nothing. A saved state survives a power cut where
    /// `durable`, and else the death of the process.
    #[new]
    fn new(path: PathBuf, durable: bool) -> Self {
        Self {
            handle: Handle::new(&path, &flow::SCHEMA),
            durability: Durability::of(durable),
            bases: Mutex::default(),
        }
    }

    /// A handle is its arguments: what a copy, in this process or another, is made from.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let this = slf.get();
        let durable = this.durability == Durability::Full;
        (slf.get_type(), (this.path(), durable)).into_pyobject(slf.py())
    }

    /// The file.
    #[getter]
    fn path(&self) -> PathBuf {
        self.handle.path().to_owned()
    }

    /// Lets go of the file; the next call opens it again.
    fn close(&self, py: Python<'_>) {
        self.bases().clear();
        self.handle.close(py);
    }

    /// Saves a state and, where `pending` is given, that the flow waits for an answer.
    #[pyo3(signature = (uuid, method, saved_at, state, *, pending=None, keep=None))]
    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    fn save(
        &self,
        py: Python<'_>,
        uuid: String,
        method: String,
        saved_at: i64,
        state: String,
        pending: Option<String>,
        keep: Option<u32>,
    ) -> PyResult<()> {
        let known = self.bases().get(&uuid).map(Arc::clone);
        let durability = self.durability;
        let key = uuid.clone();
        let saved = self.handle.run(py, |engine| {
            // Packed before the transaction, in which other threads wait.
            let base = match known {
                Some(base) => Some(base),
                None => engine
                    .read(None, |db| Base::newest(db, &uuid))?
                    .map(Arc::new),
            };
            let state = Packed::new(state.into_bytes(), base.as_deref())?;
            let entry = Entry {
                uuid,
                method,
                saved_at,
                state,
                pending,
                keep,
            };
            engine.write(durability, |db| flow::save(db, entry))
        })?;
        self.remember(&key, saved);
        Ok(())
    }

    /// The state of a flow that was saved last.
    fn load(&self, py: Python<'_>, uuid: String) -> PyResult<Option<String>> {
        self.handle
            .run(py, |engine| engine.read(None, |db| flow::load(db, &uuid)))?
            .map(text)
            .transpose()
    }

    /// A state by the number that `history` gives.
    fn load_at(&self, py: Python<'_>, state: i64) -> PyResult<Option<String>> {
        self.handle
            .run(py, |engine| {
                engine.read(None, |db| flow::load_state(db, state))
            })?
            .map(text)
            .transpose()
    }

    /// (state, context) of a flow that waits for an answer.
    fn load_pending(&self, py: Python<'_>, uuid: String) -> PyResult<Option<(String, String)>> {
        self.handle
            .run(py, |engine| {
                engine.read(None, |db| flow::load_pending(db, &uuid))
            })?
            .map(|(state, context)| Ok((text(state)?, context)))
            .transpose()
    }

    /// Says that a flow has its answer.
    fn clear_pending(&self, py: Python<'_>, uuid: String) -> PyResult<()> {
        let durability = self.durability;
        self.handle.run(py, |engine| {
            engine.amend((), durability, move |db| flow::clear_pending(db, &uuid))
        })
    }

    /// The ids of all flows, the longest untouched first.
    fn flows(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.handle
            .run(py, |engine| engine.read(Vec::new(), flow::flows))
    }

    /// (number, method, time, bytes of JSON, bytes in the file) of states, newest first.
    #[expect(clippy::type_complexity, reason = "a row")]
    fn history(
        &self,
        py: Python<'_>,
        uuid: String,
        limit: usize,
    ) -> PyResult<Vec<(i64, String, i64, usize, usize)>> {
        let states = self.handle.run(py, |engine| {
            engine.read(Vec::new(), |db| flow::history(db, &uuid, limit))
        })?;
        Ok(states
            .into_iter()
            .map(|s| (s.state, s.method, s.saved_at, s.size, s.packed))
            .collect())
    }

    /// Drops old states; says how many.
    #[pyo3(signature = (*, keep=None, before=None))]
    fn prune(&self, py: Python<'_>, keep: Option<u32>, before: Option<i64>) -> PyResult<usize> {
        let durability = self.durability;
        self.bases().clear();
        self.handle.run(py, |engine| {
            engine.amend(0, durability, move |db| flow::prune(db, keep, before))
        })
    }

    /// Rewrites the file without the space that was freed.
    fn vacuum(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.run(py, Engine::vacuum)
    }

    /// Totals: `flows`, `states`, `pending`, `text_bytes`, `packed_bytes`.
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let totals = self.handle.run(py, |engine| {
            engine.read(flow::Totals::default(), flow::totals)
        })?;
        let found = PyDict::new(py);
        found.set_item("flows", totals.flows)?;
        found.set_item("states", totals.states)?;
        found.set_item("pending", totals.pending)?;
        found.set_item("text_bytes", totals.text_bytes)?;
        found.set_item("packed_bytes", totals.packed_bytes)?;
        Ok(found)
    }

    /// What is wrong with the file, one entry for each finding.
    fn check(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.handle
            .run(py, |engine| engine.read(Vec::new(), flow::check))
    }

    /// What this process has done with the file: reads, writes, commits, failures.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        statistics(py, self.handle.engine().statistics())
    }

    /// (last row taken over, whether that was the end) of a file of stock CrewAI.
    fn imported(&self, py: Python<'_>, source: String) -> PyResult<(i64, bool)> {
        self.handle.run(py, |engine| {
            engine.read((0, false), |db| flow::imported(db, &source))
        })
    }

    /// Takes over rows `after` to `last` of a file of stock CrewAI, each (uuid, method, time,
    /// state, context or None). Says whether it did: not if another process was faster.
    fn import_rows(
        &self,
        py: Python<'_>,
        source: String,
        after: i64,
        last: i64,
        done: bool,
        rows: Vec<(String, String, i64, String, Option<String>)>,
    ) -> PyResult<bool> {
        let durability = self.durability;
        let rows = rows
            .into_iter()
            .map(|(uuid, method, saved_at, text, context)| Foreign {
                uuid,
                method,
                saved_at,
                text: text.into_bytes(),
                context,
            })
            .collect();
        self.handle.run(py, |engine| {
            engine.write(durability, move |db| {
                flow::import(db, &source, after, last, done, rows)
            })
        })
    }
}

/// The counters as a dict.
pub(super) fn statistics(py: Python<'_>, counts: Statistics) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("reads", counts.reads)?;
    found.set_item("writes", counts.writes)?;
    found.set_item("commits", counts.commits)?;
    found.set_item("failures", counts.failures)?;
    Ok(found)
}

fn text(bytes: Vec<u8>) -> PyResult<String> {
    String::from_utf8(bytes)
        .map_err(|_| crate::engine::DbError::Unreadable("a state is not text".to_owned()))
        .map_err(raise)
}
