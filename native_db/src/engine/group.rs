//! Group commit: threads that write at the same time share one transaction, and one sync.
//!
//! There is no writer thread. Whoever finds nobody writing writes for everybody who waits by then;
//! the others wait, and one of those who came meanwhile is the next. So there is nothing to start,
//! to stop or to take through a fork, and a lone writer waits for nobody.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::Durability;
use super::error::{DbError, Result};

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
    pub(super) fn run(
        &self,
        work: Work,
        durability: Durability,
        write: impl Fn(Vec<Job>),
    ) -> Result<()> {
        let ticket = Arc::new(Ticket::default());
        let mut state = self.lock();
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
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
