//! Looking after a store, searching its texts and exchanging its embeddings: functions of a
//! store that CrewAI itself does not call.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::store::care::Note;
use crate::store::reembed::Pending;
use crate::store::{Engine, Filter, Visibility, scope};

use super::convert;
use super::handle::{Store, object};
use super::rows::Rows;

fn known(key: &str) -> PyResult<Note> {
    match key {
        "embedder" => Ok(Note::Embedder),
        "import" => Ok(Note::Import),
        other => Err(PyValueError::new_err(format!(
            "a store remembers 'embedder' and 'import', not {other:?}"
        ))),
    }
}

/// What the store was told to remember under "embedder" or "import".
#[pyfunction]
pub(super) fn note(py: Python<'_>, store: &Store, key: &str) -> PyResult<Option<String>> {
    let key = known(key)?;
    store.run(py, |engine| engine.note(key))
}

/// Remembers a text under "embedder" or "import".
#[pyfunction]
pub(super) fn set_note(py: Python<'_>, store: &Store, key: &str, text: &str) -> PyResult<()> {
    let key = known(key)?;
    store.run(py, |engine| engine.set_note(key, text))
}

/// (records, records with an embedding, its length, bytes of the file, of its log, to be freed).
#[pyfunction]
pub(super) fn stats(
    py: Python<'_>,
    store: &Store,
) -> PyResult<(usize, usize, Option<usize>, u64, u64, u64)> {
    let stats = store.run(py, Engine::stats)?;
    Ok((
        stats.records,
        stats.vectors,
        stats.dimension,
        stats.file,
        stats.log,
        stats.free,
    ))
}

/// What does not add up in the store, in words.
#[pyfunction]
pub(super) fn check(py: Python<'_>, store: &Store) -> PyResult<Vec<String>> {
    store.run(py, Engine::check)
}

/// Copies the live store to a new file; says whether there was one to copy.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "what PyO3 converts a path to"
)]
pub(super) fn backup(py: Python<'_>, store: &Store, to: PathBuf) -> PyResult<bool> {
    store.run(py, |engine| engine.backup(&to))
}

/// The best matches by words, best first, with their BM25 scores.
#[pyfunction]
#[pyo3(signature = (store, text, *, limit, scope=None, categories=None, metadata=None,
                    created_from=None, created_before=None, sources=None, include_private=true,
                    viewer=None))]
#[expect(clippy::too_many_arguments, reason = "the conditions of a search")]
pub(super) fn search_text(
    py: Python<'_>,
    store: &Store,
    text: &str,
    limit: usize,
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
    store
        .run(py, |engine| engine.search_text(text, &filter, limit))
        .map(Rows::new)
}

/// Begins or resumes exchanging every vector; gives how many records have their new one.
#[pyfunction]
pub(super) fn reembed_begin(py: Python<'_>, store: &Store, embedder: &str) -> PyResult<usize> {
    store.run(py, |engine| engine.reembed_begin(embedder))
}

/// (number, text) of records that wait for an embedder's vector, after the record of a number.
#[pyfunction]
pub(super) fn reembed_pending(
    py: Python<'_>,
    store: &Store,
    embedder: &str,
    after: i64,
    limit: usize,
) -> PyResult<Vec<(i64, String)>> {
    let pending = store.run(py, |engine| engine.reembed_pending(embedder, after, limit))?;
    Ok(pending
        .into_iter()
        .map(|one| (one.record, one.content))
        .collect())
}

/// Keeps an embedder's (number, text, vector or None) of records until all have one.
#[pyfunction]
pub(super) fn reembed_stage(
    py: Python<'_>,
    store: &Store,
    embedder: &str,
    vectors: Vec<(i64, String, Bound<'_, PyAny>)>,
) -> PyResult<()> {
    let vectors = vectors
        .into_iter()
        .map(|(record, content, vector)| {
            let vector = (!vector.is_none()).then(|| convert::vector(&vector));
            let vector = vector.transpose().map_err(|reason| {
                let beginning: String = content.chars().take(40).collect();
                PyValueError::new_err(format!(
                    "the embedder {embedder} gave for the text that begins with {beginning:?} a \
                     vector that is none: {reason}"
                ))
            })?;
            Ok((Pending { record, content }, vector))
        })
        .collect::<PyResult<Vec<_>>>()?;
    store.run(py, |engine| engine.reembed_stage(embedder, &vectors))
}

/// Puts an embedder's vectors in place if no record waits for one; gives how many do.
#[pyfunction]
pub(super) fn reembed_finish(py: Python<'_>, store: &Store, embedder: &str) -> PyResult<usize> {
    store.run(py, |engine| engine.reembed_finish(embedder))
}

/// Drops what was collected for an embedder.
#[pyfunction]
pub(super) fn reembed_abandon(py: Python<'_>, store: &Store, embedder: &str) -> PyResult<()> {
    store.run(py, |engine| engine.reembed_abandon(embedder))
}
