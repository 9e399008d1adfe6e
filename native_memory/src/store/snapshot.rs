//! A mirror on disk, so that a large store opens without reading every vector.
//!
//! Beside the store's file lies a directory of sealed segments (the codes) and small files that
//! each describe a whole mirror: which segments, and the filter columns of their rows, at one
//! `seq`. A row of `meta` names the one in force; what changed since is in `changes`. All of it
//! can be computed again from the store's file: a snapshot that is missing, damaged or too old
//! costs time, nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::schema::sibling;

/// Marks a snapshot and the version of its layout.
const MAGIC: &[u8; 8] = b"CNMsnap1";

/// A mirror as a file holds it.
#[derive(Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The state of the store's file.
    pub seq: i64,
    /// Length of the vectors.
    pub dimension: u64,
    /// Names of sources; columns refer to their positions.
    pub sources: Vec<String>,
    /// The segments, by ascending ids of their vectors.
    pub parts: Vec<SnapshotPart>,
}

/// A segment's file and the columns of its rows.
#[derive(Debug, Default, PartialEq)]
pub struct SnapshotPart {
    /// Name of the segment's file.
    pub file: String,
    /// Rows of the `records` table.
    pub records: Vec<i64>,
    /// Microseconds since 1970 UTC.
    pub created_at: Vec<i64>,
    /// Ids of scopes.
    pub scopes: Vec<i64>,
    /// Ids of category sets.
    pub sets: Vec<i64>,
    /// Positions in [`Snapshot::sources`], or `u32::MAX`.
    pub sources: Vec<u32>,
    /// Bits of private rows.
    pub private: Vec<u64>,
    /// Bits of deleted rows.
    pub deleted: Vec<u64>,
}

/// The directory of a store's snapshots and segments.
pub fn directory(store: &Path) -> PathBuf {
    sibling(store, "-codes")
}

impl Snapshot {
    /// Writes the snapshot under a name that appears only when it is whole.
    pub fn write(&self, directory: &Path, name: &str) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(self.seq.to_le_bytes());
        body.extend(self.dimension.to_le_bytes());
        put_texts(&mut body, &self.sources);
        body.extend((self.parts.len() as u64).to_le_bytes());
        for part in &self.parts {
            put_texts(&mut body, std::slice::from_ref(&part.file));
            for column in [&part.records, &part.created_at, &part.scopes, &part.sets] {
                put(&mut body, column, i64::to_le_bytes);
            }
            put(&mut body, &part.sources, u32::to_le_bytes);
            for column in [&part.private, &part.deleted] {
                put(&mut body, column, u64::to_le_bytes);
            }
        }
        let mut whole = MAGIC.to_vec();
        whole.extend(crc32fast::hash(&body).to_le_bytes());
        whole.extend(body);
        let draft = directory.join(format!("{name}.tmp"));
        fs::write(&draft, whole)?;
        fs::File::open(&draft)?.sync_all()?;
        fs::rename(&draft, directory.join(name))
    }

    /// Reads a snapshot, or gives `None` for one that is not there or not whole.
    pub fn read(directory: &Path, name: &str) -> Option<Self> {
        let whole = fs::read(directory.join(name)).ok()?;
        let (sum, body) = whole.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let mut rest = body;
        let snapshot = Self {
            seq: i64::from_le_bytes(take(&mut rest)?),
            dimension: u64::from_le_bytes(take(&mut rest)?),
            sources: take_texts(&mut rest)?,
            parts: (0..u64::from_le_bytes(take(&mut rest)?))
                .map(|_| {
                    Some(SnapshotPart {
                        file: take_texts(&mut rest)?.pop()?,
                        records: take_all(&mut rest, i64::from_le_bytes)?,
                        created_at: take_all(&mut rest, i64::from_le_bytes)?,
                        scopes: take_all(&mut rest, i64::from_le_bytes)?,
                        sets: take_all(&mut rest, i64::from_le_bytes)?,
                        sources: take_all(&mut rest, u32::from_le_bytes)?,
                        private: take_all(&mut rest, u64::from_le_bytes)?,
                        deleted: take_all(&mut rest, u64::from_le_bytes)?,
                    })
                })
                .collect::<Option<_>>()?,
        };
        let alike = snapshot.parts.iter().all(|part| {
            let rows = part.records.len();
            [
                part.created_at.len(),
                part.scopes.len(),
                part.sets.len(),
                part.sources.len(),
            ]
            .iter()
            .all(|&length| length == rows)
        });
        (rest.is_empty() && alike).then_some(snapshot)
    }
}

fn put<T: Copy, const N: usize>(body: &mut Vec<u8>, column: &[T], bytes: fn(T) -> [u8; N]) {
    body.extend((column.len() as u64).to_le_bytes());
    body.extend(column.iter().flat_map(|&value| bytes(value)));
}

fn put_texts(body: &mut Vec<u8>, texts: &[String]) {
    body.extend((texts.len() as u64).to_le_bytes());
    for text in texts {
        put(body, text.as_bytes(), |byte| [byte]);
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk::<N>()?;
    *rest = others;
    Some(*first)
}

fn take_all<T, const N: usize>(rest: &mut &[u8], value: fn([u8; N]) -> T) -> Option<Vec<T>> {
    let count = usize::try_from(u64::from_le_bytes(take(rest)?)).ok()?;
    let (column, others) = rest.split_at_checked(count.checked_mul(N)?)?;
    *rest = others;
    Some(
        column
            .as_chunks::<N>()
            .0
            .iter()
            .map(|&bytes| value(bytes))
            .collect(),
    )
}

fn take_texts(rest: &mut &[u8]) -> Option<Vec<String>> {
    let count = u64::from_le_bytes(take(rest)?);
    (0..count)
        .map(|_| String::from_utf8(take_all(rest, |[byte]: [u8; 1]| byte)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Snapshot {
        Snapshot {
            seq: 7,
            dimension: 3,
            sources: vec!["ann".into(), "bé".into()],
            parts: vec![SnapshotPart {
                file: "a.codes".into(),
                records: vec![1, 2],
                created_at: vec![-1, i64::MAX],
                scopes: vec![1, 1],
                sets: vec![1, 2],
                sources: vec![u32::MAX, 1],
                private: vec![2],
                deleted: vec![],
            }],
        }
    }

    #[test]
    fn a_snapshot_reads_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let snapshot = example();
        snapshot.write(directory.path(), "s").unwrap();
        assert_eq!(Snapshot::read(directory.path(), "s"), Some(snapshot));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_whole_is_no_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("s");
        assert_eq!(Snapshot::read(directory.path(), "s"), None);
        example().write(directory.path(), "s").unwrap();
        let whole = fs::read(&file).unwrap();
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(Snapshot::read(directory.path(), "s"), None);
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            fs::write(&file, flipped).unwrap();
            assert_eq!(Snapshot::read(directory.path(), "s"), None);
        }
    }
}
