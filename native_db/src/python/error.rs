//! Failures as Python exceptions.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::engine::DbError;

create_exception!(
    crewai_native_db,
    DatabaseError,
    PyException,
    "A database cannot do what was asked, for a reason that lies in its file or in the request."
);
create_exception!(
    crewai_native_db,
    DamagedDatabaseError,
    DatabaseError,
    "The file is something else, or damaged. It was left as it is."
);
create_exception!(
    crewai_native_db,
    NewerFormatError,
    DatabaseError,
    "The file was written by a later release than this one."
);

/// The exception that fits.
pub(super) fn raise(error: DbError) -> PyErr {
    let message = error.to_string();
    match error {
        DbError::InvalidArgument(_) => PyValueError::new_err(message),
        DbError::Damaged { .. } | DbError::Unreadable(_) => DamagedDatabaseError::new_err(message),
        DbError::NewerFormat { .. } => NewerFormatError::new_err(message),
        DbError::Failed { .. } | DbError::Sqlite { .. } => DatabaseError::new_err(message),
        // OSError itself chooses the subclass that its number stands for.
        DbError::Io {
            path,
            errno,
            detail,
        } => PyOSError::new_err((errno, detail, path.into_os_string())),
    }
}
