//! What runs next in a flow: its methods' conditions, compiled once, and a walk through them.
//!
//! A flow is a set of methods, each waiting for events: the names of methods that have ended, and
//! what routers answered. [`Graph`] knows for every event which methods wait for it; [`walk`]
//! goes through one run, method by method, in the order in which CrewAI goes.

pub mod walk;

use std::collections::{HashMap, HashSet};

/// The deepest nesting of conditions that is compiled.
pub const MAX_DEPTH: usize = 64;

/// What a method waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// One event.
    Event(String),
    /// All of them, each seen at some time since this condition was last met.
    All(Vec<Condition>),
    /// Any of them.
    Any(Vec<Condition>),
}

impl Condition {
    /// Whether it is met once all events that `seen` knows have been.
    pub fn met(&self, seen: &mut impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::Event(event) => seen(event),
            Self::All(branches) => branches.iter().all(|branch| branch.met(seen)),
            Self::Any(branches) => branches.iter().any(|branch| branch.met(seen)),
        }
    }

    fn events<'a>(&'a self, into: &mut HashSet<&'a str>) {
        match self {
            Self::Event(event) => {
                into.insert(event);
            }
            Self::All(branches) | Self::Any(branches) => {
                for branch in branches {
                    branch.events(into);
                }
            }
        }
    }

    /// Whether one event alone decides, so that nothing needs to be remembered of earlier ones.
    fn immediate(&self) -> bool {
        match self {
            Self::Event(_) => true,
            Self::All(branches) => match branches.as_slice() {
                [] => true,
                [branch] => branch.immediate(),
                _ => false,
            },
            Self::Any(branches) => branches.iter().all(Self::immediate),
        }
    }
}

/// What makes a method run at the beginning.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Nothing does.
    Never,
    /// The beginning itself.
    Always,
    /// A router's answer, later on.
    When(Condition),
}

/// One method of a flow.
#[derive(Debug, Clone)]
pub struct Method {
    /// Its name, which is the event of its end.
    pub name: String,
    /// Whether its result is an event as well.
    pub router: bool,
    /// Whether and when it starts.
    pub start: Start,
    /// What it listens to.
    pub listen: Option<Condition>,
}

impl Method {
    /// Whether it listens to alternatives, of which only the first counts, until they are armed
    /// again.
    fn once(&self) -> bool {
        !self.router && matches!(&self.listen, Some(Condition::Any(branches)) if branches.len() > 1)
    }
}

/// Methods waiting for an event, in the order of their definition.
#[derive(Debug, Clone, Default)]
struct Waiting {
    routers: Vec<usize>,
    listeners: Vec<usize>,
    /// Listeners to alternatives.
    once: Vec<usize>,
    /// Starts that are waiting for a router's answer.
    starts: Vec<usize>,
}

/// All methods of a class of flows.
#[derive(Debug)]
pub struct Graph {
    methods: Vec<Method>,
    immediate: Vec<bool>,
    waiting: HashMap<String, Waiting>,
    /// For events that nobody names: conditions without any event are always met.
    unnamed: Waiting,
    once: Vec<usize>,
}

impl Graph {
    /// Compiles the methods of a class, in the order of their definition.
    pub fn new(methods: Vec<Method>) -> Self {
        let mut named = HashSet::new();
        for method in &methods {
            if let Some(condition) = &method.listen {
                condition.events(&mut named);
            }
            if let Start::When(condition) = &method.start {
                condition.events(&mut named);
            }
        }
        let waiting = named
            .iter()
            .map(|&event| (event.to_owned(), waiting_for(&methods, Some(event))))
            .collect();
        let unnamed = waiting_for(&methods, None);
        let immediate = methods
            .iter()
            .map(|method| method.listen.as_ref().is_none_or(Condition::immediate))
            .collect();
        let once = (0..methods.len())
            .filter(|&method| methods[method].once())
            .collect();
        Self {
            methods,
            immediate,
            waiting,
            unnamed,
            once,
        }
    }

    /// The methods.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    fn waiting(&self, event: &str) -> &Waiting {
        self.waiting.get(event).unwrap_or(&self.unnamed)
    }
}

fn waiting_for(methods: &[Method], event: Option<&str>) -> Waiting {
    let concerned = |condition: &Condition| {
        let mut events = HashSet::new();
        condition.events(&mut events);
        event.is_some_and(|event| events.contains(event)) || condition.met(&mut |_| false)
    };
    let mut waiting = Waiting::default();
    for (index, method) in methods.iter().enumerate() {
        if method.listen.as_ref().is_some_and(concerned) {
            if method.router {
                waiting.routers.push(index);
            } else {
                waiting.listeners.push(index);
            }
            let mut events = HashSet::new();
            if let Some(condition) = &method.listen {
                condition.events(&mut events);
            }
            if method.once() && event.is_some_and(|event| events.contains(event)) {
                waiting.once.push(index);
            }
        }
        if matches!(&method.start, Start::When(condition) if concerned(condition)) {
            waiting.starts.push(index);
        }
    }
    waiting
}
