//! Deadlines, queues and limits of calls, and the desks of the threads that run them.
//!
//! What is locked here is locked for a few instructions, never while Python is called.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use crewai_native_sdk::context::Context;
use crewai_native_sdk::runtime::Runtime;
use crewai_native_sdk::{ResultExt, gil};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::admission::{Gate, Place, Rate};
use crate::handoff::{self, Desk, Ticket, Verdict};
use crate::quota::Quota;

static RUNTIME: Runtime = Runtime::new("crewai-native-tools", 1);

/// How far ahead a deadline may lie.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(LONGEST, |time| time.min(LONGEST))
}

fn code(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "done",
        Verdict::TimedOut => "timeout",
        Verdict::Cancelled => "cancelled",
    }
}

/// One call: when it must be answered, and who answers it.
#[pyclass(frozen, weakref, module = "crewai_native_tools._native")]
pub(super) struct Call(Arc<Ticket>);

#[pymethods]
impl Call {
    /// Starts the clock.
    #[new]
    #[pyo3(signature = (timeout=None))]
    fn new(timeout: Option<f64>) -> Self {
        Self(Arc::new(Ticket::new(timeout.map(duration))))
    }

    /// Says that it runs, so that it counts as abandoned when its caller leaves. False: it was
    /// cancelled before, and must not run.
    fn start(&self) -> bool {
        self.0.start()
    }

    /// Says that it has ended. False: its caller has left.
    fn finish(&self) -> bool {
        self.0.finish()
    }

    /// Lets its caller go. False: it had been answered.
    fn cancel(&self) -> bool {
        self.0.cancel()
    }

    /// Says that its time is up. False: it had been answered.
    fn time_out(&self) -> bool {
        self.0.time_out() == Verdict::TimedOut
    }

    /// Whether its caller has left.
    #[getter]
    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Seconds since it started.
    #[getter]
    fn elapsed(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    /// Seconds until it must be answered, or None.
    #[getter]
    fn left(&self) -> Option<f64> {
        let deadline = self.0.deadline()?;
        Some(
            deadline
                .saturating_duration_since(Instant::now())
                .as_secs_f64(),
        )
    }

    /// Calls `callback(verdict)`, once, when it has ended, its time is up or it was cancelled. The
    /// caller of this is let go; the callback is called on a thread of the runtime.
    fn when_settled(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        let ticket = Arc::clone(&self.0);
        later(py, callback, async move { code(ticket.settled().await) })
    }
}

/// Waits for whichever comes first: the error that `end` gives, or what `work` gives.
async fn first<E, T>(end: impl Future<Output = E>, work: impl Future<Output = T>) -> Result<T, E> {
    let (mut end, mut work) = (pin!(end), pin!(work));
    poll_fn(|context| match end.as_mut().poll(context) {
        Poll::Ready(verdict) => Poll::Ready(Err(verdict)),
        Poll::Pending => work.as_mut().poll(context).map(Ok),
    })
    .await
}

/// Calls `callback` with what `work` gives.
fn later(
    py: Python<'_>,
    callback: Py<PyAny>,
    work: impl Future<Output = &'static str> + Send + 'static,
) -> PyResult<()> {
    let context = Context::capture(py)?;
    let handle = py.detach(|| RUNTIME.handle()).into_py()?;
    handle.spawn(async move {
        let answer = work.await;
        // The GIL is a lock: nothing else of the runtime waits for it.
        tokio::task::spawn_blocking(move || {
            gil::try_attach(|py| {
                let callback = callback.into_bound(py);
                if let Err(error) = context.run(py, &callback, (answer,)) {
                    error.write_unraisable(py, Some(&callback));
                }
            })
        });
    });
    Ok(())
}

/// Where a worker thread finds its next job.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Worker(Desk<Py<PyAny>>);

#[pymethods]
impl Worker {
    #[new]
    fn new() -> Self {
        Self(Desk::default())
    }

    /// Waits for a job, for `patience` seconds at the most, and returns it, or None.
    ///
    /// `finished` is the call that the last job was for: its caller is woken in the same step.
    fn next(&self, py: Python<'_>, finished: Option<&Call>, patience: f64) -> Option<Py<PyAny>> {
        py.detach(|| {
            if let Some(call) = finished {
                call.0.finish();
            }
            self.0.take(duration(patience))
        })
    }

    /// Lays down a job, without waiting for it.
    fn give(&self, py: Python<'_>, job: Py<PyAny>) {
        py.detach(|| self.0.give(job));
    }

    /// Lays down a job and waits until its call is settled; returns how.
    ///
    /// Ctrl-C lets the caller go at once.
    fn run(&self, py: Python<'_>, call: &Call, job: Py<PyAny>) -> PyResult<&'static str> {
        let ticket = &call.0;
        let settled = RUNTIME.block_on(py, async {
            let settled = ticket.settled();
            self.0.give(job);
            anyhow::Ok(settled.await)
        });
        match settled {
            Ok(verdict) => Ok(code(verdict)),
            Err(error) => {
                ticket.cancel();
                Err(error)
            }
        }
    }
}

/// What executions of one tool must wait for.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Admission {
    gate: Option<Gate>,
    rate: Option<(Rate, bool)>,
}

/// A place among those who may run.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Pass(Mutex<Option<Place>>);

#[pymethods]
impl Pass {
    /// Gives the place to the next; later calls do nothing.
    fn leave(&self) {
        let place = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(place);
    }
}

impl Admission {
    /// Reserves a start by rate: the time to wait, or the seconds after which there would be one.
    fn reserve(&self, deadline: Option<Instant>) -> Result<Option<Instant>, f64> {
        let Some((rate, waits)) = &self.rate else {
            return Ok(None);
        };
        let now = Instant::now();
        let latest = match deadline {
            _ if !waits => now,
            Some(deadline) => deadline,
            None => now + LONGEST,
        };
        match rate.reserve(now, latest) {
            Ok(start) => Ok((start > now).then_some(start)),
            Err(start) => Err(start.saturating_duration_since(now).as_secs_f64()),
        }
    }
}

#[pymethods]
impl Admission {
    /// Lets `max_concurrency` run at a time, and `calls` start in `seconds`.
    #[new]
    #[pyo3(signature = (max_concurrency=None, calls=None, seconds=1.0, waits=true))]
    fn new(
        max_concurrency: Option<usize>,
        calls: Option<usize>,
        seconds: f64,
        waits: bool,
    ) -> Self {
        Self {
            gate: max_concurrency.map(Gate::new),
            rate: calls.map(|calls| (Rate::new(calls, duration(seconds)), waits)),
        }
    }

    /// Waits until a call may run, by its deadline at the latest.
    ///
    /// Returns its pass; or seconds, where its rate allows none before so much time; or how its
    /// call was settled while it waited.
    fn enter<'py>(&self, py: Python<'py>, call: &Call) -> PyResult<Bound<'py, PyAny>> {
        let ticket = &call.0;
        let start = match self.reserve(ticket.deadline()) {
            Ok(start) => start,
            Err(seconds) => return Ok(seconds.into_pyobject(py)?.into_any()),
        };
        let place = match &self.gate {
            None if start.is_none() => return pass(py, None),
            Some(gate) if start.is_none() => gate.try_enter(),
            _ => None,
        };
        if place.is_some() {
            return pass(py, place);
        }
        let entered = RUNTIME.block_on(py, async {
            let admitted = self.admitted(start);
            anyhow::Ok(first(ticket.settled(), admitted).await)
        });
        match entered {
            Ok(Ok(place)) => pass(py, place),
            Ok(Err(verdict)) => Ok(code(verdict).into_pyobject(py)?.into_any()),
            Err(error) => {
                ticket.cancel();
                Err(error)
            }
        }
    }

    /// Does what [`enter`](Self::enter) does without waiting: calls `callback(pass or word)`.
    ///
    /// Returns what `enter` returns where nothing has to be waited for; else None.
    fn enter_later<'py>(
        slf: &Bound<'py, Self>,
        call: &Call,
        callback: Py<PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (py, this) = (slf.py(), slf.get());
        let start = match this.reserve(call.0.deadline()) {
            Ok(start) => start,
            Err(seconds) => return Ok(Some(seconds.into_pyobject(py)?.into_any())),
        };
        if start.is_none() {
            let place = this.gate.as_ref().map(Gate::try_enter);
            match place {
                None => return pass(py, None).map(Some),
                Some(Some(place)) => return pass(py, Some(place)).map(Some),
                Some(None) => {}
            }
        }
        let (ticket, admitted) = (Arc::clone(&call.0), this.admitted(start));
        let holder = Py::new(py, Pass(Mutex::new(None)))?;
        let pass = holder.clone_ref(py);
        let answer = wrap(py, callback, holder)?;
        later(py, answer, async move {
            match first(ticket.settled(), admitted).await {
                Err(verdict) => code(verdict),
                Ok(place) => {
                    *pass.get().0.lock().unwrap_or_else(PoisonError::into_inner) = place;
                    "entered"
                }
            }
        })?;
        Ok(None)
    }
}

impl Admission {
    /// Waits for the start that was reserved, then for a place.
    fn admitted(
        &self,
        start: Option<Instant>,
    ) -> impl Future<Output = Option<Place>> + Send + use<> {
        let place = self.gate.as_ref().map(Gate::enter);
        async move {
            if let Some(start) = start {
                tokio::time::sleep_until(start.into()).await;
            }
            match place {
                Some(place) => place.await,
                None => None,
            }
        }
    }
}

/// Returns `lambda word: callback(pass if word == "entered" else word)`.
fn wrap(py: Python<'_>, callback: Py<PyAny>, pass: Py<Pass>) -> PyResult<Py<PyAny>> {
    use pyo3::types::{PyCFunction, PyTuple};
    let answer = PyCFunction::new_closure(
        py,
        None,
        None,
        move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
            let (py, word) = (args.py(), args.get_item(0)?);
            if word.extract::<&str>()? == "entered" {
                callback.call1(py, (pass.clone_ref(py),))
            } else {
                callback.call1(py, (word,))
            }
        },
    )?;
    Ok(answer.into_any().unbind())
}

fn pass(py: Python<'_>, place: Option<Place>) -> PyResult<Bound<'_, PyAny>> {
    Ok(Bound::new(py, Pass(Mutex::new(place)))?.into_any())
}

/// How often something was done, exactly, by however many threads.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Uses(Quota);

#[pymethods]
impl Uses {
    #[new]
    fn new() -> Self {
        Self(Quota::default())
    }

    /// Takes one of `limit` uses. False: there is none left.
    fn claim(&self, limit: u64) -> bool {
        self.0.claim(limit)
    }

    /// How many were taken.
    #[getter]
    fn used(&self) -> u64 {
        self.0.used()
    }
}

/// Calls of this process that go on although their callers have left.
#[pyfunction]
pub(super) fn abandoned() -> usize {
    handoff::abandoned()
}

/// What became of the calls of one tool.
///
/// The lock is only held while attached to Python, and no Python code runs under it.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Tally(Mutex<Counts>);

#[derive(Default, Clone, Copy)]
struct Counts {
    running: u64,
    by_outcome: [u64; OUTCOMES.len()],
    seconds: f64,
    longest: f64,
}

const OUTCOMES: [&str; 5] = ["done", "failed", "timeout", "cancelled", "refused"];

impl Tally {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Tally {
    #[new]
    fn new() -> Self {
        Self(Mutex::default())
    }

    /// Counts a call that has come.
    fn begin(&self) {
        self.counts().running += 1;
    }

    /// Counts its outcome, and the seconds that its caller waited.
    fn end(&self, outcome: &str, seconds: f64) -> PyResult<()> {
        let Some(place) = OUTCOMES.iter().position(|&known| known == outcome) else {
            return Err(PyValueError::new_err(format!(
                "outcome is {outcome:?}; it accepts {}",
                OUTCOMES.join(", ")
            )));
        };
        let mut counts = self.counts();
        counts.running = counts.running.saturating_sub(1);
        counts.by_outcome[place] += 1;
        counts.seconds += seconds;
        counts.longest = counts.longest.max(seconds);
        Ok(())
    }

    /// Returns the counts by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = *self.counts();
        let stats = PyDict::new(py);
        stats.set_item(
            "calls",
            counts.running + counts.by_outcome.iter().sum::<u64>(),
        )?;
        stats.set_item("running", counts.running)?;
        for (name, count) in OUTCOMES.iter().zip(counts.by_outcome) {
            stats.set_item(name, count)?;
        }
        stats.set_item("seconds", counts.seconds)?;
        stats.set_item("longest", counts.longest)?;
        Ok(stats)
    }
}
