//! The module `crewai_native_serialization._native`.

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use super::{Bound, PyModule, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crewai_native_sdk::passport!(module)
    }
}
