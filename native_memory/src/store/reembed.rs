//! Exchanging every embedding for another embedder's, while the store is in use.
//!
//! New vectors are collected beside the old ones, batch by batch, each of which is kept when the
//! process dies. When every record has one, a single transaction puts them in place. What is
//! saved meanwhile becomes pending like everything else.

use rusqlite::{Connection, OptionalExtension, params};

use super::engine::Engine;
use super::error::{Result, StoreError};
use super::read;
use super::record::{vector_bytes, vector_from_bytes};
use super::write::Write;

const STAGING: &str = "
CREATE TABLE staged (
    record INTEGER PRIMARY KEY,
    vector BLOB
) STRICT;
CREATE TRIGGER staged_delete AFTER DELETE ON records BEGIN
    DELETE FROM staged WHERE record = old.record;
END;
CREATE TRIGGER staged_update AFTER UPDATE OF content ON records
WHEN old.content IS NOT new.content BEGIN
    DELETE FROM staged WHERE record = old.record;
END;
";
const UNSTAGING: &str = "
DROP TRIGGER staged_delete; DROP TRIGGER staged_update; DROP TABLE staged;
DELETE FROM meta WHERE key = 'reembed';
";
const PENDING: &str = "NOT EXISTS (SELECT 1 FROM staged s WHERE s.record = r.record)";

/// A record that waits for its new vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Names the record to [`Engine::reembed_stage`].
    pub record: i64,
    /// The text.
    pub content: String,
}

impl Engine {
    /// Begins, or goes on with, exchanging every vector for those of `embedder`. Says how many
    /// records have their new vector already. What was collected for another one is dropped.
    pub fn reembed_begin(&self, embedder: &str) -> Result<usize> {
        let done = self.write(false, |write| {
            let transaction = &write.transaction;
            if target(transaction)?.as_deref() != Some(embedder) {
                abandon(write)?;
                write.transaction.execute_batch(STAGING)?;
                write
                    .transaction
                    .execute("INSERT INTO meta VALUES ('reembed', ?1)", [embedder])?;
            }
            let staged: i64 =
                write
                    .transaction
                    .query_row("SELECT count(*) FROM staged", [], |row| row.get(0))?;
            Ok(staged as usize)
        })?;
        Ok(done.unwrap_or(0))
    }

    /// At most `limit` records without a new vector of `embedder`, in a fixed order after `after`.
    pub fn reembed_pending(
        &self,
        embedder: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Pending>> {
        self.read(Vec::new(), |link| {
            begun(&link.connection, embedder)?;
            Ok(link
                .connection
                .prepare_cached(&format!(
                    "SELECT record, content FROM records r
                     WHERE record > ?1 AND {PENDING} ORDER BY record LIMIT ?2"
                ))?
                .query_map(params![after, limit as i64], |row| {
                    Ok(Pending {
                        record: row.get(0)?,
                        content: row.get(1)?,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Keeps new vectors of `embedder`, `None` for a record that shall have none. One whose record was deleted
    /// or got another text since it was read is ignored; the record stays pending.
    pub fn reembed_stage(
        &self,
        embedder: &str,
        vectors: &[(Pending, Option<Box<[f32]>>)],
    ) -> Result<()> {
        self.write(false, |write| {
            begun(&write.transaction, embedder)?;
            let mut insert = write.transaction.prepare_cached(
                "INSERT OR REPLACE INTO staged (record, vector)
                 SELECT record, ?3 FROM records WHERE record = ?1 AND content = ?2",
            )?;
            for (pending, vector) in vectors {
                let bytes = vector.as_deref().map(vector_bytes);
                insert.execute(params![pending.record, pending.content, bytes])?;
            }
            Ok(())
        })
        .map(|_| ())
    }

    /// Puts the new vectors of `embedder` in place, if every record has one; says how many have
    /// none yet.
    pub fn reembed_finish(&self, embedder: &str) -> Result<usize> {
        let pending = self.write(false, |write| {
            begun(&write.transaction, embedder)?;
            let pending: i64 = write.transaction.query_row(
                &format!("SELECT count(*) FROM records r WHERE {PENDING}"),
                [],
                |row| row.get(0),
            )?;
            if pending == 0 {
                exchange(write, embedder)?;
            }
            Ok(pending as usize)
        })?;
        Ok(pending.unwrap_or(0))
    }

    /// Drops what was collected for `embedder`; the old vectors stay.
    pub fn reembed_abandon(&self, embedder: &str) -> Result<()> {
        self.write(false, |write| {
            if target(&write.transaction)?.as_deref() == Some(embedder) {
                abandon(write)?;
            }
            Ok(())
        })
        .map(|_| ())
    }
}

fn target(connection: &Connection) -> Result<Option<String>> {
    Ok(connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'reembed'")?
        .query_row([], |row| row.get(0))
        .optional()?)
}

/// Fails unless the exchange that is going on is the one for `embedder`: vectors of two would be
/// collected, and put in place, under the name of one.
fn begun(connection: &Connection, embedder: &str) -> Result<()> {
    match target(connection)? {
        Some(name) if name == embedder => Ok(()),
        Some(other) => Err(StoreError::InvalidArgument(format!(
            "another exchange of embeddings, for {other}, was begun meanwhile; \
             the one for {embedder} has to begin again"
        ))),
        None => Err(StoreError::InvalidArgument(format!(
            "no exchange of embeddings for {embedder} is going on in this store; \
             it may have been finished or given up elsewhere"
        ))),
    }
}

fn abandon(write: &mut Write<'_>) -> Result<()> {
    if target(&write.transaction)?.is_some() {
        write.transaction.execute_batch(UNSTAGING)?;
    }
    Ok(())
}

fn exchange(write: &mut Write<'_>, embedder: &str) -> Result<()> {
    let before = write.seq;
    let mut dimension = None;
    {
        let transaction = &write.transaction;
        let mut staged = transaction.prepare("SELECT record, vector FROM staged")?;
        let mut put = transaction
            .prepare("INSERT INTO vectors (id, checksum, vector) VALUES (?1, ?2, ?3)")?;
        let mut point = transaction
            .prepare("UPDATE records SET vector = ?2, checksum = ?3 WHERE record = ?1")?;
        let mut rows = staged.query([])?;
        while let Some(row) = rows.next()? {
            let record: i64 = row.get(0)?;
            let bytes: Option<Vec<u8>> = row.get(1)?;
            let mut vector = None;
            if let Some(bytes) = bytes {
                let length = vector_from_bytes(&bytes).map_or(0, |vector| vector.len());
                let stored = *dimension.get_or_insert(length);
                if stored != length {
                    return Err(StoreError::Dimension {
                        stored,
                        given: length,
                    });
                }
                write.seq += 1;
                put.execute(params![write.seq, crc32fast::hash(&bytes), bytes])?;
                vector = Some(write.seq);
            }
            let checksum = read::by_row(transaction, record)?.checksum(vector);
            point.execute(params![record, vector, checksum])?;
        }
        transaction.execute("DELETE FROM vectors WHERE id <= ?1", [before])?;
        transaction
            .execute_batch("DELETE FROM changes; DELETE FROM meta WHERE key = 'dimension';")?;
        transaction.execute(
            "INSERT INTO meta VALUES ('embedder', ?1) ON CONFLICT DO UPDATE SET value = ?1",
            [embedder],
        )?;
        transaction.execute_batch(UNSTAGING)?;
        // Every search index that knows the old vectors has to begin again.
        write.seq += 1;
        write.trimmed = write.seq;
    }
    write.dimension = dimension;
    write.new_dimension = dimension.is_some();
    Ok(())
}
