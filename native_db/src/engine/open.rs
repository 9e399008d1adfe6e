//! Transactions that stay open from one call to the next.
//!
//! One has the writing connection, the process's turn and the group's for itself, until it ends or
//! somebody waits for longer than was agreed: then it is rolled back, and its next call says so.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::process::{Pass, Process, this_thread};

use super::error::{DbError, Result};
use super::turn::Turn;
use super::{Durability, Engine, Link, Owner};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// An open transaction.
pub(super) struct Open {
    number: u64,
    link: Link,
    _turn: Turn,
    _pass: Pass,
}

/// The group's turn, until dropped.
pub(super) struct Held<'e>(Option<&'e Engine>);

impl Held<'_> {
    /// Has the turn outlast this.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(engine) = self.0 {
            engine.group.release();
        }
    }
}

impl Engine {
    /// Begins a transaction of an owner; gives its number. `limit` is how long to wait for others,
    /// and how long others wait for it.
    pub fn begin(&self, owner: Owner, durability: Durability, limit: Duration) -> Result<u64> {
        let pass = Process::current().enter();
        let held = self.held(owner, limit)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = self.prepared(&mut writer, limit).and_then(|(link, turn)| {
            link.set_durability(durability)?;
            link.connection.execute_batch("BEGIN IMMEDIATE")?;
            Ok(turn)
        });
        let link = writer.take();
        drop(writer);
        let turn = begun.map_err(|error| error.at(&self.path))?;
        let Some(link) = link else {
            return Err(DbError::Unreadable("the file vanished".to_owned()).at(&self.path));
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Open {
            number,
            link,
            _turn: turn,
            _pass: pass.opened_by(owner.thread),
        });
        held.keep();
        Ok(number)
    }

    /// An error if a transaction is open that cannot end before `owner` has had its own.
    pub fn refuse(&self, owner: Owner) -> Result<()> {
        self.group.refuse(owner)
    }

    /// Runs `work` in an open transaction: all of what it does is kept, or on an error nothing.
    pub fn within<T>(&self, number: u64, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut place = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = place
            .as_mut()
            .filter(|open| open.number == number)
            .ok_or_else(|| self.over())?;
        let done = (|| {
            let mut part = open.link.connection.savepoint()?;
            let done = work(&part);
            if done.is_err() && !part.is_autocommit() {
                part.rollback()?;
            }
            if !part.is_autocommit() {
                part.commit()?;
            }
            done
        })();
        // A full disk, for one, ends the whole transaction.
        let ended = open.link.connection.is_autocommit();
        drop(place);
        if ended {
            self.abandon(Some(number));
        }
        done.map_err(|error: DbError| error.at(&self.path))
    }

    /// Commits an open transaction.
    pub fn commit(&self, number: u64) -> Result<()> {
        let open = self.take(Some(number)).ok_or_else(|| self.over())?;
        let done = open.link.connection.execute_batch("COMMIT");
        let counter = match &done {
            Ok(()) => &self.counters.writes,
            Err(_) => &self.counters.failures,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if done.is_ok() {
            self.counters.commits.fetch_add(1, Ordering::Relaxed);
            self.give_back(open.link);
        }
        self.group.release();
        done.map_err(|error| DbError::from(error).at(&self.path))
    }

    /// Rolls an open transaction back, or whichever there is.
    pub fn abandon(&self, number: Option<u64>) {
        if let Some(open) = self.take(number) {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            let rolled_back = open.link.connection.is_autocommit()
                || open.link.connection.execute_batch("ROLLBACK").is_ok();
            if rolled_back {
                self.give_back(open.link);
            }
            self.group.release();
        }
    }

    /// Rolls back what nobody is to wait for: before a fork by its own thread, or overdue.
    pub fn expire(&self) {
        if self.group.is_held_in_vain(0) {
            self.abandon(None);
        }
    }

    /// Rolls back a transaction of the calling thread, which is about to fork, or one overdue.
    pub fn before_fork(&self) {
        if self.group.is_held_in_vain(this_thread()) {
            self.abandon(None);
        }
    }

    pub(super) fn held(&self, owner: Owner, limit: Duration) -> Result<Held<'_>> {
        match self.group.hold(owner, limit, || self.expire())? {
            Some(()) => Ok(Held(Some(self))),
            None => Err(DbError::Io {
                path: self.path.clone(),
                errno: libc::ETIMEDOUT,
                detail: format!(
                    "others were writing for more than {} s",
                    limit.as_secs_f64()
                ),
            }),
        }
    }

    fn take(&self, number: Option<u64>) -> Option<Open> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|open| number.is_none_or(|number| open.number == number))
    }

    fn give_back(&self, link: Link) {
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }

    fn over(&self) -> DbError {
        DbError::Io {
            path: self.path.clone(),
            errno: libc::ETIMEDOUT,
            detail: "the transaction is over: it was rolled back when its time was up, \
                     at a fork or when the file was closed"
                .to_owned(),
        }
    }
}
