//! Checkpoints, for Python.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::checkpoint::{self, Addition, Entry, Part, Position, Totals};
use crate::engine::{Durability, Engine};

use super::flow::statistics;
use super::handle::Handle;

/// A store of checkpoints. Texts are bytes; times are microseconds since 1970 UTC.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct CheckpointStore {
    handle: Handle,
    durability: Durability,
}

#[pymethods]
impl CheckpointStore {
    /// A handle on the file at `path`; opens nothing. An added checkpoint survives a power cut
    /// where `durable`, and else the death of the process.
    #[new]
    fn new(path: PathBuf, durable: bool) -> Self {
        Self {
            handle: Handle::new(&path, &checkpoint::SCHEMA),
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

    /// Adds segments to a record, or to a new one, parts of (number, a number like it, text) that
    /// have changed, and checkpoints of (id, note, time) that consist of all there is then. Takes
    /// where the record has got to, and says where it gets to; `None` where it is not there any
    /// more, or does not have `first` segments. `tail` is the end of the text before `segments`.
    #[expect(clippy::too_many_arguments, reason = "the parts of an addition")]
    fn add(
        &self,
        py: Python<'_>,
        position: Option<(i64, i64)>,
        first: usize,
        tail: &[u8],
        segments: Vec<PyBackedBytes>,
        parts: Vec<(i64, i64, PyBackedBytes)>,
        entries: Vec<(String, String, i64)>,
    ) -> PyResult<Option<(i64, i64)>> {
        let addition = Addition {
            position: position.map(|(record, moment)| Position { record, moment }),
            first,
            tail: tail.to_vec(),
            segments: segments.iter().map(|text| text.to_vec()).collect(),
            parts: parts
                .iter()
                .map(|(number, like, text)| Part {
                    number: *number,
                    like: *like,
                    text: text.to_vec(),
                })
                .collect(),
            entries: entries
                .into_iter()
                .map(|(id, note, saved_at)| Entry { id, note, saved_at })
                .collect(),
        };
        let position = self.handle.run(py, |engine| {
            engine.write(self.durability, move |db| checkpoint::add(db, &addition))
        })?;
        Ok(position.map(|at| (at.record, at.moment)))
    }

    /// (segments, parts by number, note) of a checkpoint.
    #[expect(clippy::type_complexity, reason = "the parts of a checkpoint")]
    fn load<'py>(
        &self,
        py: Python<'py>,
        name: &str,
    ) -> PyResult<Option<(Bound<'py, PyList>, Bound<'py, PyDict>, String)>> {
        let found = self.handle.run(py, |engine| {
            engine.read(None, |db| checkpoint::load(db, name))
        })?;
        found
            .map(|found| {
                let segments = found.segments.iter().map(|text| PyBytes::new(py, text));
                let parts = PyDict::new(py);
                for (number, text) in &found.parts {
                    parts.set_item(number, PyBytes::new(py, text))?;
                }
                Ok((PyList::new(py, segments)?, parts, found.note))
            })
            .transpose()
    }

    /// The ids of all checkpoints and when they were saved, oldest first.
    fn ids(&self, py: Python<'_>) -> PyResult<Vec<(String, i64)>> {
        self.handle
            .run(py, |engine| engine.read(Vec::new(), checkpoint::ids))
    }

    /// Drops checkpoints, and what no other one needs; says how many there were.
    fn forget(&self, py: Python<'_>, ids: Vec<String>) -> PyResult<usize> {
        self.handle.run(py, |engine| {
            engine.amend(0, self.durability, move |db| checkpoint::forget(db, &ids))
        })
    }

    /// Rewrites the file without the space that was freed.
    fn vacuum(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.run(py, Engine::vacuum)
    }

    /// Totals: `checkpoints`, `records`, `text_bytes`, `packed_bytes`.
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let totals = self.handle.run(py, |engine| {
            engine.read(Totals::default(), checkpoint::totals)
        })?;
        let found = PyDict::new(py);
        found.set_item("checkpoints", totals.checkpoints)?;
        found.set_item("records", totals.records)?;
        found.set_item("text_bytes", totals.text_bytes)?;
        found.set_item("packed_bytes", totals.packed_bytes)?;
        Ok(found)
    }

    /// What is wrong with the file, one entry for each finding.
    fn check(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.handle
            .run(py, |engine| engine.read(Vec::new(), checkpoint::check))
    }

    /// What this process has done with the file: reads, writes, commits, failures.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        statistics(py, self.handle.engine().statistics())
    }
}
