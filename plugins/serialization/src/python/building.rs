//! Python objects out of what a reader finds.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString};

use super::message::{AgentMessage, FIELDS, Names};
use crate::build::{Build, BuildError};

/// What the outermost maps are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outermost {
    /// Dicts.
    Dicts,
    /// Messages of this schema, and dicts where the schema is another.
    Messages(i64),
}

/// Makes Python objects.
pub(super) struct Builder<'py> {
    py: Python<'py>,
    outermost: Outermost,
    /// How many lists are around the outermost maps: 1 in a batch, else 0.
    around: usize,
    names: &'static Names,
    keys: Keys<'py>,
}

impl<'py> Builder<'py> {
    pub(super) fn new(py: Python<'py>, outermost: Outermost, batch: bool) -> Self {
        Self {
            py,
            outermost,
            around: usize::from(batch),
            names: Names::get(py),
            keys: Keys::new(),
        }
    }

    fn dict(
        &self,
        values: &mut Vec<Bound<'py, PyAny>>,
        start: usize,
    ) -> Result<Bound<'py, PyDict>, BuildError> {
        let dict = PyDict::new(self.py);
        let mut entries = values.drain(start..);
        let mut count = 0;
        while let (Some(key), Some(value)) = (entries.next(), entries.next()) {
            dict.set_item(key, value).map_err(raised)?;
            count += 1;
            if dict.len() != count {
                return Err(BuildError::Duplicate(count - 1));
            }
        }
        Ok(dict)
    }

    fn message(
        &self,
        values: &mut Vec<Bound<'py, PyAny>>,
        start: usize,
        schema: i64,
    ) -> Result<Bound<'py, PyAny>, BuildError> {
        let name = self.names.schema.as_ptr();
        let given = values[start..]
            .chunks_exact(2)
            .find(|entry| entry[0].as_ptr() == name)
            .map_or(Ok(0), |entry| {
                entry[1].cast_exact::<PyInt>()?.extract::<i64>()
            })
            .map_err(|_: PyErr| BuildError::Other("a schema that is no whole number".to_owned()))?;
        if given != schema {
            // It is for an upgrade function.
            return Ok(self.dict(values, start)?.into_any());
        }
        let mut fields: [Option<Bound<'py, PyAny>>; FIELDS.len()] = Default::default();
        let mut extra: Option<Bound<'py, PyDict>> = None;
        let mut seen_schema = false;
        let mut entries = values.drain(start..);
        let (mut entry, mut further) = (0, 0);
        while let (Some(key), Some(value)) = (entries.next(), entries.next()) {
            let place = self
                .names
                .fields
                .iter()
                .position(|name| name.as_ptr() == key.as_ptr());
            let twice = if let Some(place) = place {
                fields[place].replace(value).is_some()
            } else if key.as_ptr() == name {
                std::mem::replace(&mut seen_schema, true)
            } else {
                let extra = extra.get_or_insert_with(|| PyDict::new(self.py));
                extra.set_item(key, value).map_err(raised)?;
                further += 1;
                extra.len() != further
            };
            if twice {
                return Err(BuildError::Duplicate(entry));
            }
            entry += 1;
        }
        drop(entries);
        AgentMessage::from_fields(fields, extra)
            .map_err(BuildError::Other)
            .and_then(|message| Bound::new(self.py, message).map_err(raised))
            .map(Bound::into_any)
    }
}

impl<'py> Build for Builder<'py> {
    type Value = Bound<'py, PyAny>;

    fn null(&mut self) -> Self::Value {
        self.py.None().into_bound(self.py)
    }

    fn truth(&mut self, truth: bool) -> Self::Value {
        PyBool::new(self.py, truth).to_owned().into_any()
    }

    fn int(&mut self, number: i64) -> Result<Self::Value, BuildError> {
        let Ok(number) = number.into_pyobject(self.py);
        Ok(number.into_any())
    }

    fn big_int(&mut self, digits: &str) -> Result<Self::Value, BuildError> {
        // Python's own: exact, and limited by `sys.set_int_max_str_digits`.
        self.py.get_type::<PyInt>().call1((digits,)).map_err(raised)
    }

    fn float(&mut self, number: f64) -> Self::Value {
        PyFloat::new(self.py, number).into_any()
    }

    fn text(&mut self, text: &str) -> Self::Value {
        PyString::new(self.py, text).into_any()
    }

    fn key(&mut self, key: &str) -> Self::Value {
        // Names of fields are always the same objects, by which they are known.
        match self.names.find(key) {
            Some(name) => name.bind(self.py).clone().into_any(),
            None => self.keys.get(self.py, key),
        }
    }

    fn list(
        &mut self,
        values: &mut Vec<Self::Value>,
        start: usize,
        depth: usize,
    ) -> Result<Self::Value, BuildError> {
        if depth < self.around {
            let class = match self.outermost {
                Outermost::Messages(_) => Some(self.py.get_type::<AgentMessage>()),
                Outermost::Dicts => None,
            };
            for (number, value) in values[start..].iter().enumerate() {
                let right = value.is_exact_instance_of::<PyDict>()
                    || class
                        .as_ref()
                        .is_some_and(|class| value.is_exact_instance(class));
                if !right {
                    return Err(BuildError::Other(format!(
                        "a batch whose value {number} is no message"
                    )));
                }
            }
        }
        PyList::new(self.py, values.drain(start..))
            .map(Bound::into_any)
            .map_err(raised)
    }

    fn map(
        &mut self,
        values: &mut Vec<Self::Value>,
        start: usize,
        depth: usize,
    ) -> Result<Self::Value, BuildError> {
        match self.outermost {
            Outermost::Messages(schema) if depth == self.around => {
                self.message(values, start, schema)
            }
            _ => Ok(self.dict(values, start)?.into_any()),
        }
    }
}

fn raised(error: PyErr) -> BuildError {
    BuildError::Other(error.to_string())
}

const SLOTS: usize = 64;
const LONGEST: usize = 24;

/// Keys that were met in this text: most come again, in the next message.
struct Keys<'py> {
    slots: Vec<Option<Known<'py>>>,
}

/// A key's bytes, filled up with zeros, their number, and the key as an object.
type Known<'py> = ([u8; LONGEST], usize, Bound<'py, PyAny>);

impl<'py> Keys<'py> {
    fn new() -> Self {
        Self { slots: Vec::new() }
    }

    fn get(&mut self, py: Python<'py>, key: &str) -> Bound<'py, PyAny> {
        let mut bytes = [0; LONGEST];
        let Some(start) = bytes.get_mut(..key.len()) else {
            return PyString::new(py, key).into_any();
        };
        start.copy_from_slice(key.as_bytes());
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        let slot = &mut self.slots[slot_of(&bytes, key.len())];
        if let Some((known, length, object)) = slot
            && *length == key.len()
            && *known == bytes
        {
            return object.clone();
        }
        let object = PyString::new(py, key).into_any();
        *slot = Some((bytes, key.len(), object.clone()));
        object
    }
}

fn slot_of(bytes: &[u8; LONGEST], length: usize) -> usize {
    let mut hash = length as u64;
    for word in bytes.as_chunks::<8>().0 {
        hash =
            (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    (hash >> 58) as usize
}
