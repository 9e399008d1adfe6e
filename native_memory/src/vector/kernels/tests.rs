//! Every implementation against the scalar one, bit for bit.

use proptest::prelude::*;

use super::*;
use crate::vector::quantize::QUERY_MAX;

const QUERY_RANGE: std::ops::RangeInclusive<i16> = -QUERY_MAX..=QUERY_MAX;

fn assert_products_agree(query: &[i16], codes: &[i8], rows: &[u32]) {
    let query = QueryCodes::new(query.to_vec());
    let mut expected = vec![0.0; rows.len()];
    (scalar::KERNELS.products)(&query, codes, rows, &mut expected);
    for kernels in available() {
        let mut found = vec![f64::NAN; rows.len()];
        (kernels.products)(&query, codes, rows, &mut found);
        assert_eq!(
            found,
            expected,
            "{}, stride {}",
            kernels.name,
            query.stride()
        );
    }
}

fn assert_sketched_agree(query: &[i16], sketches: &[u8], rows: &[u32]) {
    let query = QueryCodes::new(query.to_vec());
    let mut expected = vec![0.0; rows.len()];
    (scalar::KERNELS.sketched)(&query, sketches, rows, &mut expected);
    for kernels in available() {
        let mut found = vec![f64::NAN; rows.len()];
        (kernels.sketched)(&query, sketches, rows, &mut found);
        assert_eq!(found, expected, "{}, {}", kernels.name, query.stride());
    }
}

/// Numbers of all sizes that f32 has: ordinary, denormal, huge, zero of both signs.
fn any_component() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -1.0_f32..1.0,
        1 => prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        1 => prop::num::f32::NORMAL | prop::num::f32::NEGATIVE | prop::num::f32::POSITIVE,
        1 => prop::sample::select(vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE]),
    ]
}

#[test]
fn the_scalar_product_is_the_definition() {
    let query = QueryCodes::new(vec![3, -5, 16256]);
    let mut codes = vec![0; 2 * 64];
    codes[..3].copy_from_slice(&[1, 2, 3]);
    codes[64..67].copy_from_slice(&[-127, 0, 127]);
    let mut out = [0.0; 2];
    (scalar::KERNELS.products)(&query, &codes, &[1, 0], &mut out);
    assert_eq!(
        out.map(|x| x as i64),
        [-381 + 127 * 16256, 3 - 10 + 3 * 16256]
    );
}

#[test]
fn the_scalar_product_with_a_sketch_is_the_definition() {
    let mut wide = vec![0; 200];
    for (at, x) in [(0, 16256), (33, -128), (70, 256), (127, 640), (199, 1280)] {
        wide[at] = x;
    }
    let mut sketches = vec![0; 2 * 64];
    // Of the second row: 0, 33, 70 and 127, in bytes 0, 1, 6 and 31 of the first group, and 199,
    // in byte 7 of the next.
    for (at, level, part) in [(0, 1, 0), (1, 3, 1), (6, 2, 2), (31, 3, 3), (39, 1, 2)] {
        sketches[64 + at] |= level << (2 * part);
    }
    let mut out = [f64::NAN; 2];
    (scalar::KERNELS.sketched)(&QueryCodes::new(wide), &sketches, &[1, 0], &mut out);
    assert_eq!(out.map(|x| x as i64), [127 - 3 + 4 + 15 + 10, 0]);
}

#[test]
fn extremes_do_not_overflow() {
    for stride in [64, 1536, 8192, 8256, super::super::MAX_DIMENSION] {
        for code in [-128, -127, 127, -1] {
            for x in [-QUERY_MAX, QUERY_MAX, 63, 64, -64, -65] {
                assert_products_agree(&vec![x; stride], &vec![code; stride], &[0]);
                let sketches = vec![code as u8; stride.next_multiple_of(128) / 4];
                assert_sketched_agree(&vec![x; stride], &sketches, &[0]);
            }
        }
    }
}

#[test]
fn a_query_splits_exactly() {
    let all: Vec<i16> = QUERY_RANGE.collect();
    let codes = QueryCodes::new(all.clone());
    let halves = codes.high.as_slice().iter().zip(codes.low.as_slice());
    for (x, (&high, &low)) in all.iter().zip(halves) {
        assert_eq!(i32::from(*x), 128 * i32::from(high) + i32::from(low));
        assert!(high > i8::MIN && (-64..64).contains(&low));
    }
}

#[test]
fn at_least_the_scalar_kernels_are_available() {
    let names: Vec<_> = available().map(|kernels| kernels.name).collect();
    assert_eq!(names.last(), Some(&"scalar"));
    assert_eq!(kernels().name, names[0]);
}

proptest! {
    #[test]
    fn products_agree(
        (query, codes, rows) in (1_usize..300, 0_usize..12).prop_flat_map(|(dimension, count)| (
            prop::collection::vec(QUERY_RANGE, dimension),
            // What is beyond the dimension is zero in the query, and must not matter in a row.
            prop::collection::vec(any::<i8>(), 1 + 12 * dimension.next_multiple_of(64)),
            prop::collection::vec(0_u32..12, count),
        )),
        sketches in prop::collection::vec(any::<u8>(), 1 + 12 * 96),
    ) {
        assert_sketched_agree(&query, &sketches, &rows);
        assert_sketched_agree(&query, &sketches[1..], &rows);
        assert_products_agree(&query, &codes, &rows);
        // One byte further on, where nothing is aligned.
        assert_products_agree(&query, &codes[1..], &rows);
    }

    #[test]
    fn f64_sums_agree_and_are_right(
        pairs in prop::collection::vec((any_component(), any_component()), 0..300),
        skip in 0_usize..4,
    ) {
        let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let skip = skip.min(a.len());
        // Different skips: unaligned, and not in step with each other.
        let (a, b) = (&a[skip..], &b[..b.len() - skip]);
        let terms = || a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let near = |found: f64, exact: f64, size: f64| (found - exact).abs() <= 1e-13 * size;
        for kernels in available() {
            let (dot, distance_sq) = ((kernels.dot)(a, b), (kernels.distance_sq)(a, b));
            prop_assert_eq!(dot.to_bits(), (scalar::KERNELS.dot)(a, b).to_bits());
            let reference = (scalar::KERNELS.distance_sq)(a, b);
            prop_assert_eq!(distance_sq.to_bits(), reference.to_bits());
            let (sum, size) = terms().fold((0.0, 0.0), |(s, t), (a, b)| (s + a * b, t + (a * b).abs()));
            prop_assert!(near(dot, sum, size));
            let sum = terms().map(|(a, b)| (a - b) * (a - b)).sum();
            prop_assert!(near(distance_sq, sum, sum));
        }
    }

    #[test]
    fn heads_agree(
        query in prop::collection::vec(QUERY_RANGE, HEAD),
        heads in prop::collection::vec(any::<i8>(), 1 + 12 * HEAD),
        rows in prop::collection::vec(0_u32..12, 0..40),
    ) {
        let query: [i16; HEAD] = query.try_into().unwrap();
        for heads in [&heads, &heads[1..]] {
            let expected: Vec<f64> = rows
                .iter()
                .map(|&row| &heads[row as usize * HEAD..][..HEAD])
                .map(|head| head.iter().zip(&query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
                .collect();
            for kernels in available() {
                let mut found = vec![f64::NAN; rows.len()];
                (kernels.heads)(&query, heads, &rows, &mut found);
                prop_assert_eq!(&found, &expected, "{}", kernels.name);
            }
        }
    }

    #[test]
    fn what_axes_make_of_rows_is_subtracted_alike(
        tiles in prop::collection::vec(-2.0_f32..2.0, 3 * TILE * HEAD),
        coefficients in prop::collection::vec(prop::array::uniform4(any_component()), HEAD),
        rests in prop::collection::vec(any_component(), ROWS * 3 * TILE),
    ) {
        let coefficients: [[f32; ROWS]; HEAD] = coefficients.try_into().unwrap();
        let expected: Vec<u32> = (0..rests.len())
            .map(|at| {
                let (row, place) = (at / (3 * TILE), at % (3 * TILE));
                let tile = &tiles[place / TILE * TILE * HEAD..];
                let parts = (0..HEAD).map(|axis| coefficients[axis][row] * tile[axis * TILE + place % TILE]);
                (rests[at] - parts.fold(0.0, |sum, part| sum + part)).to_bits()
            })
            .collect();
        for kernels in available() {
            let mut found = rests.clone();
            (kernels.subtract)(&tiles, &coefficients, &mut found);
            let bits = found.iter().zip(&expected).map(|(x, &bits)| (x.is_nan(), x.to_bits(), bits));
            let nan = |bits: u32| f32::from_bits(bits).is_nan();
            prop_assert!(bits.clone().all(|(is_nan, found, bits)| found == bits || is_nan && nan(bits)));
        }
    }
}
