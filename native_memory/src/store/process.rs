//! What a process shares: one engine per file, and the gate that a fork goes through.
//!
//! SQLite's connections, its locks and its bookkeeping about both must not cross a fork: the child
//! would believe that it holds locks that only its parent has. So the gate closes before a fork,
//! every operation is let finish, every connection is closed, and the child begins with a state
//! of its own in which nothing was ever open. Both open again what they need.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use super::engine::Engine;

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// The state of one process. Never freed: a forked child leaves its parent's behind, because
/// other threads of the parent may have been inside it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    engines: Mutex<HashMap<PathBuf, Weak<Engine>>>,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// How many more searches may run at once.
    scans: Mutex<usize>,
    scanned: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    inside: usize,
    closed: usize,
}

/// The right to use connections, until dropped. Must not be taken twice by one thread.
#[derive(Debug)]
pub struct Pass(&'static Process);

/// The right to use a processor for a search, until dropped.
#[derive(Debug)]
pub struct Scan<'p>(&'p Process);

/// One processor is left to the rest of the program, such as its event loop; a search is limited
/// by memory bandwidth long before it is by processors.
fn scans_at_once() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    processors.saturating_sub(1).max(1)
}

impl Process {
    /// This process's state; a new one after a fork, even if nobody announced it.
    pub fn current() -> &'static Self {
        let seen = CURRENT.load(Ordering::Acquire);
        // SAFETY: the pointer is null or came from `Box::leak` in `begin`.
        match unsafe { seen.as_ref() } {
            Some(process) if process.pid == std::process::id() => process,
            _ => Self::begin(seen),
        }
    }

    fn begin(seen: *mut Self) -> &'static Self {
        let fresh = Box::into_raw(Box::new(Self {
            pid: std::process::id(),
            engines: Mutex::default(),
            gate: Mutex::default(),
            changed: Condvar::new(),
            scans: Mutex::new(scans_at_once()),
            scanned: Condvar::new(),
        }));
        match CURRENT.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: `fresh` was just allocated, and is never freed once it is published.
            Ok(_) => unsafe { &*fresh },
            Err(theirs) => {
                // SAFETY: `fresh` was not published, so this is its only owner; `theirs` was
                // published by another thread of this process in the meantime.
                unsafe {
                    drop(Box::from_raw(fresh));
                    &*theirs
                }
            }
        }
    }

    /// The process id that the state belongs to.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The engine for the file at `path`, shared with everybody who asks for the same file.
    pub fn engine(&self, path: &Path) -> Arc<Engine> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engines.get(path).and_then(Weak::upgrade) {
            return engine;
        }
        engines.retain(|_, engine| engine.strong_count() > 0);
        let engine = Engine::new(path.to_owned());
        engines.insert(path.to_owned(), Arc::downgrade(&engine));
        engine
    }

    /// Waits until a processor is free for a search.
    pub fn scan(&self) -> Scan<'_> {
        let mut free = self.scans.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self
                .scanned
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Scan(self)
    }

    /// Waits while a fork is under way.
    pub fn enter(&'static self) -> Pass {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        while gate.closed > 0 {
            gate = self
                .changed
                .wait(gate)
                .unwrap_or_else(PoisonError::into_inner);
        }
        gate.inside += 1;
        Pass(self)
    }

    /// Before a fork: lets every operation finish, then closes every connection.
    pub fn before_fork(&self) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.closed += 1;
        while gate.inside > 0 {
            gate = self
                .changed
                .wait(gate)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        for engine in engines.values().filter_map(Weak::upgrade) {
            engine.disconnect();
        }
    }

    /// After a fork, in the parent.
    pub fn after_fork(&self) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.closed = gate.closed.saturating_sub(1);
        self.changed.notify_all();
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        let mut free = self.0.scans.lock().unwrap_or_else(PoisonError::into_inner);
        *free += 1;
        self.0.scanned.notify_one();
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut gate = self.0.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.inside -= 1;
        if gate.closed > 0 {
            self.0.changed.notify_all();
        }
    }
}
