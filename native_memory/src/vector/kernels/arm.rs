//! NEON, with the dot product instruction of ARMv8.2.

#[allow(
    clippy::wildcard_imports,
    reason = "instructions, whose names cannot clash"
)]
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::{Kernels, LANES, QueryCodes, fold, for_rows, scalar};

/// The implementations that this CPU can run. The functions in the table are reached only through
/// here, after their features were found.
pub(super) fn available() -> impl Iterator<Item = &'static Kernels> {
    let present = is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod");
    present.then_some(&NEON_DOTPROD).into_iter()
}

static NEON_DOTPROD: Kernels = Kernels {
    name: "neon-dotprod",
    products: |query, codes, rows, out| {
        // SAFETY: `available` hands this table out only where NEON and dotprod were found.
        unsafe { products(query, codes, rows, out) }
    },
    sketched: scalar::sketched,
    heads: scalar::heads,
    subtract: scalar::subtract,
    dot: |a, b| {
        // SAFETY: as above.
        unsafe { dot(a, b) }
    },
    distance_sq: |a, b| {
        // SAFETY: as above.
        unsafe { distance_sq(a, b) }
    },
};

/// Adds to each i32 of `sum` the products of four i8: `vdotq_s32`, which is stable only since
/// Rust 1.98.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_i8(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these three registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[target_feature(enable = "neon,dotprod")]
fn products(query: &QueryCodes, codes: &[i8], rows: &[u32], out: &mut [f64]) {
    /// The products of `N` rows.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn products<const N: usize>(query: &QueryCodes, rows: [&[i8]; N]) -> [f64; N] {
        const STEP: usize = 16;
        let (query_high, query_low) = (query.high.as_slice(), query.low.as_slice());
        let stride = query.stride();
        assert!(query_high.len() >= stride && query_low.len() == stride);
        assert!(rows.iter().all(|row| row.len() == stride));
        let mut high = [vdupq_n_s32(0); N];
        let mut low = [vdupq_n_s32(0); N];
        for at in (0..stride).step_by(STEP) {
            // SAFETY: `at + STEP <= stride`, and the query and each row have `stride` bytes.
            let (h, l) = unsafe {
                (
                    vld1q_s8(query_high.as_ptr().add(at)),
                    vld1q_s8(query_low.as_ptr().add(at)),
                )
            };
            for i in 0..N {
                // SAFETY: as above.
                let row = unsafe { vld1q_s8(rows[i].as_ptr().add(at)) };
                high[i] = dot_i8(high[i], row, h);
                low[i] = dot_i8(low[i], row, l);
            }
        }
        std::array::from_fn(|i| (128 * vaddlvq_s32(high[i]) + vaddlvq_s32(low[i])) as f64)
    }
    for_rows(
        query.stride(),
        codes,
        rows,
        out,
        |rows, _| products(query, rows),
        |row| products(query, [row])[0],
    );
}

/// Defines one f64 reduction, given what one step adds to two sums.
macro_rules! reduction {
    ($name:ident, $rest:path, |$sum:ident, $a:ident, $b:ident| $add:expr) => {
        #[target_feature(enable = "neon")]
        fn $name(a: &[f32], b: &[f32]) -> f64 {
            const WIDTH: usize = 2;
            let whole = a.len().min(b.len()) / LANES * LANES;
            let mut sums = [vdupq_n_f64(0.0); LANES / WIDTH];
            for at in (0..whole).step_by(LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `at + LANES <= whole`, which neither slice is shorter than.
                    let ($a, $b) = unsafe {
                        (
                            vld1_f32(a.as_ptr().add(at + i * WIDTH)),
                            vld1_f32(b.as_ptr().add(at + i * WIDTH)),
                        )
                    };
                    let ($a, $b) = (vcvt_f64_f32($a), vcvt_f64_f32($b));
                    let $sum = *sum;
                    *sum = $add;
                }
            }
            let mut lanes = [0.0; LANES];
            for (lanes, sum) in lanes.chunks_exact_mut(WIDTH).zip(sums) {
                // SAFETY: the chunk has the register's two f64.
                unsafe { vst1q_f64(lanes.as_mut_ptr(), sum) };
            }
            $rest(&mut lanes, &a[whole..], &b[whole..]);
            fold(lanes)
        }
    };
}

// The products of f32 are exact in f64: fused or not, the sums are the same. Squares of
// differences are not, and must be rounded before they are added, as in `scalar`.

reduction!(dot, scalar::add_dot, |sum, a, b| vfmaq_f64(sum, a, b));
reduction!(distance_sq, scalar::add_distance_sq, |sum, a, b| {
    let difference = vsubq_f64(a, b);
    vaddq_f64(sum, vmulq_f64(difference, difference))
});
