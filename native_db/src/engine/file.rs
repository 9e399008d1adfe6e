//! How a file comes into being, and how it is opened.

use std::ffi::{c_int, c_void};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crewai_native_sdk::files;
use rusqlite::{Connection, OpenFlags, ffi};

use super::error::{DbError, Result};
use super::reserve;

/// How often the wait for a lock that nobody queues for (a checkpoint, a recovery) is renewed;
/// with the waits below, about a minute.
const BUSY_TRIES: i32 = 1200;
/// The longest of those waits.
const BUSY_WAIT: Duration = Duration::from_millis(100);
const STATEMENTS: usize = 64;
/// Bytes to which a log is cut that was longer once.
const LONGEST_LOG: i64 = 16 << 20;

/// What a file holds.
#[derive(Debug)]
pub struct Schema {
    /// What a person calls such a file.
    pub name: &'static str,
    /// Marks the file as one of these (SQLite's `application_id`).
    pub application_id: i64,
    /// The format that the code reads and writes (SQLite's `user_version`).
    pub format: i64,
    /// The tables of that format.
    pub tables: &'static str,
}

/// `path` with `suffix` appended to its file name.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens the file at `path`, or gives `None` where there is none yet.
///
/// A file that is not a readable one of a known format is an error, never a reason to begin a new
/// one. One that nobody has open can be read where nothing can be written, too.
pub(super) fn open(path: &Path, schema: &Schema) -> Result<Option<Connection>> {
    match fs::metadata(path) {
        Ok(file) if file.is_dir() => {
            return Err(DbError::io(path, &io::ErrorKind::IsADirectory.into()));
        }
        Ok(file) if file.len() == 0 => {
            return Err(DbError::Damaged {
                path: path.to_owned(),
                detail: format!("the file is empty, and a {} never is", schema.name),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DbError::io(path, &error)),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = match connect(path, flags, path, schema) {
        Err(DbError::Io { errno, .. }) if errno == libc::EACCES && !is_in_use(path) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            connect(&unchanging(path), flags, path, schema)
        }
        connected => connected,
    };
    connection.map(Some)
}

fn connect(name: &Path, flags: OpenFlags, path: &Path, schema: &Schema) -> Result<Connection> {
    let located = |error: rusqlite::Error| DbError::from(error).at(path);
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(name, flags).map_err(located)?;
    connection.busy_handler(Some(wait_busy)).map_err(located)?;
    check_format(&connection, path, schema)?;
    check_length(&connection, path)?;
    configure(&connection).map_err(located)?;
    Ok(connection)
}

/// Whether somebody has the file open, or has left what is not written back to it.
fn is_in_use(path: &Path) -> bool {
    let length = |suffix| fs::metadata(sibling(path, suffix)).map_or(0, |file| file.len());
    length("-shm") > 0 || length("-wal") > 0
}

/// The name by which SQLite reads a file as one that nobody changes, without one of its own beside it: for
/// a directory in which none can be made.
fn unchanging(path: &Path) -> PathBuf {
    let mut name = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => name.push(char::from(*byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(*byte)),
            // Writing to a `String` cannot fail.
            _ => _ = write!(name, "%{byte:02X}"),
        }
    }
    name.push_str("?immutable=1");
    name.into()
}

fn check_format(connection: &Connection, path: &Path, schema: &Schema) -> Result<()> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|error| DbError::from(error).at(path))
    };
    let (owner, format) = (pragma("application_id")?, pragma("user_version")?);
    if owner != schema.application_id {
        return Err(DbError::Damaged {
            path: path.to_owned(),
            detail: format!("a SQLite database, but not a {}", schema.name),
        });
    }
    if format > schema.format {
        return Err(DbError::NewerFormat {
            path: path.to_owned(),
            found: format,
            known: schema.format,
        });
    }
    Ok(())
}

/// Notices a file that lost its end.
///
/// SQLite reads what is missing of a page as zeros, which can look like rows that are not there.
/// While there is a log the file may be shorter than it states: its end is in the log.
fn check_length(connection: &Connection, path: &Path) -> Result<()> {
    let located = |error: rusqlite::Error| DbError::from(error).at(path);
    let snapshot = connection.unchecked_transaction().map_err(located)?;
    let pragma = |name| snapshot.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let stated = pragma("page_count").map_err(located)? * pragma("page_size").map_err(located)?;
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    if length(&sibling(path, "-wal")) == 0 && length(path) < stated as u64 {
        return Err(DbError::Damaged {
            path: path.to_owned(),
            detail: format!(
                "the file was cut off: it has {} bytes and should have {stated}",
                length(path)
            ),
        });
    }
    Ok(())
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -4096)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    reserve::watch(connection);
    keep_log(connection)
}

/// Has SQLite keep the log when the last connection closes, emptied, instead of removing it.
///
/// It removes it by its name, after writing it back. Who removed the file in the meantime and began
/// a new one at its place would lose that one's log, with what was just committed.
fn keep_log(connection: &Connection) -> rusqlite::Result<()> {
    let mut on: c_int = 1;
    // SAFETY: the connection is open; SQLite reads and writes the number while it is called.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_PERSIST_WAL,
            (&raw mut on).cast::<c_void>(),
        )
    };
    if code != ffi::SQLITE_OK {
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
    }
    // With a limit, whatever it is, SQLite empties a log that it keeps.
    connection.pragma_update(None, "journal_size_limit", LONGEST_LOG)
}

/// Waits before SQLite tries again. Not everybody as long: who collided once would do so again.
fn wait_busy(tries: i32) -> bool {
    if tries >= BUSY_TRIES {
        return false;
    }
    let longest = BUSY_WAIT.min(Duration::from_micros(100 << tries.clamp(0, 16)));
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // The nanoseconds of two waiters' clocks have nothing to do with one another.
    let share = f64::from(clock.subsec_nanos() % 1000) / 1000.0;
    thread::sleep(longest.mul_f64(0.5 + share / 2.0));
    true
}

/// Creates an empty file at `path` unless there is one. The caller has the writers' turn.
///
/// The file is finished under another name first: a process killed half-way leaves nothing at
/// `path`, so whatever stands there is whole.
pub(super) fn create(path: &Path, schema: &Schema) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let draft = sibling(path, "-new");
    for leftover in [
        draft.clone(),
        sibling(&draft, "-wal"),
        sibling(&draft, "-shm"),
    ] {
        match fs::remove_file(&leftover) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DbError::io(&leftover, &error)),
        }
    }
    write_empty(&draft, schema).map_err(|error| error.at(&draft))?;
    fs::File::open(&draft)
        .and_then(|file| file.sync_all())
        .map_err(|error| DbError::io(&draft, &error))?;
    fs::rename(&draft, path)
        .and_then(|()| files::sync_name(path))
        .map_err(|error| DbError::io(path, &error))
}

/// Writes a file without waiting for the disk: that is up to who gives it its name.
fn write_empty(path: &Path, schema: &Schema) -> Result<()> {
    let mut connection = Connection::open(path)?;
    // Nobody ever reads a draft that was not finished. Else there would be 14 waits for the disk.
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    // Freed pages can be handed back without rewriting the file; chosen before the first table.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(schema.tables)?;
    transaction.pragma_update(None, "application_id", schema.application_id)?;
    transaction.pragma_update(None, "user_version", schema.format)?;
    transaction.commit()?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(DbError::io(
            path,
            &io::Error::new(
                io::ErrorKind::Unsupported,
                "this file system does not support SQLite's write-ahead log; \
                 choose a directory on a local disk",
            ),
        ));
    }
    connection.close().map_err(|(_, error)| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_by_its_name_as_one_that_nobody_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("50% of #1?é.db");
        create(&path, &crate::replay::SCHEMA).unwrap();
        assert!(!is_in_use(&path));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let fixed = connect(&unchanging(&path), flags, &path, &crate::replay::SCHEMA).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fixed.execute("DELETE FROM runs", []).unwrap_err();
        let _open = open(&path, &crate::replay::SCHEMA).unwrap().unwrap();
        assert!(is_in_use(&path));
    }

    #[test]
    fn a_file_begins_whole_alone_and_with_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.db");
        create(&path, &crate::replay::SCHEMA).unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names(), 1);
        let connection = open(&path, &crate::replay::SCHEMA).unwrap().unwrap();
        let pragma =
            |name| connection.pragma_query_value(None, name, |row| row.get::<_, String>(0));
        assert_eq!(pragma("journal_mode").unwrap(), "wal");
        assert_eq!(pragma("integrity_check").unwrap(), "ok");
        let vacuum: i64 = connection
            .pragma_query_value(None, "auto_vacuum", |row| row.get(0))
            .unwrap();
        assert_eq!(vacuum, 2);
        drop(connection);
        // What a process that was killed meanwhile leaves behind is done anew.
        fs::remove_file(&path).unwrap();
        fs::write(sibling(&path, "-new"), "half of a draft").unwrap();
        create(&path, &crate::replay::SCHEMA).unwrap();
        assert!(open(&path, &crate::replay::SCHEMA).unwrap().is_some());
    }
}
