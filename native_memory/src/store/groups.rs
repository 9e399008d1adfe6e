//! Approximate search: groups of the rows of segments, made in the background.
//!
//! They belong to a process, and are made again by the next one: making them takes seconds, and
//! until they are there a search is exact.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use crate::vector::{Bitmap, Metric, PartitionError, Partitions, Segment};

use super::aside::{Flag, Work};
use super::engine::Engine;
use super::error::StoreError;
use super::process::Process;

/// Rows of a segment from which groups pay: fewer are searched in well under a millisecond.
pub const GROUP_ROWS: usize = 8192;

/// A segment's file, and the metric that its rows were grouped for.
type Key = (PathBuf, Metric);

/// The groups of a store's segments.
#[derive(Default)]
pub(super) struct Groups {
    /// `None` where they could not be made.
    made: Mutex<HashMap<Key, Option<Arc<Partitions>>>>,
    busy: AtomicBool,
}

impl Groups {
    /// The number of rows that are in groups, for any metric.
    pub(super) fn rows(&self) -> usize {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.values().flatten().map(|groups| groups.rows()).sum()
    }
}

impl Engine {
    /// The groups of a segment, or nothing yet: then they are made, unless others are being made.
    pub(super) fn groups(
        &self,
        segment: &Path,
        metric: Metric,
        deleted: &Bitmap,
    ) -> Option<Arc<Partitions>> {
        let key = (segment.to_owned(), metric);
        let known = {
            let made = self.groups.made.lock();
            let made = made.unwrap_or_else(PoisonError::into_inner);
            made.get(&key).cloned()
        };
        known.unwrap_or_else(|| {
            self.group_aside(key, deleted.clone());
            None
        })
    }

    fn group_aside(&self, key: Key, deleted: Bitmap) {
        let flag: Flag = |engine| &engine.groups.busy;
        // No part of this uses SQLite: a fork need not wait for it.
        let group = move |engine: &Arc<Self>| {
            // A segment that has been replaced meanwhile is not in use any more.
            let Ok(segment) = Segment::open(&key.0) else {
                return;
            };
            let go_on = || !Process::current().is_ending();
            let made = Partitions::build(&segment.block(), Some(deleted.words()), key.1, &go_on);
            let made = match made {
                Ok(groups) => Some(Arc::new(groups)),
                Err(PartitionError::Stopped) => return,
                Err(error) => {
                    engine.remember(Err(StoreError::Failed {
                        path: key.0.clone(),
                        detail: format!("its rows cannot be grouped: {error}"),
                    }));
                    None
                }
            };
            let mut all = engine
                .groups
                .made
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.retain(|(path, _), _| path.exists());
            all.insert(key, made);
        };
        let started = self.aside("crewai-native-group", Work::Reads, Some(flag), group);
        if let Err(error) = started {
            self.remember(Err(StoreError::io(self.path(), error)));
        }
    }
}
