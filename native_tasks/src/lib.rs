//! Many crews at once, graphs of tasks, cancellation and a fast executor.
//!
//! [`python`] is the thin layer that CrewAI sees, and the only one that knows about Python.

pub mod python;
