//! What the SDK does where Python is involved, as a module that `tests/sdk` loads and attacks.
//! The smallest accelerator that uses all of the SDK.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use crewai_native_sdk::context::Context;
use crewai_native_sdk::gil::{detached, lock_detached, try_attach};
use crewai_native_sdk::pool::Pool;
use crewai_native_sdk::process::PerProcess;
use crewai_native_sdk::runtime::Runtime;
use crewai_native_sdk::{Error, HasKind, Kind, ResultExt, atexit, error, json};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// A test that would hang fails after this long instead.
const PATIENCE: Duration = Duration::from_secs(60);

static POOL: Pool = Pool::new("sdk-test-pool");
static RUNTIME: Runtime = Runtime::new("sdk-test-io", 1);

#[derive(Debug, thiserror::Error)]
#[error("a vector of {found} numbers, expected {expected}")]
struct Width {
    found: usize,
    expected: usize,
}

impl HasKind for Width {
    fn kind(&self) -> Kind {
        Kind::Value
    }
}

/// Fails with an error of the operating system below two contexts.
#[pyfunction]
fn fail_io(errno: i32) -> Result<(), Error> {
    Err(io::Error::from_raw_os_error(errno))
        .context("reading the header")
        .context("opening y.db")?;
    Ok(())
}

/// Fails with the kind of that name.
#[pyfunction]
fn fail_kind(name: &str) -> PyResult<()> {
    let kind = match name {
        "ValueError" => Kind::Value,
        "TypeError" => Kind::Type,
        "KeyError" => Kind::Key,
        "IndexError" => Kind::Index,
        "OverflowError" => Kind::Overflow,
        "NotImplementedError" => Kind::NotImplemented,
        "MemoryError" => Kind::Memory,
        "OSError" => Kind::Os,
        "FileNotFoundError" => Kind::FileNotFound,
        "FileExistsError" => Kind::FileExists,
        "PermissionError" => Kind::Permission,
        "TimeoutError" => Kind::Timeout,
        "ConnectionError" => Kind::Connection,
        _ => Kind::Runtime,
    };
    Err::<(), _>(anyhow::anyhow!("inner"))
        .with_kind(kind)
        .context("outer")
        .into_py()
}

/// Fails with an error type that knows its kind.
#[pyfunction]
fn fail_width() -> Result<(), Error> {
    Err(Width {
        found: 2,
        expected: 3,
    })?
}

/// Calls `callable` and adds context to what it raises; `wrapped` hides it in an `io::Error` first.
#[pyfunction]
#[pyo3(signature = (callable, wrapped = false))]
fn call_with_context(callable: &Bound<'_, PyAny>, wrapped: bool) -> Result<Py<PyAny>, Error> {
    let result = callable.call0().map(Bound::unbind);
    let result = if wrapped {
        result.map_err(io::Error::other).map_err(anyhow::Error::new)
    } else {
        result.map_err(anyhow::Error::new)
    };
    Ok(result.context("loading record 7").context("searching")?)
}

/// Panics, with or without the GIL, or on a thread of the pool.
#[pyfunction]
fn fail_panic(py: Python<'_>, place: &str) -> PyResult<()> {
    let panics = |part: usize| assert!(part < 3, "part {part} is bad");
    match place {
        "attached" => error::catch_panic(|| panics(3)).into_py(),
        "detached" => detached(py, || {
            panics(3);
            anyhow::Ok(())
        }),
        "pool" => detached(py, || {
            POOL.run(4, panics);
            anyhow::Ok(())
        }),
        _ => RUNTIME.block_on(py, async {
            panics(3);
            anyhow::Ok(())
        }),
    }
}

/// Raises `PanicException` as PyO3 does: what the SDK's helpers keep from users.
#[pyfunction]
fn fail_panic_unguarded() {
    // The test's subject is a panic that nothing catches.
    #[allow(clippy::panic)]
    {
        panic!("unguarded")
    }
}

/// A door that one thread waits at and another opens.
#[pyclass(frozen)]
#[derive(Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    fn pass(&self) -> anyhow::Result<()> {
        let (open, opened) = &*self.0;
        let guard = open.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        let waited = opened.wait_timeout_while(guard, PATIENCE, |open| !*open);
        match waited {
            Ok((open, _)) if *open => Ok(()),
            _ => Err(anyhow::anyhow!("nobody opened the door")).with_kind(Kind::Timeout),
        }
    }
}

#[pymethods]
impl Door {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn open(&self) -> PyResult<()> {
        let (open, opened) = &*self.0;
        *open
            .lock()
            .map_err(|_| PyTimeoutError::new_err("poisoned"))? = true;
        opened.notify_all();
        Ok(())
    }

    /// Waits for the door with the GIL released.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.pass())
    }
}

/// A number under a lock.
#[pyclass(frozen)]
#[derive(Default)]
struct Locked(parking_lot::Mutex<u64>);

#[pymethods]
impl Locked {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Holds the lock, without the GIL, from opening `held` until `release` is open.
    fn hold(&self, py: Python<'_>, held: &Door, release: &Door) -> PyResult<()> {
        detached(py, || {
            let _guard = self.0.lock();
            held.open()?;
            release.pass()
        })
    }

    fn add(&self, py: Python<'_>) -> u64 {
        let mut number = lock_detached(py, &self.0);
        *number += 1;
        *number
    }
}

/// Returns how often this process has built its value, and the process that built it.
#[pyfunction]
fn per_process() -> (u64, u32) {
    static BUILT: AtomicU64 = AtomicU64::new(0);
    static VALUE: PerProcess<(u64, u32)> = PerProcess::new();
    *VALUE.get_or_init(|| (BUILT.fetch_add(1, Ordering::SeqCst) + 1, process::id()))
}

/// Returns the sum of the numbers below `n`, computed by the pool.
#[pyfunction]
fn pool_sum(py: Python<'_>, n: u64) -> PyResult<u64> {
    let numbers: Vec<u64> = (0..n).collect();
    detached(py, || {
        let sums = POOL.map_chunks(&numbers, 64, |_, chunk| chunk.iter().sum::<u64>());
        anyhow::Ok(sums.iter().sum())
    })
}

#[pyfunction]
fn pool_threads(py: Python<'_>) -> PyResult<usize> {
    detached(py, || anyhow::Ok(POOL.threads()))
}

/// Keeps the whole pool busy, without the GIL, for ever.
#[pyfunction]
fn pool_spin(py: Python<'_>, started: &Door) -> PyResult<()> {
    detached(py, || {
        POOL.run(POOL.threads(), |_| {
            // The door is this function's own: opening cannot fail.
            _ = started.open();
            loop {
                std::hint::spin_loop();
            }
        });
        anyhow::Ok(())
    })
}

/// Calls `callable(*args)` on a native thread in the caller's context and returns the result.
#[pyfunction]
#[pyo3(signature = (callable, *args))]
fn call_in_thread(callable: Bound<'_, PyAny>, args: Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let py = callable.py();
    let context = Context::capture(py)?;
    let (callable, args) = (callable.unbind(), args.unbind());
    let thread: JoinHandle<Option<PyResult<Py<PyAny>>>> = std::thread::spawn(move || {
        try_attach(|py| {
            context
                .run(py, callable.bind(py), args.into_bound(py))
                .map(Bound::unbind)
        })
    });
    detached(py, || {
        let result = thread.join().map_err(|_| anyhow::anyhow!("panic"))?;
        result.context("refused")?.map_err(anyhow::Error::new)
    })
}

/// Calls `callable()` on a native thread, again and again until it is refused, then opens `refused`.
#[pyfunction]
fn call_for_ever(callable: Py<PyAny>, refused: &Door) {
    let refused = Door(Arc::clone(&refused.0));
    std::thread::spawn(move || {
        while let Some(result) = try_attach(|py| callable.call0(py).map(drop)) {
            if result.is_err() {
                return;
            }
        }
        // Nobody is left to tell of a failure.
        _ = refused.open();
    });
}

/// Writes `text` to `fd` when the process exits.
#[pyfunction]
fn write_at_exit(fd: i32, text: String) {
    atexit::register(move || tell(fd, &text));
}

/// Panics when the process exits.
#[pyfunction]
fn panic_at_exit() {
    // The test's subject is a hook that panics.
    #[allow(clippy::panic)]
    atexit::register(|| panic!("in a hook"));
}

#[pyfunction]
fn exiting() -> bool {
    atexit::exiting()
}

fn tell(fd: i32, text: &str) {
    // SAFETY: the test owns `fd` and keeps it open; `ManuallyDrop` leaves it so.
    let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    // The test sees what is missing.
    _ = file.write_all(text.as_bytes());
}

/// Returns 42 by way of a task on the runtime.
#[pyfunction]
fn runtime_answer(py: Python<'_>) -> PyResult<u32> {
    RUNTIME.block_on(py, async {
        let task = RUNTIME.handle().classified()?.spawn(async { 42 });
        anyhow::Ok(task.await?)
    })
}

/// Waits on the runtime for ever, after opening `started`.
#[pyfunction]
fn runtime_wait(py: Python<'_>, started: &Door) -> PyResult<()> {
    RUNTIME.block_on(py, async {
        started.open()?;
        std::future::pending::<()>().await;
        anyhow::Ok(())
    })
}

/// Starts a task on the runtime that never ends, and one that never ends in blocking code.
#[pyfunction]
fn runtime_leave_work(py: Python<'_>) -> PyResult<()> {
    detached(py, || {
        let handle = RUNTIME.handle().classified()?;
        handle.spawn(std::future::pending::<()>());
        handle.spawn_blocking(|| {
            loop {
                std::thread::park();
            }
        });
        anyhow::Ok(())
    })
}

#[pyfunction]
fn to_json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    json::to_json(value)
}

#[pyfunction]
fn to_canonical_json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    json::to_canonical_json(value)
}

#[pyfunction]
fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    json::from_json(py, text)
}

#[pymodule]
mod sdk_testmod {
    use crewai_native_sdk::{json, passport};
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        Door, Locked, call_for_ever, call_in_thread, call_with_context, exiting, fail_io,
        fail_kind, fail_panic, fail_panic_unguarded, fail_width, from_json, panic_at_exit,
        per_process, pool_spin, pool_sum, pool_threads, runtime_answer, runtime_leave_work,
        runtime_wait, to_canonical_json, to_json, write_at_exit,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("MAX_DEPTH", json::MAX_DEPTH)?;
        passport!(module, "sqlite" => "3.51.3", "answer" => 42)
    }
}
