//! Events and messages, encoded once and fast.
//!
//! [`json`] and [`msgpack`] read and write values, which a [`build::Build`] makes of what they find;
//! [`frames`] cuts streams into messages; [`output`] is where bytes go. [`python`] is the thin layer that CrewAI sees, and the only
//! one that knows about Python.

pub mod build;
pub mod frames;
pub mod json;
pub mod msgpack;
pub mod output;
pub mod python;
