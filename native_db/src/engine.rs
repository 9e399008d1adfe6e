//! SQLite files, each used by all threads of a process and shared with other processes.
//!
//! Data flows one way: threads hand their writes to a [`group`], whose transaction waits for the
//! process's [`turn`] and goes through the one writing connection, which has [`reserve`]d room in the
//! log; reads take one of several connections. [`file`] creates and opens. [`Process`] shares engines between handles and takes them
//! through a fork.

pub mod error;
mod file;
mod group;
mod open;
mod reserve;
mod turn;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crewai_native_sdk::files;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};

pub use error::{DbError, Result};
pub use file::Schema;
pub use group::Owner;

use crate::process::Process;

use group::{Group, Job, Work};
use reserve::Reserve;
use turn::Turnstile;

/// Idle connections kept for readers at least; more are opened when more threads read, and closed
/// after.
const IDLE_READERS: usize = 8;
/// How long a write waits for other processes, of which each writes for milliseconds, or, where an
/// old store is imported, for seconds.
const TURN_WAIT: Duration = Duration::from_secs(120);
/// How long to wait for others that write before the file is rewritten.
const VACUUM_WAIT: Duration = Duration::from_secs(600);

/// What a committed write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The death of the process; a power cut can cost the newest commits, never consistency.
    Normal,
    /// A power cut as well.
    Full,
}

impl Durability {
    /// Full where it is to be so, else normal.
    pub fn of(full: bool) -> Self {
        if full { Self::Full } else { Self::Normal }
    }
}

/// The operations on one file. Every method may block: on the disk, on other writers.
///
/// The file is opened at the first use, created (with its directory) by the first write, and
/// noticed when another process creates, replaces or removes it.
pub struct Engine {
    path: PathBuf,
    schema: &'static Schema,
    turnstile: Turnstile,
    group: Group,
    writer: Mutex<Option<Link>>,
    open: Mutex<Option<open::Open>>,
    readers: Mutex<Vec<Link>>,
    idle_readers: AtomicUsize,
    counters: Counters,
}

/// What an engine has done since the process began.
#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    commits: AtomicU64,
    failures: AtomicU64,
}

/// A snapshot of an engine's counters.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// Reads that were served.
    pub reads: u64,
    /// Writes that were committed.
    pub writes: u64,
    /// Transactions in which they were; fewer than writes where threads shared one.
    pub commits: u64,
    /// Writes that failed.
    pub failures: u64,
}

/// A connection and the file that it was opened on.
struct Link {
    connection: Connection,
    identity: Identity,
    durability: Option<Durability>,
    reserve: Reserve,
}

/// Which file a path names, so that a file that was replaced is not taken for the old one. The number
/// of a removed file is soon another one's, hence also when it was born, where the file system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64, Option<SystemTime>);

impl Engine {
    /// An engine for `path`; opens nothing.
    pub fn new(path: PathBuf, schema: &'static Schema) -> Self {
        Self {
            turnstile: Turnstile::new(&path),
            path,
            schema,
            group: Group::default(),
            writer: Mutex::default(),
            open: Mutex::default(),
            readers: Mutex::default(),
            idle_readers: AtomicUsize::new(IDLE_READERS),
            counters: Counters::default(),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps at least so many idle connections for readers from now on.
    pub fn keep_readers(&self, count: usize) {
        self.idle_readers.fetch_max(count, Ordering::Relaxed);
    }

    /// What was done since the process began.
    pub fn statistics(&self) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            reads: read(&self.counters.reads),
            writes: read(&self.counters.writes),
            commits: read(&self.counters.commits),
            failures: read(&self.counters.failures),
        }
    }

    /// Runs `work` in a snapshot, or gives `absent` where there is no file.
    pub fn read<T>(&self, absent: T, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let _pass = Process::current().enter();
        let Some(identity) = identity(&self.path)? else {
            return Ok(absent);
        };
        let idle = self
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .filter(|link| link.identity == identity);
        let link = match idle {
            Some(link) => link,
            None => match self.link()? {
                Some(link) => link,
                None => return Ok(absent),
            },
        };
        let done = link
            .connection
            .unchecked_transaction()
            .map_err(DbError::from)
            .and_then(|snapshot| work(&snapshot))
            .map_err(|error| error.at(&self.path));
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        // A connection on which something failed is not worth trusting again. One that reads what nobody
        // changes is good for so long: somebody else may begin to.
        if done.is_ok() && !link.connection.is_readonly("main").unwrap_or(true) {
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            if readers.len() < self.idle_readers.load(Ordering::Relaxed) {
                readers.push(link);
            }
        }
        done
    }

    /// Runs `work` in a write transaction, which other threads' writes may share: all of what it
    /// does is kept, or on an error nothing of it.
    pub fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _pass = Process::current().enter();
        let value = Arc::new(Mutex::new(None));
        let result = Arc::clone(&value);
        let work = Box::new(move |connection: &Connection| {
            let done = work(connection)?;
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
            Ok(())
        });
        let done = self
            .group
            .run(
                work,
                durability,
                |batch| self.write_batch(batch),
                || self.expire(),
            )
            .map_err(|error| error.at(&self.path));
        let counter = if done.is_ok() {
            &self.counters.writes
        } else {
            &self.counters.failures
        };
        counter.fetch_add(1, Ordering::Relaxed);
        done?;
        let value = value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| {
            DbError::Unreadable("a write was committed without a result".to_owned()).at(&self.path)
        })
    }

    /// As [`write`](Self::write), or gives `absent` where there is no file.
    pub fn amend<T: Send + 'static>(
        &self,
        absent: T,
        durability: Durability,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match identity(&self.path)? {
            Some(_) => self.write(durability, work),
            None => Ok(absent),
        }
    }

    /// Rewrites the file without the space that was freed, and empties the log into it.
    pub fn vacuum(&self) -> Result<()> {
        let _pass = Process::current().enter();
        let Some(there) = identity(&self.path)? else {
            return Ok(());
        };
        let _held = self.held(Owner::this_thread(), VACUUM_WAIT)?;
        let _turn = self.turnstile.wait(Some(there), VACUUM_WAIT)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(link) = self.linked(&mut writer, identity(&self.path)?)? else {
            return Ok(());
        };
        link.connection
            .execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
            .map_err(|error| DbError::from(error).at(&self.path))
    }

    /// Closes every connection without tidying up; the next operation opens them again. Nothing
    /// may be in progress.
    pub fn disconnect(&self) {
        self.turnstile.close();
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

    /// Closes every connection, the last one of all processes emptying the log into the file; the
    /// next operation opens them again. Waits for what is in progress.
    pub fn close(&self) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.clear();
        drop(readers);
        self.abandon(None);
        // Written back if this was the last connection; if that fails, the log stays, and is as
        // good as the file.
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.turnstile.close();
    }

    fn write_batch(&self, batch: Vec<Job>) {
        let durability = batch.iter().map(|job| job.durability).max();
        let (works, tickets): (Vec<_>, Vec<_>) = batch.into_iter().map(Job::split).unzip();
        let failed = |error: &DbError| {
            for ticket in &tickets {
                Job::finish(ticket, Err(error.clone()));
            }
        };
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self
            .prepared(&mut writer, TURN_WAIT)
            .and_then(|(link, _turn)| {
                link.set_durability(durability.unwrap_or(Durability::Full))?;
                transact(link, works)
            });
        match done {
            Ok(outcomes) => {
                self.counters.commits.fetch_add(1, Ordering::Relaxed);
                for (ticket, outcome) in tickets.iter().zip(outcomes) {
                    Job::finish(ticket, outcome);
                }
            }
            Err(error) => {
                *writer = None;
                failed(&error);
            }
        }
    }

    /// The writing connection, and this process's turn to use it, waited for so long at the most.
    fn prepared<'w>(
        &self,
        writer: &'w mut Option<Link>,
        patience: Duration,
    ) -> Result<(&'w mut Link, turn::Turn)> {
        let known = identity(&self.path)?;
        if let (None, Some(directory)) = (known, self.path.parent()) {
            files::create_dir_all(directory).map_err(|error| DbError::io(directory, &error))?;
        }
        let turn = self.turnstile.wait(known, patience)?;
        let mut there = identity(&self.path)?;
        if there.is_none() {
            file::create(&self.path, self.schema)?;
            there = identity(&self.path)?;
        }
        match self.linked(writer, there)? {
            Some(link) => Ok((link, turn)),
            None => Err(DbError::io(
                &self.path,
                &io::Error::new(io::ErrorKind::NotFound, "the file vanished"),
            )),
        }
    }

    /// The writer's connection, opened again if the file that is there is not the one it is to.
    fn linked<'w>(
        &self,
        writer: &'w mut Option<Link>,
        there: Option<Identity>,
    ) -> Result<Option<&'w mut Link>> {
        if writer.as_ref().map(|link| link.identity) != there {
            *writer = self.link()?;
        }
        Ok(writer.as_mut())
    }

    fn link(&self) -> Result<Option<Link>> {
        // The identity first: if the file is replaced in between, the link looks stale and is
        // opened again, instead of passing for the new file.
        let Some(identity) = identity(&self.path)? else {
            return Ok(None);
        };
        Ok(file::open(&self.path, self.schema)?.map(|connection| Link {
            connection,
            identity,
            durability: None,
            reserve: Reserve::default(),
        }))
    }
}

impl Link {
    fn set_durability(&mut self, durability: Durability) -> Result<()> {
        if self.durability != Some(durability) {
            let level = match durability {
                Durability::Normal => "NORMAL",
                Durability::Full => "FULL",
            };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.durability = Some(durability);
        }
        Ok(())
    }
}

/// Runs each work so that its failure takes back only what it did itself; then commits.
fn transact(link: &mut Link, mut works: Vec<Work>) -> Result<Vec<Result<()>>> {
    let mut transaction = link
        .connection
        .transaction_with_behavior(TransactionBehavior::Immediate)?;
    if link.durability == Some(Durability::Full) {
        link.reserve.refill(&transaction);
    }
    if works.len() == 1
        && let Some(work) = works.pop()
    {
        // What it did is all there is to take back.
        let outcome = work_on(&transaction, work)?;
        if outcome.is_err() {
            transaction.rollback()?;
        } else {
            link.reserve.commit(|| transaction.commit())?;
        }
        return Ok(vec![outcome]);
    }
    let mut outcomes = Vec::with_capacity(works.len());
    for work in works {
        let mut part = transaction.savepoint()?;
        let outcome = work_on(&part, work)?;
        if outcome.is_err() {
            part.rollback()?;
        }
        part.commit()?;
        outcomes.push(outcome);
    }
    link.reserve.commit(|| transaction.commit())?;
    Ok(outcomes)
}

/// How a work came out, unless it ended the whole transaction, as a full disk does.
fn work_on(connection: &Connection, work: Work) -> Result<Result<()>> {
    let outcome = work(connection);
    if connection.is_autocommit() {
        return Err(outcome
            .err()
            .unwrap_or_else(|| DbError::Unreadable("SQLite gave up the transaction".to_owned())));
    }
    Ok(outcome)
}

/// What SQLite finds wrong with a file.
pub fn integrity(connection: &Connection) -> Result<Vec<String>> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let found = statement.query_map([], |row| row.get::<_, String>(0))?;
    let mut problems = found.collect::<rusqlite::Result<Vec<_>>>()?;
    problems.retain(|problem| problem != "ok");
    Ok(problems)
}

fn identity(path: &Path) -> Result<Option<Identity>> {
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
        Err(error) => Err(DbError::io(path, &error)),
    }
}
