//! Which process may write next, fairly and without polling.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::lock::holder_of;

use super::Identity;
use super::error::{DbError, Result};
use super::file::sibling;

/// The order in which processes write to a file.
///
/// A lone file lock lets the process that just released it take it again before a sleeping one
/// has woken, for ever if it writes in a loop. So there are two: a writer waits for the turnstile,
/// passes it holding the lock, and releases the turnstile, which the next one already holds while
/// it waits for the lock. SQLite would make processes wait as well, but by sleeping and trying
/// again.
#[derive(Debug, Clone)]
pub(super) struct Turnstile {
    queue: PathBuf,
    lock: PathBuf,
    /// The files of the last turn: opening and closing them takes longer than locking them.
    kept: Kept,
}

/// The right to write, until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Turn {
    files: Option<Files>,
    kept: Kept,
}

type Kept = Arc<Mutex<Option<Files>>>;

/// The two open files, and the database that lay beside them. Dropped, they are unlocked.
#[derive(Debug)]
struct Files {
    database: Option<Identity>,
    queue: File,
    lock: File,
}

impl Turnstile {
    pub(super) fn new(database: &Path) -> Self {
        Self {
            queue: sibling(database, "-queue"),
            lock: sibling(database, "-lock"),
            kept: Arc::default(),
        }
    }

    /// Closes the files that are kept, which must not cross a fork.
    pub(super) fn close(&self) {
        drop(self.kept().take());
    }

    /// Waits until it is this process's turn, so long at the most: a process that was stopped in
    /// the middle of its turn must not stop the others for good. The directory must exist.
    ///
    /// `database` is the file that is there, for which the files of an earlier turn are good. Where
    /// there is none, the directory may be another one by now, and they are opened again.
    pub(super) fn wait(&self, database: Option<Identity>, patience: Duration) -> Result<Turn> {
        let kept = self.kept().take();
        let files = match kept.filter(|files| database.is_some() && files.database == database) {
            Some(files) => files,
            None => Files {
                database,
                queue: opened(&self.queue)?,
                lock: opened(&self.lock)?,
            },
        };
        let is_first = is_free(&files.queue, &self.queue)?;
        if is_first && is_free(&files.lock, &self.lock)? {
            return self.passed(files);
        }
        // No file lock can be waited for with an end, so another thread does the waiting.
        let (tell, told) = mpsc::channel();
        let this = self.clone();
        thread::Builder::new()
            .name("crewai-native-turn".to_owned())
            .spawn(move || {
                if let Err(SendError(Ok(mut late))) = tell.send(this.take(files, is_first)) {
                    // Nobody would close them before a fork.
                    late.files = None;
                }
            })
            .map_err(|error| DbError::io(&self.lock, &error))?;
        match told.recv_timeout(patience) {
            Ok(taken) => taken,
            Err(RecvTimeoutError::Timeout) => Err(self.too_long(patience)),
            Err(RecvTimeoutError::Disconnected) => Err(DbError::io(
                &self.lock,
                &io::Error::other("the thread that waited for it has ended"),
            )),
        }
    }

    fn take(&self, files: Files, is_first: bool) -> Result<Turn> {
        if !is_first {
            let waited = files.queue.lock();
            waited.map_err(|error| DbError::io(&self.queue, &error))?;
        }
        let waited = files.lock.lock();
        waited.map_err(|error| DbError::io(&self.lock, &error))?;
        self.passed(files)
    }

    /// Lets the next one into the turnstile.
    fn passed(&self, files: Files) -> Result<Turn> {
        let released = files.queue.unlock();
        released.map_err(|error| DbError::io(&self.queue, &error))?;
        Ok(Turn {
            files: Some(files),
            kept: Arc::clone(&self.kept),
        })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Files>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn too_long(&self, patience: Duration) -> DbError {
        let who = holder_of(&self.lock).map_or_else(
            || "another process".to_owned(),
            |pid| format!("process {pid}"),
        );
        DbError::Io {
            path: self.lock.clone(),
            errno: libc::ETIMEDOUT,
            detail: format!(
                "{who} has been writing for longer than the {} s that this one waits",
                patience.as_secs_f64()
            ),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(files) = self.files.take()
            // Else dropping them closes them.
            && files.lock.unlock().is_ok()
        {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(files);
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Closing them is not enough where a child, forked while they were waited for, has a copy.
        // If this fails, there is no lock to be released.
        let _ = self.lock.unlock();
        let _ = self.queue.unlock();
    }
}

/// Takes a lock unless somebody has it; says whether it did.
fn is_free(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(DbError::io(path, &error)),
    }
}

fn opened(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| DbError::io(path, &error))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::super::identity;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn database() -> (tempfile::TempDir, PathBuf, Option<Identity>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.db");
        std::fs::write(&path, "x").unwrap();
        let there = identity(&path).unwrap();
        (directory, path, there)
    }

    #[test]
    fn one_at_a_time_has_its_turn_with_kept_files_and_with_new_ones() {
        let (_directory, path, there) = database();
        let (inside, start) = (std::sync::Mutex::new(()), Barrier::new(4));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // Files of its own, as in another process.
                    let turnstile = Turnstile::new(&path);
                    start.wait();
                    for round in 0..50 {
                        let known = there.filter(|_| round % 3 > 0);
                        let turn = turnstile.wait(known, LONG).unwrap();
                        let alone = inside.try_lock().unwrap();
                        thread::yield_now();
                        drop(alone);
                        drop(turn);
                    }
                    assert!(turnstile.kept().is_some());
                    turnstile.close();
                    assert!(turnstile.kept().is_none());
                    turnstile.wait(there, LONG).unwrap();
                });
            }
        });
    }

    #[test]
    fn files_beside_a_database_that_was_replaced_are_not_used() {
        let (directory, path, there) = database();
        let turnstile = Turnstile::new(&path);
        drop(turnstile.wait(there, LONG).unwrap());
        for name in ["data.db", "data.db-lock", "data.db-queue"] {
            let away = directory.path().join(format!("old-{name}"));
            std::fs::rename(directory.path().join(name), away).unwrap();
        }
        // The old one is still there, so this one has another number.
        std::fs::write(&path, "y").unwrap();
        let other = identity(&path).unwrap();
        let turn = turnstile.wait(other, LONG).unwrap();
        assert_eq!(turn.files.as_ref().unwrap().database, other);
        let theirs = opened(&path.with_file_name("data.db-lock")).unwrap();
        assert!(matches!(theirs.try_lock(), Err(TryLockError::WouldBlock)));
    }

    #[test]
    fn who_waits_too_long_is_told_and_leaves_nothing_held() {
        let (_directory, path, there) = database();
        let others = Turnstile::new(&path);
        let turnstile = Turnstile::new(&path);
        let turn = others.wait(there, LONG).unwrap();
        let error = turnstile
            .wait(there, Duration::from_millis(10))
            .unwrap_err();
        let DbError::Io { errno, detail, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*errno, libc::ETIMEDOUT);
        assert!(detail.contains("0.01 s"), "{detail}");
        drop(turn);
        for _ in 0..3 {
            turnstile.wait(there, LONG).unwrap();
        }
    }
}
