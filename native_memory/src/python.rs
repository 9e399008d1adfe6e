//! The module `crewai_native_memory._native`.

mod batch;
mod care;
mod convert;
mod error;
mod floats;
mod handle;
mod rows;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

use crate::store::Process;

/// SQLite before this loses committed rows when its log is reset while another process writes.
const SQLITE_NEEDED: i32 = 3_051_003;

#[pymodule]
mod _native {
    use super::{Bound, Process, PyAny, PyImportError, PyModule, PyResult, Python, SQLITE_NEEDED};
    use pyo3::pyfunction;

    #[pymodule_export]
    use super::batch::Batch;
    #[pymodule_export]
    use super::care::{
        backup, check, note, reembed_abandon, reembed_begin, reembed_finish, reembed_pending,
        reembed_stage, search_text, set_note, stats,
    };
    #[pymodule_export]
    use super::convert::Vector;
    #[pymodule_export]
    use super::error::{DamagedStoreError, DimensionError, NewerFormatError, StoreError};
    #[pymodule_export]
    use super::handle::Store;
    #[pymodule_export]
    use super::rows::Rows;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        if rusqlite::version_number() < SQLITE_NEEDED {
            return Err(PyImportError::new_err(format!(
                "crewai_native_memory was built with SQLite {}, which can lose committed data; \
                 it needs 3.51.3 or later",
                rusqlite::version()
            )));
        }
        crewai_native_sdk::passport!(
            module,
            "sqlite" => rusqlite::version(),
            "kernels" => crate::vector::kernels::kernels().name
        )
    }

    /// The JSON text of a value.
    #[pyfunction]
    fn to_json(value: &Bound<'_, PyAny>) -> PyResult<String> {
        crewai_native_sdk::json::to_json(value)
    }

    /// Lets every operation finish and closes every file; operations wait until `after_fork`.
    #[pyfunction]
    fn before_fork(py: Python<'_>) {
        py.detach(|| Process::current().before_fork());
    }

    /// Ends what `before_fork` began, in the parent.
    #[pyfunction]
    fn after_fork_in_parent() {
        Process::current().after_fork();
    }
}
