//! A handle on a store, cheap to make and to drop.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::Value;

use crate::store::scope::{self, ROOT};
use crate::store::{Engine, Filter, Process, Request, StoreError, Visibility};
use crate::vector::{Metric, Query};

use super::batch::Batch;
use super::convert::query;
use super::error::raise;
use super::rows::Rows;

/// A store at a path. All handles on one file in one process share what it needs.
#[pyclass(frozen, module = "crewai_native_memory._native")]
pub(super) struct Store {
    path: PathBuf,
    metric: Metric,
    approximate_from: Option<usize>,
    synchronous: bool,
    /// The engine and the process that it belongs to. Only locked while attached to Python, so
    /// never held by another thread when a fork happens.
    engine: Mutex<Option<(u32, Arc<Engine>)>>,
}

impl Store {
    fn engine(&self) -> Arc<Engine> {
        let process = Process::current();
        let mut held = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((pid, engine)) if *pid == process.pid() => Arc::clone(engine),
            _ => {
                let engine = process.engine(&self.path);
                if self.synchronous {
                    engine.make_synchronous();
                }
                // The engine of the process that forked this one, if any, is left alone: its
                // locks and connections are not this process's to touch.
                std::mem::forget(held.replace((process.pid(), Arc::clone(&engine))));
                engine
            }
        }
    }

    pub(super) fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Engine) -> Result<T, StoreError> + Send,
    ) -> PyResult<T> {
        let engine = self.engine();
        py.detach(|| work(&engine)).map_err(raise)
    }
}

impl Drop for Store {
    /// A handle that is collected holds nobody up, as [`Store::close`] does.
    fn drop(&mut self) {
        let held = self
            .engine
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        match held.take() {
            Some((pid, engine)) if pid == std::process::id() => Process::current().let_go(engine),
            inherited => std::mem::forget(inherited),
        }
    }
}

#[pymethods]
impl Store {
    /// A handle on the file at `path`; opens nothing. `metric` is "l2", "cosine" or "dot". From
    /// `approximate_from` records on, searches without conditions may be approximate. `synchronous`
    /// has writes of this process on this file wait for the disk, for all its handles.
    #[new]
    #[pyo3(signature = (path, metric, *, approximate_from=None, synchronous=false))]
    fn new(
        path: PathBuf,
        metric: &str,
        approximate_from: Option<usize>,
        synchronous: bool,
    ) -> PyResult<Self> {
        Ok(Self {
            path: resolved(&path),
            approximate_from,
            synchronous,
            metric: match metric {
                "l2" => Metric::L2,
                "cosine" => Metric::Cosine,
                "dot" => Metric::Dot,
                other => {
                    return Err(PyValueError::new_err(format!(
                        "metric must be 'l2', 'cosine' or 'dot', got {other:?}"
                    )));
                }
            },
            engine: Mutex::default(),
        })
    }

    /// The file.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Lets go of the file; the next call opens it again. The last handle of the process to do so
    /// waits for what is written in the background, for a second at most.
    fn close(&self, py: Python<'_>) {
        let held = self
            .engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match held {
            Some((pid, engine)) if pid == std::process::id() => py.detach(|| engine.close()),
            inherited => std::mem::forget(inherited),
        }
    }

    /// Saves and empties the batch, whole or not at all.
    fn save(&self, py: Python<'_>, batch: &Batch) -> PyResult<()> {
        batch.take().save(py, &self.engine())
    }

    /// The best matches, best first, with their scores.
    #[pyo3(signature = (embedding, *, limit, min_score, scope=None, categories=None,
                        metadata=None, created_from=None, created_before=None, sources=None,
                        include_private=true, viewer=None))]
    #[expect(clippy::too_many_arguments, reason = "the conditions of a search")]
    fn search(
        &self,
        py: Python<'_>,
        embedding: &Bound<'_, PyAny>,
        limit: usize,
        min_score: f64,
        scope: Option<&str>,
        categories: Option<Vec<String>>,
        metadata: Option<&str>,
        created_from: Option<i64>,
        created_before: Option<i64>,
        sources: Option<Vec<String>>,
        include_private: bool,
        viewer: Option<String>,
    ) -> PyResult<Rows> {
        let filter = Filter {
            scope: scope.map(scope::normalize),
            categories,
            metadata: metadata.map(object).transpose()?,
            created_from,
            created_before,
            sources,
            visible_to: if include_private {
                Visibility::All
            } else {
                Visibility::Only(viewer)
            },
        };
        let embedding = query(embedding)?;
        self.run(py, |engine| {
            let query = Query::new(&embedding, self.metric)
                .map_err(|error| StoreError::InvalidArgument(error.to_string()))?;
            engine.search(&Request {
                query: &query,
                filter: &filter,
                k: limit,
                min_score: Some(min_score),
                approximate_from: self.approximate_from,
            })
        })
        .map(Rows::new)
    }

    /// Deletes what meets every condition that is given, and says how many records that were.
    #[pyo3(signature = (*, scope=None, categories=None, record_ids=None, created_before=None,
                        metadata=None))]
    fn delete(
        &self,
        py: Python<'_>,
        scope: Option<&str>,
        categories: Option<Vec<String>>,
        record_ids: Option<Vec<String>>,
        created_before: Option<i64>,
        metadata: Option<&str>,
    ) -> PyResult<usize> {
        let filter = Filter {
            scope: scope.map(scope::normalize),
            categories,
            metadata: metadata.map(object).transpose()?,
            created_before,
            ..Filter::default()
        };
        self.run(py, |engine| engine.delete(&filter, record_ids.as_deref()))
    }

    /// Sets when records were last accessed, in microseconds since 1970 UTC.
    fn touch(&self, py: Python<'_>, record_ids: Vec<String>, at: i64) -> PyResult<()> {
        self.run(py, |engine| engine.touch(&record_ids, at))
    }

    /// The record with this id, as at most one row.
    fn get(&self, py: Python<'_>, record_id: &str) -> PyResult<Rows> {
        let record = self.run(py, |engine| engine.get(record_id))?;
        Ok(Rows::new(record.map(|record| (record, 0.0))))
    }

    /// Which of these records are stored and came from `source`.
    fn are_from(
        &self,
        py: Python<'_>,
        record_ids: Vec<String>,
        source: &str,
    ) -> PyResult<Vec<bool>> {
        self.run(py, |engine| engine.are_from(&record_ids, source))
    }

    /// Records, newest first.
    fn list(&self, py: Python<'_>, scope: &str, limit: usize, offset: usize) -> PyResult<Rows> {
        let scope = scope::normalize(scope);
        let records = self.run(py, |engine| engine.list(&scope, limit, offset))?;
        Ok(Rows::new(records.into_iter().map(|record| (record, 0.0))))
    }

    /// (normalised path, records, categories, oldest, newest, child scopes).
    #[expect(
        clippy::type_complexity,
        reason = "mirrors the fields of CrewAI's ScopeInfo"
    )]
    fn scope_info(
        &self,
        py: Python<'_>,
        scope: &str,
    ) -> PyResult<(
        String,
        usize,
        Vec<String>,
        Option<i64>,
        Option<i64>,
        Vec<String>,
    )> {
        let scope = scope::normalize(scope);
        let info = self.run(py, |engine| engine.scope_info(&scope))?;
        Ok((
            scope,
            info.records,
            info.categories,
            info.oldest,
            info.newest,
            info.children,
        ))
    }

    /// Paths one level below a scope, sorted.
    fn children(&self, py: Python<'_>, scope: &str) -> PyResult<Vec<String>> {
        let scope = scope::normalize(scope);
        self.run(py, |engine| engine.children(&scope))
    }

    /// (category, records) in a scope, sorted by category.
    fn categories(&self, py: Python<'_>, scope: &str) -> PyResult<Vec<(String, usize)>> {
        let scope = scope::normalize(scope);
        self.run(py, |engine| engine.categories(&scope))
    }

    /// Number of records in a scope.
    fn count(&self, py: Python<'_>, scope: &str) -> PyResult<usize> {
        let scope = scope::normalize(scope);
        self.run(py, |engine| engine.count(&scope))
    }

    /// Deletes a scope; without one everything, the dimension included.
    #[pyo3(signature = (scope=None))]
    fn reset(&self, py: Python<'_>, scope: Option<&str>) -> PyResult<()> {
        let scope = scope.map_or_else(|| ROOT.to_owned(), scope::normalize);
        self.run(py, |engine| engine.reset(&scope))
    }

    /// (rows in mapped segments, rows in memory, why sealing failed) of this process.
    fn holdings(&self, py: Python<'_>) -> PyResult<(usize, usize, Option<String>)> {
        let held = self.run(py, |engine| Ok(engine.holdings()))?;
        Ok((held.sealed, held.in_memory, held.seal_failure))
    }

    /// Number of rows that are in groups, for approximate searches of this process.
    fn grouped(&self, py: Python<'_>) -> PyResult<usize> {
        self.run(py, |engine| Ok(engine.holdings().grouped))
    }

    /// Seals segments, and gives freed space back to the file system.
    fn optimize(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Engine::optimize)
    }
}

pub(super) fn object(json: &str) -> PyResult<serde_json::Map<String, Value>> {
    crate::store::filter::parse(json)
        .map_err(|error| PyValueError::new_err(format!("metadata_filter: {error}")))
}

/// The path without links and relative parts, as far as it exists, so that two ways to write it
/// lead to one engine.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute
        .ancestors()
        .find_map(|ancestor| {
            let real = std::fs::canonicalize(ancestor).ok()?;
            let rest = absolute.strip_prefix(ancestor).ok()?;
            Some(if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            })
        })
        .unwrap_or(absolute)
}
