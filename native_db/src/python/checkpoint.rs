//! Checkpoints, for Python.

use std::io;
use std::path::PathBuf;
use std::thread;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::checkpoint::{self, Addition, Entry, Moment, Part, Position, Totals};
use crate::engine::{DbError, Durability, Engine};
use crate::outline::{self, Outline};

use super::error::raise;
use super::flow::statistics;
use super::handle::Handle;

/// (segments, (number, a number like it, text) of parts, (id, note, time) of checkpoints)
type Added = (
    Vec<PyBackedBytes>,
    Vec<(i64, i64, PyBackedBytes)>,
    Vec<(String, String, i64)>,
);

/// (draft, path, text)
type File = (PathBuf, PathBuf, String);

/// Where the record has got to, and of files why they are not there.
type Outcome = ((i64, i64), Vec<Option<Py<PyAny>>>);

/// How files came out, up to the first that failed.
type Outcomes = Vec<Result<(), DbError>>;

/// A store of checkpoints. Texts are bytes; times are microseconds since 1970 UTC.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct CheckpointStore {
    handle: Handle,
}

#[pymethods]
impl CheckpointStore {
    /// A handle on the file at `path`; opens nothing. An added checkpoint survives a power cut: its
    /// outline does, and must not be there without it.
    #[new]
    fn new(path: PathBuf) -> Self {
        Self {
            handle: Handle::new(&path, &checkpoint::SCHEMA),
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

    /// Adds moments to a record, or to a new one: segments, parts that have changed, and checkpoints
    /// that consist of all there is then. Takes where the record has got to; nothing is returned, and
    /// nothing stored, where it is not there any more, or does not have `first` segments. `tail` is
    /// the end of the text before the new segments.
    ///
    /// Once that is stored the files appear, which are written meanwhile, one after another up to
    /// the first that fails: for each so far it says why it is not there.
    fn add(
        &self,
        py: Python<'_>,
        position: Option<(i64, i64)>,
        first: usize,
        tail: &[u8],
        moments: Vec<Added>,
        files: Vec<File>,
    ) -> PyResult<Option<Outcome>> {
        let addition = Addition {
            position: position.map(|(record, moment)| Position { record, moment }),
            first,
            tail: tail.to_vec(),
            moments: moments.into_iter().map(moment).collect(),
        };
        let outlines: Vec<_> = files.into_iter().map(file).collect();
        let added = self.handle.run(py, |engine| {
            publish_after(&outlines, || {
                engine.write(Durability::Full, move |db| checkpoint::add(db, &addition))
            })
        })?;
        Ok(added.map(|(at, outcomes)| {
            let failures = outcomes.into_iter().map(|outcome| {
                let error = outcome.err()?;
                Some(raise(error).into_value(py).into_any())
            });
            ((at.record, at.moment), failures.collect())
        }))
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
            engine.amend(0, Durability::Full, move |db| checkpoint::forget(db, &ids))
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

/// Stores something, and has files appear if that is done; says how that came out, as
/// [`outline::publish`] does. They are drafted on another thread meanwhile: so the disk is waited for once for both.
fn publish_after<T>(
    outlines: &[Outline],
    store: impl FnOnce() -> Result<Option<T>, DbError>,
) -> Result<Option<(T, Outcomes)>, DbError> {
    let (drafts, stored) = thread::scope(|scope| {
        let drafting = thread::Builder::new()
            .name("crewai-native-drafts".to_owned())
            .spawn_scoped(scope, || outline::draft(outlines));
        let stored = store();
        let drafts = match drafting {
            // Python catches no panic, and whoever waits for the checkpoints would do so for ever.
            Ok(thread) => thread.join().unwrap_or_else(|_| {
                let panicked = io::Error::other("the thread that wrote it panicked");
                let failed = |outline: &Outline| Err(DbError::io(&outline.draft, &panicked));
                outlines.iter().map(failed).collect()
            }),
            // There are too many threads.
            Err(_) => outline::draft(outlines),
        };
        (drafts, stored)
    });
    match stored {
        Ok(Some(value)) => Ok(Some((value, outline::publish(outlines, drafts)))),
        not_stored => {
            outline::discard(outlines);
            not_stored.map(|_| None)
        }
    }
}

/// Has a file appear, whole or not at all.
#[pyfunction]
pub(super) fn publish(py: Python<'_>, draft: PathBuf, path: PathBuf, text: String) -> PyResult<()> {
    let outlines = [file((draft, path, text))];
    py.detach(|| {
        outline::publish(&outlines, outline::draft(&outlines))
            .into_iter()
            .collect::<Result<(), _>>()
    })
    .map_err(raise)
}

fn file((draft, path, text): File) -> Outline {
    Outline {
        draft,
        path,
        text: text.into_bytes(),
    }
}

fn moment((segments, parts, entries): Added) -> Moment {
    Moment {
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
    }
}
