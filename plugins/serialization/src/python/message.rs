//! A message between agents, as Python sees it.

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::build::ReadError;

/// The fields, in the order in which they are written.
pub(super) const FIELDS: [&str; 5] = ["id", "sender", "recipient", "content", "timestamp"];
const CONTENT: usize = 3;
/// The key that says by which schema a message is to be read.
const SCHEMA: &str = "schema";

/// The names of the fields as Python objects.
pub(super) struct Names {
    pub(super) fields: [Py<PyString>; FIELDS.len()],
    pub(super) schema: Py<PyString>,
}

impl Names {
    pub(super) fn get(py: Python<'_>) -> &'static Self {
        static NAMES: PyOnceLock<Names> = PyOnceLock::new();
        NAMES.get_or_init(py, || Self {
            fields: FIELDS.map(|name| PyString::intern(py, name).unbind()),
            schema: PyString::intern(py, SCHEMA).unbind(),
        })
    }

    pub(super) fn find(&self, key: &str) -> Option<&Py<PyString>> {
        match key {
            "id" => Some(&self.fields[0]),
            "sender" => Some(&self.fields[1]),
            "recipient" => Some(&self.fields[2]),
            "content" => Some(&self.fields[3]),
            "timestamp" => Some(&self.fields[4]),
            SCHEMA => Some(&self.schema),
            _ => None,
        }
    }
}

/// A message between agents. It does not change; `replace()` makes another.
///
/// `content` and what else is given by name may be whatever JSON can hold. A `timestamp` is text in
/// ISO 8601; a `datetime` becomes such.
#[pyclass(frozen, module = "crewai_native_serialization")]
pub(super) struct AgentMessage {
    fields: [Py<PyAny>; FIELDS.len()],
    pub(super) extra: Option<Py<PyDict>>,
}

impl AgentMessage {
    /// Makes a message of what was read.
    ///
    /// The error says what is missing or wrong.
    pub(super) fn from_fields(
        fields: [Option<Bound<'_, PyAny>>; FIELDS.len()],
        extra: Option<Bound<'_, PyDict>>,
    ) -> Result<Self, String> {
        for (place, field) in fields.iter().enumerate() {
            match field {
                None => return Err(format!("a message without {:?}", FIELDS[place])),
                Some(field) if place != CONTENT && !field.is_instance_of::<PyString>() => {
                    return Err(format!("a message whose {:?} is no text", FIELDS[place]));
                }
                Some(_) => {}
            }
        }
        let Some(fields) = all(fields) else {
            return Err("a message that lacks a field".to_owned());
        };
        Ok(Self {
            fields: fields.map(Bound::unbind),
            extra: extra.map(Bound::unbind),
        })
    }

    /// Returns the fields, in their order.
    pub(super) fn values<'py>(&self, py: Python<'py>) -> [&Bound<'py, PyAny>; FIELDS.len()] {
        self.fields.each_ref().map(|field| field.bind(py))
    }

    /// Returns where the fields are.
    pub(super) fn objects(&self) -> [*mut ffi::PyObject; FIELDS.len()] {
        self.fields.each_ref().map(Py::as_ptr)
    }
}

fn all<T, const N: usize>(values: [Option<T>; N]) -> Option<[T; N]> {
    let values: Vec<T> = values.into_iter().flatten().collect();
    values.try_into().ok()
}

#[pymethods]
impl AgentMessage {
    #[new]
    #[pyo3(signature = (id, sender, recipient, content, timestamp, **extra))]
    fn new(
        id: Bound<'_, PyAny>,
        sender: Bound<'_, PyAny>,
        recipient: Bound<'_, PyAny>,
        content: Bound<'_, PyAny>,
        timestamp: Bound<'_, PyAny>,
        extra: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let py = id.py();
        let timestamp = if timestamp.is_instance_of::<PyString>() {
            timestamp
        } else {
            timestamp
                .call_method0(intern!(py, "isoformat"))
                .map_err(|_| PyTypeError::new_err("timestamp accepts str and datetime"))?
        };
        if extra
            .as_ref()
            .is_some_and(|extra| extra.contains(SCHEMA).unwrap_or(true))
        {
            return Err(PyTypeError::new_err(
                "a message has no field 'schema': whoever writes it adds that",
            ));
        }
        let fields = [id, sender, recipient, content, timestamp].map(Some);
        Self::from_fields(fields, extra.filter(|extra| !extra.is_empty()))
            .map_err(PyTypeError::new_err)
    }

    /// A message with an identifier of its own (a random UUID) and the present time in UTC.
    #[classmethod]
    #[pyo3(signature = (sender, recipient, content, **extra))]
    fn create<'py>(
        class: &Bound<'py, PyType>,
        sender: Bound<'py, PyAny>,
        recipient: Bound<'py, PyAny>,
        content: Bound<'py, PyAny>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = class.py();
        let id = py.import("uuid")?.call_method0("uuid4")?.str()?;
        let datetime = py.import("datetime")?;
        let utc = datetime.getattr("timezone")?.getattr("utc")?;
        let now = datetime.getattr("datetime")?.call_method1("now", (utc,))?;
        class.call((id, sender, recipient, content, now), extra.as_ref())
    }

    #[getter]
    fn id(&self, py: Python<'_>) -> Py<PyAny> {
        self.fields[0].clone_ref(py)
    }

    #[getter]
    fn sender(&self, py: Python<'_>) -> Py<PyAny> {
        self.fields[1].clone_ref(py)
    }

    #[getter]
    fn recipient(&self, py: Python<'_>) -> Py<PyAny> {
        self.fields[2].clone_ref(py)
    }

    #[getter]
    fn content(&self, py: Python<'_>) -> Py<PyAny> {
        self.fields[3].clone_ref(py)
    }

    #[getter]
    fn timestamp(&self, py: Python<'_>) -> Py<PyAny> {
        self.fields[4].clone_ref(py)
    }

    /// What else the message has, by name: a new dict.
    #[getter]
    fn extra<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        match &self.extra {
            Some(extra) => extra.bind(py).copy(),
            None => Ok(PyDict::new(py)),
        }
    }

    /// The message as a new dict, without the envelope's schema.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, field) in FIELDS.iter().zip(self.values(py)) {
            dict.set_item(name, field)?;
        }
        if let Some(extra) = &self.extra {
            dict.update(extra.bind(py).as_mapping())?;
        }
        Ok(dict)
    }

    /// A message that differs in these fields.
    #[pyo3(signature = (**changes))]
    fn replace<'py>(
        slf: &Bound<'py, Self>,
        changes: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let fields = slf.get().to_dict(slf.py())?;
        if let Some(changes) = changes {
            fields.update(changes.as_mapping())?;
        }
        slf.get_type().call((), Some(&fields))
    }

    /// The message as JSON in UTF-8.
    fn to_json<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        super::encode(slf.as_any(), "json")
    }

    /// The message as `MessagePack`.
    fn to_msgpack<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        super::encode(slf.as_any(), "msgpack")
    }

    /// The message that JSON holds.
    ///
    /// Raises `MessageError`, a `ValueError`, with the offset where it holds none.
    #[staticmethod]
    fn from_json<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::decoded(data, "json")
    }

    /// The message that `MessagePack` holds; see `from_json`.
    #[staticmethod]
    fn from_msgpack<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::decoded(data, "msgpack")
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = other.py();
        let Ok(other) = other.cast_exact::<Self>() else {
            return Ok(false);
        };
        self.to_dict(py)?.eq(other.get().to_dict(py)?)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut parts = Vec::new();
        for (key, value) in self.to_dict(py)? {
            parts.push(format!("{key}={}", value.repr()?.to_string_lossy()));
        }
        Ok(format!("AgentMessage({})", parts.join(", ")))
    }

    /// For `copy` and `pickle`.
    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let fields = self.fields.iter().map(|field| field.bind(py));
        Ok((PyTuple::new(py, fields)?, self.extra(py)?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for field in &self.fields {
            visit.call(field)?;
        }
        visit.call(&self.extra)
    }
}

impl AgentMessage {
    fn decoded<'py>(data: &Bound<'py, PyAny>, format: &str) -> PyResult<Bound<'py, PyAny>> {
        let message = super::decode_message(data, format, super::SCHEMA)?;
        let Ok(older) = message.cast::<PyDict>() else {
            return Ok(message);
        };
        let schema = older.get_item(SCHEMA)?;
        match schema {
            // Written without an envelope, as CrewAI's side of the slot writes: the same fields.
            None => data
                .py()
                .get_type::<Self>()
                .call((), Some(older))
                .map_err(|error| {
                    let what = format!("a message without a schema: {}", error.value(data.py()));
                    super::read_error(data.py(), &ReadError { at: 0, what })
                }),
            Some(schema) => {
                let what = format!(
                    "a message of schema {schema}; {} is understood here, others by a Serializer \
                     that has their upgrades,",
                    super::SCHEMA
                );
                Err(super::read_error(data.py(), &ReadError { at: 0, what }))
            }
        }
    }
}
