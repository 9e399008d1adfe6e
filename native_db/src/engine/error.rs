//! What can go wrong with a file, and which file it is.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};
use thiserror::Error;

/// The result of every operation on a file.
pub type Result<T> = std::result::Result<T, DbError>;

/// A failed operation. Nothing was changed.
///
/// It can be cloned: when a commit fails, everybody who took part in it gets the reason.
#[derive(Debug, Clone, Error)]
pub enum DbError {
    /// An argument that means nothing.
    #[error("{0}")]
    InvalidArgument(String),
    /// The file is something else, or cannot be read any more.
    #[error("{}: {detail}; the file was left as it is", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not add up.
        detail: String,
    },
    /// The file was written by a later release.
    #[error(
        "{}: written in format {found}, and this release understands up to format {known}: \
         upgrade crewai-native-db to open it", path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format that the file states.
        found: i64,
        /// The newest format that this code reads and writes.
        known: i64,
    },
    /// The operating system refused: no space, no permission, a failing disk.
    #[error("{}: {detail}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's number for the reason.
        errno: i32,
        /// The reason in words.
        detail: String,
    },
    /// SQLite failed in another way.
    #[error("{}: SQLite: {detail}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// A row that does not hold what was written, before [`DbError::at`] says in which file.
    #[error("{0}")]
    Unreadable(String),
    /// A failure of SQLite before [`DbError::at`] says in which file.
    #[error("SQLite: {detail}")]
    Sqlite {
        /// The kind of failure.
        code: ErrorCode,
        /// What SQLite says.
        detail: String,
    },
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            // SQLite calls that an I/O error.
            rusqlite::Error::SqliteFailure(failure, _)
                if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE =>
            {
                Self::Sqlite {
                    code: ErrorCode::DiskFull,
                    detail: "no room for the index of the log".to_owned(),
                }
            }
            rusqlite::Error::SqliteFailure(failure, message) => Self::Sqlite {
                code: failure.code,
                detail: message.unwrap_or_else(|| failure.to_string()),
            },
            rusqlite::Error::SqlInputError { error, msg, .. } => Self::Sqlite {
                code: error.code,
                detail: msg,
            },
            // A value of another type than was written.
            other => Self::Unreadable(other.to_string()),
        }
    }
}

impl DbError {
    /// Names the file that the failure is about, and sorts it by what a caller can do.
    pub fn at(self, path: &Path) -> Self {
        let path = path.to_owned();
        let (code, detail) = match self {
            Self::Unreadable(detail) => return Self::Damaged { path, detail },
            Self::Sqlite { code, detail } => (code, detail),
            located => return located,
        };
        let errno = match code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                return Self::Damaged { path, detail };
            }
            ErrorCode::DiskFull => libc::ENOSPC,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen => {
                libc::EACCES
            }
            ErrorCode::SystemIoFailure => libc::EIO,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => libc::ETIMEDOUT,
            _ => return Self::Failed { path, detail },
        };
        Self::Io {
            path,
            errno,
            detail,
        }
    }

    /// A failure of the system while it handled `path`.
    pub fn io(path: &Path, source: &io::Error) -> Self {
        let errno = source
            .raw_os_error()
            .unwrap_or_else(|| match source.kind() {
                io::ErrorKind::IsADirectory => libc::EISDIR,
                io::ErrorKind::Unsupported => libc::ENOTSUP,
                _ => libc::EIO,
            });
        Self::Io {
            path: path.to_owned(),
            errno,
            detail: source.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_for_the_index_of_a_log_is_a_full_one() {
        for (extended, expected) in [
            (ffi::SQLITE_FULL, libc::ENOSPC),
            (ffi::SQLITE_IOERR_SHMSIZE, libc::ENOSPC),
            (ffi::SQLITE_IOERR_READ, libc::EIO),
        ] {
            let failure = rusqlite::Error::SqliteFailure(ffi::Error::new(extended), None);
            let DbError::Io { errno, .. } = DbError::from(failure).at(Path::new("x.db")) else {
                panic!("{extended}");
            };
            assert_eq!(errno, expected);
        }
    }
}
