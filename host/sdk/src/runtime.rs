//! A private Tokio runtime (cargo feature `tokio`).
//!
//! For accelerators that wait on many sockets or timers. One that computes wants
//! [`Pool`](crate::pool::Pool); one that waits for a single thing wants a thread.
//!
//! - The runtime is started at first use and stopped at exit: tasks are dropped at their next
//!   `await`, blocking ones get [`STOP_LIMIT`] to end. A daemon thread that waits in
//!   [`Runtime::block_on`] then goes no further.
//! - After a fork the child starts its own at first use. The parent's is leaked there, and the tasks
//!   that it ran are not known in the child.
//! - A task that calls Python does so through [`gil::try_attach`](crate::gil::try_attach), in
//!   `tokio::task::spawn_blocking`: the GIL is a lock, and waiting for it holds up other tasks.
//!
//! ```
//! use crewai_native_sdk::runtime::Runtime;
//! use pyo3::prelude::*;
//!
//! static RUNTIME: Runtime = Runtime::new("example-io", 1);
//!
//! /// Returns after some seconds; other Python threads run meanwhile, and Ctrl-C works.
//! #[pyfunction]
//! fn wait(py: Python<'_>, seconds: u64) -> PyResult<()> {
//!     RUNTIME.block_on(py, async move {
//!         tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
//!         anyhow::Ok(())
//!     })
//! }
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;

use crate::atexit::{self, STOP_LIMIT};
use crate::error::{Error, HasKind, Kind, ResultExt, catch_panic};
use crate::process::PerProcess;

/// A multi-threaded Tokio runtime of one accelerator, as a `static`.
pub struct Runtime {
    name: &'static str,
    threads: usize,
    running: PerProcess<Running>,
}

struct Running {
    handle: Handle,
    waits: Arc<Waits>,
}

/// The threads that wait in [`Runtime::block_on`].
struct Waits {
    count: AtomicUsize,
    /// Never has a permit. Closed when the process exits: the timers of a runtime that is shut down
    /// panic when they are asked.
    open: Semaphore,
}

impl Waits {
    /// Ends all waits, and gives those who wait time to notice.
    fn end(&self) {
        self.open.close();
        let start = Instant::now();
        while self.count.load(Ordering::Acquire) > 0 && start.elapsed() < STOP_LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The exit hook has run; what was started now would be torn down with the interpreter.
    #[error("cannot start {0}: the process is exiting")]
    Exiting(&'static str),
    /// The system refused a thread or a descriptor.
    #[error("cannot start {0}")]
    Start(&'static str, #[source] std::io::Error),
}

impl HasKind for RuntimeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Exiting(_) => Kind::Runtime,
            Self::Start(..) => Kind::Os,
        }
    }
}

impl Runtime {
    /// Describes a runtime with this many worker threads, at least 1; starts nothing.
    pub const fn new(name: &'static str, threads: usize) -> Self {
        Self {
            name,
            threads: if threads == 0 { 1 } else { threads },
            running: PerProcess::new(),
        }
    }

    /// Returns the handle of this process's runtime; starts it if need be.
    pub fn handle(&self) -> Result<&Handle, RuntimeError> {
        Ok(&self.running()?.handle)
    }

    fn running(&self) -> Result<&Running, RuntimeError> {
        if atexit::exiting() {
            return Err(RuntimeError::Exiting(self.name));
        }
        self.running.get_or_try_init(|| {
            let runtime = Builder::new_multi_thread()
                .worker_threads(self.threads)
                .thread_name(self.name)
                .enable_time()
                .build()
                .map_err(|error| RuntimeError::Start(self.name, error))?;
            let handle = runtime.handle().clone();
            let waits = Arc::new(Waits {
                count: AtomicUsize::new(0),
                open: Semaphore::new(0),
            });
            let ours = Arc::clone(&waits);
            atexit::register(move || {
                ours.end();
                runtime.shutdown_timeout(STOP_LIMIT);
            });
            Ok(Running { handle, waits })
        })
    }

    /// Runs `future` with the GIL released, and turns its error, or its panic, into an exception.
    ///
    /// Ctrl-C, or whatever a Python signal handler raises, drops the future and is raised.
    pub fn block_on<T, E, F>(&self, py: Python<'_>, future: F) -> PyResult<T>
    where
        F: Future<Output = Result<T, E>> + Send,
        T: Send,
        E: Into<Error> + Send,
    {
        const BETWEEN_SIGNAL_CHECKS: Duration = Duration::from_millis(50);
        let Running { handle, waits } = py.detach(|| self.running()).into_py()?;
        let mut future = pin!(future);
        let mut ended = pin!(waits.open.acquire());
        // None: the process exits.
        let mut step = poll_fn(|context| match ended.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => future.as_mut().poll(context).map(Some),
        });
        loop {
            let slice = py.detach(|| {
                waits.count.fetch_add(1, Ordering::AcqRel);
                let slice = catch_panic(|| {
                    handle.block_on(async {
                        // Before a timer is asked for, which there may be no more.
                        if waits.open.is_closed() {
                            return Ok(None);
                        }
                        tokio::time::timeout(BETWEEN_SIGNAL_CHECKS, &mut step).await
                    })
                });
                waits.count.fetch_sub(1, Ordering::AcqRel);
                // Python has waited for all its other threads: this one is a daemon, which ends
                // with the process wherever it is.
                while let Ok(Ok(None)) = slice {
                    thread::park();
                }
                slice
            });
            if let Ok(Some(done)) = slice.into_py()? {
                return done.into_py();
            }
            py.check_signals()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_on_named_threads() {
        static RUNTIME: Runtime = Runtime::new("test-runtime", 1);
        let handle = RUNTIME.handle().unwrap();
        let name = handle.block_on(async {
            tokio::spawn(async { std::thread::current().name().map(ToOwned::to_owned) }).await
        });
        assert_eq!(name.unwrap().as_deref(), Some("test-runtime"));
    }
}
