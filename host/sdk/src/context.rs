//! `contextvars` across threads.
//!
//! CrewAI keeps the current crew, event scope, flow and trace in context variables. A native thread
//! has an empty context: a callable that runs there would lose them, and with them its place in
//! events and traces. So a job carries the context of the moment at which it was submitted.
//!
//! ```
//! use crewai_native_sdk::{context::Context, gil};
//! use pyo3::prelude::*;
//!
//! /// Calls `callback(answer)` later, from a thread of our own.
//! #[pyfunction]
//! fn call_later(callback: Bound<'_, PyAny>) -> PyResult<()> {
//!     let context = Context::capture(callback.py())?;
//!     let callback = callback.unbind();
//!     std::thread::spawn(move || {
//!         let answer = 6 * 7;
//!         gil::try_attach(|py| {
//!             if let Err(error) = context.run(py, callback.bind(py), (answer,)) {
//!                 error.write_unraisable(py, Some(callback.bind(py)));
//!             }
//!         })
//!     });
//!     Ok(())
//! }
//! ```

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
use pyo3::{BoundObject, intern};

/// A copy of a thread's `contextvars` context, for one job.
///
/// Capture one for each job: Python refuses to enter the same copy twice at a time, and what one
/// job sets would show in another.
#[derive(Debug)]
pub struct Context(Py<PyAny>);

impl Context {
    /// Copies the context of the calling Python thread.
    pub fn capture(py: Python<'_>) -> PyResult<Self> {
        static COPY_CONTEXT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let copy = COPY_CONTEXT.import(py, "contextvars", "copy_context")?;
        Ok(Self(copy.call0()?.unbind()))
    }

    /// Returns `callable(*args)`, called in this context, on whatever thread this is.
    ///
    /// What the callable raises is the error; `RuntimeError` if this context is entered already.
    pub fn run<'py>(
        &self,
        py: Python<'py>,
        callable: &Bound<'py, PyAny>,
        args: impl IntoPyObject<'py, Target = PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let args = args.into_pyobject(py).map_err(Into::into)?.into_bound();
        let call = PyTuple::new(py, [callable])?
            .as_sequence()
            .concat(args.as_sequence())?
            .to_tuple()?;
        self.0.bind(py).getattr(intern!(py, "run"))?.call1(call)
    }
}
