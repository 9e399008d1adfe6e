//! The bounds hold, for every vector that is let in.

use proptest::prelude::*;

use super::*;

/// Pairs of vectors of one length, of kinds that are hard on a quantiser.
fn pairs() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (1_usize..200)
        .prop_flat_map(|n| (hostile_vector(n), hostile_vector(n)))
        .prop_flat_map(|(a, b)| {
            // Near and far pairs, equal ones and opposite ones.
            let near = a
                .iter()
                .zip(&b)
                .map(|(a, b)| a + b / 1024.0)
                .collect::<Vec<f32>>();
            let near = if near.iter().all(|x| x.is_finite()) {
                near
            } else {
                a.clone()
            };
            let opposite = a.iter().map(|x| -x).collect();
            (
                Just(a.clone()),
                prop::sample::select(vec![b, near, opposite, a]),
            )
        })
}

pub(crate) fn hostile_vector(n: usize) -> impl Strategy<Value = Vec<f32>> {
    let plain = prop::collection::vec(-1.0_f32..1.0, n);
    let size = (-45_i32..38).prop_map(|e| 10.0_f32.powi(e));
    prop_oneof![
        3 => plain.clone(),
        2 => (plain.clone(), size.clone()).prop_map(|(v, s)| v.iter().map(|x| x * s).collect()),
        // Components of very different sizes.
        2 => (plain.clone(), prop::collection::vec(size, n))
            .prop_map(|(v, s)| v.iter().zip(s).map(|(x, s)| x * s).collect()),
        1 => prop::collection::vec(prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, n),
        1 => any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(move |x| vec![x; n]),
        1 => (0..n, prop::sample::select(vec![1.0, f32::MAX, 1e-45, -3.0])).prop_map(move |(i, x)| {
            let mut v = vec![0.0; n];
            v[i] = x;
            v
        }),
        1 => Just(vec![0.0; n]),
        1 => prop::collection::vec(prop::sample::select(vec![f32::MAX, f32::MIN]), n),
        // Halfway between two codes, everywhere but once.
        1 => prop::collection::vec(-126_i8..126, n).prop_map(|v| {
            let halves = v.iter().skip(1).map(|&c| f32::from(c) + 0.5);
            std::iter::once(127.0).chain(halves).collect()
        }),
    ]
}

fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    terms.sum()
}

fn both<'a>(a: &'a [f32], b: &'a [f32]) -> impl Iterator<Item = (f64, f64)> + 'a {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bounds_hold((row, vector) in pairs()) {
        let (mut codes, mut finer) = (vec![0; row.len()], vec![0; row.len()]);
        let (code, fine) = quantize(&row, &mut codes, &mut finer).unwrap();
        for metric in [Metric::L2, Metric::Cosine, Metric::Dot] {
            let query = Query::new(&vector, metric).unwrap();
            let [product, finer] = [&codes, &finer].map(|codes| {
                let terms = codes.iter().zip(&query.codes.wide);
                terms.map(|(&c, &x)| f64::from(c) * f64::from(x)).sum()
            });
            let bounds = query.bounds(product, code);
            prop_assert!(bounds.lower <= bounds.upper, "{bounds:?}");
            let narrow = query.fine_bounds([product, finer], code, fine);
            prop_assert!(narrow.lower <= narrow.upper, "{narrow:?}");
            let mut upper = [0.0];
            query.upper_bounds(&[product], &[code], &mut upper);
            prop_assert_eq!(upper[0].to_bits(), bounds.upper.to_bits());

            // Independently of the kernels: plain sums in order.
            let dot = sum(both(&row, &vector).map(|(a, b)| a * b));
            let norms = sum(both(&row, &row).map(|(a, b)| a * b)).sqrt()
                * sum(both(&vector, &vector).map(|(a, b)| a * b)).sqrt();
            let distance_sq = sum(both(&row, &vector).map(|(a, b)| (a - b) * (a - b)));
            let (rank, score) = match metric {
                Metric::L2 => (-distance_sq, 1.0 / (1.0 + distance_sq)),
                Metric::Dot => (dot, dot),
                Metric::Cosine if norms == 0.0 => (0.0, 0.0),
                Metric::Cosine => ((dot / norms).clamp(-1.0, 1.0), dot / norms),
            };
            // The score that is reported is the true one, and no bound contradicts it.
            let reported = query.score(&row, code.norm);
            let size = if metric == Metric::Dot { norms } else { 1.0 };
            prop_assert!((reported - score).abs() <= 1e-12 * size, "{reported:e} {score:e}");
            for bounds in [bounds, narrow] {
                prop_assert!(bounds.lower <= rank && rank <= bounds.upper, "{rank:e} {bounds:?}");
                prop_assert!(reported <= query.score_for_rank(bounds.upper));
                prop_assert!(reported >= query.score_for_rank(bounds.lower));
                prop_assert!(bounds.upper >= query.limit_for_score(reported));
                prop_assert!(bounds.upper >= query.limit_for_rank(rank));
            }
        }
    }

    #[test]
    fn equal_scores_are_never_told_apart(a in 0.0..1e9_f64, steps in 0_u32..40) {
        // d² that are so near that `1 / (1 + d²)` may be the same f64.
        let query = Query::new(&[1.0], Metric::L2).unwrap();
        let b = (0..steps).fold(a, |b, _| b.next_up());
        let score = |d: f64| 1.0 / (1.0 + d);
        if score(a).to_bits() == score(b).to_bits() {
            prop_assert!(-b >= query.limit_for_rank(-a));
        }
        prop_assert!(-b >= query.limit_for_score(score(b)));
    }

    #[test]
    fn residuals_are_bounds_and_not_much_more(row in hostile_vector(100)) {
        let (mut codes, mut finer) = (vec![0; row.len()], vec![0; row.len()]);
        let (code, fine) = quantize(&row, &mut codes, &mut finer).unwrap();
        prop_assert!(codes.iter().chain(&finer).all(|&c| c != i8::MIN));
        let largest = row.iter().fold(0.0_f64, |m, &x| m.max(f64::from(x).abs()));
        let left: Vec<f64> = row.iter().zip(&codes)
            .map(|(&x, &c)| f64::from(x) - f64::from(c) * f64::from(code.scale)).collect();
        let norm = |rests: &[f64]| sum(rests.iter().map(|e| e * e)).sqrt();
        let (residual, fine_residual) = (f64::from(code.residual), f64::from(fine.residual));
        prop_assert!(norm(&left) <= residual);
        let still: Vec<f64> = left.iter().zip(&finer)
            .map(|(e, &c)| e - f64::from(c) * f64::from(fine.scale)).collect();
        prop_assert!(norm(&still) <= fine_residual);
        prop_assert!(fine_residual <= residual * 1.001);
        // Half a unit per component, where units are not denormal themselves.
        if largest > 1e-30 {
            let unit = largest / 127.0;
            prop_assert!(residual <= unit * 0.501 * 10.0, "{residual} {largest}");
            prop_assert!(fine_residual <= unit / 253.0 * 0.502 * 10.0, "{fine_residual} {largest}");
        }
    }
}

#[test]
fn tiny_d2_ties_at_one() {
    let query = Query::new(&[0.0], Metric::L2).unwrap();
    assert!(-1e-17 >= query.limit_for_rank(0.0));
    assert!(-1e-14 < query.limit_for_rank(0.0));
}

#[test]
fn what_cannot_be_searched_is_named() {
    assert_eq!(check(&[]), Err(VectorError::Empty));
    assert_eq!(check(&[1.0, f32::NAN]), Err(VectorError::NotFinite(1)));
    assert_eq!(check(&[f32::NEG_INFINITY]), Err(VectorError::NotFinite(0)));
    let long = vec![0.0; MAX_DIMENSION + 1];
    assert_eq!(check(&long), Err(VectorError::TooLong(MAX_DIMENSION + 1)));
    assert_eq!(check(&long[1..]), Ok(()));
    assert!(Query::new(&[f32::INFINITY], Metric::Dot).is_err());
    assert!(quantize(&[f32::NAN], &mut [0], &mut [0]).is_err());
}

#[test]
fn the_longest_vectors_stay_finite() {
    let row = vec![f32::MAX; MAX_DIMENSION];
    let (mut codes, mut fine) = (vec![0; MAX_DIMENSION], vec![0; MAX_DIMENSION]);
    let (code, fine) = quantize(&row, &mut codes, &mut fine).unwrap();
    assert!(code.residual.is_finite() && code.norm.is_finite() && fine.residual.is_finite());
    assert!(codes.iter().all(|&c| c == 127));
}

#[test]
fn a_zero_vector_has_cosine_zero_with_everything() {
    let query = Query::new(&[0.0, 0.0], Metric::Cosine).unwrap();
    assert_eq!(query.score(&[1.0, 2.0], 5.0).to_bits(), 0.0_f64.to_bits());
}
