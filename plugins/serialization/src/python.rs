//! The module `crewai_native_serialization._native`.

mod events;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use super::{Bound, PyModule, PyResult};

    #[pymodule_export]
    use super::events::to_serializable;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crewai_native_sdk::passport!(module)
    }
}
