//! Work in the background of one engine, and waiting for it when the engine is closed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::engine::Engine;
use super::process::Process;

/// How long closing waits for work that writes: sealing 20,000 long vectors takes so long. Longer work goes
/// on, and closes the engine itself.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Threads that work in the background of an engine.
#[derive(Debug, Default)]
pub(super) struct Asides {
    counts: Mutex<Counts>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// Each of which has a reference to the engine.
    running: usize,
    /// Those among them that write files.
    writing: usize,
}

impl Asides {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What work does to the files of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Reads,
    Writes,
}

/// Which flag of an engine says that work of a kind is going on.
pub(super) type Flag = fn(&Engine) -> &AtomicBool;

/// A piece of work, counted until it is dropped, which lets go of the engine first.
struct Aside {
    engine: Option<Arc<Engine>>,
    flag: Option<Flag>,
    writes: usize,
    asides: Arc<Asides>,
}

impl Aside {
    fn let_go(&mut self) {
        if let (Some(engine), Some(flag)) = (self.engine.take(), self.flag) {
            flag(&engine).store(false, Ordering::Release);
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.let_go();
        let mut counts = self.asides.counts();
        counts.running -= 1;
        counts.writing -= self.writes;
        drop(counts);
        self.asides.ended.notify_all();
    }
}

impl Engine {
    /// Runs `work` in a thread of its own, as [`Process::aside`]; not while work with the same flag is
    /// going on.
    pub(super) fn aside(
        &self,
        name: &str,
        kind: Work,
        flag: Option<Flag>,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        if flag.is_some_and(|flag| flag(self).swap(true, Ordering::AcqRel)) {
            return Ok(());
        }
        let writes = usize::from(kind == Work::Writes);
        let mut counts = self.asides.counts();
        let Some(engine) = self.this.upgrade() else {
            return Ok(());
        };
        counts.running += 1;
        counts.writing += writes;
        drop(counts);
        let mut aside = Aside {
            engine: Some(engine),
            flag,
            writes,
            asides: Arc::clone(&self.asides),
        };
        let process = Process::current();
        process.aside(name, move || {
            if let Some(engine) = &aside.engine {
                work(engine);
            }
            // It may be the last that has the engine, and closes it.
            let _pass = process.enter();
            aside.let_go();
        })
    }

    /// Lets go of an engine. The last to do so closes it, after what is written in its background, so
    /// that its directory can be removed; the caller must not be inside the gate.
    pub fn close(self: Arc<Self>) {
        // Others than the threads in the background have it as well: one of them closes it.
        let nobody_else = |running: usize| Arc::strong_count(&self) <= running + 1;
        let waited =
            self.asides
                .ended
                .wait_timeout_while(self.asides.counts(), CLOSE_LIMIT, |counts| {
                    counts.writing > 0 && nobody_else(counts.running)
                });
        drop(waited);
        let _pass = Process::current().enter();
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    const SEALING: Flag = |engine| &engine.sealing.busy;
    const LONG: Duration = Duration::from_secs(60);

    /// An engine with work in its background that goes on until told to end, or for so long.
    fn busy(kind: Work, limit: Duration) -> (Arc<Engine>, mpsc::Sender<()>) {
        let engine = Engine::new(PathBuf::from("nowhere.db"));
        let (end, told) = mpsc::channel();
        let work = move |_: &Arc<Engine>| _ = told.recv_timeout(limit);
        engine.aside("test", kind, None, work).unwrap();
        (engine, end)
    }

    fn wait_for(done: impl Fn() -> bool) {
        while !done() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_last_to_close_waits_for_what_is_written() {
        let (engine, _end) = busy(Work::Writes, Duration::from_millis(50));
        let weak = Arc::downgrade(&engine);
        engine.close();
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn nobody_waits_for_what_is_read() {
        let (engine, end) = busy(Work::Reads, LONG);
        engine.aside("test", Work::Writes, None, |_| {}).unwrap();
        let weak = Arc::downgrade(&engine);
        let begun = Instant::now();
        engine.close();
        assert!(begun.elapsed() < CLOSE_LIMIT);
        assert_eq!(weak.strong_count(), 1);
        drop(end);
    }

    #[test]
    fn whoever_is_not_the_last_does_not_wait() {
        let (engine, end) = busy(Work::Writes, LONG);
        let other = Arc::clone(&engine);
        let begun = Instant::now();
        engine.close();
        assert!(begun.elapsed() < CLOSE_LIMIT);
        end.send(()).unwrap();
        other.close();
    }

    #[test]
    fn work_that_takes_long_has_the_engine_for_itself() {
        let (engine, end) = busy(Work::Writes, LONG);
        let weak = Arc::downgrade(&engine);
        let begun = Instant::now();
        engine.close();
        assert!(begun.elapsed() >= CLOSE_LIMIT);
        assert_eq!(weak.strong_count(), 1);
        end.send(()).unwrap();
        wait_for(|| weak.strong_count() == 0);
    }

    #[test]
    fn work_that_fails_is_not_waited_for() {
        let engine = Engine::new(PathBuf::from("nowhere.db"));
        let fail = |_: &Arc<Engine>| panic!("as it should");
        engine
            .aside("test", Work::Writes, Some(SEALING), fail)
            .unwrap();
        wait_for(|| !SEALING(&engine).load(Ordering::Acquire));
        let weak = Arc::downgrade(&engine);
        engine.close();
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn work_of_one_kind_goes_on_once_at_a_time() {
        let engine = Engine::new(PathBuf::from("nowhere.db"));
        let begin = |work: Box<dyn FnOnce() + Send>| {
            engine.aside("test", Work::Writes, Some(SEALING), |_| work())
        };
        let (end, told) = mpsc::channel::<()>();
        begin(Box::new(move || _ = told.recv())).unwrap();
        begin(Box::new(|| unreachable!())).unwrap();
        drop(end);
        wait_for(|| !SEALING(&engine).load(Ordering::Acquire));
        let (done, seen) = mpsc::channel();
        begin(Box::new(move || done.send(()).unwrap())).unwrap();
        seen.recv().unwrap();
        engine.close();
    }
}
