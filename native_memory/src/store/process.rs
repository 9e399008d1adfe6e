//! What a process shares: one engine per file, and the gate that a fork goes through.
//!
//! SQLite's connections, its locks and its bookkeeping about both must not cross a fork: the child
//! would believe that it holds locks that only its parent has. So the gate closes before a fork,
//! every operation is let finish, every connection is closed, and the child begins with a state
//! of its own in which nothing was ever open. Both open again what they need.
//!
//! Work in the background goes in steps, between which it asks whether the process forks or ends.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crewai_native_sdk::atexit::{self, STOP_LIMIT};

use super::engine::Engine;

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// The state of one process. Never freed: a forked child leaves its parent's behind, because
/// other threads of the parent may have been inside it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    engines: Mutex<HashMap<PathBuf, Weak<Engine>>>,
    /// How many of them may have connections open.
    open_limit: usize,
    /// Uses of any of them so far.
    uses: AtomicU64,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// How many searches may run at once.
    scan_limit: usize,
    scans: Mutex<Scans>,
    scanned: Condvar,
    background: Mutex<Background>,
    ended: Condvar,
}

/// Searches of a process.
#[derive(Debug, Default)]
struct Scans {
    running: usize,
    waiting: usize,
}

/// Threads that nobody waits for, but the end of the process.
#[derive(Debug, Default)]
struct Background {
    running: usize,
    registered: bool,
    stopping: bool,
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

/// A store has some seven files open. More than half of those that a process may have are left to the
/// rest of the program.
#[cfg(unix)]
fn open_at_once() -> usize {
    const SHARE: libc::rlim_t = 16;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the system writes to a place that is there.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    let files = if known { limit.rlim_cur } else { 256 };
    (files / SHARE).clamp(8, 256) as usize
}

#[cfg(not(unix))]
fn open_at_once() -> usize {
    256
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

    fn fresh() -> Self {
        Self {
            pid: std::process::id(),
            engines: Mutex::default(),
            open_limit: open_at_once(),
            uses: AtomicU64::new(0),
            gate: Mutex::default(),
            changed: Condvar::new(),
            scan_limit: scans_at_once(),
            scans: Mutex::default(),
            scanned: Condvar::new(),
            background: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    fn begin(seen: *mut Self) -> &'static Self {
        let fresh = Box::into_raw(Box::new(Self::fresh()));
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

    /// The number of a use of an engine, higher than those before it.
    pub fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// Before a connection is opened: closes those of the engines that were used least recently, where
    /// many are open. A program may have a store for each of its users.
    pub fn make_room(&'static self) {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if engines.len() < self.open_limit {
            return;
        }
        let mut open: Vec<Arc<Engine>> = engines
            .values()
            .filter_map(Weak::upgrade)
            .filter(|engine| engine.is_open())
            .collect();
        drop(engines);
        open.sort_by_key(|engine| engine.last_use());
        let many = (open.len() + 1).saturating_sub(self.open_limit);
        for engine in &open[..many] {
            engine.rest();
        }
        for engine in open {
            // Whoever had it may have let go of it meanwhile.
            self.let_go(engine);
        }
    }

    /// Takes back what [`Process::engine`] gave. The last to let go of a file has its log written
    /// back, in the background: that waits for the disk, and nobody waits for it.
    pub fn let_go(&'static self, engine: Arc<Engine>) {
        // Under the lock, so that of two that let go at once one is the last.
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&engine) > 1 {
            drop(engine);
            return;
        }
        drop(engines);
        let closing = move || {
            let _pass = self.enter();
            drop(engine);
        };
        // Where no thread can be had, it was dropped, and thereby closed, at once.
        drop(self.aside("crewai-native-close", closing));
    }

    /// Waits until a processor is free for a search.
    pub fn scan(&self) -> Scan<'_> {
        let mut scans = self.scans();
        scans.waiting += 1;
        while scans.running >= self.scan_limit {
            scans = self
                .scanned
                .wait(scans)
                .unwrap_or_else(PoisonError::into_inner);
        }
        scans.waiting -= 1;
        scans.running += 1;
        Scan(self)
    }

    fn scans(&self) -> MutexGuard<'_, Scans> {
        self.scans.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Runs `work` in a thread of its own; not at all if the process is ending. The work must come
    /// to an end when [`Process::is_ending`] says so.
    pub fn aside(
        &'static self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let mut background = self.background();
        if background.stopping || atexit::exiting() {
            return Ok(());
        }
        if !background.registered {
            background.registered = true;
            atexit::register(|| self.end());
        }
        background.running += 1;
        let running = Running(self);
        // If no thread can be started, dropping what it would have run counts it out again, for
        // which the lock must be free.
        drop(background);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _running = running;
                work();
            })
            .map(|_| ())
    }

    /// Whether the process is ending: work in the background is to stop.
    pub fn is_ending(&self) -> bool {
        self.background().stopping
    }

    /// Whether a fork waits for operations to finish.
    pub fn is_forking(&self) -> bool {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.closed > 0
    }

    /// Has the work in the background stop, and waits for it.
    fn end(&self) {
        let mut background = self.background();
        background.stopping = true;
        // Work that takes a step longer than this only computes, or writes what nobody reads
        // before it is whole.
        drop(
            self.ended
                .wait_timeout_while(background, STOP_LIMIT, |background| background.running > 0),
        );
    }

    fn background(&self) -> MutexGuard<'_, Background> {
        self.background
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// A thread in the background, until dropped.
struct Running(&'static Process);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.background().running -= 1;
        self.0.ended.notify_all();
    }
}

impl Scan<'_> {
    /// Whether the search may use every processor: no other one is going on or waiting, and there
    /// are more than two. Two were measured to be no faster than one, which nearly fills the
    /// memory's bandwidth, and would leave none to the program.
    pub fn may_spread(&self) -> bool {
        let scans = self.0.scans();
        self.0.scan_limit > 1 && scans.running == 1 && scans.waiting == 0
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        self.0.scans().running -= 1;
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_end_of_the_process_stops_work_in_the_background() {
        let process: &'static Process = Box::leak(Box::new(Process::fresh()));
        let (started, begun) = mpsc::channel();
        for _ in 0..3 {
            let started = started.clone();
            process
                .aside("test", move || {
                    started.send(()).unwrap();
                    while !process.is_ending() {
                        std::thread::yield_now();
                    }
                })
                .unwrap();
        }
        (0..3).for_each(|_| begun.recv().unwrap());
        assert!(!process.is_ending());
        process.end();
        assert_eq!(process.background().running, 0);
        process.aside("test", || unreachable!()).unwrap();
        assert_eq!(process.background().running, 0);
    }

    #[test]
    fn a_search_spreads_only_where_nobody_is_in_its_way() {
        let limited = |scan_limit| -> &'static Process {
            Box::leak(Box::new(Process {
                scan_limit,
                ..Process::fresh()
            }))
        };
        assert!(!limited(1).scan().may_spread());
        let process = limited(2);
        let scan = process.scan();
        assert!(scan.may_spread());
        let second = process.scan();
        assert!(!scan.may_spread());
        let third = std::thread::spawn(|| drop(process.scan()));
        while process.scans().waiting == 0 {
            std::thread::yield_now();
        }
        process.scans().running -= 1; // as if the second had ended, and the third not yet begun
        assert!(!scan.may_spread());
        process.scans().running += 1;
        drop(second);
        third.join().unwrap();
        assert!(scan.may_spread());
    }

    #[test]
    fn a_fork_shows_to_what_it_waits_for() {
        let process: &'static Process = Box::leak(Box::new(Process::fresh()));
        let pass = process.enter();
        std::thread::scope(|scope| {
            scope.spawn(|| process.before_fork());
            while !process.is_forking() {
                std::thread::yield_now();
            }
            drop(pass);
        });
        process.after_fork();
        assert!(!process.is_forking());
        drop(process.enter());
    }
}
