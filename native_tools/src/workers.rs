//! Worker processes: each leads a process group of its own, talks over one socket, and is killed
//! with everything that it started.
//!
//! Nothing is forked but to start another program: a child starts from a fresh interpreter, so no
//! lock, thread or connection of the parent comes along.
//!
//! A message is the byte [`FRAME`], its length as eight bytes, least significant first, and that
//! many bytes. Whatever else comes from a worker is taken for its last words: Python's
//! `faulthandler` writes there when a worker crashes.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

use crewai_native_sdk::process::PerProcess;

mod descendants;

/// The first byte of every message.
pub const FRAME: u8 = 1;

/// Bytes before a message: [`FRAME`] and the length.
const HEADER: usize = 9;
/// As much of a worker's last words as is kept, in bytes.
const MOST_WORDS: usize = 16 * 1024;
/// How long a worker that closed its end may take to be over.
const ENDING: Duration = Duration::from_secs(1);
/// How often a process is looked at where the system cannot tell when it ends.
const LOOK: Duration = Duration::from_millis(20);
/// How long to wait for anything until it is time to see to signals. One that comes just before a
/// wait does not end it.
const SIGNALS: Duration = Duration::from_millis(50);
/// How often a worker looks whether its parent is still the one that started it. The end of the
/// socket tells it earlier, unless something else keeps the parent's end open.
const ORPHANED: Duration = Duration::from_secs(2);

/// Killed processes that were not yet over when they were let go. Waiting for one could last: the
/// kernel ends no process that is inside a call to a device or a file server.
static UNBURIED: PerProcess<Mutex<Vec<Child>>> = PerProcess::new();

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it exited with.
    pub code: Option<i32>,
    /// What it wrote beside messages, cut to a reasonable length.
    pub words: String,
}

/// What has become of an [`Exchange`].
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The answer.
    Answered(Vec<u8>),
    /// The deadline is over, and the worker is still at it.
    TimedOut,
    /// The worker announced an answer of so many bytes, more than were allowed.
    TooLarge(u64),
    /// The worker is no more, or no longer speaks.
    Ended(End),
    /// It is time to see to signals; to be continued.
    Interrupted,
}

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    /// The process that started it. One that is forked from that inherits this value, but not the
    /// worker.
    owner: u32,
    child: Option<Child>,
    pid: i32,
    socket: UnixStream,
    /// Readable when the process is over, where the system offers that.
    over: Option<OwnedFd>,
}

impl Worker {
    /// Starts `program`, with the other end of the socket as its standard input.
    pub fn start(program: &OsString, arguments: &[OsString]) -> io::Result<Self> {
        bury();
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0)
            .spawn()?;
        let pid = child.id() as i32;
        Ok(Self {
            owner: process::id(),
            child: Some(child),
            pid,
            socket,
            over: pidfd(pid),
        })
    }

    /// Its process id, which is also the id of its group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it can take a message: it is alive and has nothing unasked to say.
    pub fn ready(&self) -> bool {
        let mut waiting = [poll_for(self.socket.as_raw_fd(), libc::POLLIN)];
        self.is_mine()
            && self.child.is_some()
            && self.exited().is_none()
            && matches!(poll(&mut waiting, Duration::ZERO), Ok(0))
    }

    /// Kills the worker's group and, as far as they can be found, processes that it started and
    /// that left the group. Does not wait for them.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if !self.is_mine() {
            // Another process's child: not ours to kill, and waiting for it fails.
            mem::forget(child);
            return;
        }
        end_group(self.pid);
        if !matches!(child.try_wait(), Ok(Some(_))) {
            lock(UNBURIED.get_or_init(Mutex::default)).push(child);
        }
    }

    fn is_mine(&self) -> bool {
        self.owner == process::id()
    }

    /// How the process ended, if it has. Its id stays taken until `kill`, so that killing its group,
    /// here or elsewhere, cannot hit another one.
    fn exited(&self) -> Option<(Option<i32>, Option<i32>)> {
        // SAFETY: zeroes are a valid `siginfo_t`.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` outlives the call.
        let found =
            unsafe { libc::waitid(libc::P_PID, self.pid as libc::id_t, &raw mut info, options) };
        if found != 0 {
            // Somebody else has waited for it.
            return Some((None, None));
        }
        // SAFETY: the kernel has filled it in, or it is still zeroes.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        match info.si_code {
            _ if pid == 0 => None,
            libc::CLD_EXITED => Some((None, Some(status))),
            _ => Some((Some(status), None)),
        }
    }

    /// How the worker ended, which it is about to if it has not.
    fn end(&self, words: &[u8]) -> End {
        let until = Instant::now() + ENDING;
        let mut status = self.exited();
        while status.is_none() && Instant::now() < until {
            let mut waiting = Vec::new();
            waiting.extend(self.over.as_ref().map(|over| readable(over.as_raw_fd())));
            // Interrupted or not, the process is looked at again.
            let _ = poll(&mut waiting, LOOK);
            status = self.exited();
        }
        let (signal, code) = status.unwrap_or_default();
        End {
            signal,
            code,
            words: String::from_utf8_lossy(words).trim().to_owned(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One message to a worker and its answer.
pub struct Exchange<'a> {
    message: &'a [u8],
    header: [u8; HEADER],
    sent: usize,
    received: Vec<u8>,
    most: u64,
    deadline: Option<Instant>,
    /// When the worker began to say something that is no message.
    lost: Option<Instant>,
}

impl<'a> Exchange<'a> {
    /// Prepares to send `message` and to take an answer of `most` bytes until `deadline`.
    pub fn new(message: &'a [u8], most: u64, deadline: Option<Instant>) -> Self {
        let mut header = [FRAME; HEADER];
        header[1..].copy_from_slice(&(message.len() as u64).to_le_bytes());
        Self {
            message,
            header,
            sent: 0,
            received: Vec::new(),
            most,
            deadline,
            lost: None,
        }
    }

    /// Goes on until there is something to tell.
    pub fn advance(&mut self, worker: &mut Worker) -> io::Result<Progress> {
        if worker.child.is_none() || !worker.is_mine() {
            return Err(io::Error::new(
                ErrorKind::NotConnected,
                "the worker was killed, or is another process's",
            ));
        }
        loop {
            let sending = self.send(&worker.socket)?;
            match self.receive(&worker.socket)? {
                Received::Part => {}
                Received::Whole(answer) => return Ok(Progress::Answered(answer)),
                Received::TooLarge(length) => return Ok(Progress::TooLarge(length)),
                Received::Closed => {
                    let words = mem::take(&mut self.received);
                    return Ok(Progress::Ended(worker.end(&words)));
                }
            }
            let now = Instant::now();
            let mut left = self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Progress::TimedOut);
            }
            if self.received.first().is_some_and(|first| *first != FRAME) {
                // Last words, so its end is near; or a tool has written where it should not.
                let lost = now.duration_since(*self.lost.get_or_insert(now));
                if lost >= ENDING {
                    let words = mem::take(&mut self.received);
                    return Ok(Progress::Ended(worker.end(&words)));
                }
                let patience = ENDING.saturating_sub(lost);
                left = Some(left.map_or(patience, |left| left.min(patience)));
            }
            let events = libc::POLLIN | if sending { libc::POLLOUT } else { 0 };
            let mut waiting = vec![poll_for(worker.socket.as_raw_fd(), events)];
            let look = match &worker.over {
                Some(over) => {
                    waiting.push(readable(over.as_raw_fd()));
                    SIGNALS
                }
                None => LOOK.min(SIGNALS),
            };
            let ready = match poll(&mut waiting, left.map_or(look, |left| left.min(look))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    return Ok(Progress::Interrupted);
                }
                Err(error) => return Err(error),
                Ok(ready) => ready,
            };
            // A process that the worker left behind may hold the socket open: its end alone does
            // not tell. What it said before its end is read first.
            let over = match waiting.get(1) {
                Some(over) => over.revents != 0,
                None => worker.over.is_none() && worker.exited().is_some(),
            };
            if over && !self.readable_now(&worker.socket) {
                let words = mem::take(&mut self.received);
                return Ok(Progress::Ended(worker.end(&words)));
            }
            if ready == 0 {
                return Ok(Progress::Interrupted);
            }
        }
    }

    fn readable_now(&self, socket: &UnixStream) -> bool {
        let mut waiting = [readable(socket.as_raw_fd())];
        matches!(poll(&mut waiting, Duration::ZERO), Ok(1))
            && self.received.len() < self.whole().unwrap_or(MOST_WORDS)
    }

    /// Sends what the socket takes; returns whether there is more to send.
    fn send(&mut self, mut socket: &UnixStream) -> io::Result<bool> {
        while self.sent < HEADER + self.message.len() {
            let part = match self.header.get(self.sent..) {
                Some(header) if !header.is_empty() => header,
                _ => &self.message[self.sent - HEADER..],
            };
            match socket.write(part) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                // It is gone; reading says so, and what its last words were.
                Err(error) if is_gone(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// The length of the answer with its header, once that is known.
    fn whole(&self) -> Option<usize> {
        let length = self.received.get(1..HEADER)?.try_into().ok()?;
        if self.received[0] != FRAME {
            return None;
        }
        usize::try_from(u64::from_le_bytes(length))
            .ok()?
            .checked_add(HEADER)
    }

    fn receive(&mut self, mut socket: &UnixStream) -> io::Result<Received> {
        const PIECE: usize = 64 * 1024;
        loop {
            let speaks = self.received.first().is_none_or(|first| *first == FRAME);
            let missing = if !speaks {
                PIECE
            } else if self.received.len() < HEADER {
                HEADER - self.received.len()
            } else {
                let length = self.received[1..HEADER]
                    .try_into()
                    .map_or(u64::MAX, u64::from_le_bytes);
                match self.whole() {
                    Some(whole) if length <= self.most => whole - self.received.len(),
                    _ => return Ok(Received::TooLarge(length)),
                }
            };
            if missing == 0 {
                let mut answer = mem::take(&mut self.received);
                answer.drain(..HEADER);
                return Ok(Received::Whole(answer));
            }
            let before = self.received.len();
            self.received.resize(before + missing.min(PIECE), 0);
            let read = socket.read(&mut self.received[before..]);
            self.received
                .truncate(before + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(Received::Closed),
                Ok(_) if !speaks => self.received.truncate(MOST_WORDS),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Received::Part),
                Err(error) if is_gone(&error) => return Ok(Received::Closed),
                Err(error) => return Err(error),
            }
        }
    }
}

enum Received {
    Part,
    Whole(Vec<u8>),
    TooLarge(u64),
    Closed,
}

/// Makes this process end, with its group and what it started, when its parent does: `socket` is
/// its end of the parent's socket.
///
/// A thread waits for that, without Python, so it comes through whatever the worker is busy with.
/// Linux's `PR_SET_PDEATHSIG` is no substitute: it is sent when the *thread* ends that started the
/// worker, and to the worker alone.
pub fn follow_parent(socket: RawFd) -> io::Result<()> {
    // SAFETY: neither has preconditions.
    let (parent, me) = unsafe { (libc::getppid(), libc::getpid()) };
    descendants::adopt();
    thread::Builder::new()
        .name("crewai-native-follow".to_owned())
        .spawn(move || {
            loop {
                // No event is asked for: the end of the other side is always told.
                let mut waiting = [poll_for(socket, 0)];
                let told = poll(&mut waiting, ORPHANED);
                // SAFETY: no preconditions.
                let orphaned = unsafe { libc::getppid() } != parent;
                if waiting[0].revents & libc::POLLNVAL != 0 && !orphaned {
                    // The tool has closed it, which the parent sees, too.
                    thread::sleep(ORPHANED);
                } else if orphaned || matches!(told, Ok(1)) {
                    descendants::end(me);
                    // SAFETY: no preconditions; 0 is the caller's own group.
                    unsafe { libc::kill(0, libc::SIGKILL) };
                }
            }
        })?;
    Ok(())
}

/// Kills a group that this process's child leads, and what left it as far as that can be found.
pub fn end_group(leader: i32) {
    // Stopped first, so that it starts nothing while its descendants are looked for.
    // SAFETY: no preconditions. The child was not waited for, so its id, and its group's, is its.
    unsafe { libc::kill(-leader, libc::SIGSTOP) };
    descendants::end(leader);
    // SAFETY: as above.
    unsafe { libc::kill(-leader, libc::SIGKILL) };
}

/// Takes leave of killed processes that are over by now.
fn bury() {
    lock(UNBURIED.get_or_init(Mutex::default))
        .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

fn poll_for(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

fn readable(fd: RawFd) -> libc::pollfd {
    poll_for(fd, libc::POLLIN)
}

/// Waits for one of `waiting`; None is for ever. Returns how many are ready.
fn poll(waiting: &mut [libc::pollfd], patience: Duration) -> io::Result<usize> {
    // Rounded up: a rest of a millisecond would otherwise be waited for by turning round and round.
    let milliseconds = i32::try_from(patience.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    // SAFETY: pointer and length are those of the slice.
    let ready = unsafe {
        libc::poll(
            waiting.as_mut_ptr(),
            waiting.len() as libc::nfds_t,
            milliseconds,
        )
    };
    usize::try_from(ready).map_err(|_| io::Error::last_os_error())
}

/// A file descriptor that is readable once the process is over, where the system has such.
#[cfg(target_os = "linux")]
fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: no preconditions; an old kernel refuses.
    let found = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(found).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: it is open, and nobody else's. The kernel has set close-on-exec.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(not(target_os = "linux"))]
fn pidfd(_: i32) -> Option<OwnedFd> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that runs a shell script, whose standard input is the socket. Perl-free: `dd` and
    /// `printf` are enough to speak.
    fn worker(script: &str) -> Worker {
        Worker::start(&"/bin/sh".into(), &["-c".into(), script.into()]).unwrap()
    }

    fn ask(worker: &mut Worker, message: &[u8], most: u64, timeout: Option<Duration>) -> Progress {
        let mut exchange = Exchange::new(message, most, timeout.map(|t| Instant::now() + t));
        loop {
            match exchange.advance(worker).unwrap() {
                Progress::Interrupted => {}
                progress => return progress,
            }
        }
    }

    fn is_alive(pid: i32) -> bool {
        // A zombie whose parent is slow to bury it still has an id, but no command line.
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
    }

    fn until(condition: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < limit, "waited for 30 s");
            thread::yield_now();
        }
    }

    const ECHO: &str = "dd bs=1 count=14 status=none >&0; sleep 100";

    #[test]
    fn a_message_comes_back() {
        let mut worker = worker(ECHO);
        assert!(worker.ready());
        let answer = ask(&mut worker, b"hello", 5, None);
        assert_eq!(answer, Progress::Answered(b"hello".to_vec()));
        assert!(worker.ready());
    }

    #[test]
    fn an_answer_that_is_too_large_is_not_read() {
        let mut worker = worker(ECHO);
        let answer = ask(&mut worker, b"hello", 4, None);
        assert_eq!(answer, Progress::TooLarge(5));
    }

    #[test]
    fn signals_are_seen_to_while_nothing_happens() {
        let mut worker = worker("sleep 100");
        let mut exchange = Exchange::new(b"hello", 5, None);
        // A signal that came before the wait would not end it.
        for _ in 0..3 {
            assert_eq!(
                exchange.advance(&mut worker).unwrap(),
                Progress::Interrupted
            );
        }
    }

    #[test]
    fn a_deadline_holds_for_sending_too() {
        let mut worker = worker("sleep 100");
        let large = vec![0; 8 << 20];
        let answer = ask(&mut worker, &large, 4, Some(Duration::from_millis(50)));
        assert_eq!(answer, Progress::TimedOut);
    }

    #[test]
    fn the_end_says_how() {
        for (script, signal, code, words) in [
            ("exit 3", None, Some(3), ""),
            ("kill -SEGV $$", Some(libc::SIGSEGV), None, ""),
            ("echo alas >&0; exit 1", None, Some(1), "alas"),
            // What it leaves behind holds its end of the socket open.
            ("sleep 100 <&0 & exit 4", None, Some(4), ""),
        ] {
            let mut worker = worker(script);
            let Progress::Ended(end) = ask(&mut worker, b"hello", 4, None) else {
                panic!("{script} has not ended");
            };
            assert_eq!(
                (end.signal, end.code, end.words.as_str()),
                (signal, code, words),
                "{script}"
            );
            assert!(!worker.ready());
        }
    }

    #[test]
    fn a_closed_socket_is_an_end() {
        let mut worker = worker("exec 0<&- <&-; sleep 100");
        let Progress::Ended(end) = ask(&mut worker, b"hello", 4, None) else {
            panic!("it has not ended");
        };
        assert_eq!((end.signal, end.code), (None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn killed_with_its_children() {
        let file = tempfile();
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $! >{0}; setsid sleep 1000 & echo $! >>{0}; echo . >>{0}; wait",
            file.display()
        );
        let mut worker = worker(&script);
        let children = || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let done = text.ends_with(".\n");
            let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            done.then_some(pids)
        };
        until(|| children().is_some());
        let children = children().unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(children.len(), 2);
        worker.kill();
        until(|| !children.iter().any(|pid| is_alive(*pid)));
        until(|| {
            bury();
            lock(UNBURIED.get_or_init(Mutex::default))
                .iter()
                .all(|child| child.id() != worker.pid as u32)
        });
    }

    #[test]
    fn another_process_does_not_kill_it() {
        let mut worker = worker("sleep 100");
        let mut inherited = Worker {
            owner: worker.owner + 1,
            child: worker.child.take(),
            pid: worker.pid,
            socket: worker.socket.try_clone().unwrap(),
            over: None,
        };
        inherited.kill();
        // SAFETY: no preconditions.
        assert_eq!(unsafe { libc::kill(worker.pid, 0) }, 0);
        end_group(worker.pid);
        // SAFETY: as above.
        unsafe { libc::waitpid(worker.pid, std::ptr::null_mut(), 0) };
    }

    #[cfg(target_os = "linux")]
    fn tempfile() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("crewai-native-workers-{}", process::id()))
    }
}
