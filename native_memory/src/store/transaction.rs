//! Transactions that cost no parsing, and statements that are looked for once.

use std::ops::Deref;

use rusqlite::{CachedStatement, Connection};

/// An open transaction. Dropped without [`Transaction::commit`], it changes nothing.
///
/// rusqlite's own has SQLite parse its `BEGIN` and its `COMMIT` each time, which is a tenth of what
/// saving one record takes.
#[derive(Debug)]
pub struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    /// Begins one that reads: what it sees does not change.
    pub fn read(connection: &'c Connection) -> rusqlite::Result<Self> {
        Self::begin(connection, "BEGIN DEFERRED")
    }

    /// Begins one that writes.
    pub fn write(connection: &'c Connection) -> rusqlite::Result<Self> {
        Self::begin(connection, "BEGIN IMMEDIATE")
    }

    fn begin(connection: &'c Connection, how: &str) -> rusqlite::Result<Self> {
        run(connection, how)?;
        Ok(Self(connection))
    }

    /// The connection, for statements that outlive a borrow of the transaction.
    pub fn connection(&self) -> &'c Connection {
        self.0
    }

    /// Makes the changes last.
    pub fn commit(self) -> rusqlite::Result<()> {
        // On an error the transaction may be open still; dropping it ends it.
        run(self.0, "COMMIT")
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // What fails here is told by whatever the connection is asked next.
            drop(run(self.0, "ROLLBACK"));
        }
    }
}

fn run(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(statement)?
        .execute([])
        .map(|_| ())
}

/// A statement that a transaction looks for once, however often it needs it.
#[derive(Default)]
pub struct Held<'c>(Option<CachedStatement<'c>>);

impl<'c> Held<'c> {
    /// The statement; `sql` is the same each time.
    pub fn get(
        &mut self,
        connection: &'c Connection,
        sql: &str,
    ) -> rusqlite::Result<&mut CachedStatement<'c>> {
        match &mut self.0 {
            Some(statement) => Ok(statement),
            none => Ok(none.insert(connection.prepare_cached(sql)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(connection: &Connection) -> i64 {
        connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn only_what_is_committed_lasts() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        for round in 0..3 {
            let dropped = Transaction::write(&connection).unwrap();
            dropped.execute("INSERT INTO t VALUES (1)", []).unwrap();
            assert_eq!(count(&dropped), round + 1);
            drop(dropped);
            assert_eq!(count(&connection), round);
            let mut insert = Held::default();
            let committed = Transaction::write(&connection).unwrap();
            for again in [false, true] {
                let insert = insert
                    .get(committed.connection(), "INSERT INTO t VALUES (?1)")
                    .unwrap();
                insert.execute([again]).unwrap();
            }
            committed.execute("DELETE FROM t WHERE x", []).unwrap();
            committed.commit().unwrap();
            assert!(connection.is_autocommit());
            assert_eq!(count(&connection), round + 1);
        }
    }

    #[test]
    fn one_that_cannot_be_committed_is_ended() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "PRAGMA foreign_keys = ON; CREATE TABLE t (x PRIMARY KEY);
                 CREATE TABLE u (x REFERENCES t (x) DEFERRABLE INITIALLY DEFERRED)",
            )
            .unwrap();
        let transaction = Transaction::write(&connection).unwrap();
        transaction.execute("INSERT INTO u VALUES (1)", []).unwrap();
        assert!(transaction.commit().is_err());
        assert!(connection.is_autocommit());
        Transaction::read(&connection).unwrap();
    }
}
