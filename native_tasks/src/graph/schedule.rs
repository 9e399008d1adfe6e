//! One passage through a graph.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Graph;

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not been handed out.
    Waiting,
    /// It was handed out.
    Running,
    /// It has ended well.
    Done,
    /// It has ended otherwise.
    Failed,
    /// It will not run, since something that it depends on failed.
    Skipped,
    /// It will not run, since that was asked for.
    Cancelled,
}

impl State {
    /// All of them, in the order of [`State::index`].
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// Its place in [`State::ALL`].
    pub fn index(self) -> u8 {
        self as u8
    }
}

/// What limits how nodes are handed out.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// How many run at a time; no more than one does where this is 0.
    pub concurrency: usize,
    /// By node, what it has to itself while it runs. Of two nodes with a lane in common one waits.
    pub lanes: Vec<Vec<usize>>,
    /// By node: the higher is handed out first, and of equals the lower node.
    pub priorities: Vec<i64>,
}

type Rank = Reverse<(Reverse<i64>, usize)>;

/// Hands out the nodes of a graph.
#[derive(Debug)]
pub struct Schedule {
    graph: Graph,
    limits: Limits,
    waiting: Vec<usize>,
    states: Vec<State>,
    ready: BinaryHeap<Rank>,
    /// Lanes that are taken.
    busy: Vec<bool>,
    /// By lane, nodes that were ready and found it taken.
    parked: Vec<Vec<usize>>,
    running: usize,
    /// Nodes that may still be handed out.
    left: usize,
}

impl Schedule {
    /// Begins. Lanes and priorities that are missing are none and 0.
    pub fn new(graph: Graph, mut limits: Limits) -> Self {
        let nodes = graph.len();
        limits.concurrency = limits.concurrency.max(1);
        limits.lanes.resize(nodes, Vec::new());
        limits.priorities.resize(nodes, 0);
        let lanes = limits.lanes.iter().flatten().max().map_or(0, |top| top + 1);
        let mut schedule = Self {
            waiting: graph.dependencies.clone(),
            states: vec![State::Waiting; nodes],
            ready: BinaryHeap::with_capacity(nodes),
            busy: vec![false; lanes],
            parked: vec![Vec::new(); lanes],
            running: 0,
            left: nodes,
            graph,
            limits,
        };
        for node in 0..nodes {
            if schedule.waiting[node] == 0 {
                schedule.offer(node);
            }
        }
        schedule
    }

    /// Hands out the next node, if one may run now.
    pub fn take(&mut self) -> Option<usize> {
        if self.running >= self.limits.concurrency {
            return None;
        }
        while let Some(Reverse((_, node))) = self.ready.pop() {
            let lanes = &self.limits.lanes[node];
            if let Some(&lane) = lanes.iter().find(|&&lane| self.busy[lane]) {
                self.parked[lane].push(node);
                continue;
            }
            for &lane in lanes {
                self.busy[lane] = true;
            }
            self.states[node] = State::Running;
            self.running += 1;
            self.left -= 1;
            return Some(node);
        }
        None
    }

    /// Takes note that a node has ended, well or not. Of one that does not run, nothing.
    ///
    /// Returns whether it ran.
    pub fn finish(&mut self, node: usize, well: bool) -> bool {
        if self.states.get(node) != Some(&State::Running) {
            return false;
        }
        self.running -= 1;
        for at in 0..self.limits.lanes[node].len() {
            let lane = self.limits.lanes[node][at];
            self.busy[lane] = false;
            for parked in std::mem::take(&mut self.parked[lane]) {
                self.offer(parked);
            }
        }
        if well {
            self.states[node] = State::Done;
            for at in self.graph.starts[node]..self.graph.starts[node + 1] {
                let dependent = self.graph.dependents[at];
                self.waiting[dependent] -= 1;
                if self.waiting[dependent] == 0 && self.states[dependent] == State::Waiting {
                    self.offer(dependent);
                }
            }
        } else {
            self.states[node] = State::Failed;
            self.skip_what_waits_for(node);
        }
        true
    }

    /// Hands out nothing more. What runs, runs on.
    pub fn cancel(&mut self) {
        for state in &mut self.states {
            if *state == State::Waiting {
                *state = State::Cancelled;
            }
        }
        self.left = 0;
        self.ready.clear();
        self.parked.iter_mut().for_each(Vec::clear);
    }

    /// Whether nothing runs and nothing will.
    pub fn over(&self) -> bool {
        self.running == 0 && self.left == 0
    }

    /// How many nodes [`take`](Self::take) could hand out now, at most.
    pub fn ready(&self) -> usize {
        let room = self.limits.concurrency.saturating_sub(self.running);
        self.ready.len().min(room)
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// How many may run at a time.
    pub fn concurrency(&self) -> usize {
        self.limits.concurrency
    }

    /// Where each node stands.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    fn offer(&mut self, node: usize) {
        let rank = (Reverse(self.limits.priorities[node]), node);
        self.ready.push(Reverse(rank));
    }

    fn skip_what_waits_for(&mut self, node: usize) {
        let mut lost = vec![node];
        while let Some(node) = lost.pop() {
            for &dependent in self.graph.dependents(node) {
                // It waits for `node`, so it is neither ready nor parked.
                if self.states[dependent] == State::Waiting {
                    self.states[dependent] = State::Skipped;
                    self.left -= 1;
                    lost.push(dependent);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(dependencies: &[Vec<usize>], limits: Limits) -> Schedule {
        Schedule::new(Graph::new(dependencies).unwrap(), limits)
    }

    fn at_a_time(concurrency: usize) -> Limits {
        Limits {
            concurrency,
            ..Limits::default()
        }
    }

    #[test]
    fn a_node_waits_for_all_that_it_depends_on() {
        let mut diamond = schedule(&[vec![], vec![0], vec![0], vec![1, 2]], at_a_time(9));
        assert_eq!((diamond.take(), diamond.take()), (Some(0), None));
        diamond.finish(0, true);
        assert_eq!(diamond.ready(), 2);
        assert_eq!(
            (diamond.take(), diamond.take(), diamond.take()),
            (Some(1), Some(2), None)
        );
        diamond.finish(2, true);
        assert_eq!(diamond.take(), None);
        diamond.finish(1, true);
        assert_eq!(diamond.take(), Some(3));
        assert!(!diamond.over());
        assert!(diamond.finish(3, true));
        assert!(diamond.over());
        assert!(!diamond.finish(3, true), "it has ended already");
        assert!(!diamond.finish(99, true));
    }

    #[test]
    fn what_waits_for_a_failure_is_skipped_and_the_rest_runs() {
        let mut found = schedule(&[vec![], vec![0], vec![1], vec![]], at_a_time(1));
        assert_eq!(found.take(), Some(0));
        found.finish(0, false);
        assert_eq!(found.take(), Some(3));
        found.finish(3, true);
        assert!(found.over());
        assert_eq!(
            found.states(),
            [State::Failed, State::Skipped, State::Skipped, State::Done]
        );
    }

    #[test]
    fn nodes_of_one_lane_run_one_by_one_and_let_others_pass() {
        let mut limits = at_a_time(9);
        limits.lanes = vec![vec![0], vec![0, 1], vec![1], vec![]];
        let mut found = schedule(&vec![vec![]; 4], limits);
        assert_eq!(
            [found.take(), found.take(), found.take(), found.take()],
            [Some(0), Some(2), Some(3), None]
        );
        found.finish(0, true);
        assert_eq!(found.take(), None, "the other lane is still taken");
        found.finish(2, true);
        assert_eq!(found.take(), Some(1));
    }

    #[test]
    fn priority_goes_before_place() {
        let mut limits = at_a_time(1);
        limits.priorities = vec![0, -1, 5];
        let mut found = schedule(&vec![vec![]; 3], limits);
        let mut order = Vec::new();
        while let Some(node) = found.take() {
            order.push(node);
            found.finish(node, true);
        }
        assert_eq!(order, [2, 0, 1]);
    }

    #[test]
    fn cancelling_lets_what_runs_end() {
        let mut limits = at_a_time(2);
        limits.lanes = vec![vec![0], vec![0], vec![0]];
        let mut found = schedule(&vec![vec![]; 3], limits);
        assert_eq!((found.take(), found.take()), (Some(0), None));
        found.cancel();
        found.cancel();
        assert!(!found.over());
        found.finish(0, true);
        assert_eq!((found.take(), found.over()), (None, true));
        assert_eq!(
            found.states(),
            [State::Done, State::Cancelled, State::Cancelled]
        );
    }

    proptest! {
        /// Whatever the graph, its lanes and its failures: nothing runs before its dependencies,
        /// beside a node of the same lane or beyond the limit; each node ends in one state; and
        /// the passage comes to its end.
        #[test]
        fn every_passage_keeps_the_rules(
            edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..40),
            lanes in prop::collection::vec(prop::collection::vec(0_usize..5, 0..3), 40),
            fails in prop::collection::vec(prop::bool::weighted(0.1), 40),
            choices in prop::collection::vec(any::<prop::sample::Index>(), 80),
            concurrency in 1_usize..6,
        ) {
            let dependencies: Vec<Vec<usize>> = edges
                .iter()
                .enumerate()
                .map(|(node, own)| match node {
                    0 => Vec::new(),
                    _ => own.iter().map(|index| index.index(node)).collect(),
                })
                .collect();
            let limits = Limits { concurrency, lanes: lanes.clone(), priorities: Vec::new() };
            let mut found = schedule(&dependencies, limits);
            let mut running: Vec<usize> = Vec::new();
            let mut turn = 0;
            while !found.over() {
                while let Some(node) = found.take() {
                    prop_assert!(running.len() < concurrency);
                    for dependency in &dependencies[node] {
                        prop_assert_eq!(found.states()[*dependency], State::Done);
                    }
                    for other in &running {
                        prop_assert!(!lanes[node].iter().any(|lane| lanes[*other].contains(lane)));
                    }
                    running.push(node);
                }
                prop_assert!(!running.is_empty(), "stuck");
                let node = running.swap_remove(choices[turn % 80].index(running.len()));
                turn += 1;
                prop_assert!(found.finish(node, !fails[node]));
            }
            for (node, state) in found.states().iter().enumerate() {
                let blocked = dependencies[node].iter().any(|dependency| {
                    matches!(found.states()[*dependency], State::Failed | State::Skipped)
                });
                let expected = match (blocked, fails[node]) {
                    (true, _) => State::Skipped,
                    (false, true) => State::Failed,
                    (false, false) => State::Done,
                };
                prop_assert_eq!(*state, expected);
            }
        }
    }
}
