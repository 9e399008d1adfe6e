//! One file, used by every handle and thread of a process.

use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::SystemTime;

use crewai_native_sdk::files;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::vector::{Bitmap, Segment};

use super::alone::Alone;
use super::aside::{Asides, Flag, Work};
use super::error::{Result, StoreError};
use super::filter::{Filter, has_metadata};
use super::groups::Groups;
use super::mirror::{Mirror, Request};
use super::process::{Process, Scan};
use super::queue::WriterQueue;
use super::read::{self, ScopeInfo};
use super::record::{Embedding, Record};
use super::schema;
use super::scope::ROOT;
use super::snapshot;
use super::sweep;
use super::transaction::Transaction;
use super::write::{Write, unreadable};

/// Idle connections kept for readers; more are opened when more threads read, and closed after.
const IDLE_READERS: usize = 8;
/// Pages that connections may keep, in KiB.
pub(super) const READER_CACHE: i64 = 4 << 10;
const WRITER_CACHE: i64 = 32 << 10;
/// Bytes of log after which they are written back in the background, and after which a writer does
/// it itself: it outruns the disk.
const LONG_LOG: u32 = 16 << 20;
const LOG_LIMIT: u32 = 8 * LONG_LOG;
/// How often a search lets writers overtake it before it makes them wait.
const OPTIMISTIC_TRIES: usize = 3;

/// The operations on one file. Every method may block: on the disk, on other writers.
///
/// The file is opened at the first use, created (with its directory) by the first write, and
/// noticed when another process creates, replaces or removes it.
pub struct Engine {
    path: PathBuf,
    queue: WriterQueue,
    writer: Mutex<Option<Link>>,
    readers: Mutex<Vec<Link>>,
    pub(super) mirror: RwLock<(Option<Identity>, Mirror)>,
    pub(super) sealing: Sealing,
    pub(super) groups: Groups,
    write_back: WriteBack,
    /// Whether vectors that are nobody's are being deleted.
    pub(super) sweeping: AtomicBool,
    pub(super) asides: Arc<Asides>,
    /// The number of its last use among those of all engines.
    used: AtomicU64,
    /// Whether a write is on the disk before it is acknowledged.
    synchronous: AtomicBool,
    /// For threads that outlive the call which started them.
    pub(super) this: Weak<Self>,
}

/// What a process holds of a store to search it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Rows in mapped segments, deleted ones among them.
    pub sealed: usize,
    /// Rows in memory.
    pub in_memory: usize,
    /// Rows in groups, for approximate searches.
    pub grouped: usize,
    /// Why the last attempt to seal failed. Searches are right all the same.
    pub seal_failure: Option<String>,
}

/// The state of sealing in the background.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    pub(super) busy: AtomicBool,
    pub(super) failure: Mutex<Option<String>>,
}

/// The state of writing the log back in the background.
#[derive(Debug, Default)]
struct WriteBack {
    busy: AtomicBool,
    /// Length of the log, in bytes of pages, when it was last begun.
    begun_at: AtomicU32,
}

/// A connection and the file that it was opened on.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    /// Bytes in a page of the file.
    page: u32,
    /// Whether a commit waits for the disk.
    synchronous: bool,
    /// What the file was like, if SQLite was told that it does not change.
    alone: Option<Alone>,
}

impl Link {
    /// Whether it shows what is in the file at `path`, of this identity.
    fn shows(&self, path: &Path, identity: Identity) -> bool {
        self.identity == identity && (self.alone.is_none() || self.alone == Alone::of(path))
    }

    /// A read transaction: what it sees does not change.
    pub(super) fn begin(&self) -> Result<Transaction<'_>> {
        Ok(Transaction::read(&self.connection)?)
    }
}

/// Which file a path names, so that a store that was replaced is not taken for the old one. The number
/// of a removed file is soon another one's, hence also when it was born, where the file system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u64, Option<SystemTime>);

impl Engine {
    /// An engine for `path`; opens nothing.
    pub fn new(path: PathBuf) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            queue: WriterQueue::new(&path),
            writer: Mutex::default(),
            readers: Mutex::default(),
            mirror: RwLock::new((None, Mirror::new(&snapshot::directory(&path)))),
            sealing: Sealing::default(),
            groups: Groups::default(),
            write_back: WriteBack::default(),
            sweeping: AtomicBool::new(false),
            asides: Arc::default(),
            used: AtomicU64::new(0),
            synchronous: AtomicBool::new(false),
            this: Weak::clone(this),
            path,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on, has every write of this process reach the disk before it is acknowledged.
    pub fn make_synchronous(&self) {
        self.synchronous.store(true, Ordering::Relaxed);
    }

    /// Stores all records or, on an error, none.
    pub fn save(&self, records: &[Record]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let lengths = || {
            records
                .iter()
                .filter_map(|record| record.embedding.as_ref().map(Embedding::dimension))
        };
        if let Some(first) = lengths().next()
            && let Some(other) = lengths().find(|&length| length != first)
        {
            return Err(StoreError::Dimension {
                stored: first,
                given: other,
            });
        }
        self.write(true, |write| write.put(records)).map(|_| ())
    }

    /// Sets `last_accessed` of the records with these ids to `at` (µs since 1970 UTC).
    pub fn touch(&self, ids: &[String], at: i64) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.write(false, |write| write.touch(ids, at)).map(|_| ())
    }

    /// Deletes the records that match `filter` and, when given, have one of `ids`.
    pub fn delete(&self, filter: &Filter, ids: Option<&[String]>) -> Result<usize> {
        let deleted = self.write(false, |write| write.delete(filter, ids))?;
        Ok(deleted.unwrap_or(0))
    }

    /// Deletes a scope's records; of the root, everything including the dimension.
    pub fn reset(&self, scope: &str) -> Result<()> {
        self.write(false, |write| {
            if scope == ROOT {
                write.clear()?;
                write.forget_dimension()
            } else {
                let filter = Filter {
                    scope: Some(scope.to_owned()),
                    ..Filter::default()
                };
                write.delete(&filter, None).map(|_| ())
            }
        })
        .map(|_| ())
    }

    /// The most similar records that match, best first; equal scores by id.
    pub fn search(&self, request: &Request<'_>) -> Result<Vec<(Record, f64)>> {
        self.read(Vec::new(), |link| {
            // Before any lock: whoever waits here holds nobody up.
            let scan = Process::current().scan();
            let mut tries = 0;
            loop {
                // The transaction must not be older than the mirror, or catching up would go
                // back; hence it begins under the mirror's lock.
                let shared = self.mirror.read().unwrap_or_else(PoisonError::into_inner);
                let transaction = link.begin()?;
                if shared.0 == Some(link.identity) && shared.1.is_current(&transaction)? {
                    return self.find(&shared.1, &transaction, request, &scan);
                }
                drop(transaction);
                drop(shared);
                let mut own = self.mirror.write().unwrap_or_else(PoisonError::into_inner);
                let transaction = link.begin()?;
                if own.0 != Some(link.identity) {
                    let directory = snapshot::directory(&self.path);
                    *own = (Some(link.identity), Mirror::new(&directory));
                }
                if !own.1.is_current(&transaction)? {
                    own.1.catch_up(&transaction, &|| true)?;
                    self.verify_aside(own.1.take_unverified());
                    if own.1.wants_sealing() && !self.sealing_failed() {
                        self.seal_aside();
                    }
                }
                tries += 1;
                if tries == OPTIMISTIC_TRIES {
                    return self.find(&own.1, &transaction, request, &scan);
                }
            }
        })
    }

    /// The record with this id.
    pub fn get(&self, id: &str) -> Result<Option<Record>> {
        self.read(None, |link| read::by_id(&link.connection, id))
    }

    /// Which of these records are stored and came from `source`.
    pub fn are_from(&self, ids: &[String], source: &str) -> Result<Vec<bool>> {
        self.read(vec![false; ids.len()], |link| {
            let transaction = link.begin()?;
            read::are_from(&transaction, ids, source)
        })
    }

    /// Records of a scope, newest first; of the same age, last saved first.
    pub fn list(&self, scope: &str, limit: usize, offset: usize) -> Result<Vec<Record>> {
        self.read(Vec::new(), |link| {
            let transaction = link.begin()?;
            read::list(&transaction, scope, limit, offset)
        })
    }

    /// What a scope holds.
    pub fn scope_info(&self, scope: &str) -> Result<ScopeInfo> {
        self.read(ScopeInfo::default(), |link| {
            let transaction = link.begin()?;
            read::scope_info(&transaction, scope)
        })
    }

    /// Paths one level below `scope`, sorted.
    pub fn children(&self, scope: &str) -> Result<Vec<String>> {
        self.read(Vec::new(), |link| read::children(&link.connection, scope))
    }

    /// Category names in a scope, sorted, and how many records have each.
    pub fn categories(&self, scope: &str) -> Result<Vec<(String, usize)>> {
        self.read(Vec::new(), |link| read::categories(&link.connection, scope))
    }

    /// Number of records in a scope.
    pub fn count(&self, scope: &str) -> Result<usize> {
        self.read(0, |link| read::count(&link.connection, scope))
    }

    /// Deletes what is left of deleted records, seals what searches need into files, hands freed space
    /// back to the file system, and empties the write-ahead log.
    pub fn optimize(&self) -> Result<()> {
        self.sweep()?;
        if self.path.exists() {
            self.seal(true)?;
            self.remember(Ok(()));
        }
        let _pass = Process::current().enter();
        if !self.path.exists() {
            return Ok(());
        }
        let _turn = self.queue.wait(identity(&self.path)?)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(link) = self.linked(&mut writer)? else {
            return Ok(());
        };
        vacuum(&link.connection)
            .and_then(|()| {
                link.connection
                    .execute_batch("PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE)")
            })
            .map_err(|error| StoreError::from(error).at(&self.path))
    }

    /// What this process holds to search the store. Opens nothing.
    pub fn holdings(&self) -> Holdings {
        let mirror = self.mirror.read().unwrap_or_else(PoisonError::into_inner);
        let failure = self.sealing.failure.lock();
        Holdings {
            sealed: mirror.1.rows_sealed(),
            in_memory: mirror.1.rows_in_memory(),
            grouped: self.groups.rows(),
            seal_failure: failure.unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Whether sealing failed; then only [`Engine::optimize`] tries again.
    fn sealing_failed(&self) -> bool {
        let failure = self.sealing.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Closes every connection without tidying up; the next operation opens them again. Nothing
    /// may be in progress.
    pub fn disconnect(&self) {
        self.queue.close();
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        for link in readers.drain(..).chain(writer.take()) {
            // The last connection of a process would otherwise write the whole log back first.
            // If the setting fails, it does, which is slower and no less correct.
            drop(
                link.connection
                    .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true),
            );
        }
    }

    /// Closes the connections that are not in use, as if this were the end: the log is written back. The
    /// next operation opens one again. Waits for no other operation.
    pub fn rest(&self) {
        self.queue.close();
        let readers = self
            .readers
            .try_lock()
            .map(|mut idle| mem::take(&mut *idle));
        let writer = self.writer.try_lock().map(|mut writer| writer.take());
        // No longer under the locks: that may wait for the disk.
        drop((readers, writer));
    }

    /// Whether there are connections, as far as can be said without waiting.
    pub fn is_open(&self) -> bool {
        self.readers
            .try_lock()
            .is_ok_and(|readers| !readers.is_empty())
            || self.writer.try_lock().is_ok_and(|writer| writer.is_some())
    }

    /// The number of its last use; see [`Process::next_use`].
    pub fn last_use(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn note_use(&self) {
        self.used
            .store(Process::current().next_use(), Ordering::Relaxed);
    }

    /// Runs `work` with a connection, or gives `absent` where there is no store.
    pub(super) fn read<T>(&self, absent: T, work: impl FnOnce(&Link) -> Result<T>) -> Result<T> {
        let _pass = Process::current().enter();
        let Some(identity) = identity(&self.path)? else {
            return Ok(absent);
        };
        self.note_use();
        let idle = self
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .filter(|link| link.shows(&self.path, identity));
        let link = match idle {
            Some(link) => link,
            None => match self.link(READER_CACHE)? {
                Some(link) => link,
                None => return Ok(absent),
            },
        };
        let done = work(&link).map_err(|error| error.at(&self.path));
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection on which something failed is not worth trusting again.
        if done.is_ok() && readers.len() < IDLE_READERS {
            readers.push(link);
        }
        done
    }

    /// Runs `work` in a write transaction; `None` where there is no store and `create` is false.
    pub(super) fn write<T>(
        &self,
        create: bool,
        work: impl FnOnce(&mut Write<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let _pass = Process::current().enter();
        self.transact(create, work)
    }

    /// [`Engine::write`] for a caller that is inside the gate already.
    pub(super) fn transact<T>(
        &self,
        create: bool,
        work: impl FnOnce(&mut Write<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.note_use();
        loop {
            let known = identity(&self.path)?;
            if known.is_none() {
                if !create {
                    return Ok(None);
                }
                if let Some(directory) = self.path.parent() {
                    files::create_dir_all(directory)
                        .map_err(|error| StoreError::io(directory, error))?;
                }
            }
            let _turn = self.queue.wait(known)?;
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if self.linked(&mut writer)?.is_none() && create {
                if known.is_some() {
                    // It went away meanwhile, and this may be the queue that went with it.
                    continue;
                }
                Process::current().make_room();
                schema::create(&self.path)?;
                self.linked(&mut writer)?;
            }
            return self.transact_on(&mut writer, work);
        }
    }

    /// Runs `work` in a transaction of the writer's connection, if there is one.
    fn transact_on<T>(
        &self,
        writer: &mut Option<Link>,
        work: impl FnOnce(&mut Write<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(link) = writer.as_mut() else {
            return Ok(None);
        };
        let done = Write::begin(&link.connection).and_then(|mut write| {
            let value = work(&mut write)?;
            let leaves = write.leaves;
            write.commit()?;
            Ok((value, leaves))
        });
        match &done {
            Ok((_, leaves)) => {
                if *leaves {
                    self.sweep_aside();
                }
                self.write_back(link);
            }
            Err(_) => *writer = None,
        }
        done.map(|(value, _)| Some(value))
            .map_err(|error| error.at(&self.path))
    }

    /// Has the log written back to the file if it is long, after a commit on `link`.
    ///
    /// That syncs twice, for which no writer should wait. A failure loses nothing: the log holds
    /// everything, and the next attempt begins where this one ended.
    fn write_back(&self, link: &Link) {
        let length = schema::log_pages().saturating_mul(link.page);
        let begun_at = &self.write_back.begun_at;
        if length < begun_at.load(Ordering::Relaxed) {
            begun_at.store(0, Ordering::Relaxed); // the log began anew
        }
        if length >= LOG_LIMIT {
            drop(schema::write_back(&link.connection));
        } else if length - begun_at.load(Ordering::Relaxed) >= LONG_LOG
            && !self.write_back.busy.load(Ordering::Acquire)
        {
            begun_at.store(length, Ordering::Relaxed);
            let flag: Flag = |engine| &engine.write_back.busy;
            let started = self.aside("crewai-native-log", Work::Writes, Some(flag), |engine| {
                let _pass = Process::current().enter();
                if let Ok(Some(link)) = engine.link(READER_CACHE) {
                    drop(schema::write_back(&link.connection));
                }
            });
            if started.is_err() {
                drop(schema::write_back(&link.connection));
            }
        }
    }

    /// The writer's connection, opened again if the file is another one by now.
    fn linked<'w>(&self, writer: &'w mut Option<Link>) -> Result<Option<&'w mut Link>> {
        let identity = identity(&self.path)?;
        if writer.as_ref().map(|link| link.identity) != identity {
            *writer = self.link(WRITER_CACHE)?;
            if let Some(link) = writer {
                schema::watch_log(&link.connection);
            }
        }
        if let Some(link) = writer.as_mut()
            && !link.synchronous
            && self.synchronous.load(Ordering::Relaxed)
        {
            schema::make_synchronous(&link.connection)?;
            link.synchronous = true;
        }
        Ok(writer.as_mut())
    }

    pub(super) fn link(&self, cache: i64) -> Result<Option<Link>> {
        // The identity first: if the file is replaced in between, the link looks stale and is
        // opened again, instead of passing for the new file.
        let Some(identity) = identity(&self.path)? else {
            return Ok(None);
        };
        Process::current().make_room();
        let Some((connection, alone)) = schema::open(&self.path, cache)? else {
            return Ok(None);
        };
        let located = |error: rusqlite::Error| StoreError::from(error).at(&self.path);
        let page = connection
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .map_err(located)?;
        // A process ended before it was done.
        if alone.is_none() && sweep::is_due(&connection).map_err(located)? {
            self.sweep_aside();
        }
        Ok(Some(Link {
            connection,
            identity,
            page,
            synchronous: false,
            alone,
        }))
    }

    fn find(
        &self,
        mirror: &Mirror,
        connection: &Connection,
        request: &Request<'_>,
        scan: &Scan<'_>,
    ) -> Result<Vec<(Record, f64)>> {
        if let Some(stored) = mirror.dimension()
            && stored != request.query.dimension()
        {
            return Err(StoreError::Dimension {
                stored,
                given: request.query.dimension(),
            });
        }
        let metric = request.query.metric();
        let groups =
            |segment: &Segment, deleted: &Bitmap| self.groups(segment.path(), metric, deleted);
        let search = |trust| {
            mirror
                .search(connection, request, trust, scan.may_spread(), &groups)?
                .into_iter()
                .map(|found| {
                    let record = read::found(connection, found.record, found.id, found.vector)?;
                    Ok((record, found.score))
                })
                .collect::<Result<Vec<_>>>()
        };
        let found = search(true)?;
        if let Some(wanted) = &request.filter.metadata {
            for (record, _) in &found {
                if !has_metadata(&record.metadata, wanted).map_err(unreadable)? {
                    // Two values with one hash: once in a lifetime, and wrong all the same.
                    return search(false);
                }
            }
        }
        Ok(found)
    }
}

/// Hands free pages back. The statement frees one with each step, and a batch takes one step.
fn vacuum(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("PRAGMA incremental_vacuum")?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}

pub(super) fn identity(path: &Path) -> Result<Option<Identity>> {
    match fs::metadata(path) {
        #[cfg(unix)]
        Ok(file) => {
            use std::os::unix::fs::MetadataExt;
            Ok(Some(Identity(file.dev(), file.ino(), file.created().ok())))
        }
        // Where an open file cannot be removed, it cannot have been replaced.
        #[cfg(not(unix))]
        Ok(_) => Ok(Some(Identity(0, 0, None))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::numbered;
    use super::*;

    #[test]
    fn a_store_keeps_the_pages_that_it_was_made_with() {
        let directory = tempfile::tempdir().unwrap();
        let record = |number: usize| Record {
            content: "long ".repeat(number * 37 % 1500),
            scope: format!("/a/{}", number % 3),
            created_at: number as i64 * 7 % 50,
            embedding: Some(vec![number as f32; 1536].into_boxed_slice().into()),
            ..numbered(number)
        };
        let page = |path: &Path| {
            let connection = Connection::open(path).unwrap();
            let size = connection.pragma_query_value(None, "page_size", |row| row.get(0));
            size.unwrap()
        };
        let contents = |engine: &Engine| {
            assert_eq!(engine.check().unwrap(), Vec::<String>::new());
            engine.list("/", 1000, 0).unwrap()
        };
        let stores = [("new.db", 2048), ("old.db", 4096)].map(|(name, size)| {
            let path = directory.path().join(name);
            let engine = Engine::new(path.clone());
            engine
                .save(&(0..40).map(record).collect::<Vec<_>>())
                .unwrap();
            engine.disconnect();
            if size == 4096 {
                // As stores were made before.
                Connection::open(&path)
                    .unwrap()
                    .execute_batch(
                        "PRAGMA journal_mode = DELETE; PRAGMA page_size = 4096; VACUUM;
                         PRAGMA journal_mode = WAL",
                    )
                    .unwrap();
            }
            assert_eq!(page(&path), size);
            // Longer than the log may become before it is written back.
            for from in (0..4000).step_by(1000) {
                let records: Vec<_> = (from..from + 1000).map(record).collect();
                engine.save(&records).unwrap();
            }
            engine.touch(&["r7".to_owned()], 5).unwrap();
            let ids: Vec<_> = (100..4000).map(|number| format!("r{number}")).collect();
            assert_eq!(
                engine.delete(&Filter::default(), Some(&ids)).unwrap(),
                ids.len()
            );
            engine.optimize().unwrap();
            engine
                .save(&(90..120).map(record).collect::<Vec<_>>())
                .unwrap();
            let copy = directory.path().join(format!("copy-{name}"));
            assert!(engine.backup(&copy).unwrap());
            let stored = contents(&engine);
            assert_eq!(contents(&Engine::new(copy.clone())), stored);
            engine.disconnect();
            assert_eq!((page(&path), page(&copy)), (size, size));
            stored
        });
        assert_eq!(stores[0].len(), 120);
        assert_eq!(stores[0], stores[1]);
    }

    #[test]
    fn a_vector_that_does_not_come_takes_its_batch_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::new(directory.path().join("memory.db"));
        let mut records: Vec<_> = (0..3).map(numbered).collect();
        engine.save(&records[..1]).unwrap();
        // Of another length than announced, none, and at last the right one; also for a record that
        // is stored already, whose vector is compared.
        for (at, given) in [
            (2, Some(3)),
            (2, None),
            (0, None),
            (0, Some(2)),
            (2, Some(2)),
        ] {
            let embedding = Embedding::to_come(2);
            records[at].embedding = Some(embedding);
            let embedding = records[at].embedding.as_ref().unwrap();
            let saved = std::thread::scope(|scope| {
                let saving = scope.spawn(|| engine.save(&records));
                std::thread::sleep(std::time::Duration::from_millis(10));
                assert!(!saving.is_finished());
                let components = given.map(|length| vec![7.0; length].into_boxed_slice());
                assert_eq!(embedding.arrive(components), given == Some(2));
                saving.join().unwrap()
            });
            if given == Some(2) {
                saved.unwrap();
                assert_eq!(engine.list("/", 9, 0).unwrap().len(), 3);
            } else {
                assert!(matches!(saved, Err(StoreError::Withheld)));
                assert_eq!(engine.list("/", 9, 0).unwrap().len(), 1);
                records[at].embedding = numbered(at).embedding;
            }
        }
        assert_eq!(engine.check().unwrap(), Vec::<String>::new());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_got_the_number_of_a_removed_one_is_another() {
        use std::os::unix::fs::MetadataExt;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let write = || {
            fs::write(&path, "x").unwrap();
            fs::metadata(&path).unwrap()
        };
        for _ in 0..20 {
            let before = write();
            let known = identity(&path).unwrap();
            fs::remove_file(&path).unwrap();
            // File systems count time in steps of a few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let after = write();
            if before.ino() == after.ino() && before.created().is_ok() {
                assert_ne!(identity(&path).unwrap(), known);
                return;
            }
        }
    }

    #[test]
    fn a_synchronous_store_waits_for_the_disk_with_every_commit() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::new(directory.path().join("memory.db"));
        let level = || {
            engine
                .set_note(super::super::care::Note::Import, "x")
                .unwrap();
            let writer = engine.writer.lock().unwrap();
            let connection = &writer.as_ref().unwrap().connection;
            connection
                .pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(level(), 1);
        engine.make_synchronous();
        assert_eq!(level(), 2);
        engine.disconnect();
        assert_eq!(level(), 2);
    }
}
