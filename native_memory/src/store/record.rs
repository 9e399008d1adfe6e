//! Records as they are given, stored and returned.

use std::sync::OnceLock;

use crc32fast::Hasher;

use super::error::{Result, StoreError};

/// A record to be stored. Every field was validated by [`Record::validate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Unique; saving an id again replaces the record.
    pub id: String,
    /// The text.
    pub content: String,
    /// Normalised scope path.
    pub scope: String,
    /// Category names in the caller's order, as a JSON array of strings.
    pub categories: String,
    /// A JSON object.
    pub metadata: String,
    /// Usually 0 to 1; any finite number is kept.
    pub importance: f64,
    /// Microseconds since 1970 UTC.
    pub created_at: i64,
    /// Microseconds since 1970 UTC.
    pub last_accessed: i64,
    /// Who the record came from.
    pub source: Option<String>,
    /// Whether only its source may see it.
    pub private: bool,
    /// Finite, at least one dimension; `None` is stored and listed but never ranked.
    pub embedding: Option<Embedding>,
}

/// A vector, which may still be on its way while its record is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    dimension: usize,
    components: OnceLock<Option<Box<[f32]>>>,
}

impl Embedding {
    /// One that [`Embedding::arrive`] is to be called for, whatever happens: others wait for that.
    pub fn to_come(dimension: usize) -> Self {
        Self {
            dimension,
            components: OnceLock::new(),
        }
    }

    /// Gives the components, or says that there will be none; of another number they are none. Says
    /// whether there are some.
    pub fn arrive(&self, components: Option<Box<[f32]>>) -> bool {
        let components = components.filter(|components| components.len() == self.dimension);
        self.components.get_or_init(|| components).is_some()
    }

    /// How many components it has.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Waits for the components.
    pub fn components(&self) -> Result<&[f32]> {
        self.components
            .wait()
            .as_deref()
            .ok_or(StoreError::Withheld)
    }

    /// The components, if they are there.
    pub fn into_components(self) -> Option<Box<[f32]>> {
        self.components.into_inner().flatten()
    }
}

impl From<Box<[f32]>> for Embedding {
    fn from(components: Box<[f32]>) -> Self {
        Self {
            dimension: components.len(),
            components: Some(components).into(),
        }
    }
}

impl Record {
    /// What a stored row's fields must still hash to when it is read.
    ///
    /// SQLite notices damage to its own structure, not to a text inside a page; this notices the
    /// rest.
    pub fn checksum(&self, vector: Option<i64>) -> u32 {
        let mut hash = Hasher::new();
        for text in [
            self.id.as_str(),
            &self.content,
            &self.scope,
            &self.categories,
            &self.metadata,
            self.source.as_deref().unwrap_or("\0"),
        ] {
            // The length first, so that moving a byte from one field to the next shows.
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&self.importance.to_bits().to_le_bytes());
        hash.update(&self.created_at.to_le_bytes());
        hash.update(&[u8::from(self.private), u8::from(self.source.is_some())]);
        hash.update(&vector.unwrap_or(0).to_le_bytes());
        hash.finalize() ^ time_checksum(self.last_accessed)
    }
}

/// The part of [`Record::checksum`] that `last_accessed` has, apart from the rest so that it can
/// be exchanged without reading the record.
pub fn time_checksum(last_accessed: i64) -> u32 {
    crc32fast::hash(&last_accessed.to_le_bytes())
}

/// The bytes that a vector is stored as: little-endian float32, which it is in memory as well, as
/// for the columns of [`crate::vector::segment`].
pub fn vector_bytes(vector: &[f32]) -> &[u8] {
    // SAFETY: an f32 has no padding, and u8 no alignment.
    unsafe { std::slice::from_raw_parts(vector.as_ptr().cast(), size_of_val(vector)) }
}

/// The vector that `bytes` hold, or `None` when they are no whole number of floats.
pub fn vector_from_bytes(bytes: &[u8]) -> Option<Box<[f32]>> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    rest.is_empty()
        .then(|| chunks.iter().map(|c| f32::from_le_bytes(*c)).collect())
}

/// A record for tests.
#[cfg(test)]
pub fn numbered(number: usize) -> Record {
    Record {
        id: format!("r{number}"),
        content: "text".to_owned(),
        scope: "/".to_owned(),
        categories: "[]".to_owned(),
        metadata: "{}".to_owned(),
        importance: 0.5,
        created_at: 0,
        last_accessed: 0,
        source: None,
        private: false,
        embedding: Some(vec![number as f32, 1.0].into_boxed_slice().into()),
    }
}
