//! The module `crewai_native_tasks._native`.

mod batch;
mod control;
mod flow;
mod graph;
mod limits;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use super::{Bound, PyModule, PyResult};

    #[pymodule_export]
    use super::batch::Floor;
    #[pymodule_export]
    use super::control::{Cancelled, Gate, Scope};
    #[pymodule_export]
    use super::flow::{FlowGraph, FlowWalk};
    #[pymodule_export]
    use super::graph::{Schedule, cycle};
    #[pymodule_export]
    use super::limits::Limiter;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crewai_native_sdk::passport!(module)
    }
}
