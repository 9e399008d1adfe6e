//! Which records an operation is about.

use std::borrow::Cow;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::scope::ROOT;

/// Conditions on records; all that are given must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Normalised path; the record lies there or below.
    pub scope: Option<String>,
    /// The record has at least one of these.
    pub categories: Option<Vec<String>>,
    /// The record's metadata has these values under these keys; `null` also matches a missing key.
    pub metadata: Option<Map<String, Value>>,
    /// Microseconds since 1970 UTC; the record was created then or later.
    pub created_from: Option<i64>,
    /// Microseconds since 1970 UTC; the record was created before.
    pub created_before: Option<i64>,
    /// The record came from one of these.
    pub sources: Option<Vec<String>>,
    /// Private records are hidden, except from the source named here.
    pub visible_to: Visibility,
}

impl Filter {
    /// Whether every record meets it.
    pub fn is_empty(&self) -> bool {
        let Self {
            scope,
            categories,
            metadata,
            created_from,
            created_before,
            sources,
            visible_to,
        } = self;
        scope.as_deref().is_none_or(|scope| scope == ROOT)
            && categories.is_none()
            && metadata.is_none()
            && created_from.is_none()
            && created_before.is_none()
            && sources.is_none()
            && *visible_to == Visibility::All
    }
}

/// Whose private records may be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody's.
    #[default]
    All,
    /// Those of this source, or nobody's.
    Only(Option<String>),
}

impl Visibility {
    /// Whether a record may be seen.
    pub fn admits(&self, private: bool, source: Option<&str>) -> bool {
        match self {
            Self::Only(viewer) if private => source.is_some() && source == viewer.as_deref(),
            _ => true,
        }
    }
}

/// Whether a record with these `categories` (a JSON array of names) has one of `wanted`.
pub fn has_category(categories: &str, wanted: &[String]) -> serde_json::Result<bool> {
    // Nearly every record has few categories, and most none.
    if categories == "[]" {
        return Ok(false);
    }
    let names: Vec<String> = serde_json::from_str(categories)?;
    Ok(names.iter().any(|name| wanted.contains(name)))
}

/// Whether `metadata` (a JSON object) has every value of `wanted`.
pub fn has_metadata(metadata: &str, wanted: &Map<String, Value>) -> serde_json::Result<bool> {
    let chosen = tolerant(metadata, |text| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let chosen = deserializer.deserialize_map(Choice(wanted))?;
        deserializer.end()?;
        Ok(chosen)
    })?;
    Ok(has_values(&chosen, wanted))
}

/// Reads the members of an object whose keys are among these, and passes over the others, which takes
/// a fraction of the time.
struct Choice<'a>(&'a Map<String, Value>);

impl<'de> Visitor<'de> for Choice<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut chosen = Map::new();
        while let Some(key) = members.next_key::<Cow<'de, str>>()? {
            if self.0.contains_key(&*key) {
                chosen.insert(key.into_owned(), members.next_value()?);
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(chosen)
    }
}

/// Whether parsed metadata has every value of `wanted`.
pub fn has_values(metadata: &Map<String, Value>, wanted: &Map<String, Value>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| equal(metadata.get(key).unwrap_or(&Value::Null), value))
}

/// Parses JSON as Python writes it, that is with bare `NaN` and `Infinity`.
///
/// Those become strings that no caller's value equals: NaN equals nothing, and a comparison with
/// an infinity is not offered.
pub fn parse(text: &str) -> serde_json::Result<Map<String, Value>> {
    tolerant(text, |text| serde_json::from_str(text))
}

/// Has `read` read a text; once more where it holds what only Python writes, with strings instead.
fn tolerant<T>(text: &str, read: impl Fn(&str) -> serde_json::Result<T>) -> serde_json::Result<T> {
    match read(text) {
        Ok(object) => Ok(object),
        Err(first) if first.is_syntax() => {
            let mut strict = String::with_capacity(text.len() + 32);
            let mut in_string = false;
            let mut rest = text;
            while let Some(c) = rest.chars().next() {
                let token = ["-Infinity", "Infinity", "NaN"]
                    .into_iter()
                    .find(|token| !in_string && rest.starts_with(token));
                if let Some(token) = token {
                    strict.push_str("\"\\u0000not a finite number\"");
                    rest = &rest[token.len()..];
                    continue;
                }
                let taken = match c {
                    '\\' if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
                    _ => c.len_utf8(),
                };
                in_string ^= c == '"';
                strict.push_str(&rest[..taken]);
                rest = &rest[taken..];
            }
            read(&strict).map_err(|_| first)
        }
        Err(error) => Err(error),
    }
}

/// Equality as Python sees it: `1 == 1.0 == True`, and the order of keys does not matter.
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
        (Value::Bool(_) | Value::Number(_), Value::Bool(_) | Value::Number(_)) => {
            number(a) == number(b)
        }
        _ => a == b,
    }
}

/// A number such that equal ones have one form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    /// Every whole number, however it is written, that fits.
    Integer(i128),
    /// All others.
    Float(f64),
}

/// The number that a value is to Python, to which a bool is one.
pub(super) fn number(value: &Value) -> Option<Number> {
    if let Value::Bool(truth) = value {
        return Some(Number::Integer(i128::from(*truth)));
    }
    if let Some(whole) = value.as_i64() {
        return Some(Number::Integer(i128::from(whole)));
    }
    if let Some(whole) = value.as_u64() {
        return Some(Number::Integer(i128::from(whole)));
    }
    let float = value.as_f64()?;
    // Below 2^126 the conversion is exact.
    Some(if float.fract() == 0.0 && float.abs() < 8.5e37 {
        Number::Integer(float as i128)
    } else {
        Number::Float(float)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(metadata: &str, wanted: Value) -> bool {
        let Value::Object(wanted) = wanted else {
            unreachable!("the tests give objects")
        };
        has_metadata(metadata, &wanted).unwrap()
    }

    #[test]
    fn metadata_compares_as_python_does() {
        assert!(matches(r#"{"k": 1}"#, json!({"k": 1.0})));
        assert!(matches(r#"{"k": true}"#, json!({"k": 1})));
        assert!(matches(
            r#"{"k": {"a": [1], "b": 2}}"#,
            json!({"k": {"b": 2, "a": [true]}})
        ));
        assert!(matches("{}", json!({"k": null})));
        assert!(!matches(r#"{"k": "1"}"#, json!({"k": 1})));
        assert!(!matches(r#"{"k": null}"#, json!({"k": false})));
        assert!(!matches(
            r#"{"k": 9007199254740993}"#,
            json!({"k": 9_007_199_254_740_992_i64})
        ));
        assert!(!matches(
            r#"{"k": 9007199254740993}"#,
            json!({"k": 9_007_199_254_740_992.0})
        ));
        assert!(matches(r#"{"k": 1e30}"#, json!({"k": 1e30})));
    }

    #[test]
    fn numbers_that_json_does_not_know_are_no_obstacle() {
        let metadata = r#"{"a": NaN, "b\"NaN": [-Infinity, "Infinity \\"], "c": 1}"#;
        assert!(matches(metadata, json!({"c": 1})));
        assert!(!matches(metadata, json!({"a": null})));
        assert!(has_metadata("{broken", &Map::new()).is_err());
    }

    #[test]
    fn members_that_nobody_asked_for_are_passed_over() {
        let metadata =
            r#"{"other": {"k": 1, "x": [{}, "\"k\": 1"]}, "k": 2, "\u006b2": [3], "k": 4}"#;
        assert!(matches(metadata, json!({"k": 4})));
        assert!(!matches(metadata, json!({"k": 1})));
        assert!(!matches(metadata, json!({"k": 2})));
        assert!(matches(metadata, json!({"k2": [3], "k": 4})));
        assert!(!matches(metadata, json!({"x": [{}]})));
        for broken in ["[]", "1", r#"{"k": 1} 2"#, r#"{"k": 1, "o": [}"#] {
            let wanted = Map::from_iter([("k".to_owned(), json!(1))]);
            assert!(has_metadata(broken, &wanted).is_err(), "{broken}");
        }
    }

    #[test]
    fn private_records_are_seen_by_their_source_alone() {
        let (ann, nobody) = (Visibility::Only(Some("ann".into())), Visibility::Only(None));
        assert!(Visibility::All.admits(true, None));
        assert!(ann.admits(true, Some("ann")) && !ann.admits(true, Some("bob")));
        assert!(!ann.admits(true, None) && !nobody.admits(true, None));
        assert!(nobody.admits(false, None));
    }
}
