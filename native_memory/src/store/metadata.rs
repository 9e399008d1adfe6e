//! What makes a filter on metadata fast: per key, a hash of the value that each row has.
//!
//! The texts stay in the file. A column of hashes is filled as searches ask for its key and come to
//! its rows, each of which is read once. A hash that differs proves that the value differs; one
//! that is equal makes it all but certain, and the records that a search returns are looked at
//! themselves (see `Engine::find`).

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use serde_json::{Map, Value};

use super::json::{Number, number};

/// Keys of which columns are kept; the ninth takes the place of all.
const KEYS: usize = 8;
/// The hash of what was not read yet.
const UNKNOWN: u64 = 0;

/// The columns of one part of a mirror.
#[derive(Default)]
pub(super) struct MetadataColumns {
    /// With a random key, so that nobody can choose values whose hashes are equal.
    state: RandomState,
    columns: Vec<(String, Vec<u64>)>,
}

/// The columns that a filter is about, and the hashes that it wants.
pub(super) struct Wanted {
    /// Positions of columns, and hashes.
    pairs: Vec<(usize, u64)>,
}

impl MetadataColumns {
    /// Makes room for a filter on `rows` rows.
    pub(super) fn prepare(&mut self, wanted: &Map<String, Value>, rows: usize) -> Wanted {
        let new = wanted.keys().filter(|key| self.position(key).is_none());
        if self.columns.len() + new.count() > KEYS {
            self.columns.clear();
        }
        let pairs = wanted.iter().map(|(key, value)| {
            let at = self.position(key).unwrap_or_else(|| {
                self.columns.push((key.clone(), Vec::new()));
                self.columns.len() - 1
            });
            self.columns[at].1.resize(rows, UNKNOWN);
            (at, self.hash(value))
        });
        Wanted {
            pairs: pairs.collect(),
        }
    }

    fn position(&self, key: &str) -> Option<usize> {
        self.columns.iter().position(|(known, _)| known == key)
    }

    /// Whether a row has the wanted values, or `None` if it was not read yet.
    pub(super) fn fits(&self, row: usize, wanted: &Wanted) -> Option<bool> {
        let mut fits = true;
        for (at, hash) in &wanted.pairs {
            match self.columns.get(*at)?.1.get(row).copied()? {
                UNKNOWN => return None,
                known => fits &= known == *hash,
            }
        }
        Some(fits)
    }

    /// Takes note of a row's metadata.
    pub(super) fn read(&mut self, row: usize, metadata: &Map<String, Value>) {
        let mut columns = std::mem::take(&mut self.columns);
        for (key, column) in &mut columns {
            // A key that is missing is one that is null.
            let value = metadata.get(key).unwrap_or(&Value::Null);
            if let Some(place) = column.get_mut(row) {
                *place = self.hash(value);
            }
        }
        self.columns = columns;
    }

    /// Forgets a row, which has changed.
    pub(super) fn forget(&mut self, row: usize) {
        for (_, column) in &mut self.columns {
            if let Some(place) = column.get_mut(row) {
                *place = UNKNOWN;
            }
        }
    }

    fn hash(&self, value: &Value) -> u64 {
        let mut hasher = self.state.build_hasher();
        feed(value, &mut hasher);
        // Never UNKNOWN.
        hasher.finish() | 1
    }
}

/// Hashes equal values, as Python sees them, alike.
fn feed(value: &Value, hasher: &mut impl Hasher) {
    match number(value) {
        Some(Number::Integer(whole)) => return (1_u8, whole).hash(hasher),
        Some(Number::Float(float)) => return (2_u8, float.to_bits()).hash(hasher),
        Some(Number::Long(digits)) => return (3_u8, digits).hash(hasher),
        None => {}
    }
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0_u8.hash(hasher),
        Value::String(text) => (4_u8, text).hash(hasher),
        Value::Array(items) => {
            (5_u8, items.len()).hash(hasher);
            for item in items {
                feed(item, hasher);
            }
        }
        Value::Object(members) => {
            (6_u8, members.len()).hash(hasher);
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in members {
                key.hash(hasher);
                feed(value, hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::filter::parse;
    use crate::store::json::equal;
    use serde_json::json;

    #[test]
    fn what_is_equal_hashes_alike_and_nothing_else_does() {
        let columns = MetadataColumns::default();
        let big = 9_007_199_254_740_993_i64;
        let odd = |text: &str| parse(&format!("{{\"k\": {text}}}")).unwrap()["k"].clone();
        let values = [
            json!(null),
            json!(false),
            json!(0),
            json!(0.0),
            json!(-0.0),
            json!(1),
            json!(true),
            json!(1.0),
            json!(1.5),
            json!("1"),
            json!(""),
            json!([]),
            json!({}),
            json!([1, 2]),
            json!([[1], 2]),
            json!([1, [2]]),
            json!([true, 2.0]),
            json!({"a": 1, "b": [0]}),
            json!({"b": [false], "a": 1.0}),
            json!({"a": {"b": 1}}),
            json!(big),
            json!(big as f64),
            json!(big - 1),
            json!(u64::MAX),
            json!(u64::MAX as f64),
            json!(1e300),
            json!("a"),
        ]
        .into_iter()
        .chain(
            [
                "Infinity",
                "-Infinity",
                "18446744073709551616",
                "18446744073709551616.0",
                "1e41",
            ]
            .map(odd),
        )
        .chain([odd(&"9".repeat(400))])
        .collect::<Vec<_>>();
        for a in &values {
            for b in &values {
                assert_eq!(columns.hash(a) == columns.hash(b), equal(a, b), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_row_is_known_once_it_was_read_and_until_it_changes() {
        let mut columns = MetadataColumns::default();
        let filter = parse(r#"{"k": 1, "absent": null}"#).unwrap();
        let wanted = columns.prepare(&filter, 2);
        assert_eq!(columns.fits(0, &wanted), None);
        columns.read(0, &parse(r#"{"k": 1.0, "other": 2}"#).unwrap());
        columns.read(1, &parse(r#"{"k": 1, "absent": 0}"#).unwrap());
        assert_eq!(columns.fits(0, &wanted), Some(true));
        assert_eq!(columns.fits(1, &wanted), Some(false));
        columns.forget(0);
        assert_eq!(columns.fits(0, &wanted), None);
        assert_eq!(columns.fits(2, &wanted), None);
    }

    #[test]
    fn many_keys_do_not_pile_up() {
        let mut columns = MetadataColumns::default();
        for n in 0..100 {
            let filter = parse(&format!(r#"{{"k{n}": 1}}"#)).unwrap();
            let wanted = columns.prepare(&filter, 1);
            columns.read(0, &filter);
            assert_eq!(columns.fits(0, &wanted), Some(true));
            assert!(columns.columns.len() <= KEYS);
        }
        let many: Map<_, _> = (0..20).map(|n| (format!("m{n}"), json!(n))).collect();
        let wanted = columns.prepare(&many, 1);
        columns.read(0, &many);
        assert_eq!(columns.fits(0, &wanted), Some(true));
    }
}
