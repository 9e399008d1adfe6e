//! Changing a store: one transaction, with every aggregate kept in step.

use std::collections::HashMap;
use std::rc::Rc;

use rusqlite::{Connection, OptionalExtension, ToSql, params, params_from_iter};

use super::error::{Result, StoreError};
use super::filter::{Filter, has_category, has_metadata};
use super::read::damaged;
use super::record::{Embedding, Record, time_checksum, vector_bytes};
use super::scope::{self, ROOT};
use super::sweep;
use super::transaction::{Held, Transaction};

/// How many changes the file remembers for the search indexes of other processes; one that has
/// fallen further behind reads everything again.
const CHANGES_KEPT: i64 = 200_000;
/// How many rows of three numbers one statement adds, at most, for many and for a few.
const ROWS_AT_ONCE: [usize; 3] = [16, 4, 1];

/// An open write transaction. Dropped without [`Write::commit`], it changes nothing.
pub struct Write<'c> {
    pub(super) transaction: Transaction<'c>,
    pub(super) seq: i64,
    /// The last of the changes that are forgotten.
    pub(super) trimmed: i64,
    /// `seq` and `trimmed` as the file has them.
    stored: (i64, i64),
    pub(super) dimension: Option<usize>,
    pub(super) new_dimension: bool,
    /// Whether vectors are left to be deleted afterwards: see [`sweep`].
    pub(super) leaves: bool,
    /// Ids of a scope and of those above it, root first; by path and by id.
    lineages: HashMap<String, Rc<[i64]>>,
    lineages_by_id: HashMap<i64, Rc<[i64]>>,
    scope_counts: HashMap<i64, i64>,
    set_counts: HashMap<i64, i64>,
    /// By scope and list of categories.
    category_counts: HashMap<(i64, i64), i64>,
    /// Lists of categories: ids by list, and lists by id.
    sets: HashMap<String, i64>,
    names: HashMap<i64, String>,
    /// The number of the next new record.
    next_record: Option<i64>,
    /// Entries that the timeline is still to get: scope, creation, record.
    times: Vec<[i64; 3]>,
    /// Rows that `changes` is still to get: number, record, vector.
    changes: Vec<[i64; 3]>,
    insert_record: Held<'c>,
    insert_vector: Held<'c>,
}

/// Vectors of a batch that are still to be written, by their ids, which rise.
type Vectors<'r> = Vec<(i64, &'r Embedding)>;

/// What must be known about a stored record to take it out of the aggregates.
#[derive(Debug)]
struct Stored {
    record: i64,
    scope: i64,
    categories: i64,
    names: String,
    created_at: i64,
    vector: Option<i64>,
}

impl<'c> Write<'c> {
    /// Begins; the caller holds the writers' lock, so this waits for nobody else's transaction.
    pub fn begin(connection: &'c Connection) -> Result<Self> {
        let transaction = Transaction::write(connection)?;
        let (seq, trimmed, dimension) = transaction
            .prepare_cached(
                "SELECT (SELECT value FROM meta WHERE key = 'seq'),
                     (SELECT value FROM meta WHERE key = 'trimmed'),
                     (SELECT value FROM meta WHERE key = 'dimension')",
            )?
            .query_row([], |row| {
                let number = |at| row.get::<_, Option<i64>>(at);
                Ok((
                    number(0)?.unwrap_or(0),
                    number(1)?.unwrap_or(0),
                    number(2)?.map(|length| length as usize),
                ))
            })?;
        Ok(Self {
            transaction,
            seq,
            trimmed,
            stored: (seq, trimmed),
            dimension,
            new_dimension: false,
            leaves: false,
            lineages: HashMap::new(),
            lineages_by_id: HashMap::new(),
            scope_counts: HashMap::new(),
            set_counts: HashMap::new(),
            category_counts: HashMap::new(),
            sets: HashMap::new(),
            names: HashMap::new(),
            next_record: None,
            times: Vec::new(),
            changes: Vec::new(),
            insert_record: Held::default(),
            insert_vector: Held::default(),
        })
    }

    /// Stores records in their order, each replacing the one with its id, whose place it takes
    /// among records of equal age.
    ///
    /// Table by table: the processor and SQLite have what one table needs at hand, and its new rows
    /// lie together in the file.
    pub fn put(&mut self, records: &[Record]) -> Result<()> {
        let mut vectors = Vectors::with_capacity(records.len());
        for record in records {
            self.put_one(record, &mut vectors)?;
        }
        self.write_vectors(&mut vectors)
    }

    fn put_one<'r>(&mut self, record: &'r Record, vectors: &mut Vectors<'r>) -> Result<()> {
        if let Some(vector) = &record.embedding {
            match self.dimension {
                Some(stored) if stored != vector.dimension() => {
                    return Err(StoreError::Dimension {
                        stored,
                        given: vector.dimension(),
                    });
                }
                Some(_) => {}
                None => {
                    self.dimension = Some(vector.dimension());
                    self.new_dimension = true;
                }
            }
        }
        let lineage = self.lineage(&record.scope)?;
        let scope = own(&lineage);
        let set = self.category_set(&record.categories)?;
        // Most records are new: that is tried before it is asked whether this one is.
        let inserted = self.insert(record, scope, set, vectors)?;
        let (old, rowid, vector) = if let Some((rowid, vector)) = inserted {
            (None, rowid, vector)
        } else {
            let old = self.find(&record.id)?.ok_or_else(|| {
                damaged(format!(
                    "record {:?} is there and cannot be found",
                    record.id
                ))
            })?;
            if old.vector.is_some_and(|vector| vector > self.stored.0) {
                // It may be one of this batch, and is looked at.
                self.write_vectors(vectors)?;
            }
            let vector = self.replace(record, &old, scope, set, vectors)?;
            let rowid = old.record;
            (Some(old), rowid, vector)
        };
        if let Some(old) = &old {
            self.count(old, -1)?;
        }
        let new = Stored {
            record: rowid,
            scope,
            categories: set,
            names: record.categories.clone(),
            created_at: record.created_at,
            vector,
        };
        self.count(&new, 1)?;
        match &old {
            Some(old) if (old.scope, old.created_at) == (scope, record.created_at) => {}
            Some(old) => {
                self.untime(old)?;
                self.time(&new)?;
            }
            None => self.time(&new)?,
        }
        Ok(())
    }

    /// Adds the row of a record and its vector, and gives their ids; `None`, and no change, where
    /// a record with its id is stored already.
    fn insert<'r>(
        &mut self,
        record: &'r Record,
        scope: i64,
        set: i64,
        vectors: &mut Vectors<'r>,
    ) -> Result<Option<(i64, Option<i64>)>> {
        let rowid = self.next_record()?;
        let vector = record.embedding.is_some().then_some(self.seq + 1);
        let inserted = self
            .insert_record
            .get(
                self.transaction.connection(),
                "INSERT INTO records (record, id, scope, categories, content, metadata,
                     importance, created_at, last_accessed, source, private, vector, checksum)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
                 ON CONFLICT (id) DO NOTHING",
            )?
            .execute(params![
                rowid,
                record.id,
                scope,
                set,
                record.content,
                record.metadata,
                record.importance,
                record.created_at,
                record.last_accessed,
                record.source,
                record.private,
                vector,
                record.checksum(vector),
            ])?;
        if inserted == 0 {
            return Ok(None);
        }
        self.next_record = Some(rowid + 1);
        if let Some(embedding) = &record.embedding {
            self.add_vector(rowid, embedding, vectors);
        }
        Ok(Some((rowid, vector)))
    }

    /// Puts a record in the place of the one with its id, and gives the id of its vector.
    fn replace<'r>(
        &mut self,
        record: &'r Record,
        old: &Stored,
        scope: i64,
        set: i64,
        vectors: &mut Vectors<'r>,
    ) -> Result<Option<i64>> {
        let vector = self.put_vector(record, old, vectors)?;
        self.transaction
            .prepare_cached(
                "UPDATE records SET scope = ?2, categories = ?3, content = ?4, metadata = ?5,
                     importance = ?6, created_at = ?7, last_accessed = ?8, source = ?9,
                     private = ?10, vector = ?11, checksum = ?12 WHERE record = ?1",
            )?
            .execute(params![
                old.record,
                scope,
                set,
                record.content,
                record.metadata,
                record.importance,
                record.created_at,
                record.last_accessed,
                record.source,
                record.private,
                vector,
                record.checksum(vector),
            ])?;
        Ok(vector)
    }

    /// Sets `last_accessed`; ids that are not stored are ignored.
    pub fn touch(&mut self, ids: &[String], at: i64) -> Result<()> {
        let mut find = self
            .transaction
            .prepare_cached("SELECT record, last_accessed, checksum FROM records WHERE id = ?1")?;
        let mut set = self.transaction.prepare_cached(
            "UPDATE records SET last_accessed = ?2, checksum = ?3 WHERE record = ?1",
        )?;
        for id in ids {
            let found = find
                .query_row([id], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get::<_, u32>(2)?))
                })
                .optional()?;
            if let Some((record, before, checksum)) = found {
                let checksum = checksum ^ time_checksum(before) ^ time_checksum(at);
                set.execute(params![record, at, checksum])?;
            }
        }
        Ok(())
    }

    /// Deletes what matches `filter` and, when `ids` are given, has one of them; says how many.
    pub fn delete(&mut self, filter: &Filter, ids: Option<&[String]>) -> Result<usize> {
        let everything = ids.is_none()
            && filter.scope.as_deref().is_none_or(|scope| scope == ROOT)
            && filter.categories.is_none()
            && filter.metadata.is_none()
            && filter.created_before.is_none();
        if everything {
            return self.clear();
        }
        self.write_times()?;
        let doomed = self.matching(filter, ids)?;
        if doomed.len() > sweep::MANY {
            sweep::prepare(&self.transaction)?;
            self.leaves = true;
        }
        for stored in &doomed {
            self.remove(stored)?;
        }
        Ok(doomed.len())
    }

    /// Deletes every record; says how many there were.
    pub fn clear(&mut self) -> Result<usize> {
        let count: i64 = self
            .transaction
            .query_row("SELECT count(*) FROM records", [], |row| row.get(0))?;
        self.transaction.execute_batch(
            "DELETE FROM records; DELETE FROM vectors; DELETE FROM timeline;
             DELETE FROM scopes; DELETE FROM scope_categories; DELETE FROM category_sets;
             DELETE FROM changes;",
        )?;
        sweep::forget(&self.transaction)?;
        self.lineages.clear();
        self.lineages_by_id.clear();
        self.scope_counts.clear();
        self.set_counts.clear();
        self.category_counts.clear();
        self.sets.clear();
        self.names.clear();
        self.next_record = None;
        self.times.clear();
        self.changes.clear();
        // Every index that knows an older state has to begin again.
        self.seq += 1;
        self.trimmed = self.seq;
        Ok(count as usize)
    }

    /// Lets the next vector decide the dimension anew; only right after [`Write::clear`].
    pub fn forget_dimension(&mut self) -> Result<()> {
        self.dimension = None;
        self.new_dimension = false;
        self.transaction.execute(
            "DELETE FROM meta WHERE key IN ('dimension', 'embedder')",
            [],
        )?;
        Ok(())
    }

    /// Names the snapshot from which search indexes begin, and gives the name of the one before.
    pub fn publish(&mut self, snapshot: &str) -> Result<Option<String>> {
        let before = meta_text(&self.transaction, "snapshot")?;
        set_meta(&self.transaction, "snapshot", snapshot)?;
        Ok(before)
    }

    /// Writes the aggregates and commits.
    pub fn commit(mut self) -> Result<()> {
        self.write_times()?;
        self.write_changes()?;
        self.write_counts()?;
        self.trim_changes()?;
        // The same number again would be one more page in the log.
        if self.seq != self.stored.0 {
            set_meta(&self.transaction, "seq", self.seq)?;
        }
        if self.trimmed != self.stored.1 {
            set_meta(&self.transaction, "trimmed", self.trimmed)?;
        }
        if let (true, Some(dimension)) = (self.new_dimension, self.dimension) {
            set_meta(&self.transaction, "dimension", dimension as i64)?;
        }
        Ok(self.transaction.commit()?)
    }

    /// The records that a deletion is about.
    fn matching(&mut self, filter: &Filter, ids: Option<&[String]>) -> Result<Vec<Stored>> {
        const COLUMNS: &str = "SELECT r.record, r.scope, r.categories, c.names, r.created_at,
                r.vector, r.metadata, s.path
             FROM records r JOIN scopes s ON s.id = r.scope
             JOIN category_sets c ON c.id = r.categories";
        let scope = filter.scope.as_deref().unwrap_or(ROOT);
        let before = filter.created_before.unwrap_or(i64::MAX);
        let mut found = Vec::new();
        let mut consider = |row: &rusqlite::Row<'_>| -> Result<()> {
            let names: String = row.get(3)?;
            let by_category = match &filter.categories {
                Some(wanted) => has_category(&names, wanted).map_err(unreadable)?,
                None => true,
            };
            let by_metadata = match &filter.metadata {
                Some(wanted) => has_metadata(
                    row.get_ref(6)?.as_str().map_err(rusqlite::Error::from)?,
                    wanted,
                )
                .map_err(unreadable)?,
                None => true,
            };
            if by_category && by_metadata {
                found.push(Stored {
                    record: row.get(0)?,
                    scope: row.get(1)?,
                    categories: row.get(2)?,
                    names,
                    created_at: row.get(4)?,
                    vector: row.get(5)?,
                });
            }
            Ok(())
        };
        if let Some(ids) = ids {
            let mut statement = self
                .transaction
                .prepare_cached(&format!("{COLUMNS} WHERE r.id = ?1"))?;
            let mut seen = std::collections::HashSet::new();
            for id in ids.iter().filter(|id| seen.insert(id.as_str())) {
                let mut rows = statement.query([id])?;
                if let Some(row) = rows.next()? {
                    let path = row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?;
                    let created_at: i64 = row.get(4)?;
                    if scope::lineage(path).any(|above| above == scope) && created_at < before {
                        consider(row)?;
                    }
                }
            }
        } else {
            let mut statement = self.transaction.prepare_cached(&format!(
                "{COLUMNS} JOIN timeline t ON t.record = r.record
                 WHERE t.scope = (SELECT id FROM scopes WHERE path = ?1) AND t.created_at < ?2"
            ))?;
            let mut rows = statement.query(params![scope, before])?;
            while let Some(row) = rows.next()? {
                consider(row)?;
            }
        }
        Ok(found)
    }

    fn remove(&mut self, stored: &Stored) -> Result<()> {
        self.transaction
            .prepare_cached("DELETE FROM records WHERE record = ?1")?
            .execute([stored.record])?;
        if let Some(vector) = stored.vector {
            if self.leaves {
                sweep::leave(&self.transaction, vector)?;
                self.log(stored.record, vector);
            } else {
                self.drop_vector(stored.record, vector)?;
            }
        }
        self.untime(stored)?;
        self.count(stored, -1)
    }

    fn find(&self, id: &str) -> Result<Option<Stored>> {
        Ok(self
            .transaction
            .prepare_cached(
                "SELECT r.record, r.scope, r.categories, c.names, r.created_at, r.vector
                 FROM records r JOIN category_sets c ON c.id = r.categories WHERE r.id = ?1",
            )?
            .query_row([id], |row| {
                Ok(Stored {
                    record: row.get(0)?,
                    scope: row.get(1)?,
                    categories: row.get(2)?,
                    names: row.get(3)?,
                    created_at: row.get(4)?,
                    vector: row.get(5)?,
                })
            })
            .optional()?)
    }

    fn next_record(&mut self) -> Result<i64> {
        let next = match self.next_record {
            Some(next) => next,
            None => self
                .transaction
                .prepare_cached("SELECT coalesce(max(record), 0) + 1 FROM records")?
                .query_row([], |row| row.get(0))?,
        };
        self.next_record = Some(next);
        Ok(next)
    }

    /// Gives the record's vector a place where it differs from the stored one; gives its id.
    fn put_vector<'r>(
        &mut self,
        record: &'r Record,
        old: &Stored,
        vectors: &mut Vectors<'r>,
    ) -> Result<Option<i64>> {
        let new = record.embedding.as_ref();
        if let (Some(old_vector), Some(new)) = (old.vector, new) {
            let same = self
                .transaction
                .prepare_cached("SELECT vector = ?2 FROM vectors WHERE id = ?1")?
                .query_row(
                    params![old_vector, vector_bytes(new.components()?)],
                    |row| row.get::<_, bool>(0),
                )
                .optional()?;
            if same == Some(true) {
                // The index still has to learn of a new scope, new categories, a new date.
                self.log(old.record, old_vector);
                return Ok(Some(old_vector));
            }
        }
        if let Some(old_vector) = old.vector {
            self.drop_vector(old.record, old_vector)?;
        }
        Ok(new.map(|new| self.add_vector(old.record, new, vectors)))
    }

    /// Has a vector written with the others of its batch; gives its id.
    fn add_vector<'r>(
        &mut self,
        record: i64,
        vector: &'r Embedding,
        vectors: &mut Vectors<'r>,
    ) -> i64 {
        let id = self.seq + 1;
        vectors.push((id, vector));
        self.log(record, id);
        id
    }

    fn write_vectors(&mut self, vectors: &mut Vectors<'_>) -> Result<()> {
        for (id, vector) in vectors.drain(..) {
            let bytes = vector_bytes(vector.components()?);
            self.insert_vector
                .get(
                    self.transaction.connection(),
                    "INSERT INTO vectors (id, checksum, vector) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![id, crc32fast::hash(bytes), bytes])?;
        }
        Ok(())
    }

    fn drop_vector(&mut self, record: i64, vector: i64) -> Result<()> {
        self.transaction
            .prepare_cached("DELETE FROM vectors WHERE id = ?1")?
            .execute([vector])?;
        self.log(record, vector);
        Ok(())
    }

    /// Says that a record's place in search indexes must be looked at again, when
    /// [`Write::write_changes`] is called.
    fn log(&mut self, record: i64, vector: i64) {
        self.seq += 1;
        self.changes.push([self.seq, record, vector]);
    }

    fn write_changes(&mut self) -> Result<()> {
        insert(
            &self.transaction,
            "changes (seq, record, vector)",
            &self.changes,
        )?;
        self.changes.clear();
        Ok(())
    }

    /// Gives a record its place in the timeline, when [`Write::write_times`] is called.
    fn time(&mut self, stored: &Stored) -> Result<()> {
        let lineage = self.lineage_of(stored.scope)?;
        let entries = lineage
            .iter()
            .map(|scope| [*scope, stored.created_at, stored.record]);
        self.times.extend(entries);
        Ok(())
    }

    /// Adds what the timeline is still to get, in its order.
    fn write_times(&mut self) -> Result<()> {
        self.times.sort_unstable();
        insert(
            &self.transaction,
            "timeline (scope, created_at, record)",
            &self.times,
        )?;
        self.times.clear();
        Ok(())
    }

    fn untime(&mut self, stored: &Stored) -> Result<()> {
        // It may be one of those that are to come.
        self.write_times()?;
        let lineage = self.lineage_of(stored.scope)?;
        let mut statement = self.transaction.prepare_cached(
            "DELETE FROM timeline WHERE scope = ?1 AND created_at = ?2 AND record = ?3",
        )?;
        for scope in lineage.iter() {
            statement.execute([*scope, stored.created_at, stored.record])?;
        }
        Ok(())
    }

    fn count(&mut self, stored: &Stored, by: i64) -> Result<()> {
        self.names
            .entry(stored.categories)
            .or_insert_with(|| stored.names.clone());
        let lineage = self.lineage_of(stored.scope)?;
        for &scope in lineage.iter() {
            *self.scope_counts.entry(scope).or_default() += by;
            *self
                .category_counts
                .entry((scope, stored.categories))
                .or_default() += by;
        }
        *self.set_counts.entry(stored.categories).or_default() += by;
        Ok(())
    }

    fn write_counts(&mut self) -> Result<()> {
        for (scope, by) in self.scope_counts.drain() {
            change_count(&self.transaction, COUNT_OF_SCOPE, params![by, scope], by)?;
        }
        for (set, by) in self.set_counts.drain() {
            change_count(&self.transaction, COUNT_OF_SET, params![by, set], by)?;
        }
        let mut by_name: HashMap<(i64, String), i64> = HashMap::new();
        for ((scope, set), by) in self.category_counts.drain() {
            let names = self.names.get(&set).map_or("[]", String::as_str);
            let mut names: Vec<String> = serde_json::from_str(names).map_err(unreadable)?;
            names.sort_unstable();
            names.dedup();
            for name in names {
                *by_name.entry((scope, name)).or_default() += by;
            }
        }
        for ((scope, category), by) in by_name.into_iter().filter(|&(_, by)| by != 0) {
            let values = params![by, scope, category];
            change_count(&self.transaction, COUNT_OF_CATEGORY, values, by)?;
        }
        Ok(())
    }

    fn trim_changes(&mut self) -> Result<()> {
        let keep_from = self.seq - CHANGES_KEPT;
        // In steps, so that not every write pays for trimming one row.
        if keep_from > self.trimmed + CHANGES_KEPT / 4 {
            self.transaction
                .execute("DELETE FROM changes WHERE seq <= ?1", [keep_from])?;
            self.trimmed = keep_from;
        }
        Ok(())
    }

    /// Ids of the scopes from the root down to `path`, created where missing.
    fn lineage(&mut self, path: &str) -> Result<Rc<[i64]>> {
        if let Some(known) = self.lineages.get(path) {
            return Ok(Rc::clone(known));
        }
        let mut ids: Vec<i64> = Vec::new();
        let mut find = self
            .transaction
            .prepare_cached("SELECT id FROM scopes WHERE path = ?1")?;
        for above in scope::lineage(path) {
            let known = find.query_row([above], |row| row.get(0)).optional()?;
            let id = match known {
                Some(id) => id,
                None => self
                    .transaction
                    .prepare_cached(
                        "INSERT INTO scopes (parent, path, records) VALUES (?1, ?2, 0)",
                    )?
                    .insert(params![ids.last(), above])?,
            };
            ids.push(id);
        }
        drop(find);
        let ids: Rc<[i64]> = ids.into();
        self.lineages.insert(path.to_owned(), Rc::clone(&ids));
        self.lineages_by_id.insert(own(&ids), Rc::clone(&ids));
        Ok(ids)
    }

    fn lineage_of(&mut self, scope: i64) -> Result<Rc<[i64]>> {
        if let Some(known) = self.lineages_by_id.get(&scope) {
            return Ok(Rc::clone(known));
        }
        let path: String = self
            .transaction
            .prepare_cached("SELECT path FROM scopes WHERE id = ?1")?
            .query_row([scope], |row| row.get(0))?;
        self.lineage(&path)
    }

    fn category_set(&mut self, names: &str) -> Result<i64> {
        if let Some(&known) = self.sets.get(names) {
            return Ok(known);
        }
        let stored = self
            .transaction
            .prepare_cached("SELECT id FROM category_sets WHERE names = ?1")?
            .query_row([names], |row| row.get(0))
            .optional()?;
        let id = match stored {
            Some(id) => id,
            None => self
                .transaction
                .prepare_cached("INSERT INTO category_sets (names, records) VALUES (?1, 0)")?
                .insert([names])?,
        };
        self.sets.insert(names.to_owned(), id);
        Ok(id)
    }
}

/// What changes the `records` of a row by ?1: what adds to it, what takes from it and leaves some, and
/// what removes the row if that leaves none.
type Count = [&'static str; 3];

const COUNT_OF_SCOPE: Count = [
    "UPDATE scopes SET records = records + ?1 WHERE id = ?2",
    "UPDATE scopes SET records = records + ?1 WHERE id = ?2 AND records > -?1",
    "DELETE FROM scopes WHERE id = ?2 AND records = -?1",
];
const COUNT_OF_SET: Count = [
    "UPDATE category_sets SET records = records + ?1 WHERE id = ?2",
    "UPDATE category_sets SET records = records + ?1 WHERE id = ?2 AND records > -?1",
    "DELETE FROM category_sets WHERE id = ?2 AND records = -?1",
];
const COUNT_OF_CATEGORY: Count = [
    "INSERT INTO scope_categories (scope, category, records) VALUES (?2, ?3, ?1)
     ON CONFLICT DO UPDATE SET records = records + ?1",
    "UPDATE scope_categories SET records = records + ?1
     WHERE scope = ?2 AND category = ?3 AND records > -?1",
    "DELETE FROM scope_categories WHERE scope = ?2 AND category = ?3 AND records = -?1",
];

/// Changes a count. Most of what gets fewer keeps some: that is tried first. What was created and left
/// again within a transaction has a change of 0, and is empty all the same.
fn change_count(
    connection: &Connection,
    [add, take, remove]: Count,
    values: &[&dyn ToSql],
    by: i64,
) -> rusqlite::Result<()> {
    let execute = |sql| connection.prepare_cached(sql)?.execute(values);
    if by > 0 {
        execute(add)?;
    } else if by == 0 || execute(take)? == 0 {
        execute(remove)?;
    }
    Ok(())
}

/// Adds rows of three numbers that are not there yet to `into`, a table with its columns.
fn insert(connection: &Connection, into: &str, rows: &[[i64; 3]]) -> rusqlite::Result<()> {
    let mut rest = rows;
    for width in ROWS_AT_ONCE {
        if rest.len() < width {
            continue;
        }
        let values = vec!["(?, ?, ?)"; width].join(", ");
        // With ROLLBACK, because a conflict would be damage: SQLite need not be ready to take back
        // one of several rows.
        let mut insert = connection
            .prepare_cached(&format!("INSERT OR ROLLBACK INTO {into} VALUES {values}"))?;
        while let Some((together, others)) = rest.split_at_checked(width) {
            insert.execute(params_from_iter(together.as_flattened()))?;
            rest = others;
        }
    }
    Ok(())
}

/// An integer of the `meta` table.
pub fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

/// A text of the `meta` table.
pub fn meta_text(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

fn set_meta(connection: &Connection, key: &str, value: impl ToSql) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
        .execute(params![key, value])?;
    Ok(())
}

fn own(lineage: &[i64]) -> i64 {
    // A lineage has at least the root.
    lineage.last().copied().unwrap_or_default()
}

/// JSON that this crate wrote and cannot read any more.
pub(super) fn unreadable(error: serde_json::Error) -> StoreError {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
        .into()
}
