//! A handle on a file, cheap to make and to drop, that survives a fork.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;

use crate::engine::{DbError, Engine, Schema};
use crate::process::Process;

use super::error::raise;

/// A file at a path. All handles on one file in one process share what it needs.
pub(super) struct Handle {
    path: PathBuf,
    schema: &'static Schema,
    /// The engine and the process that it belongs to. Only locked while attached to Python, so
    /// never held by another thread when a fork happens.
    engine: Mutex<Option<(u32, Arc<Engine>)>>,
}

impl Handle {
    pub(super) fn new(path: &Path, schema: &'static Schema) -> Self {
        Self {
            path: resolved(path),
            schema,
            engine: Mutex::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` with the GIL released.
    pub(super) fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Engine) -> Result<T, DbError> + Send,
    ) -> PyResult<T> {
        let engine = self.engine();
        py.detach(|| work(&engine)).map_err(raise)
    }

    /// Lets go of the file; the next call opens it again.
    pub(super) fn close(&self, py: Python<'_>) {
        let held = self
            .engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match held {
            Some((pid, engine)) if pid == std::process::id() => py.detach(|| {
                let _pass = Process::current().enter();
                drop(engine);
            }),
            inherited => std::mem::forget(inherited),
        }
    }

    pub(super) fn engine(&self) -> Arc<Engine> {
        let process = Process::current();
        let mut held = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((pid, engine)) if *pid == process.pid() => Arc::clone(engine),
            _ => {
                let engine = process.engine(&self.path, self.schema);
                // The engine of the process that forked this one, if any, is left alone: its
                // locks and connections are not this process's to touch.
                std::mem::forget(held.replace((process.pid(), Arc::clone(&engine))));
                engine
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let held = self
            .engine
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Closing may write to the disk. With the GIL held all the same: a fork holds it, too, so
        // the two exclude one another, also when garbage is collected in the middle of a fork.
        if held
            .as_ref()
            .is_some_and(|(pid, _)| *pid != std::process::id())
        {
            std::mem::forget(held);
        }
    }
}

/// The path without links and relative parts, as far as it exists, so that two ways to write it
/// lead to one engine.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute
        .ancestors()
        .find_map(|ancestor| {
            let real = std::fs::canonicalize(ancestor).ok()?;
            let rest = absolute.strip_prefix(ancestor).ok()?;
            Some(if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            })
        })
        .unwrap_or(absolute)
}
