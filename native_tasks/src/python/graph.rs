//! [`Schedule`](crate::graph::schedule::Schedule) for Python's threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crewai_native_sdk::gil::detached;
use crewai_native_sdk::{HasKind, Kind, ResultExt};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::graph::schedule::{Limits, Schedule as Core, State};
use crate::graph::workers::{Step, Workers};
use crate::graph::{Graph, GraphError};

impl HasKind for GraphError {
    fn kind(&self) -> Kind {
        Kind::Value
    }
}

/// What a worker does next: its node, and how many to wake, to add and to end.
type Told = (Option<usize>, usize, usize, usize);

/// One passage through a graph of nodes that are known by their numbers.
///
/// The lock is only held while attached to Python, for far less than a microsecond, and no Python
/// code runs under it: so nobody waits for it, and no other thread holds it when a fork happens.
#[pyclass(frozen, weakref, module = "crewai_native_tasks._native")]
pub(super) struct Schedule {
    workers: Mutex<Workers>,
}

#[pymethods]
impl Schedule {
    /// `dependencies` has the nodes that each node waits for; `lanes` what it has to itself while
    /// it runs; of nodes that are ready, those with higher `priorities` and then the earlier go
    /// first, `concurrency` at a time.
    ///
    /// Raises `ValueError` for a node that is not there, or for nodes that wait for each other.
    #[new]
    #[pyo3(signature = (dependencies, *, concurrency, lanes = None, priorities = None))]
    fn new(
        py: Python<'_>,
        dependencies: Vec<Vec<usize>>,
        concurrency: usize,
        lanes: Option<Vec<Vec<usize>>>,
        priorities: Option<Vec<i64>>,
    ) -> PyResult<Self> {
        let lanes = lanes.unwrap_or_default();
        let priorities = priorities.unwrap_or_default();
        let named: usize = lanes.iter().map(Vec::len).sum();
        if let Some(lane) = lanes.iter().flatten().find(|&&lane| lane >= named) {
            return Err(PyValueError::new_err(format!(
                "lanes names {lane}; it accepts numbers from 0 on, without gaps"
            )));
        }
        let workers = detached(py, || {
            let limits = Limits {
                concurrency,
                lanes,
                priorities,
            };
            Graph::new(&dependencies)
                .classified()
                .map(|graph| Workers::new(Core::new(graph, limits)))
        })?;
        Ok(Self {
            workers: Mutex::new(workers),
        })
    }

    /// The next node that may run now, or None. It runs from now on.
    fn take(&self) -> Option<usize> {
        self.lock().schedule.take()
    }

    /// Takes note that a node has ended, well or not.
    ///
    /// Raises `ValueError` if it does not run.
    fn finish(&self, node: usize, well: bool) -> PyResult<()> {
        if self.lock().schedule.finish(node, well) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("node {node} does not run")))
    }

    /// Hands out nothing more. Returns how many workers to end.
    fn cancel(&self) -> usize {
        self.lock().cancel().end
    }

    /// For the thread that begins: how many workers to add.
    fn begin(&self) -> usize {
        self.lock().begin().add
    }

    /// For a worker: takes note of the node that it has finished, if any, and gives its next one.
    ///
    /// Returns that node or None, and how many workers to wake, to add, and to end.
    #[pyo3(signature = (node = None, well = true))]
    fn step(&self, node: Option<usize>, well: bool) -> Told {
        let Step {
            next,
            wake,
            add,
            end,
        } = self.lock().step(node.map(|node| (node, well)));
        (next, wake, add, end)
    }

    /// A worker that was to be added could not be. Returns whether others are there.
    fn lost(&self) -> bool {
        self.lock().lost()
    }

    /// Whether nothing runs and nothing will.
    #[getter]
    fn over(&self) -> bool {
        self.lock().schedule.over()
    }

    /// How many nodes run.
    #[getter]
    fn running(&self) -> usize {
        self.lock().schedule.running()
    }

    /// Where each node stands, a byte each: its place in `STATES`.
    fn states<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let states: Vec<u8> = self
            .lock()
            .schedule
            .states()
            .iter()
            .map(|s| s.index())
            .collect();
        PyBytes::new(py, &states)
    }

    /// The names of the states.
    #[classattr]
    #[pyo3(name = "STATES")]
    fn names() -> [&'static str; 6] {
        State::ALL.map(|state| match state {
            State::Waiting => "waiting",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::Skipped => "skipped",
            State::Cancelled => "cancelled",
        })
    }
}

/// Nodes that wait for each other, each for the next and the last for the first; None if none do.
///
/// Raises `ValueError` for a node that is not there.
#[pyfunction]
pub(super) fn cycle(py: Python<'_>, dependencies: Vec<Vec<usize>>) -> PyResult<Option<Vec<usize>>> {
    detached(py, || match Graph::new(&dependencies) {
        Ok(_) => Ok(None),
        Err(GraphError::Cycle(nodes)) => Ok(Some(nodes)),
        Err(error) => Err(error).classified(),
    })
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
