//! Copies of results, so that what a caller does to one does not show in the next.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString,
    PyTuple, PyType,
};

const MAX_DEPTH: usize = 200;

/// What a number or a container's own header takes, roughly, in bytes.
const SMALL: u64 = 32;

/// Copies one result, and weighs it.
///
/// Copied are `list`, `dict`, `tuple`, `set` and `bytearray` with what they contain, and pydantic
/// models with their fields; subclasses of the former, and any other object, are given as they are:
/// nobody knows what else a copy of them would do.
pub(super) struct Copier<'a, 'py> {
    models: Option<&'a Bound<'py, PyType>>,
    /// Copies by the address of their originals, which are kept alive with them.
    seen: Seen<'py>,
    weigh: bool,
    weight: u64,
}

type Seen<'py> =
    HashMap<usize, (Bound<'py, PyAny>, Bound<'py, PyAny>), BuildHasherDefault<AddressHasher>>;

/// Spreads addresses, which nobody chooses to collide; the standard hasher takes longer than a small
/// copy.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_usize(usize::from(byte));
        }
    }

    fn write_usize(&mut self, address: usize) {
        let spread = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl<'a, 'py> Copier<'a, 'py> {
    /// Returns a copy of `value`.
    ///
    /// Raises `ValueError` where it is nested too deeply, and what its own methods raise.
    pub(super) fn copy(
        value: &Bound<'py, PyAny>,
        models: Option<&'a Bound<'py, PyType>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::new(models, false).any(value, 0)
    }

    /// As [`copy`](Self::copy), with the number of bytes that the copy takes, roughly.
    pub(super) fn copy_and_weigh(
        value: &Bound<'py, PyAny>,
        models: Option<&'a Bound<'py, PyType>>,
    ) -> PyResult<(Bound<'py, PyAny>, u64)> {
        let mut copier = Self::new(models, true);
        let copy = copier.any(value, 0)?;
        Ok((copy, copier.weight))
    }

    fn new(models: Option<&'a Bound<'py, PyType>>, weigh: bool) -> Self {
        Self {
            models,
            seen: Seen::default(),
            weigh,
            weight: 0,
        }
    }

    /// Weighs what never changes and holds nothing else, and says whether this is such. That runs no
    /// Python code.
    fn is_plain(&mut self, value: &Bound<'py, PyAny>) -> PyResult<bool> {
        if value.is_exact_instance_of::<PyString>() || value.is_exact_instance_of::<PyBytes>() {
            self.weigh(value)?;
            return Ok(true);
        }
        let is_small = value.is_none()
            || value.is_exact_instance_of::<PyBool>()
            || value.is_exact_instance_of::<PyInt>()
            || value.is_exact_instance_of::<PyFloat>();
        if is_small {
            self.weight += SMALL;
        }
        Ok(is_small)
    }

    fn any(&mut self, value: &Bound<'py, PyAny>, depth: usize) -> PyResult<Bound<'py, PyAny>> {
        if self.is_plain(value)? {
            return Ok(value.clone());
        }
        if let Some((_, copy)) = self.seen.get(&address(value)) {
            return Ok(copy.clone());
        }
        if depth == MAX_DEPTH {
            return Err(PyValueError::new_err(format!(
                "nested deeper than {MAX_DEPTH} levels"
            )));
        }
        self.weigh(value)?;
        self.container(value, depth + 1)
    }

    fn container(
        &mut self,
        value: &Bound<'py, PyAny>,
        depth: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = value.py();
        if let Ok(list) = value.cast_exact::<PyList>() {
            let copy = PyList::empty(py);
            // Before its items: it may contain itself.
            self.remember(value, copy.as_any());
            for item in list {
                copy.append(self.any(&item, depth)?)?;
            }
            Ok(copy.into_any())
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            let copy = dict.copy()?;
            self.remember(value, copy.as_any());
            self.values_of(&copy, depth)?;
            Ok(copy.into_any())
        } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            let items = tuple
                .iter()
                .map(|item| self.any(&item, depth))
                .collect::<PyResult<Vec<_>>>()?;
            if let Some((_, copy)) = self.seen.get(&address(value)) {
                return Ok(copy.clone()); // It contains itself, and was met again on the way.
            }
            let copy = PyTuple::new(py, items)?.into_any();
            self.remember(value, &copy);
            Ok(copy)
        } else if value.is_exact_instance_of::<PySet>()
            || value.is_exact_instance_of::<PyFrozenSet>()
        {
            // What is in a set is hashable: it is weighed and needs no copy.
            if self.weigh {
                for item in value.try_iter()? {
                    self.any(&item?, depth)?;
                }
            }
            let copy = value.call_method0("copy")?;
            self.remember(value, &copy);
            Ok(copy)
        } else if let Ok(bytes) = value.cast_exact::<PyByteArray>() {
            let copy = PyByteArray::new(py, &bytes.to_vec()).into_any();
            self.remember(value, &copy);
            Ok(copy)
        } else if self.is_model(value) {
            self.model(value, depth)
        } else {
            Ok(value.clone())
        }
    }

    fn model(&mut self, value: &Bound<'py, PyAny>, depth: usize) -> PyResult<Bound<'py, PyAny>> {
        static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let copy = COPY.import(value.py(), "copy", "copy")?.call1((value,))?;
        if !copy.get_type().is(value.get_type()) || copy.is(value) {
            return Err(PyTypeError::new_err("the copy of a model is no new one"));
        }
        self.remember(value, &copy);
        self.values_of(copy.getattr("__dict__")?.cast()?, depth)?;
        // Fields that its class does not declare, and private attributes. Pydantic copies the
        // containers of both, and not what is in them.
        for name in ["__pydantic_extra__", "__pydantic_private__"] {
            if let Ok(values) = copy.getattr(name)?.cast::<PyDict>() {
                self.values_of(values, depth)?;
            }
        }
        Ok(copy)
    }

    /// Puts copies in the place of a dict's values.
    fn values_of(&mut self, dict: &Bound<'py, PyDict>, depth: usize) -> PyResult<()> {
        // All of them before any is set, which may run a key's own `__eq__`.
        let mut others = Vec::new();
        for (key, value) in dict {
            if !self.is_plain(&value)? {
                others.push((key, value));
            }
        }
        for (key, value) in others {
            let copy = self.any(&value, depth)?;
            if !copy.is(&value) {
                dict.set_item(key, copy)?;
            }
        }
        Ok(())
    }

    fn is_model(&self, value: &Bound<'py, PyAny>) -> bool {
        // Not by isinstance(), which asks the object's own class and metaclass.
        self.models
            .is_some_and(|models| value.get_type().mro().iter().any(|base| base.is(models)))
    }

    fn remember(&mut self, value: &Bound<'py, PyAny>, copy: &Bound<'py, PyAny>) {
        self.seen
            .insert(address(value), (value.clone(), copy.clone()));
    }

    fn weigh(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if self.weigh {
            let size: u64 = value
                .call_method0(intern!(value.py(), "__sizeof__"))?
                .extract()?;
            self.weight = self.weight.saturating_add(size);
        }
        Ok(())
    }
}

fn address(value: &Bound<'_, PyAny>) -> usize {
    value.as_ptr() as usize
}
