//! The text that Python's `json.dumps` makes of plain values, made without its detours.

use std::fmt::Write;

use crewai_native_sdk::json::float_repr;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// Levels of lists and dicts, far below where `json.dumps` would give up. A circle is deeper.
const DEEPEST: usize = 200;
/// Bytes of a text that are looked at together.
const BLOCK: usize = 32;

/// What `json.dumps(value)` gives, to the byte; nothing where that may depend on Python code, or
/// fail: where anything in it is not `None`, a `str` that is UTF-8, a `bool`, an `int` of 64 bits, a
/// `float` (of which all, also of subclasses, is read by Python as here), or exactly a `dict` with
/// `str` keys, a `list` or a `tuple`.
#[pyfunction]
pub(super) fn dumps(value: &Bound<'_, PyAny>) -> Option<String> {
    text::<false>(value)
}

/// The same for `json.dumps(value, separators=(",", ":"))`, as bytes.
#[pyfunction]
pub(super) fn dumps_compact<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyBytes>> {
    text::<true>(value).map(|text| PyBytes::new(value.py(), text.as_bytes()))
}

fn text<const COMPACT: bool>(value: &Bound<'_, PyAny>) -> Option<String> {
    let mut out = String::with_capacity(1024);
    write::<COMPACT>(&mut out, value, 0)?;
    Some(out)
}

fn write<const COMPACT: bool>(
    out: &mut String,
    value: &Bound<'_, PyAny>,
    depth: usize,
) -> Option<()> {
    if let Ok(text) = value.cast::<PyString>() {
        return quote(out, text);
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        return write_dict::<COMPACT>(out, dict, depth);
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        return write_items::<COMPACT, _>(out, list.iter(), depth);
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return write_items::<COMPACT, _>(out, tuple.iter(), depth);
    }
    if let Ok(truth) = value.cast_exact::<PyBool>() {
        out.push_str(if truth.is_true() { "true" } else { "false" });
    } else if let Ok(number) = value.cast::<PyInt>() {
        let number: i64 = number.extract().ok()?;
        write!(out, "{number}").ok()?;
    } else if let Ok(number) = value.cast::<PyFloat>() {
        write_float(out, number.value());
    } else if value.is_none() {
        out.push_str("null");
    } else {
        return None;
    }
    Some(())
}

fn write_dict<const COMPACT: bool>(
    out: &mut String,
    dict: &Bound<'_, PyDict>,
    depth: usize,
) -> Option<()> {
    let depth = deeper(depth)?;
    out.push('{');
    for (index, (key, value)) in dict.iter().enumerate() {
        if index > 0 {
            out.push_str(if COMPACT { "," } else { ", " });
        }
        quote(out, key.cast::<PyString>().ok()?)?;
        out.push_str(if COMPACT { ":" } else { ": " });
        write::<COMPACT>(out, &value, depth)?;
    }
    out.push('}');
    Some(())
}

fn write_items<'py, const COMPACT: bool, I: Iterator<Item = Bound<'py, PyAny>>>(
    out: &mut String,
    items: I,
    depth: usize,
) -> Option<()> {
    let depth = deeper(depth)?;
    out.push('[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(if COMPACT { "," } else { ", " });
        }
        write::<COMPACT>(out, &item, depth)?;
    }
    out.push(']');
    Some(())
}

fn deeper(depth: usize) -> Option<usize> {
    (depth < DEEPEST).then_some(depth + 1)
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
fn quote(out: &mut String, text: &Bound<'_, PyString>) -> Option<()> {
    quote_ascii(out, text.to_str().ok()?);
    Some(())
}

fn quote_ascii(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    loop {
        let (plain, behind) = rest.split_at(plain_length(rest.as_bytes()));
        out.push_str(plain);
        let mut characters = behind.chars();
        let Some(character) = characters.next() else {
            break;
        };
        escape(out, character);
        rest = characters.as_str();
    }
    out.push('"');
}

/// How many bytes from the start on stand for themselves.
fn plain_length(bytes: &[u8]) -> usize {
    let is_plain = |&byte: &u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
    // Without an early end the compiler looks at all bytes of a block at once.
    let all_plain = |block: &[u8]| block.iter().fold(true, |all, byte| all & is_plain(byte));
    let whole = bytes
        .chunks_exact(BLOCK)
        .take_while(|block| all_plain(block))
        .count()
        * BLOCK;
    whole
        + bytes[whole..]
            .iter()
            .take_while(|byte| is_plain(byte))
            .count()
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
                    let digit = u32::from(unit >> shift) & 0xf;
                    out.extend(char::from_digit(digit, 16));
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
