//! A call on a thread of its own, whose caller can leave before it ends.
//!
//! No thread is ever joined: a caller waits for the answer, not for the thread. When its time is
//! up it leaves, and the call goes on *abandoned*, until it ends by itself or with the process.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crewai_native_sdk::process::{self, PerProcess};
use tokio::sync::oneshot;

use crate::admission::Place;

/// Calls of this process that go on without a caller.
static ABANDONED: PerProcess<AtomicUsize> = PerProcess::new();

/// Returns how many calls of this process go on without a caller.
pub fn abandoned() -> usize {
    ABANDONED
        .get()
        .map_or(0, |count| count.load(Ordering::Relaxed))
}

fn count_abandoned(change: isize) {
    ABANDONED
        .get_or_init(AtomicUsize::default)
        .fetch_add(change as usize, Ordering::Relaxed);
}

/// How often a caller looks for an answer before it falls asleep: for some ten microseconds.
const LOOKS: usize = 500;

/// How a caller's wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The call ended.
    Done,
    /// Its time was up first.
    TimedOut,
    /// Somebody cancelled it first.
    Cancelled,
}

/// Where a call comes from.
#[derive(Debug, Default, Clone)]
pub struct Origin {
    /// The tool that is called.
    pub tool: Arc<str>,
    /// The call that it is made inside of.
    pub outer: Option<Weak<Ticket>>,
    /// The event loop that runs where it is made, by any number but 0.
    pub event_loop: u64,
    /// Whether it is awaited on that event loop; otherwise it holds the loop up.
    pub awaited: bool,
}

/// One call: when it must be answered, and who answers it.
#[derive(Debug)]
pub struct Ticket {
    origin: Origin,
    started: Instant,
    deadline: Option<Instant>,
    cancelled: AtomicBool,
    state: Mutex<State>,
    settled: Condvar,
    /// Whether there is a verdict: for who looks without the lock.
    answered: AtomicBool,
    pid: u32,
}

#[derive(Debug, Default)]
struct State {
    answer: Option<oneshot::Sender<Verdict>>,
    /// Whether a thread works on it.
    running: bool,
    verdict: Option<Verdict>,
    /// What it holds of the queues that it came through.
    places: Vec<Place>,
    /// Whether it needs no places any more.
    left: bool,
}

impl Ticket {
    /// Starts a call that must be answered in so much time, or whenever it ends.
    pub fn new(time: Option<Duration>) -> Self {
        Self::of(Origin::default(), time)
    }

    /// As [`new`](Self::new), for a call that comes from somewhere.
    pub fn of(origin: Origin, time: Option<Duration>) -> Self {
        let started = Instant::now();
        Self {
            origin,
            started,
            deadline: time.map(|time| started + time),
            cancelled: AtomicBool::new(false),
            state: Mutex::default(),
            settled: Condvar::new(),
            answered: AtomicBool::new(false),
            pid: process::id(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where it comes from.
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns what tells it from others, as long as it exists.
    pub fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Returns whether there is a verdict, so that nobody waits for it any more.
    pub fn is_settled(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Returns whether it has ended, and gave back its places.
    pub fn has_left(&self) -> bool {
        self.state().left
    }

    /// Returns whether it holds places.
    pub fn holds_places(&self) -> bool {
        !self.state().places.is_empty()
    }

    /// Returns the time since it started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns when it must be answered.
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns whether its caller has left or was told to.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Says that a thread has it: if the caller leaves from now on, it is abandoned.
    ///
    /// False: it was cancelled already, and nothing must run.
    pub fn start(&self) -> bool {
        let mut state = self.state();
        state.running = state.verdict.is_none();
        state.running
    }

    /// Says that it has ended, and gives back its places. False: its caller has left.
    pub fn finish(&self) -> bool {
        // In a child that the call itself has forked nobody waits.
        if self.pid != process::id() {
            return false;
        }
        // First: who has the answer may count on the places.
        self.leave();
        self.settle(Verdict::Done)
    }

    /// Keeps a place until it has ended.
    pub fn keep(self: &Arc<Self>, mut place: Place) {
        place.is_held_by(self);
        let mut state = self.state();
        if !state.left {
            state.places.push(place);
        }
    }

    /// Gives back its places, and those that it may be given yet.
    pub fn leave(&self) {
        let mut state = self.state();
        state.left = true;
        let places = std::mem::take(&mut state.places);
        drop(state);
        // Whoever waits for one is woken, outside of the lock.
        drop(places);
    }

    /// Gives back its places, unless it runs: then it does so when it ends, with or without a
    /// caller.
    pub fn leave_unless_running(&self) {
        if !self.state().running {
            self.leave();
        }
    }

    /// Lets its caller go. False: it had been answered.
    pub fn cancel(&self) -> bool {
        self.settle(Verdict::Cancelled)
    }

    /// Settles it once and for all, unless it is settled.
    fn settle(&self, verdict: Verdict) -> bool {
        let mut state = self.state();
        if verdict != Verdict::Done {
            self.cancelled.store(true, Ordering::Relaxed);
        }
        if state.verdict.is_some() {
            if verdict == Verdict::Done && state.running {
                state.running = false;
                drop(state);
                count_abandoned(-1);
            }
            return false;
        }
        state.verdict = Some(verdict);
        self.answered.store(true, Ordering::Release);
        if verdict != Verdict::Done && state.running {
            count_abandoned(1);
        }
        let answer = state.answer.take();
        drop(state);
        self.settled.notify_all();
        if let Some(answer) = answer {
            // A caller that was interrupted waits no more.
            let _ = answer.send(verdict);
        }
        true
    }

    /// Looks for an answer for about as long as it takes to fall asleep and be woken.
    fn look(&self) {
        for _ in 0..LOOKS {
            if self.answered.load(Ordering::Acquire) {
                return;
            }
            hint::spin_loop();
        }
    }

    /// Waits until it is settled, by its deadline at the latest, and no longer than `patience`:
    /// None is that.
    pub fn wait(&self, patience: Duration) -> Option<Verdict> {
        self.look();
        let left = self.deadline.map_or(patience, |deadline| {
            patience.min(deadline.saturating_duration_since(Instant::now()))
        });
        let (state, _) = self
            .settled
            .wait_timeout_while(self.state(), left, |state| state.verdict.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        let verdict = state.verdict;
        drop(state);
        match self.deadline {
            None => verdict,
            Some(_) if verdict.is_some() => verdict,
            Some(deadline) => (Instant::now() >= deadline).then(|| self.time_out()),
        }
    }

    /// Waits until it is settled, by its deadline at the latest.
    pub fn when_settled(&self) -> impl Future<Output = Verdict> + Send + '_ {
        let (answer, asked) = oneshot::channel();
        let known = {
            let mut state = self.state();
            if state.verdict.is_none() {
                state.answer = Some(answer);
            }
            state.verdict
        };
        async move {
            if let Some(verdict) = known {
                return verdict;
            }
            let verdict = match self.deadline {
                Some(deadline) => tokio::time::timeout_at(deadline.into(), asked).await,
                None => Ok(asked.await),
            };
            match verdict {
                Ok(Ok(verdict)) => verdict,
                // The deadline; or another wait for the same call, which has the answer.
                _ => self.time_out(),
            }
        }
    }

    /// Settles it as out of time, unless it is settled; returns what it is settled as.
    pub fn time_out(&self) -> Verdict {
        self.settle(Verdict::TimedOut);
        self.state().verdict.unwrap_or(Verdict::TimedOut)
    }
}

/// Where one worker thread finds its next job.
#[derive(Debug)]
pub struct Desk<J> {
    job: Mutex<Option<J>>,
    came: Condvar,
}

impl<J> Default for Desk<J> {
    fn default() -> Self {
        Self {
            job: Mutex::new(None),
            came: Condvar::new(),
        }
    }
}

impl<J> Desk<J> {
    /// Lays down a job. There is one at a time.
    pub fn give(&self, job: J) {
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        self.came.notify_one();
    }

    /// Waits for a job, so long at the most.
    pub fn take(&self, patience: Duration) -> Option<J> {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut job, _) = self
            .came
            .wait_timeout_while(job, patience, |job| job.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        job.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::admission::Gate;

    fn runtime() -> Runtime {
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap()
    }

    // One test: the count of abandoned calls is the process's.
    #[test]
    fn a_call_is_settled_once_and_abandoned_while_it_goes_on() {
        let runtime = runtime();
        let done = Ticket::new(Some(Duration::from_secs(60)));
        assert!(done.start());
        assert!(done.finish());
        assert!(!done.cancel());
        assert_eq!(runtime.block_on(done.when_settled()), Verdict::Done);
        assert_eq!(abandoned(), 0);

        let late = Ticket::new(Some(Duration::from_millis(1)));
        assert!(late.start());
        assert_eq!(runtime.block_on(late.when_settled()), Verdict::TimedOut);
        assert!(late.is_cancelled());
        assert_eq!(abandoned(), 1);
        assert!(!late.cancel());
        assert_eq!(abandoned(), 1);
        assert!(!late.finish());
        assert_eq!(abandoned(), 0);
        assert!(!late.finish());
        assert_eq!(abandoned(), 0);

        let queued = Ticket::new(None);
        assert!(queued.cancel());
        assert!(!queued.cancel());
        assert!(!queued.start());
        assert_eq!(runtime.block_on(queued.when_settled()), Verdict::Cancelled);
        assert_eq!(abandoned(), 0);

        let gate = Gate::new(1);
        let busy = Arc::new(Ticket::new(Some(Duration::ZERO)));
        busy.keep(gate.try_enter().unwrap());
        assert!(busy.start());
        assert_eq!(busy.time_out(), Verdict::TimedOut);
        busy.leave_unless_running();
        assert!(gate.try_enter().is_none());
        busy.finish();
        assert!(gate.try_enter().is_some());

        for _ in 0..300 {
            let ticket = Arc::new(Ticket::new(None));
            assert!(ticket.start());
            let start = Barrier::new(3);
            let verdict = thread::scope(|scope| {
                for cancel in [true, false] {
                    let (ticket, start) = (&ticket, &start);
                    scope.spawn(move || {
                        start.wait();
                        if cancel {
                            ticket.cancel()
                        } else {
                            ticket.finish()
                        }
                    });
                }
                start.wait();
                runtime.block_on(ticket.when_settled())
            });
            assert!(matches!(verdict, Verdict::Done | Verdict::Cancelled));
            assert_eq!(abandoned(), 0);
        }
    }

    #[test]
    fn a_caller_waits_no_longer_than_it_wants_to() {
        let ticket = Ticket::new(None);
        assert!(ticket.start());
        assert_eq!(ticket.wait(Duration::from_millis(1)), None);
        thread::scope(|scope| {
            let waits = scope.spawn(|| ticket.wait(Duration::from_secs(60)));
            assert!(ticket.finish());
            assert_eq!(waits.join().unwrap(), Some(Verdict::Done));
        });
        let late = Ticket::new(Some(Duration::from_millis(1)));
        let waited = late.wait(Duration::from_secs(60));
        assert_eq!(waited, Some(Verdict::TimedOut));
    }

    #[test]
    fn places_are_given_back_once_and_for_all() {
        let gate = Gate::new(1);
        let take = |ticket: &Arc<Ticket>| ticket.keep(gate.try_enter().unwrap());
        let free = || gate.try_enter().is_some();

        let inline = Arc::new(Ticket::new(None));
        take(&inline);
        assert!(!free());
        inline.leave_unless_running();
        assert!(free());
        // It comes too late: nobody would give it back.
        take(&inline);
        assert!(free());
    }

    #[test]
    fn a_job_that_is_given_is_taken_once() {
        let desk = Desk::default();
        assert_eq!(desk.take(Duration::ZERO), None);
        desk.give(1);
        assert_eq!(desk.take(Duration::ZERO), Some(1));
        thread::scope(|scope| {
            let taken = scope.spawn(|| desk.take(Duration::from_secs(60)));
            desk.give(2);
            assert_eq!(taken.join().unwrap(), Some(2));
        });
        assert_eq!(desk.take(Duration::ZERO), None);
    }
}
