//! Results of tool calls, the least recently used of which go first.
//!
//! Crates that cache do not fit: results belong to tools that have bounds of their own beside the
//! common one, what is removed must be handed back (it is a Python object, to be dropped without a
//! lock and under the GIL), and which entry goes must be predictable. This is three linked lists
//! through one vector.

use std::collections::HashMap;
use std::sync::Arc;

/// What a tool's results may weigh, and how old they may become. `None`: any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Nanoseconds after which a result is no longer given.
    pub ttl: Option<u64>,
    /// Weight of the tool's results together.
    pub max_weight: Option<u64>,
}

/// What has happened, and what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lookups that found a result.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Results that were removed to make room.
    pub evictions: u64,
    /// Results that were removed because of their age.
    pub expirations: u64,
    /// Results that were not kept: heavier than a bound allows, or impossible to copy.
    pub refusals: u64,
    /// Results that are kept.
    pub entries: u64,
    /// Their weight.
    pub weight: u64,
}

impl Counts {
    /// Adds what has changed between two states of a collection.
    pub fn add_change(&mut self, before: &Self, after: &Self) {
        let change = |own: &mut u64, before: u64, after: u64| {
            *own = own.wrapping_add(after.wrapping_sub(before));
        };
        change(&mut self.hits, before.hits, after.hits);
        change(&mut self.misses, before.misses, after.misses);
        change(&mut self.evictions, before.evictions, after.evictions);
        change(&mut self.expirations, before.expirations, after.expirations);
        change(&mut self.refusals, before.refusals, after.refusals);
        change(&mut self.entries, before.entries, after.entries);
        change(&mut self.weight, before.weight, after.weight);
    }
}

const NONE: u32 = u32::MAX;
const LISTS: usize = 3;
/// All results, the most recently used first.
const ALL: usize = 0;
/// A tool's results, the most recently used first.
const USE: usize = 1;
/// A tool's results, the newest first; as all of them have one time to live, the last ends first.
const AGE: usize = 2;

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

const EMPTY: List = List {
    first: NONE,
    last: NONE,
};

struct Entry<V> {
    tool: u32,
    key: Arc<str>,
    value: V,
    weight: u64,
    added: u64,
    links: [Link; LISTS],
}

struct Tool {
    policy: Policy,
    entries: HashMap<Arc<str>, u32>,
    weight: u64,
    /// The list `ALL` is the common one; its place here stays empty.
    lists: [List; LISTS],
}

/// The results of several tools. Times are nanoseconds of any clock that does not go back.
pub struct Results<V> {
    max_weight: Option<u64>,
    names: HashMap<Box<str>, u32>,
    tools: Vec<Tool>,
    entries: Vec<Option<Entry<V>>>,
    free: Vec<u32>,
    all: List,
    counts: Counts,
}

impl<V> Results<V> {
    /// Creates an empty collection whose entries may weigh `max_weight` together.
    pub fn new(max_weight: Option<u64>) -> Self {
        Self {
            max_weight,
            names: HashMap::new(),
            tools: Vec::new(),
            entries: Vec::new(),
            free: Vec::new(),
            all: EMPTY,
            counts: Counts::default(),
        }
    }

    /// Returns what has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns whether this tool is known.
    pub fn knows(&self, tool: &str) -> bool {
        self.names.contains_key(tool)
    }

    /// Makes a tool known; one that is known already keeps its policy.
    pub fn introduce(&mut self, tool: &str, policy: Policy) {
        if !self.knows(tool) {
            self.names.insert(tool.into(), self.tools.len() as u32);
            self.tools.push(Tool {
                policy,
                entries: HashMap::new(),
                weight: 0,
                lists: [EMPTY; LISTS],
            });
        }
    }

    /// Returns a result and makes it the most recently used. What has expired goes to `gone`.
    pub fn get(&mut self, tool: &str, key: &str, now: u64, gone: &mut Vec<V>) -> Option<&V> {
        let found = self.find(tool, key).and_then(|at| {
            if self.expired(at, now) {
                gone.extend(self.remove(at));
                self.counts.expirations += 1;
                return None;
            }
            for list in [ALL, USE] {
                self.unlink(at, list);
                self.link_first(at, list);
            }
            Some(at)
        });
        if let Some(at) = found {
            self.counts.hits += 1;
            self.entries[at as usize].as_ref().map(|entry| &entry.value)
        } else {
            self.counts.misses += 1;
            None
        }
    }

    /// Keeps a result of a tool that was [introduced](Self::introduce), in place of an older one of
    /// the same key. What has to go for it goes to `gone`; the result itself where it is too heavy.
    pub fn put(
        &mut self,
        tool: &str,
        key: &str,
        value: V,
        weight: u64,
        now: u64,
        gone: &mut Vec<V>,
    ) {
        self.forget(tool, key, gone);
        self.expire(now, gone);
        let Some(&owner) = self.names.get(tool) else {
            gone.push(value);
            return;
        };
        let own = self.tools[owner as usize].policy.max_weight;
        if [own, self.max_weight]
            .into_iter()
            .flatten()
            .any(|max| weight > max)
        {
            self.counts.refusals += 1;
            gone.push(value);
            return;
        }
        self.make_room(own, weight, owner, USE, gone);
        self.make_room(self.max_weight, weight, owner, ALL, gone);

        let key: Arc<str> = key.into();
        let entry = Entry {
            tool: owner,
            key: Arc::clone(&key),
            value,
            weight,
            added: now,
            links: [Link {
                before: NONE,
                after: NONE,
            }; LISTS],
        };
        let at = if let Some(at) = self.free.pop() {
            self.entries[at as usize] = Some(entry);
            at
        } else {
            self.entries.push(Some(entry));
            self.entries.len() as u32 - 1
        };
        for list in [ALL, USE, AGE] {
            self.link_first(at, list);
        }
        let tool = &mut self.tools[owner as usize];
        tool.entries.insert(key, at);
        tool.weight += weight;
        self.counts.entries += 1;
        self.counts.weight += weight;
    }

    /// Counts a result that was not even offered, and drops an older one of the same key.
    pub fn refuse(&mut self, tool: &str, key: &str, gone: &mut Vec<V>) {
        self.forget(tool, key, gone);
        self.counts.refusals += 1;
    }

    /// Drops the result of a key, if there is one.
    pub fn forget(&mut self, tool: &str, key: &str, gone: &mut Vec<V>) {
        if let Some(at) = self.find(tool, key) {
            gone.extend(self.remove(at));
        }
    }

    /// Drops every result and hands them back. Counts and tools stay.
    pub fn clear(&mut self) -> Vec<V> {
        for tool in &mut self.tools {
            tool.entries.clear();
            tool.weight = 0;
            tool.lists = [EMPTY; LISTS];
        }
        self.free.clear();
        self.all = EMPTY;
        self.counts.entries = 0;
        self.counts.weight = 0;
        let entries = std::mem::take(&mut self.entries);
        entries
            .into_iter()
            .flatten()
            .map(|entry| entry.value)
            .collect()
    }

    /// Walks over the results.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().flatten().map(|entry| &entry.value)
    }

    fn find(&self, tool: &str, key: &str) -> Option<u32> {
        let owner = *self.names.get(tool)?;
        self.tools[owner as usize].entries.get(key).copied()
    }

    fn expired(&self, at: u32, now: u64) -> bool {
        self.entries[at as usize].as_ref().is_some_and(|entry| {
            let ttl = self.tools[entry.tool as usize].policy.ttl;
            ttl.is_some_and(|ttl| now.saturating_sub(entry.added) >= ttl)
        })
    }

    /// Removes what has expired, of every tool: one that is no longer called must not keep its.
    fn expire(&mut self, now: u64, gone: &mut Vec<V>) {
        for owner in 0..self.tools.len() {
            if self.tools[owner].policy.ttl.is_none() {
                continue;
            }
            loop {
                let last = self.tools[owner].lists[AGE].last;
                if last == NONE || !self.expired(last, now) {
                    break;
                }
                gone.extend(self.remove(last));
                self.counts.expirations += 1;
            }
        }
    }

    /// Removes the least recently used of a list until there is room for `weight`.
    fn make_room(
        &mut self,
        max: Option<u64>,
        weight: u64,
        owner: u32,
        list: usize,
        gone: &mut Vec<V>,
    ) {
        let Some(max) = max else { return };
        loop {
            let (held, last) = if list == ALL {
                (self.counts.weight, self.all.last)
            } else {
                let tool = &self.tools[owner as usize];
                (tool.weight, tool.lists[list].last)
            };
            // `weight` is at most `max`: it was looked at before.
            if held <= max - weight || last == NONE {
                return;
            }
            gone.extend(self.remove(last));
            self.counts.evictions += 1;
        }
    }

    fn remove(&mut self, at: u32) -> Option<V> {
        for list in [ALL, USE, AGE] {
            self.unlink(at, list);
        }
        let entry = self.entries[at as usize].take()?;
        self.free.push(at);
        let tool = &mut self.tools[entry.tool as usize];
        tool.entries.remove(&entry.key);
        tool.weight -= entry.weight;
        self.counts.entries -= 1;
        self.counts.weight -= entry.weight;
        Some(entry.value)
    }

    fn list(&mut self, at: u32, list: usize) -> Option<&mut List> {
        let owner = self.entries[at as usize].as_ref()?.tool;
        Some(if list == ALL {
            &mut self.all
        } else {
            &mut self.tools[owner as usize].lists[list]
        })
    }

    fn link(&mut self, at: u32, list: usize) -> Option<&mut Link> {
        let entry = self.entries.get_mut(at as usize)?.as_mut()?;
        Some(&mut entry.links[list])
    }

    fn link_first(&mut self, at: u32, list: usize) {
        let Some(ends) = self.list(at, list) else {
            return;
        };
        let after = ends.first;
        ends.first = at;
        if after == NONE {
            ends.last = at;
        } else if let Some(link) = self.link(after, list) {
            link.before = at;
        }
        if let Some(link) = self.link(at, list) {
            *link = Link {
                before: NONE,
                after,
            };
        }
    }

    fn unlink(&mut self, at: u32, list: usize) {
        let Some(&mut Link { before, after }) = self.link(at, list) else {
            return;
        };
        match self.link(before, list) {
            Some(link) => link.after = after,
            None => {
                if let Some(ends) = self.list(at, list) {
                    ends.first = after;
                }
            }
        }
        match self.link(after, list) {
            Some(link) => link.before = before,
            None => {
                if let Some(ends) = self.list(at, list) {
                    ends.last = before;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(results: &mut Results<u32>, tool: &str, key: &str, value: u32, weight: u64, now: u64) {
        results.introduce(tool, Policy::default());
        results.put(tool, key, value, weight, now, &mut Vec::new());
    }

    fn get(results: &mut Results<u32>, tool: &str, key: &str, now: u64) -> Option<u32> {
        results.get(tool, key, now, &mut Vec::new()).copied()
    }

    #[test]
    fn the_least_recently_used_go_first_across_tools() {
        let mut results = Results::new(Some(30));
        put(&mut results, "a", "1", 1, 10, 0);
        put(&mut results, "b", "1", 2, 10, 0);
        put(&mut results, "a", "2", 3, 10, 0);
        assert_eq!(get(&mut results, "a", "1", 0), Some(1));
        put(&mut results, "b", "2", 4, 15, 0);
        assert_eq!(get(&mut results, "b", "1", 0), None);
        assert_eq!(get(&mut results, "a", "2", 0), None);
        assert_eq!(get(&mut results, "a", "1", 0), Some(1));
        assert_eq!(get(&mut results, "b", "2", 0), Some(4));
        assert_eq!(results.counts().evictions, 2);
        assert_eq!(results.counts().weight, 25);
    }

    #[test]
    fn a_tools_bound_is_its_own() {
        let mut results = Results::new(None);
        let policy = Policy {
            max_weight: Some(10),
            ttl: None,
        };
        results.introduce("small", policy);
        put(&mut results, "big", "1", 0, 1000, 0);
        for value in 0..5 {
            put(&mut results, "small", &value.to_string(), value, 4, 0);
        }
        assert_eq!(get(&mut results, "small", "2", 0), None);
        assert_eq!(get(&mut results, "small", "3", 0), Some(3));
        assert_eq!(get(&mut results, "big", "1", 0), Some(0));
        put(&mut results, "small", "3", 9, 11, 0);
        assert_eq!(
            get(&mut results, "small", "3", 0),
            None,
            "nor the older one"
        );
        assert_eq!(results.counts().refusals, 1);
    }

    #[test]
    fn what_is_too_old_is_not_given_and_does_not_stay() {
        let mut results = Results::new(None);
        let policy = Policy {
            ttl: Some(10),
            max_weight: None,
        };
        results.introduce("brief", policy);
        put(&mut results, "brief", "1", 1, 1, 0);
        put(&mut results, "brief", "2", 2, 1, 5);
        assert_eq!(get(&mut results, "brief", "1", 9), Some(1));
        assert_eq!(get(&mut results, "brief", "1", 10), None);
        put(&mut results, "other", "1", 3, 1, 15);
        assert_eq!(results.counts().entries, 1);
        assert_eq!(results.counts().expirations, 2);
        assert_eq!(results.clear(), [3]);
        assert_eq!(results.counts().weight, 0);
    }
}
