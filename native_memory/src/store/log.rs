//! Writing SQLite's log in few large pieces.
//!
//! SQLite writes each page of its write-ahead log, and the header of each page, with a system call
//! of its own: some 35 for one record, thousands for many, which were measured to be a third of the
//! time that a save takes. The file system registered here is the system's own, except for the log:
//! what is written to it in sequence is gathered, and goes out in one call, with the page that ends
//! a transaction. So the log has everything before SQLite tells anybody of a commit, and an error is
//! still one of a write that it waits for. A transaction that was not committed has nothing to lose.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use rusqlite::ffi;

/// Under which SQLite knows the file system.
const NAME: &str = "crewai-native-memory";
const C_NAME: *const c_char = c"crewai-native-memory".as_ptr();
/// Bytes that are gathered at most: what the second-level cache holds, and the longest write that the
/// system's file system of SQLite knows; it takes 128 KiB for nothing.
const ROOM: usize = (128 << 10) - 1;
/// The header of a page in the log. Its second number is not 0 where the page ends a transaction.
const HEADER: usize = 24;

/// A file of SQLite's: a log. The system's own file follows it in memory.
#[repr(C)]
struct Log {
    base: ffi::sqlite3_file,
    /// Where in the file what is gathered belongs.
    start: i64,
    /// Where the last write ended.
    end: i64,
    gathered: Vec<u8>,
    /// Whether everything is written at once, until a header says that its page ends nothing.
    through: bool,
    /// Whether the next write may be the rest of one that a sync has cut in two, and no header.
    cut: bool,
}

/// The system's own file system. SQLite never removes it.
#[derive(Clone, Copy)]
struct System(*mut ffi::sqlite3_vfs);

// SAFETY: SQLite itself uses it from every thread.
unsafe impl Send for System {}
// SAFETY: as above; nobody writes to it.
unsafe impl Sync for System {}

static SYSTEM: OnceLock<System> = OnceLock::new();

/// The name of the file system for connections that write.
pub(super) fn file_system() -> rusqlite::Result<&'static str> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    // SAFETY: SQLite's documented use of its functions. What is registered lives for ever, and
    // the system's own file system, which is copied, is whole once SQLite gives it.
    let code = *REGISTERED.get_or_init(|| unsafe {
        let system = ffi::sqlite3_vfs_find(ptr::null());
        if system.is_null() {
            return ffi::SQLITE_CANTOPEN;
        }
        SYSTEM.get_or_init(|| System(system));
        // The functions that are not replaced get the copy, and use what they find in it.
        let mut ours = *system;
        ours.szOsFile += size_of::<Log>() as c_int;
        ours.zName = C_NAME;
        ours.pNext = ptr::null_mut();
        ours.xOpen = Some(open);
        ffi::sqlite3_vfs_register(Box::into_raw(Box::new(ours)), 0)
    });
    match code {
        ffi::SQLITE_OK => Ok(NAME),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    granted: *mut c_int,
) -> c_int {
    let Some(&System(system)) = SYSTEM.get() else {
        return ffi::SQLITE_CANTOPEN;
    };
    // SAFETY: SQLite gives room for `szOsFile` bytes, aligned for any file of its own, which are a
    // `Log` and the system's file; every other file is the system's alone.
    unsafe {
        let Some(opened) = (*system).xOpen else {
            return ffi::SQLITE_CANTOPEN;
        };
        if flags & ffi::SQLITE_OPEN_WAL == 0 {
            return opened(system, name, file, flags, granted);
        }
        let log = file.cast::<Log>();
        ptr::write(
            log,
            Log {
                base: ffi::sqlite3_file {
                    pMethods: ptr::null(),
                },
                start: 0,
                end: 0,
                gathered: Vec::new(),
                through: true,
                cut: false,
            },
        );
        let inner = log.add(1).cast::<ffi::sqlite3_file>();
        (*inner).pMethods = ptr::null();
        let code = opened(system, name, inner, flags, granted);
        // What has methods is closed, and what has none is not.
        if !(*inner).pMethods.is_null() {
            (*log).base.pMethods = &raw const METHODS;
        }
        code
    }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // The methods of the later versions are about other files than logs.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Calls a method of the system's file.
macro_rules! call {
    ($file:expr, $method:ident, $otherwise:expr $(, $argument:expr)*) => {{
        let inner = $file.cast::<Log>().add(1).cast::<ffi::sqlite3_file>();
        match (*(*inner).pMethods).$method {
            Some(method) => method(inner $(, $argument)*),
            None => $otherwise,
        }
    }};
}

/// Writes what is gathered.
///
/// # Safety
/// `file` was opened by [`open`], and nobody else uses it now.
unsafe fn flush(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as the caller says.
    unsafe {
        let log = &mut *file.cast::<Log>();
        if log.gathered.is_empty() {
            return ffi::SQLITE_OK;
        }
        let (bytes, length) = (log.gathered.as_ptr(), log.gathered.len() as c_int);
        let code = call!(
            file,
            xWrite,
            ffi::SQLITE_IOERR_WRITE,
            bytes.cast(),
            length,
            log.start
        );
        // On an error as well: SQLite gives the transaction up, and writes in its place later.
        log.gathered.clear();
        code
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    length: c_int,
    at: i64,
) -> c_int {
    // SAFETY: SQLite calls methods with a file that `open` has opened, from one thread at a time,
    // and with `length` bytes of data.
    unsafe {
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), length as usize);
        let log = &mut *file.cast::<Log>();
        let follows = at == log.end;
        if !follows || log.gathered.len() + bytes.len() > ROOM {
            let code = flush(file);
            if code != ffi::SQLITE_OK {
                return code;
            }
        }
        let log = &mut *file.cast::<Log>();
        let is_header = bytes.len() == HEADER && !log.cut;
        if is_header {
            log.through = bytes[4..8] != [0; 4];
        }
        // Where SQLite writes page after page, one follows its header. Where it goes back to put
        // the headers of pages right that it has written twice, nothing does.
        let is_followed = is_header && follows;
        log.end = at + bytes.len() as i64;
        log.cut = false;
        if log.gathered.is_empty() {
            log.start = at;
        }
        if log.gathered.try_reserve(bytes.len()).is_err() {
            return match flush(file) {
                ffi::SQLITE_OK => call!(file, xWrite, ffi::SQLITE_IOERR_WRITE, data, length, at),
                code => code,
            };
        }
        log.gathered.extend_from_slice(bytes);
        if log.through && !is_followed {
            flush(file)
        } else {
            ffi::SQLITE_OK
        }
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as in `write`.
    unsafe {
        let log = &mut *file.cast::<Log>();
        (log.through, log.cut) = (true, true);
        match flush(file) {
            ffi::SQLITE_OK => call!(file, xSync, ffi::SQLITE_IOERR_FSYNC, flags),
            code => code,
        }
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as in `write`; SQLite uses a file no more after it has closed it.
    unsafe {
        (*file.cast::<Log>()).gathered = Vec::new();
        call!(file, xClose, ffi::SQLITE_OK)
    }
}

/// Defines methods that write what is gathered before they do what the system's does.
macro_rules! after_flush {
    ($($name:ident: $method:ident, $otherwise:expr $(, $argument:ident: $kind:ty)*;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $kind)*) -> c_int {
            // SAFETY: as in `write`.
            unsafe {
                match flush(file) {
                    ffi::SQLITE_OK => call!(file, $method, $otherwise $(, $argument)*),
                    code => code,
                }
            }
        }
    )*};
}

after_flush! {
    read: xRead, ffi::SQLITE_IOERR_READ, into: *mut c_void, length: c_int, at: i64;
    truncate: xTruncate, ffi::SQLITE_IOERR_TRUNCATE, size: i64;
    file_size: xFileSize, ffi::SQLITE_IOERR_FSTAT, size: *mut i64;
    lock: xLock, ffi::SQLITE_IOERR_LOCK, level: c_int;
    unlock: xUnlock, ffi::SQLITE_IOERR_UNLOCK, level: c_int;
    check_reserved_lock: xCheckReservedLock, ffi::SQLITE_IOERR, held: *mut c_int;
    file_control: xFileControl, ffi::SQLITE_NOTFOUND, what: c_int, value: *mut c_void;
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as in `write`.
    unsafe { call!(file, xSectorSize, 0) }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as in `write`.
    unsafe { call!(file, xDeviceCharacteristics, 0) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rusqlite::{Connection, OpenFlags};

    use super::file_system;
    use crate::store::schema::sibling;

    fn contents(connection: &Connection) -> (i64, i64, String) {
        let sums =
            "SELECT count(*), coalesce(sum(id * length(x) + id * unicode(hex(x))), 0) FROM t";
        let (count, sum) = connection
            .query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        let check = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0));
        (count, sum, check.unwrap())
    }

    /// What a process finds that opens the files as they are now, after everybody else was killed.
    fn after_a_kill(path: &Path) -> (i64, i64, String) {
        let copy = tempfile::tempdir().unwrap();
        let file = copy.path().join("copy.db");
        fs::copy(path, &file).unwrap();
        fs::copy(sibling(path, "-wal"), sibling(&file, "-wal")).unwrap();
        contents(&Connection::open(&file).unwrap())
    }

    #[test]
    fn every_commit_is_in_the_log_before_it_is_acknowledged() {
        // On a disk that may garble what is next to a write, SQLite pads the log, and cuts writes.
        for (synchronous, disk) in [("NORMAL", ""), ("FULL", ""), ("FULL", "?psow=0")] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("x.db");
            let uri = format!("file:{}{disk}", path.display());
            let (flags, system) = (OpenFlags::default(), file_system().unwrap());
            let mut writer = Connection::open_with_flags_and_vfs(uri, flags, system).unwrap();
            let set = |name, value: &str| writer.pragma_update(None, name, value).unwrap();
            set("journal_mode", "WAL");
            set("synchronous", synchronous);
            // Few pages in memory: large transactions write some of theirs early, and again.
            set("cache_size", "8");
            set("wal_autocheckpoint", "40");
            writer
                .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)")
                .unwrap();
            let reader = Connection::open(&path).unwrap();
            let mut committed = contents(&reader);
            for round in 0..30_i64 {
                let transaction = writer.transaction().unwrap();
                for _ in 0..2 {
                    for n in 0..=(round * 7 % 50) {
                        transaction
                            .execute(
                                "INSERT OR REPLACE INTO t VALUES (?1, randomblob(?2))",
                                [(round * 13 + n * 31) % 400, (round * 97 + n * 331) % 9000],
                            )
                            .unwrap();
                    }
                }
                let expected = contents(&transaction);
                if round % 5 == 3 {
                    transaction.rollback().unwrap();
                } else {
                    transaction.commit().unwrap();
                    committed = expected;
                }
                assert_eq!(committed.2, "ok");
                assert_eq!(contents(&reader), committed, "{synchronous} {round}");
                assert_eq!(after_a_kill(&path), committed, "{synchronous} {round}");
                if round % 11 == 10 {
                    let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
                    writer.query_row(truncate, [], |_| Ok(())).unwrap();
                }
            }
        }
    }
}
