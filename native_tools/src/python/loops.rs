//! The latest tool calls of one run.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use crewai_native_sdk::json::to_canonical_json;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::contents;
use crate::canonical::canonical;
use crate::loops::{Call, Loop, Trace, hash_words};

/// Texts longer than this are hashed with the GIL released.
const LONG: usize = 1 << 16;

/// Watches the calls of one run for loops.
///
/// The lock is only held while attached to Python, and no Python code runs under it.
#[pyclass(frozen, module = "crewai_native_tools._native")]
pub(super) struct LoopWatch(Mutex<State>);

struct State {
    trace: Trace,
    calls: u64,
}

#[pymethods]
impl LoopWatch {
    /// Watches for cycles of `rounds` rounds, counting up to `most`, and for `near` near calls.
    #[new]
    #[pyo3(signature = (rounds, most, near))]
    fn new(rounds: Option<usize>, most: usize, near: Option<usize>) -> Self {
        Self(Mutex::new(State {
            trace: Trace::new(rounds, most, near),
            calls: 0,
        }))
    }

    /// Takes a finished call; returns the pattern that it completes, as its period (0 where calls
    /// are only nearly the same), the rounds so far, and how many of them were the same to the letter
    /// (0 where calls are only nearly the same).
    ///
    /// `again`: it stands in the place of the latest call. Arguments that are no JSON, and a result
    /// that is no plain data, are taken for something new.
    fn push(
        &self,
        tool: &str,
        arguments: &Bound<'_, PyAny>,
        result: &Bound<'_, PyAny>,
        again: bool,
    ) -> PyResult<Option<(usize, usize, usize)>> {
        let py = result.py();
        let spelling = spelling(arguments)?;
        let result = match result.cast::<PyString>() {
            Ok(text) => text.to_str().ok().map(|text| hash(py, text)),
            Err(_) => contents::hash(result),
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.calls += 1;
        // No hash of a text; two calls that cannot be told apart do not count as the same.
        let unique = state.calls;
        let tool = hash(py, tool);
        let (call, exact) = match &spelling {
            Some(text) => (
                tool ^ hashed(py, text, hash_words).rotate_left(1),
                tool ^ hash(py, text).rotate_left(1),
            ),
            None => (unique, unique),
        };
        if again {
            state.trace.take_back();
        }
        let spelling = spelling.as_deref().unwrap_or_default();
        let call = Call::new(tool, call, exact, spelling, result.unwrap_or(unique));
        Ok(state.trace.push(call).map(|found| match found {
            Loop::Cycle {
                period,
                rounds,
                exact,
            } => (period, rounds, exact),
            Loop::Near { calls } => (0, calls, 0),
        }))
    }
}

fn spelling(arguments: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    match arguments.cast::<PyString>() {
        Ok(text) => Ok(text.to_str().ok().map(|text| canonical(text).into_owned())),
        Err(_) => to_canonical_json(arguments).map(Some).or_else(|error| {
            // Ctrl-C and the like are nobody's arguments.
            if error.is_instance_of::<PyException>(arguments.py()) {
                Ok(None)
            } else {
                Err(error)
            }
        }),
    }
}

fn hash(py: Python<'_>, text: &str) -> u64 {
    hashed(py, text, Hash::hash)
}

fn hashed(py: Python<'_>, text: &str, feed: fn(&str, &mut DefaultHasher)) -> u64 {
    let hash = || {
        let mut hasher = DefaultHasher::new();
        feed(text, &mut hasher);
        hasher.finish()
    };
    if text.len() > LONG {
        py.detach(hash)
    } else {
        hash()
    }
}
