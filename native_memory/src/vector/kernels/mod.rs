//! The inner loops, one implementation per instruction set, chosen once at run time.
//!
//! Every implementation returns the same bits as [`scalar`]: the integer products are exact, and
//! the f64 sums are defined with [`LANES`] partial sums that every instruction set can keep.

use std::sync::OnceLock;

use super::axes::HEAD;
use super::quantize::QueryCodes;

#[cfg(target_arch = "aarch64")]
mod arm;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Partial sums of an f64 reduction: component `i` is added to sum `i % LANES`, in order; then
/// the upper half is added to the lower until one is left.
pub const LANES: usize = 32;

/// See [`Kernels::heads`].
type Heads = fn(&[i16; HEAD], &[i8], &[u32], &mut [f64]);

/// Rows, and components of each, that [`Kernels::subtract`] has in registers.
pub(crate) const ROWS: usize = 4;
/// See [`ROWS`].
pub(crate) const TILE: usize = 16;

/// One implementation of the inner loops.
pub struct Kernels {
    /// The instruction set.
    pub name: &'static str,
    /// The exact products of the query with the given rows of `codes`: `out[i]` is that of row
    /// `rows[i]`, an integer below 2^53. Each row has [`QueryCodes::stride`] codes.
    pub(crate) products: fn(&QueryCodes, &[i8], &[u32], &mut [f64]),
    /// The exact products of [`QueryCodes::high`] with the levels, as 0 to 3, of the given rows'
    /// sketches; see [`super::sketch::Sketches::codes`].
    pub(crate) sketched: fn(&QueryCodes, &[u8], &[u32], &mut [f64]),
    /// The exact products of a query's codes, within ±[`super::quantize::QUERY_MAX`], with the given
    /// rows' heads, of which each has [`HEAD`] codes.
    pub(crate) heads: Heads,
    /// Subtracts from [`ROWS`] rows, which lie one after another, what their coefficients make of
    /// the axes. Rows and axes have whole tiles of [`TILE`] components, and of the axes all tiles
    /// that are at the same place lie together. The sums are kept in f32.
    pub(crate) subtract: fn(&[f32], &[[f32; ROWS]; HEAD], &mut [f32]),
    /// The inner product, in f64. The products of two f32 are exact in it.
    pub dot: fn(&[f32], &[f32]) -> f64,
    /// The squared Euclidean distance, in f64.
    pub distance_sq: fn(&[f32], &[f32]) -> f64,
}

/// The fastest implementation for this CPU.
pub fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| available().next().unwrap_or(&scalar::KERNELS))
}

/// Every implementation that this CPU can run, the fastest first, [`scalar`] last.
pub fn available() -> impl Iterator<Item = &'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    let native = x86::available();
    #[cfg(target_arch = "aarch64")]
    let native = arm::available();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let native = std::iter::empty();
    native.chain([&scalar::KERNELS])
}

/// Does `work`, compiled for wider registers where this CPU has them: for loops that the compiler
/// vectorises by itself. The results are the same.
///
/// What the loop uses of `self` is best copied before: it is not kept in registers otherwise.
#[inline]
pub(crate) fn widely<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was found.
        return unsafe { x86::widely(work) };
    }
    work()
}

/// Bytes between the row that is read and the one that is fetched from memory meanwhile. Rows are
/// read four at a time, which hides from the hardware that they lie in a row.
const AHEAD: usize = 8 * 1024;
/// The same in rows, where they are short: enough to hide the latency of memory, and few enough
/// that most rows of a small batch are fetched in time.
const AHEAD_ROWS: usize = 24;

/// Splits the rows into fours, whose loops share the loads of the query, and the rest. Each loop
/// also gets the rows that will be read soon, to have them fetched. Slicing checks here, once,
/// that each row has all its codes, `stride` bytes of them.
#[inline]
fn for_rows<T>(
    stride: usize,
    codes: &[T],
    rows: &[u32],
    out: &mut [f64],
    mut four: impl FnMut([&[T]; 4], [&[T]; 4]) -> [f64; 4],
    mut one: impl FnMut(&[T]) -> f64,
) {
    let row = |at: u32| &codes[at as usize * stride..][..stride];
    let ahead = (AHEAD.div_ceil(stride * size_of::<T>() * 4) * 4).min(AHEAD_ROWS);
    let whole = rows.len() / 4 * 4;
    for start in (0..whole).step_by(4) {
        let soon = if start + ahead < whole {
            start + ahead
        } else {
            start
        };
        let now = std::array::from_fn(|i| row(rows[start + i]));
        let soon = std::array::from_fn(|i| row(rows[soon + i]));
        out[start..start + 4].copy_from_slice(&four(now, soon));
    }
    for i in whole..rows.len() {
        out[i] = one(row(rows[i]));
    }
}

/// The last step of an f64 reduction; see [`LANES`].
fn fold(mut sums: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests;
