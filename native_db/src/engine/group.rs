//! Group commit: threads that write at the same time share one transaction, and one sync.
//!
//! There is no writer thread. Whoever finds nobody writing writes for everybody who waits by then;
//! the others wait, and one of those who came meanwhile is the next. So there is nothing to start,
//! to stop or to take through a fork, and a lone writer waits for nobody.
//!
//! A transaction that a thread keeps open for longer *holds* the turn meanwhile.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::process::this_thread;

use super::Durability;
use super::error::{DbError, Result};

const SHORTEST_WAIT: Duration = Duration::from_millis(5);

pub(super) type Work = Box<dyn FnOnce(&Connection) -> Result<()> + Send>;

/// One caller's part of a transaction.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) durability: Durability,
    ticket: Arc<Ticket>,
}

type Ticket = Mutex<Option<Result<()>>>;

#[derive(Default)]
pub(super) struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Job>,
    writing: bool,
    holder: Option<Holder>,
}

/// Who asks for the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Its thread.
    pub thread: u64,
    /// Whether it is one of several coroutines on that thread, which goes on while this one waits.
    pub coroutine: bool,
}

/// Who keeps a transaction open.
#[derive(Debug, Clone, Copy)]
struct Holder {
    owner: Owner,
    until: Instant,
}

impl Owner {
    /// The calling thread, which can do nothing else while it waits.
    pub fn this_thread() -> Self {
        Self {
            thread: this_thread(),
            coroutine: false,
        }
    }
}

impl Job {
    /// Says how it came out, once the transaction is over.
    pub(super) fn finish(ticket: &Ticket, outcome: Result<()>) {
        *ticket.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// The work, and where to say how it came out.
    pub(super) fn split(self) -> (Work, Arc<Ticket>) {
        (self.work, self.ticket)
    }
}

impl Group {
    /// Has `work` done in a transaction, which `write` runs for a batch of jobs. When this
    /// returns, that transaction is over, and the result says how it ended for this work.
    ///
    /// Whoever holds the turn for longer than agreed is made to let go by `expire`.
    pub(super) fn run(
        &self,
        work: Work,
        durability: Durability,
        write: impl Fn(Vec<Job>),
        expire: impl Fn(),
    ) -> Result<()> {
        let ticket = Arc::new(Ticket::default());
        let mut state = self.lock();
        let owner = Owner::this_thread();
        state.refuse(owner)?;
        state.waiting.push(Job {
            work,
            durability,
            ticket: Arc::clone(&ticket),
        });
        loop {
            if let Some(outcome) = ticket.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return outcome;
            }
            if state.writing {
                // A coroutine of this thread may have come first.
                if let Err(refused) = state.refuse(owner) {
                    state
                        .waiting
                        .retain(|job| !Arc::ptr_eq(&job.ticket, &ticket));
                    return Err(refused);
                }
                state = self.wait(state, None, &expire);
                continue;
            }
            state.writing = true;
            let batch = mem::take(&mut state.waiting);
            drop(state);
            let turn = Writing {
                group: self,
                tickets: batch.iter().map(|job| Arc::clone(&job.ticket)).collect(),
            };
            write(batch);
            drop(turn);
            state = self.lock();
        }
    }

    /// Waits until nobody writes, and has nobody write until [`release`](Self::release). `None` if
    /// that takes longer than `limit`, which is also how long the turn may be held.
    pub(super) fn hold(
        &self,
        owner: Owner,
        limit: Duration,
        expire: impl Fn(),
    ) -> Result<Option<()>> {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        // Whoever asks for a coroutine has asked `refuse` when it came: later, a block of its thread
        // is another coroutine's, and ends.
        if !owner.coroutine {
            state.refuse(owner)?;
        }
        while state.writing {
            if Instant::now() >= end {
                return Ok(None);
            }
            state = self.wait(state, Some(end), &expire);
            if !owner.coroutine {
                state.refuse(owner)?;
            }
        }
        state.writing = true;
        state.holder = Some(Holder {
            owner,
            until: Instant::now() + limit,
        });
        Ok(Some(()))
    }

    /// An error if the turn is held by what cannot end before `owner` has had its own.
    pub(super) fn refuse(&self, owner: Owner) -> Result<()> {
        self.lock().refuse(owner)
    }

    /// Ends what [`hold`](Self::hold) began.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.writing = false;
        state.holder = None;
        self.changed.notify_all();
    }

    /// Whether the turn is held by a thread, or for longer than agreed.
    pub(super) fn is_held_in_vain(&self, thread: u64) -> bool {
        let holder = self.lock().holder;
        holder.is_some_and(|holder| holder.owner.thread == thread || Instant::now() >= holder.until)
    }

    fn wait<'g>(
        &'g self,
        state: MutexGuard<'g, State>,
        end: Option<Instant>,
        expire: impl Fn(),
    ) -> MutexGuard<'g, State> {
        let until = state.holder.map(|holder| holder.until);
        let Some(wake) = [until, end].into_iter().flatten().min() else {
            return self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        // Whoever was made to let go may take a moment to do so.
        let left = wake
            .saturating_duration_since(Instant::now())
            .max(SHORTEST_WAIT);
        let (state, _) = self
            .changed
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner);
        let overdue = |holder: Holder| Instant::now() >= holder.until;
        if state.writing && state.holder.is_some_and(overdue) {
            drop(state);
            expire();
            return self.lock();
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A thread that waited for its own transaction would wait for ever.
    fn refuse(&self, owner: Owner) -> Result<()> {
        let both = |holder: Owner| holder.coroutine && owner.coroutine;
        match self.holder.map(|holder| holder.owner) {
            Some(holder) if holder.thread == owner.thread && !both(holder) => {
                Err(DbError::InvalidArgument(
                    "this thread has a transaction open on the file: \
                 write through it, or after it"
                        .to_owned(),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Ends the turn of the thread that writes, also when it panics.
struct Writing<'g> {
    group: &'g Group,
    tickets: Vec<Arc<Ticket>>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        for ticket in &self.tickets {
            ticket
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| {
                    Err(DbError::Unreadable(
                        "the writing thread panicked".to_owned(),
                    ))
                });
        }
        self.group.lock().writing = false;
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_write_that_a_coroutine_of_its_thread_overtakes_is_refused() {
        let group = Group::default();
        let elsewhere = Owner::this_thread();
        group.hold(elsewhere, LONG, || {}).unwrap().unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                tell.send(this_thread()).unwrap();
                let unwritten = |_| unreachable!("it has no turn");
                group.run(Box::new(|_| Ok(())), Durability::Normal, unwritten, || {})
            });
            let owner = Owner {
                thread: told.recv().unwrap(),
                coroutine: true,
            };
            while group.lock().waiting.is_empty() {
                thread::yield_now();
            }
            let mut state = group.lock();
            state.holder = Some(Holder {
                owner,
                until: Instant::now() + LONG,
            });
            group.changed.notify_all();
            drop(state);
            let refused = writer.join().unwrap().unwrap_err();
            assert!(refused.to_string().contains("this thread has"), "{refused}");
            assert!(group.lock().waiting.is_empty());
            // Coroutines of one thread wait for one another.
            group.refuse(owner).unwrap();
            assert!(group.hold(owner, SHORTEST_WAIT, || {}).unwrap().is_none());
        });
        group.release();
        assert!(group.hold(elsewhere, LONG, || {}).unwrap().is_some());
        assert!(group.hold(elsewhere, LONG, || {}).is_err());
    }
}
