//! Work in the background of one engine, and waiting for it when the engine is closed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::engine::Engine;
use super::process::Process;

/// How long closing waits for work in the background: sealing 50,000 records takes less. Longer work
/// goes on, and closes the engine itself.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// How many threads work in the background of an engine, each of which has a reference to it.
#[derive(Debug, Default)]
pub(super) struct Asides {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Asides {
    fn running(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which flag of an engine says that work of a kind is going on.
pub(super) type Flag = fn(&Engine) -> &AtomicBool;

/// A piece of work, counted until it is dropped, which lets go of the engine first.
struct Aside {
    engine: Option<Arc<Engine>>,
    flag: Option<Flag>,
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
        *self.asides.running() -= 1;
        self.asides.ended.notify_all();
    }
}

impl Engine {
    /// Runs `work` in a thread of its own, as [`Process::aside`]; not while work with the same flag is
    /// going on.
    pub(super) fn aside(
        &self,
        name: &str,
        flag: Option<Flag>,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        if flag.is_some_and(|flag| flag(self).swap(true, Ordering::AcqRel)) {
            return Ok(());
        }
        let mut running = self.asides.running();
        let Some(engine) = self.this.upgrade() else {
            return Ok(());
        };
        *running += 1;
        drop(running);
        let mut aside = Aside {
            engine: Some(engine),
            flag,
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

    /// Lets go of an engine. The last to do so closes it, after what goes on in its background, so that
    /// its directory can be removed; the caller must not be inside the gate.
    pub fn close(self: Arc<Self>) {
        // Others than the threads in the background have it as well: one of them closes it.
        let nobody_else = |running: usize| Arc::strong_count(&self) <= running + 1;
        let limit = self.asides.ended.wait_timeout_while(
            self.asides.running(),
            CLOSE_LIMIT,
            |&mut running| running > 0 && nobody_else(running),
        );
        drop(limit);
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

    /// An engine with work in its background that goes on until told to end, or for so long.
    fn busy(limit: Duration) -> (Arc<Engine>, mpsc::Sender<()>) {
        let engine = Engine::new(PathBuf::from("nowhere.db"));
        let (end, told) = mpsc::channel();
        let work = move |_: &Arc<Engine>| _ = told.recv_timeout(limit);
        engine.aside("test", None, work).unwrap();
        (engine, end)
    }

    #[test]
    fn the_last_to_close_waits_for_the_background() {
        let (engine, _end) = busy(Duration::from_millis(50));
        let weak = Arc::downgrade(&engine);
        engine.close();
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn whoever_is_not_the_last_does_not_wait() {
        let (engine, end) = busy(Duration::from_secs(60));
        let other = Arc::clone(&engine);
        let begun = Instant::now();
        engine.close();
        assert!(begun.elapsed() < CLOSE_LIMIT / 2);
        end.send(()).unwrap();
        other.close();
    }

    #[test]
    fn work_that_takes_long_has_the_engine_for_itself() {
        let (engine, end) = busy(Duration::from_secs(60));
        let weak = Arc::downgrade(&engine);
        let begun = Instant::now();
        engine.close();
        assert!(begun.elapsed() >= CLOSE_LIMIT);
        assert_eq!(weak.strong_count(), 1);
        end.send(()).unwrap();
        while weak.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_that_fails_is_not_waited_for() {
        let engine = Engine::new(PathBuf::from("nowhere.db"));
        let flag: Flag = |engine| &engine.sealing.busy;
        let fail = |_: &Arc<Engine>| panic!("as it should");
        engine.aside("test", Some(flag), fail).unwrap();
        while flag(&engine).load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let weak = Arc::downgrade(&engine);
        engine.close();
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn work_of_one_kind_goes_on_once_at_a_time() {
        let (engine, _end) = busy(Duration::ZERO);
        let flag: Flag = |engine| &engine.sealing.busy;
        let (end, told) = mpsc::channel::<()>();
        let wait = move |_: &Arc<Engine>| _ = told.recv();
        engine.aside("test", Some(flag), wait).unwrap();
        engine
            .aside("test", Some(flag), |_| unreachable!())
            .unwrap();
        drop(end);
        while flag(&engine).load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let (done, seen) = mpsc::channel();
        let work = move |_: &Arc<Engine>| done.send(()).unwrap();
        engine.aside("test", Some(flag), work).unwrap();
        seen.recv().unwrap();
        engine.close();
    }
}
