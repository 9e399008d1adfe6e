//! Leaving rows out by their first codes.
//!
//! The product of a row's codes with the query's is that of the first columns and that of the
//! others. By the Cauchy-Schwarz inequality the latter is at most the product of what both have
//! left: the query's other codes are known, and the norm of the row's follows from the norm of the
//! whole row and the squares of its first codes. Where the best rows are much nearer to the query
//! than most, that already tells most rows off, and the rest of their codes is never read. Where
//! they are not, it tells none off, and reading some codes twice would be a waste; hence a
//! [`Shortcut`] is taken only while it pays.

use super::aligned::LINE;
use super::kernels::Partial;
use super::quantize::{EPSILON, Query, RowCode};

/// Where to cut, in eighths of the codes. Beyond, little is left to save.
const EIGHTHS: std::ops::RangeInclusive<usize> = 2..=6;

/// Batches of rows until it is considered anew whether, and where, to cut. Where it did not pay,
/// it is considered soon again, then less and less often: a search knows the best rows better with
/// each batch.
const BATCHES: usize = 16;

/// Of a batch, the share of rows (one in so many) that may be left for a cut to be chosen, and to
/// be kept.
const CHOSEN: usize = 16;
const KEPT: usize = 4;

/// The first columns of the codes, and what the query has in the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// How many; a multiple of [`LINE`].
    pub(crate) columns: usize,
    /// Norm of the query's codes in the other columns.
    rest: f64,
}

impl Cut {
    pub(crate) fn new(query: &Query, columns: usize) -> Self {
        let others = query.codes().wide[columns..].iter();
        let squares = others.map(|&x| i64::from(x) * i64::from(x)).sum::<i64>();
        Self {
            columns,
            rest: (squares as f64).sqrt() * (1.0 + EPSILON),
        }
    }

    /// At least the product that the codes of a row with these first codes have.
    pub(crate) fn most(&self, first: Partial, row: RowCode) -> f64 {
        let whole = whole(row);
        first.product + self.rest * (whole * whole - first.squares).max(0.0).sqrt()
    }

    /// What [`Cut::most`] would give of a row whose codes are spread evenly.
    fn guess(&self, share: f64, product: f64, row: RowCode) -> f64 {
        share * product + self.rest * whole(row) * (1.0 - share).sqrt()
    }
}

/// At least the norm of a row's codes. Their real norm times the scale is that of the row, give or
/// take the residual; [`EPSILON`] covers what the subtraction in [`Cut::most`] loses to rounding.
fn whole(row: RowCode) -> f64 {
    (row.norm + f64::from(row.residual)) / f64::from(row.scale) * (1.0 + EPSILON)
}

/// The cut that pays with the rows of a search, as far as one thread has seen them.
#[derive(Default)]
pub(crate) struct Shortcut {
    cut: Option<Cut>,
    /// How many batches until it is considered anew, and how many the last time when none paid.
    batches: usize,
    pause: usize,
}

impl Shortcut {
    /// The cut to try the next batch with.
    pub(crate) fn next(&mut self) -> Option<Cut> {
        self.batches = self.batches.saturating_sub(1);
        if self.batches == 0 {
            self.cut = None;
        }
        self.cut
    }

    /// Takes note of how many of a batch's rows the cut left.
    pub(crate) fn left(&mut self, rows: usize, left: usize) {
        if left * KEPT > rows {
            *self = Self::default();
        }
    }

    /// Chooses a cut by a batch of which all codes were read, if it is time to. `scratch` has the
    /// batch's length.
    pub(crate) fn choose(
        &mut self,
        query: &Query,
        products: &[f64],
        rows: &[RowCode],
        limit: f64,
        scratch: &mut [f64],
    ) {
        if self.batches > 0 || limit == f64::NEG_INFINITY {
            return;
        }
        let stride = query.codes().stride();
        let mut guesses = vec![0.0; rows.len()];
        // From the one that leaves the fewest rows on, as long as they are few.
        self.cut = EIGHTHS
            .rev()
            .map(|eighths| (stride * eighths / 8).next_multiple_of(LINE))
            .filter(|&columns| columns < stride)
            .map(|columns| Cut::new(query, columns))
            .take_while(|cut| {
                let share = cut.columns as f64 / stride as f64;
                for (guess, (&product, &row)) in guesses.iter_mut().zip(products.iter().zip(rows)) {
                    *guess = cut.guess(share, product, row);
                }
                query.upper_bounds(&guesses, rows, scratch);
                let left = scratch.iter().filter(|&&upper| upper >= limit).count();
                left * CHOSEN <= rows.len()
            })
            .last();
        if self.cut.is_some() {
            (self.batches, self.pause) = (BATCHES, 0);
        } else {
            self.pause = (2 * self.pause).clamp(1, BATCHES);
            self.batches = self.pause;
        }
    }
}

#[cfg(test)]
mod tests;
