//! Results on their way to Python, one record at a time.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use crate::store::{Embedding, Record};

use super::convert::Vector;

/// Records that an operation returned.
///
/// A long list is converted in as many steps as it has records, so that other threads run in
/// between.
#[pyclass(frozen, module = "crewai_native_memory._native")]
pub(super) struct Rows(Mutex<Vec<Option<(Record, f64)>>>);

/// id, content, scope, categories (JSON), metadata (JSON), importance, created and last accessed
/// (microseconds since 1970 UTC), source, private, vector, score.
type Fields = (
    String,
    String,
    String,
    String,
    String,
    f64,
    i64,
    i64,
    Option<String>,
    bool,
    Option<Vector>,
    f64,
);

impl Rows {
    pub(super) fn new(records: impl IntoIterator<Item = (Record, f64)>) -> Self {
        Self(Mutex::new(records.into_iter().map(Some).collect()))
    }
}

#[pymethods]
impl Rows {
    fn __len__(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Hands out the fields of a record, once.
    fn take(&self, at: usize) -> PyResult<Fields> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, score) = rows
            .get_mut(at)
            .and_then(Option::take)
            .ok_or_else(|| PyIndexError::new_err("no such row, or already taken"))?;
        Ok((
            record.id,
            record.content,
            record.scope,
            record.categories,
            record.metadata,
            record.importance,
            record.created_at,
            record.last_accessed,
            record.source,
            record.private,
            record
                .embedding
                .and_then(Embedding::into_components)
                .map(Vector),
            score,
        ))
    }
}
