//! Telling rows off by two bits of each component.
//!
//! A sealed row has, beside its codes, a *sketch* a quarter as long. With the mean `m` of its
//! segment's rows, the row is `m + step * s + e`, where the components of `s` are -3, -1, 1 or 3,
//! and `slack >= |e|` is kept. Then, for a query `q`,
//!
//! ```text
//! v·q  <=  m·q + step * (s·q) + slack |q|
//! ```
//!
//! by the Cauchy-Schwarz inequality. Where the best rows are much nearer to the query than most,
//! that already tells most rows off, and their codes are never read. Where they are not, it tells
//! none off, and reading sketches as well would be a waste; hence a [`Trial`] has them read only
//! while it pays.
//!
//! Embeddings have much in common, which says nothing about which are near: the less of the mean
//! is in what two bits have to tell, the more they tell.

use std::ops::RangeInclusive;

use super::kernels::kernels;
use super::quantize::{EPSILON, Query, RowCode, norm, round_up};

/// Components in one unit of a sketch; see [`Sketches::codes`].
pub(crate) const GROUP: usize = 128;
/// Components in a byte.
const PER_BYTE: usize = 4;
/// The largest magnitude of a component of `s`.
const LEVEL_MAX: f64 = 3.0;
/// The step that suits a bell curve, in units of its standard deviation: where the search for a
/// row's own step begins.
const BELL: f32 = 0.498;
/// Rounds of that search; more improve little.
const ROUNDS: usize = 3;

/// The length of a row's sketch, in bytes: a quarter of a byte per component, in whole groups.
pub(crate) const fn stride(dimension: usize) -> usize {
    dimension.next_multiple_of(GROUP) / PER_BYTE
}

/// The sketches of a block's rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sketches<'a> {
    /// The mean that was subtracted from each row.
    pub mean: &'a [f32],
    /// The distance of two levels, halved.
    pub steps: &'a [f32],
    /// Norms of what the sketches leave out, rounded up.
    pub slacks: &'a [f32],
    /// Levels as 0 to 3, row by row, [`stride`] bytes each. A group of 32 bytes has the lowest bits
    /// of its bytes for its first 32 components, the next bits for the next 32, and so on.
    pub codes: &'a [u8],
}

/// Adds a row, as its codes have it, to the sum of rows.
pub(crate) fn add(sum: &mut [f64], codes: &[i8], scale: f32) {
    for (sum, &code) in sum.iter_mut().zip(codes) {
        *sum += f64::from(scale) * f64::from(code);
    }
}

/// Makes sketches of one segment's rows.
pub(crate) struct Sketcher<'a> {
    mean: &'a [f32],
    /// The row without the mean, and its levels.
    rest: Vec<f32>,
    levels: Vec<u8>,
}

impl<'a> Sketcher<'a> {
    pub(crate) fn new(mean: &'a [f32]) -> Self {
        Self {
            mean,
            rest: vec![0.0; mean.len()],
            levels: vec![0; mean.len().next_multiple_of(GROUP)],
        }
    }

    /// Writes the sketch of a row into `out`, which has [`stride`] bytes; gives step and slack.
    pub(crate) fn sketch(&mut self, codes: &[i8], row: RowCode, out: &mut [u8]) -> (f32, f32) {
        let scale = f64::from(row.scale);
        let exact = |code: i8, mean: f32| scale * f64::from(code) - f64::from(mean);
        for (rest, (&code, &mean)) in self.rest.iter_mut().zip(codes.iter().zip(self.mean)) {
            *rest = exact(code, mean) as f32;
        }
        let mut step = BELL * (norm(&self.rest) / (self.rest.len() as f64).sqrt()) as f32;
        for _ in 0..ROUNDS {
            // The best step for these levels: the projection of the row onto them.
            let (mut along, mut squares) = (0.0_f32, 0.0_f32);
            for &x in &self.rest {
                let level = if x.abs() > 2.0 * step { 3.0 } else { 1.0 };
                along += level * x.abs();
                squares += level * level;
            }
            step = along / squares;
        }
        let step = step.min(f32::MAX);
        for (level, &x) in self.levels.iter_mut().zip(&self.rest) {
            *level = u8::from(x > -2.0 * step) + u8::from(x > 0.0) + u8::from(x > 2.0 * step);
        }
        pack(&self.levels, out);

        // What is left, of the row as it is and not as f32 have it.
        let (mut left, mut whole) = (0.0, 0.0);
        for ((&level, &code), &mean) in self.levels.iter().zip(codes).zip(self.mean) {
            let rest = exact(code, mean);
            let error = rest - f64::from(step) * (2.0 * f64::from(level) - LEVEL_MAX);
            left += error * error;
            whole += rest * rest;
        }
        let left = left.sqrt() * (1.0 + EPSILON) + whole.sqrt() * EPSILON;
        (step, round_up(left + f64::from(row.residual)))
    }
}

/// Packs levels, of whole groups, into sketches.
fn pack(levels: &[u8], out: &mut [u8]) {
    let groups = out.chunks_exact_mut(GROUP / PER_BYTE);
    for (bytes, levels) in groups.zip(levels.chunks_exact(GROUP)) {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (0..PER_BYTE).fold(0, |byte, part| {
                byte | levels[part * GROUP / PER_BYTE + at] << (2 * part)
            });
        }
    }
}

/// A query prepared for the sketches of one block.
pub(crate) struct Probe<'a> {
    sketches: Sketches<'a>,
    /// At least the product with the mean.
    base: f64,
    /// The value of one unit of the products of levels, and the product of all levels being -3.
    unit: f64,
    lowest: f64,
    /// The factors of a row's step and slack in the bound.
    per_step: f64,
    per_slack: f64,
}

impl<'a> Probe<'a> {
    pub(crate) fn new(query: &Query, sketches: Sketches<'a>) -> Self {
        let high = query.codes().high.as_slice();
        let unit = query.high_unit();
        let squares = query.vector().iter().zip(high).map(|(&x, &code)| {
            let rest = f64::from(x) - unit * f64::from(code);
            rest * rest
        });
        let size = query.norm();
        let rest = squares.sum::<f64>().sqrt() * (1.0 + EPSILON) + EPSILON * size;
        let product = (kernels().dot)(query.vector(), sketches.mean);
        let levels = LEVEL_MAX * (query.dimension() as f64).sqrt();
        Self {
            sketches,
            base: product + EPSILON * size * norm(sketches.mean),
            unit,
            lowest: LEVEL_MAX * high.iter().map(|&code| f64::from(code)).sum::<f64>(),
            per_step: levels * (rest + EPSILON * (size + rest)),
            per_slack: size * (1.0 + EPSILON),
        }
    }

    /// Writes at least the inner product of each of the rows.
    pub(crate) fn most(&self, query: &Query, rows: &[u32], out: &mut [f64]) {
        (kernels().sketched)(query.codes(), self.sketches.codes, rows, out);
        for (out, &row) in out.iter_mut().zip(rows) {
            let step = f64::from(self.sketches.steps[row as usize]);
            let slack = f64::from(self.sketches.slacks[row as usize]);
            let along = self.unit * (2.0 * *out - self.lowest) + self.per_step;
            *out = self.base + step * along + slack * self.per_slack;
        }
    }
}

/// Batches of rows until it is tried anew whether sketches pay: after the first time that they did
/// not, and at most. A search knows the best rows of a sample before it tries them at all.
const PAUSES: RangeInclusive<usize> = 4..=16;
/// They do if they leave at most one in so many rows.
const WORTH: usize = 2;

/// Whether sketches pay with the rows of a search, as far as one thread has seen them. Where they
/// did not, they are tried again, then less often: a search knows the best rows better with each
/// batch.
#[derive(Debug, Default)]
pub(crate) struct Trial {
    wait: usize,
    pause: usize,
}

impl Trial {
    /// Whether to read the sketches of the next batch.
    pub(crate) fn next(&mut self) -> bool {
        let now = self.wait == 0;
        self.wait = self.wait.saturating_sub(1);
        now
    }

    /// Takes note of how many of a batch's rows the sketches left.
    pub(crate) fn left(&mut self, rows: usize, left: usize) {
        self.pause = if left * WORTH <= rows {
            0
        } else {
            (4 * self.pause).clamp(*PAUSES.start(), *PAUSES.end())
        };
        self.wait = self.pause;
    }

    /// Whether they paid when they were tried last.
    #[cfg(test)]
    pub(crate) fn paid(&self) -> bool {
        self.pause == 0
    }
}

#[cfg(test)]
mod tests;
