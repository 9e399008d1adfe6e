//! Room in the write-ahead log before it is needed.
//!
//! A commit that makes a file longer waits for the disk twice: for the data, and for the file
//! system's journal, which has the new length. One that overwrites waits once. SQLite overwrites its
//! log from the second round on (every 1,000 pages); what short programs write is all in the first.
//! So zeros are written ahead of it, as other databases do with their logs. To SQLite they are what a
//! torn write left behind: a frame counts only with the salts and the checksum of its log.
//!
//! Nor is the system asked how long the log is before each commit: since Linux 6.13 the next write then
//! gives the file a new time, and a file system without a journal writes that to the disk as well. How
//! much of the log is in use, SQLite says after each commit.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, ffi};

/// The first piece of room, in bytes; each later one doubles the log.
const FIRST: i64 = 64 << 10;
/// Room is made while so much is left: most commits take less.
const LEAST: i64 = 32 << 10;
/// A page in the log, with its header. Files that are made here have SQLite's pages of 4 KiB.
const FRAME: i64 = 4096 + 24;
/// After how many pages the log is written back and begun again, as SQLite's own hook has it.
const ROUND: c_int = 1000;
const ENOUGH: i64 = ROUND as i64 * FRAME + LEAST;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

thread_local! {
    /// Pages in the log after the last commit of this thread.
    static PAGES: Cell<c_int> = const { Cell::new(0) };
}

/// Has [`Reserve::commit`] learn how much of the log is in use.
pub(super) fn watch(connection: &Connection) {
    #[expect(clippy::unnecessary_wraps, reason = "the type of a hook")]
    fn committed(log: &Wal, pages: c_int) -> rusqlite::Result<()> {
        PAGES.set(pages);
        if pages >= ROUND {
            // As SQLite's own hook, in the place of which this is: if it fails, the log has everything,
            // and the next commit tries again.
            drop(log.checkpoint());
        }
        Ok(())
    }
    connection.wal_hook(Some(committed));
}

/// What is known of a connection's log.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    /// Its length when last looked at.
    length: i64,
    /// How much of it was in use after the last commit.
    used: Option<i64>,
}

impl Reserve {
    /// Makes room if there is little left.
    ///
    /// `connection` has begun a write transaction and written nothing in it: nobody else then writes
    /// to the log, and this behind its end only. Where there is no space, the commit says so itself.
    pub(super) fn refill(&mut self, connection: &Connection) {
        let is_short = |length| self.used.is_some_and(|used| used + LEAST > length);
        if self.used.is_some() && !is_short(self.length) {
            return;
        }
        let Some(log) = Log::of(connection) else {
            return;
        };
        let Some(length) = log.length() else {
            return;
        };
        let mut end = length;
        if length == 0 || is_short(length) {
            let goal = (2 * length).clamp(FIRST, ENOUGH);
            while end < goal && log.write_zeros(end, goal - end) {
                end += (goal - end).min(ZEROS.len() as i64);
            }
        }
        self.length = end;
    }

    /// Runs `commit`, a commit on the connection, and notes how much of the log is in use after it.
    pub(super) fn commit<E>(&mut self, commit: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        PAGES.set(0);
        commit()?;
        let pages = PAGES.get();
        // Nothing was written if SQLite did not say.
        if pages > 0 {
            let used = i64::from(pages) * FRAME;
            if self.used.is_some_and(|before| used < before) {
                // It was begun again, and may have been cut.
                self.length = 0;
            }
            self.used = Some(used);
        }
        Ok(())
    }
}

/// SQLite's own handle of a log: another one would not go through its VFS.
struct Log(*mut ffi::sqlite3_file);

impl Log {
    fn of(connection: &Connection) -> Option<Self> {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        // SAFETY: the connection is open, and used by this thread only; SQLite writes a pointer to
        // where this one points.
        let code = unsafe {
            ffi::sqlite3_file_control(
                connection.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_JOURNAL_POINTER,
                (&raw mut file).cast::<c_void>(),
            )
        };
        // SAFETY: SQLite gave the pointer; a file that is not open has no methods.
        let is_open =
            code == ffi::SQLITE_OK && !file.is_null() && unsafe { !(*file).pMethods.is_null() };
        is_open.then_some(Self(file))
    }

    fn length(&self) -> Option<i64> {
        let mut length = 0;
        // SAFETY: the file is open as long as the transaction of the caller.
        let code = unsafe { ((*(*self.0).pMethods).xFileSize?)(self.0, &raw mut length) };
        (code == ffi::SQLITE_OK).then_some(length)
    }

    /// Writes as many zeros as one call can, `count` at the most; says whether it could.
    fn write_zeros(&self, offset: i64, count: i64) -> bool {
        let count = count.min(ZEROS.len() as i64) as i32;
        // SAFETY: as above; `count` zeros there are.
        unsafe {
            (*(*self.0).pMethods).xWrite.is_some_and(|write| {
                write(self.0, ZEROS.as_ptr().cast(), count, offset) == ffi::SQLITE_OK
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::TransactionBehavior;

    use super::*;

    #[test]
    fn commits_fill_the_room_and_nothing_else_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.db");
        let open = || {
            let connection = Connection::open(&path).unwrap();
            connection
                .pragma_update(None, "journal_mode", "WAL")
                .unwrap();
            watch(&connection);
            connection
        };
        let count = |connection: &Connection| -> i64 {
            connection
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap()
        };
        let length = || {
            fs::metadata(directory.path().join("data.db-wal"))
                .unwrap()
                .len() as i64
        };
        // Two that take turns, as two processes would, of which each makes room.
        let mut writers = [open(), open()].map(|connection| (connection, Reserve::default()));
        writers[0]
            .0
            .execute_batch("CREATE TABLE t (x BLOB)")
            .unwrap();
        let mut lengths = vec![length()];
        // How many commits had to make it longer themselves.
        let mut grown = 0;
        for number in 0..1500 {
            let (connection, reserve) = &mut writers[number % 2];
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .unwrap();
            reserve.refill(&transaction);
            transaction
                .execute("INSERT INTO t VALUES (zeroblob(?))", [number])
                .unwrap();
            let before = length();
            reserve.commit(|| transaction.commit()).unwrap();
            grown += usize::from(length() > before);
            lengths.push(length());
            // What a crash here would leave is read from the log, without its index.
            if number % 300 == 7 {
                let copy = tempfile::tempdir().unwrap();
                for name in ["data.db", "data.db-wal"] {
                    fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
                }
                let found = Connection::open(copy.path().join("data.db")).unwrap();
                assert_eq!(count(&found), number as i64 + 1);
            }
        }
        lengths.dedup();
        assert!(lengths.len() < 12, "{lengths:?}");
        assert!(grown < 3, "{grown} commits outgrew their room");
        assert!(length() <= ENOUGH + 100 * 4120, "{} bytes", length());
        drop(writers);
        assert_eq!(count(&open()), 1500);
    }
}
