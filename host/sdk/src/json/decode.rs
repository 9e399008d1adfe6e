//! JSON text to Python objects.

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyType};

use super::MAX_DEPTH;

/// Returns the Python object that `text` describes: `dict`, `list`, `str`, `int`, `float`, `bool` or
/// `None`.
///
/// Of equal keys in an object the last one counts, as with `json.loads`. Raises
/// `json.JSONDecodeError` (a `ValueError`) with the place, as `json.loads` does; also for what the
/// [module](super) lists as refused.
pub fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    let mut decoder = Decoder { py, text, at: 0 };
    decoder.document().map_err(|failure| match failure {
        Failure::Syntax { message, at } => syntax_error(py, &message, text, at),
        Failure::Raised(error) => error,
    })
}

struct Decoder<'py, 't> {
    py: Python<'py>,
    text: &'t str,
    /// Where to read on: a byte offset, always at the start of a character.
    at: usize,
}

enum Failure {
    Syntax {
        message: Cow<'static, str>,
        at: usize,
    },
    Raised(PyErr),
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

type Decoded<T> = Result<T, Failure>;

fn syntax<T>(message: impl Into<Cow<'static, str>>, at: usize) -> Decoded<T> {
    let message = message.into();
    Err(Failure::Syntax { message, at })
}

impl<'py, 't> Decoder<'py, 't> {
    fn document(&mut self) -> Decoded<Bound<'py, PyAny>> {
        let value = self.value(0)?;
        self.skip_space();
        if self.at < self.text.len() {
            return syntax("Expecting the end of the text", self.at);
        }
        Ok(value)
    }

    fn value(&mut self, depth: usize) -> Decoded<Bound<'py, PyAny>> {
        self.skip_space();
        match self.peek() {
            Some(b'"') => Ok(PyString::new(self.py, &self.string()?).into_any()),
            Some(b'{') => Ok(self.object(self.deeper(depth)?)?.into_any()),
            Some(b'[') => Ok(self.array(self.deeper(depth)?)?.into_any()),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.skip("true") => Ok(PyBool::new(self.py, true).to_owned().into_any()),
            _ if self.skip("false") => Ok(PyBool::new(self.py, false).to_owned().into_any()),
            _ if self.skip("null") => Ok(self.py.None().into_bound(self.py)),
            _ => syntax("Expecting value", self.at),
        }
    }

    fn object(&mut self, depth: usize) -> Decoded<Bound<'py, PyDict>> {
        let dict = PyDict::new(self.py);
        self.at += 1;
        self.skip_space();
        if self.skip("}") {
            return Ok(dict);
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return syntax("Expecting property name enclosed in double quotes", self.at);
            }
            let key = self.string()?;
            self.skip_space();
            if !self.skip(":") {
                return syntax("Expecting ':' delimiter", self.at);
            }
            dict.set_item(&*key, self.value(depth)?)?;
            self.skip_space();
            if self.skip("}") {
                return Ok(dict);
            }
            if !self.skip(",") {
                return syntax("Expecting ',' delimiter", self.at);
            }
        }
    }

    fn array(&mut self, depth: usize) -> Decoded<Bound<'py, PyList>> {
        let list = PyList::empty(self.py);
        self.at += 1;
        self.skip_space();
        if self.skip("]") {
            return Ok(list);
        }
        loop {
            list.append(self.value(depth)?)?;
            self.skip_space();
            if self.skip("]") {
                return Ok(list);
            }
            if !self.skip(",") {
                return syntax("Expecting ',' delimiter", self.at);
            }
        }
    }

    /// Reads a string, from its opening quote; borrowed from the text where it has no escapes.
    fn string(&mut self) -> Decoded<Cow<'t, str>> {
        let opening = self.at;
        self.at += 1;
        let mut plain = self.at;
        let mut unescaped = String::new();
        loop {
            match self.peek() {
                Some(b'"') => {
                    let rest = &self.text[plain..self.at];
                    self.at += 1;
                    return Ok(if unescaped.is_empty() {
                        Cow::Borrowed(rest)
                    } else {
                        Cow::Owned(unescaped + rest)
                    });
                }
                Some(b'\\') => {
                    unescaped.push_str(&self.text[plain..self.at]);
                    unescaped.push(self.escape()?);
                    plain = self.at;
                }
                Some(0..0x20) => return syntax("Invalid control character", self.at),
                Some(_) => self.at += 1,
                None => return syntax("Unterminated string starting", opening),
            }
        }
    }

    /// Reads an escape sequence, from its backslash.
    fn escape(&mut self) -> Decoded<char> {
        let start = self.at;
        self.at += 1;
        let short = match self.peek() {
            Some(b'u') => return self.unicode_escape(start),
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            _ => return syntax("Invalid \\escape", start),
        };
        self.at += 1;
        Ok(short)
    }

    /// Reads `uXXXX`, or two of them that are the halves of one character.
    fn unicode_escape(&mut self, start: usize) -> Decoded<char> {
        let mut units = vec![self.four_hex_digits()?];
        if (0xD800..0xDC00).contains(&units[0]) && self.text[self.at..].starts_with("\\u") {
            self.at += 1;
            units.push(self.four_hex_digits()?);
        }
        match char::decode_utf16(units).next() {
            Some(Ok(character)) => Ok(character),
            _ => syntax("Unpaired surrogate", start),
        }
    }

    fn four_hex_digits(&mut self) -> Decoded<u16> {
        let digits = self.text.get(self.at + 1..self.at + 5).unwrap_or_default();
        // `from_str_radix` alone would accept a sign.
        if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return syntax("Invalid \\uXXXX escape", self.at);
        }
        let Ok(unit) = u16::from_str_radix(digits, 16) else {
            return syntax("Invalid \\uXXXX escape", self.at);
        };
        self.at += 5;
        Ok(unit)
    }

    fn number(&mut self) -> Decoded<Bound<'py, PyAny>> {
        let start = self.at;
        self.skip("-");
        if !self.skip("0") && self.skip_digits() == 0 {
            return syntax("Expecting value", start);
        }
        let mut integer = true;
        if self.skip(".") {
            integer = false;
            if self.skip_digits() == 0 {
                return syntax("Expecting a digit after the point", self.at);
            }
        }
        if self.skip("e") || self.skip("E") {
            integer = false;
            if !self.skip("+") {
                self.skip("-");
            }
            if self.skip_digits() == 0 {
                return syntax("Expecting a digit in the exponent", self.at);
            }
        }
        let digits = &self.text[start..self.at];
        if integer {
            return match digits.parse::<i64>() {
                Ok(small) => Ok(small
                    .into_pyobject(self.py)
                    .map_err(PyErr::from)?
                    .into_any()),
                // Python's own: exact, and limited by `sys.set_int_max_str_digits`.
                Err(_) => Ok(self.py.get_type::<PyInt>().call1((digits,))?),
            };
        }
        match digits.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(PyFloat::new(self.py, number).into_any()),
            _ => syntax("Number too large for a float", start),
        }
    }

    fn deeper(&self, depth: usize) -> Decoded<usize> {
        if depth == MAX_DEPTH {
            return syntax(format!("Nested deeper than {MAX_DEPTH} levels"), self.at);
        }
        Ok(depth + 1)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self, token: &str) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(token.as_bytes());
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn skip_digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }
}

/// Returns a `json.JSONDecodeError`, which computes line and column from the place.
fn syntax_error(py: Python<'_>, message: &str, text: &str, at: usize) -> PyErr {
    static DECODE_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    // Python counts characters.
    let characters = text[..at].chars().count();
    DECODE_ERROR
        .import(py, "json", "JSONDecodeError")
        .and_then(|class| class.call1((message, text, characters)))
        .map_or_else(|error| error, PyErr::from_value)
}
