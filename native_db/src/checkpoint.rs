//! Checkpoints of runs: what each adds to the one before it.
//!
//! A *record* is the history of one run: *segments*, each the text of what was added since the one
//! before. A checkpoint is so many segments of a record, and a *document*, the text of what does
//! change. A document is stored whole or as a delta against a whole one of its record, a segment
//! as what differs from the text before it: reading a record decodes all of it anyway.
//!
//! What the texts say is up to the caller.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, params};

use crate::codec;
use crate::engine::{DbError, Result, Schema};

/// Format 1. `size` and `checksum` (CRC-32) are those of the text. The `prefix` of a segment is
/// how many bytes of the text before it it was packed with. `base` names the document that `data`
/// is a delta against; NULL for a whole one. Times are µs since 1970 UTC.
pub static SCHEMA: Schema = Schema {
    name: "store of checkpoints",
    application_id: 0x434e_4463, // "CNDc"
    format: 1,
    tables: "
CREATE TABLE records (
    record INTEGER PRIMARY KEY AUTOINCREMENT
) STRICT;

CREATE TABLE segments (
    record INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    prefix INTEGER NOT NULL,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (record, segment)
) STRICT;

CREATE TABLE documents (
    document INTEGER PRIMARY KEY AUTOINCREMENT,
    record INTEGER NOT NULL,
    base INTEGER,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE INDEX documents_by_record ON documents (record, document);

CREATE TABLE checkpoints (
    id TEXT PRIMARY KEY,
    record INTEGER NOT NULL,
    segments INTEGER NOT NULL,
    document INTEGER NOT NULL,
    note TEXT NOT NULL,
    saved_at INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoints_by_document ON checkpoints (document);
CREATE INDEX checkpoints_by_record ON checkpoints (record);
",
};

/// Bytes of the text before it that a segment is packed with. Farther back lies little that a new
/// event has in common with others, and every writer keeps as much of it at hand.
const PREFIX: usize = 1 << 16;

/// What a checkpoint is called.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Unique in the file.
    pub id: String,
    /// What the caller wants to know of it besides.
    pub note: String,
    /// When, in µs since 1970 UTC.
    pub saved_at: i64,
}

/// What a run has come to.
#[derive(Debug)]
pub struct Addition {
    /// The record, or a new one.
    pub record: Option<i64>,
    /// The segments of it that are already there.
    pub first: usize,
    /// The end of the text before `segments`: all of it, or at least so much as they are packed with.
    pub tail: Vec<u8>,
    /// What was added.
    pub segments: Vec<Vec<u8>>,
    /// What does change, as it is now.
    pub document: Vec<u8>,
    /// Checkpoints of that moment.
    pub entries: Vec<Entry>,
}

/// A checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// The segments of its record up to it.
    pub segments: Vec<Vec<u8>>,
    /// The document.
    pub document: Vec<u8>,
    /// What the caller wanted to know.
    pub note: String,
}

/// Totals over a file.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    /// Checkpoints.
    pub checkpoints: i64,
    /// Runs that they are of.
    pub records: i64,
    /// Bytes of text.
    pub text_bytes: i64,
    /// Bytes that they take, packed.
    pub packed_bytes: i64,
}

/// Stores checkpoints; gives their record, or `None` where it is not as the caller believes: it
/// was pruned, or another process has gone on with it. Then nothing was stored.
pub fn add(connection: &Connection, addition: &Addition) -> Result<Option<i64>> {
    let record = match addition.record {
        None => connection
            .prepare_cached("INSERT INTO records DEFAULT VALUES")?
            .insert([])?,
        Some(record) if length(connection, record)? == Some(addition.first) => record,
        Some(_) => return Ok(None),
    };
    let mut tail = addition.tail.clone();
    for (number, text) in (addition.first..).zip(&addition.segments) {
        tail.drain(..tail.len().saturating_sub(PREFIX));
        let packed = codec::pack(text, Some(&tail))?;
        connection
            .prepare_cached(
                "INSERT INTO segments (record, segment, prefix, size, checksum, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                record,
                number,
                tail.len(),
                text.len(),
                crc32fast::hash(text),
                packed,
            ])?;
        tail.extend_from_slice(text);
    }
    let document = add_document(connection, record, &addition.document)?;
    for entry in &addition.entries {
        connection
            .prepare_cached(
                "INSERT INTO checkpoints (id, record, segments, document, note, saved_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                entry.id,
                record,
                addition.first + addition.segments.len(),
                document,
                entry.note,
                entry.saved_at,
            ])?;
    }
    Ok(Some(record))
}

/// The number of segments of a record, if there is such a record.
fn length(connection: &Connection, record: i64) -> Result<Option<usize>> {
    Ok(connection
        .prepare_cached(
            "SELECT (SELECT coalesce(max(segment) + 1, 0) FROM segments s
                     WHERE s.record = r.record)
             FROM records r WHERE r.record = ?1",
        )?
        .query_row([record], |row| row.get(0))
        .optional()?)
}

/// A delta is larger the farther the run has moved on from its base. Once the deltas take as much
/// as their base a new one costs, whatever the two sizes are, at most twice the least.
fn add_document(connection: &Connection, record: i64, text: &[u8]) -> Result<i64> {
    let mut base = None;
    let mut data = None;
    if let Some((document, packed, whole)) = newest_whole(connection, record)? {
        let since: usize = connection
            .prepare_cached(
                "SELECT coalesce(sum(length(data)), 0) FROM documents
                 WHERE record = ?1 AND document > ?2",
            )?
            .query_row([record, document], |row| row.get(0))?;
        let delta = codec::pack(text, Some(&whole))?;
        if since + delta.len() <= packed {
            base = Some(document);
            data = Some(delta);
        }
    }
    let data = match data {
        Some(delta) => delta,
        None => codec::pack(text, None)?,
    };
    Ok(connection
        .prepare_cached(
            "INSERT INTO documents (record, base, size, checksum, data)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .insert(params![
            record,
            base,
            text.len(),
            crc32fast::hash(text),
            data
        ])?)
}

fn newest_whole(connection: &Connection, record: i64) -> Result<Option<(i64, usize, Vec<u8>)>> {
    let found = connection
        .prepare_cached(
            "SELECT document, size, checksum, data FROM documents
             WHERE record = ?1 AND base IS NULL ORDER BY document DESC LIMIT 1",
        )?
        .query_row([record], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get::<_, Vec<u8>>(3)?,
            ))
        })
        .optional()?;
    found
        .map(|(document, size, checksum, data)| {
            let text = unpack(&data, size, checksum, None)?;
            Ok((document, data.len(), text))
        })
        .transpose()
}

fn unpack(data: &[u8], size: usize, checksum: u32, prefix: Option<&[u8]>) -> Result<Vec<u8>> {
    let text = codec::unpack(data, size, prefix)?;
    if crc32fast::hash(&text) != checksum {
        return Err(DbError::Unreadable(
            "a checkpoint is not the one that was saved: its checksum differs".to_owned(),
        ));
    }
    Ok(text)
}

/// A checkpoint by its id.
pub fn load(connection: &Connection, id: &str) -> Result<Option<Stored>> {
    let found = connection
        .prepare_cached("SELECT record, segments, document, note FROM checkpoints WHERE id = ?1")?
        .query_row([id], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, usize>(1)?,
                row.get::<_, i64>(2)?,
                row.get(3)?,
            ))
        })
        .optional()?;
    let Some((record, segments, document, note)) = found else {
        return Ok(None);
    };
    Ok(Some(Stored {
        segments: load_segments(connection, record, segments)?,
        document: load_document(connection, document)?,
        note,
    }))
}

fn load_segments(connection: &Connection, record: i64, count: usize) -> Result<Vec<Vec<u8>>> {
    let mut statement = connection.prepare_cached(
        "SELECT segment, prefix, size, checksum, data FROM segments
         WHERE record = ?1 AND segment < ?2 ORDER BY segment",
    )?;
    let mut rows = statement.query(params![record, count])?;
    let mut tail: Vec<u8> = Vec::new();
    let mut texts = Vec::new();
    while let Some(row) = rows.next()? {
        let prefix: usize = row.get(1)?;
        if row.get::<_, usize>(0)? != texts.len() || prefix > tail.len() {
            break;
        }
        tail.drain(..tail.len() - prefix);
        let text = unpack(
            row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?,
            row.get(2)?,
            row.get(3)?,
            Some(&tail),
        )?;
        tail.extend_from_slice(&text);
        texts.push(text);
    }
    if texts.len() < count {
        return Err(DbError::Unreadable(format!(
            "of {count} parts of a run's record the one numbered {} is missing",
            texts.len()
        )));
    }
    Ok(texts)
}

fn load_document(connection: &Connection, document: i64) -> Result<Vec<u8>> {
    let row = |document: i64| -> Result<(Option<i64>, usize, u32, Vec<u8>)> {
        connection
            .prepare_cached("SELECT base, size, checksum, data FROM documents WHERE document = ?1")?
            .query_row([document], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?
            .ok_or_else(|| DbError::Unreadable(format!("document {document} is missing")))
    };
    let (base, size, checksum, data) = row(document)?;
    let base = match base {
        Some(base) => {
            let (_, size, checksum, data) = row(base)?;
            Some(unpack(&data, size, checksum, None)?)
        }
        None => None,
    };
    unpack(&data, size, checksum, base.as_deref())
}

/// The ids of all checkpoints and when they were saved, oldest first.
pub fn ids(connection: &Connection) -> Result<Vec<(String, i64)>> {
    let mut statement =
        connection.prepare_cached("SELECT id, saved_at FROM checkpoints ORDER BY rowid")?;
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Drops checkpoints, and what no other one needs; says how many there were.
///
/// Segments stay as long as their record has a checkpoint: a run may be about to go on with it.
pub fn forget(connection: &Connection, ids: &[String]) -> Result<usize> {
    let mut dropped = 0;
    let mut records = HashSet::new();
    for id in ids {
        let record: Option<i64> = connection
            .prepare_cached("DELETE FROM checkpoints WHERE id = ?1 RETURNING record")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        dropped += usize::from(record.is_some());
        records.extend(record);
    }
    for record in records {
        // The newest whole document is what the next one will be a delta against.
        connection
            .prepare_cached(
                "WITH needed AS (
                     SELECT document FROM checkpoints WHERE record = ?1
                     UNION SELECT d.base FROM documents d JOIN checkpoints c USING (document)
                           WHERE c.record = ?1 AND d.base IS NOT NULL)
                 DELETE FROM documents WHERE record = ?1 AND document NOT IN needed",
            )?
            .execute([record])?;
        let used = connection
            .prepare_cached("SELECT 1 FROM checkpoints WHERE record = ?1 LIMIT 1")?
            .exists([record])?;
        if !used {
            for table in ["segments", "records"] {
                connection
                    .prepare_cached(&format!("DELETE FROM {table} WHERE record = ?1"))?
                    .execute([record])?;
            }
        }
    }
    if dropped > 0 {
        // The pages go back to the file system without the file being rewritten.
        connection
            .prepare_cached("PRAGMA incremental_vacuum")?
            .query([])?
            .next()?;
    }
    Ok(dropped)
}

/// Totals over the file.
pub fn totals(connection: &Connection) -> Result<Totals> {
    Ok(connection.query_row(
        "SELECT (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM records),
                coalesce(sum(size), 0), coalesce(sum(bytes), 0)
         FROM (SELECT size, length(data) AS bytes FROM segments
               UNION ALL SELECT size, length(data) FROM documents)",
        [],
        |row| {
            Ok(Totals {
                checkpoints: row.get(0)?,
                records: row.get(1)?,
                text_bytes: row.get(2)?,
                packed_bytes: row.get(3)?,
            })
        },
    )?)
}

/// Reads every checkpoint; says what is wrong with which.
pub fn check(connection: &Connection) -> Result<Vec<String>> {
    let mut problems = crate::engine::integrity(connection)?;
    for (id, _) in ids(connection)? {
        if let Err(error) = load(connection, &id) {
            problems.push(format!("checkpoint {id}: {error}"));
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA.tables).unwrap();
        connection
    }

    fn addition(
        record: Option<i64>,
        before: &[Vec<u8>],
        segments: &[Vec<u8>],
        id: &str,
    ) -> Addition {
        Addition {
            record,
            first: before.len(),
            tail: before.concat(),
            segments: segments.to_vec(),
            document: format!("document of {id}").repeat(40).into_bytes(),
            entries: vec![Entry {
                id: id.to_owned(),
                note: id.to_uppercase(),
                saved_at: 1,
            }],
        }
    }

    proptest! {
        #[test]
        fn every_checkpoint_is_what_was_added_up_to_it_whatever_others_are_dropped(
            steps in vec(vec(vec(any::<u8>(), 0..60), 0..4), 0..8),
            dropped in vec(any::<bool>(), 0..8),
        ) {
            let db = database();
            let (mut record, mut all) = (None, Vec::new());
            let mut expected = Vec::new();
            for (number, step) in steps.iter().enumerate() {
                let id = format!("c{number}");
                let new = addition(record, &all, step, &id);
                record = add(&db, &new).unwrap();
                all.extend(step.iter().cloned());
                expected.push((id.clone(), Stored {
                    segments: all.clone(), document: new.document, note: id.to_uppercase(),
                }));
            }
            let gone: Vec<_> = expected.iter().zip(&dropped)
                .filter(|(_, drop)| **drop).map(|((id, _), _)| id.clone()).collect();
            prop_assert_eq!(forget(&db, &gone).unwrap(), gone.len());
            for (id, stored) in expected {
                let kept = (!gone.contains(&id)).then_some(stored);
                prop_assert_eq!(load(&db, &id).unwrap(), kept);
            }
            prop_assert_eq!(check(&db).unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn a_record_that_moved_on_or_went_is_not_continued() {
        let db = database();
        let one = vec![b"one".to_vec()];
        let record = add(&db, &addition(None, &[], &one, "a")).unwrap();
        assert!(
            add(&db, &addition(record, &one, &one, "b"))
                .unwrap()
                .is_some()
        );
        assert_eq!(add(&db, &addition(record, &one, &one, "c")).unwrap(), None);
        assert_eq!(forget(&db, &["a".to_owned(), "b".to_owned()]).unwrap(), 2);
        assert_eq!(add(&db, &addition(record, &one, &one, "d")).unwrap(), None);
        let rows: i64 = db
            .query_row(
                "SELECT (SELECT count(*) FROM segments) + (SELECT count(*) FROM documents)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn damage_is_told() {
        let db = database();
        let one = vec![b"one".to_vec()];
        add(&db, &addition(None, &[], &one, "a")).unwrap();
        db.execute("UPDATE segments SET checksum = checksum + 1", [])
            .unwrap();
        assert!(load(&db, "a").unwrap_err().to_string().contains("checksum"));
        db.execute("DELETE FROM segments", []).unwrap();
        assert!(check(&db).unwrap()[0].contains("numbered 0 is missing"));
    }
}
