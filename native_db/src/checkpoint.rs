//! Checkpoints of runs: what each adds to the one before it.
//!
//! A *record* is the history of one run: *segments*, each the text of what was added since the one
//! before, and *parts*, each a text that changes, by its number. A checkpoint is so many segments of
//! a record, and its parts as they were at a *moment*, of which a record has one after another: each
//! part as of the last moment at which it changed. A part is stored whole or as a delta against a
//! whole one of its record, a segment as what differs from the text before it: reading a record
//! decodes all of it anyway.
//!
//! What the texts say is up to the caller.

use std::collections::hash_map;
use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use crate::codec;
use crate::engine::{DbError, Result, Schema};

/// Format 1. `size` and `checksum` (CRC-32) are those of the text. The `prefix` of a segment is
/// how many bytes of the text before it it was packed with. `base` names the row of the part that
/// `data` is a delta against; NULL for a whole one. Times are µs since 1970 UTC.
pub static SCHEMA: Schema = Schema {
    name: "store of checkpoints",
    application_id: 0x434e_4463, // "CNDc"
    format: 1,
    tables: "
CREATE TABLE records (
    record INTEGER PRIMARY KEY AUTOINCREMENT,
    moments INTEGER NOT NULL DEFAULT 0
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

CREATE TABLE parts (
    row INTEGER PRIMARY KEY,
    record INTEGER NOT NULL,
    part INTEGER NOT NULL,
    moment INTEGER NOT NULL,
    base INTEGER,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (record, part, moment)
) STRICT;

CREATE TABLE checkpoints (
    id TEXT PRIMARY KEY,
    record INTEGER NOT NULL,
    segments INTEGER NOT NULL,
    moment INTEGER NOT NULL,
    note TEXT NOT NULL,
    saved_at INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoints_by_record ON checkpoints (record, moment);
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

/// A text that has changed.
#[derive(Debug, Clone)]
pub struct Part {
    /// Which.
    pub number: i64,
    /// One that it has much in common with, from before: its own number if there is no better.
    pub like: i64,
    /// What it is now.
    pub text: Vec<u8>,
}

/// Where a record has got to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The record.
    pub record: i64,
    /// Its last moment, counted from 1.
    pub moment: i64,
}

/// What a run has come to.
#[derive(Debug)]
pub struct Addition {
    /// Where the record that goes on had got to; a new record without.
    pub position: Option<Position>,
    /// The segments of it that are already there.
    pub first: usize,
    /// The end of the text before the new segments: all of it, or at least so much as they are packed
    /// with.
    pub tail: Vec<u8>,
    /// What came after that, oldest first; one at least.
    pub moments: Vec<Moment>,
}

/// What was new at a moment.
#[derive(Debug)]
pub struct Moment {
    /// What was added.
    pub segments: Vec<Vec<u8>>,
    /// What has changed.
    pub parts: Vec<Part>,
    /// Checkpoints of it.
    pub entries: Vec<Entry>,
}

/// A checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// The segments of its record up to it.
    pub segments: Vec<Vec<u8>>,
    /// The parts as they were, by number.
    pub parts: Vec<(i64, Vec<u8>)>,
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

/// Stores checkpoints; says where their record has got to, or `None` where it is not as the caller
/// believes: it was pruned, or another process has gone on with it. Then nothing was stored.
pub fn add(connection: &Connection, addition: &Addition) -> Result<Option<Position>> {
    let position = match addition.position {
        None => {
            let record = connection
                .prepare_cached("INSERT INTO records DEFAULT VALUES")?
                .insert([])?;
            Position { record, moment: 0 }
        }
        Some(position) if is_at(connection, position, addition.first)? => position,
        Some(_) => return Ok(None),
    };
    let (mut position, mut first) = (position, addition.first);
    let mut tail = addition.tail.clone();
    for moment in &addition.moments {
        position.moment += 1;
        add_moment(connection, position, first, &mut tail, moment)?;
        first += moment.segments.len();
    }
    connection
        .prepare_cached("UPDATE records SET moments = ?2 WHERE record = ?1")?
        .execute(params![position.record, position.moment])?;
    Ok(Some(position))
}

/// `first` is how many segments are there, `tail` the end of their text.
fn add_moment(
    connection: &Connection,
    at: Position,
    first: usize,
    tail: &mut Vec<u8>,
    new: &Moment,
) -> Result<()> {
    for (number, text) in (first..).zip(&new.segments) {
        tail.drain(..tail.len().saturating_sub(PREFIX));
        let packed = codec::pack(text, Some(tail))?;
        connection
            .prepare_cached(
                "INSERT INTO segments (record, segment, prefix, size, checksum, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                at.record,
                number,
                tail.len(),
                text.len(),
                crc32fast::hash(text),
                packed,
            ])?;
        tail.extend_from_slice(text);
    }
    for part in &new.parts {
        add_part(connection, at, part)?;
    }
    for entry in &new.entries {
        connection
            .prepare_cached(
                "INSERT INTO checkpoints (id, record, segments, moment, note, saved_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                entry.id,
                at.record,
                first + new.segments.len(),
                at.moment,
                entry.note,
                entry.saved_at,
            ])?;
    }
    Ok(())
}

/// Whether a record is at a position, with so many segments.
fn is_at(connection: &Connection, position: Position, segments: usize) -> Result<bool> {
    let found: Option<(i64, usize)> = connection
        .prepare_cached(
            "SELECT moments, (SELECT coalesce(max(segment) + 1, 0) FROM segments s
                              WHERE s.record = r.record)
             FROM records r WHERE r.record = ?1",
        )?
        .query_row([position.record], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found == Some((position.moment, segments)))
}

/// A delta is larger the farther the part has moved on from its base. Once the deltas take as much
/// as their base a new one costs, whatever the two sizes are, at most twice the least.
fn add_part(connection: &Connection, at: Position, part: &Part) -> Result<()> {
    let mut base = newest_whole(connection, at.record, part.number)?;
    if base.is_none() && part.like != part.number {
        base = newest_whole(connection, at.record, part.like)?;
    }
    let mut stored = None;
    if let Some(base) = base {
        let since: usize = connection
            .prepare_cached(
                "SELECT coalesce(sum(length(data)), 0) FROM parts
                 WHERE record = ?1 AND part = ?2 AND moment > ?3",
            )?
            .query_row(params![at.record, part.number, base.moment], |row| {
                row.get(0)
            })?;
        let delta = codec::pack(&part.text, Some(&base.text))?;
        if since + delta.len() <= base.packed {
            stored = Some((Some(base.row), delta));
        }
    }
    let (base, data) = match stored {
        Some(delta) => delta,
        None => (None, codec::pack(&part.text, None)?),
    };
    connection
        .prepare_cached(
            "INSERT INTO parts (record, part, moment, base, size, checksum, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            at.record,
            part.number,
            at.moment,
            base,
            part.text.len(),
            crc32fast::hash(&part.text),
            data
        ])?;
    Ok(())
}

/// A whole text that another one may be a delta against.
struct Base {
    row: i64,
    moment: i64,
    packed: usize,
    text: Vec<u8>,
}

fn newest_whole(connection: &Connection, record: i64, part: i64) -> Result<Option<Base>> {
    let found = connection
        .prepare_cached(
            "SELECT row, moment, size, checksum, data FROM parts
             WHERE record = ?1 AND part = ?2 AND base IS NULL ORDER BY moment DESC LIMIT 1",
        )?
        .query_row([record, part], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get::<_, Vec<u8>>(4)?,
            ))
        })
        .optional()?;
    found
        .map(|(row, moment, size, checksum, data)| {
            Ok(Base {
                row,
                moment,
                packed: data.len(),
                text: unpack(&data, size, checksum, None)?,
            })
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
        .prepare_cached("SELECT record, segments, moment, note FROM checkpoints WHERE id = ?1")?
        .query_row([id], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, usize>(1)?,
                row.get::<_, i64>(2)?,
                row.get(3)?,
            ))
        })
        .optional()?;
    let Some((record, segments, moment, note)) = found else {
        return Ok(None);
    };
    Ok(Some(Stored {
        segments: load_segments(connection, record, segments)?,
        parts: load_parts(connection, Position { record, moment })?,
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

fn load_parts(connection: &Connection, at: Position) -> Result<Vec<(i64, Vec<u8>)>> {
    // The other columns are those of the row with the greatest moment: SQLite sees to it.
    let mut statement = connection.prepare_cached(
        "SELECT part, base, size, checksum, data, max(moment) FROM parts
         WHERE record = ?1 AND moment <= ?2 GROUP BY part",
    )?;
    let mut rows = statement.query(params![at.record, at.moment])?;
    let mut bases: HashMap<i64, Vec<u8>> = HashMap::new();
    let mut parts = Vec::new();
    while let Some(row) = rows.next()? {
        let base: Option<i64> = row.get(1)?;
        let prefix = match base {
            None => None,
            Some(base) => {
                if let hash_map::Entry::Vacant(place) = bases.entry(base) {
                    place.insert(load_base(connection, base)?);
                }
                bases.get(&base).map(Vec::as_slice)
            }
        };
        let text = unpack(
            row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?,
            row.get(2)?,
            row.get(3)?,
            prefix,
        )?;
        parts.push((row.get(0)?, text));
    }
    Ok(parts)
}

fn load_base(connection: &Connection, row: i64) -> Result<Vec<u8>> {
    let (size, checksum, data): (usize, u32, Vec<u8>) = connection
        .prepare_cached("SELECT size, checksum, data FROM parts WHERE row = ?1 AND base IS NULL")?
        .query_row([row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?
        .ok_or_else(|| DbError::Unreadable(format!("the base {row} of a part is missing")))?;
    unpack(&data, size, checksum, None)
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
        // A part as it is now is what the next checkpoint has, too, unless it changes.
        connection
            .prepare_cached(
                "WITH versions AS (
                     SELECT row, base, moment,
                            lead(moment) OVER (PARTITION BY part ORDER BY moment) AS next
                     FROM parts WHERE record = ?1),
                 needed AS (
                     SELECT row, base FROM versions v WHERE next IS NULL OR EXISTS (
                         SELECT 1 FROM checkpoints c WHERE c.record = ?1
                         AND c.moment >= v.moment AND c.moment < v.next))
                 DELETE FROM parts WHERE record = ?1 AND row NOT IN (
                     SELECT row FROM needed
                     UNION SELECT base FROM needed WHERE base IS NOT NULL)",
            )?
            .execute([record])?;
        let used = connection
            .prepare_cached("SELECT 1 FROM checkpoints WHERE record = ?1 LIMIT 1")?
            .exists([record])?;
        if !used {
            for table in ["segments", "parts", "records"] {
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
               UNION ALL SELECT size, length(data) FROM parts)",
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
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA.tables).unwrap();
        connection
    }

    fn addition(
        position: Option<Position>,
        before: &[Vec<u8>],
        segments: &[Vec<u8>],
        id: &str,
    ) -> Addition {
        Addition {
            position,
            first: before.len(),
            tail: before.concat(),
            moments: vec![Moment {
                segments: segments.to_vec(),
                parts: vec![part(1, 1, id.as_bytes())],
                entries: vec![Entry {
                    id: id.to_owned(),
                    note: id.to_uppercase(),
                    saved_at: 1,
                }],
            }],
        }
    }

    fn part(number: i64, like: i64, text: &[u8]) -> Part {
        Part {
            number,
            like,
            text: text.repeat(40),
        }
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..60)
    }

    proptest! {
        #[test]
        fn every_checkpoint_is_what_was_added_up_to_it_whatever_others_are_dropped(
            steps in vec((vec(bytes(), 0..4), vec((0..5_i64, 0..5_i64, bytes()), 0..4)), 0..12),
            dropped in vec((any::<bool>(), any::<bool>()), 12),
        ) {
            let db = database();
            let (mut position, mut all, mut parts) = (None, Vec::new(), BTreeMap::new());
            let mut expected = BTreeMap::new();
            for (number, ((step, changed), (at_once, _))) in steps.iter().zip(&dropped).enumerate() {
                let id = format!("c{number}");
                let mut new = addition(position, &all, step, &id);
                let changed: BTreeMap<_, _> =
                    changed.iter().map(|(n, like, text)| (*n, part(*n, *like, text))).collect();
                new.moments[0].parts = changed.into_values().collect();
                parts.extend(new.moments[0].parts.iter().map(|part| (part.number, part.text.clone())));
                position = add(&db, &new).unwrap();
                all.extend(step.iter().cloned());
                expected.insert(id.clone(), Stored {
                    segments: all.clone(),
                    parts: parts.clone().into_iter().collect(),
                    note: id.to_uppercase(),
                });
                // As where only so many are to be kept.
                if *at_once && number > 0 {
                    let gone = format!("c{}", number - 1);
                    expected.remove(&gone);
                    forget(&db, &[gone]).unwrap();
                }
            }
            let gone: Vec<_> = expected.keys().zip(&dropped)
                .filter(|(_, (_, drop))| *drop).map(|(id, _)| id.clone()).collect();
            prop_assert_eq!(forget(&db, &gone).unwrap(), gone.len());
            for (id, stored) in expected {
                let kept = (!gone.contains(&id)).then_some(stored);
                prop_assert_eq!(load(&db, &id).unwrap(), kept);
            }
            prop_assert_eq!(check(&db).unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn moments_that_are_added_together_are_those_added_one_by_one() {
        let (together, one_by_one) = (database(), database());
        let (mut all, mut position, mut before) = (None::<Addition>, None, Vec::new());
        for (id, count) in [("a", 2), ("b", 0), ("c", 3)] {
            let segments = vec![id.repeat(90_000).into_bytes(); count];
            let mut new = addition(position, &before, &segments, id);
            new.moments[0].parts.push(part(count as i64, 1, b"other"));
            position = add(&one_by_one, &new).unwrap();
            before.extend(segments);
            match &mut all {
                Some(all) => all.moments.append(&mut new.moments),
                None => all = Some(new),
            }
        }
        assert_eq!(add(&together, &all.unwrap()).unwrap(), position);
        for id in ["a", "b", "c"] {
            let expected = load(&one_by_one, id).unwrap();
            assert!(expected.is_some());
            assert_eq!(load(&together, id).unwrap(), expected);
        }
        let next = addition(position, &before, &[b"d".to_vec()], "d");
        assert_eq!(
            add(&together, &next).unwrap(),
            add(&one_by_one, &next).unwrap()
        );
    }

    #[test]
    fn a_record_that_moved_on_or_went_is_not_continued() {
        let db = database();
        let one = vec![b"one".to_vec()];
        let position = add(&db, &addition(None, &[], &one, "a")).unwrap();
        let next = add(&db, &addition(position, &one, &one, "b")).unwrap();
        assert!(next.is_some());
        assert_eq!(
            add(&db, &addition(position, &one, &one, "c")).unwrap(),
            None
        );
        assert_eq!(add(&db, &addition(next, &one, &one, "c")).unwrap(), None);
        assert_eq!(forget(&db, &["a".to_owned(), "b".to_owned()]).unwrap(), 2);
        let two = [one.clone(), one.clone()].concat();
        assert_eq!(add(&db, &addition(next, &two, &one, "d")).unwrap(), None);
        let rows: i64 = db
            .query_row(
                "SELECT (SELECT count(*) FROM segments) + (SELECT count(*) FROM parts)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn a_part_that_hardly_changes_or_is_like_another_takes_hardly_any_space() {
        let db = database();
        let noise: Vec<u8> = (0..4000_u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
            .collect();
        let mut position = None;
        for step in 0..20 {
            let mut new = addition(position, &[], &[], &format!("c{step}"));
            new.moments[0].parts = vec![Part {
                number: 3 + step % 2,
                like: 3,
                text: [noise.as_slice(), step.to_string().as_bytes()].concat(),
            }];
            position = add(&db, &new).unwrap();
        }
        let taken = totals(&db).unwrap().packed_bytes;
        assert!(taken < 24_000, "{taken}");
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
        db.execute("DELETE FROM checkpoints", []).unwrap();
        let position = add(&db, &addition(None, &[], &[], "b")).unwrap();
        add(&db, &addition(position, &[], &[], "c")).unwrap();
        db.execute("DELETE FROM parts WHERE base IS NULL", [])
            .unwrap();
        assert!(check(&db).unwrap()[0].contains("base"));
    }
}
