//! Which process may write next, fairly and without polling.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::lock::holder_of;

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
    turnstile: PathBuf,
    lock: PathBuf,
}

/// The right to write, until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: Locked,
}

/// A locked file, until dropped.
#[derive(Debug)]
struct Locked(File);

impl Turnstile {
    pub(super) fn new(database: &Path) -> Self {
        Self {
            turnstile: sibling(database, "-queue"),
            lock: sibling(database, "-lock"),
        }
    }

    /// Waits until it is this process's turn, so long at the most: a process that was stopped in
    /// the middle of its turn must not stop the others for good. The directory must exist.
    pub(super) fn wait(&self, patience: Duration) -> Result<Turn> {
        let queued = Locked::now(&self.turnstile)?;
        if queued.is_some()
            && let Some(lock) = Locked::now(&self.lock)?
        {
            return Ok(Turn { _lock: lock });
        }
        // No file lock can be waited for with an end, so another thread does the waiting. If it
        // comes too late, what it has got goes with the channel.
        let (tell, told) = mpsc::channel();
        let this = self.clone();
        thread::Builder::new()
            .name("crewai-native-turn".to_owned())
            .spawn(move || {
                let _ = tell.send(this.take(queued));
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

    fn take(&self, queued: Option<Locked>) -> Result<Turn> {
        let turnstile = queued.map_or_else(|| Locked::soon(&self.turnstile), Ok)?;
        let lock = Locked::soon(&self.lock)?;
        drop(turnstile);
        Ok(Turn { _lock: lock })
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

impl Locked {
    /// Takes a lock unless somebody has it.
    fn now(path: &Path) -> Result<Option<Self>> {
        let file = opened(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(DbError::io(path, &error)),
        }
    }

    /// Takes a lock when nobody has it any more.
    fn soon(path: &Path) -> Result<Self> {
        let file = opened(path)?;
        match file.lock() {
            Ok(()) => Ok(Self(file)),
            Err(error) => Err(DbError::io(path, &error)),
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing it is not enough where a child, forked while this was waited for, has a copy.
        // If this fails, there is no lock to be released.
        let _ = self.0.unlock();
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

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_at_a_time_has_its_turn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.db");
        let (inside, start) = (std::sync::Mutex::new(()), Barrier::new(4));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let turnstile = Turnstile::new(&path);
                    start.wait();
                    for _ in 0..50 {
                        let turn = turnstile.wait(LONG).unwrap();
                        let alone = inside.try_lock().unwrap();
                        thread::yield_now();
                        drop(alone);
                        drop(turn);
                    }
                });
            }
        });
    }

    #[test]
    fn who_waits_too_long_is_told_and_leaves_nothing_held() {
        let directory = tempfile::tempdir().unwrap();
        let turnstile = Turnstile::new(&directory.path().join("data.db"));
        let turn = turnstile.wait(LONG).unwrap();
        let error = turnstile.wait(Duration::from_millis(10)).unwrap_err();
        let DbError::Io { errno, detail, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*errno, libc::ETIMEDOUT);
        assert!(detail.contains("0.01 s"), "{detail}");
        drop(turn);
        for _ in 0..3 {
            turnstile.wait(LONG).unwrap();
        }
    }
}
