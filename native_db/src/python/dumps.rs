//! The text that Python's `json.dumps` makes of plain values, made without its detours.

use std::fmt::Write;

use crewai_native_sdk::json::float_repr;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// Levels of lists and dicts, far below where `json.dumps` would give up. A circle is deeper.
const DEEPEST: usize = 200;
const HEX: [char; 16] = [
    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
];
/// Bytes of a text that are looked at together.
const BLOCK: usize = 32;

/// What `json.dumps(value, default=default)` gives, to the byte; nothing where that may depend on other
/// Python code, or fail: where anything in it is not `None`, a `str` that is UTF-8, a `bool`, an `int` of
/// 64 bits, a `float` (of which all, also of subclasses, is read by Python as here), or exactly a
/// `dict` with `str` keys, a `list` or a `tuple`. With `default`, objects of any other class may be in
/// it, unless it derives from one of these; what `default` raises is raised.
#[pyfunction]
#[pyo3(signature = (value, default=None))]
pub(super) fn dumps(
    value: &Bound<'_, PyAny>,
    default: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<String>> {
    let plain = text::<false>(value, None)?;
    match default {
        Some(_) if plain.is_none() => text::<false>(value, default),
        _ => Ok(plain),
    }
}

/// The same for `json.dumps(value, separators=(",", ":"))`, as bytes, but with `null` for a number that is
/// not finite, as pydantic writes it.
#[pyfunction]
pub(super) fn dumps_compact<'py>(
    value: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let text = text::<true>(value, None)?;
    Ok(text.map(|text| PyBytes::new(value.py(), text.as_bytes())))
}

fn text<const COMPACT: bool>(
    value: &Bound<'_, PyAny>,
    default: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<String>> {
    let mut writer = Writer::<COMPACT> {
        out: String::with_capacity(1024),
        default,
    };
    match writer.write(value, 0) {
        Ok(()) => Ok(Some(writer.out)),
        Err(Stop::LeftToPython) => Ok(None),
        Err(Stop::Raised(error)) => Err(error),
    }
}

/// Why a value is not written here.
enum Stop {
    LeftToPython,
    Raised(PyErr),
}

struct Writer<'a, 'py, const COMPACT: bool> {
    out: String,
    default: Option<&'a Bound<'py, PyAny>>,
}

impl<'py, const COMPACT: bool> Writer<'_, 'py, COMPACT> {
    fn write(&mut self, value: &Bound<'py, PyAny>, depth: usize) -> Result<(), Stop> {
        if let Ok(text) = value.cast::<PyString>() {
            return quote(&mut self.out, text);
        }
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            return self.dict(dict, deeper(depth)?);
        }
        if let Ok(list) = value.cast_exact::<PyList>() {
            return self.items(list.iter(), deeper(depth)?);
        }
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return self.items(tuple.iter(), deeper(depth)?);
        }
        if let Ok(truth) = value.cast_exact::<PyBool>() {
            let truth = if truth.is_true() { "true" } else { "false" };
            self.out.push_str(truth);
        } else if let Ok(number) = value.cast::<PyInt>() {
            let number: i64 = number.extract().map_err(|_| Stop::LeftToPython)?;
            // Writing to a `String` cannot fail.
            _ = write!(self.out, "{number}");
        } else if let Ok(number) = value.cast::<PyFloat>() {
            if COMPACT && !number.value().is_finite() {
                self.out.push_str("null");
            } else {
                write_float(&mut self.out, number.value());
            }
        } else if value.is_none() {
            self.out.push_str("null");
        } else {
            return self.object(value, deeper(depth)?);
        }
        Ok(())
    }

    fn object(&mut self, value: &Bound<'py, PyAny>, depth: usize) -> Result<(), Stop> {
        let Some(default) = self.default else {
            return Err(Stop::LeftToPython);
        };
        // `json.dumps` takes these for what they derive from.
        if value.is_instance_of::<PyDict>()
            || value.is_instance_of::<PyList>()
            || value.is_instance_of::<PyTuple>()
        {
            return Err(Stop::LeftToPython);
        }
        let instead = default.call1((value,)).map_err(Stop::Raised)?;
        self.write(&instead, depth)
    }

    fn dict(&mut self, dict: &Bound<'py, PyDict>, depth: usize) -> Result<(), Stop> {
        self.out.push('{');
        if self.default.is_none() {
            for (index, (key, value)) in dict.iter().enumerate() {
                self.member(index, &key, &value, depth)?;
            }
        } else {
            // The items as they are now: `default` may change the dict that it was called from.
            for (index, pair) in dict.items().iter().enumerate() {
                let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) =
                    pair.extract().map_err(Stop::Raised)?;
                self.member(index, &key, &value, depth)?;
            }
        }
        self.out.push('}');
        Ok(())
    }

    fn member(
        &mut self,
        index: usize,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        depth: usize,
    ) -> Result<(), Stop> {
        if index > 0 {
            self.out.push_str(if COMPACT { "," } else { ", " });
        }
        let key = key.cast::<PyString>().map_err(|_| Stop::LeftToPython)?;
        quote(&mut self.out, key)?;
        self.out.push_str(if COMPACT { ":" } else { ": " });
        self.write(value, depth)
    }

    fn items(
        &mut self,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
        depth: usize,
    ) -> Result<(), Stop> {
        self.out.push('[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.out.push_str(if COMPACT { "," } else { ", " });
            }
            self.write(&item, depth)?;
        }
        self.out.push(']');
        Ok(())
    }
}

fn deeper(depth: usize) -> Result<usize, Stop> {
    if depth == DEEPEST {
        return Err(Stop::LeftToPython);
    }
    Ok(depth + 1)
}

/// With Python's names for what JSON has no number for.
fn write_float(out: &mut String, number: f64) {
    if number.is_nan() {
        out.push_str("NaN");
    } else if number.is_infinite() {
        out.push_str(if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        });
    } else {
        float_repr(out, number);
    }
}

/// Halves of characters have no UTF-8, and are left to Python.
fn quote(out: &mut String, text: &Bound<'_, PyString>) -> Result<(), Stop> {
    quote_ascii(out, text.to_str().map_err(|_| Stop::LeftToPython)?);
    Ok(())
}

fn quote_ascii(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    loop {
        let (plain, behind) = rest.split_at(plain_length(rest.as_bytes()));
        out.push_str(plain);
        if behind.is_empty() {
            break;
        }
        // Where one is to be escaped, most are: texts of other alphabets.
        let end = behind.find(|c| u8::try_from(c).is_ok_and(is_plain));
        let (special, behind) = behind.split_at(end.unwrap_or(behind.len()));
        for character in special.chars() {
            escape(out, character);
        }
        rest = behind;
    }
    out.push('"');
}

/// How many bytes from the start on stand for themselves.
fn plain_length(bytes: &[u8]) -> usize {
    // Without an early end the compiler looks at all bytes of a block at once.
    let all_plain = |block: &[u8]| block.iter().fold(true, |all, byte| all & is_plain(*byte));
    let whole = bytes
        .chunks_exact(BLOCK)
        .take_while(|block| all_plain(block))
        .count()
        * BLOCK;
    whole
        + bytes[whole..]
            .iter()
            .take_while(|byte| is_plain(**byte))
            .count()
}

fn is_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\'
}

fn escape(out: &mut String, character: char) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        _ => {
            for &mut unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str("\\u");
                for shift in [12, 8, 4, 0] {
                    out.push(HEX[usize::from(unit >> shift) & 0xf]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        let long = "x".repeat(70);
        for (text, expected) in [
            ("", String::new()),
            ("plain ~", "plain ~".to_owned()),
            (
                "a\"\\\u{8}\u{c}\n\r\t\0\u{1f}\u{7f}é\u{2028}😀",
                r#"a\"\\\b\f\n\r\t\u0000\u001f\u007f\u00e9\u2028\ud83d\ude00"#.to_owned(),
            ),
            (&format!("{long}é{long}"), format!(r"{long}\u00e9{long}")),
        ] {
            let mut out = String::new();
            quote_ascii(&mut out, text);
            assert_eq!(out, format!("\"{expected}\""));
        }
    }
}
