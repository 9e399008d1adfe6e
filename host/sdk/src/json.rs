//! JSON to and from Python objects, without loss.
//!
//! [`to_json`] writes what `json.dumps(value, ensure_ascii=False, separators=(",", ":"))` writes,
//! to the byte, and [`from_json`] builds what `json.loads(text)` builds, for every value that JSON
//! can hold. Integers of any size stay exact, and floats come back as the same float.
//!
//! Where Python's module lets something through that other readers of JSON refuse or misread, these
//! raise instead, and name the place as in `$.steps[3].cost`:
//!
//! | value | `json` | here |
//! |---|---|---|
//! | `nan`, `inf`; `NaN`, `Infinity`, `1e999` | not JSON / `inf` | `ValueError` |
//! | a `dict` key that is not a `str` | turned into a `str` | `TypeError` |
//! | a `str` with a lone surrogate, `"\ud800"` | not UTF-8 | `ValueError` |
//! | nesting deeper than [`MAX_DEPTH`] | some limit, `RecursionError` | `ValueError` |
//!
//! All of it runs with the GIL held, since it reads Python objects at every step.

mod decode;
mod encode;

pub use decode::from_json;
pub use encode::{float_repr, to_canonical_json, to_json};

/// How deep lists and dicts may be nested. Deeper values are refused, before the stack overflows.
pub const MAX_DEPTH: usize = 500;
