//! The module `crewai_native_tools._native`.

mod cache;
mod contents;
mod copying;
mod engine;
mod loops;
#[cfg(unix)]
mod worker_process;

use crewai_native_sdk::json::to_canonical_json;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::canonical::canonical;
use crate::similarity::{self, TOO_LONG};

#[pymodule]
mod _native {
    use super::{Bound, PyModule, PyResult};

    #[pymodule_export]
    use super::cache::{ResultCache, copied, totals};
    #[pymodule_export]
    use super::engine::{Admission, Call, Rules, Tally, Uses, Worker, abandoned};
    #[pymodule_export]
    use super::loops::LoopWatch;
    #[pymodule_export]
    use super::{canonical_json, closest};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        #[cfg(unix)]
        super::worker_process::add(module)?;
        crewai_native_sdk::passport!(module)
    }
}

/// The index of the name that resembles `wanted` most by `difflib`'s ratio, if that is above `above`.
#[pyfunction]
fn closest(names: Vec<String>, wanted: &str, above: f64) -> PyResult<Option<usize>> {
    let wanted: Vec<char> = wanted.chars().collect();
    if wanted.len() >= TOO_LONG {
        return Err(PyValueError::new_err(format!(
            "wanted has {} characters; it accepts fewer than {TOO_LONG}",
            wanted.len()
        )));
    }
    let names = names.iter().map(|name| name.chars().collect());
    Ok(similarity::closest(names, &wanted, above))
}

/// Arguments, by name or as JSON text, as the one text that stands for all of the same.
#[pyfunction]
fn canonical_json(arguments: &Bound<'_, PyAny>) -> PyResult<String> {
    match arguments.cast::<PyString>() {
        Ok(text) => Ok(canonical(text.to_str()?).into_owned()),
        Err(_) => to_canonical_json(arguments),
    }
}
