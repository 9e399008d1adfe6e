//! What a process shares: one engine per file, its lock files, and the gate that a fork goes through.
//!
//! SQLite's connections, its locks and its bookkeeping about both must not cross a fork: the child
//! would believe that it holds locks that only its parent has. So the gate closes before a fork,
//! every operation is let finish, every connection is closed, and the child begins with a state
//! of its own in which nothing was ever open. Both open again what they need.
//!
//! A lock file stays open in the parent, which may hold it. The child closes its copy, or the lock
//! would outlive the parent.

use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use crewai_native_sdk::atexit;

use crate::engine::{Engine, Schema};

/// How often a fork looks whether a transaction that it waits for is overdue.
const FORK_WAIT: Duration = Duration::from_millis(50);

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// The state of one process. Never freed: a forked child leaves its parent's behind, because
/// other threads of the parent may have been inside it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    engines: Mutex<HashMap<PathBuf, Weak<Engine>>>,
    /// The lock files that are open. Only locked by who is inside the gate.
    lock_files: Mutex<HashSet<RawFd>>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    inside: usize,
    closed: usize,
    /// Threads that have a transaction open: the fork waits for them, so they must not for it.
    open: Vec<u64>,
}

/// The right to use connections, until dropped. Must not be taken twice by one thread, unless the
/// first one is for a transaction.
#[derive(Debug)]
pub struct Pass {
    process: &'static Process,
    open: Option<u64>,
}

impl Pass {
    /// Says that it is for a transaction that a thread has open.
    pub fn opened_by(mut self, thread: u64) -> Self {
        self.open = Some(thread);
        let mut gate = self
            .process
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        gate.open.push(thread);
        drop(gate);
        self
    }
}

/// The thread that runs, as Python's `threading.get_ident()` has it.
pub fn this_thread() -> u64 {
    // SAFETY: it has no conditions.
    let thread = unsafe { libc::pthread_self() };
    thread as u64
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
            lock_files: Mutex::default(),
            gate: Mutex::default(),
            changed: Condvar::new(),
        }));
        match CURRENT.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                atexit::register(|| Self::current().close_all());
                // SAFETY: `fresh` was just allocated, and is never freed once it is published.
                unsafe { &*fresh }
            }
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
    pub fn engine(&self, path: &Path, schema: &'static Schema) -> Arc<Engine> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engines.get(path).and_then(Weak::upgrade) {
            return engine;
        }
        engines.retain(|_, engine| engine.strong_count() > 0);
        let engine = Arc::new(Engine::new(path.to_owned(), schema));
        engines.insert(path.to_owned(), Arc::downgrade(&engine));
        engine
    }

    /// Says that a lock file was opened. The caller is inside the gate.
    pub fn opened(&self, file: RawFd) {
        let mut files = self
            .lock_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        files.insert(file);
    }

    /// Says that a lock file is about to be closed. The caller is inside the gate.
    pub fn closing(&self, file: RawFd) {
        let mut files = self
            .lock_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        files.remove(&file);
    }

    /// When the interpreter exits: lets every write finish and closes every file.
    pub fn close_all(&self) {
        for engine in self.live() {
            engine.close();
        }
    }

    fn live(&self) -> Vec<Arc<Engine>> {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.values().filter_map(Weak::upgrade).collect()
    }

    /// Waits while a fork is under way.
    pub fn enter(&'static self) -> Pass {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        while gate.closed > 0 && !gate.open.contains(&this_thread()) {
            gate = self
                .changed
                .wait(gate)
                .unwrap_or_else(PoisonError::into_inner);
        }
        gate.inside += 1;
        drop(gate);
        Pass {
            process: self,
            open: None,
        }
    }

    /// Before a fork: lets every operation finish, then closes every connection.
    pub fn before_fork(&self) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.closed += 1;
        while gate.inside > 0 {
            drop(gate);
            // A transaction that this thread has open would never end.
            for engine in self.live() {
                engine.before_fork();
            }
            gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            if gate.inside > 0 {
                let waited = self.changed.wait_timeout(gate, FORK_WAIT);
                gate = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        drop(gate);
        for engine in self.live() {
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

/// After a fork, in the child: closes its copies of the parent's lock files.
pub fn after_fork_in_child() {
    // SAFETY: the pointer is null or came from `Box::leak` in `begin`, and is never freed.
    let Some(parent) = (unsafe { CURRENT.load(Ordering::Acquire).as_ref() }) else {
        return;
    };
    if parent.pid == std::process::id() {
        return;
    }
    // Nobody was inside the gate, so nobody held this lock.
    let files = parent
        .lock_files
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for &file in files.iter() {
        // SAFETY: the descriptor was open in the parent, and so is its copy here. What would
        // close it belongs to the parent's state, which this process never uses.
        unsafe { libc::close(file) };
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut gate = self
            .process
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        gate.inside -= 1;
        if let Some(thread) = self.open {
            let place = gate.open.iter().position(|other| *other == thread);
            place.map(|place| gate.open.swap_remove(place));
        }
        if gate.closed > 0 {
            self.process.changed.notify_all();
        }
    }
}
