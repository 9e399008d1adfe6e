//! What results contain, as hashes.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

const MAX_DEPTH: usize = 200;

/// Returns the hash of plain data (text, bytes, numbers, `None`, and lists, tuples and dicts of
/// such), and nothing for what else there is.
///
/// Results are CrewAI's to read, and reading one may change it, as it does with a stream. So no
/// object's own code is run here.
pub(super) fn hash(value: &Bound<'_, PyAny>) -> Option<u64> {
    any(value, 0)
}

fn any(value: &Bound<'_, PyAny>, depth: usize) -> Option<u64> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    // 1, 1.0 and True are three results, and so are [] and ().
    (value.get_type().as_ptr() as usize).hash(&mut hasher);
    if let Ok(text) = value.cast::<PyString>() {
        text.to_str().ok()?.hash(&mut hasher);
    } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        bytes.as_bytes().hash(&mut hasher);
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        truth.is_true().hash(&mut hasher);
    } else if let Ok(number) = value.cast_exact::<PyInt>() {
        match number.extract::<i64>() {
            Ok(small) => small.hash(&mut hasher),
            Err(_) => number.str().ok()?.to_str().ok()?.hash(&mut hasher),
        }
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        number.value().to_bits().hash(&mut hasher);
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        for item in list {
            any(&item, depth + 1)?.hash(&mut hasher);
        }
    } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        for item in tuple {
            any(&item, depth + 1)?.hash(&mut hasher);
        }
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        of_dict(dict, depth)?.hash(&mut hasher);
    } else if !value.is_none() {
        return None;
    }
    Some(hasher.finish())
}

/// Does not depend on the order of the items.
fn of_dict(dict: &Bound<'_, PyDict>, depth: usize) -> Option<u64> {
    // A list of them, because another thread may change the dict meanwhile.
    dict.items().iter().try_fold(0_u64, |sum, item| {
        Some(sum.wrapping_add(any(&item, depth + 1)?))
    })
}
