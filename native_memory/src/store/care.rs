//! Looking after a store: what it says about itself, and whether that is so.

use std::fs;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crewai_native_sdk::files;
use rusqlite::ffi::SQLITE_IOERR_WRITE;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::engine::Engine;
use super::error::{Result, StoreError};
use super::read;
use super::schema::sibling;
use super::sweep;
use super::write::meta;

/// Backups that this process has begun.
static BACKUPS: AtomicU32 = AtomicU32::new(0);

/// Findings after which a check stops looking for more of the same kind.
const ENOUGH: usize = 20;

/// What a store is told about itself to remember. Resetting everything forgets the embedder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Which embedder made the vectors.
    Embedder,
    /// How far records of another store were brought here.
    Import,
}

impl Note {
    fn key(self) -> &'static str {
        match self {
            Self::Embedder => "embedder",
            Self::Import => "import",
        }
    }
}

/// Sizes of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Number of records.
    pub records: usize,
    /// Number of records with an embedding.
    pub vectors: usize,
    /// Length of the embeddings, once there is one.
    pub dimension: Option<usize>,
    /// Size of the file in bytes.
    pub file: u64,
    /// Size in bytes of the write-ahead log beside it.
    pub log: u64,
    /// Bytes in the file that `optimize` gives back.
    pub free: u64,
}

impl Engine {
    /// What the store was told to remember.
    pub fn note(&self, note: Note) -> Result<Option<String>> {
        self.read(None, |link| {
            Ok(link
                .connection
                .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
                .query_row([note.key()], |row| row.get(0))
                .optional()?)
        })
    }

    /// Remembers `text`, creating the store if need be.
    pub fn set_note(&self, note: Note, text: &str) -> Result<()> {
        self.write(true, |write| {
            write
                .transaction
                .prepare_cached(
                    "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
                )?
                .execute(params![note.key(), text])?;
            Ok(())
        })
        .map(|_| ())
    }

    /// The store's sizes; zeros where there is none.
    pub fn stats(&self) -> Result<Stats> {
        self.read(Stats::default(), |link| {
            let snapshot = link.connection.unchecked_transaction()?;
            let count = |sql: &str| snapshot.query_row(sql, [], |row| row.get::<_, i64>(0));
            let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
            Ok(Stats {
                records: count("SELECT count(*) FROM records")? as usize,
                vectors: count("SELECT count(vector) FROM records")? as usize,
                dimension: meta(&snapshot, "dimension")?.map(|length| length as usize),
                file: size(self.path()),
                log: size(&sibling(self.path(), "-wal")),
                free: (count("PRAGMA freelist_count")? * count("PRAGMA page_size")?) as u64,
            })
        })
    }

    /// Reads everything and compares it with what is stated about it elsewhere in the file.
    ///
    /// Gives what does not add up, in words; nothing for a sound store. A file that cannot be
    /// opened at all is an error.
    pub fn check(&self) -> Result<Vec<String>> {
        self.read(Vec::new(), |link| {
            let snapshot = link.connection.unchecked_transaction()?;
            let mut findings = structure(&snapshot);
            // Rows of a broken structure would only be found wrong a second time.
            if findings.is_empty() {
                findings = contents(&snapshot)?;
                findings.extend(aggregates(&snapshot)?);
            }
            Ok(findings)
        })
    }

    /// Writes a copy of the live store to `to`, which must not exist. Says whether there was a
    /// store to copy.
    pub fn backup(&self, to: &Path) -> Result<bool> {
        let is_free = || {
            if to.exists() {
                return Err(StoreError::InvalidArgument(format!(
                    "{} exists already; a backup overwrites nothing",
                    to.display()
                )));
            }
            Ok(())
        };
        is_free()?;
        self.read(false, |link| {
            let directory = match to.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            fs::metadata(directory).map_err(|error| StoreError::io(directory, error))?;
            // A name of its own: two that are made at once must not write to one file.
            let number = BACKUPS.fetch_add(1, Ordering::Relaxed);
            let draft = sibling(to, &format!("-{}-{number}-new", process::id()));
            copy(&link.connection, &draft)
                .and_then(|()| is_free())
                .and_then(|()| {
                    fs::rename(&draft, to).map_err(|error| StoreError::io(&draft, error))
                })
                .inspect_err(|_| {
                    // Half a copy takes room that may be what is lacking.
                    for suffix in ["", "-journal", "-wal", "-shm"] {
                        drop(fs::remove_file(sibling(&draft, suffix)));
                    }
                })?;
            files::sync_name(to).map_err(|error| StoreError::io(to, error))?;
            Ok(true)
        })
    }
}

/// Writes a copy of the store that `connection` is open on to `draft`.
fn copy(connection: &Connection, draft: &Path) -> Result<()> {
    let name = draft.to_str().ok_or_else(|| {
        StoreError::InvalidArgument(format!("{} is not valid Unicode", draft.display()))
    })?;
    connection
        .execute("VACUUM INTO ?1", [name])
        .map_err(|error| {
            // What cannot be written is the copy: the store is only read.
            let of_copy = match error.sqlite_error() {
                Some(known) => {
                    matches!(known.code, ErrorCode::CannotOpen | ErrorCode::DiskFull)
                        || known.extended_code == SQLITE_IOERR_WRITE
                }
                None => false,
            };
            let error = StoreError::Sqlite(error);
            if of_copy { error.at(draft) } else { error }
        })?;
    // The copy is made without a log, which is what lets readers and writers coexist.
    let switched = Connection::open(draft).and_then(|copy| {
        copy.pragma_update(None, "journal_mode", "WAL")?;
        copy.close().map_err(|(_, error)| error)
    });
    switched.map_err(|error| StoreError::Sqlite(error).at(draft))?;
    fs::File::open(draft)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::io(draft, error))
}

/// What SQLite finds wrong with its own pages and indexes.
fn structure(connection: &Connection) -> Vec<String> {
    let checked: rusqlite::Result<Vec<String>> = connection
        .prepare(&format!("PRAGMA integrity_check({ENOUGH})"))
        .and_then(|mut check| check.query_map([], |row| row.get(0))?.collect());
    match checked {
        Ok(findings) => findings
            .into_iter()
            .filter(|finding| finding != "ok")
            .collect(),
        Err(error) => vec![error.to_string()],
    }
}

/// Rows that do not match their checksums, and vectors that are nobody's.
fn contents(connection: &Connection) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut rows = connection.prepare("SELECT record FROM records ORDER BY record")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        if let Err(error) = read::by_row(connection, row.get(0)?) {
            findings.push(match error {
                StoreError::Sqlite(rusqlite::Error::SqliteFailure(_, Some(detail))) => detail,
                other => other.to_string(),
            });
            if findings.len() == ENOUGH {
                break;
            }
        }
    }
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let mut orphans = "SELECT count(*) FROM vectors
         WHERE id NOT IN (SELECT vector FROM records WHERE vector IS NOT NULL)"
        .to_owned();
    if sweep::is_due(connection)? {
        orphans.push_str(" AND id NOT IN (SELECT vector FROM leftovers)");
        let used = count("SELECT count(*) FROM records r JOIN leftovers USING (vector)")?;
        if used > 0 {
            findings.push(format!("{used} vectors of records are to be deleted"));
        }
    }
    let orphans = count(&orphans)?;
    if orphans > 0 {
        findings.push(format!("{orphans} vectors belong to no record"));
    }
    Ok(findings)
}

/// Counts that are kept, compared with what they count.
fn aggregates(connection: &Connection) -> Result<Vec<String>> {
    const CHECKS: [(&str, &str); 4] = [
        (
            "scopes whose number of records is not the one they state",
            "SELECT path FROM scopes s WHERE records IS NOT
                 (SELECT count(*) FROM timeline t WHERE t.scope = s.id)",
        ),
        (
            "records that are not listed in their scope",
            "SELECT r.id FROM records r WHERE NOT EXISTS (SELECT 1 FROM timeline t
                 WHERE (t.scope, t.created_at, t.record) = (r.scope, r.created_at, r.record))",
        ),
        (
            "listed records that do not exist",
            "SELECT t.record FROM timeline t WHERE NOT EXISTS
                 (SELECT 1 FROM records r WHERE r.record = t.record)",
        ),
        (
            "categories whose number of records is not the one they state",
            "WITH counted AS (
                 SELECT t.scope, j.value AS category, count(DISTINCT t.record) AS records
                 FROM timeline t JOIN records r ON r.record = t.record
                 JOIN category_sets c ON c.id = r.categories, json_each(c.names) j
                 GROUP BY t.scope, j.value)
             SELECT category FROM (SELECT * FROM counted EXCEPT SELECT * FROM scope_categories)
             UNION
             SELECT category FROM (SELECT * FROM scope_categories EXCEPT SELECT * FROM counted)",
        ),
    ];
    let mut findings = Vec::new();
    for (what, sql) in CHECKS {
        let wrong: Vec<String> = connection
            .prepare(sql)?
            .query_map([], |row| {
                Ok(match row.get_ref(0)? {
                    rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                    other => other.as_str().unwrap_or_default().to_owned(),
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        if !wrong.is_empty() {
            let shown = wrong
                .iter()
                .take(3)
                .map(|w| format!("{w:?}"))
                .collect::<Vec<_>>();
            findings.push(format!(
                "{} {what}, such as {}",
                wrong.len(),
                shown.join(", ")
            ));
        }
    }
    Ok(findings)
}
