//! Failures of the store as Python exceptions.

use std::io;

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::store;

create_exception!(
    crewai_native_memory,
    StoreError,
    PyException,
    "A memory store cannot do what was asked, for a reason that lies in its file."
);
create_exception!(
    crewai_native_memory,
    DamagedStoreError,
    StoreError,
    "The file is not a memory store, or damaged. It was left as it is."
);
create_exception!(
    crewai_native_memory,
    NewerFormatError,
    StoreError,
    "The file was written by a later release than this one."
);
create_exception!(
    crewai_native_memory._native,
    DimensionError,
    PyValueError,
    "A vector of another length than the store's; args are (stored, given)."
);

/// The exception that fits.
pub(super) fn raise(error: store::StoreError) -> PyErr {
    use store::StoreError as E;
    let message = error.to_string();
    match error {
        E::InvalidRecord { .. } | E::InvalidArgument(_) => PyValueError::new_err(message),
        E::Dimension { stored, given } => DimensionError::new_err((stored, given)),
        E::Damaged { .. } => DamagedStoreError::new_err(message),
        E::NewerFormat { .. } => NewerFormatError::new_err(message),
        E::Failed { .. } | E::Withheld | E::Stopped | E::Sqlite(_) => StoreError::new_err(message),
        // OSError itself chooses the subclass that its number stands for.
        E::Io { path, source } => {
            PyOSError::new_err((errno(&source), source.to_string(), path.into_os_string()))
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_else(|| match error.kind() {
        io::ErrorKind::NotFound => libc::ENOENT,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::IsADirectory => libc::EISDIR,
        io::ErrorKind::Unsupported => libc::ENOTSUP,
        _ => libc::EIO,
    })
}
