//! Vectors of many deleted records, which go after them, in the background.
//!
//! They are most of what such a deletion has to write: one lies in nearly every page that it touches. So
//! it only notes their numbers, in the transaction that deletes the records, and they go some at a time,
//! between which others write. Nobody comes to a vector but through its record. Where a process ends
//! before they are gone, whoever opens the store next goes on.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, params};

use super::aside::{Flag, Work};
use super::engine::Engine;
use super::error::Result;
use super::process::Process;

/// A deletion of more vectors than this leaves them; so many go in one transaction then.
pub(super) const MANY: usize = 256;

/// Which vectors there are no records for any more. Exists only as long as there are some.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS leftovers (vector INTEGER PRIMARY KEY) STRICT";

/// Lets [`leave`] be called in the transaction on a connection.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(TABLE)
}

/// Notes that a vector is nobody's.
pub(super) fn leave(connection: &Connection, vector: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO leftovers VALUES (?1)")?
        .execute([vector])
        .map(|_| ())
}

/// Forgets what was noted, as there are no vectors any more.
pub(super) fn forget(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("DROP TABLE IF EXISTS leftovers")
}

/// Whether a store has vectors that are nobody's.
pub(super) fn is_due(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'leftovers')")?
        .query_row([], |row| row.get(0))
}

/// Deletes some of them; says whether there are more.
fn some(connection: &Connection) -> rusqlite::Result<bool> {
    if !is_due(connection)? {
        return Ok(false);
    }
    let last: Option<i64> = connection
        .prepare_cached(
            "SELECT max(vector) FROM (SELECT vector FROM leftovers ORDER BY vector LIMIT ?1)",
        )?
        .query_row(params![MANY as i64], |row| row.get(0))?;
    for sql in [
        "DELETE FROM vectors WHERE id IN (SELECT vector FROM leftovers WHERE vector <= ?1)",
        "DELETE FROM leftovers WHERE vector <= ?1",
    ] {
        connection.prepare_cached(sql)?.execute([last])?;
    }
    let more: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM leftovers)")?
        .query_row([], |row| row.get(0))?;
    if !more {
        forget(connection)?;
    }
    Ok(more)
}

impl Engine {
    /// Deletes vectors that are nobody's in a thread of its own, unless one is at it already.
    pub(super) fn sweep_aside(&self) {
        let flag: Flag = |engine| &engine.sweeping;
        // A failure loses nothing: who opens the store next tries again, and `optimize` says why.
        let go_on = |engine: &Self| {
            !Process::current().is_ending() && matches!(engine.sweep_some(), Ok(true))
        };
        drop(self.aside(
            "crewai-native-sweep",
            Work::Writes,
            Some(flag),
            move |engine| {
                while go_on(engine) {}
            },
        ));
    }

    /// Deletes all vectors that are nobody's.
    pub(super) fn sweep(&self) -> Result<()> {
        while self.sweep_some()? {}
        Ok(())
    }

    fn sweep_some(&self) -> Result<bool> {
        let more = self.write(false, |write| {
            let more = some(&write.transaction)?;
            if !more {
                // While nobody else here can write: who leaves some after this has them swept again.
                self.sweeping.store(false, Ordering::Release);
            }
            Ok(more)
        })?;
        Ok(more.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use super::super::filter::Filter;
    use super::super::record::{Record, numbered};
    use super::super::schema;
    use super::super::write::Write;
    use super::*;

    fn records(from: usize, count: usize) -> Vec<Record> {
        let scoped = |number| Record {
            scope: format!("/{}", number % 2),
            ..numbered(number)
        };
        (from..from + count).map(scoped).collect()
    }

    /// (vectors, those of them that are nobody's)
    fn vectors(path: &Path) -> (i64, i64) {
        let connection = Connection::open(path).unwrap();
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get(0)).unwrap();
        let left = is_due(&connection).unwrap();
        let left = left.then(|| count("SELECT count(*) FROM leftovers"));
        (count("SELECT count(*) FROM vectors"), left.unwrap_or(0))
    }

    /// Deletes half of the records, as a process does that ends right after it.
    fn delete_and_end(path: &Path) -> usize {
        let (connection, _) = schema::open(path, 1000).unwrap().unwrap();
        let mut write = Write::begin(&connection).unwrap();
        let filter = Filter {
            scope: Some("/1".to_owned()),
            ..Filter::default()
        };
        let deleted = write.delete(&filter, None).unwrap();
        write.commit().unwrap();
        deleted
    }

    fn wait_for_none(engine: &Engine) {
        for _ in 0..1000 {
            if vectors(engine.path()).1 == 0 && !engine.sweeping.load(Ordering::Acquire) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("left over: {:?}", vectors(engine.path()));
    }

    #[test]
    fn few_vectors_go_with_their_records() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::new(directory.path().join("memory.db"));
        engine.save(&records(0, 2 * MANY)).unwrap();
        assert_eq!(delete_and_end(engine.path()), MANY);
        assert_eq!(vectors(engine.path()), (MANY as i64, 0));
    }

    #[test]
    fn many_go_after_them_and_nobody_sees_them_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.db");
        let engine = Engine::new(path.clone());
        engine.save(&records(0, 2000)).unwrap();
        engine.disconnect();
        assert_eq!(delete_and_end(&path), 1000);
        assert_eq!(vectors(&path), (2000, 1000));
        let engine = Engine::new(path.clone());
        // The first to open it has them deleted, while it answers.
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
        assert_eq!(engine.stats().unwrap().vectors, 1000);
        assert_eq!(engine.count("/1").unwrap(), 0);
        // The same ids again, with new vectors.
        engine.save(&records(0, 500)).unwrap();
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
        wait_for_none(&engine);
        assert_eq!(vectors(&path), (1250, 0));
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_engine_sweeps_after_each_of_its_deletions() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::new(directory.path().join("memory.db"));
        for round in 0..20 {
            engine.save(&records(round * 1000, 1000)).unwrap();
            let ids: Vec<_> = (0..990).map(|n| format!("r{}", round * 1000 + n)).collect();
            assert_eq!(engine.delete(&Filter::default(), Some(&ids)).unwrap(), 990);
        }
        wait_for_none(&engine);
        assert_eq!(vectors(engine.path()), (200, 0));
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn clearing_and_optimizing_leave_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.db");
        let engine = Engine::new(path.clone());
        engine.save(&records(0, 2000)).unwrap();
        engine.disconnect();
        delete_and_end(&path);
        let engine = Engine::new(path.clone());
        engine.optimize().unwrap();
        assert_eq!(vectors(&path), (1000, 0));
        engine.disconnect();
        engine.save(&records(0, 2000)).unwrap();
        delete_and_end(&path);
        engine.reset("/").unwrap();
        assert_eq!(vectors(&path), (0, 0));
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_vector_in_use_that_is_to_go_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.db");
        let engine = Engine::new(path.clone());
        engine.save(&records(0, 3)).unwrap();
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
        let connection = Connection::open(&path).unwrap();
        prepare(&connection).unwrap();
        leave(&connection, 2).unwrap();
        assert_eq!(
            engine.check().unwrap(),
            ["1 vectors of records are to be deleted"]
        );
    }
}
