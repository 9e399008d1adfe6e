//! Whether an agent's tool calls go round in circles.
//!
//! A call here is what it was (the tool with its arguments) and what it gave (its result), as hashes.
//! Three patterns count, and each only while nothing new comes back, so that polling, paging and
//! trying again after a failure are none of them:
//!
//! - the same call with the same result, again and again;
//! - a cycle of up to [`LONGEST_PERIOD`] calls, each with the result that it gave a round before;
//! - calls of one tool whose arguments differ only a little, with one and the same result.
//!
//! Calls are the same if their arguments say the same, however they are typed: see [`hash_words`]. How
//! often they were the same to the letter is counted beside that, for whoever wants to be surer.
//! Arguments that differ by more than that, by a word or a digit, are also what honest work in bulk
//! looks like: fifty orders marked as paid, each answered by "done". So the last pattern has a
//! threshold of its own, and can be left out.

use std::collections::VecDeque;
use std::hash::Hasher;

use crate::similarity::{TOO_LONG, ratio};

/// The longest cycle that is recognised, in calls.
pub const LONGEST_PERIOD: usize = 8;

/// How much texts of arguments must resemble each other to differ "only a little".
const NEAR: f64 = 0.9;

/// Hashes what a text says, and not how it is typed: letter case, white space, quotes, brackets and
/// the marks between sentences and words do not count.
///
/// Marks beside a digit do (`1.5` is not `15`), and so does every other sign: `-1`, `C++` and
/// `a/b` are not `1`, `C` and `a b`. A string that has neither a letter nor a digit says nothing
/// but its marks, so it counts as it is typed.
pub fn hash_words(text: &str, hasher: &mut impl Hasher) {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let mut buffer = [0; 4];
    let mut write = |c: char| hasher.write(c.encode_utf8(&mut buffer).as_bytes());
    let (mut before, mut gap, mut any, mut in_string) = (None, false, false, false);
    let mut rest = text.chars();
    loop {
        let from_here = rest.as_str();
        let Some(c) = rest.next() else { break };
        if c == '"' {
            if !in_string && let Some(marks) = without_words(from_here) {
                marks.chars().for_each(&mut write);
                rest = from_here[marks.len()..].chars();
                (before, gap, any) = (None, true, true);
                continue;
            }
            in_string = !in_string;
        }
        // The text is JSON: a quote or a line break inside of it is written with two characters.
        let escaped = (c == '\\').then(|| rest.clone().next()).flatten();
        let blank = matches!(escaped, Some('"' | 'n' | 'r' | 't'));
        if blank || escaped == Some('\\') {
            rest.next();
        }
        let beside_digit = is_digit(before) || is_digit(rest.clone().next());
        before = Some(c);
        if blank || c.is_whitespace() || (is_mark(c) && !beside_digit) {
            gap = any;
            continue;
        }
        // Where one word ends and the next begins does count.
        if std::mem::take(&mut gap) {
            write(' ');
        }
        any = true;
        c.to_lowercase().for_each(&mut write);
    }
}

/// Returns the JSON string that `text` starts with, if there is no letter and no digit in it.
fn without_words(text: &str) -> Option<&str> {
    let mut chars = text.char_indices().skip(1);
    loop {
        match chars.next()? {
            (end, '"') => return Some(&text[..=end]),
            // A character written as its number is left to be compared as that.
            (_, '\\') if chars.next()?.1 == 'u' => return None,
            (_, c) if c.is_alphanumeric() => return None,
            _ => {}
        }
    }
}

const fn is_mark(c: char) -> bool {
    matches!(
        c,
        '.' | ','
            | ';'
            | ':'
            | '!'
            | '?'
            | '\''
            | '"'
            | '`'
            | '_'
            | '('
            | ')'
            | '['
            | ']'
            | '{'
            | '}'
            | '\u{2018}'..='\u{201f}' | '\u{2026}'
    )
}

/// One finished call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The tool.
    pub tool: u64,
    /// The tool's arguments in their canonical spelling, cut to the first [`TOO_LONG`] characters.
    arguments: Vec<char>,
    /// The tool and what all its arguments say.
    pub call: u64,
    /// The tool and its arguments to the letter.
    pub exact: u64,
    /// What came back. A failure has the hash of its message.
    pub result: u64,
}

impl Call {
    /// Describes a call by hashes; `arguments` in their canonical spelling.
    pub fn new(tool: u64, call: u64, exact: u64, arguments: &str, result: u64) -> Self {
        Self {
            tool,
            arguments: arguments.chars().take(TOO_LONG - 1).collect(),
            call,
            exact,
            result,
        }
    }

    fn repeats(&self, earlier: &Self) -> bool {
        self.call == earlier.call && self.result == earlier.result
    }

    fn repeats_exactly(&self, earlier: &Self) -> bool {
        self.exact == earlier.exact && self.result == earlier.result
    }

    fn nearly_repeats(&self, earlier: &Self) -> bool {
        self.tool == earlier.tool
            && self.result == earlier.result
            && ratio(&self.arguments, &earlier.arguments) >= NEAR
    }
}

/// A pattern in the latest calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// So many calls that were the same, `period` of them in turn; with a period of 1, one call.
    Cycle {
        /// Calls after which they repeat.
        period: usize,
        /// How often the whole cycle was gone through.
        rounds: usize,
        /// How often a cycle, of this period or a longer one, was gone through to the letter.
        exact: usize,
    },
    /// So many calls of one tool with nearly the same arguments and the same result.
    Near {
        /// How many.
        calls: usize,
    },
}

/// The latest calls of one run.
#[derive(Debug)]
pub struct Trace {
    calls: VecDeque<Call>,
    rounds: Option<usize>,
    most: usize,
    near: Option<usize>,
}

impl Trace {
    /// Watches for calls and cycles that were gone through `rounds` times, at least 2, and for
    /// `near` calls that are nearly the same, at least 2, or not for these.
    ///
    /// Counts on up to `most` rounds, and up to twice as many near calls as were asked for.
    pub fn new(rounds: Option<usize>, most: usize, near: Option<usize>) -> Self {
        Self {
            calls: VecDeque::new(),
            rounds: rounds.map(|rounds| rounds.max(2)),
            most: most.max(rounds.unwrap_or(0)),
            near: near.map(|calls| calls.max(2)),
        }
    }

    /// Takes back the latest call, for one that stands in its place.
    pub fn take_back(&mut self) {
        self.calls.pop_back();
    }

    /// Takes a finished call, and returns the pattern that it completes or goes on with: the one of
    /// the shortest period.
    ///
    /// Costs at most as many comparisons of hashes as the window has calls, for each period, and as
    /// many similarities as there are calls of the same tool with the same result at the end of it.
    pub fn push(&mut self, mut call: Call) -> Option<Loop> {
        if self.near.is_none() {
            call.arguments = Vec::new();
        }
        // One round more than is needed, so that a loop that goes on is seen to go on.
        let window = (self.most + 1).saturating_mul(LONGEST_PERIOD);
        let near = self.near.unwrap_or(0).saturating_mul(2) + 1;
        if self.calls.len() >= window.max(near) {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
        (1..=LONGEST_PERIOD)
            .find_map(|period| {
                let rounds = self.rounds_of(period, Call::repeats);
                (rounds >= self.rounds?).then(|| Loop::Cycle {
                    period,
                    rounds,
                    exact: (period..=LONGEST_PERIOD)
                        .map(|period| self.rounds_of(period, Call::repeats_exactly))
                        .max()
                        .unwrap_or(0),
                })
            })
            .or_else(|| {
                let calls = self.near_calls();
                (calls >= self.near?).then_some(Loop::Near { calls })
            })
    }

    /// Returns how often the latest `period` calls stand at the end, one behind the other.
    fn rounds_of(&self, period: usize, same: fn(&Call, &Call) -> bool) -> usize {
        let count = self.calls.len();
        if count < period {
            return 0;
        }
        let repeated = (period..count)
            .rev()
            .take_while(|&at| same(&self.calls[at], &self.calls[at - period]))
            .count();
        1 + repeated / period
    }

    /// Returns how many of the latest calls are nearly the latest.
    fn near_calls(&self) -> usize {
        let Some(latest) = self.calls.back() else {
            return 0;
        };
        self.calls
            .iter()
            .rev()
            .take_while(|earlier| latest.nearly_repeats(earlier))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use proptest::prelude::*;

    use super::*;

    fn hash(text: &str) -> u64 {
        BuildHasherDefault::<DefaultHasher>::new().hash_one(text)
    }

    fn call(tool: &str, arguments: &str, result: &str) -> Call {
        let exact = hash(&format!("{tool}\0{arguments}"));
        let call = hash(tool) ^ words(arguments);
        Call::new(hash(tool), call, exact, arguments, hash(result))
    }

    /// Returns the first pattern and the number of calls after which it was seen.
    fn first_loop(
        rounds: usize,
        near: Option<usize>,
        calls: impl IntoIterator<Item = Call>,
    ) -> Option<(usize, Loop)> {
        let mut trace = Trace::new(Some(rounds), rounds, near);
        calls
            .into_iter()
            .enumerate()
            .find_map(|(at, call)| trace.push(call).map(|found| (at + 1, found)))
    }

    fn words(text: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        hash_words(text, &mut hasher);
        hasher.finish()
    }

    #[test]
    fn how_a_text_is_typed_does_not_count() {
        let plain = words(r#"{"q":"weather in ulm"}"#);
        for typed in [
            r#"{"q":"Weather in Ulm?"}"#,
            r#"{"q":"  weather, in   ULM..."}"#,
            r#"{"q":"“weather in (Ulm)”"}"#,
            r#"{"q":"\"weather\nin\tUlm\""}"#,
        ] {
            assert_eq!(words(typed), plain, "{typed}");
        }
        for (one, other) in [
            ("weather in ulm", "weatherin ulm"),
            ("weather in ulm", "weather in ulm today"),
            (r#"{"a":1}"#, r#"{"a":2}"#),
            ("1.5", "15"),
            ("-1", "1"),
            ("C++", "C"),
            ("a/b", "a b"),
            (r"a\\b", "a b"),
            ("x < y", "x > y"),
            ("👍", "👎"),
            ("", "x"),
            (r#"{"key":"("}"#, r#"{"key":")"}"#),
            (r#"{"key":":"}"#, r#"{"key":";"}"#),
            (r#"{"key":"\""}"#, r#"{"key":"\n"}"#),
            (r#"{"key":"\\"}"#, r#"{"key":"\""}"#),
            (r#"{"a":"\\","key":"("}"#, r#"{"a":"\\","key":")"}"#),
            (r#"{"key":""}"#, r#"{"key":" "}"#),
            (r#"{"a":"(","b":")"}"#, r#"{"a":")","b":"("}"#),
        ] {
            assert_ne!(words(one), words(other), "{one} {other}");
        }
    }

    #[test]
    fn identical_calls_are_a_cycle_of_one() {
        let calls = (0..9).map(|_| call("search", r#"{"q":"x"}"#, "nothing"));
        let expected = Loop::Cycle {
            period: 1,
            rounds: 5,
            exact: 5,
        };
        assert_eq!(first_loop(5, None, calls), Some((5, expected)));
    }

    #[test]
    fn what_is_the_same_to_the_letter_is_counted_on_its_own() {
        let mut trace = Trace::new(Some(2), 9, None);
        let mut rounds = |arguments| match trace.push(call("search", arguments, "nothing")) {
            Some(Loop::Cycle { rounds, exact, .. }) => (rounds, exact),
            _ => (0, 0),
        };
        let typed = ["ulm", "Ulm", "Ulm?", "ulm", "Ulm", "Ulm?", "Ulm?", "Ulm?"];
        let seen = typed.map(&mut rounds);
        let expected = [
            (0, 0),
            (2, 1),
            (3, 1),
            (4, 1),
            (5, 1),
            // A cycle of three, twice.
            (6, 2),
            (7, 2),
            (8, 3),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn cycles_of_every_period_are_seen_at_the_call_that_completes_them() {
        for period in 1..=LONGEST_PERIOD {
            for rounds in 2..=5 {
                let lead = (0..13).map(|n| call("lead", &format!("{n}{n}{n}"), &n.to_string()));
                let cycle = (0..100).map(|n| {
                    let step = (n % period).to_string();
                    call(&format!("tool {step}"), &step, &step)
                });
                let found = first_loop(rounds, Some(99), lead.chain(cycle));
                let expected = Loop::Cycle {
                    period,
                    rounds,
                    exact: rounds,
                };
                assert_eq!(found, Some((13 + period * rounds, expected)));
            }
        }
    }

    #[test]
    fn a_longer_period_is_none() {
        let cycle = (0..200).map(|n| {
            let step = n % (LONGEST_PERIOD + 1);
            call(&format!("tool {step}"), "{}", "same")
        });
        assert_eq!(first_loop(2, Some(2), cycle), None);
    }

    #[test]
    fn nearly_the_same_arguments_with_the_same_result_are_a_loop() {
        let calls = (0..9).map(|n| {
            let arguments = format!(r#"{{"query":"weather in the city of Ulm, attempt {n}"}}"#);
            call("search", &arguments, "no results")
        });
        let expected = Loop::Near { calls: 5 };
        assert_eq!(first_loop(3, Some(5), calls.clone()), Some((5, expected)));
        assert_eq!(first_loop(3, None, calls), None);
    }

    #[test]
    fn going_on_is_seen_to_go_on() {
        let mut trace = Trace::new(Some(3), 8, None);
        let seen: Vec<_> = (0..5).map(|_| trace.push(call("t", "{}", "r"))).collect();
        let rounds = |found: &Option<Loop>| match found {
            Some(Loop::Cycle { rounds, .. }) => *rounds,
            _ => 0,
        };
        assert_eq!(seen.iter().map(rounds).collect::<Vec<_>>(), [0, 0, 3, 4, 5]);
        assert_eq!(trace.push(call("t", "{}", "something new")), None);
        let again = (0..8).filter_map(|_| trace.push(call("t", "{}", "r")));
        assert_eq!(again.map(|found| rounds(&Some(found))).max(), Some(8));
    }

    #[test]
    fn what_was_taken_back_counts_for_nothing() {
        let mut trace = Trace::new(Some(3), 3, None);
        for n in 0..10 {
            assert_eq!(trace.push(call("t", "{}", "failed")), None);
            trace.take_back();
            assert_eq!(trace.push(call("t", "{}", &format!("{n} % done"))), None);
        }
    }

    #[test]
    fn only_near_calls_can_be_watched_for() {
        let mut trace = Trace::new(None, 0, Some(3));
        let seen: Vec<_> = (0..6).map(|_| trace.push(call("t", "{}", "r"))).collect();
        let near = |calls| Some(Loop::Near { calls });
        assert_eq!(seen, [None, None, near(3), near(4), near(5), near(6)]);
    }

    /// What agents rightly do; none of it may ever count as a loop.
    #[test]
    fn valid_traces_are_no_loops() {
        let polling = (0..60).map(|n| call("status", r#"{"job":7}"#, &format!("{n} % done")));
        let paging = (0..60).map(|n| {
            call(
                "list_rows",
                &format!(r#"{{"limit":100,"page":{n},"table":"orders"}}"#),
                &format!("rows {n}00 to {n}99"),
            )
        });
        let retrying = (0..60).map(|n| match n % 4 {
            3 => call(
                "fetch",
                &format!(r#"{{"url":"https://example.org/{}"}}"#, n / 4),
                "page",
            ),
            _ => call(
                "fetch",
                &format!(r#"{{"url":"https://example.org/{}"}}"#, n / 4),
                &format!("timeout after {n} s"),
            ),
        });
        let editing = (0..60).map(|n| match n % 3 {
            0 => call("read", r#"{"path":"a.py"}"#, &format!("version {}", n / 3)),
            1 => call("edit", &format!(r#"{{"line":{n},"path":"a.py"}}"#), "done"),
            _ => call("test", "{}", &format!("{} failures", 40 - n / 3)),
        });
        let filling = [
            "Ada Lovelace",
            "Alan Turing",
            "Grace Hopper",
            "Edsger Dijkstra",
        ]
        .map(|name| call("save", &format!(r#"{{"name":"{name}"}}"#), "saved"));
        assert_eq!(first_loop(3, Some(3), polling), None);
        assert_eq!(first_loop(3, Some(3), paging), None);
        assert_eq!(first_loop(3, Some(3), retrying), None);
        assert_eq!(first_loop(3, Some(3), editing), None);
        assert_eq!(first_loop(3, Some(3), filling), None);
    }

    #[test]
    fn a_near_threshold_beyond_the_window_of_cycles_is_reached() {
        let calls = (0..200).map(|n| call("pay", &format!(r#"{{"order":"2024-{n:04}"}}"#), "done"));
        let expected = Loop::Near { calls: 100 };
        assert_eq!(first_loop(2, Some(100), calls), Some((100, expected)));
    }

    proptest! {
        /// Against looking at the whole history.
        #[test]
        fn cycles_are_those_of_the_whole_history(
            steps in prop::collection::vec((0..3u64, 0..2u64), 0..80),
            rounds in 2..5usize,
        ) {
            let mut trace = Trace::new(Some(rounds), rounds, None);
            for end in 1..=steps.len() {
                let (tool, result) = steps[end - 1];
                let found = trace.push(Call::new(tool, tool, tool, &tool.to_string(), result));
                let history = &steps[..end];
                let expected = (1..=LONGEST_PERIOD).find(|&period| {
                    let length = period * rounds;
                    end >= length
                        && (end - length + period..end).all(|at| history[at] == history[at - period])
                });
                let period = match found {
                    Some(Loop::Cycle { period, .. }) => Some(period),
                    _ => None,
                };
                prop_assert_eq!(period, expected);
            }
        }
    }
}
