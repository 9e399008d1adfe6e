//! Sealing: what search indexes hold in memory becomes files that all processes map.
//!
//! It happens aside from everything else, on a connection and a mirror of its own, so that it
//! holds nobody up. One process at a time seals a store; the others take over the result.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::vector::{Segment, SegmentError};

use super::aside::{Flag, Work};
use super::engine::{Engine, Link, READER_CACHE, identity};
use super::error::{Result, StoreError};
use super::mirror::Mirror;
use super::process::Process;
use super::snapshot::{self, Snapshot};

/// How often sealing gives way to a fork before it has one wait: a program that forks all the time
/// would otherwise never have anything sealed.
const GIVES_WAY: usize = 3;

impl Engine {
    /// Seals in a thread of its own, unless one is at it already.
    pub(super) fn seal_aside(&self) {
        let flag: Flag = |engine| &engine.sealing.busy;
        let started = self.aside("crewai-native-seal", Work::Writes, Some(flag), |engine| {
            match engine.seal(false) {
                // Whoever opens the store next seals it.
                Err(StoreError::Stopped) => {}
                done => engine.remember(done),
            }
        });
        if let Err(error) = started {
            self.remember(Err(StoreError::io(self.path(), error)));
        }
    }

    /// Compares segments with their checksums, in a thread of its own.
    ///
    /// A flipped bit in a code could make a search pass over a row. Reading everything first
    /// would make opening a large store slow; so the first searches are not held up, and a
    /// segment that is damaged goes out of use, here and for who opens the store next.
    pub(super) fn verify_aside(&self, segments: Vec<PathBuf>) {
        if segments.is_empty() {
            return;
        }
        // No part of this uses SQLite: a fork need not wait for it.
        let started = self.aside("crewai-native-verify", Work::Reads, None, |engine| {
            let process = Process::current();
            for path in segments {
                // One that has been replaced meanwhile is not in use any more.
                let Ok(segment) = Segment::open(&path) else {
                    continue;
                };
                match segment.verify(&|| !process.is_ending()) {
                    Ok(()) => {}
                    Err(SegmentError::Stopped(_)) => return,
                    Err(error) => engine.retire(&path, &error),
                }
            }
        });
        if let Err(error) = started {
            self.remember(Err(StoreError::io(self.path(), error)));
        }
    }

    /// Takes a damaged segment out of use.
    fn retire(&self, path: &Path, error: &SegmentError) {
        let removed = fs::remove_file(path);
        let directory = snapshot::directory(self.path());
        let mut shared = self.mirror.write().unwrap_or_else(PoisonError::into_inner);
        *shared = (None, Mirror::new(&directory));
        drop(shared);
        self.remember(Err(StoreError::Failed {
            path: path.to_owned(),
            detail: match removed {
                Ok(()) => format!("{error}; removed, and made again by optimize"),
                Err(second) => format!("{error}; {second}"),
            },
        }));
    }

    /// Seals now, if there is enough to seal. A fork meanwhile makes it begin again. While another
    /// thread or process is sealing the store, it does nothing, or waits and seals what is left.
    pub(super) fn seal(&self, wait: bool) -> Result<()> {
        let process = Process::current();
        for _ in 0..GIVES_WAY {
            match self.seal_while(wait, &|| !process.is_ending() && !process.is_forking()) {
                Err(StoreError::Stopped) if !process.is_ending() => {}
                done => return done,
            }
        }
        self.seal_while(wait, &|| !process.is_ending())
    }

    fn seal_while(&self, wait: bool, go_on: &dyn Fn() -> bool) -> Result<()> {
        let _pass = Process::current().enter();
        let Some(link) = self.link(READER_CACHE)? else {
            return Ok(());
        };
        let directory = snapshot::directory(self.path());
        let mut mirror = Mirror::new(&directory);
        let catch_up = |mirror: &mut Mirror| {
            let located = |error: StoreError| error.at(self.path());
            let transaction = link.begin().map_err(located)?;
            mirror.catch_up(&transaction, go_on).map_err(located)
        };
        catch_up(&mut mirror)?;
        if !mirror.wants_sealing() {
            return Ok(());
        }
        let io = |error| StoreError::io(&directory, error);
        // Not what is above it: whoever has removed the store meanwhile is to have none of it back.
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
        let lock = File::create(directory.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if wait => lock.lock().map_err(io)?,
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // Somebody else may have been first.
        catch_up(&mut mirror)?;
        if !mirror.wants_sealing() {
            return Ok(());
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let unique = format!("{}-{}", std::process::id(), now.as_nanos());
        let (name, mut needed) = mirror.seal(&unique, go_on)?;
        drop(mirror);
        // A store that took this one's place meanwhile has other records: what was written is
        // nobody's, and goes when that one is sealed.
        let published = self.transact(false, |write| {
            if identity(self.path())? == Some(link.identity) {
                write.publish(&name).map(Some)
            } else {
                Ok(None)
            }
        })?;
        let Some(before) = published.flatten() else {
            return Ok(());
        };
        // A process that is just reading the snapshot before this one still finds its files.
        if let Some(before) = before {
            let parts = Snapshot::read(&directory, &before).map_or(Vec::new(), |old| old.parts);
            needed.extend(parts.into_iter().map(|part| part.file));
            needed.push(before);
        }
        sweep(&directory, &needed).map_err(io)?;
        self.adopt(&link, &directory)
    }

    /// Takes the new snapshot into use here.
    fn adopt(&self, link: &Link, directory: &Path) -> Result<()> {
        let located = |error: StoreError| error.at(self.path());
        let mut fresh = Mirror::new(directory);
        {
            let transaction = link.begin().map_err(located)?;
            fresh.catch_up(&transaction, &|| true).map_err(located)?;
        }
        let mut shared = self.mirror.write().unwrap_or_else(PoisonError::into_inner);
        // Under the lock only what was committed meanwhile is left to read.
        let transaction = link.begin().map_err(located)?;
        fresh.catch_up(&transaction, &|| true).map_err(located)?;
        *shared = (Some(link.identity), fresh);
        Ok(())
    }

    /// Keeps why sealing failed, for whoever watches.
    pub(super) fn remember(&self, done: Result<()>) {
        let mut failure = self
            .sealing
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *failure = done.err().map(|error| error.to_string());
    }
}

/// Removes segments and snapshots that nobody needs, and what processes that died left.
fn sweep(directory: &Path, needed: &[String]) -> std::io::Result<()> {
    let needed: HashSet<&str> = needed.iter().map(String::as_str).chain(["lock"]).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| !needed.contains(name))
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::numbered;
    use super::super::schema::sibling;
    use super::super::write::meta_text;
    use super::*;

    #[test]
    fn what_was_sealed_of_a_store_is_not_published_in_one_that_took_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("x.db"), directory.path().join("y.db"));
        let store = Engine::new(path.clone());
        let records: Vec<_> = (0..2100).map(numbered).collect();
        store.save(&records).unwrap();
        Engine::new(other.clone()).save(&records[..1]).unwrap();

        let lock = snapshot::directory(&path).join("lock");
        let replace = || {
            // From here on it writes files.
            if lock.exists() && other.exists() {
                for suffix in ["", "-wal", "-shm"] {
                    fs::rename(
                        sibling(&path, suffix),
                        sibling(&path, &format!("-old{suffix}")),
                    )
                    .unwrap();
                }
                fs::rename(&other, &path).unwrap();
            }
            true
        };
        store.seal_while(false, &replace).unwrap();

        assert!(!other.exists());
        assert_eq!(store.count("/").unwrap(), 1);
        let published = store.read(None, |link| Ok(meta_text(&link.connection, "snapshot")?));
        assert_eq!(published.unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_is_removed_meanwhile_stays_away() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, away) = (directory.path().join("d"), directory.path().join("away"));
        let store = Engine::new(inside.join("x.db"));
        let records: Vec<_> = (0..2100).map(numbered).collect();
        store.save(&records).unwrap();
        let remove = || {
            // The store is open already, and no file of its index has been made.
            if !away.exists() {
                fs::rename(&inside, &away).unwrap();
            }
            true
        };
        store.seal_while(false, &remove).unwrap_err();
        assert!(away.exists());
        assert!(!inside.exists());
    }
}
