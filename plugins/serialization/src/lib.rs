//! Events and messages, encoded once and fast.
//!
//! [`python`] is the thin layer that CrewAI sees, and the only one that knows about Python.

pub mod python;
