//! The end of the Python process: what must happen before the interpreter is torn down.
//!
//! One hook of the SDK is registered with Python's `atexit`. When Python runs it, the SDK
//!
//! 1. lets no further native thread into Python ([`gil::try_attach`](crate::gil::try_attach) now
//!    returns `None`), since a thread that waits for the GIL of a dying interpreter is never woken,
//!    or crashes it;
//! 2. runs what was [registered](register) in Rust, last in first out, with the GIL released: pools
//!    and runtimes stop;
//! 3. waits until the native threads that are in Python have come out, as Python itself waits for
//!    its own threads. Ctrl-C ends the waiting.
//!
//! Python runs the handlers that were registered after this one before it, so a program's own exit
//! handlers still find accelerators working. After a fork, the child starts with nothing registered
//! in Rust: it has none of the parent's threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use crate::error::catch_panic;
use crate::process::PerProcess;

/// How long stopping waits for threads that run no Python, a pool's or a runtime's, to come to the
/// end of what they do. The process may end under them.
pub const STOP_LIMIT: Duration = Duration::from_secs(1);

type Hook = Box<dyn FnOnce() + Send>;

/// The hook in Python's `atexit` comes through a fork, so this flag rightly does, too.
static INSTALLED: AtomicBool = AtomicBool::new(false);
static EXIT: PerProcess<Exit> = PerProcess::new();

#[derive(Default)]
struct Exit {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    exiting: bool,
    hooks: Vec<Hook>,
    /// Native threads that are in Python, or wait to be.
    inside: usize,
}

thread_local! {
    /// How many [`Pass`]es this thread holds.
    static PASSES: Cell<usize> = const { Cell::new(0) };
}

/// Registers the SDK's hook with Python's `atexit`, the first time that it is called.
///
/// [`passport!`](crate::passport!) does this when the module is imported.
pub fn install(py: Python<'_>) -> PyResult<()> {
    if INSTALLED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    let registered = PyCFunction::new_closure(
        py,
        Some(c"_crewai_native_stop"),
        Some(c"Stops the threads of a crewai-native accelerator."),
        |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| run(args.py()),
    )
    .and_then(|hook| py.import("atexit")?.call_method1("register", (hook,)));
    if registered.is_err() {
        INSTALLED.store(false, Ordering::Release);
    }
    registered.map(drop)
}

/// Runs `hook` when the Python process exits, with the GIL released.
///
/// It must not call Python. It is not run in a child that is forked later, and not at all when the
/// process is killed or the exit has already begun: see [`exiting`].
pub fn register(hook: impl FnOnce() + Send + 'static) {
    exit().lock().hooks.push(Box::new(hook));
}

/// Returns whether the hook has run in this process: nothing new should be started.
pub fn exiting() -> bool {
    exit().lock().exiting
}

/// A native thread's permission to be in Python. The exit waits until it is given back.
pub(crate) struct Pass(());

/// Lets this thread into Python, unless the process is exiting.
pub(crate) fn enter() -> Option<Pass> {
    let exit = exit();
    let mut state = exit.lock();
    // A thread that is inside already holds up the exit anyway, and must be able to finish.
    if state.exiting && PASSES.get() == 0 {
        return None;
    }
    state.inside += 1;
    PASSES.set(PASSES.get() + 1);
    Some(Pass(()))
}

impl Drop for Pass {
    fn drop(&mut self) {
        let exit = exit();
        // In a child that was forked by a thread inside Python, the count starts at zero.
        let mut state = exit.lock();
        state.inside = state.inside.saturating_sub(1);
        PASSES.set(PASSES.get() - 1);
        exit.left.notify_all();
    }
}

impl Exit {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit() -> &'static Exit {
    EXIT.get_or_init(Exit::default)
}

fn run(py: Python<'_>) -> PyResult<()> {
    const BETWEEN_SIGNAL_CHECKS: Duration = Duration::from_millis(50);
    let exit = exit();
    py.detach(|| exit.lock().exiting = true);
    while let Some(hook) = py.detach(|| exit.lock().hooks.pop()) {
        if let Err(panic) = py.detach(|| catch_panic(hook)) {
            PyErr::from(crate::Error::from(panic)).write_unraisable(py, None);
        }
    }
    loop {
        let empty = py.detach(|| {
            let (state, _) = exit
                .left
                .wait_timeout_while(exit.lock(), BETWEEN_SIGNAL_CHECKS, |state| state.inside > 0)
                .unwrap_or_else(PoisonError::into_inner);
            state.inside == 0
        });
        if empty {
            return Ok(());
        }
        py.check_signals()?;
    }
}
