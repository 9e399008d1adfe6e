//! The module `crewai_native_serialization._native`.

mod building;
mod bytes;
mod encoding;
mod events;
mod frames;
mod layout;
mod message;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pyo3::create_exception;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyString};

use self::building::{Builder, Outermost};
use self::encoding::{Json, Mappings, Pack};
use crate::build::ReadError;
use crate::{json, msgpack};

/// The schema of the messages that [`message::AgentMessage`] itself writes.
const SCHEMA: i64 = 1;

create_exception!(
    crewai_native_serialization,
    MessageError,
    PyValueError,
    "Bytes that hold no message. `offset` says where that shows, in bytes."
);

#[pymodule]
mod _native {
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_export]
    use super::MessageError;
    #[pymodule_export]
    use super::events::to_serializable;
    #[pymodule_export]
    use super::frames::{Frames, stream_end, stream_header, stream_length};
    #[pymodule_export]
    use super::message::AgentMessage;
    #[pymodule_export]
    use super::{
        decode, decode_batch, decode_message, decode_messages, encode, encode_batch,
        encode_message, encode_messages, totals,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::layout::find(module.py())?;
        module.add("SCHEMA", super::SCHEMA)?;
        crewai_native_sdk::passport!(module)
    }
}

#[derive(Clone, Copy)]
enum Format {
    Json,
    MessagePack,
}

impl Format {
    fn named(name: &str) -> PyResult<Self> {
        match name {
            "json" => Ok(Self::Json),
            "msgpack" => Ok(Self::MessagePack),
            _ => Err(PyValueError::new_err(format!(
                "there is no format '{name}'; there is: json, msgpack"
            ))),
        }
    }

    /// What stands for it at the beginning of a stream.
    fn letter(self) -> u8 {
        match self {
            Self::Json => b'j',
            Self::MessagePack => b'm',
        }
    }
}

fn format_of(letter: u8, py: Python<'_>) -> PyResult<&'static str> {
    match letter {
        b'j' => Ok("json"),
        b'm' => Ok("msgpack"),
        _ => Err(read_error(
            py,
            &ReadError {
                at: 5,
                what: "a stream of messages in an unknown format".to_owned(),
            },
        )),
    }
}

static COUNTS: [(&str, AtomicU64); 4] = [
    ("encoded", AtomicU64::new(0)),
    ("encoded_bytes", AtomicU64::new(0)),
    ("decoded", AtomicU64::new(0)),
    ("decoded_bytes", AtomicU64::new(0)),
];

fn count(first: usize, messages: usize, bytes: usize) {
    COUNTS[first].1.fetch_add(messages as u64, Relaxed);
    COUNTS[first + 1].1.fetch_add(bytes as u64, Relaxed);
}

/// Messages and bytes that this process has written and read.
#[pyfunction]
fn totals(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let totals = PyDict::new(py);
    for (name, count) in &COUNTS {
        totals.set_item(name, count.load(Relaxed))?;
    }
    Ok(totals)
}

/// A message as bytes: a mapping as it is, an `AgentMessage` in its envelope.
#[pyfunction]
fn encode<'py>(message: &Bound<'py, PyAny>, format: &str) -> PyResult<Bound<'py, PyAny>> {
    written(message, format, Mappings::Dicts, SCHEMA)
}

/// Messages as one list; see `encode`.
#[pyfunction]
fn encode_batch<'py>(messages: &Bound<'py, PyAny>, format: &str) -> PyResult<Bound<'py, PyAny>> {
    all_written(messages, format, Mappings::Dicts, SCHEMA)
}

/// A message in its envelope: an `AgentMessage`, or a mapping of the fields of one.
#[pyfunction]
fn encode_message<'py>(
    message: &Bound<'py, PyAny>,
    format: &str,
    schema: i64,
) -> PyResult<Bound<'py, PyAny>> {
    written(message, format, Mappings::Messages, schema)
}

/// Messages as one list; see `encode_message`.
#[pyfunction]
fn encode_messages<'py>(
    messages: &Bound<'py, PyAny>,
    format: &str,
    schema: i64,
) -> PyResult<Bound<'py, PyAny>> {
    all_written(messages, format, Mappings::Messages, schema)
}

fn written<'py>(
    message: &Bound<'py, PyAny>,
    format: &str,
    mappings: Mappings,
    schema: i64,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = match Format::named(format)? {
        Format::Json => bytes::written(message.py(), |output| {
            encoding::message(Json::new(output), message, mappings, schema)
        }),
        Format::MessagePack => {
            let mut output = Vec::new();
            encoding::message(Pack(&mut output), message, mappings, schema)
                .map(|()| PyBytes::new(message.py(), &output))
        }
    }?;
    count(0, 1, bytes.as_bytes().len());
    Ok(bytes.into_any())
}

fn all_written<'py>(
    messages: &Bound<'py, PyAny>,
    format: &str,
    mappings: Mappings,
    schema: i64,
) -> PyResult<Bound<'py, PyAny>> {
    let mut length = 0;
    let bytes = match Format::named(format)? {
        Format::Json => bytes::written(messages.py(), |output| {
            length = encoding::messages(Json::new(output), messages, mappings, schema)?;
            Ok(())
        }),
        Format::MessagePack => {
            let mut output = Vec::new();
            length = encoding::messages(Pack(&mut output), messages, mappings, schema)?;
            Ok(PyBytes::new(messages.py(), &output))
        }
    }?;
    count(0, length, bytes.as_bytes().len());
    Ok(bytes.into_any())
}

/// The message that bytes hold, as a dict.
#[pyfunction]
fn decode<'py>(data: &Bound<'py, PyAny>, format: &str) -> PyResult<Bound<'py, PyAny>> {
    one(data, format, Outermost::Dicts)
}

/// The messages of a batch, as dicts.
#[pyfunction]
fn decode_batch<'py>(data: &Bound<'py, PyAny>, format: &str) -> PyResult<Bound<'py, PyAny>> {
    many(data, format, Outermost::Dicts)
}

/// The message that bytes hold; as a dict if its schema is another.
#[pyfunction]
fn decode_message<'py>(
    data: &Bound<'py, PyAny>,
    format: &str,
    schema: i64,
) -> PyResult<Bound<'py, PyAny>> {
    one(data, format, Outermost::Messages(schema))
}

/// The messages of a batch; as dicts those whose schema is another.
#[pyfunction]
fn decode_messages<'py>(
    data: &Bound<'py, PyAny>,
    format: &str,
    schema: i64,
) -> PyResult<Bound<'py, PyAny>> {
    many(data, format, Outermost::Messages(schema))
}

fn one<'py>(
    data: &Bound<'py, PyAny>,
    format: &str,
    outermost: Outermost,
) -> PyResult<Bound<'py, PyAny>> {
    let value = read(data, format, outermost, false)?;
    if value.is_instance_of::<PyDict>() || value.is_instance_of::<message::AgentMessage>() {
        count(2, 1, 0);
        return Ok(value);
    }
    Err(no_message(&value, "a message is a map"))
}

fn many<'py>(
    data: &Bound<'py, PyAny>,
    format: &str,
    outermost: Outermost,
) -> PyResult<Bound<'py, PyAny>> {
    let value = read(data, format, outermost, true)?;
    if let Ok(list) = value.cast::<PyList>() {
        count(2, list.len(), 0);
        return Ok(value);
    }
    Err(no_message(&value, "a batch is a list of messages"))
}

fn no_message(value: &Bound<'_, PyAny>, what: &str) -> PyErr {
    let found = value
        .get_type()
        .name()
        .map_or_else(|_| "something else".to_owned(), |name| name.to_string());
    let error = ReadError {
        at: 0,
        what: format!("{what}, found {found}"),
    };
    read_error(value.py(), &error)
}

fn read<'py>(
    data: &Bound<'py, PyAny>,
    format: &str,
    outermost: Outermost,
    batch: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = data.py();
    let format = Format::named(format)?;
    let bytes = bytes_of(data)?;
    let bytes = bytes.as_bytes();
    let mut builder = Builder::new(py, outermost, batch);
    let value = match format {
        Format::Json => text_of(py, bytes).and_then(|text| json::read(text, &mut builder)),
        Format::MessagePack => msgpack::read(bytes, &mut builder),
    };
    count(2, 0, bytes.len());
    value.map_err(|error| read_error(py, &error))
}

fn text_of<'a>(py: Python<'_>, bytes: &'a [u8]) -> Result<&'a str, ReadError> {
    // Some 20 microseconds' worth.
    const LONG: usize = 128 * 1024;
    let checked = if bytes.len() > LONG {
        py.detach(|| simdutf8::compat::from_utf8(bytes))
    } else {
        simdutf8::compat::from_utf8(bytes)
    };
    checked.map_err(|error| ReadError {
        at: error.valid_up_to(),
        what: "invalid UTF-8".to_owned(),
    })
}

fn read_error(py: Python<'_>, error: &ReadError) -> PyErr {
    let raised = MessageError::new_err(error.to_string());
    match raised.value(py).setattr("offset", error.at) {
        Ok(()) => raised,
        Err(failed) => failed,
    }
}

/// Bytes that nobody changes while they are read.
fn bytes_of<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(bytes.clone());
    }
    if let Ok(text) = data.cast::<PyString>() {
        return text.encode_utf8();
    }
    if data.is_instance_of::<PyByteArray>() || data.is_instance_of::<PyMemoryView>() {
        return Ok(data
            .py()
            .get_type::<PyBytes>()
            .call1((data,))?
            .cast_into::<PyBytes>()?);
    }
    Err(PyTypeError::new_err(format!(
        "data is of type {}; it accepts bytes, bytearray, memoryview and str",
        data.get_type().name()?
    )))
}
