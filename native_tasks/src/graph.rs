//! Tasks that depend on one another: which may run now, and which never will.
//!
//! A [`Graph`] says which node waits for which. A [`Schedule`](schedule::Schedule) goes through it
//! once: it hands out nodes whose dependencies are done, as many at a time as its limits allow.
//! [`Workers`](workers::Workers) does so for threads that come for their next node by themselves.

pub mod schedule;
pub mod workers;

/// A dependency that a graph cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A node waits for one that there is not.
    #[error("node {node} depends on node {dependency}; there are {nodes} nodes")]
    NoSuchNode {
        /// The node that waits.
        node: usize,
        /// What it waits for.
        dependency: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// Nodes wait for each other: each for the next, the last for the first.
    #[error("nodes depend on each other: {0:?}")]
    Cycle(Vec<usize>),
}

/// Which node depends on which, without cycles.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Where in `dependents` those of a node begin; one more entry than there are nodes.
    starts: Vec<usize>,
    dependents: Vec<usize>,
    dependencies: Vec<usize>,
}

impl Graph {
    /// Builds a graph from each node's dependencies. One that is named twice counts once.
    pub fn new(dependencies: &[Vec<usize>]) -> Result<Self, GraphError> {
        let nodes = dependencies.len();
        let mut starts = vec![0; nodes + 1];
        let mut counts = vec![0; nodes];
        // A node's own list, without what is named twice: `seen` holds who named a node last.
        let mut seen = vec![usize::MAX; nodes];
        for (node, own) in dependencies.iter().enumerate() {
            for &dependency in own {
                let Some(mark) = seen.get_mut(dependency) else {
                    return Err(GraphError::NoSuchNode {
                        node,
                        dependency,
                        nodes,
                    });
                };
                if *mark != node {
                    *mark = node;
                    counts[node] += 1;
                    starts[dependency + 1] += 1;
                }
            }
        }
        for node in 0..nodes {
            starts[node + 1] += starts[node];
        }
        let mut dependents = vec![0; starts[nodes]];
        let mut next = starts.clone();
        seen.fill(usize::MAX);
        for (node, own) in dependencies.iter().enumerate() {
            for &dependency in own {
                if seen[dependency] != node {
                    seen[dependency] = node;
                    dependents[next[dependency]] = node;
                    next[dependency] += 1;
                }
            }
        }
        let graph = Self {
            starts,
            dependents,
            dependencies: counts,
        };
        match graph.cycle(dependencies) {
            Some(cycle) => Err(GraphError::Cycle(cycle)),
            None => Ok(graph),
        }
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.dependencies.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.dependencies.is_empty()
    }

    /// The nodes that wait for a node.
    fn dependents(&self, node: usize) -> &[usize] {
        &self.dependents[self.starts[node]..self.starts[node + 1]]
    }

    /// Returns some cycle, beginning with its lowest node, by Kahn's algorithm: nodes that remain
    /// when all that can run have run lie on cycles or wait for one.
    fn cycle(&self, dependencies: &[Vec<usize>]) -> Option<Vec<usize>> {
        let mut waiting = self.dependencies.clone();
        let mut ready: Vec<usize> = (0..self.len()).filter(|&n| waiting[n] == 0).collect();
        while let Some(node) = ready.pop() {
            for &dependent in self.dependents(node) {
                waiting[dependent] -= 1;
                if waiting[dependent] == 0 {
                    ready.push(dependent);
                }
            }
        }
        let first = (0..self.len()).find(|&node| waiting[node] > 0)?;
        // From there, always to a dependency that remains as well: this must come round.
        let mut path = vec![first];
        let mut place = vec![usize::MAX; self.len()];
        place[first] = 0;
        loop {
            let last = path[path.len() - 1];
            let next = dependencies[last]
                .iter()
                .copied()
                .find(|&dependency| waiting[dependency] > 0)?;
            if place[next] != usize::MAX {
                let mut cycle = path.split_off(place[next]);
                let lowest = (0..cycle.len()).min_by_key(|&at| cycle[at])?;
                cycle.rotate_left(lowest);
                return Some(cycle);
            }
            place[next] = path.len();
            path.push(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_named_from_its_lowest_node() {
        let error = Graph::new(&[vec![], vec![3], vec![1], vec![2, 0], vec![3]]).unwrap_err();
        assert_eq!(error, GraphError::Cycle(vec![1, 3, 2]));
        let own = Graph::new(&[vec![0]]).unwrap_err();
        assert_eq!(own, GraphError::Cycle(vec![0]));
    }

    #[test]
    fn a_node_that_is_not_there_is_an_error() {
        let error = Graph::new(&[vec![], vec![0, 7]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "node 1 depends on node 7; there are 2 nodes"
        );
    }

    #[test]
    fn a_dependency_named_twice_counts_once() {
        let graph = Graph::new(&[vec![], vec![0, 0]]).unwrap();
        assert_eq!(graph.dependents(0), [1]);
        assert_eq!(graph.dependencies, [0, 1]);
        assert_eq!((graph.len(), graph.is_empty()), (2, false));
    }
}
