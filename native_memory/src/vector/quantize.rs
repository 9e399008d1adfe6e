//! Vectors to int8 codes, and hard bounds on scores from codes.
//!
//! A row `v` becomes `scale * code + e` with int8 codes; `r >= |e|` is kept. A query `q` becomes
//! `step * x + f` with 15-bit integers `x`; `|f|` is known. Then, by Cauchy-Schwarz,
//!
//! ```text
//! |v·q - scale * step * (code·x)|  =  |e·q + scale * code·f|  <=  r |q| + (|v| + r) |f|
//! ```
//!
//! and `code·x` is computed exactly, in integers. What the codes leave out, `e`, has *fine* codes of
//! its own: `e = fine_scale * fine + g`. With them `|g|`, some hundredth of `|e|`, takes the place of
//! `r`. They are read for the few rows that the codes cannot tell apart.
//!
//! All other arithmetic is done in f64, whose rounding is covered by [`EPSILON`], so that the bounds
//! hold for what the machine computes and not only for real numbers.

use super::aligned::{LINE, Lines};
use super::kernels::{kernels, widely};
use super::sketch::GROUP;

/// The largest number of components of a vector. It keeps every sum of a kernel inside its
/// integer type and every residual inside f32.
pub const MAX_DIMENSION: usize = 32_768;

/// The largest magnitude of a row's code.
pub(crate) const CODE_MAX: f32 = 127.0;

/// The largest magnitude of a query's code: `127 * 128`, so that it splits into a high part in
/// `-127..=127` and a low part in `-64..=63` that both fit i8.
pub(crate) const QUERY_MAX: i16 = 127 * 128;

/// What rounding may take from a sum of [`MAX_DIMENSION`] products, relative to the product of
/// the norms: 2^-38, thirty times the worst case of the lane-wise f64 sums in `kernels`.
pub(crate) const EPSILON: f64 = 1.0 / (1_u64 << 38) as f64;

/// Two scores `1 / (1 + d²)` can round to the same f64 unless the values of `1 + d²` differ by
/// more than this, relatively.
const SCORE_RESOLUTION: f64 = 1.0 / (1_u64 << 50) as f64;

/// How the similarity of two vectors is measured. More is always better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Metric {
    /// `1 / (1 + d²)` with the squared Euclidean distance `d²`; in `(0, 1]`.
    #[default]
    L2,
    /// The cosine of the angle, in `[-1, 1]`; 0 where one of the vectors is zero.
    Cosine,
    /// The inner product.
    Dot,
}

/// A vector that cannot be stored or searched for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    /// Nothing to compare.
    #[error("the vector is empty")]
    Empty,
    /// Above [`MAX_DIMENSION`].
    #[error("the vector has {0} components; at most {MAX_DIMENSION} are supported")]
    TooLong(usize),
    /// Not the dimension of the rows.
    #[error("the vector has {found} components; this store holds vectors of {expected}")]
    Dimension {
        /// Components of the rows.
        expected: usize,
        /// Components of the vector.
        found: usize,
    },
    /// NaN or infinite.
    #[error("component {0} of the vector is not a finite number")]
    NotFinite(usize),
}

/// Checks that a vector can be stored or searched for.
pub fn check(vector: &[f32]) -> Result<(), VectorError> {
    if vector.is_empty() {
        return Err(VectorError::Empty);
    }
    if vector.len() > MAX_DIMENSION {
        return Err(VectorError::TooLong(vector.len()));
    }
    match vector.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(VectorError::NotFinite(at)),
        None => Ok(()),
    }
}

/// The distance between the codes of two rows, in bytes: the dimension rounded up to whole lines.
pub const fn stride(dimension: usize) -> usize {
    dimension.next_multiple_of(LINE)
}

/// What is kept of a row beside its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowCode {
    /// The value of one unit of the codes.
    pub scale: f32,
    /// At least the norm of `vector - scale * codes`, as real numbers.
    pub residual: f32,
    /// The Euclidean norm.
    pub norm: f64,
}

/// What is kept of a row beside its fine codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FineCode {
    /// The value of one unit of the fine codes.
    pub scale: f32,
    /// At least the norm of what codes and fine codes leave out, as real numbers.
    pub residual: f32,
}

/// Quantises a row. `codes` and `fine` have at least the length of `vector`; what is beyond is not
/// touched.
pub fn quantize(
    vector: &[f32],
    codes: &mut [i8],
    fine: &mut [i8],
) -> Result<(RowCode, FineCode), VectorError> {
    check(vector)?;
    let (codes, fine) = (&mut codes[..vector.len()], &mut fine[..vector.len()]);
    let scale = encode(vector, codes);
    // Both factors fit 24 + 7 bits: the product is exact, and only the subtraction rounds.
    let rests: Vec<f64> = vector
        .iter()
        .zip(&*codes)
        .map(|(&x, &code)| f64::from(x) - f64::from(scale) * f64::from(code))
        .collect();
    let residual = length(rests.iter().copied()) * (1.0 + EPSILON);

    let narrow: Vec<f32> = rests.iter().map(|&rest| rest as f32).collect();
    let fine_scale = encode(&narrow, fine);
    let left = rests
        .iter()
        .zip(&*fine)
        .map(|(rest, &code)| rest - f64::from(fine_scale) * f64::from(code));
    // The rests themselves were rounded, which shows where little is left of them.
    let fine_residual = length(left) * (1.0 + EPSILON) + residual * EPSILON;
    Ok((
        RowCode {
            scale,
            residual: round_up(residual),
            norm: norm(vector),
        },
        FineCode {
            scale: fine_scale,
            residual: round_up(fine_residual),
        },
    ))
}

/// Chooses the codes of a vector, and returns the value of one unit of them.
fn encode(vector: &[f32], codes: &mut [i8]) -> f32 {
    let largest = vector.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let scale = largest / CODE_MAX;
    if scale == 0.0 {
        // Zero, or so small that no f32 scale exists: everything is then left out.
        codes.fill(0);
    } else {
        for (code, x) in codes.iter_mut().zip(vector) {
            *code = round_ties_even((x / scale).clamp(-CODE_MAX, CODE_MAX)) as i8;
        }
    }
    scale
}

fn length(components: impl Iterator<Item = f64>) -> f64 {
    components.map(|x| x * x).sum::<f64>().sqrt()
}

/// The Euclidean norm of a vector. Squares of f32 neither overflow nor vanish in f64.
pub(crate) fn norm(vector: &[f32]) -> f64 {
    (kernels().dot)(vector, vector).sqrt()
}

/// Rounds to an integer, for `|x| <= 2^22`. Unlike `f32::round_ties_even` it needs no SSE4.1, so
/// that the loop around it is vectorised for every CPU.
fn round_ties_even(x: f32) -> f32 {
    const INTEGERS: f32 = 12_582_912.0; // 1.5 * 2^23: here the f32 are one apart.
    (x + INTEGERS) - INTEGERS
}

/// The smallest f32 not below `x`.
pub(crate) fn round_up(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) < x {
        nearest.next_up()
    } else {
        nearest
    }
}

/// A query in the integer form that the kernels read, padded with zeros to [`stride`]; the high
/// parts further, to whole groups of a sketch.
#[allow(dead_code, reason = "an instruction set reads the parts that suit it")]
#[derive(Clone)]
pub struct QueryCodes {
    /// The codes, within ±[`QUERY_MAX`].
    pub(crate) wide: Vec<i16>,
    /// `wide = 128 * high + low`.
    pub(crate) high: Lines,
    /// See `high`; within `-64..=63`.
    pub(crate) low: Lines,
    /// `128 * Σ (128 * high + low)`: what a kernel that reads the row as `code + 128` has too much.
    pub(crate) bias: i64,
}

impl QueryCodes {
    /// The number of codes with their padding: a multiple of [`LINE`], and what a row must have.
    pub(crate) fn stride(&self) -> usize {
        self.wide.len()
    }

    /// Splits codes within ±[`QUERY_MAX`] for the kernels.
    pub(crate) fn new(mut wide: Vec<i16>) -> Self {
        wide.resize(stride(wide.len()), 0);
        let mut high = Lines::zeroed(wide.len().next_multiple_of(GROUP));
        let mut low = Lines::zeroed(wide.len());
        let halves = high.as_mut_slice().iter_mut().zip(low.as_mut_slice());
        for ((high, low), &x) in halves.zip(&wide) {
            *high = ((x + 64) >> 7) as i8;
            *low = (x - (i16::from(*high) << 7)) as i8;
        }
        let bias = 128 * wide.iter().map(|&x| i64::from(x)).sum::<i64>();
        Self {
            wide,
            high,
            low,
            bias,
        }
    }
}

/// A vector to search for, with everything that does not depend on the row computed once.
pub struct Query {
    vector: Vec<f32>,
    metric: Metric,
    codes: QueryCodes,
    /// The value of one unit of the codes.
    step: f64,
    norm: f64,
    /// The factors of a row's residual and of its norm in the bound.
    per_residual: f64,
    per_norm: f64,
}

impl Query {
    /// Prepares a query.
    pub fn new(vector: &[f32], metric: Metric) -> Result<Self, VectorError> {
        check(vector)?;
        let largest = vector
            .iter()
            .fold(0.0_f64, |max, &x| max.max(f64::from(x).abs()));
        let step = largest / f64::from(QUERY_MAX);
        let wide: Vec<i16> = if step == 0.0 {
            vec![0; vector.len()]
        } else {
            vector
                .iter()
                .map(|&x| (f64::from(x) / step).round() as i16)
                .collect()
        };
        let squares = vector.iter().zip(&wide).map(|(&x, &code)| {
            let rest = f64::from(x) - step * f64::from(code);
            rest * rest
        });
        let norm = norm(vector);
        // `step * code` is rounded, unlike in a row: EPSILON * norm covers that as well.
        let residual = squares.sum::<f64>().sqrt() * (1.0 + EPSILON) + EPSILON * norm;
        let per_residual = (norm + residual) * (1.0 + EPSILON);
        let per_norm = residual + EPSILON * norm;
        Ok(Self {
            vector: vector.to_vec(),
            metric,
            codes: QueryCodes::new(wide),
            step,
            norm,
            per_residual,
            per_norm,
        })
    }

    /// The number of components.
    pub fn dimension(&self) -> usize {
        self.vector.len()
    }

    /// The vector.
    pub fn vector(&self) -> &[f32] {
        &self.vector
    }

    /// The metric.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    pub(crate) fn codes(&self) -> &QueryCodes {
        &self.codes
    }

    /// The Euclidean norm.
    pub(crate) fn norm(&self) -> f64 {
        self.norm
    }

    /// The value of one unit of [`QueryCodes::high`].
    pub(crate) fn high_unit(&self) -> f64 {
        128.0 * self.step
    }

    /// The score of a row: what an exhaustive search would compute.
    ///
    /// `vector` has the query's dimension; `norm` is its [`RowCode::norm`]. The result is the same
    /// bit for bit on every CPU.
    pub fn score(&self, vector: &[f32], norm: f64) -> f64 {
        match self.metric {
            Metric::L2 => 1.0 / (1.0 + (kernels().distance_sq)(&self.vector, vector)),
            Metric::Dot => (kernels().dot)(&self.vector, vector),
            Metric::Cosine => {
                let norms = self.norm * norm;
                if norms == 0.0 {
                    return 0.0;
                }
                ((kernels().dot)(&self.vector, vector) / norms).clamp(-1.0, 1.0)
            }
        }
    }

    /// Bounds on the rank of one row, given the exact integer product of the codes.
    ///
    /// The *rank* orders as the score does and is cheaper: `-d²` for [`Metric::L2`], the score
    /// itself otherwise. Its true value and the one that [`Query::score`] computes both lie within
    /// the bounds.
    pub(crate) fn bounds(&self, product: f64, row: RowCode) -> Bounds {
        match self.metric {
            Metric::L2 => self.bounds_l2(product, row),
            Metric::Cosine => self.bounds_cosine(product, row),
            Metric::Dot => self.bounds_dot(product, row),
        }
    }

    /// The same, given the product with the fine codes as well.
    pub(crate) fn fine_bounds(
        &self,
        [product, finer]: [f64; 2],
        row: RowCode,
        fine: FineCode,
    ) -> Bounds {
        let middle = f64::from(row.scale) * product + f64::from(fine.scale) * finer;
        let dot = self.around(self.step * middle, fine.residual, row.norm);
        match self.metric {
            Metric::L2 => self.l2(dot, row.norm),
            Metric::Cosine => self.cosine(dot, row.norm),
            Metric::Dot => dot,
        }
    }

    /// The upper bounds of many rows; the same numbers as [`Query::bounds`] gives.
    pub(crate) fn upper_bounds(&self, products: &[f64], rows: &[RowCode], out: &mut [f64]) {
        // One loop per metric, without a branch in it, so that the compiler vectorises it.
        let rows = out.iter_mut().zip(products.iter().zip(rows));
        match self.metric {
            Metric::L2 => rows.for_each(|(out, (&p, &row))| *out = self.bounds_l2(p, row).upper),
            Metric::Cosine => {
                rows.for_each(|(out, (&p, &row))| *out = self.bounds_cosine(p, row).upper);
            }
            Metric::Dot => rows.for_each(|(out, (&p, &row))| *out = self.bounds_dot(p, row).upper),
        }
    }

    /// At least the ranks of many rows, given at least their inner products, and their norms.
    pub(crate) fn most(&self, dots: &[f64], norms: &[f64], out: &mut [f64]) {
        let most = |dot| Bounds {
            lower: f64::NEG_INFINITY,
            upper: dot,
        };
        // As in `upper_bounds`.
        widely(|| {
            let rows = out.iter_mut().zip(dots.iter().zip(norms));
            match self.metric {
                Metric::L2 => {
                    rows.for_each(|(out, (&d, &norm))| *out = self.l2(most(d), norm).upper);
                }
                Metric::Cosine => {
                    rows.for_each(|(out, (&d, &norm))| *out = self.cosine(most(d), norm).upper);
                }
                Metric::Dot => out.copy_from_slice(dots),
            }
        });
    }

    #[inline]
    fn bounds_dot(&self, product: f64, row: RowCode) -> Bounds {
        let middle = f64::from(row.scale) * self.step * product;
        self.around(middle, row.residual, row.norm)
    }

    /// Bounds on the inner product of a row that codes say is `middle`.
    #[inline]
    fn around(&self, middle: f64, residual: f32, norm: f64) -> Bounds {
        let error = f64::from(residual) * self.per_residual + norm * self.per_norm;
        Bounds {
            lower: middle - error,
            upper: middle + error,
        }
    }

    #[inline]
    fn bounds_l2(&self, product: f64, row: RowCode) -> Bounds {
        self.l2(self.bounds_dot(product, row), row.norm)
    }

    #[inline]
    fn l2(&self, dot: Bounds, norm: f64) -> Bounds {
        let norms = norm * norm + self.norm * self.norm;
        Bounds {
            lower: 2.0 * dot.lower - norms * (1.0 + EPSILON),
            upper: 2.0 * dot.upper - norms * (1.0 - EPSILON),
        }
    }

    #[inline]
    fn bounds_cosine(&self, product: f64, row: RowCode) -> Bounds {
        self.cosine(self.bounds_dot(product, row), row.norm)
    }

    #[inline]
    fn cosine(&self, dot: Bounds, norm: f64) -> Bounds {
        let norms = norm * self.norm;
        if norms == 0.0 {
            return Bounds {
                lower: 0.0,
                upper: 0.0,
            };
        }
        // The score is clamped, so that everything beyond the ends is a tie with them.
        Bounds {
            lower: (dot.lower / norms - EPSILON).clamp(-1.0, 1.0),
            upper: (dot.upper / norms + EPSILON).clamp(-1.0, 1.0),
        }
    }

    /// The limit below which a row's upper bound proves that its score is *less* than the score
    /// of a row with this rank. Less and not equal: ties are decided by id.
    pub(crate) fn limit_for_rank(&self, rank: f64) -> f64 {
        match self.metric {
            Metric::L2 => rank - SCORE_RESOLUTION * (1.0 - rank),
            Metric::Cosine | Metric::Dot => rank,
        }
    }

    /// The limit below which a row's upper bound proves that its score is less than this score.
    pub(crate) fn limit_for_score(&self, score: f64) -> f64 {
        match self.metric {
            Metric::L2 if score > 0.0 => {
                let inverse = 1.0 / score;
                1.0 - inverse - 4.0 * SCORE_RESOLUTION * (1.0 + inverse)
            }
            Metric::L2 => f64::NEG_INFINITY,
            Metric::Cosine | Metric::Dot => score,
        }
    }

    /// The largest score that a row of at most this rank can have.
    pub(crate) fn score_for_rank(&self, rank: f64) -> f64 {
        match self.metric {
            Metric::L2 => 1.0 / (1.0 - rank.min(0.0)),
            Metric::Cosine | Metric::Dot => rank,
        }
    }
}

/// An interval of ranks; see [`Query::bounds`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) lower: f64,
    pub(crate) upper: f64,
}

#[cfg(test)]
pub(crate) mod tests;
