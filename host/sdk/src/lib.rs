//! What every Rust accelerator for CrewAI needs, whoever publishes it.
//!
//! | module | for |
//! |---|---|
//! | [`passport`](mod@passport) | `__build_info__`: which build of which crate a Python process has loaded |
//! | [`error`] | Rust error chains and panics as the Python exceptions that fit |
//! | [`files`] | names of files and directories that are still there after a power cut |
//! | [`gil`] | releasing the GIL, locks beside it, and entering Python from native threads |
//! | [`json`] | JSON to and from Python objects, exact; canonical JSON for keys |
//! | [`context`] | `contextvars` carried to other threads |
//! | [`process`] | state that is built anew after a fork |
//! | [`pool`] | a private thread pool for CPU kernels |
//! | `runtime` | a private Tokio runtime (cargo feature `tokio`) |
//! | [`text`] | letters that a search by words has to treat by themselves |
//! | [`atexit`] | what must be over before the interpreter is torn down |
//!
//! An accelerator's `#[pymodule]` starts like this:
//!
//! ```
//! use pyo3::prelude::*;
//!
//! #[pymodule]
//! fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
//!     crewai_native_sdk::passport!(module)
//! }
//! ```
//!
//! and its functions like this:
//!
//! ```
//! use anyhow::Context;
//! use crewai_native_sdk::gil::detached;
//! use pyo3::prelude::*;
//!
//! /// Returns the size of a file in bytes.
//! #[pyfunction]
//! fn file_size(py: Python<'_>, path: std::path::PathBuf) -> PyResult<u64> {
//!     detached(py, || {
//!         let found = std::fs::metadata(&path)
//!             .with_context(|| format!("looking at {}", path.display()))?;
//!         anyhow::Ok(found.len())
//!     })
//! }
//! ```
//!
//! A missing file raises `FileNotFoundError` with `errno` set and the whole chain in its message;
//! a panic raises `RuntimeError`; other Python threads run meanwhile.
//!
//! # Tests without libpython
//!
//! Keep the core of an accelerator in modules that do not use PyO3, and build with the environment
//! variable `PYO3_BUILD_EXTENSION_MODULE=1` (in `.cargo/config.toml`; maturin sets it anyway).
//! Then `cargo test` needs no libpython, as long as no test reaches a Python function: an
//! unresolved `Py...` symbol in the linker's message names the test module that does. What needs
//! Python is tested from Python.

pub mod atexit;
pub mod context;
pub mod error;
pub mod files;
pub mod gil;
pub mod json;
pub mod passport;
pub mod pool;
pub mod process;
#[cfg(feature = "tokio")]
pub mod runtime;
pub mod text;

pub use error::{Error, HasKind, Kind, ResultExt};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
