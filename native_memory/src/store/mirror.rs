//! What one process keeps in memory to search a store: codes and filter columns of every vector.
//!
//! The file is the truth. A mirror belongs to one state of it, named by its `seq`, and catches up
//! by reading the changes since; it never holds what is not committed.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crewai_native_sdk::pool::Pool;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row};
use serde_json::{Map, Value};

use crate::vector::{
    Bitmap, Candidates, Chunk, CodeBlock, Hit, NEIGHBOURS, Partitions, Query, RowRef, ScanBlock,
    SealSource, Search, Segment, SegmentError, Tail, Weighed,
};

use super::error::{Result, StoreError};
use super::filter::{Filter, Visibility, has_values, parse};
use super::groups::GROUP_ROWS;
use super::metadata::MetadataColumns;
use super::read::damaged;
use super::record::vector_from_bytes;
use super::scope::ROOT;
use super::snapshot::{Snapshot, SnapshotPart};
use super::write::{meta, meta_text};

/// No parent, no source.
const NONE: u32 = u32::MAX;
/// Rows in memory from which sealing them pays; reading so many takes some 20 ms when a store is
/// opened.
const SEAL_ROWS: usize = 2048;
/// Vectors, for each record that is wanted, that a search keeps of those it reads.
const KEPT_PER_HIT: usize = 4;

/// Threads that share a large search.
static SCANNERS: Pool = Pool::new("crewai-native-scan");

/// What is searched for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The vector.
    pub query: &'a Query,
    /// Which records are considered.
    pub filter: &'a Filter,
    /// How many are wanted.
    pub k: usize,
    /// The lowest score that is of interest.
    pub min_score: Option<f64>,
    /// The number of rows from which on the search may be approximate.
    pub approximate_from: Option<usize>,
}

/// A record that a search found.
pub struct Match {
    /// Its score.
    pub score: f64,
    /// Its row in `records`.
    pub record: i64,
    /// The id of its vector.
    pub id: i64,
    /// Its vector, if it is at hand.
    pub vector: Option<Box<[f32]>>,
}

/// The searchable part of a store at `seq`.
pub struct Mirror {
    /// Where segments and snapshots are.
    directory: PathBuf,
    /// The snapshot that this mirror began with.
    snapshot: Option<String>,
    seq: i64,
    loaded: bool,
    dimension: usize,
    scopes: Scopes,
    sets: CategorySets,
    sources: HashMap<String, u32>,
    parts: Vec<Part>,
    /// Segments that this mirror opened and nobody compared with their checksums yet.
    unverified: Vec<PathBuf>,
}

/// Vectors, and what filters look at, row by row. Ids ascend from part to part.
struct Part {
    codes: Codes,
    deleted: Bitmap,
    columns: Columns,
    metadata: Mutex<MetadataColumns>,
}

/// Where the codes of a part are.
enum Codes {
    Sealed(Box<Segment>),
    Memory(Box<Tail>),
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
    /// A mirror that knows nothing yet.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            snapshot: None,
            seq: 0,
            loaded: false,
            dimension: 0,
            scopes: Scopes::default(),
            sets: CategorySets::default(),
            sources: HashMap::new(),
            parts: Vec::new(),
            unverified: Vec::new(),
        }
    }

    /// The segments to be compared with their checksums, once.
    pub fn take_unverified(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.unverified)
    }

    fn forget(&mut self) {
        *self = Self::new(&self.directory);
    }

    /// Whether this is the state of the file that `connection`'s transaction sees, and can be read.
    pub fn is_current(&self, connection: &Connection) -> Result<bool> {
        Ok(self.loaded
            && self.parts.iter().all(Part::is_whole)
            && meta(connection, "seq")?.unwrap_or(0) == self.seq)
    }

    /// Brings the mirror to the state that `connection`'s transaction sees, which must not be
    /// older than the mirror's. On an error the mirror is empty and will be loaded again. Between
    /// rows it asks whether to `go_on`.
    pub fn catch_up(&mut self, connection: &Connection, go_on: &dyn Fn() -> bool) -> Result<()> {
        let caught_up = self.try_catch_up(connection, go_on);
        if caught_up.is_err() {
            self.forget();
        }
        caught_up
    }

    fn try_catch_up(&mut self, connection: &Connection, go_on: &dyn Fn() -> bool) -> Result<()> {
        let seq = meta(connection, "seq")?.unwrap_or(0);
        let trimmed = meta(connection, "trimmed")?.unwrap_or(0);
        let published = meta_text(connection, "snapshot")?;
        // Another process may have sealed what this one still has in memory.
        let outdone = published != self.snapshot && self.wants_sealing();
        // A file that went back was replaced by an older copy of itself.
        let replaced = seq < self.seq;
        let whole = self.parts.iter().all(Part::is_whole);
        if !self.loaded || !whole || self.seq < trimmed || replaced || outdone {
            self.forget();
        }
        self.dimension = meta(connection, "dimension")?.unwrap_or(0) as usize;
        self.scopes.read_new(connection)?;
        self.sets.read_new(connection)?;
        if !self.loaded
            && let Some(name) = published
            && let Some(snapshot) = Snapshot::read(&self.directory, &name)
            && (trimmed..=seq).contains(&snapshot.seq)
        {
            self.adopt(name, snapshot);
        }
        if self.loaded {
            self.replay(connection, go_on)?;
        } else {
            self.load(connection, go_on)?;
        }
        self.seq = seq;
        self.loaded = true;
        Ok(())
    }

    /// Takes over a snapshot, whole or not at all.
    fn adopt(&mut self, name: String, snapshot: Snapshot) {
        let dimension = self.dimension;
        let parts = snapshot.parts.into_iter().map(|part| {
            let segment = Segment::open(&self.directory.join(&part.file)).ok()?;
            let fits = segment.len() == part.records.len()
                && (segment.is_empty() || segment.block().dimension == dimension);
            // A scope or set that has gone since belongs to a row that was deleted or moved
            // since, which the changes will say.
            let places = |ids: &[i64], place: &dyn Fn(i64) -> Option<u32>| {
                ids.iter().map(|&id| place(id).unwrap_or(0)).collect()
            };
            fits.then(|| Part {
                codes: Codes::Sealed(Box::new(segment)),
                deleted: bitmap(part.deleted),
                columns: Columns {
                    scopes: places(&part.scopes, &|id| self.scopes.position(id)),
                    sets: places(&part.sets, &|id| self.sets.position(id)),
                    records: part.records,
                    created_at: part.created_at,
                    sources: part.sources,
                    private: bitmap(part.private),
                },
                metadata: Mutex::default(),
            })
        });
        if let Some(parts) = parts.collect::<Option<Vec<Part>>>() {
            self.unverified = parts
                .iter()
                .filter_map(|part| match &part.codes {
                    Codes::Sealed(segment) => Some(segment.path().to_owned()),
                    Codes::Memory(_) => None,
                })
                .collect();
            self.parts = parts;
            self.sources = (0..)
                .zip(snapshot.sources)
                .map(|(at, name)| (name, at))
                .collect();
            self.seq = snapshot.seq;
            self.snapshot = Some(name);
            self.loaded = true;
        }
    }

    /// Whether enough rows are in memory to be sealed, or a segment is of an older format.
    pub fn wants_sealing(&self) -> bool {
        self.rows_in_memory() >= SEAL_ROWS || self.parts.iter().any(Part::is_outdated)
    }

    /// The number of rows that are not in a segment.
    pub fn rows_in_memory(&self) -> usize {
        self.parts
            .iter()
            .filter(|part| matches!(part.codes, Codes::Memory(_)))
            .map(|part| part.columns.records.len())
            .sum()
    }

    /// The number of rows in segments.
    pub fn rows_sealed(&self) -> usize {
        self.parts
            .iter()
            .map(|part| part.columns.records.len())
            .sum::<usize>()
            - self.rows_in_memory()
    }

    /// Writes everything into segments, and a snapshot that names them; gives its name and those
    /// of all files that it needs. Rows that were deleted are left out of what is written anew.
    pub fn seal(&self, unique: &str, go_on: &dyn Fn() -> bool) -> Result<(String, Vec<String>)> {
        let io = |error| StoreError::io(&self.directory, error);
        fs::create_dir_all(&self.directory).map_err(io)?;
        let from = self.first_to_rewrite();
        let mut snapshot = Snapshot {
            seq: self.seq,
            dimension: self.dimension as u64,
            sources: vec![String::new(); self.sources.len()],
            parts: self.parts[..from]
                .iter()
                .filter_map(|part| match &part.codes {
                    Codes::Sealed(segment) => Some(self.kept(part, file_name(segment.path()))),
                    Codes::Memory(_) => None,
                })
                .collect(),
        };
        for (name, &at) in &self.sources {
            snapshot.sources[at as usize].clone_from(name);
        }
        let rewritten: Vec<&Part> = self.parts[from..].iter().collect();
        if rewritten.iter().any(|part| part.live() > 0) {
            let file = format!("{unique}.codes");
            let sources: Vec<SealSource<'_>> = rewritten
                .iter()
                .map(|part| SealSource {
                    block: part.block(),
                    deleted: Some(part.deleted.words()),
                })
                .collect();
            let path = self.directory.join(&file);
            let fetch = |_, _: &mut [f32]| Ok(());
            let written = Segment::write(&path, self.dimension, &sources, false, fetch, go_on)
                .map_err(|error| match error {
                    SegmentError::Stopped(_) => StoreError::Stopped,
                    SegmentError::Io { path, source, .. } => StoreError::io(&path, source),
                    other => StoreError::Failed {
                        path,
                        detail: other.to_string(),
                    },
                })?;
            snapshot.parts.push(self.rewritten(&written, from, file));
        }
        let name = format!("{unique}.snapshot");
        snapshot.write(&self.directory, &name).map_err(io)?;
        let mut files: Vec<String> = snapshot.parts.into_iter().map(|part| part.file).collect();
        files.push(name.clone());
        Ok((name, files))
    }

    /// The first of the parts that become one segment: those in memory, segments that are not
    /// much larger than all after them (so that there are few, and each row is copied few times),
    /// and whatever follows one that is mostly deleted or of an older format.
    fn first_to_rewrite(&self) -> usize {
        let mut live = 0;
        let mut from = self.parts.len();
        for (at, part) in self.parts.iter().enumerate().rev() {
            let small = part.live() <= 2 * live;
            let wasteful = part.live() < part.columns.records.len() / 2;
            if matches!(part.codes, Codes::Memory(_)) || small || wasteful || part.is_outdated() {
                from = at;
            }
            live += part.live();
        }
        from
    }

    /// The columns of a part that stays as it is; its deleted rows stay, marked.
    fn kept(&self, part: &Part, file: String) -> SnapshotPart {
        let mut out = Described::new(self, file);
        for row in 0..part.columns.records.len() {
            out.push(&part.columns, row);
        }
        let mut out = out.finish();
        out.deleted = part.deleted.words().to_vec();
        out
    }

    /// The columns of the rows of a segment that parts, the first of which is the `from`-th, became.
    fn rewritten(&self, segment: &Segment, from: usize, file: String) -> SnapshotPart {
        let mut out = Described::new(self, file);
        for &id in segment.block().ids {
            let place = self.parts[from..]
                .iter()
                .find_map(|part| Some((part, part.block().find(id)?)));
            if let Some((part, row)) = place {
                out.push(&part.columns, row);
            }
        }
        out.finish()
    }

    /// Reads every record and every vector.
    fn load(&mut self, connection: &Connection, go_on: &dyn Fn() -> bool) -> Result<()> {
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
            if !go_on() {
                return Err(StoreError::Stopped);
            }
            self.append(entry, &mut vectors)?;
        }
        Ok(())
    }

    fn replay(&mut self, connection: &Connection, go_on: &dyn Fn() -> bool) -> Result<()> {
        let mut statement = connection.prepare_cached(
            "SELECT c.vector, r.record, r.scope, r.categories, r.created_at, r.source, r.private
             FROM changes c
             LEFT JOIN records r ON r.record = c.record AND r.vector = c.vector
             WHERE c.seq > ?1 ORDER BY c.seq",
        )?;
        let mut vectors = Vectors::new(connection)?;
        let mut rows = statement.query([self.seq])?;
        while let Some(row) = rows.next()? {
            if !go_on() {
                return Err(StoreError::Stopped);
            }
            let known = self.find(row.get(0)?);
            let live = row.get::<_, Option<i64>>(1)?.is_some();
            match (known, live) {
                (Some((part, at)), true) => {
                    let entry = self.resolve(&entry(row, 0)?)?;
                    let metadata = self.parts[part].metadata.get_mut();
                    metadata.unwrap_or_else(PoisonError::into_inner).forget(at);
                    self.parts[part].columns.set(at, &entry);
                    self.parts[part].deleted.remove(at);
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
        if !matches!(self.parts.last(), Some(part) if matches!(part.codes, Codes::Memory(_))) {
            let tail = Tail::new(self.dimension, false).map_err(|e| damaged(e.to_string()))?;
            self.parts.push(Part {
                codes: Codes::Memory(Box::new(tail)),
                deleted: Bitmap::new(),
                columns: Columns::default(),
                metadata: Mutex::default(),
            });
        }
        if let Some(part) = self.parts.last_mut()
            && let Codes::Memory(tail) = &mut part.codes
        {
            let vector = vectors.get(entry.vector)?;
            let at = tail
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
            scope: self
                .scopes
                .position(entry.scope)
                .ok_or_else(|| unknown("scope"))?,
            set: self
                .sets
                .position(entry.set)
                .ok_or_else(|| unknown("categories"))?,
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
            let at = part.block().find(vector)?;
            Some((number, at))
        })
    }

    /// The best records that match, best first; equal scores by id.
    /// `connection` must see the mirror's state. With `trust`, a hash stands for metadata:
    /// whoever asks so looks at what the records have. With `spread` it may use every
    /// processor. Where it may be approximate, `groups` gives those of a segment, if they are there.
    pub fn search(
        &self,
        connection: &Connection,
        request: &Request<'_>,
        trust: bool,
        spread: bool,
        groups: &dyn Fn(&Segment, &Bitmap) -> Option<Arc<Partitions>>,
    ) -> Result<Vec<Match>> {
        let &Request {
            query,
            filter,
            k,
            min_score,
            approximate_from,
        } = request;
        let rows: usize = self
            .parts
            .iter()
            .map(|part| part.columns.records.len())
            .sum();
        // With conditions there are fewer rows to look at, and the nearest of them lie farther
        // away than those that the groups were measured with.
        let approximate = approximate_from.is_some_and(|from| from <= rows)
            && filter.is_empty()
            && k <= NEIGHBOURS;
        let selected = self
            .parts
            .iter()
            .map(|part| {
                if approximate {
                    part.nearest(query, k, groups)
                } else {
                    self.select(connection, part, filter, trust)
                }
            })
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
        // Most of those that are read belong to the result. Not all are kept: where many rows are
        // alike, many more are read than are wanted.
        let mut kept: HashMap<i64, Box<[f32]>> = HashMap::new();
        let ids = Ids::new(connection)?;
        let found = search.finish(
            scan(&search, spread),
            |_, id, into: &mut [f32]| {
                let vector = vectors.of_length(id, into.len())?;
                into.copy_from_slice(&vector);
                if kept.len() < k.saturating_mul(KEPT_PER_HIT) {
                    kept.insert(id, vector);
                }
                Ok::<_, StoreError>(())
            },
            |a: &Hit, b: &Hit| ids.compare(record(a.at), record(b.at)),
        )?;
        ids.finish()?;
        Ok(found
            .hits
            .iter()
            .map(|hit| Match {
                score: hit.score,
                record: record(hit.at),
                id: hit.id,
                vector: kept.remove(&hit.id),
            })
            .collect())
    }

    /// The length of the stored vectors, once there is one.
    pub fn dimension(&self) -> Option<usize> {
        (self.dimension > 0).then_some(self.dimension)
    }

    /// The rows of a part that match, or `None` for all. With `trust`, rows whose metadata hashes
    /// as the wanted does are taken to have it.
    fn select(
        &self,
        connection: &Connection,
        part: &Part,
        filter: &Filter,
        trust: bool,
    ) -> Result<Option<Bitmap>> {
        let columns = &part.columns;
        let rows = columns.records.len();
        let mut selected: Option<Bitmap> = None;
        if let Some(scope) = filter.scope.as_deref().filter(|scope| *scope != ROOT) {
            let inside = self.scopes.subtree(connection, scope)?;
            let scopes = &columns.scopes[..rows];
            keep(&mut selected, rows, |row| {
                inside.get(scopes[row] as usize) == Some(&true)
            });
        }
        if let Some(wanted) = &filter.categories {
            let having = self.sets.having(wanted);
            let sets = &columns.sets[..rows];
            keep(&mut selected, rows, |row| {
                having.get(sets[row] as usize) == Some(&true)
            });
        }
        if filter.created_from.is_some() || filter.created_before.is_some() {
            let from = filter.created_from.unwrap_or(i64::MIN);
            let before = filter.created_before;
            keep(&mut selected, rows, |row| {
                let at = columns.created_at[row];
                from <= at && before.is_none_or(|before| at < before)
            });
        }
        if let Some(sources) = &filter.sources {
            let wanted: Vec<u32> = sources
                .iter()
                .filter_map(|name| self.sources.get(name).copied())
                .collect();
            keep(&mut selected, rows, |row| {
                wanted.contains(&columns.sources[row])
            });
        }
        if let Visibility::Only(viewer) = &filter.visible_to {
            let viewer = viewer
                .as_ref()
                .and_then(|name| self.sources.get(name).copied());
            keep(&mut selected, rows, |row| {
                !columns.private.contains(row)
                    || viewer.is_some_and(|viewer| columns.sources[row] == viewer)
            });
        }
        if let Some(wanted) = &filter.metadata {
            // Last, because it may read rows: only those that everything else allows.
            let mut matching = Bitmap::new();
            let admitted = |row: &usize| {
                selected.as_ref().is_none_or(|some| some.contains(*row))
                    && !part.deleted.contains(*row)
            };
            let mut statement =
                connection.prepare_cached("SELECT metadata FROM records WHERE record = ?1")?;
            let mut read = |row: usize| -> Result<Map<String, Value>> {
                let mut rows = statement.query([columns.records[row]])?;
                let found = rows
                    .next()?
                    .ok_or_else(|| damaged("a record is missing".into()))?;
                let text = found.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                parse(text).map_err(|error| damaged(format!("metadata: {error}")))
            };
            let mut known = part.metadata.lock().unwrap_or_else(PoisonError::into_inner);
            let hashes = known.prepare(wanted, rows);
            for row in (0..rows).filter(admitted) {
                let fits = match known.fits(row, &hashes) {
                    Some(false) => false,
                    Some(true) if trust => true,
                    _ => {
                        let metadata = read(row)?;
                        known.read(row, &metadata);
                        has_values(&metadata, wanted)
                    }
                };
                if fits {
                    matching.insert(row);
                }
            }
            drop(known);
            selected = Some(matching);
        }
        Ok(selected)
    }
}

impl Part {
    fn block(&self) -> CodeBlock<'_> {
        match &self.codes {
            Codes::Sealed(segment) => segment.block(),
            Codes::Memory(tail) => tail.block(),
        }
    }

    /// The rows that an approximate search looks at, or `None` for all.
    fn nearest(
        &self,
        query: &Query,
        k: usize,
        groups: &dyn Fn(&Segment, &Bitmap) -> Option<Arc<Partitions>>,
    ) -> Result<Option<Bitmap>> {
        let Codes::Sealed(segment) = &self.codes else {
            return Ok(None);
        };
        if segment.len() < GROUP_ROWS {
            return Ok(None);
        }
        let Some(groups) = groups(segment, &self.deleted) else {
            return Ok(None);
        };
        let nearest = groups
            .select(query, segment.len())
            .map_err(|error| damaged(error.to_string()))?;
        // Where most rows of the groups have been deleted since, all others may be wanted.
        let living = nearest.count_without(&self.deleted);
        Ok((living >= k).then_some(nearest))
    }

    fn is_whole(&self) -> bool {
        match &self.codes {
            Codes::Sealed(segment) => segment.is_whole(),
            Codes::Memory(_) => true,
        }
    }

    fn is_outdated(&self) -> bool {
        matches!(&self.codes, Codes::Sealed(segment) if segment.is_outdated())
    }

    fn live(&self) -> usize {
        self.columns.records.len() - self.deleted.count()
    }
}

/// The columns of rows, as a snapshot has them.
struct Described<'a> {
    mirror: &'a Mirror,
    private: Bitmap,
    out: SnapshotPart,
}

impl<'a> Described<'a> {
    fn new(mirror: &'a Mirror, file: String) -> Self {
        Self {
            mirror,
            private: Bitmap::new(),
            out: SnapshotPart {
                file,
                ..SnapshotPart::default()
            },
        }
    }

    /// Adds a row of a part with these columns.
    fn push(&mut self, columns: &Columns, row: usize) {
        let out = &mut self.out;
        if columns.private.contains(row) {
            self.private.insert(out.records.len());
        }
        out.records.push(columns.records[row]);
        out.created_at.push(columns.created_at[row]);
        let id = |ids: &[i64], at: u32| ids.get(at as usize).copied().unwrap_or(0);
        out.scopes
            .push(id(&self.mirror.scopes.ids, columns.scopes[row]));
        out.sets.push(id(&self.mirror.sets.ids, columns.sets[row]));
        out.sources.push(columns.sources[row]);
    }

    fn finish(mut self) -> SnapshotPart {
        self.out.private = self.private.words().to_vec();
        self.out
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
        let mut statement =
            connection.prepare_cached("SELECT id, parent FROM scopes WHERE id > ?1 ORDER BY id")?;
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
                inside[at] = inside
                    .get(self.parents[at] as usize)
                    .is_some_and(|&above| above);
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
            let names: Vec<String> =
                serde_json::from_str(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)
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

    fn of_length(&mut self, id: i64, length: usize) -> Result<Box<[f32]>> {
        let vector = self.get(id)?;
        if vector.len() == length {
            return Ok(vector);
        }
        Err(damaged(format!(
            "vector {id} has {} dimensions",
            vector.len()
        )))
    }
}

/// Ids of records, looked up only to order equal scores: each once, as where many rows are alike each
/// is compared several times.
struct Ids<'c> {
    statement: RefCell<CachedStatement<'c>>,
    known: RefCell<HashMap<i64, String>>,
    failure: Cell<Option<rusqlite::Error>>,
}

impl<'c> Ids<'c> {
    fn new(connection: &'c Connection) -> Result<Self> {
        Ok(Self {
            statement: connection
                .prepare_cached("SELECT id FROM records WHERE record = ?1")?
                .into(),
            known: RefCell::default(),
            failure: Cell::new(None),
        })
    }

    fn compare(&self, a: i64, b: i64) -> Ordering {
        let mut known = self.known.borrow_mut();
        for record in [a, b] {
            known.entry(record).or_insert_with(|| self.read(record));
        }
        known[&a].cmp(&known[&b])
    }

    fn read(&self, record: i64) -> String {
        let mut statement = self.statement.borrow_mut();
        statement
            .query_row([record], |row| row.get(0))
            .unwrap_or_else(|error| {
                self.failure.set(Some(error));
                String::new()
            })
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

/// Goes over the codes, in this thread alone or with every processor.
fn scan(search: &Search<'_>, spread: bool) -> Vec<Candidates> {
    // Some parts for each thread, so that one that is held up leaves its share to the others.
    let size = |parts: usize| parts.div_ceil(4 * SCANNERS.threads());
    let chunks = search.chunks();
    let weigh = |chunks: &[Chunk]| -> Vec<Weighed> {
        chunks
            .iter()
            .map(|chunk| search.weigh(chunk.clone()))
            .collect()
    };
    let mut weighed = if spread && search.is_large() {
        let size = size(chunks.len());
        SCANNERS
            .map_chunks(&chunks, size, |_, chunks| weigh(chunks))
            .into_iter()
            .flatten()
            .collect()
    } else {
        weigh(&chunks)
    };
    let first = search.begin(&mut weighed);
    let scan = |parts: &[Weighed], mut found: Candidates| {
        for part in parts {
            search.scan(part, &mut found);
        }
        found
    };
    if !(spread && search.is_large_yet(&weighed)) {
        return vec![scan(&weighed, first)];
    }
    let size = size(weighed.len());
    let mut found = SCANNERS.map_chunks(&weighed, size, |_, parts| {
        scan(parts, Candidates::default())
    });
    found.push(first);
    found
}

/// Leaves those rows in `selected` that pass; all below `rows` are in it while it is `None`.
///
/// Generic, so that the test becomes part of the loop: it runs for every row of the store.
fn keep(selected: &mut Option<Bitmap>, rows: usize, test: impl Fn(usize) -> bool) {
    if let Some(some) = selected {
        for (number, word) in some.words_mut().iter_mut().enumerate() {
            let mut left = *word;
            while left != 0 {
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                if !test(number * 64 + bit) {
                    *word &= !(1 << bit);
                }
            }
        }
        return;
    }
    let words = (0..rows).step_by(64).map(|start| {
        let passing = |word, row| word | u64::from(test(row)) << (row - start);
        (start..rows.min(start + 64)).fold(0, passing)
    });
    *selected = Some(bitmap(words.collect()));
}

fn bitmap(words: Vec<u64>) -> Bitmap {
    let mut set = Bitmap::new();
    *set.words_mut() = words;
    set
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Metric;
    use crate::vector::scan::tests::noise;

    #[test]
    fn a_search_finds_the_same_with_every_processor() {
        let mut tail = Tail::new(8, true).unwrap();
        for row in 0..40_000 {
            tail.append(row, &noise(row as u64 % 20_000, 8)).unwrap();
        }
        let odd: Bitmap = (1..40_000).step_by(2).collect();
        for filter in [None, Some(odd.words())] {
            let blocks = [ScanBlock {
                block: tail.block(),
                filter,
                deleted: None,
            }];
            for seed in 0..20 {
                let query = Query::new(&noise(seed + 50_000, 8), Metric::L2).unwrap();
                let search = Search::new(&blocks, &query, 10, None).unwrap();
                let [one, all] = [false, true].map(|spread| {
                    let no_fetch = |_, _, _: &mut [f32]| Ok::<_, ()>(());
                    let by_row = |a: &Hit, b: &Hit| a.at.cmp(&b.at);
                    let found = search.finish(scan(&search, spread), no_fetch, by_row);
                    found.unwrap().hits
                });
                assert_eq!(one, all);
            }
        }
    }
}
