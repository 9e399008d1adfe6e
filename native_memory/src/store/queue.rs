//! Who may write next, fairly and without polling, among the threads of every process.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::engine::Identity;
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
/// SQLite would make processes wait as well, but by sleeping and trying again. It also is what
/// keeps two writers apart where the files of the queue were removed under one of them.
#[derive(Debug)]
pub struct WriterQueue {
    turnstile: PathBuf,
    lock: PathBuf,
    numbers: Mutex<Numbers>,
    served: Condvar,
    /// The files of the last turn: opening and closing them is a tenth of what a save takes.
    kept: Mutex<Option<Files>>,
}

/// The open files of a queue, and the store that lay beside them. Nothing is locked between turns.
#[derive(Debug)]
struct Files {
    store: Option<Identity>,
    turnstile: File,
    lock: File,
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
    // The end of the process closes the files, and thereby releases the lock.
    files: Option<Files>,
}

impl WriterQueue {
    /// The queue for the store at `store`; touches no file yet.
    pub fn new(store: &Path) -> Self {
        Self {
            turnstile: sibling(store, "-queue"),
            lock: sibling(store, "-lock"),
            numbers: Mutex::default(),
            served: Condvar::new(),
            kept: Mutex::default(),
        }
    }

    /// Closes the files, which must not cross a fork. Nobody may be waiting.
    pub fn close(&self) {
        drop(self.kept().take());
    }

    fn kept(&self) -> MutexGuard<'_, Option<Files>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is this thread's turn. The directory must exist.
    ///
    /// `store` is the file that is there, for which files of an earlier turn are good. Where there
    /// is none, the directory may be another one by now, and they are opened again.
    pub(super) fn wait(&self, store: Option<Identity>) -> Result<Turn<'_>> {
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
            files: None,
        };
        let kept = self.kept().take();
        let files = match kept.filter(|files| store.is_some() && files.store == store) {
            Some(files) => files,
            None => Files {
                store,
                turnstile: opened(&self.turnstile)?,
                lock: opened(&self.lock)?,
            },
        };
        let located = |path| move |error| StoreError::io(path, error);
        files.turnstile.lock().map_err(located(&self.turnstile))?;
        files.lock.lock().map_err(located(&self.lock))?;
        files.turnstile.unlock().map_err(located(&self.turnstile))?;
        turn.files = Some(files);
        Ok(turn)
    }
}

fn opened(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| StoreError::io(path, error))
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(files) = self.files.take()
            // Else dropping them unlocks.
            && files.lock.unlock().is_ok()
        {
            *self.queue.kept() = Some(files);
        }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::engine::identity;
    use super::*;

    #[test]
    fn one_at_a_time_with_kept_files_and_with_new_ones() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("x.db");
        fs::write(&store, "x").unwrap();
        let known = identity(&store).unwrap();
        assert!(known.is_some());
        // Each has files of its own, as in another process.
        let queues = [WriterQueue::new(&store), WriterQueue::new(&store)];
        let busy = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for queue in &queues {
                for _ in 0..2 {
                    scope.spawn(|| {
                        for round in 0..200 {
                            let turn = queue.wait(known.filter(|_| round % 3 > 0)).unwrap();
                            assert!(!busy.swap(true, Ordering::AcqRel));
                            busy.store(false, Ordering::Release);
                            drop(turn);
                        }
                        let _turn = queue.wait(known).unwrap();
                    });
                }
            }
        });
        for queue in &queues {
            assert_eq!(queue.kept().as_ref().map(|files| files.store), Some(known));
            queue.close();
            assert!(queue.kept().is_none());
            drop(queue.wait(known).unwrap());
        }
    }

    #[cfg(unix)]
    #[test]
    fn files_of_a_store_that_was_replaced_are_not_used() {
        use std::os::unix::fs::MetadataExt;

        let directory = tempfile::tempdir().unwrap();
        let (inside, store) = (
            directory.path().join("d"),
            directory.path().join("d").join("x.db"),
        );
        let make = || {
            fs::create_dir(&inside).unwrap();
            fs::write(&store, "x").unwrap();
            identity(&store).unwrap()
        };
        let queue = WriterQueue::new(&store);
        let first = make();
        drop(queue.wait(first).unwrap());
        fs::rename(&inside, directory.path().join("away")).unwrap();
        let second = make();
        assert_ne!(first, second);
        let turn = queue.wait(second).unwrap();
        let locked = turn.files.as_ref().unwrap().lock.metadata().unwrap();
        let there = fs::metadata(sibling(&store, "-lock")).unwrap();
        assert_eq!(locked.ino(), there.ino());
    }
}
