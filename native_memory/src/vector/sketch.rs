//! Telling rows off by a few bits of each component.
//!
//! A sealed row `v` has, beside its codes, two shorter forms of itself. With the mean `m` of its
//! segment's rows and the segment's axes `B` ([`super::axes`]), it is
//!
//! ```text
//! v  =  m + Bᵀa + r + f,     r  =  step * s + e
//! ```
//!
//! where the *head* `a` is a byte per axis in units of a `scale`, the *sketch* `s` has components of
//! -3, -1, 1 or 3, and `f` is what the codes leave out. Norms of the rest are kept. A query is
//! `q = Bᵀb + p` for any `b`, so that, by the Cauchy-Schwarz inequality,
//!
//! ```text
//! v·q  =  m·q + a·Bq + p·r + b·Br + f·q
//!     <=  m·q + a·Bq + |p| |r|                    + |b| |Br| + |q| |f|      (by the head)
//!     <=  m·q + a·Bq + step * (s·p) + |p| |e|     + |b| |Br| + |q| |f|      (by the sketch)
//! ```
//!
//! holds whatever the axes are. If they are nearly orthogonal, `Br` is nearly zero; if rows and
//! query differ mostly along them, so are `r` and `p`. Segments for which axes do not pay have
//! none: then `r` is the row without the mean, and `p` the query.
//!
//! Where the best rows are much nearer to the query than most, heads already tell most rows off,
//! and sketches most others, whose codes are never read. Where they are not, they tell none off,
//! and reading them as well would be a waste; hence a [`Trial`] has them read only while it pays.

use std::ops::{Range, RangeInclusive};

use super::axes::HEAD;
use super::hubs::Hubs;
use super::kernels::{ROWS, TILE, kernels, widely};
use super::quantize::{
    CODE_MAX, EPSILON, Metric, QUERY_MAX, Query, QueryCodes, RowCode, VectorError, norm, round_up,
};
use super::segment::CodeBlock;

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
const FITS: usize = 3;
/// What rounding may take from a component that is computed in f32 in `HEAD + 3` steps, relative
/// to the sum of the magnitudes that make it up, and per step absolutely.
const ROUNDING: f64 = (HEAD + 8) as f64 / (1_u32 << 24) as f64;
const TINY: f64 = 1e-42;

/// The length of a row's sketch, in bytes: a quarter of a byte per component, in whole groups.
pub(crate) const fn stride(dimension: usize) -> usize {
    dimension.next_multiple_of(GROUP) / PER_BYTE
}

/// The heads and sketches of a block's rows.
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
    /// The heads, if there are any.
    pub heads: Option<Heads<'a>>,
}

/// The heads of a block's rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads<'a> {
    /// The axes, one after another.
    pub axes: &'a [f32],
    /// Coefficients, row by row, one byte per axis.
    pub codes: &'a [i8],
    /// The value of one unit of the coefficients.
    pub scales: &'a [f32],
    /// Norms of what mean and heads leave to the sketches, rounded up.
    pub rests: &'a [f32],
    /// At least the products of the rest with the axes, and what the row's codes leave out.
    pub errors: &'a [f32],
    /// What rows that lie together have in common, where it is kept.
    pub hubs: Option<Hubs<'a>>,
}

/// Adds a row, as its codes have it, to the sum of rows.
pub(crate) fn add(sum: &mut [f64], codes: &[i8], scale: f32) {
    for (sum, &code) in sum.iter_mut().zip(codes) {
        *sum += f64::from(scale) * f64::from(code);
    }
}

/// The heads of rows, as they are made.
#[derive(Default)]
pub(crate) struct MadeHeads {
    pub(crate) codes: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    /// At least the norms of the products of the axes with the rests, and the sums of the magnitudes
    /// of what makes up a rest.
    unknown: Vec<(f64, f64)>,
}

impl MadeHeads {
    #[cfg(test)]
    pub(crate) fn of(codes: Vec<i8>, scales: Vec<f32>) -> Self {
        let unknown = vec![(0.0, 0.0); scales.len()];
        Self {
            codes,
            scales,
            unknown,
        }
    }

    /// The same heads in another order.
    pub(crate) fn ordered(&self, order: &[u32]) -> Self {
        let heads = self.codes.as_chunks::<HEAD>().0;
        Self {
            // Without axes there are none.
            codes: order
                .iter()
                .filter_map(|&row| heads.get(row as usize))
                .flatten()
                .copied()
                .collect(),
            scales: order
                .iter()
                .filter_map(|&row| self.scales.get(row as usize).copied())
                .collect(),
            unknown: order
                .iter()
                .map(|&row| self.unknown[row as usize])
                .collect(),
        }
    }
}

/// The sketches of rows, as they are made, and what heads leave to them.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) codes: Vec<u8>,
    pub(crate) steps: Vec<f32>,
    pub(crate) slacks: Vec<f32>,
    pub(crate) rests: Vec<f32>,
    pub(crate) errors: Vec<f32>,
}

/// An axis, prepared to be multiplied with rows.
struct Axis {
    query: Query,
    /// Its product with the mean.
    mean: f64,
}

/// Makes heads and sketches of one segment's rows: first the heads of all.
pub(crate) struct Sketcher<'a> {
    mean: &'a [f32],
    mean_norm: f64,
    axes: Vec<Axis>,
    /// How far the axes are from being orthogonal and of length one, as a norm of matrices.
    skew: f64,
    /// The axes as [`super::kernels::Kernels::subtract`] has them.
    tiles: Vec<f32>,
    /// Components in whole groups.
    width: usize,
    /// Of some rows: what is left of them, and their levels.
    rests: Vec<f32>,
    levels: Vec<u8>,
    /// The products of each axis with rows.
    products: Vec<f64>,
}

/// Rows whose codes stay in the second-level cache while all axes are multiplied with them.
pub(crate) const AT_ONCE: usize = 128;

impl<'a> Sketcher<'a> {
    /// For [`HEAD`] axes or none. The bounds hold for all that are finite; others are an error.
    pub(crate) fn new(mean: &'a [f32], axes: &[f32]) -> Result<Self, VectorError> {
        let width = mean.len().next_multiple_of(GROUP);
        let rows: Vec<&[f32]> = axes.chunks_exact(mean.len()).collect();
        let dot = kernels().dot;
        let mut squares = 0.0_f64;
        for (at, a) in rows.iter().enumerate() {
            for (other, b) in rows.iter().enumerate() {
                // An axis that was not found is zero, and has no coefficients.
                let wanted = at == other && a.iter().any(|&x| x != 0.0);
                squares += (dot(a, b) - f64::from(u8::from(wanted))).powi(2);
            }
        }
        let mut tiles = vec![0.0; width * rows.len()];
        for (at, axis) in rows.iter().enumerate() {
            for (tile, some) in axis.chunks(TILE).enumerate() {
                tiles[(tile * HEAD + at) * TILE..][..some.len()].copy_from_slice(some);
            }
        }
        Ok(Self {
            mean,
            mean_norm: norm(mean),
            skew: squares.sqrt() + HEAD as f64 * EPSILON,
            tiles,
            width,
            rests: vec![0.0; ROWS * width],
            levels: vec![0; width],
            products: vec![0.0; rows.len() * AT_ONCE],
            axes: rows
                .into_iter()
                .map(|axis| {
                    let query = Query::new(axis, Metric::Dot)?;
                    let mean = dot(axis, mean);
                    Ok(Axis { query, mean })
                })
                .collect::<Result<_, VectorError>>()?,
        })
    }

    /// Adds the heads of some rows, at most [`AT_ONCE`].
    pub(crate) fn heads(&mut self, block: &CodeBlock<'_>, rows: &[u32], out: &mut MadeHeads) {
        for (axis, products) in self
            .axes
            .iter()
            .zip(self.products.chunks_exact_mut(AT_ONCE))
        {
            let products = &mut products[..rows.len()];
            (kernels().products)(axis.query.codes(), block.codes, rows, products);
        }
        for (number, &row) in rows.iter().enumerate() {
            let unknown = self.head(number, block.row_code(row as usize), out);
            out.unknown.push(unknown);
        }
    }

    /// Chooses the head of the `number`-th row and gives at least the norm of the products of the
    /// axes with the rest, and the sum of the magnitudes of what makes up that rest.
    fn head(&self, number: usize, row: RowCode, out: &mut MadeHeads) -> (f64, f64) {
        let size = f64::from(row.scale) * f64::from(CODE_MAX) * (self.mean.len() as f64).sqrt();
        let size = size.min(row.norm + f64::from(row.residual)) + self.mean_norm;
        if self.axes.is_empty() {
            return (0.0, size);
        }
        let mut along = [0.0; HEAD];
        let mut unknown = 0.0_f64;
        let as_coded = RowCode {
            residual: 0.0,
            norm: row.norm + f64::from(row.residual),
            ..row
        };
        for (along, (axis, products)) in along
            .iter_mut()
            .zip(self.axes.iter().zip(self.products.chunks_exact(AT_ONCE)))
        {
            let bounds = axis.query.bounds(products[number], as_coded);
            *along = f64::midpoint(bounds.lower, bounds.upper) - axis.mean;
            unknown += (bounds.upper - bounds.lower).powi(2);
        }
        let largest = along.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let scale = (largest / f64::from(CODE_MAX)) as f32;
        // So large or small that there is no head; then everything is left to the sketch.
        let scale = if scale.is_normal() { scale } else { 0.0 };
        let (mut missed, mut squares, mut sum) = (0.0, 0.0, 0.0);
        for along in along {
            let code = if scale == 0.0 {
                0.0
            } else {
                (along / f64::from(scale))
                    .round()
                    .clamp(-f64::from(CODE_MAX), f64::from(CODE_MAX))
            };
            out.codes.push(code as i8);
            let value = f64::from(scale) * code;
            missed += (along - value).powi(2);
            squares += value * value;
            sum += value.abs();
        }
        out.scales.push(scale);
        let error = missed.sqrt()
            + self.skew * squares.sqrt()
            + unknown.sqrt()
            + HEAD as f64 * EPSILON * size;
        (error * (1.0 + EPSILON), size + sum * (1.0 + self.skew))
    }

    /// Adds the sketches of some rows, each with its block; the first is the `first` of those whose
    /// heads were made.
    pub(crate) fn sketch(
        &mut self,
        rows: &[(&CodeBlock<'_>, usize)],
        heads: &MadeHeads,
        first: usize,
        out: &mut Made,
    ) {
        for (start, rows) in (first..).step_by(ROWS).zip(rows.chunks(ROWS)) {
            let mut coefficients = [[0.0; ROWS]; HEAD];
            for (place, &(block, row)) in rows.iter().enumerate() {
                let rest = &mut self.rests[place * self.width..][..self.mean.len()];
                for (rest, (&code, &mean)) in rest
                    .iter_mut()
                    .zip(block.codes_of(row).iter().zip(self.mean))
                {
                    // The product is exact in f32 but for its last bits.
                    *rest = f32::from(code) * block.scales[row] - mean;
                }
                // The product is exact in f64.
                if let Some(head) = heads.codes.as_chunks::<HEAD>().0.get(start + place) {
                    let scale = f64::from(heads.scales[start + place]);
                    for (coefficients, &code) in coefficients.iter_mut().zip(head) {
                        coefficients[place] = (scale * f64::from(code)) as f32;
                    }
                }
            }
            if !self.axes.is_empty() {
                (kernels().subtract)(&self.tiles, &coefficients, &mut self.rests);
            }
            for (place, &(block, row)) in rows.iter().enumerate() {
                let (error, sum) = heads.unknown[start + place];
                self.finish(place, error, sum, f64::from(block.residuals[row]), out);
            }
        }
    }

    /// Sketches what is left of the row at a place.
    fn finish(&mut self, place: usize, error: f64, sum: f64, residual: f64, out: &mut Made) {
        let dimension = self.mean.len();
        let rest = &self.rests[place * self.width..][..dimension];
        let whole = norm(rest);
        let mut step = BELL * (whole / (dimension as f64).sqrt()) as f32;
        for _ in 0..FITS {
            step = fitted(rest, step);
        }
        let step = step.min(f32::MAX);
        for (level, &x) in self.levels.iter_mut().zip(rest) {
            *level = u8::from(x > -2.0 * step) + u8::from(x > 0.0) + u8::from(x > 2.0 * step);
        }
        let from = out.codes.len();
        out.codes.resize(from + stride(dimension), 0);
        pack(&self.levels, &mut out.codes[from..]);

        // What is left, of the row as it is and not as f32 have it.
        let values = [-3.0 * step, -step, step, 3.0 * step];
        let sketched: Vec<f32> = self.levels[..dimension]
            .iter()
            .map(|&level| values[usize::from(level)])
            .collect();
        let left = (kernels().distance_sq)(rest, &sketched).sqrt();
        let root = (dimension as f64).sqrt();
        let rounding = ROUNDING * sum + TINY * root;
        let steps = f64::from(step) * LEVEL_MAX * root;
        let slack = left * (1.0 + EPSILON) + rounding + f64::from(f32::EPSILON) * steps;
        out.steps.push(step);
        if self.axes.is_empty() {
            out.slacks.push(round_up(slack + residual));
        } else {
            out.slacks.push(round_up(slack));
            out.rests.push(round_up(whole * (1.0 + EPSILON) + rounding));
            out.errors.push(round_up(error + residual));
        }
    }
}

/// The best step for the levels that a step gives: the projection of the row onto them.
fn fitted(rest: &[f32], step: f32) -> f32 {
    const LANES: usize = 8;
    let (mut along, mut squares) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    // The last chunk may be shorter.
    for some in rest.chunks(LANES) {
        for ((along, squares), x) in along.iter_mut().zip(&mut squares).zip(some) {
            let level = if x.abs() > 2.0 * step { 3.0 } else { 1.0 };
            *along += level * x.abs();
            *squares += level * level;
        }
    }
    along.iter().sum::<f32>() / squares.iter().sum::<f32>()
}

/// Packs levels, of whole groups, into sketches.
fn pack(levels: &[u8], out: &mut [u8]) {
    const PART: usize = GROUP / PER_BYTE;
    let groups = out.as_chunks_mut::<PART>().0.iter_mut();
    for (bytes, levels) in groups.zip(levels.as_chunks::<GROUP>().0) {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = levels[at]
                | levels[PART + at] << 2
                | levels[2 * PART + at] << 4
                | levels[3 * PART + at] << 6;
        }
    }
}

/// The rows as a range, if each follows the one before it.
pub(crate) fn in_a_row(rows: &[u32]) -> Option<Range<usize>> {
    let first = *rows.first()?;
    let other = |(&row, expected): (&u32, u32)| u32::from(row != expected);
    // Counted, and not looked for, so that it is vectorised.
    let others: u32 = rows.iter().zip(first..).map(other).sum();
    (others == 0).then(|| first as usize..first as usize + rows.len())
}

/// A query prepared for the heads and sketches of one block.
pub(crate) struct Probe<'a> {
    sketches: Sketches<'a>,
    /// At least the product with the mean.
    base: f64,
    heads: Option<HeadProbe>,
    /// What the axes leave of the query.
    rest: QueryCodes,
    /// The value of one unit of the products of levels, and the product of all levels being -3.
    unit: f64,
    lowest: f64,
    /// The factors of a row's step, and of norms of what is multiplied with the rest.
    per_step: f64,
    per_rest: f64,
}

/// A query prepared for the heads of one block.
struct HeadProbe {
    codes: [i16; HEAD],
    /// The value of one unit of the codes.
    unit: f64,
    /// The factors of a row's scale and error in the bound.
    per_scale: f64,
    per_error: f64,
    /// At least the norm of the query's products with the axes.
    per_reach: f64,
}

impl<'a> Probe<'a> {
    /// `None` where the numbers are too large for it.
    pub(crate) fn new(query: &Query, sketches: Sketches<'a>) -> Option<Self> {
        let product = (kernels().dot)(query.vector(), sketches.mean);
        let base = product + EPSILON * query.norm() * norm(sketches.mean);
        let root = (query.dimension() as f64).sqrt();
        let probe = |rest: &Query, missed: f64, heads| {
            let high = rest.codes().high.as_slice();
            let unit = rest.high_unit();
            let squares = rest.vector().iter().zip(high).map(|(&x, &code)| {
                let left = f64::from(x) - unit * f64::from(code);
                left * left
            });
            let left = squares.sum::<f64>().sqrt() * (1.0 + EPSILON) + EPSILON * rest.norm();
            Self {
                sketches,
                base,
                heads,
                rest: rest.codes().clone(),
                unit,
                lowest: LEVEL_MAX * high.iter().map(|&code| f64::from(code)).sum::<f64>(),
                per_step: LEVEL_MAX * root * (left + missed + EPSILON * (rest.norm() + left)),
                per_rest: rest.norm() * (1.0 + EPSILON) + missed,
            }
        };
        let Some(heads) = &sketches.heads else {
            return Some(probe(query, 0.0, None));
        };
        let (heads, rest, missed) = HeadProbe::new(query, heads)?;
        Some(probe(&rest, missed, Some(heads)))
    }

    /// Whether there are heads.
    pub(crate) fn has_heads(&self) -> bool {
        self.heads.is_some()
    }

    /// At least the inner product of any row around each of the hubs.
    pub(crate) fn most_by_hub(&self, hubs: &Hubs<'_>) -> Vec<f64> {
        let Some(probe) = &self.heads else {
            return vec![f64::INFINITY; hubs.len()];
        };
        let numbers: Vec<u32> = (0..hubs.len() as u32).collect();
        let mut out = vec![0.0; numbers.len()];
        (kernels().heads)(&probe.codes, hubs.codes, &numbers, &mut out);
        for (out, hub) in out.iter_mut().zip(hubs.numbers()) {
            // As for a row, which is at most so far from its hub along the axes.
            *out = self.base
                + f64::from(hub.scale) * (probe.unit * *out + probe.per_scale)
                + f64::from(hub.reach) * probe.per_reach
                + f64::from(hub.error) * probe.per_error
                + f64::from(hub.rest) * self.per_rest;
        }
        out
    }

    /// Writes to `out` at least the inner product of each of the rows, and to `partial` the part of
    /// it that [`Probe::most`] adds to; by their heads.
    pub(crate) fn most_by_head(&self, rows: &[u32], partial: &mut [f64], out: &mut [f64]) {
        let (Some(probe), Some(heads)) = (&self.heads, &self.sketches.heads) else {
            partial.fill(self.base);
            out.fill(f64::INFINITY);
            return;
        };
        (kernels().heads)(&probe.codes, heads.codes, rows, partial);
        // Copies; see `widely`.
        let (base, per_rest) = (self.base, self.per_rest);
        let &HeadProbe {
            unit,
            per_scale,
            per_error,
            ..
        } = probe;
        let bound = move |partial: &mut f64, out: &mut f64, scale: f32, rest: f32, error: f32| {
            let along = f64::from(scale) * (unit * *partial + per_scale);
            *partial = base + along + f64::from(error) * per_error;
            *out = *partial + f64::from(rest) * per_rest;
        };
        let outs = partial.iter_mut().zip(out);
        if let Some(rows) = in_a_row(rows) {
            let columns = heads.scales[rows.clone()]
                .iter()
                .zip(&heads.rests[rows.clone()])
                .zip(&heads.errors[rows]);
            widely(move || {
                for ((partial, out), ((&scale, &rest), &error)) in outs.zip(columns) {
                    bound(partial, out, scale, rest, error);
                }
            });
            return;
        }
        for ((partial, out), &row) in outs.zip(rows) {
            let row = row as usize;
            bound(
                partial,
                out,
                heads.scales[row],
                heads.rests[row],
                heads.errors[row],
            );
        }
    }

    /// Writes at least the inner product of each of the rows, by their sketches, given the
    /// `partial` ones.
    pub(crate) fn most(&self, rows: &[u32], partial: &[f64], out: &mut [f64]) {
        (kernels().sketched)(&self.rest, self.sketches.codes, rows, out);
        for ((out, &row), partial) in out.iter_mut().zip(rows).zip(partial) {
            let step = f64::from(self.sketches.steps[row as usize]);
            let slack = f64::from(self.sketches.slacks[row as usize]);
            let along = self.unit * (2.0 * *out - self.lowest) + self.per_step;
            *out = partial + step * along + slack * self.per_rest;
        }
    }
}

impl HeadProbe {
    /// Also gives what the axes leave of the query, and what that may miss. `None` for numbers that
    /// f32 cannot hold.
    fn new(query: &Query, heads: &Heads<'_>) -> Option<(Self, Query, f64)> {
        let size = query.norm();
        let dot = kernels().dot;
        let (mut along, mut squares) = ([0.0; HEAD], 0.0);
        let mut rest: Vec<f64> = query.vector().iter().copied().map(f64::from).collect();
        let (mut magnitudes, mut widest) = (size, 0.0_f64);
        for (along, axis) in along
            .iter_mut()
            .zip(heads.axes.chunks_exact(query.dimension()))
        {
            *along = dot(query.vector(), axis);
            squares += *along * *along;
            let length = norm(axis);
            magnitudes += along.abs() * length;
            widest = widest.max(length);
            for (rest, &x) in rest.iter_mut().zip(axis) {
                *rest -= *along * f64::from(x);
            }
        }
        let narrow: Vec<f32> = rest.iter().map(|&x| x as f32).collect();
        let missed = rest
            .iter()
            .zip(&narrow)
            .map(|(&x, &y)| (x - f64::from(y)).powi(2));
        let missed = missed.sum::<f64>().sqrt() * (1.0 + EPSILON) + EPSILON * magnitudes;

        let largest = along.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let unit = largest / f64::from(QUERY_MAX);
        let codes = along.map(|x| {
            if unit == 0.0 {
                0
            } else {
                (x / unit).round() as i16
            }
        });
        let lost: f64 = along
            .iter()
            .zip(&codes)
            .map(|(x, &code)| (x - unit * f64::from(code)).abs())
            .sum();
        let rounded = HEAD as f64 * EPSILON * (size * widest + largest);
        let rest = Query::new(&narrow, Metric::Dot).ok()?;
        let probe = Self {
            codes,
            unit,
            per_scale: f64::from(CODE_MAX) * (lost + rounded),
            per_error: size.max(squares.sqrt()) * (1.0 + EPSILON),
            per_reach: squares.sqrt() * (1.0 + EPSILON) + rounded,
        };
        Some((probe, rest, missed))
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

    /// Takes note of how many of a batch's rows the sketches left, and says whether they paid.
    pub(crate) fn left(&mut self, rows: usize, left: usize) -> bool {
        self.pause = if left * WORTH <= rows {
            0
        } else {
            (4 * self.pause).clamp(*PAUSES.start(), *PAUSES.end())
        };
        self.wait = self.pause;
        self.pause == 0
    }

    /// Whether they paid when they were tried last.
    #[cfg(test)]
    pub(crate) fn paid(&self) -> bool {
        self.pause == 0
    }
}

#[cfg(test)]
mod tests;
