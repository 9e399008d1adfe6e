//! Records on their way from Python into a store.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::store::{Embedding, Engine, Record, StoreError, scope};

use super::convert::{described, text, vector};
use super::error::raise;
use super::floats::{floats, seem_floats};

/// Floats in a batch from which on they are read while the rest of it is stored already: what that
/// takes then is several times what a thread costs.
const MANY: usize = 1 << 16;

/// Floats after which other threads of Python are let in, some milliseconds.
const AT_A_TIME: usize = 1 << 19;

/// Whether there is a second processor.
static SEVERAL_PROCESSORS: LazyLock<bool> = LazyLock::new(|| {
    thread::available_parallelism().is_ok_and(|count| count > NonZero::<usize>::MIN)
});

/// Records to be saved together.
#[pyclass(frozen, module = "crewai_native_memory._native")]
#[derive(Default)]
pub(super) struct Batch(Mutex<Given>);

/// Records, and the lists that are still to be read of them.
#[derive(Default)]
pub(super) struct Given {
    records: Vec<Record>,
    lists: Vec<(usize, Py<PyList>)>,
}

impl Batch {
    /// Empties it.
    pub(super) fn take(&self) -> Given {
        std::mem::take(&mut self.given())
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    /// Stores all records or, on an error, none.
    pub(super) fn save(mut self, py: Python<'_>, engine: &Engine) -> PyResult<()> {
        let floats = self.embeddings().map(Embedding::dimension).sum::<usize>();
        if floats >= MANY
            && *SEVERAL_PROCESSORS
            && let Some(done) = self.save_while_reading(py, engine)
        {
            return done.map_err(raise);
        }
        let mut pause = Pause::default();
        for (at, list) in self.lists.drain(..) {
            let record = &mut self.records[at];
            let components = vector(list.bind(py))
                .map_err(|reason| invalid(&record.id, format!("embedding: {reason}")))?;
            pause.after(components.len(), py);
            record.embedding = Some(components.into());
        }
        py.detach(|| engine.save(&self.records)).map_err(raise)
    }

    /// Has another thread store the records while this one reads their lists. `None`, and nothing is
    /// stored, where one of them does not hold what it seemed to, or no thread is to be had.
    ///
    /// Reading floats runs no code of Python's. So this thread cannot come to wait for the transaction
    /// that is open meanwhile; others may, detached.
    fn save_while_reading(
        &self,
        py: Python<'_>,
        engine: &Engine,
    ) -> Option<Result<(), StoreError>> {
        thread::scope(|scope| {
            let writer = thread::Builder::new()
                .name("crewai-native-save".to_owned())
                .spawn_scoped(scope, || engine.save(&self.records))
                .ok()?;
            let mut all = true;
            let mut pause = Pause::default();
            for ((_, list), embedding) in self.lists.iter().zip(self.embeddings()) {
                // The writer waits for every one, so one that cannot be read is told of as well.
                let components = if all { floats(list.bind(py)) } else { None };
                all &= embedding.arrive(components);
                pause.after(embedding.dimension(), py);
            }
            let done = py.detach(|| writer.join());
            let done = done.unwrap_or_else(|panic| resume_unwind(panic));
            all.then_some(done)
        })
    }

    /// What the lists are to become, in their order.
    fn embeddings(&self) -> impl Iterator<Item = &Embedding> {
        self.lists
            .iter()
            .filter_map(|&(at, _)| self.records[at].embedding.as_ref())
    }
}

#[pymethods]
impl Batch {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Adds a record; a value that cannot be stored raises `ValueError` and names the record.
    ///
    /// `created_at` and `last_accessed` are microseconds since 1970 UTC; `metadata` is JSON.
    #[pyo3(signature = (id, content, scope, categories, metadata, importance, created_at,
                        last_accessed, source, private, embedding))]
    #[expect(clippy::too_many_arguments, reason = "the fields of a record")]
    fn add(
        &self,
        id: &Bound<'_, PyAny>,
        content: &Bound<'_, PyAny>,
        scope: &Bound<'_, PyAny>,
        categories: &Bound<'_, PyAny>,
        metadata: &Bound<'_, PyAny>,
        importance: &Bound<'_, PyAny>,
        created_at: i64,
        last_accessed: i64,
        source: &Bound<'_, PyAny>,
        private: &Bound<'_, PyAny>,
        embedding: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let fail = |reason: String| {
            let id = id.str();
            let id = id.as_ref().map_or("?".into(), |id| id.to_string_lossy());
            invalid(&id, reason)
        };
        let text = |value: &Bound<'_, PyAny>, field: &str| text(value, field).map_err(&fail);
        let importance = importance
            .extract::<f64>()
            .ok()
            .filter(|number| number.is_finite())
            .ok_or_else(|| {
                fail(format!(
                    "importance must be a finite number, got {}",
                    described(importance)
                ))
            })?;
        // `Memory.update` hands on what it is given. A text is a sequence as well, and not meant.
        if !categories.is_instance_of::<PyList>() && !categories.is_instance_of::<PyTuple>() {
            return Err(fail(format!(
                "categories must be a list or a tuple of str, got {}",
                described(categories)
            )));
        }
        let names = categories
            .try_iter()?
            .map(|name| text(&name?, "a category"))
            .collect::<PyResult<Vec<String>>>()?;
        let later = embedding
            .cast::<PyList>()
            .ok()
            .filter(|list| seem_floats(list))
            .map(|list| (list.clone().unbind(), list.len()));
        let record = Record {
            id: text(id, "id")?,
            content: text(content, "content")?,
            scope: scope::normalize(&text(scope, "scope")?),
            categories: serde_json::Value::from(names).to_string(),
            metadata: text(metadata, "metadata")?,
            importance,
            created_at,
            last_accessed,
            source: (!source.is_none())
                .then(|| text(source, "source"))
                .transpose()?,
            private: private.extract::<bool>().map_err(|_| {
                fail(format!(
                    "private must be a bool, got {}",
                    described(private)
                ))
            })?,
            embedding: match (&later, embedding.is_none()) {
                (Some((_, dimension)), _) => Some(Embedding::to_come(*dimension)),
                (None, true) => None,
                (None, false) => Some(
                    vector(embedding)
                        .map_err(|reason| fail(format!("embedding: {reason}")))?
                        .into(),
                ),
            },
        };
        let mut given = self.given();
        if let Some((list, _)) = later {
            let at = given.records.len();
            given.lists.push((at, list));
        }
        given.records.push(record);
        Ok(())
    }

    fn __len__(&self) -> usize {
        self.given().records.len()
    }
}

/// Lets other threads of Python in from time to time.
#[derive(Default)]
struct Pause {
    floats: usize,
}

impl Pause {
    /// Counts floats that were read.
    fn after(&mut self, floats: usize, py: Python<'_>) {
        self.floats += floats;
        if self.floats >= AT_A_TIME {
            self.floats = 0;
            py.detach(|| ());
        }
    }
}

fn invalid(id: &str, reason: String) -> PyErr {
    raise(StoreError::InvalidRecord {
        id: id.to_owned(),
        reason,
    })
}
