//! The file: its tables, its format number, how it comes into being and how it is opened.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags, ffi};

use super::alone::{self, Alone};
use super::error::{Result, StoreError};
use super::log;
use super::text;

/// "CNMm": marks the file as ours (SQLite's `application_id`).
const APPLICATION_ID: i64 = 0x434e_4d6d;
/// The format that this code reads and writes (SQLite's `user_version`).
const FORMAT: i64 = 1;
/// How long to wait for a lock that is not ours to queue for (a checkpoint, a recovery).
const BUSY: Duration = Duration::from_secs(60);

/// Bytes in a page of a new file.
///
/// A commit writes whole pages, with a checksum over each, which is most of what a small one costs.
/// In pages of SQLite's 4 KiB a vector of 1,536 components leaves a quarter of the file empty as well.
const PAGE: u32 = 2 << 10;

/// Bytes to which a log is cut that was longer once; writers do not let it become much longer.
const LONGEST_LOG: i64 = 128 << 20;

/// Format 1.
///
/// Every aggregate that a listing needs is kept up to date by the transaction that changes it,
/// so that counting, listing and describing scopes cost the same at any size: `scopes.records`
/// and `scope_categories.records` count whole subtrees, and `timeline` has one entry per record
/// and scope above it, newest last.
///
/// A row of `vectors` never changes: a new vector for a record is a new row with a higher id.
/// `changes` says, in order, whose place in a search index must be looked at again; ids of
/// vectors and of changes come from one counter, `meta.seq`, which never goes back.
const SCHEMA: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('seq', 0), ('trimmed', 0);

CREATE TABLE scopes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER,
    path TEXT NOT NULL UNIQUE,
    records INTEGER NOT NULL
) STRICT;
CREATE INDEX scopes_by_parent ON scopes (parent, path);

CREATE TABLE category_sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    names TEXT NOT NULL UNIQUE,
    records INTEGER NOT NULL
) STRICT;

CREATE TABLE scope_categories (
    scope INTEGER NOT NULL,
    category TEXT NOT NULL,
    records INTEGER NOT NULL,
    PRIMARY KEY (scope, category)
) STRICT, WITHOUT ROWID;

CREATE TABLE records (
    record INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    scope INTEGER NOT NULL,
    categories INTEGER NOT NULL,
    content TEXT NOT NULL,
    metadata TEXT NOT NULL,
    importance REAL NOT NULL,
    created_at INTEGER NOT NULL,
    last_accessed INTEGER NOT NULL,
    source TEXT,
    private INTEGER NOT NULL,
    vector INTEGER,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE timeline (
    scope INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    record INTEGER NOT NULL,
    PRIMARY KEY (scope, created_at, record)
) STRICT, WITHOUT ROWID;

CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    checksum INTEGER NOT NULL,
    vector BLOB NOT NULL
) STRICT;

CREATE TABLE changes (
    seq INTEGER PRIMARY KEY,
    record INTEGER NOT NULL,
    vector INTEGER NOT NULL
) STRICT;
";

/// `path` with `suffix` appended to its file name.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens the store at `path`, or gives `None` where there is none yet; says what it was like if it can
/// only be read as it is.
///
/// `cache` is how many KiB of pages the connection may keep in memory. A file that is not a
/// readable store of a known format is an error, never a reason to begin a new one.
pub fn open(path: &Path, cache: i64) -> Result<Option<(Connection, Option<Alone>)>> {
    match fs::metadata(path) {
        Ok(file) if file.len() == 0 => {
            return Err(StoreError::Damaged {
                path: path.to_owned(),
                detail: "the file is empty, and a memory store never is".to_owned(),
            });
        }
        Ok(file) if file.is_dir() => {
            return Err(StoreError::io(path, io::ErrorKind::IsADirectory.into()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io(path, error)),
    }
    let error = match prepared(connect(path), path, cache) {
        Ok(connection) => return Ok(Some((connection, None))),
        Err(error) => error,
    };
    let is_refused = matches!(&error, StoreError::Io { source, .. }
        if source.kind() == io::ErrorKind::PermissionDenied);
    match Alone::of(path) {
        Some(alone) if is_refused => {
            let connection = prepared(alone::connect(path), path, cache)?;
            Ok(Some((connection, Some(alone))))
        }
        _ => Err(error),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(path, flags, log::file_system()?)
}

/// A connection that was opened on `path`, checked and set up.
fn prepared(opened: rusqlite::Result<Connection>, path: &Path, cache: i64) -> Result<Connection> {
    let located = |error: rusqlite::Error| StoreError::from(error).at(path);
    let connection = opened.map_err(located)?;
    connection.busy_timeout(BUSY).map_err(located)?;
    check_format(&connection, path)?;
    check_length(&connection, path)?;
    configure(&connection, cache)
        .and_then(|()| text::register(&connection))
        .map_err(located)?;
    Ok(connection)
}

fn check_format(connection: &Connection, path: &Path) -> Result<()> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|error| StoreError::from(error).at(path))
    };
    let (owner, format) = (pragma("application_id")?, pragma("user_version")?);
    if owner != APPLICATION_ID {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            detail: "a SQLite database, but not a crewai-native memory store".to_owned(),
        });
    }
    if format > FORMAT {
        return Err(StoreError::NewerFormat {
            path: path.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    Ok(())
}

/// Notices a file that lost its end.
///
/// SQLite reads what is missing of a page as zeros, which can look like rows that are not there.
/// While there is a log the file may be shorter than it states: its end is in the log.
fn check_length(connection: &Connection, path: &Path) -> Result<()> {
    let located = |error: rusqlite::Error| StoreError::from(error).at(path);
    let snapshot = connection.unchecked_transaction().map_err(located)?;
    let pragma = |name| snapshot.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let stated = pragma("page_count").map_err(located)? * pragma("page_size").map_err(located)?;
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    if length(&sibling(path, "-wal")) == 0 && length(path) < stated as u64 {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            detail: format!(
                "the file was cut off: it has {} bytes and should have {stated}",
                length(path)
            ),
        });
    }
    Ok(())
}

fn configure(connection: &Connection, cache: i64) -> rusqlite::Result<()> {
    // NORMAL in WAL mode: a commit survives the death of the process at once, and of the machine
    // with the next checkpoint; a power cut can cost the newest commits, never consistency.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // What users ask to be forgotten is overwritten wherever that costs no further I/O.
    connection.pragma_update(None, "secure_delete", "FAST")?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // KiB; taken only as pages are touched. A large batch of vectors goes through the writer's.
    connection.pragma_update(None, "cache_size", -cache)?;
    connection.set_prepared_statement_cache_capacity(64);
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

thread_local! {
    /// Length of the log, in pages, after the last commit of this thread.
    static LOG_PAGES: Cell<u32> = const { Cell::new(0) };
}

/// Takes writing the log back out of the commits on a connection; [`log_pages`] says when it is
/// due.
pub fn watch_log(connection: &Connection) {
    #[expect(clippy::unnecessary_wraps, reason = "the type of a hook")]
    fn committed(_: &Wal, pages: c_int) -> rusqlite::Result<()> {
        LOG_PAGES.set(u32::try_from(pages).unwrap_or(0));
        Ok(())
    }
    connection.wal_hook(Some(committed));
}

/// Length of the log, in pages, after the last commit of this thread on a watched connection.
pub fn log_pages() -> u32 {
    LOG_PAGES.get()
}

/// Writes the log back to the file, as far as no reader is in the way.
pub fn write_back(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")
}

/// Has every commit on a connection wait until the disk has it.
pub fn make_synchronous(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")
}

/// Creates an empty store at `path` unless there is one. The caller holds the writers' lock, and is
/// about to write: before the first commit that made a log, SQLite waits until the disk has the names in
/// the directory, this one among them.
///
/// The file is finished under another name first: a process killed half-way leaves nothing at
/// `path`, so whatever stands there is whole.
pub fn create(path: &Path) -> Result<()> {
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
            Err(error) => return Err(StoreError::io(&leftover, error)),
        }
    }
    write_empty(&draft).map_err(|error| error.at(&draft))?;
    fs::File::open(&draft)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::io(&draft, error))?;
    fs::rename(&draft, path).map_err(|error| StoreError::io(path, error))
}

fn write_empty(path: &Path) -> Result<()> {
    let mut connection = Connection::open(path)?;
    // The caller flushes the file once, when it is whole; nobody looks at it before, and a half one
    // is thrown away.
    connection.pragma_update(None, "synchronous", "OFF")?;
    journal(&connection, "OFF")?;
    // Both must be chosen before the first table. Freed pages can be handed back by `optimize`.
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()?;
    if journal(&connection, "WAL")? != "wal" {
        return Err(StoreError::io(
            path,
            io::Error::new(
                io::ErrorKind::Unsupported,
                "this file system does not support SQLite's write-ahead log; \
                 choose a directory on a local disk",
            ),
        ));
    }
    connection
        .close()
        .map_err(|(_, error)| StoreError::Sqlite(error))
}

/// Asks for a kind of journal; gives the one that it is.
fn journal(connection: &Connection, kind: &str) -> rusqlite::Result<String> {
    connection.pragma_update_and_check(None, "journal_mode", kind, |row| row.get(0))
}
