//! A durable, exact memory store for CrewAI that processes share.
//!
//! [`store`] keeps records in a SQLite file and answers every question about them; [`vector`]
//! makes its similarity search fast without making it approximate. [`python`] is the thin layer
//! that CrewAI sees, and the only one that knows about Python.

pub mod python;
pub mod store;
pub mod vector;
