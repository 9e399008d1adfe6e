//! The outputs of tasks, for Python.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::engine::{Durability, Engine};
use crate::replay::{self, Changes, Output};

use super::flow::statistics;
use super::handle::Handle;

/// (`task_id`, `task_key`, `expected_output`, output, `task_index`, inputs, `was_replayed`, time)
type Row = (
    String,
    Option<String>,
    Option<String>,
    String,
    i64,
    String,
    bool,
    i64,
);

/// A replay log. Times are microseconds since 1970 UTC; outputs and inputs are JSON text.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct ReplayStore {
    handle: Handle,
    durability: Durability,
}

#[pymethods]
impl ReplayStore {
    /// A handle on the file at `path`; opens nothing. An added output survives a power cut where
    /// `durable`, and else the death of the process.
    #[new]
    fn new(path: PathBuf, durable: bool) -> Self {
        Self {
            handle: Handle::new(&path, &replay::SCHEMA),
            durability: Durability::of(durable),
        }
    }

    /// The file.
    #[getter]
    fn path(&self) -> PathBuf {
        self.handle.path().to_owned()
    }

    /// Lets go of the file; the next call opens it again.
    fn close(&self, py: Python<'_>) {
        self.handle.close(py);
    }

    /// Adds outputs to a run, or to a new one at `place`, of which there are `keep` then at most;
    /// gives the run.
    fn add(
        &self,
        py: Python<'_>,
        run: Option<i64>,
        place: String,
        keep: u32,
        rows: Vec<Row>,
    ) -> PyResult<i64> {
        let outputs: Vec<_> = rows.into_iter().map(output).collect();
        self.handle.run(py, |engine| {
            engine.write(self.durability, move |db| {
                let run = match run {
                    Some(run) => {
                        replay::go_on(db, run, &place)?;
                        run
                    }
                    None => replay::begin(db, &place, keep)?,
                };
                for output in &outputs {
                    replay::add(db, run, output)?;
                }
                Ok(run)
            })
        })
    }

    /// Changes the output of the task at an index; whether there is one.
    #[pyo3(signature = (run, task_index, *, task_id=None, task_key=None, expected_output=None,
                        output=None, inputs=None, was_replayed=None))]
    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    fn update(
        &self,
        py: Python<'_>,
        run: i64,
        task_index: i64,
        task_id: Option<String>,
        task_key: Option<String>,
        expected_output: Option<String>,
        output: Option<String>,
        inputs: Option<String>,
        was_replayed: Option<bool>,
    ) -> PyResult<bool> {
        let changes = Changes {
            task_id,
            task_key,
            expected_output,
            output,
            inputs,
            was_replayed,
        };
        self.handle.run(py, |engine| {
            engine.amend(false, self.durability, move |db| {
                replay::update(db, run, task_index, &changes)
            })
        })
    }

    /// The newest run at a place.
    fn newest(&self, py: Python<'_>, place: String) -> PyResult<Option<i64>> {
        self.handle.run(py, |engine| {
            engine.read(None, |db| replay::newest(db, &place))
        })
    }

    /// The outputs of a run, by index.
    fn load(&self, py: Python<'_>, run: i64) -> PyResult<Vec<Row>> {
        let outputs = self.handle.run(py, |engine| {
            engine.read(Vec::new(), |db| replay::load(db, run, 0))
        })?;
        Ok(outputs.into_iter().map(row).collect())
    }

    /// (run, change, whether all of it, outputs) that stock's own file at a place lacks.
    #[expect(clippy::type_complexity, reason = "a row")]
    fn unmirrored(
        &self,
        py: Python<'_>,
        place: String,
    ) -> PyResult<Option<(i64, i64, bool, Vec<Row>)>> {
        let found = self.handle.run(py, |engine| {
            engine.read(None, |db| replay::unmirrored(db, &place))
        })?;
        Ok(found.map(|found| {
            let rows = found.outputs.into_iter().map(row).collect();
            (found.run, found.change, found.whole, rows)
        }))
    }

    /// Says what stock's own file at a place has. Not synced: what is forgotten is written again.
    fn mirrored(&self, py: Python<'_>, place: String, run: i64, change: i64) -> PyResult<()> {
        self.handle.run(py, |engine| {
            engine.write(Durability::Normal, move |db| {
                replay::mirrored(db, &place, run, change)
            })
        })
    }

    /// Drops all but the newest runs of each place; says how many.
    fn prune(&self, py: Python<'_>, keep: u32) -> PyResult<usize> {
        self.handle.run(py, |engine| {
            engine.amend(0, self.durability, move |db| replay::prune(db, None, keep))
        })
    }

    /// Drops every run of a place; says how many.
    fn delete_all(&self, py: Python<'_>, place: String) -> PyResult<usize> {
        self.handle.run(py, |engine| {
            engine.amend(0, self.durability, move |db| replay::delete_all(db, &place))
        })
    }

    /// Rewrites the file without the space that was freed.
    fn vacuum(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.run(py, Engine::vacuum)
    }

    /// Totals: `runs`, `outputs`, `packed_bytes`.
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (runs, outputs, bytes) = self
            .handle
            .run(py, |engine| engine.read((0, 0, 0), replay::totals))?;
        let found = PyDict::new(py);
        found.set_item("runs", runs)?;
        found.set_item("outputs", outputs)?;
        found.set_item("packed_bytes", bytes)?;
        Ok(found)
    }

    /// What is wrong with the file, one entry for each finding.
    fn check(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.handle
            .run(py, |engine| engine.read(Vec::new(), replay::check))
    }

    /// What this process has done with the file: reads, writes, commits, failures.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        statistics(py, self.handle.engine().statistics())
    }
}

fn output(row: Row) -> Output {
    let (task_id, task_key, expected_output, output, task_index, inputs, was_replayed, saved_at) =
        row;
    Output {
        task_id,
        task_key,
        expected_output,
        output,
        task_index,
        inputs,
        was_replayed,
        saved_at,
    }
}

fn row(output: Output) -> Row {
    (
        output.task_id,
        output.task_key,
        output.expected_output,
        output.output,
        output.task_index,
        output.inputs,
        output.was_replayed,
        output.saved_at,
    )
}
