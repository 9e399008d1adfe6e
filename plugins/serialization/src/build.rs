//! What a reader makes of the values that it finds.

use std::fmt;

/// Levels of lists and maps that a value may have, read or written.
pub const MAX_DEPTH: usize = 256;

/// Digits of the longest whole number that is read: as many as Python itself converts by default.
pub const MAX_DIGITS: usize = 4300;

/// Why bytes are no value, and where that shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// Offset in bytes.
    pub at: usize,
    /// What is wrong there.
    pub what: String,
}

impl ReadError {
    pub(crate) fn new(at: usize, what: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for ReadError {}

/// Why a value cannot be built. The reader adds the place.
#[derive(Debug)]
pub enum BuildError {
    /// The key of this entry, counted from 0, stands in the map twice.
    Duplicate(usize),
    /// In the builder's own words.
    Other(String),
}

/// Makes values for a reader, which calls it from the inside out.
pub trait Build {
    /// What is built.
    type Value;

    /// JSON's `null`.
    fn null(&mut self) -> Self::Value;
    /// A truth value.
    fn truth(&mut self, truth: bool) -> Self::Value;
    /// A whole number.
    fn int(&mut self, number: i64) -> Result<Self::Value, BuildError>;
    /// A whole number beyond 64 bits: a sign if negative, and decimal digits.
    fn big_int(&mut self, digits: &str) -> Result<Self::Value, BuildError>;
    /// A finite number.
    fn float(&mut self, number: f64) -> Self::Value;
    /// A text.
    fn text(&mut self, text: &str) -> Self::Value;
    /// A text that is the key of an entry.
    fn key(&mut self, key: &str) -> Self::Value;
    /// A list of the values from `start` on, which are taken off. `depth` lists and maps are around
    /// it.
    fn list(
        &mut self,
        values: &mut Vec<Self::Value>,
        start: usize,
        depth: usize,
    ) -> Result<Self::Value, BuildError>;
    /// A map of the keys and values, by turns, from `start` on, which are taken off.
    fn map(
        &mut self,
        values: &mut Vec<Self::Value>,
        start: usize,
        depth: usize,
    ) -> Result<Self::Value, BuildError>;
}

/// The lists and maps that are open, and the values in them so far. Grows with the input only.
pub(crate) struct Stack<V> {
    pub(crate) values: Vec<V>,
    /// Where the keys of open maps stand.
    keys: Vec<usize>,
    open: Vec<Open>,
}

#[derive(Clone, Copy)]
pub(crate) struct Open {
    start: usize,
    keys: usize,
    pub(crate) is_map: bool,
    /// Values that are still to come, where the format counts.
    pub(crate) left: usize,
}

impl<V> Stack<V> {
    pub(crate) fn new() -> Self {
        Self {
            values: Vec::new(),
            keys: Vec::new(),
            open: Vec::new(),
        }
    }

    pub(crate) fn open(&mut self, at: usize, is_map: bool, left: usize) -> Result<(), ReadError> {
        if self.open.len() == MAX_DEPTH {
            return Err(ReadError::new(
                at,
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        self.open.push(Open {
            start: self.values.len(),
            keys: self.keys.len(),
            is_map,
            left,
        });
        Ok(())
    }

    pub(crate) fn last(&mut self) -> Option<&mut Open> {
        self.open.last_mut()
    }

    pub(crate) fn key(&mut self, at: usize, key: V) {
        self.keys.push(at);
        self.values.push(key);
    }

    /// Builds the innermost list or map, which ends at `at`, and puts it where it belongs.
    pub(crate) fn close<B: Build<Value = V>>(
        &mut self,
        builder: &mut B,
        at: usize,
    ) -> Result<(), ReadError> {
        let Some(open) = self.open.pop() else {
            return Err(ReadError::new(at, "an end without a beginning"));
        };
        let depth = self.open.len();
        let built = if open.is_map {
            builder.map(&mut self.values, open.start, depth)
        } else {
            builder.list(&mut self.values, open.start, depth)
        };
        let value = built.map_err(|error| match error {
            BuildError::Duplicate(entry) => ReadError::new(
                self.keys.get(open.keys + entry).copied().unwrap_or(at),
                "a key that the map already has",
            ),
            BuildError::Other(what) => ReadError::new(at, what),
        })?;
        self.keys.truncate(open.keys);
        self.values.push(value);
        Ok(())
    }
}

pub(crate) fn placed<V>(built: Result<V, BuildError>, at: usize) -> Result<V, ReadError> {
    built.map_err(|error| match error {
        BuildError::Duplicate(_) => ReadError::new(at, "a key twice"),
        BuildError::Other(what) => ReadError::new(at, what),
    })
}

/// Makes values that the tests can compare.
#[cfg(test)]
pub(crate) struct Sample;

#[cfg(test)]
impl Build for Sample {
    type Value = serde_json::Value;

    fn null(&mut self) -> Self::Value {
        serde_json::Value::Null
    }
    fn truth(&mut self, truth: bool) -> Self::Value {
        truth.into()
    }
    fn int(&mut self, number: i64) -> Result<Self::Value, BuildError> {
        Ok(number.into())
    }
    fn big_int(&mut self, digits: &str) -> Result<Self::Value, BuildError> {
        // As serde_json has it.
        Ok(match digits.parse::<u64>() {
            Ok(number) => number.into(),
            Err(_) => digits.parse::<f64>().unwrap().into(),
        })
    }
    fn float(&mut self, number: f64) -> Self::Value {
        number.into()
    }
    fn text(&mut self, text: &str) -> Self::Value {
        text.into()
    }
    fn key(&mut self, key: &str) -> Self::Value {
        key.into()
    }
    fn list(
        &mut self,
        values: &mut Vec<Self::Value>,
        start: usize,
        _: usize,
    ) -> Result<Self::Value, BuildError> {
        Ok(values.drain(start..).collect())
    }
    fn map(
        &mut self,
        values: &mut Vec<Self::Value>,
        start: usize,
        _: usize,
    ) -> Result<Self::Value, BuildError> {
        let mut map = serde_json::Map::new();
        let mut entries = values.drain(start..);
        let mut entry = 0;
        while let (Some(key), Some(value)) = (entries.next(), entries.next()) {
            if map
                .insert(key.as_str().unwrap().to_owned(), value)
                .is_some()
            {
                return Err(BuildError::Duplicate(entry));
            }
            entry += 1;
        }
        Ok(map.into())
    }
}
