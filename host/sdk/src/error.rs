//! Rust errors as the Python exceptions that fit.
//!
//! At the boundary a whole error chain becomes one exception. Its message is the chain, outermost
//! first (`opening /x/y.db: reading the header: unexpected end of file`), and its class is, in
//! this order:
//!
//! 1. a [`PyErr`] in the chain is raised again as itself, with its traceback, and the context
//!    around it is added as a note;
//! 2. the outermost [`Kind`] that somebody attached, with [`ResultExt::with_kind`] or by an error
//!    type that implements [`HasKind`];
//! 3. the outermost [`std::io::Error`]: `OSError` with `errno` kept, so `FileNotFoundError`,
//!    `PermissionError`, `TimeoutError` and so on;
//! 4. `RuntimeError`.
//!
//! Inside an accelerator, use `anyhow` for context and `thiserror` for what callers match on:
//!
//! ```
//! use anyhow::Context;
//! use crewai_native_sdk::{HasKind, Kind, ResultExt};
//!
//! #[derive(Debug, thiserror::Error)]
//! enum StoreError {
//!     #[error("a vector of {found} numbers, expected {expected}")]
//!     Width { found: usize, expected: usize },
//!     #[error("format version {0} is newer than this wheel understands")]
//!     TooNew(u32),
//! }
//!
//! impl HasKind for StoreError {
//!     fn kind(&self) -> Kind {
//!         match self {
//!             Self::Width { .. } => Kind::Value,
//!             Self::TooNew(_) => Kind::Runtime,
//!         }
//!     }
//! }
//!
//! fn check(found: usize) -> Result<(), StoreError> {
//!     match found {
//!         3 => Ok(()),
//!         _ => Err(StoreError::Width { found, expected: 3 }),
//!     }
//! }
//!
//! fn save(vector: &[f32]) -> anyhow::Result<()> {
//!     // `classified` carries the error's kind through anyhow.
//!     check(vector.len()).classified().context("saving record 7")
//! }
//!
//! let error = crewai_native_sdk::Error::from(save(&[1.0]).unwrap_err());
//! assert_eq!(error.kind(), Kind::Value);
//! assert_eq!(error.to_string(), "saving record 7: a vector of 1 numbers, expected 3");
//! ```
//!
//! A `#[pyfunction]` returns `Result<_, crewai_native_sdk::Error>` or a `PyResult`; `?` converts to
//! the first, [`ResultExt::into_py`] to the second.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use pyo3::exceptions::{
    PyConnectionError, PyFileExistsError, PyFileNotFoundError, PyIndexError, PyKeyError,
    PyMemoryError, PyNotImplementedError, PyOSError, PyOverflowError, PyPermissionError,
    PyRuntimeError, PyTimeoutError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;

mod panic;

pub use panic::{Panic, catch_panic};

/// The built-in Python exception that an error becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// `ValueError`
    Value,
    /// `TypeError`
    Type,
    /// `KeyError`
    Key,
    /// `IndexError`
    Index,
    /// `OverflowError`
    Overflow,
    /// `NotImplementedError`
    NotImplemented,
    /// `MemoryError`
    Memory,
    /// `RuntimeError`
    Runtime,
    /// `OSError`, or the subclass that the `errno` of an [`io::Error`] in the chain stands for
    Os,
    /// `FileNotFoundError`
    FileNotFound,
    /// `FileExistsError`
    FileExists,
    /// `PermissionError`
    Permission,
    /// `TimeoutError`
    Timeout,
    /// `ConnectionError`
    Connection,
}

/// An error type that knows which Python exception it is.
pub trait HasKind: StdError + Send + Sync + 'static {
    /// Returns the exception that this error becomes.
    fn kind(&self) -> Kind;
}

/// An error on its way to Python: an [`anyhow::Error`] that becomes a [`PyErr`] by `?` or `into`.
///
/// It does not implement [`std::error::Error`], for the reason for which `anyhow::Error` does not:
/// every error type converts into it.
pub struct Error(anyhow::Error);

impl Error {
    /// Returns the kind of the exception that this error becomes, were there no [`PyErr`] in it.
    pub fn kind(&self) -> Kind {
        Report::of(self.0.as_ref()).kind()
    }
}

/// The whole chain, outermost first, as the exception's message shows it.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Report::of(self.0.as_ref()).message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self(error)
    }
}

impl From<PyErr> for Error {
    fn from(error: PyErr) -> Self {
        Self(error.into())
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self(error.into())
    }
}

impl<E: HasKind> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Classified::new(error.kind(), error).into())
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let report = Report::of(error.0.as_ref());
        match report.python {
            Some(raised) => Python::attach(|py| {
                let raised = raised.clone_ref(py);
                if !report.message.is_empty()
                    && let Err(failure) = raised.add_note(py, report.message)
                {
                    // Only an exception whose own `__notes__` was tampered with refuses a note.
                    failure.write_unraisable(py, None);
                }
                raised
            }),
            None => raise(report),
        }
    }
}

/// What a `Result` gains on its way to Python.
pub trait ResultExt<T, E> {
    /// Attaches the exception that the error becomes. The outermost attachment wins.
    ///
    /// ```
    /// use crewai_native_sdk::{Kind, ResultExt};
    ///
    /// let number = "12x".parse::<u32>().with_kind(Kind::Value);
    /// assert_eq!(crewai_native_sdk::Error::from(number.unwrap_err()).kind(), Kind::Value);
    /// ```
    fn with_kind(self, kind: Kind) -> anyhow::Result<T>
    where
        E: Into<anyhow::Error>;

    /// Carries the kind that the error itself knows through `anyhow`.
    fn classified(self) -> anyhow::Result<T>
    where
        E: HasKind;

    /// Converts the error to the exception that fits.
    fn into_py(self) -> PyResult<T>
    where
        E: Into<Error>;
}

impl<T, E> ResultExt<T, E> for Result<T, E> {
    fn with_kind(self, kind: Kind) -> anyhow::Result<T>
    where
        E: Into<anyhow::Error>,
    {
        self.map_err(|error| Classified::new(kind, error.into()).into())
    }

    fn classified(self) -> anyhow::Result<T>
    where
        E: HasKind,
    {
        self.map_err(|error| Classified::new(error.kind(), error).into())
    }

    fn into_py(self) -> PyResult<T>
    where
        E: Into<Error>,
    {
        self.map_err(|error| error.into().into())
    }
}

/// An error with its kind. It shows as the error itself, so that a chain reads as without it.
#[derive(Debug)]
struct Classified {
    kind: Kind,
    error: Box<dyn StdError + Send + Sync>,
}

impl Classified {
    fn new(kind: Kind, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            error: error.into(),
        }
    }
}

impl fmt::Display for Classified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl StdError for Classified {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// What one walk down an error chain finds.
struct Report<'a> {
    /// The links' messages, joined; up to, and without, a Python exception.
    message: String,
    attached: Option<Kind>,
    io: Option<&'a io::Error>,
    python: Option<&'a PyErr>,
}

impl<'a> Report<'a> {
    fn of(error: &'a (dyn StdError + 'static)) -> Self {
        let mut report = Self {
            message: String::new(),
            attached: None,
            io: None,
            python: None,
        };
        let mut next = Some(error);
        while let Some(link) = next {
            if let Some(classified) = link.downcast_ref::<Classified>() {
                report.attached = report.attached.or(Some(classified.kind));
                next = Some(&*classified.error);
                continue;
            }
            if let Some(raised) = link.downcast_ref::<PyErr>() {
                report.python = Some(raised);
                break;
            }
            if let Some(io) = link.downcast_ref::<io::Error>() {
                report.io = report.io.or(Some(io));
                if let Some(inner) = io.get_ref() {
                    // An `io::Error` shows as what it wraps, and hides it from `source`.
                    next = Some(inner);
                    continue;
                }
            }
            report.add(link);
            next = link.source();
        }
        report
    }

    fn add(&mut self, link: &(dyn StdError + 'static)) {
        let mut text = link.to_string();
        if let Some(code) = link
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            // Python shows the number itself, from `errno`.
            let suffix = format!(" (os error {code})");
            text.truncate(text.strip_suffix(&suffix).map_or(text.len(), str::len));
        }
        // Many error types repeat their source in their own message.
        if text.is_empty() || self.message.ends_with(&text) {
            return;
        }
        if !self.message.is_empty() {
            self.message.push_str(": ");
        }
        self.message.push_str(&text);
    }

    fn kind(&self) -> Kind {
        self.attached
            .or_else(|| self.io.map(|io| kind_of_io(io.kind())))
            .unwrap_or(Kind::Runtime)
    }
}

fn kind_of_io(kind: io::ErrorKind) -> Kind {
    match kind {
        io::ErrorKind::NotFound => Kind::FileNotFound,
        io::ErrorKind::AlreadyExists => Kind::FileExists,
        io::ErrorKind::PermissionDenied => Kind::Permission,
        io::ErrorKind::TimedOut => Kind::Timeout,
        io::ErrorKind::OutOfMemory => Kind::Memory,
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset => Kind::Connection,
        _ => Kind::Os,
    }
}

/// Returns the `errno` of an error of the `OSError` family, where one is known.
fn errno_of(io: Option<&io::Error>, kind: Kind) -> Option<i32> {
    // On Windows `raw_os_error` is a `winerror`, another numbering.
    let raw = io.and_then(io::Error::raw_os_error).filter(|_| cfg!(unix));
    raw.or_else(|| match (kind, io.map(io::Error::kind)) {
        (Kind::FileNotFound, _) => Some(libc::ENOENT),
        (Kind::FileExists, _) => Some(libc::EEXIST),
        (Kind::Permission, _) => Some(libc::EACCES),
        (Kind::Timeout, _) => Some(libc::ETIMEDOUT),
        (_, Some(io::ErrorKind::StorageFull)) => Some(libc::ENOSPC),
        _ => None,
    })
}

fn raise(report: Report<'_>) -> PyErr {
    let kind = report.kind();
    let message = report.message;
    macro_rules! os {
        ($class:ident) => {
            match errno_of(report.io, kind) {
                // `str()` of the exception is "[Errno 28] message".
                Some(errno) => $class::new_err((errno, message)),
                None => $class::new_err(message),
            }
        };
    }
    match kind {
        Kind::Value => PyValueError::new_err(message),
        Kind::Type => PyTypeError::new_err(message),
        Kind::Key => PyKeyError::new_err(message),
        Kind::Index => PyIndexError::new_err(message),
        Kind::Overflow => PyOverflowError::new_err(message),
        Kind::NotImplemented => PyNotImplementedError::new_err(message),
        Kind::Memory => PyMemoryError::new_err(message),
        Kind::Runtime => PyRuntimeError::new_err(message),
        // Python itself chooses the subclass by `errno`.
        Kind::Os => os!(PyOSError),
        Kind::FileNotFound => os!(PyFileNotFoundError),
        Kind::FileExists => os!(PyFileExistsError),
        Kind::Permission => os!(PyPermissionError),
        Kind::Timeout => os!(PyTimeoutError),
        // With an `errno`, the narrower class, such as `ConnectionResetError`.
        Kind::Connection if report.io.is_some_and(|io| io.raw_os_error().is_some()) => {
            os!(PyOSError)
        }
        Kind::Connection => os!(PyConnectionError),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("column {0} is missing")]
    struct Missing(&'static str);

    impl HasKind for Missing {
        fn kind(&self) -> Kind {
            Kind::Key
        }
    }

    fn seen(error: impl Into<Error>) -> (Kind, String) {
        let error = error.into();
        (error.kind(), error.to_string())
    }

    #[test]
    fn the_message_is_the_whole_chain() {
        let error = anyhow!("unexpected end")
            .context("reading the header")
            .context("opening y.db");
        assert_eq!(
            seen(error),
            (
                Kind::Runtime,
                "opening y.db: reading the header: unexpected end".into()
            )
        );
    }

    #[test]
    fn a_source_that_is_already_in_the_message_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Repeats(#[source] Missing);
        let error = anyhow::Error::new(Repeats(Missing("id")));
        assert_eq!(seen(error).1, "outer: column id is missing");
    }

    #[test]
    fn the_kind_of_an_error_type_survives_context() {
        let outer: anyhow::Result<()> = Err(Missing("id")).classified().context("loading");
        assert_eq!(
            seen(outer.unwrap_err()),
            (Kind::Key, "loading: column id is missing".into())
        );
        assert_eq!(
            seen(Missing("id")),
            (Kind::Key, "column id is missing".into())
        );
    }

    #[test]
    fn the_outermost_kind_wins() {
        let inner = Err::<(), _>(Missing("id")).classified().context("loading");
        let outer = inner.with_kind(Kind::Value).context("asking");
        assert_eq!(
            seen(outer.unwrap_err()),
            (Kind::Value, "asking: loading: column id is missing".into())
        );
    }

    #[test]
    fn an_io_error_chooses_its_kind_and_keeps_its_errno() {
        for (code, kind) in [
            (libc::ENOENT, Kind::FileNotFound),
            (libc::EACCES, Kind::Permission),
            (libc::EPERM, Kind::Permission),
            (libc::EEXIST, Kind::FileExists),
            (libc::ETIMEDOUT, Kind::Timeout),
            (libc::ENOMEM, Kind::Memory),
            (libc::ECONNRESET, Kind::Connection),
            (libc::ENOSPC, Kind::Os),
            (libc::EIO, Kind::Os),
        ] {
            let io = io::Error::from_raw_os_error(code);
            let error = anyhow::Error::new(io).context("writing");
            let report = Report::of(error.as_ref());
            assert_eq!(report.kind(), kind, "errno {code}");
            assert_eq!(errno_of(report.io, kind), Some(code));
            assert!(!report.message.contains("os error"), "{}", report.message);
        }
    }

    #[test]
    fn what_an_io_error_wraps_is_seen() {
        let io = io::Error::other(Classified::new(Kind::Value, Missing("id")));
        let error = anyhow::Error::new(io).context("reading");
        assert_eq!(
            seen(error),
            (Kind::Value, "reading: column id is missing".into())
        );
    }

    #[test]
    fn an_attached_kind_beats_an_io_error() {
        let io = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOENT));
        let error = io.with_kind(Kind::Key).unwrap_err();
        assert_eq!(seen(error).0, Kind::Key);
    }
}
