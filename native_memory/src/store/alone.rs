//! Stores in directories that cannot be written: in an image, on a medium, in another user's place.
//!
//! To read a file that has a log, SQLite writes an index of the log beside it. Where it cannot, and
//! the log is empty, the file is all there is to read, and SQLite is told that it does not change.
//! Whether it has changed all the same is looked at before each use of a connection. A change in the
//! middle of one would show in the checksums of what is read.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};

use super::schema::sibling;

/// What such a file was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alone {
    length: u64,
    modified: Option<SystemTime>,
}

impl Alone {
    /// Of the file at `path`, unless there is something in its log, or its directory can be written.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        let log = fs::metadata(sibling(path, "-wal")).map_or(0, |log| log.len());
        (log == 0 && !is_writable(path.parent()?)).then(|| Self {
            length: file.len(),
            modified: file.modified().ok(),
        })
    }
}

/// Opens such a file.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri(path), flags)
}

/// The name of a file for SQLite, with what it is told about it (<https://sqlite.org/uri.html>).
fn uri(path: &Path) -> String {
    let escaped = path.as_os_str().as_encoded_bytes().iter().map(|&byte| {
        if byte.is_ascii_alphanumeric() || b"/.-_~".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    format!("file:{}?immutable=1", escaped.collect::<String>())
}

#[cfg(unix)]
fn is_writable(directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;

    let here = directory.as_os_str().is_empty();
    let name = if here {
        b"."
    } else {
        directory.as_os_str().as_bytes()
    };
    let Ok(name) = std::ffi::CString::new(name) else {
        return true;
    };
    // SAFETY: the name ends with a zero, and is only read.
    unsafe { libc::access(name.as_ptr(), libc::W_OK) == 0 }
}

/// Elsewhere what counts is not known before a file is made.
#[cfg(not(unix))]
fn is_writable(_: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_the_name_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["plain.db", "a b%20?mode=rw#x&é\u{1f600}.db"] {
            let path = directory.path().join(name);
            let made = Connection::open(&path).unwrap();
            made.execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (7)",
            )
            .unwrap();
            drop(made);
            let read = connect(&path).unwrap();
            let found: i64 = read
                .query_row("SELECT x FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(found, 7);
            assert!(read.execute("INSERT INTO t VALUES (8)", []).is_err());
            // What can be written is nobody's alone.
            assert_eq!(Alone::of(&path), None);
        }
    }
}
