//! The floor on which the batches of a process are worked: who is next, and until when.
//!
//! A batch brings tickets, one for each attempt at an item. Workers, which are Python's threads,
//! take the ticket that is due: of the batch with the highest priority that may have one more at
//! work, the one that was served least recently. What is at work is bounded for each batch and for
//! all together. A ticket whose worker itself waits for another batch does not count meanwhile:
//! otherwise batches within batches would wait for each other.
//!
//! A ticket that takes longer than it may, or whose batch is closed, is given up: its worker is told
//! so when it reports, and another is let in now. Whether it ended in time is decided here, under
//! one lock, by [`Floor::claim`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

// Not `parking_lot`: a child forked while a bucket of its table is held would wait for ever. The
// floor itself is rebuilt in a child.
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A batch, for as long as it is open.
pub type BatchId = u64;
/// An attempt at an item of a batch; unique in its batch.
pub type Ticket = u64;

/// How a batch is worked.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The higher goes first.
    pub priority: i64,
    /// The fewest at work at a time that adapting goes down to.
    pub fewest: usize,
    /// The most. Where both are equal nothing is adapted.
    pub most: usize,
    /// How long a ticket may be at work.
    pub limit: Option<Duration>,
}

/// A ticket to work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its batch.
    pub batch: BatchId,
    /// The ticket.
    pub ticket: Ticket,
}

/// What a batch has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tickets that nobody has taken yet.
    pub ready: usize,
    /// Tickets at work.
    pub running: usize,
    /// Tickets that have ended and nobody has fetched.
    pub ended: usize,
    /// Tickets that were given up and whose workers have not come back.
    pub left: usize,
    /// How many may be at work now.
    pub window: usize,
}

/// What [`Floor::next`] came back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A ticket has ended.
    Ended(Ticket),
    /// Nothing has, within the time.
    Nothing,
    /// There is nothing that could: no ticket is out.
    Empty,
}

/// The floor.
#[derive(Debug)]
pub struct Floor {
    state: Mutex<State>,
    /// Something can be taken, or the floor has stopped.
    work: Condvar,
    /// A ticket has ended, somewhere; or somebody wants those who wait to look again.
    ended: Condvar,
    /// There is a new deadline.
    deadlines: Condvar,
}

#[derive(Debug)]
struct State {
    slots: usize,
    /// Tickets at work that count.
    busy: usize,
    /// Workers that wait in [`Floor::take`], or were asked for and have not come yet.
    idle: usize,
    batches: BTreeMap<BatchId, Batch>,
    next_batch: BatchId,
    turn: u64,
    stopped: bool,
    interrupts: u64,
}

#[derive(Debug)]
struct Batch {
    settings: Settings,
    window: Window,
    /// The turn at which it was served last.
    served: u64,
    ready: VecDeque<Ticket>,
    running: HashMap<Ticket, Running>,
    claimed: usize,
    ended: VecDeque<Ticket>,
    left: usize,
    busy: usize,
}

#[derive(Debug)]
struct Running {
    deadline: Option<Instant>,
    /// How many batches it waits for.
    waiting: usize,
}

impl Floor {
    /// Lays out a floor on which `slots` tickets are worked at a time.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            state: Mutex::new(State {
                slots: slots.max(1),
                busy: 0,
                idle: 0,
                batches: BTreeMap::new(),
                next_batch: 1,
                turn: 0,
                stopped: false,
                interrupts: 0,
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
            deadlines: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how many tickets are worked at a time.
    pub fn set_slots(&self, slots: usize) {
        self.lock().slots = slots.max(1);
        self.work.notify_all();
    }

    /// Opens a batch.
    pub fn open(&self, settings: Settings) -> BatchId {
        let mut state = self.lock();
        let id = state.next_batch;
        state.next_batch += 1;
        state.batches.insert(
            id,
            Batch {
                settings,
                window: Window::new(settings.fewest, settings.most),
                served: 0,
                ready: VecDeque::new(),
                running: HashMap::new(),
                claimed: 0,
                ended: VecDeque::new(),
                left: 0,
                busy: 0,
            },
        );
        id
    }

    /// Adds a ticket. Returns how many workers to start.
    pub fn submit(&self, batch: BatchId, ticket: Ticket) -> usize {
        let mut state = self.lock();
        if let Some(batch) = state.batches.get_mut(&batch) {
            batch.ready.push_back(ticket);
        }
        self.wanted(&mut state)
    }

    /// Waits for a ticket to work on, for at most `patience`. None is the end of the worker.
    ///
    /// Also returns how many further workers to start.
    pub fn take(&self, patience: Duration) -> Option<(Taken, usize)> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if state.stopped {
                state.idle = state.idle.saturating_sub(1);
                return None;
            }
            if let Some(taken) = state.take() {
                state.idle = state.idle.saturating_sub(1);
                let more = self.wanted(&mut state);
                self.deadlines.notify_all();
                return Some((taken, more));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.idle = state.idle.saturating_sub(1);
                return None;
            }
            state = self
                .work
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Notes that a worker comes back for more, which [`take`](Self::take) relies on.
    pub fn back(&self) {
        self.lock().idle += 1;
    }

    /// Notes that workers that were asked for will not come.
    pub fn missing(&self, workers: usize) {
        let mut state = self.lock();
        state.idle = state.idle.saturating_sub(workers);
    }

    /// Asks for the right to end a ticket. False: it was given up meanwhile, and does not count.
    ///
    /// From then on it is not given up any more; [`end`](Self::end) must follow.
    pub fn claim(&self, batch: BatchId, ticket: Ticket) -> bool {
        let mut state = self.lock();
        let Some(found) = state.batches.get_mut(&batch) else {
            return false;
        };
        let Some(running) = found.running.remove(&ticket) else {
            found.left = found.left.saturating_sub(1);
            return false;
        };
        found.claimed += 1;
        if running.waiting == 0 {
            found.busy -= 1;
            state.busy -= 1;
        }
        true
    }

    /// Ends a ticket that was claimed. Returns how many workers to start.
    pub fn end(&self, batch: BatchId, ticket: Ticket) -> usize {
        let mut state = self.lock();
        if let Some(batch) = state.batches.get_mut(&batch) {
            batch.claimed = batch.claimed.saturating_sub(1);
            batch.ended.push_back(ticket);
        }
        self.ended.notify_all();
        self.wanted(&mut state)
    }

    /// Notes that the work on a ticket waits for a batch of its own. Returns how many workers to start.
    pub fn pause(&self, batch: BatchId, ticket: Ticket) -> usize {
        let mut state = self.lock();
        if let Some(found) = state.batches.get_mut(&batch)
            && let Some(running) = found.running.get_mut(&ticket)
        {
            running.waiting += 1;
            if running.waiting == 1 {
                found.busy -= 1;
                state.busy -= 1;
            }
        }
        self.wanted(&mut state)
    }

    /// Notes that it goes on. It does so at once, even where that is one too many for a while.
    pub fn resume(&self, batch: BatchId, ticket: Ticket) {
        let mut state = self.lock();
        if let Some(found) = state.batches.get_mut(&batch)
            && let Some(running) = found.running.get_mut(&ticket)
        {
            running.waiting -= 1;
            if running.waiting == 0 {
                found.busy += 1;
                state.busy += 1;
            }
        }
    }

    /// Waits for a ticket of the batch to end, for at most `patience`, or until
    /// [`interrupt`](Self::interrupt).
    pub fn next(&self, batch: BatchId, patience: Duration) -> Next {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        let interrupts = state.interrupts;
        loop {
            let Some(found) = state.batches.get_mut(&batch) else {
                return Next::Empty;
            };
            if let Some(ticket) = found.ended.pop_front() {
                return Next::Ended(ticket);
            }
            if found.ready.is_empty() && found.running.is_empty() && found.claimed == 0 {
                return Next::Empty;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.interrupts != interrupts {
                return Next::Nothing;
            }
            state = self
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Has everyone who waits in [`next`](Self::next) look around.
    pub fn interrupt(&self) {
        self.lock().interrupts += 1;
        self.ended.notify_all();
    }

    /// Gives up, and ends, what is at work for too long; waits for the next such ticket, for at most
    /// `patience`. Returns them, and how many workers to start.
    pub fn expire(&self, patience: Duration) -> (Vec<Taken>, usize) {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let expired = state.expire(now);
            if !expired.is_empty() || state.stopped || now >= until {
                let more = self.wanted(&mut state);
                self.ended.notify_all();
                return (expired, more);
            }
            let wake = state
                .first_deadline()
                .map_or(until, |first| first.min(until));
            state = self
                .deadlines
                .wait_timeout(state, wake.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Gives a ticket up whose worker has died. Returns whether it was at work, and how many workers
    /// to start.
    pub fn lost(&self, batch: BatchId, ticket: Ticket) -> (bool, usize) {
        let mut state = self.lock();
        let given_up = state.give_up(batch, ticket);
        if given_up && let Some(found) = state.batches.get_mut(&batch) {
            // Nobody will come back for it.
            found.left -= 1;
            found.ended.push_back(ticket);
        }
        self.ended.notify_all();
        let more = self.wanted(&mut state);
        (given_up, more)
    }

    /// Takes back what nobody has begun.
    pub fn withdraw(&self, batch: BatchId) -> Vec<Ticket> {
        let mut state = self.lock();
        state
            .batches
            .get_mut(&batch)
            .map(|batch| batch.ready.drain(..).collect())
            .unwrap_or_default()
    }

    /// Gives up everything that is at work and not claimed, and returns it.
    pub fn abandon(&self, batch: BatchId) -> (Vec<Ticket>, usize) {
        let mut state = self.lock();
        let running: Vec<_> = state
            .batches
            .get(&batch)
            .map(|batch| batch.running.keys().copied().collect())
            .unwrap_or_default();
        for &ticket in &running {
            state.give_up(batch, ticket);
        }
        self.ended.notify_all();
        let more = self.wanted(&mut state);
        (running, more)
    }

    /// Closes a batch: nothing of it is begun or waited for any more.
    pub fn close(&self, batch: BatchId) -> usize {
        self.withdraw(batch);
        let (_, more) = self.abandon(batch);
        let mut state = self.lock();
        // Workers that come back later find no batch, which is as good as given up.
        state.batches.remove(&batch);
        more
    }

    /// Notes how long a model took to answer for a batch, and whether it complained of the rate.
    /// Returns how many workers to start.
    pub fn observe(&self, batch: BatchId, latency: Duration, refused: bool) -> usize {
        let mut state = self.lock();
        if let Some(batch) = state.batches.get_mut(&batch) {
            batch
                .window
                .observe(latency, refused, batch.busy, Instant::now());
        }
        self.wanted(&mut state)
    }

    /// Returns what a batch has.
    #[must_use]
    pub fn counts(&self, batch: BatchId) -> Counts {
        let state = self.lock();
        state
            .batches
            .get(&batch)
            .map_or_else(Counts::default, |batch| Counts {
                ready: batch.ready.len(),
                running: batch.running.len() + batch.claimed,
                ended: batch.ended.len(),
                left: batch.left,
                window: batch.window.size(),
            })
    }

    /// Sends all workers home.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.interrupts += 1;
        self.work.notify_all();
        self.ended.notify_all();
        self.deadlines.notify_all();
    }

    /// Returns how many workers are missing for what can be begun now, and counts on their coming.
    fn wanted(&self, state: &mut State) -> usize {
        if state.stopped {
            return 0;
        }
        let free = state.slots.saturating_sub(state.busy);
        let due: usize = state.batches.values().map(Batch::due).sum();
        let due = due.min(free);
        for _ in 0..due.min(state.idle) {
            self.work.notify_one();
        }
        let missing = due.saturating_sub(state.idle);
        state.idle += missing;
        missing
    }
}

impl State {
    fn take(&mut self) -> Option<Taken> {
        if self.busy >= self.slots {
            return None;
        }
        let (&id, batch) = self
            .batches
            .iter_mut()
            .filter(|(_, batch)| batch.due() > 0)
            .min_by_key(|(id, batch)| (-batch.settings.priority, batch.served, **id))?;
        let ticket = batch.ready.pop_front()?;
        self.turn += 1;
        self.busy += 1;
        batch.served = self.turn;
        batch.busy += 1;
        let deadline = batch
            .settings
            .limit
            .and_then(|limit| Instant::now().checked_add(limit));
        batch.running.insert(
            ticket,
            Running {
                deadline,
                waiting: 0,
            },
        );
        Some(Taken { batch: id, ticket })
    }

    /// Takes a ticket from its worker. It can be begun anew, under another number.
    fn give_up(&mut self, id: BatchId, ticket: Ticket) -> bool {
        let Some(batch) = self.batches.get_mut(&id) else {
            return false;
        };
        let Some(running) = batch.running.remove(&ticket) else {
            return false;
        };
        batch.left += 1;
        if running.waiting == 0 {
            batch.busy -= 1;
            self.busy -= 1;
        }
        true
    }

    fn expire(&mut self, now: Instant) -> Vec<Taken> {
        let mut expired = Vec::new();
        for (&id, batch) in &self.batches {
            let late = batch
                .running
                .iter()
                .filter(|(_, running)| running.deadline.is_some_and(|deadline| deadline <= now));
            expired.extend(late.map(|(&ticket, _)| Taken { batch: id, ticket }));
        }
        for taken in &expired {
            self.give_up(taken.batch, taken.ticket);
            if let Some(batch) = self.batches.get_mut(&taken.batch) {
                batch.ended.push_back(taken.ticket);
            }
        }
        expired
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.batches
            .values()
            .flat_map(|batch| batch.running.values())
            .filter_map(|running| running.deadline)
            .min()
    }
}

impl Batch {
    /// How many more can be begun.
    fn due(&self) -> usize {
        self.window
            .size()
            .saturating_sub(self.busy)
            .min(self.ready.len())
    }
}

/// How many tickets of a batch are at work at a time: more while answers come as fast as ever, fewer
/// when they slow down, far fewer when a model says that its rate is exceeded.
///
/// Additive increase and multiplicative decrease, as in TCP (V. Jacobson, Congestion Avoidance and
/// Control, 1988), doubling until the first sign of trouble; latency as such a sign as in TCP Vegas.
#[derive(Debug)]
struct Window {
    fewest: f64,
    most: f64,
    size: f64,
    /// The fastest that answers were, forgotten slowly.
    best: Option<f64>,
    /// How fast they are now.
    recent: f64,
    steady: bool,
    cut: Option<Instant>,
}

/// What remains after a refusal, and after answers have become slow.
const REFUSED: f64 = 0.6;
const SLOW: f64 = 0.9;
/// How much slower than the best counts as slow.
const MUCH: f64 = 2.0;
/// And by how many seconds: what is less comes from this machine, not from the model.
const NOTABLE: f64 = 0.05;
/// The weight of one answer in how fast answers are now, and in forgetting the best.
const WEIGHT: f64 = 0.1;
const FORGET: f64 = 0.005;
/// What was begun before a cut is still on its way for about as long as an answer takes.
const SHORTEST_PAUSE: f64 = 0.25;

impl Window {
    fn new(fewest: usize, most: usize) -> Self {
        let (fewest, most) = (fewest.max(1) as f64, most.max(fewest).max(1) as f64);
        Self {
            fewest,
            most,
            size: fewest,
            best: None,
            recent: 0.0,
            steady: false,
            cut: None,
        }
    }

    fn size(&self) -> usize {
        self.size as usize
    }

    fn observe(&mut self, latency: Duration, refused: bool, busy: usize, now: Instant) {
        if self.fewest >= self.most {
            return;
        }
        let pause = self.recent.max(SHORTEST_PAUSE);
        let settled = self
            .cut
            .is_none_or(|cut| now.saturating_duration_since(cut).as_secs_f64() >= pause);
        if refused {
            if settled {
                self.shrink(REFUSED, now);
            }
            return;
        }
        let seconds = latency.as_secs_f64();
        let best = self.best.map_or(seconds, |best| {
            seconds.min(best + (self.recent - best) * FORGET)
        });
        self.recent = self
            .best
            .map_or(seconds, |_| self.recent + (seconds - self.recent) * WEIGHT);
        self.best = Some(best);
        if !settled {
            return;
        }
        if self.recent > (best * MUCH).max(best + NOTABLE) {
            self.shrink(SLOW, now);
        } else if busy + 1 >= self.size() {
            // Only what is used is known to be good.
            let step = if self.steady { 1.0 / self.size } else { 1.0 };
            self.size = (self.size + step).min(self.most);
        }
    }

    fn shrink(&mut self, to: f64, now: Instant) {
        self.size = (self.size * to).max(self.fewest);
        self.steady = true;
        self.cut = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::ZERO;
    const LATE: Duration = Duration::from_secs(60);

    const fn fixed(priority: i64, most: usize) -> Settings {
        Settings {
            priority,
            fewest: most,
            most,
            limit: None,
        }
    }

    /// As a worker does: it is counted before it comes.
    fn take(floor: &Floor) -> Option<Taken> {
        floor.back();
        floor.take(SOON).map(|(taken, _)| taken)
    }

    fn end(floor: &Floor, taken: Taken) {
        assert!(floor.claim(taken.batch, taken.ticket));
        floor.end(taken.batch, taken.ticket);
    }

    #[test]
    fn a_batch_has_no_more_at_work_than_it_may() {
        let floor = Floor::new(100);
        let batch = floor.open(fixed(0, 2));
        let asked: usize = (0..5).map(|ticket| floor.submit(batch, ticket)).sum();
        assert_eq!(asked, 2);
        let first = floor.take(SOON).unwrap().0;
        floor.take(SOON).unwrap();
        assert_eq!(take(&floor), None);
        end(&floor, first);
        assert_eq!(take(&floor).unwrap().ticket, 2);
        assert_eq!(floor.next(batch, SOON), Next::Ended(0));
        assert_eq!(floor.next(batch, SOON), Next::Nothing);
    }

    #[test]
    fn the_higher_priority_goes_first_and_equals_take_turns() {
        let floor = Floor::new(100);
        let low = floor.open(fixed(0, 9));
        let (one, two) = (floor.open(fixed(5, 9)), floor.open(fixed(5, 9)));
        for ticket in 0..2 {
            for batch in [low, one, two] {
                floor.submit(batch, ticket);
            }
        }
        let order: Vec<_> = std::iter::from_fn(|| take(&floor))
            .map(|taken| taken.batch)
            .collect();
        assert_eq!(order, [one, two, one, two, low, low]);
    }

    #[test]
    fn a_batch_within_a_batch_finds_room() {
        let floor = Floor::new(1);
        let (outer, inner) = (floor.open(fixed(0, 1)), floor.open(fixed(0, 1)));
        floor.submit(outer, 0);
        let at_work = floor.take(SOON).unwrap().0;
        floor.submit(inner, 0);
        assert_eq!(take(&floor), None);
        // Two tools of the same item, side by side.
        assert_eq!(floor.pause(outer, at_work.ticket), 1);
        floor.pause(outer, at_work.ticket);
        let within = floor.take(SOON).unwrap().0;
        assert_eq!(within.batch, inner);
        floor.resume(outer, at_work.ticket);
        end(&floor, within);
        floor.resume(outer, at_work.ticket);
        end(&floor, at_work);
        assert_eq!(floor.counts(outer).running, 0);
        floor.submit(outer, 1);
        assert!(take(&floor).is_some());
    }

    #[test]
    fn what_takes_too_long_is_given_up_and_another_let_in() {
        let floor = Floor::new(1);
        let batch = floor.open(Settings {
            limit: Some(Duration::from_millis(1)),
            ..fixed(0, 1)
        });
        floor.submit(batch, 0);
        floor.submit(batch, 1);
        let slow = floor.take(SOON).unwrap().0;
        let (expired, more) = floor.expire(LATE);
        assert_eq!((expired, more), (vec![slow], 1));
        assert_eq!(floor.next(batch, SOON), Next::Ended(0));
        assert_eq!(floor.counts(batch).left, 1);
        assert!(!floor.claim(batch, slow.ticket));
        assert_eq!(floor.counts(batch).left, 0);
        assert_eq!(floor.take(SOON).unwrap().0.ticket, 1);
    }

    #[test]
    fn what_was_claimed_is_not_given_up() {
        let floor = Floor::new(2);
        let batch = floor.open(fixed(0, 2));
        floor.submit(batch, 0);
        floor.submit(batch, 1);
        floor.submit(batch, 2);
        let (one, _) = (floor.take(SOON).unwrap().0, floor.take(SOON).unwrap());
        assert!(floor.claim(batch, one.ticket));
        assert_eq!(floor.withdraw(batch), [2]);
        assert_eq!(floor.abandon(batch).0, [1]);
        assert_eq!(floor.next(batch, SOON), Next::Nothing);
        floor.end(batch, one.ticket);
        assert_eq!(floor.next(batch, SOON), Next::Ended(0));
        assert_eq!(floor.next(batch, LATE), Next::Empty);
        floor.close(batch);
        assert!(!floor.claim(batch, 1));
    }

    #[test]
    fn the_ticket_of_a_dead_worker_ends() {
        let floor = Floor::new(1);
        let batch = floor.open(fixed(0, 1));
        floor.submit(batch, 0);
        floor.take(SOON).unwrap();
        assert!(floor.lost(batch, 0).0);
        assert!(!floor.lost(batch, 0).0);
        assert_eq!(floor.next(batch, SOON), Next::Ended(0));
        assert_eq!(
            floor.counts(batch),
            Counts {
                window: 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn everybody_goes_home_when_the_floor_stops() {
        let floor = Floor::new(1);
        let batch = floor.open(fixed(0, 1));
        std::thread::scope(|scope| {
            floor.back();
            let worker = scope.spawn(|| floor.take(LATE));
            let keeper = scope.spawn(|| floor.expire(LATE));
            floor.stop();
            assert_eq!(worker.join().unwrap(), None);
            assert_eq!(keeper.join().unwrap().0, []);
        });
        assert_eq!(floor.submit(batch, 0), 0);
    }

    #[test]
    fn threads_work_every_ticket_once() {
        let floor = Floor::new(7);
        let batches: Vec<_> = (0..3).map(|most| floor.open(fixed(0, most + 2))).collect();
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    floor.back();
                    while let Some((taken, _)) = floor.take(Duration::from_millis(500)) {
                        if floor.claim(taken.batch, taken.ticket) {
                            done.lock().unwrap().push((taken.batch, taken.ticket));
                            floor.end(taken.batch, taken.ticket);
                        }
                        floor.back();
                    }
                });
            }
            for ticket in 0..500 {
                for &batch in &batches {
                    floor.submit(batch, ticket);
                }
            }
        });
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        let all: Vec<_> = batches
            .iter()
            .flat_map(|&batch| (0..500).map(move |ticket| (batch, ticket)))
            .collect();
        assert_eq!(done, all);
    }

    #[test]
    fn a_window_grows_while_all_is_well_and_shrinks_when_it_is_not() {
        let mut window = Window::new(2, 100);
        let mut now = Instant::now();
        let mut answer = |window: &mut Window, milliseconds, refused| {
            now += Duration::from_secs(1);
            let busy = window.size();
            window.observe(Duration::from_millis(milliseconds), refused, busy, now);
            window.size()
        };
        let grown = (0..30)
            .map(|_| answer(&mut window, 100, false))
            .last()
            .unwrap();
        assert_eq!(grown, 32);
        assert_eq!(answer(&mut window, 100, true), 19);
        let slowed = (0..200)
            .map(|_| answer(&mut window, 1000, false))
            .min()
            .unwrap();
        assert!(slowed < 10, "{slowed}");
        for _ in 0..100 {
            answer(&mut window, 100, true);
        }
        assert_eq!(window.size(), 2);
        assert_eq!(Window::new(5, 5).size(), 5);
    }
}
