//! One run of a flow, as a walk with a stack of its own.
//!
//! CrewAI goes through a flow by coroutines that call each other: a method runs, then everything
//! that its end triggers, one level deeper; routers first, one after another, then listeners side
//! by side. An agent's loop goes deeper with every round. Here the levels are frames on a stack, and
//! [`Walk::next`] says what comes next: run one method, or several side by side.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::{Graph, Start};

/// Where a condition's events are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// Of what a method listens to.
    Listen(usize),
    /// Of what makes a method start.
    Start(usize),
}

/// What a run remembers. CrewAI keeps it in the flow, where checkpoints and users read and change
/// it, so it is asked for each time.
pub trait World {
    /// Results of methods, and identifiers of events.
    type Value: Clone;
    /// What can go wrong.
    type Error;

    /// Counts a listener's or router's call. Fails when there were too many.
    fn count(&mut self, method: usize) -> Result<(), Self::Error>;
    /// Whether a method has run to its end before; then it counts as not run from now on.
    fn reopen(&mut self, method: usize) -> Result<bool, Self::Error>;
    /// Whether a listener to alternatives has been triggered.
    fn fired(&mut self, listener: usize) -> Result<bool, Self::Error>;
    /// Says that it has, or that it can be again.
    fn set_fired(&mut self, listener: usize, fired: bool) -> Result<(), Self::Error>;
    /// Says so of all.
    fn arm_all(&mut self) -> Result<(), Self::Error>;
    /// Remembers an event for a condition.
    fn see(&mut self, key: Key, event: &str) -> Result<(), Self::Error>;
    /// Whether an event is remembered.
    fn seen(&mut self, key: Key, event: &str) -> Result<bool, Self::Error>;
    /// Forgets what was remembered for a condition.
    fn forget(&mut self, key: Key) -> Result<(), Self::Error>;
    /// The event that a router's result is, and the result without the enumeration around it; None
    /// where the result is none.
    fn signal(
        &mut self,
        result: &Self::Value,
    ) -> Result<Option<(String, Self::Value)>, Self::Error>;
    /// Whether a result is none.
    fn is_none(&self, result: &Self::Value) -> bool;
    /// The latest feedback of a human, which listeners get in place of a router's result.
    fn feedback(&mut self) -> Result<Option<Self::Value>, Self::Error>;
}

/// What comes next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<V> {
    /// Run a method, then say what it returned, by [`Walk::ran`].
    Run {
        /// Which.
        method: usize,
        /// What triggered it gave this; a start gets nothing.
        input: Option<V>,
        /// The event that triggered it.
        event: Option<V>,
        /// How many contexts deep it runs.
        depth: usize,
        /// Whether the innermost of these contexts begins here, as a copy of the one around it.
        fresh: bool,
    },
    /// Run several listeners, and all that they trigger, side by side.
    Group {
        /// Which, in the order of their definition.
        methods: Vec<usize>,
        /// What triggered them gave this.
        input: V,
        /// The event that triggered them.
        event: Option<V>,
        /// How many contexts deep.
        depth: usize,
    },
    /// Nothing: the flow has ended.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    Running,
    Ran,
    /// A start that is a router: the listeners to its name have run.
    Named,
    Ended,
}

#[derive(Debug)]
struct Call<V> {
    method: usize,
    /// None for a start.
    input: Option<V>,
    event: Option<V>,
    depth: usize,
    fresh: bool,
    stage: Stage,
    result: Option<V>,
    ended: Option<V>,
}

#[derive(Debug)]
enum Phase {
    Routers {
        queue: VecDeque<usize>,
        running: bool,
    },
    Listeners {
        trigger: usize,
    },
    Starts {
        trigger: usize,
        start: usize,
    },
}

/// Everything that one event triggers.
#[derive(Debug)]
struct Triggered<V> {
    /// The event, then what routers answered.
    triggers: Vec<String>,
    result: V,
    current: String,
    event: Option<V>,
    /// What listeners to a router's answer get.
    payloads: HashMap<String, V>,
    /// What routers of a router's answer get, where a human gave it.
    feedback: HashMap<String, V>,
    ran: HashMap<String, Vec<usize>>,
    /// Listeners to alternatives that may be armed again, each once.
    rearmable: Vec<usize>,
    depth: usize,
    phase: Phase,
}

#[derive(Debug)]
enum Frame<V> {
    Call(Call<V>),
    Triggered(Box<Triggered<V>>),
}

/// A run of a flow.
#[derive(Debug)]
pub struct Walk<V> {
    graph: Arc<Graph>,
    frames: Vec<Frame<V>>,
    /// What the call that has just ended gave to the one around it.
    returned: Option<(V, Option<V>)>,
}

impl<V: Clone> Walk<V> {
    /// Begins at a start method.
    pub fn new(graph: Arc<Graph>, start: usize) -> Self {
        Self {
            graph,
            frames: vec![Frame::Call(call(start, None, None, 0, true))],
            returned: None,
        }
    }

    /// The innermost listener or router that is running, or None within a start alone.
    pub fn innermost(&self) -> Option<usize> {
        self.frames.iter().rev().find_map(|frame| match frame {
            Frame::Call(call) if call.input.is_some() => Some(call.method),
            _ => None,
        })
    }

    /// Says what the method returned that was to run, and the event of its end.
    pub fn ran(&mut self, result: V, event: Option<V>) {
        if let Some(Frame::Call(call)) = self.frames.last_mut() {
            call.result = Some(result);
            call.ended = event;
            call.stage = Stage::Ran;
        }
    }

    /// Goes on to what comes next.
    pub fn next<W: World<Value = V>>(&mut self, world: &mut W) -> Result<Step<V>, W::Error> {
        loop {
            let step = match self.frames.last_mut() {
                None => Some(Step::Done),
                Some(Frame::Call(_)) => self.call(world)?,
                Some(Frame::Triggered(_)) => self.triggered(world)?,
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    fn call<W: World<Value = V>>(&mut self, world: &mut W) -> Result<Option<Step<V>>, W::Error> {
        let Some(Frame::Call(call)) = self.frames.last_mut() else {
            return Ok(None);
        };
        match call.stage {
            Stage::Begin => {
                if call.input.is_some()
                    && let Err(error) = world.count(call.method)
                {
                    // It has not begun: what goes wrong here is the caller's.
                    self.frames.pop();
                    return Err(error);
                }
                if world.reopen(call.method)? {
                    world.arm_all()?;
                }
                call.stage = Stage::Running;
                Ok(Some(Step::Run {
                    method: call.method,
                    input: call.input.clone(),
                    event: call.event.clone(),
                    depth: call.depth,
                    fresh: call.fresh,
                }))
            }
            Stage::Running | Stage::Ended => {
                // A listener's caller wants what it gave; nobody asks a start.
                self.returned = call.result.take().map(|result| (result, call.ended.take()));
                self.frames.pop();
                Ok(None)
            }
            Stage::Ran | Stage::Named => {
                let Some(result) = call.result.clone() else {
                    return Ok(None);
                };
                let method = &self.graph.methods[call.method];
                let starts_a_route =
                    call.input.is_none() && method.router && !world.is_none(&result);
                let (event, given) = if call.stage == Stage::Named {
                    let given = world.feedback()?.unwrap_or_else(|| result.clone());
                    let signal = world.signal(&result)?;
                    (signal.map_or_else(String::new, |(event, _)| event), given)
                } else {
                    (method.name.clone(), result)
                };
                call.stage = if starts_a_route && call.stage == Stage::Ran {
                    Stage::Named
                } else {
                    Stage::Ended
                };
                let (ended, depth) = (call.ended.clone(), call.depth);
                self.frames.push(Frame::Triggered(Box::new(triggered(
                    event, given, ended, depth,
                ))));
                Ok(None)
            }
        }
    }

    fn triggered<W: World<Value = V>>(
        &mut self,
        world: &mut W,
    ) -> Result<Option<Step<V>>, W::Error> {
        match self.frames.last() {
            Some(Frame::Triggered(here)) => match here.phase {
                Phase::Routers { .. } => self.routers(world),
                Phase::Listeners { trigger } => self.listeners(world, trigger),
                Phase::Starts { trigger, start } => self.starts(world, trigger, start),
            },
            _ => Ok(None),
        }
    }

    fn routers<W: World<Value = V>>(&mut self, world: &mut W) -> Result<Option<Step<V>>, W::Error> {
        let Some(Frame::Triggered(here)) = self.frames.last_mut() else {
            return Ok(None);
        };
        let Phase::Routers { queue, running } = &mut here.phase else {
            return Ok(None);
        };
        if std::mem::take(running)
            && let Some((result, event)) = self.returned.take()
        {
            here.event = event;
            here.current = match world.signal(&result)? {
                None => String::new(),
                Some((answer, result)) => {
                    let feedback = world.feedback()?;
                    here.payloads
                        .insert(answer.clone(), feedback.clone().unwrap_or(result));
                    if let Some(feedback) = feedback {
                        here.feedback.insert(answer.clone(), feedback);
                    }
                    here.triggers.push(answer.clone());
                    answer
                }
            };
        }
        if let Some(router) = queue.pop_front() {
            *running = true;
            let input = here.feedback.get(&here.current).unwrap_or(&here.result);
            let next = call(
                router,
                Some(input.clone()),
                here.event.clone(),
                here.depth,
                false,
            );
            self.frames.push(Frame::Call(next));
            return Ok(None);
        }
        let found = find(&self.graph, world, &here.current, true)?;
        if found.is_empty() {
            for &listener in &self.graph.once {
                if world.fired(listener)? {
                    here.rearmable.push(listener);
                }
            }
            here.phase = Phase::Listeners { trigger: 0 };
        } else {
            here.ran
                .entry(here.current.clone())
                .or_default()
                .extend(&found);
            *queue = found.into();
        }
        Ok(None)
    }

    fn listeners<W: World<Value = V>>(
        &mut self,
        world: &mut W,
        trigger: usize,
    ) -> Result<Option<Step<V>>, W::Error> {
        let Some(Frame::Triggered(here)) = self.frames.last_mut() else {
            return Ok(None);
        };
        let Some(event) = here.triggers.get(trigger) else {
            self.frames.pop();
            return Ok(None);
        };
        if event.is_empty() {
            here.phase = Phase::Listeners {
                trigger: trigger + 1,
            };
            return Ok(None);
        }
        if trigger > 0 && !here.rearmable.is_empty() {
            for &listener in &self.graph.waiting(event).once {
                if let Some(at) = here.rearmable.iter().position(|&it| it == listener)
                    && world.fired(listener)?
                {
                    world.set_fired(listener, false)?;
                    here.rearmable.swap_remove(at);
                }
            }
        }
        here.phase = Phase::Starts { trigger, start: 0 };
        let found = find(&self.graph, world, event, false)?;
        here.ran.entry(event.clone()).or_default().extend(&found);
        let input = here.payloads.get(event).unwrap_or(&here.result).clone();
        match found.as_slice() {
            [] => Ok(None),
            &[listener] => {
                let depth = here.depth + 1;
                let next = call(listener, Some(input), here.event.clone(), depth, true);
                self.frames.push(Frame::Call(next));
                Ok(None)
            }
            _ => Ok(Some(Step::Group {
                methods: found,
                input,
                event: here.event.clone(),
                depth: here.depth,
            })),
        }
    }

    fn starts<W: World<Value = V>>(
        &mut self,
        world: &mut W,
        trigger: usize,
        start: usize,
    ) -> Result<Option<Step<V>>, W::Error> {
        let Some(Frame::Triggered(here)) = self.frames.last_mut() else {
            return Ok(None);
        };
        let event = &here.triggers[trigger];
        let starts = &self.graph.waiting(event).starts;
        let Some(&method) = starts
            .get(start)
            .filter(|_| here.triggers[1..].contains(event))
        else {
            here.phase = Phase::Listeners {
                trigger: trigger + 1,
            };
            return Ok(None);
        };
        here.phase = Phase::Starts {
            trigger,
            start: start + 1,
        };
        let Start::When(condition) = &self.graph.methods[method].start else {
            return Ok(None);
        };
        let met = met(world, condition, Key::Start(method), event, false)?;
        if met && !here.ran.get(event).is_some_and(|ran| ran.contains(&method)) {
            let next = call(method, None, None, here.depth, false);
            self.frames.push(Frame::Call(next));
        }
        Ok(None)
    }
}

fn call<V>(
    method: usize,
    input: Option<V>,
    event: Option<V>,
    depth: usize,
    fresh: bool,
) -> Call<V> {
    Call {
        method,
        input,
        event,
        depth,
        fresh,
        stage: Stage::Begin,
        result: None,
        ended: None,
    }
}

fn triggered<V>(event: String, result: V, ended: Option<V>, depth: usize) -> Triggered<V> {
    Triggered {
        current: event.clone(),
        triggers: vec![event],
        result,
        event: ended,
        payloads: HashMap::new(),
        feedback: HashMap::new(),
        ran: HashMap::new(),
        rearmable: Vec::new(),
        depth,
        phase: Phase::Routers {
            queue: VecDeque::new(),
            running: false,
        },
    }
}

/// The routers, or the listeners, that an event triggers now.
fn find<W: World>(
    graph: &Graph,
    world: &mut W,
    event: &str,
    routers: bool,
) -> Result<Vec<usize>, W::Error> {
    let waiting = graph.waiting(event);
    let candidates = if routers {
        &waiting.routers
    } else {
        &waiting.listeners
    };
    let mut found = Vec::new();
    for &index in candidates {
        let method = &graph.methods[index];
        let Some(condition) = &method.listen else {
            continue;
        };
        let once = method.once();
        if once && world.fired(index)? {
            continue;
        }
        let immediate = graph.immediate[index];
        if met(world, condition, Key::Listen(index), event, immediate)? {
            found.push(index);
            if once {
                world.set_fired(index, true)?;
            }
        }
    }
    Ok(found)
}

/// Whether a condition is met with this event, and those remembered from before.
fn met<W: World>(
    world: &mut W,
    condition: &super::Condition,
    key: Key,
    event: &str,
    immediate: bool,
) -> Result<bool, W::Error> {
    if immediate {
        return Ok(condition.met(&mut |name| name == event));
    }
    world.see(key, event)?;
    let mut failed = None;
    let met = condition.met(&mut |name| {
        name == event
            || world.seen(key, name).unwrap_or_else(|error| {
                failed.get_or_insert(error);
                false
            })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    if met {
        world.forget(key)?;
    }
    Ok(met)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::convert::Infallible;
    use std::sync::Arc;

    use super::*;
    use crate::flow::{Condition, Method};

    /// Remembers in plain sets.
    #[derive(Default)]
    struct Plain {
        counts: HashMap<usize, usize>,
        completed: HashSet<usize>,
        fired: HashSet<usize>,
        seen: HashMap<Key, HashSet<String>>,
        feedback: Option<String>,
    }

    impl World for Plain {
        type Value = String;
        type Error = Infallible;

        fn count(&mut self, method: usize) -> Result<(), Infallible> {
            *self.counts.entry(method).or_default() += 1;
            Ok(())
        }
        fn reopen(&mut self, method: usize) -> Result<bool, Infallible> {
            Ok(self.completed.remove(&method))
        }
        fn fired(&mut self, listener: usize) -> Result<bool, Infallible> {
            Ok(self.fired.contains(&listener))
        }
        fn set_fired(&mut self, listener: usize, fired: bool) -> Result<(), Infallible> {
            if fired {
                self.fired.insert(listener);
            } else {
                self.fired.remove(&listener);
            }
            Ok(())
        }
        fn arm_all(&mut self) -> Result<(), Infallible> {
            self.fired.clear();
            Ok(())
        }
        fn see(&mut self, key: Key, event: &str) -> Result<(), Infallible> {
            self.seen.entry(key).or_default().insert(event.to_owned());
            Ok(())
        }
        fn seen(&mut self, key: Key, event: &str) -> Result<bool, Infallible> {
            Ok(self.seen.get(&key).is_some_and(|seen| seen.contains(event)))
        }
        fn forget(&mut self, key: Key) -> Result<(), Infallible> {
            self.seen.remove(&key);
            Ok(())
        }
        fn signal(&mut self, result: &String) -> Result<Option<(String, String)>, Infallible> {
            Ok((!self.is_none(result)).then(|| (result.clone(), result.clone())))
        }
        fn is_none(&self, result: &String) -> bool {
            result == "none"
        }
        fn feedback(&mut self) -> Result<Option<String>, Infallible> {
            Ok(self.feedback.clone())
        }
    }

    fn event(name: &str) -> Condition {
        Condition::Event(name.to_owned())
    }

    fn listener(name: &str, listen: Condition) -> Method {
        Method {
            name: name.to_owned(),
            router: false,
            start: Start::Never,
            listen: Some(listen),
        }
    }

    fn router(name: &str, listen: Condition) -> Method {
        Method {
            router: true,
            ..listener(name, listen)
        }
    }

    fn start(name: &str) -> Method {
        Method {
            name: name.to_owned(),
            router: false,
            start: Start::Always,
            listen: None,
        }
    }

    /// Goes through a flow; `answer` says what a method returns the n-th time. Gives the methods
    /// with their inputs and depths, a group as its names.
    fn go(methods: Vec<Method>, answer: impl Fn(&str, usize) -> String) -> Vec<String> {
        let graph = Arc::new(Graph::new(methods));
        let mut walk = Walk::new(Arc::clone(&graph), 0);
        let (mut world, mut went) = (Plain::default(), Vec::new());
        let mut times: HashMap<usize, usize> = HashMap::new();
        loop {
            let Ok(step) = walk.next(&mut world);
            match step {
                Step::Done => return went,
                Step::Group { methods, .. } => {
                    let names = methods.iter().map(|&at| graph.methods()[at].name.as_str());
                    went.push(names.collect::<Vec<_>>().join("|"));
                }
                Step::Run {
                    method,
                    input,
                    depth,
                    ..
                } => {
                    let name = &graph.methods()[method].name;
                    went.push(format!("{name}({}){depth}", input.unwrap_or_default()));
                    let time = times.entry(method).or_default();
                    *time += 1;
                    world.completed.insert(method);
                    walk.ran(answer(name, *time), None);
                }
            }
        }
    }

    #[test]
    fn listeners_get_what_triggered_them_one_context_deeper() {
        let methods = vec![
            start("a"),
            listener("b", event("a")),
            listener("c", event("b")),
        ];
        assert_eq!(
            go(methods, |name, _| name.to_uppercase()),
            ["a()0", "b(A)1", "c(B)2"]
        );
    }

    #[test]
    fn routers_go_before_listeners_and_their_answers_after() {
        let methods = vec![
            start("a"),
            listener("late", event("a")),
            router("r", event("a")),
            listener("yes", event("go")),
        ];
        let answer = |name: &str, _| {
            if name == "r" {
                "go".into()
            } else {
                "x".to_owned()
            }
        };
        assert_eq!(
            go(methods, answer),
            ["a()0", "r(x)0", "late(x)1", "yes(go)1"]
        );
    }

    #[test]
    fn a_join_waits_for_all_and_alternatives_count_once() {
        let methods = vec![
            start("a"),
            listener("b", event("a")),
            listener("both", Condition::All(vec![event("a"), event("b")])),
            listener("any", Condition::Any(vec![event("a"), event("b")])),
        ];
        // `any` is triggered by `a`, beside `b`; not again by `b`, which a group would run.
        assert_eq!(go(methods, |_, _| "x".to_owned()), ["a()0", "b|any"]);
        let joined = vec![
            start("a"),
            listener("b", event("a")),
            listener("both", Condition::All(vec![event("a"), event("b")])),
        ];
        assert_eq!(
            go(joined, |_, _| "x".to_owned()),
            ["a()0", "b(x)1", "both(x)2"]
        );
    }

    #[test]
    fn a_loop_of_routers_uses_no_deeper_context() {
        let again = Condition::Any(vec![event("a"), event("again")]);
        let methods = vec![
            start("a"),
            router("turn", again),
            listener("end", event("done")),
        ];
        let answer = |name: &str, time: usize| match (name, time) {
            ("turn", 1..4) => "again".to_owned(),
            ("turn", _) => "done".to_owned(),
            _ => "x".to_owned(),
        };
        assert_eq!(
            go(methods, answer),
            [
                "a()0",
                "turn(x)0",
                "turn(x)0",
                "turn(x)0",
                "turn(x)0",
                "end(done)1"
            ]
        );
    }

    #[test]
    fn none_is_no_answer() {
        let methods = vec![
            start("a"),
            router("r", event("a")),
            listener("n", event("none")),
        ];
        assert_eq!(go(methods, |_, _| "none".to_owned()), ["a()0", "r(none)0"]);
    }

    #[test]
    fn conditions_without_events_are_always_met_and_empty_alternatives_never() {
        let methods = vec![
            start("a"),
            router("always", Condition::All(Vec::new())),
            listener("never", Condition::Any(Vec::new())),
        ];
        let graph = Graph::new(methods);
        assert_eq!(graph.waiting("whatever").routers, [1]);
        assert!(graph.waiting("a").listeners.is_empty());
    }
}
