//! JSON as Python writes and compares it.
//!
//! Python's has whole numbers of any length, `NaN`, infinities and any depth, none of which `serde_json`
//! reads. A text that has some is read with marked strings in their place.

use serde_json::Value;

/// Begins the strings that stand for something else; what begins with a noncharacter is nobody's text.
const MARK: &str = "\u{fdd0}crewai-native:";
/// Containers may lie in one another so deep; those within are compared by their text.
const DEEPEST: usize = 100;
/// Whole numbers with fewer digits fit.
const LONG: usize = 19;

/// Has `read` read a text, or what is written in its place.
pub(super) fn read<T>(
    text: &str,
    read: impl Fn(&str) -> serde_json::Result<T>,
) -> serde_json::Result<T> {
    // Of long whole numbers serde_json would keep some 16 digits.
    if !has_long_number(text.as_bytes()) {
        match read(text) {
            Err(error) if error.is_syntax() => {}
            done => return done,
        }
    }
    read(&marked(text))
}

fn has_long_number(text: &[u8]) -> bool {
    let digits = |part: &[u8]| part.iter().take_while(|c| c.is_ascii_digit()).count();
    // Every so long run of digits covers one of these places.
    let mut at = LONG - 1;
    while at < text.len() {
        let after = digits(&text[at..]);
        if after > 0 {
            let before = text[..at].iter().rev();
            let before = before.take_while(|c| c.is_ascii_digit()).count();
            if before + after >= LONG {
                return true;
            }
        }
        at += after + LONG;
    }
    false
}

/// The text with marked strings in the place of what `serde_json` does not read.
fn marked(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, replaced) = match c {
            '"' => (&rest[..string(rest)], None),
            '-' | 'N' | 'I' | '0'..='9' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
                let token = &rest[..end.unwrap_or(rest.len())];
                (token, odd_number(token))
            }
            '[' | '{' if depth == DEEPEST => {
                let token = &rest[..container(rest)];
                (token, Some(token))
            }
            _ => {
                match c {
                    '[' | '{' => depth += 1,
                    ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                (&rest[..c.len_utf8()], None)
            }
        };
        match replaced {
            Some(what) => out.push_str(&Value::from(format!("{MARK}{what}")).to_string()),
            None => out.push_str(token),
        }
        rest = &rest[token.len()..];
    }
    out
}

/// What a number is that `serde_json` does not read as it is.
fn odd_number(token: &str) -> Option<&str> {
    let digits = token.strip_prefix('-').unwrap_or(token);
    let is_whole = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
    if ["NaN", "Infinity", "-Infinity"].contains(&token) {
        Some(token)
    } else if is_whole && !digits.starts_with('0') {
        let fits = token.parse::<i64>().is_ok() || token.parse::<u64>().is_ok();
        (!fits).then_some(token)
    } else {
        // Rust reads more as a number than JSON has, such as "-inf".
        let is_json = digits.bytes().all(|c| b"0123456789.eE+-".contains(&c));
        match token.parse::<f64>() {
            Ok(number) if is_json && number == f64::INFINITY => Some("Infinity"),
            Ok(number) if is_json && number == f64::NEG_INFINITY => Some("-Infinity"),
            _ => None,
        }
    }
}

/// Length of the string at the beginning of a text, or of the text if it has no end.
fn string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|c| {
        let ends = c == b'"' && !escaped;
        escaped = c == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

/// Length of the container at the beginning of a text, or of the text if it has no end.
fn container(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'"' => {
                at += string(&text[at..]);
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Equality as Python sees it: `1 == 1.0 == True`, NaN equals nothing, and the order of keys does not
/// matter.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => match (number(a), number(b)) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        },
    }
}

/// A number such that equal ones have one form.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Number {
    /// A whole number, however it is written, that fits.
    Integer(i128),
    /// One that does not, in digits.
    Long(String),
    /// All others.
    Float(f64),
}

/// The number that a value is to Python, to which a bool is one.
pub(super) fn number(value: &Value) -> Option<Number> {
    let whole = match value {
        Value::Bool(truth) => i128::from(*truth),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => i128::from(whole),
            (None, Some(whole)) => i128::from(whole),
            (None, None) => return number.as_f64().map(float),
        },
        Value::String(text) => {
            let digits = text.strip_prefix(MARK)?;
            return match digits.strip_prefix('-').unwrap_or(digits) {
                "NaN" => Some(Number::Float(f64::NAN)),
                "Infinity" => digits.parse().ok().map(Number::Float),
                "" => None,
                size if !size.bytes().all(|c| c.is_ascii_digit()) => None,
                _ => Some(match digits.parse() {
                    Ok(whole) => Number::Integer(whole),
                    Err(_) => Number::Long(digits.to_owned()),
                }),
            };
        }
        _ => return None,
    };
    Some(Number::Integer(whole))
}

fn float(float: f64) -> Number {
    if float.fract() != 0.0 {
        Number::Float(float)
    } else if float.abs() < 8.5e37 {
        // Below 2^126 the conversion is exact.
        Number::Integer(float as i128)
    } else {
        // So are all digits that Rust writes.
        let digits = format!("{float:.0}");
        digits.parse().map_or(Number::Long(digits), Number::Integer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parsed(text: &str) -> serde_json::Result<Value> {
        read(text, |text| serde_json::from_str(text))
    }

    fn value(text: &str) -> Value {
        parsed(text).unwrap()
    }

    #[test]
    fn what_serde_json_reads_is_read_by_it() {
        for text in [
            "{}",
            r#"{"a": [1, -2.5e3, true, null, "NaN", "\\\"[", 18446744073709551615]}"#,
            r#"["123456789012345678901234567890", 0.12345678901234567890123]"#,
        ] {
            let read = serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(value(text), read);
            assert_eq!(marked(text), text);
        }
    }

    #[test]
    fn numbers_of_python_compare_as_there() {
        let long = "1".repeat(400);
        let near = format!("{}2", "1".repeat(399));
        let equals = [
            ("Infinity", "Infinity"),
            ("1e400", "Infinity"),
            ("-Infinity", "-1e999"),
            (&long, &long),
            ("18446744073709551616", "18446744073709551616.0"),
            ("1180591620717411303424", "1180591620717411303424.0"),
            (
                "340282366920938463463374607431768211456",
                "3.402823669209384634633746e38",
            ),
            ("[NaN, 1]", "[NaN, 1]"),
        ];
        for (a, b) in &equals[..equals.len() - 1] {
            assert!(equal(&value(a), &value(b)), "{a} {b}");
        }
        let differs = [
            ("NaN", "NaN"),
            ("NaN", "null"),
            ("NaN", "Infinity"),
            ("Infinity", "-Infinity"),
            ("Infinity", "\"Infinity\""),
            (
                "79228162514264337593543950335",
                "79228162514264337593543950336",
            ),
            ("100000000000000000000000000000000000000000", "1e41"),
            ("18446744073709551617", "18446744073709551616"),
            (&long, &near),
            (&long, &format!("\"{long}\"")),
            (&long, &format!("-{long}")),
        ];
        for (a, b) in differs {
            assert!(!equal(&value(a), &value(b)), "{a} {b}");
        }
    }

    #[test]
    fn any_depth_is_read_and_told_apart() {
        let deep = |inside: &str| format!("{}{inside}{}", "[".repeat(5000), "]".repeat(5000));
        let text = format!(r#"{{"a": {}, "b": 1}}"#, deep(r#""]\"[""#));
        let object = value(&text);
        assert_eq!(object["b"], json!(1));
        assert!(equal(&value(&deep("1")), &value(&deep("1"))));
        assert!(!equal(&value(&deep("1")), &value(&deep("2"))));
        assert!(!equal(
            &value(&deep("1")),
            &value(&format!("[{}]", deep("1")))
        ));
    }

    #[test]
    fn what_is_broken_stays_so() {
        for text in [
            "",
            "[",
            "{\"a",
            "[01]",
            "-",
            "nan",
            "[1}",
            "--1",
            "1e",
            "NaNs",
            "Inf",
            "inf",
            "1 2",
            "]",
            "[00000000000000000000001]",
            "12345678901234567890x",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in r#"([\[\]{}",:\\\-+.eE0-9aNI ]|NaN|Infinity|12345678901234567890|"a":|é){0,40}"#) {
            drop(parsed(&text));
        }

        #[test]
        fn long_runs_of_digits_are_seen(before in "[a0-9]{0,60}", digits in "[0-9]{19}", after in "[a0-9]{0,40}") {
            let text = format!("{before}{digits}{after}");
            prop_assert!(has_long_number(text.as_bytes()));
            let text = format!("{before}a{after}");
            let long = text.split('a').any(|run| run.len() >= 19);
            prop_assert_eq!(has_long_number(text.as_bytes()), long);
        }
    }
}
