//! Schemas and results of CrewAI's tools, computed once and kept within bounds.
//!
//! [`results`] keeps what tools returned, under the spelling of their arguments that [`canonical`]
//! gives; [`similarity`] finds the tool that a misspelt name means. [`loops`] and [`quota`] say when
//! an agent's calls go round in circles and when a tool was called often enough. [`admission`] and
//! [`handoff`] let calls in and answer them, and [`waits`] sees where they would wait for each other.
//! `workers` are
//! processes that run tools and can be killed. [`python`] is the thin layer that CrewAI sees, and
//! the only one that knows about Python.

pub mod admission;
pub mod canonical;
pub mod handoff;
pub mod loops;
pub mod python;
pub mod quota;
pub mod results;
pub mod similarity;
pub mod waits;
#[cfg(unix)]
pub mod workers;
