//! What one process keeps in memory to search a store: codes and filter columns of every vector.
//!
//! The file is the truth. A mirror belongs to one state of it, named by its `seq`, and catches up
//! by reading the changes since; it never holds what is not committed.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use crate::vector::{Bitmap, CodeBlock, Hit, Query, RowRef, ScanBlock, Search, Tail};

use super::error::{Result, StoreError};
use super::filter::{Filter, Visibility, has_metadata};
use super::read::damaged;
use super::record::vector_from_bytes;
use super::scope::ROOT;
use super::write::meta;

/// No parent, no source.
const NONE: u32 = u32::MAX;

/// The searchable part of a store at `seq`.
#[derive(Default)]
pub struct Mirror {
    seq: i64,
    loaded: bool,
    dimension: usize,
    scopes: Scopes,
    sets: CategorySets,
    sources: HashMap<String, u32>,
    parts: Vec<Part>,
}

/// Vectors with ascending ids, and what filters look at, row by row.
struct Part {
    codes: Tail,
    deleted: Bitmap,
    columns: Columns,
}

#[derive(Default)]
struct Columns {
    records: Vec<i64>,
    created_at: Vec<i64>,
    scopes: Vec<u32>,
    sets: Vec<u32>,
    sources: Vec<u32>,
    private: Bitmap,
}

/// What filters look at, of one vector.
struct Entry {
    vector: i64,
    record: i64,
    scope: i64,
    set: i64,
    created_at: i64,
    source: Option<String>,
    private: bool,
}

/// Scopes by ascending id. A scope is younger than the one above it, so parents come first. Ids
/// are never used again: one that has gone from the file is never looked for.
#[derive(Default)]
struct Scopes {
    ids: Vec<i64>,
    parents: Vec<u32>,
}

/// Category lists by ascending id, as numbers of names.
#[derive(Default)]
struct CategorySets {
    ids: Vec<i64>,
    members: Vec<Box<[u32]>>,
    names: HashMap<String, u32>,
}

impl Mirror {
    /// Whether this is the state of the file that `connection`'s transaction sees.
    pub fn is_current(&self, connection: &Connection) -> Result<bool> {
        Ok(self.loaded && meta(connection, "seq")?.unwrap_or(0) == self.seq)
    }

    /// Brings the mirror to the state that `connection`'s transaction sees, which must not be
    /// older than the mirror's. On an error the mirror is empty and will be loaded again.
    pub fn catch_up(&mut self, connection: &Connection) -> Result<()> {
        let caught_up = self.try_catch_up(connection);
        if caught_up.is_err() {
            *self = Self::default();
        }
        caught_up
    }

    fn try_catch_up(&mut self, connection: &Connection) -> Result<()> {
        let seq = meta(connection, "seq")?.unwrap_or(0);
        let trimmed = meta(connection, "trimmed")?.unwrap_or(0);
        if !self.loaded || self.seq < trimmed {
            *self = Self::default();
        }
        self.dimension = meta(connection, "dimension")?.unwrap_or(0) as usize;
        self.scopes.read_new(connection)?;
        self.sets.read_new(connection)?;
        if self.loaded {
            self.replay(connection)?;
        } else {
            self.load(connection)?;
        }
        self.seq = seq;
        self.loaded = true;
        Ok(())
    }

    fn load(&mut self, connection: &Connection) -> Result<()> {
        let mut statement = connection.prepare(
            "SELECT vector, record, scope, categories, created_at, source, private
             FROM records WHERE vector IS NOT NULL",
        )?;
        let mut entries = statement
            .query_map([], |row| entry(row, 0))?
            .collect::<rusqlite::Result<Vec<Entry>>>()?;
        entries.sort_unstable_by_key(|entry| entry.vector);
        let mut vectors = Vectors::new(connection)?;
        for entry in &entries {
            self.append(entry, &mut vectors)?;
        }
        Ok(())
    }

    fn replay(&mut self, connection: &Connection) -> Result<()> {
        let mut statement = connection.prepare_cached(
            "SELECT c.vector, r.record, r.scope, r.categories, r.created_at, r.source, r.private
             FROM changes c
             LEFT JOIN records r ON r.record = c.record AND r.vector = c.vector
             WHERE c.seq > ?1 ORDER BY c.seq",
        )?;
        let mut vectors = Vectors::new(connection)?;
        let mut rows = statement.query([self.seq])?;
        while let Some(row) = rows.next()? {
            let known = self.find(row.get(0)?);
            let live = row.get::<_, Option<i64>>(1)?.is_some();
            match (known, live) {
                (Some((part, at)), true) => {
                    let entry = self.resolve(&entry(row, 0)?)?;
                    self.parts[part].columns.set(at, &entry);
                }
                (Some((part, at)), false) => self.parts[part].deleted.insert(at),
                (None, true) => self.append(&entry(row, 0)?, &mut vectors)?,
                (None, false) => {}
            }
        }
        Ok(())
    }

    fn append(&mut self, entry: &Entry, vectors: &mut Vectors<'_>) -> Result<()> {
        let resolved = self.resolve(entry)?;
        if self.parts.is_empty() {
            self.parts.push(Part {
                codes: Tail::new(self.dimension, false).map_err(|e| damaged(e.to_string()))?,
                deleted: Bitmap::new(),
                columns: Columns::default(),
            });
        }
        if let Some(part) = self.parts.last_mut() {
            let vector = vectors.get(entry.vector)?;
            let at = part
                .codes
                .append(entry.vector, &vector)
                .map_err(|error| damaged(format!("vector {}: {error}", entry.vector)))?;
            part.columns.set(at, &resolved);
        }
        Ok(())
    }

    fn resolve(&mut self, entry: &Entry) -> Result<Resolved> {
        let unknown = |what: &str| damaged(format!("record {} has no {what}", entry.record));
        let next = self.sources.len() as u32;
        Ok(Resolved {
            record: entry.record,
            created_at: entry.created_at,
            scope: self.scopes.position(entry.scope).ok_or_else(|| unknown("scope"))?,
            set: self.sets.position(entry.set).ok_or_else(|| unknown("categories"))?,
            source: match &entry.source {
                None => NONE,
                Some(name) => match self.sources.get(name) {
                    Some(&known) => known,
                    None => *self.sources.entry(name.clone()).or_insert(next),
                },
            },
            private: entry.private,
        })
    }

    fn find(&self, vector: i64) -> Option<(usize, usize)> {
        self.parts.iter().enumerate().find_map(|(number, part)| {
            let at = part.codes.block().ids.binary_search(&vector).ok()?;
            Some((number, at))
        })
    }

    /// The `k` best records that match `filter`, as (score, row in `records`), best first; equal
    /// scores by id. `connection` must see the mirror's state.
    pub fn search(
        &self,
        connection: &Connection,
        query: &Query,
        filter: &Filter,
        k: usize,
        min_score: Option<f64>,
    ) -> Result<Vec<(f64, i64)>> {
        let selected = self
            .parts
            .iter()
            .map(|part| self.select(connection, part, filter))
            .collect::<Result<Vec<Option<Bitmap>>>>()?;
        let blocks: Vec<ScanBlock<'_>> = self
            .parts
            .iter()
            .zip(&selected)
            .map(|(part, selected)| ScanBlock {
                block: part.block(),
                filter: selected.as_ref().map(Bitmap::words),
                deleted: Some(part.deleted.words()),
            })
            .collect();
        let record = |at: RowRef| self.parts[at.block as usize].columns.records[at.row as usize];
        let search = Search::new(&blocks, query, k, min_score).map_err(|error| match error {
            crate::vector::VectorError::Dimension { expected, found } => StoreError::Dimension {
                stored: expected,
                given: found,
            },
            other => StoreError::InvalidArgument(other.to_string()),
        })?;
        let mut vectors = Vectors::new(connection)?;
        let ids = Ids::new(connection)?;
        let found = search.run(
            |_, id, into: &mut [f32]| vectors.copy(id, into),
            |a: &Hit, b: &Hit| ids.compare(record(a.at), record(b.at)),
        )?;
        ids.finish()?;
        Ok(found
            .hits
            .iter()
            .map(|hit| (hit.score, record(hit.at)))
            .collect())
    }

    /// The length of the stored vectors, once there is one.
    pub fn dimension(&self) -> Option<usize> {
        (self.dimension > 0).then_some(self.dimension)
    }

    /// The rows of a part that match, or `None` for all.
    fn select(
        &self,
        connection: &Connection,
        part: &Part,
        filter: &Filter,
    ) -> Result<Option<Bitmap>> {
        let columns = &part.columns;
        let rows = columns.records.len();
        let mut selected: Option<Bitmap> = None;
        let mut keep = |test: &dyn Fn(usize) -> bool| {
            selected = Some(match selected.take() {
                None => pack(rows, test),
                Some(mut some) => {
                    retain(&mut some, test);
                    some
                }
            });
        };
        if let Some(scope) = filter.scope.as_deref().filter(|scope| *scope != ROOT) {
            let inside = self.scopes.subtree(connection, scope)?;
            keep(&|row| inside[columns.scopes[row] as usize]);
        }
        if let Some(wanted) = &filter.categories {
            let fits = self.sets.having(wanted);
            keep(&|row| fits[columns.sets[row] as usize]);
        }
        if filter.created_from.is_some() || filter.created_before.is_some() {
            let from = filter.created_from.unwrap_or(i64::MIN);
            let before = filter.created_before;
            keep(&|row| {
                let at = columns.created_at[row];
                from <= at && before.is_none_or(|before| at < before)
            });
        }
        if let Some(sources) = &filter.sources {
            let wanted: Vec<u32> = sources
                .iter()
                .filter_map(|name| self.sources.get(name).copied())
                .collect();
            keep(&|row| wanted.contains(&columns.sources[row]));
        }
        if let Visibility::Only(viewer) = &filter.visible_to {
            let viewer = viewer.as_ref().and_then(|name| self.sources.get(name).copied());
            keep(&|row| {
                !columns.private.contains(row)
                    || viewer.is_some_and(|viewer| columns.sources[row] == viewer)
            });
        }
        if let Some(wanted) = &filter.metadata {
            // Last, because it reads rows: only those that everything else allows.
            let mut statement =
                connection.prepare_cached("SELECT metadata FROM records WHERE record = ?1")?;
            let mut matching = Bitmap::new();
            for row in 0..rows {
                let passed = selected.as_ref().is_none_or(|some| some.contains(row));
                if !passed || part.deleted.contains(row) {
                    continue;
                }
                let fits = statement.query_row([columns.records[row]], |found| {
                    Ok(has_metadata(found.get_ref(0)?.as_str()?, wanted))
                })?;
                if fits.map_err(|error| damaged(format!("metadata: {error}")))? {
                    matching.insert(row);
                }
            }
            selected = Some(matching);
        }
        Ok(selected)
    }
}

impl Part {
    fn block(&self) -> CodeBlock<'_> {
        self.codes.block()
    }
}

/// An [`Entry`] in the mirror's own numbers.
struct Resolved {
    record: i64,
    created_at: i64,
    scope: u32,
    set: u32,
    source: u32,
    private: bool,
}

impl Columns {
    /// Sets a row, or adds the one after the last.
    fn set(&mut self, at: usize, entry: &Resolved) {
        fn put<T>(column: &mut Vec<T>, at: usize, value: T) {
            match column.get_mut(at) {
                Some(place) => *place = value,
                None => column.push(value),
            }
        }
        put(&mut self.records, at, entry.record);
        put(&mut self.created_at, at, entry.created_at);
        put(&mut self.scopes, at, entry.scope);
        put(&mut self.sets, at, entry.set);
        put(&mut self.sources, at, entry.source);
        if entry.private {
            self.private.insert(at);
        } else {
            self.private.remove(at);
        }
    }
}

impl Scopes {
    fn read_new(&mut self, connection: &Connection) -> Result<()> {
        let last = self.ids.last().copied().unwrap_or(0);
        let mut statement = connection
            .prepare_cached("SELECT id, parent FROM scopes WHERE id > ?1 ORDER BY id")?;
        let mut rows = statement.query([last])?;
        while let Some(row) = rows.next()? {
            let parent = row
                .get::<_, Option<i64>>(1)?
                .and_then(|id| self.position(id));
            self.ids.push(row.get(0)?);
            self.parents.push(parent.unwrap_or(NONE));
        }
        Ok(())
    }

    fn position(&self, id: i64) -> Option<u32> {
        self.ids.binary_search(&id).ok().map(|at| at as u32)
    }

    /// For each scope, whether it is `path` or below.
    fn subtree(&self, connection: &Connection, path: &str) -> Result<Vec<bool>> {
        let top = connection
            .prepare_cached("SELECT id FROM scopes WHERE path = ?1")?
            .query_row([path], |row| row.get(0))
            .optional()?
            .and_then(|id| self.position(id));
        let mut inside = vec![false; self.ids.len()];
        if let Some(top) = top {
            inside[top as usize] = true;
            for at in top as usize + 1..inside.len() {
                inside[at] = inside.get(self.parents[at] as usize).is_some_and(|&above| above);
            }
        }
        Ok(inside)
    }
}

impl CategorySets {
    fn read_new(&mut self, connection: &Connection) -> Result<()> {
        let last = self.ids.last().copied().unwrap_or(0);
        let mut statement = connection
            .prepare_cached("SELECT id, names FROM category_sets WHERE id > ?1 ORDER BY id")?;
        let mut rows = statement.query([last])?;
        while let Some(row) = rows.next()? {
            let names: Vec<String> = serde_json::from_str(
                row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?,
            )
            .map_err(|error| damaged(format!("categories: {error}")))?;
            let mut members = Vec::with_capacity(names.len());
            for name in names {
                let next = self.names.len() as u32;
                members.push(*self.names.entry(name).or_insert(next));
            }
            self.ids.push(row.get(0)?);
            self.members.push(members.into());
        }
        Ok(())
    }

    fn position(&self, id: i64) -> Option<u32> {
        self.ids.binary_search(&id).ok().map(|at| at as u32)
    }

    /// For each list, whether it has one of `wanted`.
    fn having(&self, wanted: &[String]) -> Vec<bool> {
        let wanted: Vec<u32> = wanted
            .iter()
            .filter_map(|name| self.names.get(name).copied())
            .collect();
        self.members
            .iter()
            .map(|members| members.iter().any(|name| wanted.contains(name)))
            .collect()
    }
}

/// Vectors read from the file.
struct Vectors<'c>(CachedStatement<'c>);

impl<'c> Vectors<'c> {
    fn new(connection: &'c Connection) -> Result<Self> {
        Ok(Self(connection.prepare_cached(
            "SELECT checksum, vector FROM vectors WHERE id = ?1",
        )?))
    }

    fn get(&mut self, id: i64) -> Result<Box<[f32]>> {
        let vector = self
            .0
            .query_row([id], |row| {
                let bytes = row.get_ref(1)?.as_blob()?;
                let whole = row.get::<_, u32>(0)? == crc32fast::hash(bytes);
                Ok(vector_from_bytes(bytes).filter(|_| whole))
            })
            .optional()?;
        vector
            .flatten()
            .ok_or_else(|| damaged(format!("vector {id} is missing or fails its checksum")))
    }

    fn copy(&mut self, id: i64, into: &mut [f32]) -> Result<()> {
        let vector = self.get(id)?;
        if vector.len() != into.len() {
            return Err(damaged(format!("vector {id} has {} dimensions", vector.len())));
        }
        into.copy_from_slice(&vector);
        Ok(())
    }
}

/// Ids of records, looked up only to order equal scores.
struct Ids<'c> {
    statement: std::cell::RefCell<CachedStatement<'c>>,
    failure: Cell<Option<rusqlite::Error>>,
}

impl<'c> Ids<'c> {
    fn new(connection: &'c Connection) -> Result<Self> {
        Ok(Self {
            statement: connection
                .prepare_cached("SELECT id FROM records WHERE record = ?1")?
                .into(),
            failure: Cell::new(None),
        })
    }

    fn compare(&self, a: i64, b: i64) -> Ordering {
        let id = |record: i64| {
            let mut statement = self.statement.borrow_mut();
            match statement.query_row(params![record], |row| row.get::<_, String>(0)) {
                Ok(id) => id,
                Err(error) => {
                    self.failure.set(Some(error));
                    String::new()
                }
            }
        };
        if a == b { Ordering::Equal } else { id(a).cmp(&id(b)) }
    }

    fn finish(self) -> Result<()> {
        match self.failure.into_inner() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

fn entry(row: &Row<'_>, from: usize) -> rusqlite::Result<Entry> {
    Ok(Entry {
        vector: row.get(from)?,
        record: row.get(from + 1)?,
        scope: row.get(from + 2)?,
        set: row.get(from + 3)?,
        created_at: row.get(from + 4)?,
        source: row.get(from + 5)?,
        private: row.get(from + 6)?,
    })
}

/// The rows below `rows` that pass, as a set.
fn pack(rows: usize, test: &dyn Fn(usize) -> bool) -> Bitmap {
    let mut set = Bitmap::new();
    let words = set.words_mut();
    words.reserve(rows.div_ceil(64));
    for start in (0..rows).step_by(64) {
        let mut word = 0;
        for row in start..rows.min(start + 64) {
            word |= u64::from(test(row)) << (row - start);
        }
        words.push(word);
    }
    set
}

fn retain(set: &mut Bitmap, test: &dyn Fn(usize) -> bool) {
    for (number, word) in set.words_mut().iter_mut().enumerate() {
        let mut left = *word;
        while left != 0 {
            let bit = left.trailing_zeros() as usize;
            left &= left - 1;
            if !test(number * 64 + bit) {
                *word &= !(1 << bit);
            }
        }
    }
}
