//! Values from Python, checked, and vectors on their way back.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyList, PyString, PyTuple};

use super::floats::floats;

/// A stored vector. Python floats are made when somebody asks for them.
#[pyclass(frozen, module = "crewai_native_memory._native")]
pub(super) struct Vector(pub(super) Box<[f32]>);

#[pymethods]
impl Vector {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    // It never changes.
    fn __copy__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __deepcopy__<'py>(this: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        this
    }

    /// The components as a list of floats.
    fn tolist<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.iter().map(|&x| f64::from(x)))
    }
}

/// A query vector.
pub(super) fn query(value: &Bound<'_, PyAny>) -> PyResult<Box<[f32]>> {
    vector(value).map_err(|reason| PyValueError::new_err(format!("query_embedding: {reason}")))
}

pub(super) fn text(value: &Bound<'_, PyAny>, field: &str) -> Result<String, String> {
    let text = value
        .cast::<PyString>()
        .map_err(|_| format!("{field} must be a str, got {}", described(value)))?;
    // Lone surrogates have no UTF-8.
    text.to_str()
        .map(str::to_owned)
        .map_err(|_| format!("{field} must be valid Unicode text, without lone surrogates"))
}

/// Float32 values of a list, tuple, array or anything else that holds numbers.
pub(super) fn vector(value: &Bound<'_, PyAny>) -> Result<Box<[f32]>, String> {
    let py = value.py();
    if let Ok(list) = value.cast::<PyList>()
        && let Some(numbers) = floats(list)
    {
        return Ok(numbers);
    }
    let numbers: Vec<f32> = if let Ok(list) = value.cast::<PyList>() {
        list.iter()
            .enumerate()
            .map(component)
            .collect::<Result<_, _>>()?
    } else if let Ok(tuple) = value.cast::<PyTuple>() {
        tuple
            .iter()
            .enumerate()
            .map(component)
            .collect::<Result<_, _>>()?
    } else if let Some(floats) = buffer::<f32>(value) {
        flat(floats.dimensions())?;
        floats.to_vec(py).map_err(|error| error.to_string())?
    } else if let Some(doubles) = buffer::<f64>(value) {
        flat(doubles.dimensions())?;
        let doubles = doubles.to_vec(py).map_err(|error| error.to_string())?;
        doubles
            .into_iter()
            .enumerate()
            .map(|(at, x)| narrow(at, x))
            .collect::<Result<_, _>>()?
    } else if let Ok(list) = value.call_method0("tolist")
        && let Ok(list) = list.cast_into::<PyList>()
    {
        // Arrays of other number types, or in another order of bytes.
        list.iter()
            .enumerate()
            .map(component)
            .collect::<Result<_, _>>()?
    } else {
        return Err(format!(
            "must be a list of numbers or an array, got {}",
            described(value)
        ));
    };
    if numbers.is_empty() {
        return Err("must have at least one component; use None for no embedding".to_owned());
    }
    if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
        return Err(format!(
            "component {at} is {}, not a finite number",
            numbers[at]
        ));
    }
    Ok(numbers.into())
}

/// The memory of an array of `T`, if it has this machine's order of bytes: `PyBuffer` takes the
/// other one for it.
fn buffer<T: Element>(value: &Bound<'_, PyAny>) -> Option<PyBuffer<T>> {
    let buffer = PyBuffer::get(value).ok()?;
    let is_native = matches!(buffer.format().to_bytes(), [_] | [b'@' | b'=', _]);
    is_native.then_some(buffer)
}

fn component((at, value): (usize, Bound<'_, PyAny>)) -> Result<f32, String> {
    let number = match value.cast::<PyFloat>() {
        Ok(float) => float.value(),
        Err(_) if value.is_instance_of::<PyBool>() => {
            return Err(format!("component {at} is a bool, not a number"));
        }
        Err(_) => value
            .extract::<f64>()
            .map_err(|_| format!("component {at} must be a number, got {}", described(&value)))?,
    };
    narrow(at, number)
}

fn narrow(at: usize, number: f64) -> Result<f32, String> {
    let narrow = number as f32;
    if narrow.is_infinite() && number.is_finite() {
        return Err(format!("component {at} ({number:e}) does not fit float32"));
    }
    Ok(narrow)
}

fn flat(dimensions: usize) -> Result<(), String> {
    match dimensions {
        1 => Ok(()),
        more => Err(format!("must have one axis, got {more}")),
    }
}

pub(super) fn described(value: &Bound<'_, PyAny>) -> String {
    value
        .get_type()
        .name()
        .map_or_else(|_| "?".to_owned(), |name| name.to_string())
}
