//! Rows in an order in which those near each other lie together, and what such neighbours share.
//!
//! A segment's rows are ordered so that the rows of a *word*, [`WORD`] that lie one after another,
//! have heads ([`super::sketch`]) near each other. A word's *hub* is the middle of them. No row of
//! the word scores higher than the hub and the distance of the farthest head from it allow, so that
//! most words are told off without their heads; what is left to read lies together.
//!
//! The order is that of the leaves of a tree: rows are divided in two around two centres
//! (2-means), again and again. Any order would do for the result.

use super::axes::HEAD;
use super::bitmap::WORD;
use super::kernels::kernels;
use super::quantize::{CODE_MAX, EPSILON, Query, round_up};
use super::sketch::MadeHeads;

/// Rows of which the two centres of a part are found.
const SAMPLE: usize = 256;
/// Rounds of moving these; more move them little.
const ROUNDS: usize = 3;
/// One side of a part has at least one in so many of its rows: a bound on the depth of the tree.
const LEAST: usize = 8;

/// The hubs of a block's words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hubs<'a> {
    /// Coefficients, hub by hub, one byte per axis.
    pub codes: &'a [i8],
    /// What a [`Hub`] has, in its order, hub by hub.
    pub numbers: &'a [f32],
}

/// A hub's numbers, and thus what its rows have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Hub {
    /// The value of one unit of the coefficients.
    pub(crate) scale: f32,
    /// The distance of the farthest of the rows' heads, rounded up.
    pub(crate) reach: f32,
    /// The largest norm of what heads leave of a row.
    pub(crate) rest: f32,
    /// The largest error of a row; see [`super::sketch::Heads`].
    pub(crate) error: f32,
    /// The rows' norms are not outside.
    pub(crate) shortest: f32,
    pub(crate) longest: f32,
}

/// The numbers of a [`Hub`].
pub(crate) const NUMBERS: usize = 6;

impl<'a> Hubs<'a> {
    /// The number of words.
    pub(crate) fn len(&self) -> usize {
        self.numbers.len() / NUMBERS
    }

    /// The numbers of all hubs.
    pub(crate) fn numbers(&self) -> impl ExactSizeIterator<Item = Hub> + use<'a> {
        let number = |&[scale, reach, rest, error, shortest, longest]: &[f32; NUMBERS]| Hub {
            scale,
            reach,
            rest,
            error,
            shortest,
            longest,
        };
        self.numbers.as_chunks::<NUMBERS>().0.iter().map(number)
    }

    /// At least the rank of any row around each hub, given at least the rows' products with the query.
    pub(crate) fn most(&self, query: &Query, products: &[f64]) -> Vec<f64> {
        // The shortest or the longest has the highest, depending on metric and product.
        let [shortest, longest] = [|hub: Hub| hub.shortest, |hub: Hub| hub.longest].map(|norm| {
            let norms: Vec<f64> = self.numbers().map(|hub| f64::from(norm(hub))).collect();
            let mut ranks = vec![0.0; norms.len()];
            query.most(products, &norms, &mut ranks);
            ranks
        });
        let ranks = shortest.into_iter().zip(longest);
        // What is no number stays none.
        ranks
            .map(|(a, b)| if a > b || a.is_nan() { a } else { b })
            .collect()
    }
}

impl Hub {
    fn numbers(self) -> [f32; NUMBERS] {
        [
            self.scale,
            self.reach,
            self.rest,
            self.error,
            self.shortest,
            self.longest,
        ]
    }
}

/// What is known of some rows, in their order.
pub(crate) struct Rows<'a> {
    pub(crate) heads: &'a MadeHeads,
    pub(crate) rests: &'a [f32],
    pub(crate) errors: &'a [f32],
    pub(crate) norms: &'a [f64],
}

/// The coefficients and the numbers of the hubs of all words.
pub(crate) fn hubs(rows: &Rows<'_>) -> (Vec<i8>, Vec<f32>) {
    let (mut codes, mut numbers) = (Vec::new(), Vec::new());
    let heads = rows.heads.codes.as_chunks::<HEAD>().0;
    for (word, heads) in heads.chunks(WORD).enumerate() {
        let of = word * WORD..word * WORD + heads.len();
        let scales = &rows.heads.scales[of.clone()];
        let mut middle = [0.0_f64; HEAD];
        for (head, &scale) in heads.iter().zip(scales) {
            for (sum, &code) in middle.iter_mut().zip(head) {
                *sum += f64::from(scale) * f64::from(code) / heads.len() as f64;
            }
        }
        let largest = middle.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let scale = (largest / f64::from(CODE_MAX)) as f32;
        let scale = if scale.is_normal() { scale } else { 0.0 };
        let code = |x: f64| (x / f64::from(scale)).round() as i8;
        let hub = middle.map(|x| if scale == 0.0 { 0 } else { code(x) });
        let reach = heads.iter().zip(scales).map(|(head, &own)| {
            let apart = head.iter().zip(&hub).map(|(&a, &b)| {
                // Both products are exact.
                f64::from(own) * f64::from(a) - f64::from(scale) * f64::from(b)
            });
            apart.map(|x| x * x).sum::<f64>().sqrt() * (1.0 + EPSILON)
        });
        let reach = reach.fold(0.0, f64::max);
        // What is no number, out of numbers too large, is no bound.
        let larger = |a: f32, b: f32| if b.is_nan() { f32::INFINITY } else { a.max(b) };
        let largest = |numbers: &[f32]| numbers.iter().copied().fold(0.0, larger);
        let norms = &rows.norms[of.clone()];
        let longest = norms.iter().copied().fold(0.0, f64::max);
        let shortest = norms.iter().copied().fold(f64::INFINITY, f64::min);
        codes.extend(hub);
        let hub = Hub {
            scale,
            // Of a row without a direction, its cosine says nothing.
            reach: if shortest > 0.0 {
                round_up(reach)
            } else {
                f32::INFINITY
            },
            rest: largest(&rows.rests[of.clone()]),
            error: largest(&rows.errors[of]),
            shortest: -round_up(-shortest),
            longest: round_up(longest),
        };
        numbers.extend(hub.numbers());
    }
    (codes, numbers)
}

/// The numbers of rows in an order in which rows with heads near each other lie together; those of
/// a word ascend by `ids`. `None` if told to stop.
pub(crate) fn arrange(
    heads: &MadeHeads,
    ids: &[i64],
    go_on: &dyn Fn() -> bool,
) -> Option<Vec<u32>> {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    let rows = Points {
        codes: heads.codes.as_chunks().0,
        scales: &heads.scales,
    };
    let mut parts = Vec::new();
    if !rows.codes.is_empty() {
        parts.push(&mut order[..]);
    }
    while let Some(part) = parts.pop() {
        if part.len() <= WORD {
            continue;
        }
        if !go_on() {
            return None;
        }
        let (left, right) = rows.divide(part);
        parts.extend([left, right]);
    }
    if !rows.codes.is_empty() {
        for word in order.chunks_mut(WORD) {
            word.sort_unstable_by_key(|&row| ids[row as usize]);
        }
    }
    Some(order)
}

/// Heads as points.
struct Points<'a> {
    codes: &'a [[i8; HEAD]],
    scales: &'a [f32],
}

impl Points<'_> {
    /// Divides more than a word of rows around two centres, where a word ends.
    fn divide<'r>(&self, rows: &'r mut [u32]) -> (&'r mut [u32], &'r mut [u32]) {
        let sample: Vec<[f32; HEAD]> = (0..SAMPLE.min(rows.len()))
            .map(|at| self.point(rows[at * rows.len() / SAMPLE.min(rows.len())]))
            .collect();
        let farthest = |from: &[f32; HEAD]| {
            let distance = |point: &&[f32; HEAD]| distance(point, from);
            *sample
                .iter()
                .max_by(|a, b| distance(a).total_cmp(&distance(b)))
                .unwrap_or(from)
        };
        let first = farthest(&mean(sample.iter()));
        let mut centres = [first, farthest(&first)];
        for _ in 0..ROUNDS {
            let nearer =
                |point: &&[f32; HEAD]| distance(point, &centres[0]) <= distance(point, &centres[1]);
            let (left, right): (Vec<_>, Vec<_>) = sample.iter().partition(nearer);
            if left.is_empty() || right.is_empty() {
                break;
            }
            centres = [left, right].map(|side| mean(side.into_iter()));
        }
        // Who is nearer to the second centre lies beyond the middle on the way to it.
        let [a, b] = &centres;
        let way: [f32; HEAD] = std::array::from_fn(|at| b[at] - a[at]);
        let middle = (0..HEAD)
            .map(|at| way[at] * f32::midpoint(a[at], b[at]))
            .sum::<f32>();
        let mut along: Vec<(f32, u32)> = rows
            .iter()
            .map(|&row| (self.along(row, &way), row))
            .collect();
        let left = along.iter().filter(|&&(at, _)| at <= middle).count();
        let words = rows.len().div_ceil(WORD);
        let least = (words / LEAST).max(1);
        let left = ((left + WORD / 2) / WORD).clamp(least, words - least) * WORD;
        along.select_nth_unstable_by(left, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (row, (_, other)) in rows.iter_mut().zip(along) {
            *row = other;
        }
        rows.split_at_mut(left)
    }

    fn point(&self, row: u32) -> [f32; HEAD] {
        let scale = self.scales[row as usize];
        self.codes[row as usize].map(|code| f32::from(code) * scale)
    }

    fn along(&self, row: u32, way: &[f32; HEAD]) -> f32 {
        let codes = &self.codes[row as usize];
        let sum: f32 = codes
            .iter()
            .zip(way)
            .map(|(&code, way)| f32::from(code) * way)
            .sum();
        sum * self.scales[row as usize]
    }
}

fn distance(a: &[f32; HEAD], b: &[f32; HEAD]) -> f64 {
    (kernels().distance_sq)(a, b)
}

fn mean<'p>(points: impl ExactSizeIterator<Item = &'p [f32; HEAD]>) -> [f32; HEAD] {
    let count = points.len().max(1) as f32;
    let mut mean = [0.0; HEAD];
    for point in points {
        for (mean, x) in mean.iter_mut().zip(point) {
            *mean += x / count;
        }
    }
    mean
}

#[cfg(test)]
mod tests;
