//! Threads that go through a graph together.
//!
//! Each worker reports the node that it has finished and gets its next one in the same [step]; a
//! worker that gets none waits to be woken. Nobody waits in here: the threads are Python's, and so
//! is what they wait for, so that neither a fork nor the end of the interpreter finds one of them
//! inside this code.
//!
//! [step]: Workers::step

use super::schedule::Schedule;

/// What a worker does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// The node to run; without one the worker waits to be woken or ended.
    pub next: Option<usize>,
    /// How many waiting workers to wake.
    pub wake: usize,
    /// How many workers to add.
    pub add: usize,
    /// How many workers to end: all of them, once.
    pub end: usize,
}

/// A schedule and those who work on it.
#[derive(Debug)]
pub struct Workers {
    /// What they work on.
    pub schedule: Schedule,
    alive: usize,
    waiting: usize,
    ended: bool,
}

impl Workers {
    /// Begins without a worker.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            alive: 0,
            waiting: 0,
            ended: false,
        }
    }

    /// Says how many workers to begin with.
    pub fn begin(&mut self) -> Step {
        self.call_for_help(None)
    }

    /// Takes note of what a worker has finished, if anything, and finds its next node.
    pub fn step(&mut self, finished: Option<(usize, bool)>) -> Step {
        if let Some((node, well)) = finished {
            self.schedule.finish(node, well);
        }
        let next = self.schedule.take();
        if next.is_none() {
            self.waiting += 1;
        }
        self.call_for_help(next)
    }

    /// Hands out nothing more; says whom to end.
    pub fn cancel(&mut self) -> Step {
        self.schedule.cancel();
        self.call_for_help(None)
    }

    /// Takes note that a worker that was called for did not come. Returns whether others are there.
    pub fn lost(&mut self) -> bool {
        self.alive -= 1;
        self.alive > 0
    }

    fn call_for_help(&mut self, next: Option<usize>) -> Step {
        if self.schedule.over() {
            let end = if self.ended { 0 } else { self.alive };
            self.ended = true;
            return Step {
                next,
                end,
                ..Step::default()
            };
        }
        // Those who were woken are no longer waiting; they come for a node by themselves.
        let wanted = self.schedule.ready();
        let wake = wanted.min(self.waiting);
        self.waiting -= wake;
        let room = self.schedule.concurrency().saturating_sub(self.alive);
        let add = (wanted - wake).min(room);
        self.alive += add;
        Step {
            next,
            wake,
            add,
            end: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::super::Graph;
    use super::super::schedule::{Limits, State};
    use super::*;

    fn workers(dependencies: &[Vec<usize>], concurrency: usize) -> Workers {
        let limits = Limits {
            concurrency,
            ..Limits::default()
        };
        Workers::new(Schedule::new(Graph::new(dependencies).unwrap(), limits))
    }

    fn act(step: Step, wake: &mpsc::Sender<bool>, spawn: &mpsc::Sender<bool>) {
        for _ in 0..step.wake {
            wake.send(true).unwrap();
        }
        for _ in 0..step.add {
            spawn.send(true).unwrap();
        }
        for _ in 0..step.end {
            wake.send(false).unwrap();
        }
        if step.end > 0 {
            spawn.send(false).unwrap();
        }
    }

    #[test]
    fn as_many_come_as_there_is_work_for() {
        let mut found = workers(&[vec![], vec![0], vec![0], vec![0], vec![1, 2, 3]], 3);
        assert_eq!(found.begin().add, 1);
        assert_eq!(found.step(None).next, Some(0));
        let step = found.step(Some((0, true)));
        assert_eq!((step.next, step.wake, step.add), (Some(1), 0, 2));
        assert_eq!(found.step(None).next, Some(2));
        assert_eq!(found.step(None).next, Some(3));
        assert_eq!(found.step(Some((1, true))), Step::default());
        assert_eq!(found.step(Some((2, true))), Step::default());
        assert_eq!(found.step(Some((3, true))).next, Some(4));
        let last = found.step(Some((4, true)));
        assert_eq!((last.next, last.end), (None, 3));
        assert_eq!(found.cancel().end, 0, "they are ended once");
    }

    #[test]
    fn those_who_wait_are_woken_before_others_are_added() {
        let mut found = workers(&[vec![], vec![], vec![0, 1], vec![2], vec![2]], 2);
        assert_eq!(found.begin().add, 2);
        assert_eq!(found.step(None).next, Some(0));
        assert_eq!(found.step(None).next, Some(1));
        assert_eq!(found.step(Some((0, true))).next, None);
        assert_eq!(found.step(Some((1, true))).next, Some(2));
        let step = found.step(Some((2, true)));
        assert_eq!((step.next, step.wake, step.add), (Some(3), 1, 0));
    }

    #[test]
    fn one_who_does_not_come_is_not_waited_for() {
        let mut found = workers(&[vec![], vec![]], 2);
        assert_eq!(found.begin().add, 2);
        assert!(found.lost());
        let step = found.step(None);
        assert_eq!(
            (step.next, step.add),
            (Some(0), 1),
            "it is called for again"
        );
        assert!(found.lost());
        let step = found.step(Some((0, true)));
        assert_eq!((step.next, step.add), (Some(1), 0));
        assert!(!found.lost());
    }

    #[test]
    fn nothing_to_do_is_over_at_once() {
        let mut found = workers(&[], 4);
        assert_eq!(found.begin(), Step::default());
        assert!(found.schedule.over());
    }

    /// Real threads, waiting on channels as Python's do: all nodes run, all threads end.
    #[test]
    fn threads_go_through_a_large_graph_and_end() {
        const NODES: usize = 3_000;
        let dependencies: Vec<Vec<usize>> = (0..NODES)
            .map(|node| match node {
                0 => vec![],
                _ => vec![node / 2, node.saturating_sub(7) / 3],
            })
            .enumerate()
            .map(|(node, own)| own.into_iter().filter(|&d| d < node).collect())
            .collect();
        let shared = Arc::new(Mutex::new(workers(&dependencies, 8)));
        let (wake, woken) = mpsc::channel::<bool>();
        let woken = Arc::new(Mutex::new(woken));
        let (spawn, spawned) = mpsc::channel::<bool>();

        act(shared.lock().unwrap().begin(), &wake, &spawn);
        let mut threads = Vec::new();
        while spawned.recv().unwrap() {
            let (shared, woken) = (Arc::clone(&shared), Arc::clone(&woken));
            let (wake, spawn) = (wake.clone(), spawn.clone());
            threads.push(thread::spawn(move || {
                let mut finished = None;
                loop {
                    let step = shared.lock().unwrap().step(finished.take());
                    act(step, &wake, &spawn);
                    match step.next {
                        Some(node) => finished = Some((node, true)),
                        None if woken.lock().unwrap().recv().unwrap() => {}
                        None => break,
                    }
                }
            }));
        }
        assert!((1..=8).contains(&threads.len()));
        for thread in threads {
            thread.join().unwrap();
        }
        let ended = shared.lock().unwrap();
        assert!(ended.schedule.states().iter().all(|s| *s == State::Done));
    }
}
