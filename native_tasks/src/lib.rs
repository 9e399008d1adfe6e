//! Many crews at once, graphs of tasks, cancellation and a fast executor.
//!
//! [`batch`] says which item of which batch is worked next, [`control`] what is running and whether
//! it may go on, [`flow`] which method of a flow runs next, [`graph`] which tasks of a graph may run,
//! [`limits`] how much of a model a minute may use. [`python`] is the thin layer that CrewAI sees, and the only one that knows about Python.

pub mod batch;
pub mod control;
pub mod flow;
pub mod graph;
pub mod limits;
pub mod python;
