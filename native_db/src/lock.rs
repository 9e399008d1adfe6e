//! The locks by which threads and processes take turns: a locked file for each name.
//!
//! Threads of one process queue in memory, in the order in which they came, and hand the locked
//! file on. Towards other processes it is `flock` on the file, as in CrewAI's own code. The kernel
//! has no `flock` that gives up after a time, so a thread does the waiting: one for each name that
//! another process holds, and only as long as it does. Whoever gives up leaves the queue; when the
//! lock comes and nobody is left, it is released.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crewai_native_sdk::process::{self, PerProcess};

use crate::process::Process;

/// How long a process hands the lock on among its own threads before others may have it.
const SHARE: Duration = Duration::from_millis(50);

/// How many locks that nobody uses are kept, each with an open file.
const IDLE: usize = 64;

/// By the spelling of the path: to compare and hash paths by their parts takes as long as a system call.
static LOCKS: PerProcess<Mutex<HashMap<OsString, Arc<NamedLock>>>> = PerProcess::new();

/// The result of what touches a lock's file.
pub type Result<T> = std::result::Result<T, Arc<io::Error>>;

/// A lock, as the threads of this process share it.
#[derive(Debug)]
pub struct NamedLock {
    path: PathBuf,
    turnstile: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// The file, unlocked, as it was last used.
    spare: Option<LockFile>,
    waiting: VecDeque<Arc<Place>>,
    /// Whether a thread waits for other processes.
    seeking: bool,
}

#[derive(Debug)]
struct Held {
    file: LockFile,
    since: Instant,
}

/// A place in the queue.
#[derive(Debug, Default)]
struct Place {
    outcome: Mutex<Option<Result<()>>>,
    decided: Condvar,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum Attempt {
    /// It is held.
    Held(Guard),
    /// It is not, yet.
    Waiting(Waiting),
}

/// Holds the lock until dropped, on whichever thread. Dropped by a forked child it does nothing:
/// the lock is its parent's.
#[derive(Debug)]
pub struct Guard {
    lock: Arc<NamedLock>,
    pid: u32,
}

/// Waits for the lock until dropped.
#[derive(Debug)]
pub struct Waiting {
    place: Arc<Place>,
    lock: Option<Arc<NamedLock>>,
    pid: u32,
}

impl NamedLock {
    /// The lock that the file at `path` stands for.
    pub fn at(path: &Path) -> Arc<Self> {
        let locks = LOCKS.get_or_init(Mutex::default);
        let mut locks = locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(path.as_os_str()) {
            return Arc::clone(lock);
        }
        if locks.len() >= IDLE {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        let mut turnstile = path.as_os_str().to_owned();
        turnstile.push("-queue");
        let lock = Arc::new(Self {
            path: path.to_owned(),
            turnstile: turnstile.into(),
            state: Mutex::default(),
        });
        locks.insert(path.as_os_str().to_owned(), Arc::clone(&lock));
        lock
    }

    /// Takes the lock if it is free, or queues for it.
    pub fn acquire(self: &Arc<Self>) -> Result<Attempt> {
        let mut state = self.state();
        let free = state.held.is_none() && !state.seeking && state.waiting.is_empty();
        if free && let Some(file) = self.take_now(&mut state).map_err(Arc::new)? {
            state.held = Some(Held {
                file,
                since: Instant::now(),
            });
            return Ok(Attempt::Held(self.guard()));
        }
        let place = Arc::new(Place::default());
        state.waiting.push_back(Arc::clone(&place));
        if state.held.is_none() && !state.seeking {
            self.seek(&mut state);
        }
        Ok(Attempt::Waiting(Waiting {
            place,
            lock: Some(Arc::clone(self)),
            pid: process::id(),
        }))
    }

    /// The process that holds the lock, as far as the system tells.
    pub fn holder(&self) -> Option<u32> {
        if self.state().held.is_some() {
            return Some(process::id());
        }
        holder_of(&self.path)
    }

    /// Takes the lock unless another process has it, or waits for it.
    fn take_now(&self, state: &mut State) -> io::Result<Option<LockFile>> {
        // Where there is no turnstile nobody ever had to wait.
        if self.turnstile.exists() {
            let turnstile = LockFile::create(&self.turnstile)?;
            // Shared: two who look must not take one another for somebody who waits.
            if !turnstile.lock(libc::LOCK_SH | libc::LOCK_NB)? {
                return Ok(None);
            }
        }
        let file = match state.spare.take() {
            // Unless somebody has tidied up the directory.
            Some(file) if file.is_at(&self.path) => file,
            _ => LockFile::create(&self.path)?,
        };
        Ok(file.lock(libc::LOCK_EX | libc::LOCK_NB)?.then_some(file))
    }

    /// Waits for other processes on a thread of its own.
    fn seek(self: &Arc<Self>, state: &mut State) {
        let lock = Arc::clone(self);
        let started = thread::Builder::new()
            .name("crewai-native-lock".to_owned())
            .spawn(move || lock.found(lock.take()));
        match started {
            Ok(_) => state.seeking = true,
            Err(error) => state.refuse(&Arc::new(error)),
        }
    }

    /// Takes the lock when it is this process's turn.
    ///
    /// A lone file lock goes to whoever asks first when it is free, and that is the process that
    /// just released it, for ever if it asks in a loop. So one waits for the turnstile, holds it
    /// while waiting for the lock, and whoever wants the lock meanwhile comes behind.
    fn take(&self) -> io::Result<LockFile> {
        let turnstile = LockFile::create(&self.turnstile)?;
        turnstile.lock(libc::LOCK_EX)?;
        let file = LockFile::create(&self.path)?;
        file.lock(libc::LOCK_EX)?;
        Ok(file)
    }

    fn found(&self, found: io::Result<LockFile>) {
        let mut state = self.state();
        state.seeking = false;
        match found {
            Ok(file) => {
                if let Some(first) = state.waiting.pop_front() {
                    state.held = Some(Held {
                        file,
                        since: Instant::now(),
                    });
                    first.decide(Ok(()));
                } else {
                    // Everybody gave up. Released with the queue open to those who come now.
                    drop(state);
                    drop(file);
                }
            }
            Err(error) => state.refuse(&Arc::new(error)),
        }
    }

    fn release(self: &Arc<Self>) {
        let mut state = self.state();
        let Some(held) = state.held.take() else {
            return;
        };
        if state.waiting.is_empty() {
            // If that fails, the file is dropped, which releases it as well.
            if held.file.lock(libc::LOCK_UN).is_ok() {
                state.spare = Some(held.file);
            }
            return;
        }
        if held.since.elapsed() < SHARE
            && let Some(next) = state.waiting.pop_front()
        {
            state.held = Some(held);
            next.decide(Ok(()));
            return;
        }
        self.seek(&mut state);
        drop(state);
        drop(held);
    }

    fn guard(self: &Arc<Self>) -> Guard {
        Guard {
            lock: Arc::clone(self),
            pid: process::id(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refuse(&mut self, error: &Arc<io::Error>) {
        for place in self.waiting.drain(..) {
            place.decide(Err(Arc::clone(error)));
        }
    }
}

impl Place {
    fn decide(&self, outcome: Result<()>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.decided.notify_one();
    }
}

impl Waiting {
    /// Waits at most `limit`; the lock, or `None` if it did not come.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<Guard>> {
        let outcome = self
            .place
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut outcome, _) = self
            .place
            .decided
            .wait_timeout_while(outcome, limit, |outcome| outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match outcome.take() {
            None => Ok(None),
            Some(decided) => {
                drop(outcome);
                let lock = self.lock.take();
                decided?;
                Ok(lock.map(|lock| lock.guard()))
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else {
            return;
        };
        if self.pid != process::id() {
            std::mem::forget(lock);
            return;
        }
        let mut state = lock.state();
        state
            .waiting
            .retain(|place| !Arc::ptr_eq(place, &self.place));
        drop(state);
        // It may have come in the last moment.
        let outcome = self
            .place
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Ok(())) = outcome {
            lock.release();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.pid == process::id() {
            self.lock.release();
        } else {
            // What the lock refers to is the parent's.
            std::mem::forget(Arc::clone(&self.lock));
        }
    }
}

/// An open file, which a fork takes into account. Unlocked when dropped.
#[derive(Debug)]
struct LockFile {
    file: Option<File>,
    identity: (u64, u64),
}

impl LockFile {
    fn create(path: &Path) -> io::Result<Self> {
        Self::open(path, OpenOptions::new().append(true).create(true)).or_else(|error| {
            match error.kind() {
                // Another user's file cannot be written; it can be locked all the same.
                io::ErrorKind::PermissionDenied => {
                    Self::open(path, OpenOptions::new().read(true)).map_err(|_| error)
                }
                _ => Err(error),
            }
        })
    }

    fn open(path: &Path, how: &OpenOptions) -> io::Result<Self> {
        let process = Process::current();
        let _pass = process.enter();
        let file = how.open(path)?;
        let identity = identity(&file.metadata()?);
        process.opened(file.as_raw_fd());
        Ok(Self {
            file: Some(file),
            identity,
        })
    }

    /// Whether it is still the file that others find at `path`.
    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Locks or unlocks the file; whether it did, where `how` says not to wait.
    fn lock(&self, how: libc::c_int) -> io::Result<bool> {
        self.file
            .as_ref()
            .map_or(Ok(false), |file| flock(file, how))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        let process = Process::current();
        let _pass = process.enter();
        process.closing(file.as_raw_fd());
        // Not by closing alone: a child that is just being started may still have a copy. The
        // only failure is a descriptor that is not open.
        let _ = flock(&file, libc::LOCK_UN);
    }
}

fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn flock(file: &File, how: libc::c_int) -> io::Result<bool> {
    loop {
        // SAFETY: the descriptor is open as long as `file` is.
        if unsafe { libc::flock(file.as_raw_fd(), how) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(false),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// The process that holds the lock of a file, as far as the system tells.
pub fn holder_of(path: &Path) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    let (major, minor) = (libc::major(file.dev()), libc::minor(file.dev()));
    let (device, inode) = (format!("{major:02x}:{minor:02x}"), file.ino().to_string());
    // As in "12: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF"; who waits has "->" before
    // "FLOCK". Some file systems state another device here than for the file.
    let mut holders = Vec::new();
    for line in fs::read_to_string("/proc/locks").ok()?.lines() {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        if let (Some(pid), Some(place)) = (words.nth(2), words.next())
            && let Some((on, number)) = place.rsplit_once(':')
            && number == inode
            && let Ok(pid) = pid.parse()
        {
            holders.push((on != device, pid));
        }
    }
    holders.into_iter().min().map(|(_, pid)| pid)
}
