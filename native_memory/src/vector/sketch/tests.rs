//! No sketch tells off a row that it must not.

use proptest::prelude::*;

use super::*;
use crate::vector::aligned::Lines;
use crate::vector::quantize::tests::hostile_vector;
use crate::vector::quantize::{Metric, quantize};
use crate::vector::scan::tests::noise;

/// Sketches of some rows, as a segment has them.
struct Made {
    mean: Vec<f32>,
    steps: Vec<f32>,
    slacks: Vec<f32>,
    codes: Vec<u8>,
    norms: Vec<f64>,
}

impl Made {
    fn new(rows: &[Vec<f32>]) -> Self {
        let dimension = rows[0].len();
        let mut coded = Vec::new();
        let mut sum = vec![0.0; dimension];
        for row in rows {
            let mut codes = Lines::zeroed(dimension);
            let code = quantize(row, codes.as_mut_slice()).unwrap();
            add(&mut sum, codes.as_slice(), code.scale);
            coded.push((codes, code));
        }
        let mean: Vec<f32> = sum
            .iter()
            .map(|sum| (sum / rows.len() as f64) as f32)
            .collect();
        let mut made = Self {
            mean: mean.clone(),
            steps: Vec::new(),
            slacks: Vec::new(),
            codes: vec![0; rows.len() * stride(dimension)],
            norms: coded.iter().map(|(_, code)| code.norm).collect(),
        };
        let mut sketcher = Sketcher::new(&mean);
        let outs = made.codes.chunks_exact_mut(stride(dimension));
        for ((codes, code), out) in coded.iter().zip(outs) {
            let (step, slack) = sketcher.sketch(&codes.as_slice()[..dimension], *code, out);
            made.steps.push(step);
            made.slacks.push(slack);
        }
        made
    }

    fn sketches(&self) -> Sketches<'_> {
        Sketches {
            mean: &self.mean,
            steps: &self.steps,
            slacks: &self.slacks,
            codes: &self.codes,
        }
    }

    /// At least the rank of each row.
    fn most(&self, query: &Query) -> Vec<f64> {
        let rows: Vec<u32> = (0..self.steps.len() as u32).collect();
        let (mut dots, mut out) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
        Probe::new(query, self.sketches()).most(query, &rows, &mut dots);
        query.most(&dots, &self.norms, &mut out);
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_row_scores_more_than_its_sketch_allows(
        (rows, other) in (1_usize..300).prop_flat_map(|n| {
            (prop::collection::vec(hostile_vector(n), 1..6), hostile_vector(n))
        }),
        like in any::<Option<prop::sample::Index>>(),
    ) {
        let made = Made::new(&rows);
        // The nearest row is the one that a search must not miss.
        let vector = like.map_or(&other, |like| like.get(&rows));
        for metric in [Metric::L2, Metric::Cosine, Metric::Dot] {
            let query = Query::new(vector, metric).unwrap();
            for ((row, most), &norm) in rows.iter().zip(made.most(&query)).zip(&made.norms) {
                let score = query.score(row, norm);
                // NaN, out of numbers that f32 cannot hold, tells nothing off.
                let allowed = most.is_nan() || score <= query.score_for_rank(most);
                prop_assert!(allowed, "{metric:?}: {score:e}, at most {most:e}");
                prop_assert!(most.is_nan() || most >= query.limit_for_score(score));
            }
        }
    }
}

#[test]
fn the_bound_is_met_where_what_is_left_points_along_the_query() {
    let row = noise(1, 256);
    let made = Made::new(std::slice::from_ref(&row));
    // One row is its own mean: what is left is that of its codes.
    assert!(made.slacks[0] < 0.05, "{}", made.slacks[0]);
    let rows = [row.clone(), row.iter().map(|x| -x).collect()];
    let made = Made::new(&rows);
    let levels: Vec<f64> = (0..256)
        .map(|at| {
            let byte = made.codes[at / GROUP * 32 + at % 32];
            2.0 * f64::from(byte >> (2 * (at % GROUP / 32)) & 3) - LEVEL_MAX
        })
        .collect();
    let left: Vec<f32> = row
        .iter()
        .zip(&levels)
        .map(|(&x, level)| x - made.steps[0] * *level as f32)
        .collect();
    let query = Query::new(&left, Metric::Dot).unwrap();
    let (most, score) = (made.most(&query)[0], query.score(&row, 0.0));
    assert!(score <= most && most <= 1.1 * score, "{score} {most}");
}

#[test]
fn a_sketch_leaves_out_what_two_bits_must_and_no_more() {
    // Of a bell curve, two bits leave an eighth of the square; of an even spread, less.
    let bell = |seed: u64| -> Vec<f32> {
        let parts: Vec<_> = (0..8).map(|part| noise(8 * seed + part, 1024)).collect();
        (0..1024)
            .map(|at| parts.iter().map(|part| part[at]).sum())
            .collect()
    };
    let bells: Vec<_> = (1..9).map(bell).collect();
    let even: Vec<_> = (1..9).map(|seed| noise(seed, 1024)).collect();
    // What rows have in common costs nothing.
    let shifted = even
        .iter()
        .map(|row| row.iter().map(|x| x + 5.0).collect())
        .collect();
    for (rows, most) in [(bells, 0.14), (even, 0.12), (shifted, 0.12)] {
        let made = Made::new(&rows);
        for (row, &slack) in rows.iter().zip(&made.slacks) {
            let rest: Vec<f32> = row
                .iter()
                .zip(&made.mean)
                .map(|(x, mean)| x - mean)
                .collect();
            let share = (f64::from(slack) / norm(&rest)).powi(2);
            assert!((0.05..most).contains(&share), "{share}");
        }
    }
}

#[test]
fn sketches_that_leave_many_rows_are_tried_less_and_less() {
    let mut trial = Trial::default();
    let mut tried = Vec::new();
    for batch in 0..60 {
        if trial.next() {
            tried.push(batch);
            trial.left(512, 257);
        }
    }
    assert_eq!(tried, [0, 5, 22, 39, 56]);
    // And with every batch as soon as they pay.
    let mut trial = Trial::default();
    for _ in 0..3 {
        assert!(trial.next());
        trial.left(512, 256);
    }
}
