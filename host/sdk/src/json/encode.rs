//! Python objects to JSON text.

use std::fmt::Write;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};

use super::MAX_DEPTH;

/// Returns `value` as compact JSON text, keys in their order.
///
/// Accepted are `dict` with `str` keys, `list`, `tuple`, `str`, `int`, `float`, `bool`, `None` and
/// their subclasses, taken as what they derive from, as `json` takes them (`items()` of a `dict`
/// subclass is called). Raises `TypeError` or `ValueError`, naming the place, for anything else,
/// and whatever a subclass's `items()` raises.
pub fn to_json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    Encoder::new(false).finish(value)
}

/// As [`to_json`], with the keys of every `dict` sorted: one text for equal values, for use as a
/// key or to be hashed.
///
/// The order of keys does not matter; types do. `1`, `1.0`, `True` and `"1"` give different text. A
/// `tuple` and a `list` of the same items give the same.
pub fn to_canonical_json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    Encoder::new(true).finish(value)
}

struct Encoder {
    out: String,
    sorted: bool,
}

/// Why a value cannot be written, and where it stands: collected on the way out, innermost first.
struct Failure {
    reason: Reason,
    steps: Vec<Step>,
}

enum Reason {
    Type(String),
    Value(String),
    Raised(PyErr),
}

enum Step {
    Index(usize),
    Key(String),
}

type Item<'py> = (Bound<'py, PyString>, Bound<'py, PyAny>);
type Written = Result<(), Failure>;

impl Encoder {
    fn new(sorted: bool) -> Self {
        Self {
            out: String::new(),
            sorted,
        }
    }

    fn finish(mut self, value: &Bound<'_, PyAny>) -> PyResult<String> {
        match self.write(value, 0) {
            Ok(()) => Ok(self.out),
            Err(failure) => Err(failure.into_py(value.py())),
        }
    }

    fn write(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> Written {
        if let Ok(text) = value.cast::<PyString>() {
            self.string(text)
        } else if value.is_none() {
            self.out.push_str("null");
            Ok(())
        } else if let Ok(truth) = value.cast::<PyBool>() {
            self.out
                .push_str(if truth.is_true() { "true" } else { "false" });
            Ok(())
        } else if let Ok(number) = value.cast::<PyInt>() {
            self.int(number)
        } else if let Ok(number) = value.cast::<PyFloat>() {
            self.float(number.value())
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.dict(dict, depth)
        } else if let Ok(list) = value.cast::<PyList>() {
            self.array(list.iter(), depth)
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.array(tuple.iter(), depth)
        } else {
            Err(Failure::new(Reason::Type(format!(
                "{} is not JSON; expected dict, list, tuple, str, int, float, bool or None",
                type_name(&value.get_type())
            ))))
        }
    }

    fn array<'py>(
        &mut self,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
        depth: usize,
    ) -> Written {
        let depth = deeper(depth)?;
        self.out.push('[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.write(&item, depth)
                .map_err(|failure| failure.under(Step::Index(index)))?;
        }
        self.out.push(']');
        Ok(())
    }

    fn dict(&mut self, dict: &Bound<'_, PyDict>, depth: usize) -> Written {
        let depth = deeper(depth)?;
        self.out.push('{');
        for (index, (key, value)) in self.items(dict)?.into_iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.string(&key)?;
            self.out.push(':');
            self.write(&value, depth)
                .map_err(|failure| failure.under(Step::Key(key.to_string_lossy().into_owned())))?;
        }
        self.out.push('}');
        Ok(())
    }

    /// Returns the items as they are now: writing them may run Python code that changes the dict.
    fn items<'py>(&self, dict: &Bound<'py, PyDict>) -> Result<Vec<Item<'py>>, Failure> {
        let pairs = if dict.is_exact_instance_of::<PyDict>() {
            dict.items()
        } else {
            let pairs = dict.call_method0("items").map_err(Failure::raised)?;
            pairs
                .try_iter()
                .and_then(|pairs| PyList::new(dict.py(), pairs.collect::<PyResult<Vec<_>>>()?))
                .map_err(Failure::raised)?
        };
        let mut items = Vec::with_capacity(pairs.len());
        for pair in pairs.iter() {
            let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) =
                pair.extract().map_err(Failure::raised)?;
            let key = key.cast_into::<PyString>().map_err(|error| {
                Failure::new(Reason::Type(format!(
                    "a key is of type {}; the keys of a JSON object are str",
                    type_name(&error.into_inner().get_type())
                )))
            })?;
            items.push((key, value));
        }
        if self.sorted {
            // By UTF-8 bytes, which is by code points, as Python sorts. A key that is not UTF-8
            // fails when it is written.
            items.sort_by(|(a, _), (b, _)| a.to_str().ok().cmp(&b.to_str().ok()));
        }
        Ok(items)
    }

    fn string(&mut self, text: &Bound<'_, PyString>) -> Written {
        let text = text.to_str().map_err(|_| {
            Failure::new(Reason::Value(
                "a str with a lone surrogate cannot be written as UTF-8".to_owned(),
            ))
        })?;
        quote(&mut self.out, text);
        Ok(())
    }

    fn int(&mut self, number: &Bound<'_, PyInt>) -> Written {
        if let Ok(small) = number.extract::<i64>() {
            display(&mut self.out, small);
            return Ok(());
        }
        // `int`'s own repr, whatever a subclass (an `IntEnum`) makes of it. It refuses more than
        // `sys.get_int_max_str_digits()` digits by ValueError.
        let digits = number
            .py()
            .get_type::<PyInt>()
            .call_method1("__repr__", (number,))
            .and_then(|digits| digits.extract::<String>())
            .map_err(Failure::raised)?;
        self.out.push_str(&digits);
        Ok(())
    }

    fn float(&mut self, number: f64) -> Written {
        if !number.is_finite() {
            return Err(Failure::new(Reason::Value(format!(
                "{} is not JSON",
                if number.is_nan() { "nan" } else { "infinity" }
            ))));
        }
        float_repr(&mut self.out, number);
        Ok(())
    }
}

impl Failure {
    fn new(reason: Reason) -> Self {
        Self {
            reason,
            steps: Vec::new(),
        }
    }

    fn raised(error: PyErr) -> Self {
        Self::new(Reason::Raised(error))
    }

    fn under(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn into_py(self, py: Python<'_>) -> PyErr {
        let place = place(&self.steps);
        match self.reason {
            Reason::Type(reason) => PyTypeError::new_err(format!("{place}: {reason}")),
            Reason::Value(reason) => PyValueError::new_err(format!("{place}: {reason}")),
            Reason::Raised(error) => {
                if let Err(failure) = error.add_note(py, format!("while writing {place} as JSON")) {
                    // Only an exception whose own `__notes__` was tampered with refuses a note.
                    failure.write_unraisable(py, None);
                }
                error
            }
        }
    }
}

impl Step {
    fn show(&self, place: &mut String) {
        match self {
            Self::Index(index) => {
                place.push('[');
                display(place, index);
                place.push(']');
            }
            Self::Key(key)
                if !key.is_empty()
                    && key.chars().all(|c| c.is_alphanumeric() || c == '_')
                    && key.len() <= 100 =>
            {
                place.push('.');
                place.push_str(key);
            }
            Self::Key(key) => {
                place.push('[');
                let short: String = key.chars().take(100).collect();
                quote(place, &short);
                place.push(']');
            }
        }
    }
}

/// Returns the place to which `steps` lead, innermost first, as in `$.steps[3]["a key"]`. The middle of a long one is left out.
fn place(steps: &[Step]) -> String {
    const SHOWN_AT_EACH_END: usize = 8;
    let mut place = "$".to_owned();
    let count = steps.len();
    for (position, step) in steps.iter().rev().enumerate() {
        if position < SHOWN_AT_EACH_END || position + SHOWN_AT_EACH_END >= count {
            step.show(&mut place);
        } else if position == SHOWN_AT_EACH_END {
            place.push_str(" ... ");
        }
    }
    place
}

fn deeper(depth: usize) -> Result<usize, Failure> {
    if depth == MAX_DEPTH {
        return Err(Failure::new(Reason::Value(format!(
            "nested deeper than {MAX_DEPTH} levels, or containing itself"
        ))));
    }
    Ok(depth + 1)
}

fn type_name(class: &Bound<'_, PyType>) -> String {
    class.fully_qualified_name().map_or_else(
        |_| "a value of a nameless type".to_owned(),
        |name| name.to_string(),
    )
}

fn display(out: &mut String, value: impl std::fmt::Display) {
    // Writing to a `String` cannot fail.
    _ = write!(out, "{value}");
}

/// Writes `text` as `json.dumps(text, ensure_ascii=False)` does.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[plain..at]);
        plain = at + 1;
        if escape.is_empty() {
            display(out, format_args!("\\u{byte:04x}"));
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// Writes a finite `number` as Python's `repr` does: the shortest digits that read back as the same
/// number, the nearest of these, the even one of two that are as near; with an exponent below 1e-4
/// and from 1e16. (The standard library takes the upper one of two.)
pub fn float_repr(out: &mut String, number: f64) {
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(number);
    if number == 0.0 || (1e-4..1e16).contains(&number.abs()) {
        out.push_str(text);
        return;
    }
    if number < 0.0 {
        out.push('-');
    }
    let text = text.trim_start_matches('-');
    // What has no exponent there is below 1e-4.
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0');
    let zeros = digits.len() - significant.len();
    let exponent = exponent + whole.len() as i32 - 1 - zeros as i32;
    let (first, rest) = significant.split_at(1);
    out.push_str(first);
    let rest = rest.trim_end_matches('0');
    if !rest.is_empty() {
        out.push('.');
        out.push_str(rest);
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    display(out, format_args!("e{sign}{:02}", exponent.abs()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.000_099, "9.9e-05"),
            (-0.000_01, "-1e-05"),
            // Exactly between two numbers of as many digits.
            (562_949_953_421_312.0 + 0.25, "562949953421312.2"),
            (7.176_399_230_957_031e-5, "7.176399230957031e-05"),
            (-2.5e-320, "-2.5e-320"),
            (123_456_789.0, "123456789.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (-1.5e22, "-1.5e+22"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            let mut out = String::new();
            float_repr(&mut out, number);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn strings_are_escaped_as_python_escapes_them() {
        let mut out = String::new();
        quote(&mut out, "a\"\\\u{8}\u{c}\n\r\t\0\u{1f}\u{7f}é\u{2028}😀");
        assert_eq!(
            out,
            "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}é\u{2028}😀\""
        );
    }

    #[test]
    fn a_long_place_is_cut_in_the_middle() {
        let mut steps = vec![Step::Key("a key".into())];
        steps.extend((0..300).map(Step::Index));
        steps.push(Step::Key("root".into()));
        let place = place(&steps);
        assert!(place.starts_with("$.root[299][298]"), "{place}");
        assert!(place.contains(" ... "), "{place}");
        assert!(place.ends_with("[1][0][\"a key\"]"), "{place}");
    }
}
