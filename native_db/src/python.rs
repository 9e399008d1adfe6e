//! The module `crewai_native_db._native`.

mod checkpoint;
mod database;
mod dumps;
mod error;
mod events;
mod flow;
mod handle;
mod lock;
mod replay;
mod watch;

use pyo3::prelude::*;

/// SQLite before this loses committed rows when its log is reset while another process writes.
const SQLITE_NEEDED: i32 = 3_051_003;

#[pymodule]
mod _native {
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;

    use crate::process::{self, Process};

    use super::SQLITE_NEEDED;

    #[pymodule_export]
    use super::checkpoint::{CheckpointStore, publish};
    #[pymodule_export]
    use super::database::{Database, Transaction};
    #[pymodule_export]
    use super::dumps::{dumps, dumps_compact};
    #[pymodule_export]
    use super::error::{DamagedDatabaseError, DatabaseError, NewerFormatError};
    #[pymodule_export]
    use super::events::Events;
    #[pymodule_export]
    use super::flow::FlowStore;
    #[pymodule_export]
    use super::lock::FileLock;
    #[pymodule_export]
    use super::replay::ReplayStore;
    #[pymodule_export]
    use super::watch::{Look, Watch, live_fields};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        if rusqlite::version_number() < SQLITE_NEEDED {
            return Err(PyImportError::new_err(format!(
                "crewai_native_db was built with SQLite {}, which can lose committed data; \
                 it needs 3.51.3 or later",
                rusqlite::version()
            )));
        }
        crewai_native_sdk::passport!(
            module,
            "sqlite" => rusqlite::version(),
            "zstd" => zstd::zstd_safe::version_string()
        )
    }

    /// Lets every operation finish and closes every file; operations wait until `after_fork`.
    #[pyfunction]
    fn before_fork(py: Python<'_>) {
        py.detach(|| Process::current().before_fork());
    }

    /// Lets go of what belongs to the parent.
    #[pyfunction]
    fn after_fork_in_child() {
        process::after_fork_in_child();
    }

    /// Ends what `before_fork` began, in the parent.
    #[pyfunction]
    fn after_fork_in_parent() {
        Process::current().after_fork();
    }
}
