//! The floor on which batches are worked, as Python sees it.

use std::time::Duration;

use pyo3::prelude::*;

use super::control::{BETWEEN_SIGNAL_CHECKS, seconds};
use crate::batch::{self, Next, Settings};

/// Decides which item of which batch is next. See `crewai_native_tasks.batch`.
///
/// What returns a number asks for so many further workers to be started.
#[pyclass(frozen, module = "crewai_native_tasks._native")]
pub(super) struct Floor(batch::Floor);

#[pymethods]
impl Floor {
    #[new]
    fn new(slots: usize) -> Self {
        Self(batch::Floor::new(slots))
    }

    /// Sets how many items are worked at a time.
    fn set_slots(&self, slots: usize) {
        self.0.set_slots(slots);
    }

    /// Opens a batch and returns its number.
    #[pyo3(signature = (*, priority, fewest, most, limit))]
    fn open(&self, priority: i64, fewest: usize, most: usize, limit: Option<f64>) -> PyResult<u64> {
        Ok(self.0.open(Settings {
            priority,
            fewest,
            most,
            limit: limit.map(seconds).transpose()?,
        }))
    }

    /// Adds a ticket.
    fn submit(&self, batch: u64, ticket: u64) -> usize {
        self.0.submit(batch, ticket)
    }

    /// Waits for work: batch, ticket, and how many further workers to start. None after `patience`.
    fn take(&self, py: Python<'_>, patience: f64) -> PyResult<Option<(u64, u64, usize)>> {
        let patience = seconds(patience)?;
        let taken = py.detach(|| self.0.take(patience));
        Ok(taken.map(|(taken, more)| (taken.batch, taken.ticket, more)))
    }

    /// Notes that a worker is about to call `take` again.
    fn back(&self) {
        self.0.back();
    }

    /// Notes that workers which were asked for will not come.
    fn missing(&self, workers: usize) {
        self.0.missing(workers);
    }

    /// Asks for the right to end a ticket; False if it was given up.
    fn claim(&self, batch: u64, ticket: u64) -> bool {
        self.0.claim(batch, ticket)
    }

    /// Ends a ticket that was claimed.
    fn end(&self, batch: u64, ticket: u64) -> usize {
        self.0.end(batch, ticket)
    }

    /// Notes that the work on a ticket waits for a batch of its own.
    fn pause(&self, batch: u64, ticket: u64) -> usize {
        self.0.pause(batch, ticket)
    }

    /// Notes that it goes on.
    fn resume(&self, batch: u64, ticket: u64) {
        self.0.resume(batch, ticket);
    }

    /// Waits a moment for a ticket to end, or not at all: the ticket if one has, and whether there is
    /// none to wait for. Ctrl-C works.
    #[pyo3(signature = (batch, *, wait=true))]
    fn next(&self, py: Python<'_>, batch: u64, wait: bool) -> PyResult<(Option<u64>, bool)> {
        let patience = if wait {
            BETWEEN_SIGNAL_CHECKS
        } else {
            Duration::ZERO
        };
        match py.detach(|| self.0.next(batch, patience)) {
            Next::Ended(ticket) => Ok((Some(ticket), false)),
            Next::Empty => Ok((None, true)),
            Next::Nothing => py.check_signals().map(|()| (None, false)),
        }
    }

    /// Waits for tickets that take too long, gives them up and ends them.
    fn expire(&self, py: Python<'_>, patience: f64) -> PyResult<(Vec<(u64, u64)>, usize)> {
        let patience = seconds(patience)?;
        let (expired, more) = py.detach(|| self.0.expire(patience));
        let expired = expired.into_iter().map(|taken| (taken.batch, taken.ticket));
        Ok((expired.collect(), more))
    }

    /// Ends a ticket whose worker has died; returns also whether it was at work.
    fn lost(&self, batch: u64, ticket: u64) -> (bool, usize) {
        self.0.lost(batch, ticket)
    }

    /// Takes back the tickets that nobody has begun.
    fn withdraw(&self, batch: u64) -> Vec<u64> {
        self.0.withdraw(batch)
    }

    /// Has everyone who waits in `next` look around.
    fn interrupt(&self) {
        self.0.interrupt();
    }

    /// Gives up the tickets that are at work, and returns them.
    fn abandon(&self, batch: u64) -> (Vec<u64>, usize) {
        self.0.abandon(batch)
    }

    /// Closes a batch.
    fn close(&self, batch: u64) -> usize {
        self.0.close(batch)
    }

    /// Notes how long a model took to answer, and whether it refused because of its rate.
    fn observe(&self, batch: u64, latency: f64, refused: bool) -> PyResult<usize> {
        Ok(self.0.observe(batch, seconds(latency)?, refused))
    }

    /// What a batch has: tickets ready, running, ended, left behind, and how many may run.
    fn counts(&self, batch: u64) -> (usize, usize, usize, usize, usize) {
        let counts = self.0.counts(batch);
        (
            counts.ready,
            counts.running,
            counts.ended,
            counts.left,
            counts.window,
        )
    }

    /// Sends all workers home.
    fn stop(&self) {
        self.0.stop();
    }
}
