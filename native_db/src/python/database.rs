//! A database for a program's own tables, for Python.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyString};
use rusqlite::types::Value;

use crate::database::{self, Memory, Work};
use crate::engine::{self, Durability, Engine, Owner};

use super::error::raise;
use super::flow::statistics;
use super::handle::Handle;

/// (`task_description`, metadata as JSON, datetime, score)
type Row = (String, String, String, f64);

/// A database. Values are None, bool, int, float, str and bytes.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct Database {
    handle: Handle,
    durability: Durability,
    readers: usize,
}

#[pymethods]
impl Database {
    /// A handle on the file at `path`; opens nothing. A write survives a power cut where
    /// `durable`, and else the death of the process. `readers` connections are kept for reading.
    #[new]
    fn new(path: PathBuf, durable: bool, readers: usize) -> Self {
        Self {
            handle: Handle::new(&path, &database::SCHEMA),
            durability: Durability::of(durable),
            readers,
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

    /// Runs statements of (SQL, rows of values), all of them or none; gives how many rows each
    /// changed.
    fn execute(
        &self,
        py: Python<'_>,
        works: Vec<(String, Vec<Vec<Bound<'_, PyAny>>>)>,
    ) -> PyResult<Vec<usize>> {
        let works = statements(works)?;
        self.write(py, move |db| database::execute(db, &works))
    }

    /// Begins a transaction of a thread (`threading.get_ident()`), or of a coroutine there, which
    /// then has the writing connection for itself; for so many seconds at most, if others wait.
    fn begin(
        &self,
        py: Python<'_>,
        thread: u64,
        coroutine: bool,
        limit: f64,
    ) -> PyResult<Transaction> {
        let owner = Owner { thread, coroutine };
        let limit = Duration::try_from_secs_f64(limit)
            .map_err(|error| PyValueError::new_err(format!("timeout: {error}")))?;
        let engine = self.handle.engine();
        let number = self
            .handle
            .run(py, |engine| engine.begin(owner, self.durability, limit))?;
        Ok(Transaction {
            engine,
            number,
            pid: std::process::id(),
        })
    }

    /// An error if a thread has a transaction open, unless it is a coroutine's there. To be asked by
    /// that thread before it begins one for a coroutine.
    fn refuse(&self, py: Python<'_>, thread: u64) -> PyResult<()> {
        let owner = Owner {
            thread,
            coroutine: true,
        };
        self.handle.run(py, |engine| engine.refuse(owner))
    }

    /// The rows that a statement gives, as dicts by the names of its columns.
    fn query<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        parameters: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let parameters = values(&parameters)?;
        let (columns, rows) = self.read(py, |db| database::query(db, sql, &parameters))?;
        dicts(py, &columns, rows)
    }

    /// Adds a memory; gives its number.
    fn save_memory(
        &self,
        py: Python<'_>,
        task_description: String,
        metadata: String,
        datetime: String,
        score: f64,
    ) -> PyResult<i64> {
        let memory = Memory {
            task_description,
            metadata,
            datetime,
            score,
        };
        self.write(py, move |db| database::save_memory(db, &memory))
    }

    /// The newest memories of a task.
    fn load_memories(&self, py: Python<'_>, task: &str, limit: usize) -> PyResult<Vec<Row>> {
        let found = self.read(py, |db| database::load_memories(db, task, limit))?;
        Ok(found.into_iter().map(row).collect())
    }

    /// The memories with any of the words of a text, the best match first.
    fn search_memories(&self, py: Python<'_>, text: &str, limit: usize) -> PyResult<Vec<Row>> {
        let found = self.read(py, |db| database::search_memories(db, text, limit))?;
        Ok(found.into_iter().map(row).collect())
    }

    /// What is wrong with the file, one entry for each finding.
    fn check(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.read(py, engine::integrity)
    }

    /// What this process has done with the file: reads, writes, commits, failures.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        statistics(py, self.handle.engine().statistics())
    }
}

/// A transaction that stays open until it is committed, rolled back or let go of.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct Transaction {
    engine: Arc<Engine>,
    number: u64,
    pid: u32,
}

#[pymethods]
impl Transaction {
    /// As `Database.execute`, in the transaction.
    fn execute(
        &self,
        py: Python<'_>,
        works: Vec<(String, Vec<Vec<Bound<'_, PyAny>>>)>,
    ) -> PyResult<Vec<usize>> {
        let works = statements(works)?;
        self.run(py, |engine| {
            engine.within(self.number, |db| database::execute(db, &works))
        })
    }

    /// As `Database.query`, of what the transaction has come to.
    fn query<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        parameters: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let parameters = values(&parameters)?;
        let (columns, rows) = self.run(py, |engine| {
            engine.within(self.number, |db| database::query(db, sql, &parameters))
        })?;
        dicts(py, &columns, rows)
    }

    /// Keeps what was done.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |engine| engine.commit(self.number))
    }

    /// Takes back what was done; nothing if it is over.
    fn rollback(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |engine| {
            engine.abandon(Some(self.number));
            Ok(())
        })
    }
}

impl Transaction {
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Engine) -> engine::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&self.engine)).map_err(raise)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // In a forked child it is its parent's, and over: see `Process::before_fork`.
        if self.pid == std::process::id() {
            self.engine.abandon(Some(self.number));
        }
    }
}

impl Database {
    fn write<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&rusqlite::Connection) -> engine::Result<T> + Send + 'static,
    ) -> PyResult<T> {
        self.handle
            .run(py, |engine| engine.write(self.durability, work))
    }

    /// Runs `work` on the file, which is created where there is none: it has tables then.
    fn read<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Fn(&rusqlite::Connection) -> engine::Result<T> + Send + Sync,
    ) -> PyResult<T> {
        self.handle.run(py, |engine| {
            engine.keep_readers(self.readers);
            loop {
                if let Some(found) = engine.read(None, |db| work(db).map(Some))? {
                    return Ok(found);
                }
                engine.write(self.durability, |_| Ok(()))?;
            }
        })
    }
}

fn statements(works: Vec<(String, Vec<Vec<Bound<'_, PyAny>>>)>) -> PyResult<Vec<Work>> {
    works
        .into_iter()
        .map(|(sql, rows)| {
            let rows = rows
                .iter()
                .map(|row| values(row))
                .collect::<PyResult<_>>()?;
            Ok(Work { sql, rows })
        })
        .collect()
}

fn dicts<'py>(
    py: Python<'py>,
    columns: &[String],
    rows: Vec<Vec<Value>>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    rows.into_iter()
        .map(|row| {
            let found = PyDict::new(py);
            for (name, value) in columns.iter().zip(row) {
                match value {
                    Value::Null => found.set_item(name, py.None())?,
                    Value::Integer(number) => found.set_item(name, number)?,
                    Value::Real(number) => found.set_item(name, number)?,
                    Value::Text(text) => found.set_item(name, text)?,
                    Value::Blob(bytes) => found.set_item(name, PyBytes::new(py, &bytes))?,
                }
            }
            Ok(found)
        })
        .collect()
}

fn row(memory: Memory) -> Row {
    let Memory {
        task_description,
        metadata,
        datetime,
        score,
    } = memory;
    (task_description, metadata, datetime, score)
}

fn values(row: &[Bound<'_, PyAny>]) -> PyResult<Vec<Value>> {
    row.iter().map(value).collect()
}

fn value(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    if object.is_none() {
        Ok(Value::Null)
    } else if let Ok(flag) = object.cast::<PyBool>() {
        Ok(Value::Integer(i64::from(flag.is_true())))
    } else if object.is_instance_of::<PyInt>() {
        object
            .extract()
            .map(Value::Integer)
            .map_err(|_| PyOverflowError::new_err("SQLite has integers from -2**63 to 2**63 - 1"))
    } else if let Ok(number) = object.cast::<PyFloat>() {
        Ok(Value::Real(number.extract()?))
    } else if let Ok(text) = object.cast::<PyString>() {
        Ok(Value::Text(text.extract()?))
    } else if let Ok(bytes) = object.cast::<PyBytes>() {
        Ok(Value::Blob(bytes.as_bytes().to_vec()))
    } else {
        Err(PyTypeError::new_err(format!(
            "a value of type {} has no form in SQLite; it has None, bool, int, float, str and bytes",
            object.get_type().name()?
        )))
    }
}
