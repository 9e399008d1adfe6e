//! Which process may write next, fairly and without polling.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use super::error::{DbError, Result};
use super::file::sibling;

/// The order in which processes write to a file.
///
/// A lone file lock lets the process that just released it take it again before a sleeping one
/// has woken, for ever if it writes in a loop. So there are two: a writer waits for the turnstile,
/// passes it holding the lock, and releases the turnstile, which the next one already holds while
/// it waits for the lock. SQLite would make processes wait as well, but by sleeping and trying
/// again.
#[derive(Debug)]
pub(super) struct Turnstile {
    turnstile: PathBuf,
    lock: PathBuf,
}

/// The right to write, until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: File,
}

impl Turnstile {
    pub(super) fn new(database: &Path) -> Self {
        Self {
            turnstile: sibling(database, "-queue"),
            lock: sibling(database, "-lock"),
        }
    }

    /// Waits until it is this process's turn. The directory must exist.
    pub(super) fn wait(&self) -> Result<Turn> {
        let turnstile = locked(&self.turnstile)?;
        let lock = locked(&self.lock)?;
        drop(turnstile);
        Ok(Turn { _lock: lock })
    }
}

fn locked(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|error| DbError::io(path, &error))
}
