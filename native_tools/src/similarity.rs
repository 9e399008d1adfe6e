//! How much two names resemble each other, by the measure of Python's `difflib`.
//!
//! The measure is Ratcliff and Obershelp's ("Pattern matching: the gestalt approach", Dr. Dobb's
//! Journal, July 1988): twice the number of matching characters over the number of all. The longest
//! common block counts as matching, then recursively what matches left and right of it. Which of
//! several longest blocks is taken changes the result, so `difflib`'s choice is kept: the one that
//! starts first in the first name, then first in the second.

use std::ops::Range;

/// `difflib` ignores frequent characters of a second name of this length and more.
pub const TOO_LONG: usize = 200;

/// Returns `difflib.SequenceMatcher(None, a, b).ratio()`, for `b` shorter than [`TOO_LONG`].
pub fn ratio(a: &[char], b: &[char]) -> f64 {
    share(matching(a, b), a.len() + b.len())
}

/// Returns which of `names` resembles `wanted` most, the first among equals, by a ratio above
/// `above`.
pub fn closest(
    names: impl IntoIterator<Item = Vec<char>>,
    wanted: &[char],
    above: f64,
) -> Option<usize> {
    let mut best = (above, None);
    for (at, name) in names.into_iter().enumerate() {
        let total = name.len() + wanted.len();
        // No more can match than the shorter name has.
        if share(name.len().min(wanted.len()), total) <= best.0 {
            continue;
        }
        let found = ratio(&name, wanted);
        if found > best.0 {
            best = (found, Some(at));
        }
    }
    best.1
}

fn share(matching: usize, total: usize) -> f64 {
    if total == 0 {
        1.0
    } else {
        2.0 * matching as f64 / total as f64
    }
}

fn matching(a: &[char], b: &[char]) -> usize {
    let mut sum = 0;
    let mut waiting = vec![(0..a.len(), 0..b.len())];
    // `ends[j + 1]`: length of the common block that ends at the current place in `a` and at `j`.
    let (mut ends, mut before) = (vec![0; b.len() + 1], vec![0; b.len() + 1]);
    while let Some((left, right)) = waiting.pop() {
        let (i, j, size) = longest(a, b, &left, &right, &mut ends, &mut before);
        if size > 0 {
            sum += size;
            waiting.push((left.start..i, right.start..j));
            waiting.push((i + size..left.end, j + size..right.end));
        }
    }
    sum
}

/// Returns where the longest common block of two ranges starts, and its length.
fn longest(
    a: &[char],
    b: &[char],
    left: &Range<usize>,
    right: &Range<usize>,
    ends: &mut Vec<usize>,
    before: &mut Vec<usize>,
) -> (usize, usize, usize) {
    let mut best = (left.start, right.start, 0);
    before[right.start..=right.end].fill(0);
    for i in left.clone() {
        ends[right.start] = 0;
        for j in right.clone() {
            let size = if a[i] == b[j] { before[j] + 1 } else { 0 };
            ends[j + 1] = size;
            if size > best.2 {
                best = (i + 1 - size, j + 1 - size, size);
            }
        }
        std::mem::swap(ends, before);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    #[test]
    fn ratios_are_difflibs() {
        // Printed by Python's difflib.
        for (a, b, expected) in [
            ("", "", 1.0),
            ("a", "", 0.0),
            ("abcd", "bcde", 0.75),
            ("search_web", "web_search", 0.6),
            ("tide", "diet", 0.25),
            ("diet", "tide", 0.5),
            ("look_up_weather", "lookup_weather", 0.965_517_241_379_310_3),
        ] {
            let found = ratio(&chars(a), &chars(b));
            assert!((found - expected).abs() < f64::EPSILON, "{a} {b}: {found}");
        }
    }

    #[test]
    fn the_first_of_the_best_is_chosen() {
        let names = ["serch", "searhc", "search_x", "searcg"].map(chars);
        assert_eq!(closest(names.clone(), &chars("search"), 0.5), Some(0));
        assert_eq!(closest(names.clone(), &chars("searcg"), 0.5), Some(3));
        assert_eq!(closest(names, &chars("weather"), 0.85), None);
        let twice = ["searcg", "searcx"].map(chars);
        assert_eq!(closest(twice, &chars("search"), 0.5), Some(0));
    }
}
