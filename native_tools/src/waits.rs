//! Who waits for whom, so that calls that would wait for each other for ever are told instead.
//!
//! A call that holds a place behind a gate, and makes another call inside of it, goes on when that
//! one does. That one may wait for a place that a third call holds, which goes on when a call inside
//! of it does, and so on, round to the first. Such a ring closes where a call begins to wait inside
//! of one that holds something, and is looked for there: no other wait holds anybody up.
//!
//! A call counts as held up while any call inside of it is, also where that runs on another thread
//! or in another task: nobody can know that it will not be waited for. A blocking call on a thread
//! that runs an event loop holds up what is awaited there, too; there, a ring also closes where one
//! that is awaited gets a place and cannot use it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crewai_native_sdk::process::PerProcess;
use tokio::sync::oneshot;

use crate::admission::Inside;
use crate::handoff::Ticket;

static WAITS: PerProcess<Mutex<Waits>> = PerProcess::new();

/// Numbers go on in the child of a fork, so that none of its parent's is anybody's there.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// The lock is held for a look at those who wait; Python is never called under it.
fn waits() -> MutexGuard<'static, Waits> {
    WAITS
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// What one who waits is told.
#[derive(Debug)]
pub enum Word {
    /// It need not wait for this place.
    GoOn,
    /// Its turn would never come.
    Ring(Vec<Link>),
}

/// A step from one who waits to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The tool whose call holds the place that the one before waits for.
    pub holder: String,
    /// The tool whose call holds it up, by waiting itself.
    pub waiter: String,
    /// Whether it does so because it blocks the event loop on which the holder is awaited.
    pub blocks_loop: bool,
}

/// Says that a call waits for a place, until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    number: u64,
    word: oneshot::Receiver<Word>,
}

impl Waiting {
    /// Says that a call begins to wait for a place behind a gate.
    ///
    /// None: it holds nobody up, so that no ring goes through it.
    pub fn begin(ticket: &Arc<Ticket>, gate: &Arc<Inside>) -> Option<Self> {
        let (holds_up, matters) = held_up_by(ticket);
        if !matters {
            return None;
        }
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (tell, word) = oneshot::channel();
        let mut waits = waits();
        waits.add(
            number,
            Waiter {
                ticket: Arc::clone(ticket),
                gate: Arc::clone(gate),
                holds_up,
                tell,
            },
        );
        waits.break_rings_of(number);
        drop(waits);
        Some(Self { number, word })
    }

    /// Waits until there is a word for the one who waits, which may be never.
    pub async fn told(&mut self) -> Word {
        match (&mut self.word).await {
            Ok(word) => word,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        waits().remove(self.number);
    }
}

/// Says that a call has got a place that it did not have at once.
pub fn has_place(ticket: &Arc<Ticket>) {
    let origin = ticket.origin();
    if !origin.awaited {
        return;
    }
    let mut waits = waits();
    let blocked = waits.behind.get(&Held::Loop(origin.event_loop)).cloned();
    for number in blocked.into_iter().flatten() {
        waits.break_rings_of(number);
    }
}

/// What cannot go on while somebody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Held {
    Call(usize),
    Loop(u64),
}

/// Returns what a call holds up while it waits, itself included, and whether a ring can go there.
fn held_up_by(ticket: &Arc<Ticket>) -> (Vec<Held>, bool) {
    let (mut held, mut turning, mut matters) = (Vec::new(), Vec::new(), false);
    let mut next = Some(Arc::clone(ticket));
    while let Some(call) = next {
        let origin = call.origin();
        // One that has ended holds nothing; but what it has left behind may be waited for further out.
        if !call.has_left() {
            held.push(Held::Call(call.address()));
            matters |= call.holds_places();
            if origin.awaited {
                turning.push(origin.event_loop);
            } else if origin.event_loop != 0
                && !call.is_cancelled()
                && !turning.contains(&origin.event_loop)
            {
                held.push(Held::Loop(origin.event_loop));
                matters = true;
            }
        }
        // Whoever has called an abandoned call goes on without it.
        let outer = origin.outer.as_ref().filter(|_| !call.is_cancelled());
        next = outer.and_then(Weak::upgrade);
    }
    (held, matters)
}

#[derive(Debug)]
struct Waiter {
    ticket: Arc<Ticket>,
    gate: Arc<Inside>,
    /// What it held up when it began. Calls end and callers leave meanwhile; none is added.
    holds_up: Vec<Held>,
    tell: oneshot::Sender<Word>,
}

/// Those who wait for a place and hold somebody up.
#[derive(Debug, Default)]
struct Waits {
    waiters: HashMap<u64, Waiter>,
    behind: HashMap<Held, Vec<u64>>,
}

/// One who waits, as far as the one who asks can come.
struct Reached {
    number: u64,
    /// Those who hold the places that it waits for, and who holds up each of them.
    holders: Vec<(Arc<Ticket>, Vec<u64>)>,
    stuck: bool,
}

/// A step of a ring: a holder, and the one who holds it up.
type Step = (Arc<Ticket>, u64);

impl Waits {
    fn add(&mut self, number: u64, waiter: Waiter) {
        for &held in &waiter.holds_up {
            self.behind.entry(held).or_default().push(number);
        }
        self.waiters.insert(number, waiter);
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&number)?;
        for held in &waiter.holds_up {
            if let Some(numbers) = self.behind.get_mut(held) {
                numbers.retain(|&other| other != number);
                if numbers.is_empty() {
                    self.behind.remove(held);
                }
            }
        }
        Some(waiter)
    }

    /// Ends a wait that has closed a ring; or, while one in the ring waits where it need not, that.
    fn break_rings_of(&mut self, number: u64) {
        while let Some(ring) = self.ring(number) {
            let spared = ring.iter().map(|&(_, waiter)| waiter).find(|waiter| {
                self.waiters
                    .get(waiter)
                    .is_some_and(|waiter| waiter.gate.gives_way())
            });
            let word = spared.map_or_else(|| Word::Ring(self.links(&ring)), |_| Word::GoOn);
            if let Some(waiter) = self.remove(spared.unwrap_or(number)) {
                // One that has got its place meanwhile does not listen, and goes on anyway.
                let _ = waiter.tell.send(word);
            }
        }
    }

    /// Returns the ring that one who waits has closed.
    fn ring(&self, number: u64) -> Option<Vec<Step>> {
        let mut reached = vec![self.reach(number)];
        let mut places = HashMap::from([(number, 0)]);
        let mut at = 0;
        // Most see at once that somebody whom they wait for goes on.
        while at < reached.len() && reached[0].stuck {
            let behind: Vec<u64> = reached[at].behind().collect();
            for number in behind {
                places.entry(number).or_insert_with(|| {
                    reached.push(self.reach(number));
                    reached.len() - 1
                });
            }
            at += 1;
        }
        // All are stuck but those who wait for somebody who goes on, and so on.
        while let Some(free) = reached.iter().position(|one| {
            let goes_on = |behind: &Vec<u64>| !behind.iter().any(|n| reached[places[n]].stuck);
            one.stuck && one.holders.iter().any(|(_, behind)| goes_on(behind))
        }) {
            reached[free].stuck = false;
        }
        let stuck = reached[0].stuck;
        stuck.then(|| way_back(&reached, &places)).flatten()
    }

    fn reach(&self, number: u64) -> Reached {
        let holders = self
            .waiters
            .get(&number)
            // One that was cancelled, or whose time is up, waits no more.
            .filter(|waiter| !waiter.ticket.is_settled())
            .and_then(|waiter| waiter.gate.holders())
            .and_then(|holders| {
                let behind = |holder: Arc<Ticket>| {
                    let numbers = self.behind(&holder);
                    (!numbers.is_empty()).then_some((holder, numbers))
                };
                holders.into_iter().map(behind).collect::<Option<Vec<_>>>()
            });
        Reached {
            number,
            stuck: holders.is_some(),
            holders: holders.unwrap_or_default(),
        }
    }

    /// Returns who holds up a call by waiting.
    fn behind(&self, call: &Arc<Ticket>) -> Vec<u64> {
        let origin = call.origin();
        let on_loop = origin.awaited.then_some(Held::Loop(origin.event_loop));
        let mut found = Vec::new();
        for held in std::iter::once(Held::Call(call.address())).chain(on_loop) {
            for number in self.behind.get(&held).into_iter().flatten() {
                // Callers may have left since it began.
                let holds = |waiter: &Waiter| held_up_by(&waiter.ticket).0.contains(&held);
                if self.waiters.get(number).is_some_and(holds) {
                    found.push(*number);
                }
            }
        }
        found
    }

    fn links(&self, ring: &[Step]) -> Vec<Link> {
        let link = |(holder, number): &Step| {
            let waiter = &self.waiters.get(number)?.ticket;
            let inside = Held::Call(holder.address());
            Some(Link {
                holder: holder.origin().tool.to_string(),
                waiter: waiter.origin().tool.to_string(),
                blocks_loop: !held_up_by(waiter).0.contains(&inside),
            })
        };
        ring.iter().filter_map(link).collect()
    }
}

impl Reached {
    fn behind(&self) -> impl Iterator<Item = u64> {
        self.holders
            .iter()
            .flat_map(|(_, numbers)| numbers.iter().copied())
    }
}

/// Returns the shortest way from the first one who is reached back to it, that step first.
fn way_back(reached: &[Reached], places: &HashMap<u64, usize>) -> Option<Vec<Step>> {
    let mut came: HashMap<usize, (usize, &Arc<Ticket>)> = HashMap::new();
    let mut queue = VecDeque::from([0]);
    while let Some(at) = queue.pop_front() {
        for (holder, behind) in &reached[at].holders {
            for next in behind.iter().map(|number| places[number]) {
                if !reached[next].stuck || came.contains_key(&next) {
                    continue;
                }
                came.insert(next, (at, holder));
                queue.push_back(next);
            }
        }
    }
    let (mut ring, mut at) = (Vec::new(), 0);
    while ring.is_empty() || at != 0 {
        let &(before, holder) = came.get(&at)?;
        // Followed from its end, which is the first one's step.
        ring.insert(ring.len().min(1), (Arc::clone(holder), reached[at].number));
        at = before;
    }
    Some(ring)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::admission::Gate;
    use crate::handoff::Origin;

    fn call(tool: &str, outer: Option<&Arc<Ticket>>) -> Arc<Ticket> {
        on_loop(tool, outer, 0, false)
    }

    fn on_loop(
        tool: &str,
        outer: Option<&Arc<Ticket>>,
        event_loop: u64,
        awaited: bool,
    ) -> Arc<Ticket> {
        let outer = outer.map(Arc::downgrade);
        let tool = tool.into();
        let origin = Origin {
            tool,
            outer,
            event_loop,
            awaited,
        };
        Arc::new(Ticket::of(origin, None))
    }

    fn holds(ticket: &Arc<Ticket>, gate: &Gate) {
        ticket.keep(gate.try_enter().unwrap());
    }

    /// Who waits for whom in the ring that has ended a wait, or `None` while it goes on.
    fn said(waiting: &mut Waiting) -> Option<String> {
        match waiting.word.try_recv() {
            Ok(Word::GoOn) => Some("go on".into()),
            Ok(Word::Ring(links)) => Some(
                links
                    .iter()
                    .map(|link| format!("{}-{}", link.holder, link.waiter))
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => panic!("nobody is left to tell"),
        }
    }

    #[test]
    fn the_wait_that_closes_a_ring_is_ended() {
        let gates = ["a", "b", "c"].map(|tool| (tool, Gate::new(1)));
        let outer = gates.each_ref().map(|(tool, gate)| {
            let ticket = call(tool, None);
            holds(&ticket, gate);
            ticket
        });
        let mut waits = Vec::new();
        for at in 0..3 {
            let (tool, gate) = &gates[(at + 1) % 3];
            let inner = call(tool, Some(&outer[at]));
            let mut waiting = Waiting::begin(&inner, gate.inside()).unwrap();
            if at < 2 {
                assert_eq!(said(&mut waiting), None);
                waits.push((inner, waiting));
            } else {
                assert_eq!(said(&mut waiting).unwrap(), "c-a a-b b-c");
            }
        }
        // It left nothing behind that others would take for somebody who waits.
        drop(waits);
        let inner = call("a", Some(&outer[2]));
        let mut waiting = Waiting::begin(&inner, gates[0].1.inside()).unwrap();
        assert_eq!(said(&mut waiting), None);
    }

    #[test]
    fn one_who_goes_on_is_enough() {
        let (a, b) = (Gate::new(1), Gate::new(2));
        let (one, two, free) = (call("a", None), call("b", None), call("b", None));
        holds(&one, &a);
        holds(&two, &b);
        holds(&free, &b);
        let inner = call("a", Some(&two));
        let waits_for_a = Waiting::begin(&inner, a.inside()).unwrap();
        let inner = call("b", Some(&one));
        let mut waiting = Waiting::begin(&inner, b.inside()).unwrap();
        assert_eq!(said(&mut waiting), None);
        drop(waiting);
        free.finish();
        // A place that is free, or on its way, is one, too.
        let mut waiting = Waiting::begin(&inner, b.inside()).unwrap();
        assert_eq!(said(&mut waiting), None);
        drop((waiting, waits_for_a));
        assert!(Waiting::begin(&call("b", None), b.inside()).is_none());
    }

    #[test]
    fn callers_that_have_left_wait_for_nobody() {
        let (a, b) = (Gate::new(1), Gate::new(1));
        let (outer, other) = (call("a", None), call("b", None));
        holds(&outer, &a);
        holds(&other, &b);
        let left = call("x", Some(&outer));
        let inner = call("b", Some(&left));
        let _waits_for_b = Waiting::begin(&inner, b.inside());
        left.cancel();
        let inner = call("a", Some(&other));
        let mut waiting = Waiting::begin(&inner, a.inside()).unwrap();
        assert_eq!(said(&mut waiting), None);
    }

    #[test]
    fn a_gate_that_gives_way_lets_in() {
        let (door, threads) = (Gate::new(1), Gate::new(1).giving_way());
        let (outer, other) = (call("a", None), call("b", None));
        holds(&outer, &threads);
        holds(&other, &door);
        let mut waits_for_thread = Waiting::begin(&other, threads.inside()).unwrap();
        assert_eq!(said(&mut waits_for_thread), None);
        let inner = call("b", Some(&outer));
        let mut waiting = Waiting::begin(&inner, door.inside()).unwrap();
        assert_eq!(said(&mut waiting), None);
        assert_eq!(said(&mut waits_for_thread).unwrap(), "go on");
    }

    #[test]
    fn who_blocks_a_loop_holds_up_what_is_awaited_there() {
        let gate = Gate::new(1);
        let (first, awaited) = (call("a", None), on_loop("a", None, 7, true));
        holds(&first, &gate);
        let blocking = on_loop("b", None, 7, false);
        let mut waiting = Waiting::begin(&blocking, gate.inside()).unwrap();
        assert_eq!(said(&mut waiting), None);
        // The awaited call was before it in the queue.
        first.finish();
        holds(&awaited, &gate);
        has_place(&awaited);
        assert_eq!(said(&mut waiting).unwrap(), "a-b");

        // What runs an event loop inside of it does not block that.
        let runs = on_loop("a", None, 0, false);
        let inside = on_loop("b", Some(&runs), 7, true);
        let mut waiting = Waiting::begin(&inside, gate.inside());
        assert!(waiting.as_mut().and_then(said).is_none());
    }
}
