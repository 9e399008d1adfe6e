//! Deadlines, queues and limits of calls, and the desks of the threads that run them.
//!
//! What is locked here is locked for a few instructions, never while Python is called.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use crewai_native_sdk::context::Context;
use crewai_native_sdk::runtime::Runtime;
use crewai_native_sdk::{ResultExt, atexit, gil, process};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::admission::{Gate, Rate};
use crate::handoff::{self, Desk, Origin, Ticket, Verdict};
use crate::quota::Quota;
use crate::waits::{self, Waiting, Word};

static RUNTIME: Runtime = Runtime::new("crewai-native-tools", 1);

/// How far ahead a deadline may lie.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// How long the main thread waits before it looks for signals.
const BETWEEN_SIGNAL_CHECKS: Duration = Duration::from_millis(50);

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

/// One call: when it must be answered, who answers it, and what it holds of queues meanwhile.
#[pyclass(frozen, weakref, module = "crewai_native_tools._native")]
pub(super) struct Call {
    ticket: Arc<Ticket>,
    counts: Option<Counted>,
    /// Whether it need not queue.
    #[pyo3(get)]
    admitted: bool,
}

#[pymethods]
impl Call {
    /// Starts the clock.
    #[new]
    #[pyo3(signature = (timeout=None))]
    fn new(timeout: Option<f64>) -> Self {
        Self {
            ticket: Arc::new(Ticket::new(timeout.map(duration))),
            counts: None,
            admitted: false,
        }
    }

    /// Says that it runs, so that it counts as abandoned when its caller leaves. False: it was
    /// cancelled before, and must not run.
    fn start(&self) -> bool {
        self.ticket.start()
    }

    /// Says that it has ended. False: its caller has left.
    fn finish(&self) -> bool {
        self.ticket.finish()
    }

    /// Lets its caller go. False: it had been answered.
    fn cancel(&self) -> bool {
        self.ticket.cancel()
    }

    /// Says that its time is up. False: it had been answered.
    fn time_out(&self) -> bool {
        self.ticket.time_out() == Verdict::TimedOut
    }

    /// Says that its caller goes on, and counts its outcome.
    ///
    /// What still runs gives back its places when it ends; anything else, here.
    fn end(&self, outcome: &str) -> PyResult<()> {
        self.ticket.leave_unless_running();
        match &self.counts {
            Some(counts) => end(counts, outcome, self.elapsed()),
            None => Ok(()),
        }
    }

    /// Whether its caller has left.
    #[getter]
    fn cancelled(&self) -> bool {
        self.ticket.is_cancelled()
    }

    /// Whether it has ended, and holds no places any more.
    #[getter]
    fn ended(&self) -> bool {
        self.ticket.has_left()
    }

    /// Seconds since it started.
    #[getter]
    fn elapsed(&self) -> f64 {
        self.ticket.elapsed().as_secs_f64()
    }

    /// Seconds until it must be answered, or None.
    #[getter]
    fn left(&self) -> Option<f64> {
        let deadline = self.ticket.deadline()?;
        Some(
            deadline
                .saturating_duration_since(Instant::now())
                .as_secs_f64(),
        )
    }

    /// Calls `callback(verdict)`, once, when it has ended, its time is up or it was cancelled. The
    /// caller of this is let go; the callback is called on a thread of the runtime.
    fn when_settled(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        let ticket = Arc::clone(&self.ticket);
        later(
            py,
            callback,
            async move { code(ticket.when_settled().await) },
        )
    }
}

/// What every call of one tool from one place must pass, gathered so that a call that need not wait
/// passes it in one step.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Rules {
    tool: Arc<str>,
    counts: Counted,
    doors: Vec<Py<Admission>>,
    threads: Py<Admission>,
    max_threads: usize,
    max_calls: u64,
    max_depth: u64,
}

#[pymethods]
impl Rules {
    /// Has calls of `tool` counted in `tally`, and lets in whom `doors` let in, at most `max_calls` of them,
    /// and at most `max_depth` inside each other. Those on threads pass `threads`, too.
    #[new]
    #[pyo3(signature = (tool, tally, doors, threads, max_threads, max_calls=None, max_depth=None))]
    fn new(
        tool: &str,
        tally: &Tally,
        doors: Vec<Py<Admission>>,
        threads: Py<Admission>,
        max_threads: usize,
        max_calls: Option<u64>,
        max_depth: Option<u64>,
    ) -> Self {
        Self {
            tool: tool.into(),
            counts: Arc::clone(&tally.0),
            doors,
            threads,
            max_threads,
            max_calls: max_calls.unwrap_or(u64::MAX),
            max_depth: max_depth.unwrap_or(u64::MAX),
        }
    }

    /// Starts the clock of a call that has come, and counts it.
    ///
    /// `alone`: nothing is known that keeps it from running. It has taken a use of `uses` and its
    /// places, and is `admitted`, if it need not wait for them; otherwise it has taken nothing.
    ///
    /// It is made inside of `outer`, where an event loop runs, by its number, or none, which is 0;
    /// and is `awaited` there, or holds the loop up.
    #[allow(clippy::too_many_arguments)] // One crossing into Rust for each call of a tool.
    fn begin(
        &self,
        timeout: Option<f64>,
        uses: &Uses,
        depth: u64,
        alone: bool,
        on_thread: bool,
        outer: Option<&Bound<'_, Call>>,
        event_loop: u64,
        awaited: bool,
    ) -> Call {
        let origin = Origin {
            tool: Arc::clone(&self.tool),
            outer: outer.map(|call| Arc::downgrade(&call.get().ticket)),
            event_loop,
            awaited,
        };
        let ticket = Arc::new(Ticket::of(origin, timeout.map(duration)));
        counts(&self.counts).running += 1;
        let admitted = alone && depth <= self.max_depth && self.admit(&ticket, uses, on_thread);
        Call {
            ticket,
            counts: Some(Arc::clone(&self.counts)),
            admitted,
        }
    }
}

impl Rules {
    fn admit(&self, ticket: &Arc<Ticket>, uses: &Uses, on_thread: bool) -> bool {
        if uses.0.used() >= self.max_calls
            || (on_thread && handoff::abandoned() >= self.max_threads)
        {
            return false;
        }
        // Places first: they can be given back, a start that a rate has counted cannot.
        let threads = on_thread.then_some(&self.threads);
        let mut places = Vec::with_capacity(2);
        for gate in self.doors.iter().chain(threads).map(Py::get) {
            if let Some(gate) = &gate.gate {
                match gate.try_enter() {
                    Some(place) => places.push(place),
                    None => return false,
                }
            }
        }
        let now = Instant::now();
        for (rate, _) in self
            .doors
            .iter()
            .filter_map(|door| door.get().rate.as_ref())
        {
            if rate.reserve(now, now).is_err() {
                return false;
            }
        }
        // Another call may have taken the last one meanwhile: then it is told so in its turn.
        if !uses.0.claim(self.max_calls) {
            return false;
        }
        for place in places {
            ticket.keep(place);
        }
        true
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
fn later<T>(
    py: Python<'_>,
    callback: Py<PyAny>,
    work: impl Future<Output = T> + Send + 'static,
) -> PyResult<()>
where
    T: Send + for<'py> IntoPyObject<'py> + 'static,
{
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
                call.ticket.finish();
            }
            let job = self.0.take(duration(patience));
            stay_if_exiting();
            job
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
        if atexit::exiting() {
            return Err(PyRuntimeError::new_err(
                "cannot run a tool on a thread: the process is exiting",
            ));
        }
        let ticket = &call.ticket;
        let patience = if is_main_thread(py)? {
            BETWEEN_SIGNAL_CHECKS
        } else {
            LONGEST
        };
        let mut job = Some(job);
        loop {
            let verdict = py.detach(|| {
                if let Some(job) = job.take() {
                    self.0.give(job);
                }
                let verdict = ticket.wait(patience);
                stay_if_exiting();
                verdict
            });
            if let Some(verdict) = verdict {
                return Ok(code(verdict));
            }
            if let Err(error) = py.check_signals() {
                ticket.cancel();
                return Err(error);
            }
        }
    }
}

/// Keeps a daemon thread where it is once Python ends: asking for the GIL would crash it.
fn stay_if_exiting() {
    while atexit::exiting() {
        thread::park();
    }
}

/// Whether this is the thread that Python runs signal handlers on.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local! {
        // By process: whichever thread forks is the child's main thread.
        static KNOWN: Cell<Option<(u32, bool)>> = const { Cell::new(None) };
    }
    static THREADING: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let pid = process::id();
    if let Some((known_pid, is_main)) = KNOWN.get()
        && known_pid == pid
    {
        return Ok(is_main);
    }
    let threading = THREADING.get_or_try_init(py, || py.import("threading").map(Bound::unbind))?;
    let threading = threading.bind(py);
    let current = threading.call_method0("get_ident")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let is_main = current.eq(main)?;
    KNOWN.set(Some((pid, is_main)));
    Ok(is_main)
}

/// What executions of one tool must wait for.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Admission {
    gate: Option<Gate>,
    rate: Option<(Rate, bool)>,
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
    /// Lets `max_concurrency` run at a time, and `calls` start in `seconds`. Where it `gives_way`,
    /// more run where calls would wait for each other for ever.
    #[new]
    #[pyo3(signature = (max_concurrency=None, calls=None, seconds=1.0, waits=true, *, gives_way=false))]
    fn new(
        max_concurrency: Option<usize>,
        calls: Option<usize>,
        seconds: f64,
        waits: bool,
        gives_way: bool,
    ) -> Self {
        let gate = max_concurrency.map(Gate::new);
        Self {
            gate: if gives_way {
                gate.map(Gate::giving_way)
            } else {
                gate
            },
            rate: calls.map(|calls| (Rate::new(calls, duration(seconds)), waits)),
        }
    }

    /// Waits until a call may run, by its deadline at the latest. The call has its place then.
    ///
    /// Returns None; or seconds, where its rate allows none before so much time; or how its call was
    /// settled while it waited; or, where its turn would never come, for whom it and others wait.
    fn enter<'py>(&self, py: Python<'py>, call: &Call) -> PyResult<Option<Bound<'py, PyAny>>> {
        let ticket = &call.ticket;
        let start = match self.reserve(ticket.deadline()) {
            Ok(start) => start,
            Err(seconds) => return Ok(Some(seconds.into_pyobject(py)?.into_any())),
        };
        if start.is_none() && self.entered(ticket) {
            return Ok(None);
        }
        let turn = self.turn(ticket, start);
        let answer = RUNTIME
            .block_on(py, async { anyhow::Ok(turn.await) })
            .inspect_err(|_| {
                ticket.cancel();
            })?;
        answer.map(|answer| answer.into_pyobject(py)).transpose()
    }

    /// Does what [`enter`](Self::enter) does without waiting: `callback` is called with None, with
    /// how the call was settled, or with who waits for whom.
    ///
    /// Returns False where it will be; True where the call may run already; or seconds.
    fn enter_later<'py>(
        &self,
        py: Python<'py>,
        call: &Call,
        callback: Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let start = match self.reserve(call.ticket.deadline()) {
            Ok(start) => start,
            Err(seconds) => return Ok(seconds.into_pyobject(py)?.into_any()),
        };
        let at_once = start.is_none() && self.entered(&call.ticket);
        if !at_once {
            later(py, callback, self.turn(&call.ticket, start))?;
        }
        Ok(at_once.into_pyobject(py)?.to_owned().into_any())
    }
}

/// Why a call that has waited does not run.
#[derive(IntoPyObject)]
enum NoTurn {
    Settled(&'static str),
    /// By their tools: whose call holds what the one before waits for, whose holds that one up, and
    /// whether it does so by blocking its event loop.
    Ring(Vec<(String, String, bool)>),
}

impl Admission {
    /// Takes a place for a call if one is free, or none is needed.
    fn entered(&self, ticket: &Arc<Ticket>) -> bool {
        match self.gate.as_ref().map(Gate::try_enter) {
            None => true,
            Some(None) => false,
            Some(Some(place)) => {
                ticket.keep(place);
                true
            }
        }
    }

    /// Waits for the start that was reserved, then for a place, which the call then has.
    fn turn(
        &self,
        ticket: &Arc<Ticket>,
        start: Option<Instant>,
    ) -> impl Future<Output = Option<NoTurn>> + Send + use<> {
        let ticket = Arc::clone(ticket);
        let gate = self.gate.as_ref();
        // From now on, not from when it is first polled.
        let mut waiting = gate.and_then(|gate| Waiting::begin(&ticket, gate.inside()));
        let place = gate.map(Gate::enter);
        async move {
            let admitted = async {
                if let Some(start) = start {
                    tokio::time::sleep_until(start.into()).await;
                }
                match place {
                    Some(place) => place.await,
                    None => None,
                }
            };
            let told = async {
                match &mut waiting {
                    Some(waiting) => waiting.told().await,
                    None => pending().await,
                }
            };
            let came = first(ticket.when_settled(), first(told, admitted)).await;
            // Before it has its place: else it would seem to wait for itself.
            drop(waiting);
            match came {
                // A caller that has left meanwhile keeps none.
                Ok(Ok(place)) => {
                    if let Some(place) = place {
                        ticket.keep(place);
                        waits::has_place(&ticket);
                    }
                    None
                }
                Ok(Err(Word::GoOn)) => None,
                Ok(Err(Word::Ring(ring))) => {
                    let tools = |link: waits::Link| (link.holder, link.waiter, link.blocks_loop);
                    Some(NoTurn::Ring(ring.into_iter().map(tools).collect()))
                }
                Err(verdict) => Some(NoTurn::Settled(code(verdict))),
            }
        }
    }
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
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct Tally(Counted);

/// The lock is held for a few instructions, and no Python code runs under it.
type Counted = Arc<Mutex<Counts>>;

#[derive(Default, Clone, Copy)]
struct Counts {
    running: u64,
    by_outcome: [u64; OUTCOMES.len()],
    seconds: f64,
    longest: f64,
}

const OUTCOMES: [&str; 5] = ["done", "failed", "timeout", "cancelled", "refused"];

fn counts(counted: &Counted) -> MutexGuard<'_, Counts> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts an outcome, and the seconds that the caller waited.
fn end(counted: &Counted, outcome: &str, seconds: f64) -> PyResult<()> {
    let Some(place) = OUTCOMES.iter().position(|&known| known == outcome) else {
        return Err(PyValueError::new_err(format!(
            "outcome is {outcome:?}; it accepts {}",
            OUTCOMES.join(", ")
        )));
    };
    let mut counts = counts(counted);
    counts.running = counts.running.saturating_sub(1);
    counts.by_outcome[place] += 1;
    counts.seconds += seconds;
    counts.longest = counts.longest.max(seconds);
    Ok(())
}

#[pymethods]
impl Tally {
    #[new]
    fn new() -> Self {
        Self(Counted::default())
    }

    /// Returns the counts by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = *counts(&self.0);
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
