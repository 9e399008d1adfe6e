//! Which records an operation is about.

use std::borrow::Cow;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::json;
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
    let chosen = json::read(metadata, |text| {
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
        .all(|(key, value)| json::equal(metadata.get(key).unwrap_or(&Value::Null), value))
}

/// Parses metadata, or the values wanted of it, as Python writes them.
pub fn parse(text: &str) -> serde_json::Result<Map<String, Value>> {
    json::read(text, |text| serde_json::from_str(text))
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
        let wanted = parse(r#"{"k": Infinity}"#).unwrap();
        assert!(has_metadata(r#"{"k": Infinity, "o": NaN}"#, &wanted).unwrap());
        assert!(!has_metadata(r#"{"k": NaN}"#, &wanted).unwrap());
        assert!(!has_metadata(r#"{"k": -Infinity}"#, &wanted).unwrap());
        let wanted = parse(r#"{"k": NaN}"#).unwrap();
        assert!(!has_metadata(r#"{"k": NaN}"#, &wanted).unwrap());
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
