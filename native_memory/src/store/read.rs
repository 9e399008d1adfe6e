//! Reading a store: rows and aggregates. No query here grows with the store, only with what it
//! returns.

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::error::Result;
use super::record::{Record, vector_from_bytes};
use super::scope::ROOT;

/// A scope and everything below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeInfo {
    /// Number of records.
    pub records: usize,
    /// Category names, sorted.
    pub categories: Vec<String>,
    /// Creation of the oldest record, microseconds since 1970 UTC.
    pub oldest: Option<i64>,
    /// Creation of the newest record, microseconds since 1970 UTC.
    pub newest: Option<i64>,
    /// Paths one level down, sorted.
    pub children: Vec<String>,
}

/// A stored row, before it is checked.
struct Stored {
    record: Record,
    vector: Option<i64>,
    checksum: u32,
    vector_checksum: Option<u32>,
    bytes: Option<Vec<u8>>,
}

const COLUMNS: &str = "SELECT r.id, s.path, c.names, r.content, r.metadata, r.importance,
        r.created_at, r.last_accessed, r.source, r.private, r.vector, r.checksum,
        v.checksum, v.vector
     FROM records r JOIN scopes s ON s.id = r.scope
     JOIN category_sets c ON c.id = r.categories
     LEFT JOIN vectors v ON v.id = r.vector";
/// The same without the bytes of the vector.
const COLUMNS_BUT_VECTOR: &str =
    "SELECT r.id, s.path, c.names, r.content, r.metadata, r.importance,
        r.created_at, r.last_accessed, r.source, r.private, r.vector, r.checksum, NULL, NULL
     FROM records r JOIN scopes s ON s.id = r.scope
     JOIN category_sets c ON c.id = r.categories";

/// The record with this id.
pub fn by_id(connection: &Connection, id: &str) -> Result<Option<Record>> {
    let stored = connection
        .prepare_cached(&format!("{COLUMNS} WHERE r.id = ?1"))?
        .query_row([id], stored)
        .optional()?;
    stored.map(checked).transpose()
}

/// Which of these records are stored and came from `source`, without reading them.
pub fn are_from(connection: &Connection, ids: &[String], source: &str) -> Result<Vec<bool>> {
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM records WHERE id = ?1 AND source = ?2")?;
    ids.iter()
        .map(|id| Ok(statement.exists(params![id, source])?))
        .collect()
}

/// The record in this row.
pub fn by_row(connection: &Connection, record: i64) -> Result<Record> {
    let stored = connection
        .prepare_cached(&format!("{COLUMNS} WHERE r.record = ?1"))?
        .query_row([record], stored)?;
    checked(stored)
}

/// The record in this row, which was found by the vector of this id; its components, where they were
/// read already, as [`super::mirror`] does.
pub fn found(
    connection: &Connection,
    record: i64,
    id: i64,
    vector: Option<Box<[f32]>>,
) -> Result<Record> {
    let columns = if vector.is_some() {
        COLUMNS_BUT_VECTOR
    } else {
        COLUMNS
    };
    let stored = connection
        .prepare_cached(&format!("{columns} WHERE r.record = ?1"))?
        .query_row([record], stored)?;
    // Each has a checksum of its own, and a damaged tree of rows can still pair them wrongly.
    if stored.vector != Some(id) {
        return Err(damaged(format!(
            "record {:?} was found by a vector that is another one's",
            stored.record.id
        )));
    }
    let Some(vector) = vector else {
        return checked(stored);
    };
    let mut record = whole(stored.record, stored.vector, stored.checksum)?;
    record.embedding = Some(vector.into());
    Ok(record)
}

/// Records of a scope, newest first; of the same age, last saved first.
pub fn list(
    connection: &Connection,
    scope: &str,
    limit: usize,
    offset: usize,
) -> Result<Vec<Record>> {
    let mut places = connection.prepare_cached(
        "SELECT record FROM timeline WHERE scope = (SELECT id FROM scopes WHERE path = ?1)
         ORDER BY created_at DESC, record DESC LIMIT ?2 OFFSET ?3",
    )?;
    let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let rows: Vec<i64> = places
        .query_map(params![scope, bound(limit), bound(offset)], |row| {
            row.get(0)
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut find = connection.prepare_cached(&format!("{COLUMNS} WHERE r.record = ?1"))?;
    rows.into_iter()
        .map(|row| checked(find.query_row([row], stored)?))
        .collect()
}

/// What a scope holds.
pub fn scope_info(connection: &Connection, scope: &str) -> Result<ScopeInfo> {
    let Some((id, records)) = find_scope(connection, scope)? else {
        return Ok(ScopeInfo::default());
    };
    let edge = |order| {
        connection
            .prepare_cached(&format!(
                "SELECT created_at FROM timeline WHERE scope = ?1
                 ORDER BY created_at {order} LIMIT 1"
            ))?
            .query_row([id], |row| row.get(0))
            .optional()
    };
    Ok(ScopeInfo {
        records,
        categories: categories(connection, scope)?
            .into_iter()
            .map(|(name, _)| name)
            .collect(),
        oldest: edge("ASC")?,
        newest: edge("DESC")?,
        children: children(connection, scope)?,
    })
}

/// Number of records in a scope.
pub fn count(connection: &Connection, scope: &str) -> Result<usize> {
    Ok(find_scope(connection, scope)?.map_or(0, |(_, records)| records))
}

/// Paths one level below `scope`, sorted.
pub fn children(connection: &Connection, scope: &str) -> Result<Vec<String>> {
    Ok(connection
        .prepare_cached(
            "SELECT path FROM scopes WHERE parent = (SELECT id FROM scopes WHERE path = ?1)
             ORDER BY path",
        )?
        .query_map([scope], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?)
}

/// Category names in a scope, sorted, and how many records have each.
pub fn categories(connection: &Connection, scope: &str) -> Result<Vec<(String, usize)>> {
    Ok(connection
        .prepare_cached(
            "SELECT category, records FROM scope_categories
             WHERE scope = (SELECT id FROM scopes WHERE path = ?1) ORDER BY category",
        )?
        .query_map([scope], |row| {
            Ok((row.get(0)?, row.get::<_, i64>(1)? as usize))
        })?
        .collect::<rusqlite::Result<_>>()?)
}

fn find_scope(connection: &Connection, scope: &str) -> Result<Option<(i64, usize)>> {
    debug_assert!(scope.starts_with(ROOT));
    Ok(connection
        .prepare_cached("SELECT id, records FROM scopes WHERE path = ?1")?
        .query_row([scope], |row| {
            Ok((row.get(0)?, row.get::<_, i64>(1)? as usize))
        })
        .optional()?)
}

fn stored(row: &SqlRow<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        record: Record {
            id: row.get(0)?,
            scope: row.get(1)?,
            categories: row.get(2)?,
            content: row.get(3)?,
            metadata: row.get(4)?,
            importance: row.get(5)?,
            created_at: row.get(6)?,
            last_accessed: row.get(7)?,
            source: row.get(8)?,
            private: row.get(9)?,
            embedding: None,
        },
        vector: row.get(10)?,
        checksum: row.get(11)?,
        vector_checksum: row.get(12)?,
        bytes: row.get(13)?,
    })
}

/// A record whose fields are the ones that were stored.
fn whole(record: Record, vector: Option<i64>, checksum: u32) -> Result<Record> {
    if record.checksum(vector) == checksum {
        return Ok(record);
    }
    Err(damaged(format!(
        "record {:?} does not match its checksum",
        record.id
    )))
}

fn checked(stored: Stored) -> Result<Record> {
    let mut record = whole(stored.record, stored.vector, stored.checksum)?;
    if stored.vector.is_some() {
        let vector = stored
            .bytes
            .filter(|bytes| Some(crc32fast::hash(bytes)) == stored.vector_checksum)
            .and_then(|bytes| vector_from_bytes(&bytes))
            .ok_or_else(|| {
                damaged(format!(
                    "the embedding of record {:?} is missing or does not match its checksum",
                    record.id
                ))
            })?;
        record.embedding = Some(vector.into());
    }
    Ok(record)
}

/// Damage that SQLite itself did not notice, in SQLite's own terms; the operation adds the path.
pub fn damaged(detail: String) -> super::error::StoreError {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some(detail),
    )
    .into()
}
