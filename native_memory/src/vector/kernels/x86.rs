//! AVX-512 VNNI, AVX-VNNI and AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "instructions, whose names cannot clash"
)]
use std::arch::x86_64::*;

use super::super::aligned::LINE;
use super::super::axes::HEAD;
use super::super::sketch::GROUP;
use super::{Kernels, LANES, QueryCodes, ROWS, fold, for_rows, scalar};

/// The implementations that this CPU can run, the fastest first. The functions in these tables
/// are reached only through here, after their features were found.
pub(super) fn available() -> impl Iterator<Item = &'static Kernels> {
    let avx2 = is_x86_feature_detected!("avx2");
    let avx512 =
        avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
    let avx_vnni = avx2 && is_x86_feature_detected!("avxvnni");
    [(avx512, &AVX512_VNNI), (avx_vnni, &AVX_VNNI), (avx2, &AVX2)]
        .into_iter()
        .filter_map(|(present, kernels)| present.then_some(kernels))
}

static AVX512_VNNI: Kernels = Kernels {
    name: "avx512-vnni",
    products: |query, codes, rows, out| {
        // SAFETY: `available` hands this table out only where AVX-512 F and VNNI were found.
        unsafe { products_avx512(query, codes, rows, out) }
    },
    sketched: |query, sketches, rows, out| {
        // SAFETY: as above; `available` looks for AVX2 as well.
        unsafe { sketched_avx2(query, sketches, rows, out) }
    },
    heads: |query, codes, rows, out| {
        // SAFETY: as above.
        unsafe { heads_avx2(query, codes, rows, out) }
    },
    subtract: |tiles, coefficients, rests| {
        // SAFETY: as above.
        unsafe { subtract_avx2(tiles, coefficients, rests) }
    },
    dot: |a, b| {
        // SAFETY: as above.
        unsafe { dot_avx512(a, b) }
    },
    distance_sq: |a, b| {
        // SAFETY: as above.
        unsafe { distance_sq_avx512(a, b) }
    },
};

static AVX_VNNI: Kernels = Kernels {
    name: "avx-vnni",
    products: |query, codes, rows, out| {
        // SAFETY: `available` hands this table out only where AVX2 and AVX-VNNI were found.
        unsafe { products_avx_vnni(query, codes, rows, out) }
    },
    sketched: |query, sketches, rows, out| {
        // SAFETY: as above; `available` looks for AVX2 as well.
        unsafe { sketched_avx2(query, sketches, rows, out) }
    },
    heads: |query, codes, rows, out| {
        // SAFETY: as above.
        unsafe { heads_avx2(query, codes, rows, out) }
    },
    subtract: |tiles, coefficients, rests| {
        // SAFETY: as above.
        unsafe { subtract_avx2(tiles, coefficients, rests) }
    },
    dot: |a, b| {
        // SAFETY: as above.
        unsafe { dot_avx2(a, b) }
    },
    distance_sq: |a, b| {
        // SAFETY: as above.
        unsafe { distance_sq_avx2(a, b) }
    },
};

static AVX2: Kernels = Kernels {
    name: "avx2",
    products: |query, codes, rows, out| {
        // SAFETY: `available` hands this table out only where AVX2 was found.
        unsafe { products_avx2(query, codes, rows, out) }
    },
    sketched: |query, sketches, rows, out| {
        // SAFETY: as above; `available` looks for AVX2 as well.
        unsafe { sketched_avx2(query, sketches, rows, out) }
    },
    heads: |query, codes, rows, out| {
        // SAFETY: as above.
        unsafe { heads_avx2(query, codes, rows, out) }
    },
    subtract: |tiles, coefficients, rests| {
        // SAFETY: as above.
        unsafe { subtract_avx2(tiles, coefficients, rests) }
    },
    dot: |a, b| {
        // SAFETY: as above.
        unsafe { dot_avx2(a, b) }
    },
    distance_sq: |a, b| {
        // SAFETY: as above.
        unsafe { distance_sq_avx2(a, b) }
    },
};

// The VNNI instructions multiply unsigned by signed bytes. A row's code is made unsigned by
// flipping its top bit, which adds 128; `QueryCodes::bias` is what that adds to the product.

#[target_feature(enable = "avx512f,avx512vnni")]
fn products_avx512(query: &QueryCodes, codes: &[i8], rows: &[u32], out: &mut [f64]) {
    /// The products of `N` rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn products<const N: usize>(
        query: &QueryCodes,
        rows: [&[i8]; N],
        soon: [&[i8]; N],
    ) -> [f64; N] {
        const STEP: usize = 64;
        let (query_high, query_low) = (query.high.as_slice(), query.low.as_slice());
        let stride = query.stride();
        assert!(query_high.len() >= stride && query_low.len() == stride);
        assert!(rows.iter().chain(&soon).all(|row| row.len() == stride));
        let flip = _mm512_set1_epi8(i8::MIN);
        let mut high = [_mm512_setzero_si512(); N];
        let mut low = [_mm512_setzero_si512(); N];
        for at in (0..stride).step_by(STEP) {
            // SAFETY: `at + STEP <= stride`, and the query and each row have `stride` bytes.
            let (h, l) = unsafe {
                (
                    _mm512_loadu_si512(query_high.as_ptr().add(at).cast()),
                    _mm512_loadu_si512(query_low.as_ptr().add(at).cast()),
                )
            };
            for i in 0..N {
                // SAFETY: as above.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(soon[i].as_ptr().add(at)) };
                // SAFETY: as above.
                let row = unsafe { _mm512_loadu_si512(rows[i].as_ptr().add(at).cast()) };
                let row = _mm512_xor_si512(row, flip);
                high[i] = _mm512_dpbusd_epi32(high[i], row, h);
                low[i] = _mm512_dpbusd_epi32(low[i], row, l);
            }
        }
        std::array::from_fn(|i| {
            let high = i64::from(_mm512_reduce_add_epi32(high[i]));
            let low = i64::from(_mm512_reduce_add_epi32(low[i]));
            (128 * high + low - query.bias) as f64
        })
    }
    for_rows(
        query.stride(),
        codes,
        rows,
        out,
        |rows, soon| products(query, rows, soon),
        |row| products(query, [row], [row])[0],
    );
}

#[target_feature(enable = "avx2,avxvnni")]
fn products_avx_vnni(query: &QueryCodes, codes: &[i8], rows: &[u32], out: &mut [f64]) {
    /// The products of `N` rows.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    fn products<const N: usize>(
        query: &QueryCodes,
        rows: [&[i8]; N],
        soon: [&[i8]; N],
    ) -> [f64; N] {
        const STEP: usize = 32;
        let (query_high, query_low) = (query.high.as_slice(), query.low.as_slice());
        let stride = query.stride();
        assert!(query_high.len() >= stride && query_low.len() == stride);
        assert!(rows.iter().chain(&soon).all(|row| row.len() == stride));
        let flip = _mm256_set1_epi8(i8::MIN);
        let mut high = [_mm256_setzero_si256(); N];
        let mut low = [_mm256_setzero_si256(); N];
        for at in (0..stride).step_by(STEP) {
            // SAFETY: `at + STEP <= stride`, and the query and each row have `stride` bytes.
            let (h, l) = unsafe {
                (
                    _mm256_loadu_si256(query_high.as_ptr().add(at).cast()),
                    _mm256_loadu_si256(query_low.as_ptr().add(at).cast()),
                )
            };
            for i in 0..N {
                // SAFETY: as above.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(soon[i].as_ptr().add(at)) };
                // SAFETY: as above.
                let row = unsafe { _mm256_loadu_si256(rows[i].as_ptr().add(at).cast()) };
                let row = _mm256_xor_si256(row, flip);
                high[i] = _mm256_dpbusd_avx_epi32(high[i], row, h);
                low[i] = _mm256_dpbusd_avx_epi32(low[i], row, l);
            }
        }
        std::array::from_fn(|i| (128 * sum_i32(high[i]) + sum_i32(low[i]) - query.bias) as f64)
    }
    for_rows(
        query.stride(),
        codes,
        rows,
        out,
        |rows, soon| products(query, rows, soon),
        |row| products(query, [row], [row])[0],
    );
}

#[target_feature(enable = "avx2")]
fn products_avx2(query: &QueryCodes, codes: &[i8], rows: &[u32], out: &mut [f64]) {
    /// The products of `N` rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn products<const N: usize>(
        query: &QueryCodes,
        rows: [&[i8]; N],
        soon: [&[i8]; N],
    ) -> [f64; N] {
        const STEP: usize = 16;
        /// Codes after which the eight 32-bit sums are emptied: 1024 * 127 * 127 * 128 < 2^31.
        const BLOCK: usize = 8 * 1024;
        let stride = query.stride();
        assert!(query.wide.len() == stride && stride.is_multiple_of(LINE));
        assert!(rows.iter().chain(&soon).all(|row| row.len() == stride));
        let mut totals = [0_i64; N];
        for block in (0..stride).step_by(BLOCK) {
            let mut sums = [_mm256_setzero_si256(); N];
            for line in (block..stride.min(block + BLOCK)).step_by(LINE) {
                for row in soon {
                    // SAFETY: `line < stride`, and each row has `stride` codes.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().add(line)) };
                }
                for at in (line..line + LINE).step_by(STEP) {
                    // SAFETY: `stride` is a multiple of `LINE`, so that `at + STEP <= stride`;
                    // the query and each row have `stride` codes.
                    let wide = unsafe { _mm256_loadu_si256(query.wide.as_ptr().add(at).cast()) };
                    for i in 0..N {
                        // SAFETY: as above.
                        let row = unsafe { _mm_loadu_si128(rows[i].as_ptr().add(at).cast()) };
                        let row = _mm256_cvtepi8_epi16(row);
                        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(row, wide));
                    }
                }
            }
            for i in 0..N {
                totals[i] += sum_i32(sums[i]);
            }
        }
        totals.map(|total| total as f64)
    }
    for_rows(
        query.stride(),
        codes,
        rows,
        out,
        |rows, soon| products(query, rows, soon),
        |row| products(query, [row], [row])[0],
    );
}

/// Few rows get past their sketches, so that reading those is all that counts: for every CPU that
/// has them, these instructions are about as fast as memory.
#[target_feature(enable = "avx2")]
fn sketched_avx2(query: &QueryCodes, sketches: &[u8], rows: &[u32], out: &mut [f64]) {
    /// The products of `N` rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn products<const N: usize>(high: &[i8], rows: [&[u8]; N], soon: [&[u8]; N]) -> [f64; N] {
        const STEP: usize = GROUP / 4;
        /// Bytes after which the sixteen 16-bit sums are emptied: 10 * 4 * 2 * 3 * 127 < 2^15.
        const BLOCK: usize = 10 * STEP;
        let stride = high.len() / 4;
        assert!(stride.is_multiple_of(STEP));
        assert!(rows.iter().chain(&soon).all(|row| row.len() == stride));
        let (three, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
        let mut totals = [_mm256_setzero_si256(); N];
        for block in (0..stride).step_by(BLOCK) {
            let mut sums = [_mm256_setzero_si256(); N];
            for at in (block..stride.min(block + BLOCK)).step_by(STEP) {
                // SAFETY: `at + STEP <= stride`, and the query has four times as many codes.
                let high: [__m256i; 4] = std::array::from_fn(|part| unsafe {
                    _mm256_loadu_si256(high.as_ptr().add(4 * at + part * STEP).cast())
                });
                for i in 0..N {
                    // SAFETY: `at + STEP <= stride`, and each row has `stride` bytes.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(soon[i].as_ptr().add(at).cast()) };
                    // SAFETY: as above.
                    let bits = unsafe { _mm256_loadu_si256(rows[i].as_ptr().add(at).cast()) };
                    let first = _mm256_and_si256(bits, three);
                    let second = _mm256_and_si256(_mm256_srli_epi16::<2>(bits), three);
                    let third = _mm256_and_si256(_mm256_srli_epi16::<4>(bits), three);
                    let fourth = _mm256_and_si256(_mm256_srli_epi16::<6>(bits), three);
                    let half = _mm256_add_epi16(
                        _mm256_maddubs_epi16(first, high[0]),
                        _mm256_maddubs_epi16(second, high[1]),
                    );
                    let other = _mm256_add_epi16(
                        _mm256_maddubs_epi16(third, high[2]),
                        _mm256_maddubs_epi16(fourth, high[3]),
                    );
                    sums[i] = _mm256_add_epi16(sums[i], _mm256_add_epi16(half, other));
                }
            }
            for i in 0..N {
                totals[i] = _mm256_add_epi32(totals[i], _mm256_madd_epi16(sums[i], ones));
            }
        }
        totals.map(|total| sum_i32(total) as f64)
    }
    let high = query.high.as_slice();
    for_rows(
        high.len() / 4,
        sketches,
        rows,
        out,
        |rows, soon| products(high, rows, soon),
        |row| products(high, [row], [row])[0],
    );
}

/// A head is so short that its sums are added up four rows at a time.
#[target_feature(enable = "avx2")]
fn heads_avx2(query: &[i16; HEAD], codes: &[i8], rows: &[u32], out: &mut [f64]) {
    const STEP: usize = 16;
    /// The eight sums of one row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sums(query: &[__m256i; HEAD / STEP], row: &[i8; HEAD]) -> __m256i {
        let mut sums = [_mm256_setzero_si256(); HEAD / STEP];
        for (at, (sum, &query)) in sums.iter_mut().zip(query).enumerate() {
            // SAFETY: a head has `HEAD` codes.
            let codes = unsafe { _mm_loadu_si128(row.as_ptr().add(at * STEP).cast()) };
            *sum = _mm256_madd_epi16(_mm256_cvtepi8_epi16(codes), query);
        }
        _mm256_add_epi32(
            _mm256_add_epi32(sums[0], sums[1]),
            _mm256_add_epi32(sums[2], sums[3]),
        )
    }
    const AHEAD: usize = 32;
    let (heads, _) = codes.as_chunks::<HEAD>();
    // SAFETY: the query has `HEAD` codes.
    let query: [__m256i; HEAD / STEP] = std::array::from_fn(|at| unsafe {
        _mm256_loadu_si256(query.as_ptr().add(at * STEP).cast())
    });
    let (fours, _) = rows.as_chunks::<4>();
    let whole = rows.len() / 4 * 4;
    let mut outs = out.chunks_exact_mut(4);
    for (at, (four, out)) in fours.iter().zip(&mut outs).enumerate() {
        if let Some(soon) = fours.get(at + AHEAD / 4) {
            for &row in soon {
                let head: *const i8 = heads[row as usize].as_ptr();
                _mm_prefetch::<_MM_HINT_T0>(head);
            }
        }
        let [a, b, c, d] = four.map(|row| sums(&query, &heads[row as usize]));
        let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        let totals = _mm_add_epi32(
            _mm256_castsi256_si128(pairs),
            _mm256_extracti128_si256::<1>(pairs),
        );
        // SAFETY: the chunk has four f64.
        unsafe { _mm256_storeu_pd(out.as_mut_ptr(), _mm256_cvtepi32_pd(totals)) };
    }
    for (out, &row) in out[whole..].iter_mut().zip(&rows[whole..]) {
        *out = sum_i32(sums(&query, &heads[row as usize])) as f64;
    }
}

/// See [`super::widely`].
#[target_feature(enable = "avx2")]
pub(super) fn widely<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[target_feature(enable = "avx2")]
fn subtract_avx2(tiles: &[f32], coefficients: &[[f32; ROWS]; HEAD], rests: &mut [f32]) {
    scalar::subtract(tiles, coefficients, rests);
}

/// The sum of eight i32, which need not fit one.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_i32(sums: __m256i) -> i64 {
    let mut lanes = [0_i32; 8];
    // SAFETY: the array has the register's 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
    lanes.iter().map(|&lane| i64::from(lane)).sum()
}

/// Defines one f64 reduction for 512-bit registers, given what one step adds to eight sums.
macro_rules! reduction_avx512 {
    ($name:ident, $rest:path, |$sum:ident, $a:ident, $b:ident| $add:expr) => {
        #[target_feature(enable = "avx512f")]
        fn $name(a: &[f32], b: &[f32]) -> f64 {
            const WIDTH: usize = 8;
            let whole = a.len().min(b.len()) / LANES * LANES;
            let mut sums = [_mm512_setzero_pd(); LANES / WIDTH];
            for at in (0..whole).step_by(LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `at + LANES <= whole`, which neither slice is shorter than.
                    let ($a, $b) = unsafe {
                        (
                            _mm256_loadu_ps(a.as_ptr().add(at + i * WIDTH)),
                            _mm256_loadu_ps(b.as_ptr().add(at + i * WIDTH)),
                        )
                    };
                    let ($a, $b) = (_mm512_cvtps_pd($a), _mm512_cvtps_pd($b));
                    let $sum = *sum;
                    *sum = $add;
                }
            }
            let mut lanes = [0.0; LANES];
            for (lanes, sum) in lanes.chunks_exact_mut(WIDTH).zip(sums) {
                // SAFETY: the chunk has the register's eight f64.
                unsafe { _mm512_storeu_pd(lanes.as_mut_ptr(), sum) };
            }
            $rest(&mut lanes, &a[whole..], &b[whole..]);
            fold(lanes)
        }
    };
}

/// Defines one f64 reduction for 256-bit registers, as [`reduction_avx512`] does.
macro_rules! reduction_avx2 {
    ($name:ident, $rest:path, |$sum:ident, $a:ident, $b:ident| $add:expr) => {
        #[target_feature(enable = "avx2")]
        fn $name(a: &[f32], b: &[f32]) -> f64 {
            const WIDTH: usize = 4;
            let whole = a.len().min(b.len()) / LANES * LANES;
            let mut sums = [_mm256_setzero_pd(); LANES / WIDTH];
            for at in (0..whole).step_by(LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `at + LANES <= whole`, which neither slice is shorter than.
                    let ($a, $b) = unsafe {
                        (
                            _mm_loadu_ps(a.as_ptr().add(at + i * WIDTH)),
                            _mm_loadu_ps(b.as_ptr().add(at + i * WIDTH)),
                        )
                    };
                    let ($a, $b) = (_mm256_cvtps_pd($a), _mm256_cvtps_pd($b));
                    let $sum = *sum;
                    *sum = $add;
                }
            }
            let mut lanes = [0.0; LANES];
            for (lanes, sum) in lanes.chunks_exact_mut(WIDTH).zip(sums) {
                // SAFETY: the chunk has the register's four f64.
                unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), sum) };
            }
            $rest(&mut lanes, &a[whole..], &b[whole..]);
            fold(lanes)
        }
    };
}

// The products of f32 are exact in f64, so that a fused multiply-add would give the same sums.
// Squares of differences are not: there, every instruction set must round twice.

reduction_avx512!(dot_avx512, scalar::add_dot, |sum, a, b| {
    _mm512_add_pd(sum, _mm512_mul_pd(a, b))
});
reduction_avx512!(distance_sq_avx512, scalar::add_distance_sq, |sum, a, b| {
    let difference = _mm512_sub_pd(a, b);
    _mm512_add_pd(sum, _mm512_mul_pd(difference, difference))
});
reduction_avx2!(dot_avx2, scalar::add_dot, |sum, a, b| {
    _mm256_add_pd(sum, _mm256_mul_pd(a, b))
});
reduction_avx2!(distance_sq_avx2, scalar::add_distance_sq, |sum, a, b| {
    let difference = _mm256_sub_pd(a, b);
    _mm256_add_pd(sum, _mm256_mul_pd(difference, difference))
});
