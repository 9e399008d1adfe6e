//! Who may write next, fairly and without polling, among the threads of every process.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use super::error::{Result, StoreError};
use super::schema::sibling;

/// The order of a store's writers.
///
/// Threads of one process take numbers and are served in order. Among processes the kernel's
/// file locks decide; a lone file lock lets the process that just released it take it again
/// before a sleeping one has woken, for ever if it writes in a loop. So there are two: a writer
/// waits for the turnstile, passes it holding the lock, and releases the turnstile, which the
/// next one already holds while it waits for the lock.
///
/// SQLite would make processes wait as well, but by sleeping and trying again.
#[derive(Debug)]
pub struct WriterQueue {
    turnstile: PathBuf,
    lock: PathBuf,
    numbers: Mutex<Numbers>,
    served: Condvar,
}

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    serving: u64,
}

/// The right to write, until dropped.
#[derive(Debug)]
pub struct Turn<'q> {
    queue: &'q WriterQueue,
    // Closing the file releases the lock, in whatever way the process ends.
    lock: Option<File>,
}

impl WriterQueue {
    /// The queue for the store at `store`; touches no file yet.
    pub fn new(store: &Path) -> Self {
        Self {
            turnstile: sibling(store, "-queue"),
            lock: sibling(store, "-lock"),
            numbers: Mutex::default(),
            served: Condvar::new(),
        }
    }

    /// Waits until it is this thread's turn. The directory must exist.
    pub fn wait(&self) -> Result<Turn<'_>> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = numbers.next;
        numbers.next += 1;
        while numbers.serving != mine {
            numbers = self
                .served
                .wait(numbers)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(numbers);
        // From here on the thread's turn ends when `turn` is dropped, also on an error.
        let mut turn = Turn {
            queue: self,
            lock: None,
        };
        let turnstile = locked(&self.turnstile)?;
        turn.lock = Some(locked(&self.lock)?);
        drop(turnstile);
        Ok(turn)
    }
}

fn locked(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|error| StoreError::io(path, error))
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.lock.take());
        let mut numbers = self
            .queue
            .numbers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        numbers.serving += 1;
        if numbers.serving != numbers.next {
            self.queue.served.notify_all();
        }
    }
}
