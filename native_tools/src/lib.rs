//! Schemas and results of CrewAI's tools, computed once and kept within bounds.
//!
//! [`similarity`] finds the tool that a misspelt name means. [`python`] is the thin layer that
//! CrewAI sees, and the only one that knows about Python.

pub mod python;
pub mod similarity;
