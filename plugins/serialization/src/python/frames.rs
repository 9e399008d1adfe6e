//! Streams of messages, as Python sees them.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{bytes_of, format_of, read_error};
use crate::frames;

/// Takes a stream of messages apart, in whatever pieces it comes.
#[pyclass(module = "crewai_native_serialization._native")]
pub(super) struct Frames {
    frames: frames::Frames,
}

#[pymethods]
impl Frames {
    #[new]
    fn new(max_bytes: usize) -> Self {
        Self {
            frames: frames::Frames::new(max_bytes),
        }
    }

    /// Takes the next piece.
    fn feed(&mut self, piece: &Bound<'_, PyAny>) -> PyResult<()> {
        self.frames.feed(bytes_of(piece)?.as_bytes());
        Ok(())
    }

    /// Returns the format, where in the stream it begins, and the bytes of the next message, or
    /// `None` where more must come.
    fn next_frame<'py>(
        &mut self,
        py: Python<'py>,
    ) -> PyResult<Option<(&'static str, usize, Bound<'py, PyBytes>)>> {
        let format = self.frames.format();
        let Some((at, bytes)) = self.frames.next_frame().map_err(|e| read_error(py, &e))? else {
            return Ok(None);
        };
        let bytes = PyBytes::new(py, bytes);
        let format = format.or(self.frames.format()).unwrap_or_default();
        Ok(Some((format_of(format, py)?, at, bytes)))
    }

    /// Raises unless the stream has come to its end.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        self.frames.finish().map_err(|error| read_error(py, &error))
    }
}

/// How a stream of messages in this format begins.
#[pyfunction]
pub(super) fn stream_header<'py>(py: Python<'py>, format: &str) -> PyResult<Bound<'py, PyBytes>> {
    let letter = super::Format::named(format)?.letter();
    Ok(PyBytes::new(py, &frames::header(letter)))
}

/// What stands before a message of so many bytes.
#[pyfunction]
pub(super) fn stream_length(py: Python<'_>, length: usize) -> PyResult<Bound<'_, PyBytes>> {
    frames::length(length)
        .map(|length| PyBytes::new(py, &length))
        .ok_or_else(|| {
            pyo3::exceptions::PyValueError::new_err(format!(
                "a message of {length} bytes; a stream accepts fewer than 4 GiB"
            ))
        })
}

/// How a stream of so many messages ends.
#[pyfunction]
pub(super) fn stream_end(py: Python<'_>, count: u64) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &frames::end(count))
}
