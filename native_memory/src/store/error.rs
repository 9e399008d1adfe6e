//! What can go wrong in a store, and the file that each failure is about.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

/// The result of every operation of a store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A failed operation. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A record that cannot be stored as it is.
    #[error("record {id:?}: {reason}")]
    InvalidRecord {
        /// The record's own id, as given.
        id: String,
        /// What is wrong with it, and what would be accepted.
        reason: String,
    },
    /// An argument that means nothing.
    #[error("{0}")]
    InvalidArgument(String),
    /// A vector of another length than the store's.
    #[error("the store holds {stored}-dimensional vectors, got {given} dimensions")]
    Dimension {
        /// Length of the vectors in the store (or of the batch's first one).
        stored: usize,
        /// Length of the vector that was given.
        given: usize,
    },
    /// A vector that was to come while its record was stored did not.
    #[error("a vector was promised and not given")]
    Withheld,
    /// The file is something else, or cannot be read as a store any more.
    #[error("{}: {detail}; the file was left as it is", path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What does not add up.
        detail: String,
    },
    /// The file was written by a later release.
    #[error(
        "{}: written in format {found}, and this release understands up to format {known}: \
         upgrade crewai-native-memory to open it", path.display()
    )]
    NewerFormat {
        /// The store's file.
        path: PathBuf,
        /// The format that the file states.
        found: i64,
        /// The newest format that this code reads and writes.
        known: i64,
    },
    /// The operating system refused: no space, no permission, a failing disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own reason.
        source: io::Error,
    },
    /// SQLite failed in another way.
    #[error("{}: SQLite: {detail}", path.display())]
    Failed {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Work in the background was in the way of a fork or of the end of the process.
    #[error("stopped, because the process forks or ends")]
    Stopped,
    /// A failure inside an operation, which locates it (see [`StoreError::at`]) before it returns.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    /// Names the file that a bare SQLite failure is about, and sorts it by what a caller can do.
    pub fn at(self, path: &Path) -> Self {
        let Self::Sqlite(error) = self else {
            return self;
        };
        let path = path.to_owned();
        let (code, detail) = match error {
            rusqlite::Error::SqliteFailure(failure, message) => {
                (failure.code, message.unwrap_or_else(|| failure.to_string()))
            }
            // A value of another type than was written, a row that another one refers to and
            // that is not there.
            other => (ErrorCode::DatabaseCorrupt, other.to_string()),
        };
        let kind = match code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                return Self::Damaged { path, detail };
            }
            ErrorCode::DiskFull => io::ErrorKind::StorageFull,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen => {
                io::ErrorKind::PermissionDenied
            }
            ErrorCode::SystemIoFailure => io::ErrorKind::Other,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => io::ErrorKind::TimedOut,
            _ => return Self::Failed { path, detail },
        };
        Self::Io {
            path,
            source: io::Error::new(kind, detail),
        }
    }

    /// A failure of the system while it handled `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
