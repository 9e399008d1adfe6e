//! No sketch tells off a row that it must not.

use proptest::prelude::*;

use super::*;
use crate::vector::axes::axes;
use crate::vector::bitmap::WORD;
use crate::vector::hubs::{self, hubs};
use crate::vector::quantize::tests::hostile_vector;
use crate::vector::scan::tests::noise;
use crate::vector::{SealSource, Tail};

/// Heads and sketches of some rows, as a segment has them.
struct Sketched {
    mean: Vec<f32>,
    axes: Vec<f32>,
    made: Made,
    heads: MadeHeads,
    hubs: (Vec<i8>, Vec<f32>),
    norms: Vec<f64>,
}

impl Sketched {
    /// With axes that `choose` finds for the rows and their mean.
    fn new(rows: &[Vec<f32>], choose: impl FnOnce(&[f32], &[SealSource<'_>]) -> Vec<f32>) -> Self {
        let dimension = rows[0].len();
        let mut tail = Tail::new(dimension, false).unwrap();
        let mut sum = vec![0.0; dimension];
        for (id, row) in rows.iter().enumerate() {
            tail.append(id as i64, row).unwrap();
            add(&mut sum, tail.block().codes_of(id), tail.block().scales[id]);
        }
        let block = tail.block();
        let mean: Vec<f32> = sum
            .iter()
            .map(|sum| (sum / rows.len() as f64) as f32)
            .collect();
        let source = SealSource {
            block,
            deleted: None,
        };
        let axes = choose(&mean, &[source]);
        let (mut made, mut heads) = (Made::default(), MadeHeads::default());
        let mut sketcher = Sketcher::new(&mean, &axes).unwrap();
        let numbers: Vec<u32> = (0..rows.len() as u32).collect();
        for numbers in numbers.chunks(AT_ONCE) {
            sketcher.heads(&block, numbers, &mut heads);
        }
        let numbers: Vec<_> = (0..rows.len()).map(|row| (&block, row)).collect();
        for (chunk, numbers) in numbers.chunks(AT_ONCE).enumerate() {
            sketcher.sketch(numbers, &heads, chunk * AT_ONCE, &mut made);
        }
        let norms = block.norms.to_vec();
        let hubs = hubs(&hubs::Rows {
            heads: &heads,
            rests: &made.rests,
            errors: &made.errors,
            norms: &norms,
        });
        Self {
            mean,
            axes,
            made,
            heads,
            hubs,
            norms,
        }
    }

    fn without_heads(rows: &[Vec<f32>]) -> Self {
        Self::new(rows, |_, _| Vec::new())
    }

    fn sketches(&self) -> Sketches<'_> {
        let made = &self.made;
        Sketches {
            mean: &self.mean,
            steps: &made.steps,
            slacks: &made.slacks,
            codes: &made.codes,
            heads: (!self.axes.is_empty()).then_some(Heads {
                axes: &self.axes,
                codes: &self.heads.codes,
                scales: &self.heads.scales,
                rests: &made.rests,
                errors: &made.errors,
                hubs: Some(Hubs {
                    codes: &self.hubs.0,
                    numbers: &self.hubs.1,
                }),
            }),
        }
    }

    /// At least the rank of each row, by its head, by its sketch, and by its word's hub.
    fn most(&self, query: &Query) -> [Vec<f64>; 3] {
        let rows: Vec<u32> = (0..self.norms.len() as u32).collect();
        let [mut partial, mut by_head, mut by_sketch, mut rank] =
            [const { Vec::new() }; 4].map(|_: Vec<f64>| vec![f64::INFINITY; rows.len()]);
        if let Some(probe) = Probe::new(query, self.sketches()) {
            probe.most_by_head(&rows, &mut partial, &mut by_head);
            probe.most(&rows, &partial, &mut by_sketch);
        }
        let [by_head, by_sketch] = [by_head, by_sketch].map(|dots| {
            query.most(&dots, &self.norms, &mut rank);
            rank.clone()
        });
        let hubs = self.sketches().heads.and_then(|heads| heads.hubs);
        let of_words = hubs
            .zip(Probe::new(query, self.sketches()))
            .map(|(hubs, probe)| {
                assert_eq!(hubs.len(), rows.len().div_ceil(WORD));
                hubs.most(query, &probe.most_by_hub(&hubs))
            });
        let by_hub = (0..rows.len())
            .map(|row| {
                of_words
                    .as_ref()
                    .map_or(f64::INFINITY, |words| words[row / WORD])
            })
            .collect();
        [by_head, by_sketch, by_hub]
    }
}

/// No row has a higher score than its head, its sketch and its hub allow.
fn assert_allowed(rows: &[Vec<f32>], sketched: &Sketched, vector: &[f32]) {
    for metric in [Metric::L2, Metric::Cosine, Metric::Dot] {
        let query = Query::new(vector, metric).unwrap();
        for most in sketched.most(&query) {
            for ((row, most), &norm) in rows.iter().zip(most).zip(&sketched.norms) {
                let score = query.score(row, norm);
                // NaN, out of numbers that f32 cannot hold, tells nothing off.
                let allowed = most.is_nan() || score <= query.score_for_rank(most);
                assert!(allowed, "{metric:?}: {score:e}, at most {most:e}");
                assert!(most.is_nan() || most >= query.limit_for_score(score));
            }
        }
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
        // The nearest row is the one that a search must not miss.
        let vector = like.map_or(&other, |like| like.get(&rows));
        assert_allowed(&rows, &Sketched::without_heads(&rows), vector);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Not even with axes that are none: long, short, equal, zero.
    #[test]
    fn no_row_scores_more_than_its_head_allows(
        (rows, other, axes) in (1_usize..150).prop_flat_map(|n| (
            prop::collection::vec(hostile_vector(n), 1..10),
            hostile_vector(n),
            prop::collection::vec(hostile_vector(n), 1..6),
        )),
        unit in any::<bool>(),
        like in any::<Option<prop::sample::Index>>(),
    ) {
        let axis = |at: usize| -> Vec<f32> {
            let axis = &axes[at % axes.len()];
            // Some like the rows, and each a little different.
            let turned = axis.iter().zip(noise(at as u64, axis.len())).map(|(x, y)| x / 2.0 + y / 8.0);
            let length = norm(axis);
            match at % 7 {
                0 => vec![0.0; axis.len()],
                1 | 2 => turned.collect(),
                _ if unit && length > 0.0 => axis.iter().map(|x| (f64::from(*x) / length) as f32).collect(),
                _ => axis.clone(),
            }
        };
        let vector = like.map_or(&other, |like| like.get(&rows));
        let sketched = Sketched::new(&rows, |_, _| (0..HEAD).flat_map(axis).collect());
        assert_allowed(&rows, &sketched, vector);
    }
}

/// Rows that differ mostly in some directions, in which each next one matters less; every tenth is
/// one of few.
fn leaning(count: u64, directions: u64, dimension: usize) -> Vec<Vec<f32>> {
    let axes: Vec<_> = (0..directions)
        .map(|at| noise(900 + at, dimension))
        .collect();
    let row = |id: u64| {
        let id = if id % 10 == 7 { id % 40 } else { id };
        let along = noise(5000 + id, axes.len());
        let mut row: Vec<f32> = noise(id, dimension).iter().map(|x| 0.3 * x + 0.5).collect();
        for (at, (axis, along)) in axes.iter().zip(along).enumerate() {
            for (x, axis) in row.iter_mut().zip(axis) {
                *x += 3.0 * along * axis / (1.0 + at as f32).sqrt();
            }
        }
        row
    };
    (0..count).map(row).collect()
}

#[test]
fn rows_that_differ_in_all_directions_have_no_axes() {
    let rows: Vec<_> = (0..400).map(|id| noise(id, 256)).collect();
    let sketched = Sketched::new(&rows, |mean, sources| {
        axes(mean, sources, &|| true).unwrap()
    });
    assert!(sketched.axes.is_empty());
}

#[test]
fn heads_tell_most_of_rows_that_differ_in_few_directions() {
    for (directions, most) in [(5, 0.3), (40, 0.3)] {
        let rows = leaning(400, directions, 256);
        let sketched = Sketched::new(&rows, |mean, sources| {
            axes(mean, sources, &|| true).unwrap()
        });
        assert_eq!(sketched.axes.len(), HEAD * 256);
        let without = Sketched::without_heads(&rows);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let whole = rows.iter().map(|row| {
            let rest: Vec<f32> = row
                .iter()
                .zip(&sketched.mean)
                .map(|(x, mean)| x - mean)
                .collect();
            norm(&rest) as f32
        });
        let whole = mean(&whole.collect::<Vec<f32>>());
        let rest = mean(&sketched.made.rests) / whole;
        assert!(rest < most, "{directions}: {rest}");
        // What the products of axes and rest can add is little.
        assert!(mean(&sketched.made.errors) < 0.05 * whole);
        assert!(mean(&sketched.made.slacks) < most * mean(&without.made.slacks));
        for row in leaning(440, directions, 256).iter().skip(395) {
            assert_allowed(&rows, &sketched, row);
        }
    }
}

#[test]
fn rows_without_directions_have_axes_that_are_zero() {
    for row in [
        vec![0.0; 256],
        noise(3, 256),
        vec![f32::MAX; 256],
        vec![1e-44; 256],
    ] {
        let rows = vec![row.clone(); 100];
        let sketched = Sketched::new(&rows, |mean, sources| {
            axes(mean, sources, &|| true).unwrap()
        });
        assert!(sketched.axes.iter().all(|x| x.is_finite()));
        assert_allowed(&rows, &sketched, &row);
        assert_allowed(&rows, &sketched, &noise(1, 256));
    }
    let rows: Vec<_> = leaning(100, 5, 256);
    let stopped = Sketched::new(&rows, |mean, sources| {
        assert!(axes(mean, sources, &|| false).is_none());
        // Too few of them, or too short.
        assert!(axes(mean, &[], &|| true).unwrap().is_empty());
        assert!(axes(&mean[1..], sources, &|| true).unwrap().is_empty());
        Vec::new()
    });
    assert_allowed(&rows, &stopped, &rows[0]);
}

#[test]
fn the_bound_is_met_where_what_is_left_points_along_the_query() {
    let row = noise(1, 256);
    let made = Sketched::without_heads(std::slice::from_ref(&row));
    // One row is its own mean: what is left is that of its codes.
    assert!(made.made.slacks[0] < 0.05, "{}", made.made.slacks[0]);
    let rows = [row.clone(), row.iter().map(|x| -x).collect()];
    let made = Sketched::without_heads(&rows);
    let levels: Vec<f64> = (0..256)
        .map(|at| {
            let byte = made.made.codes[at / GROUP * 32 + at % 32];
            2.0 * f64::from(byte >> (2 * (at % GROUP / 32)) & 3) - LEVEL_MAX
        })
        .collect();
    let left: Vec<f32> = row
        .iter()
        .zip(&levels)
        .map(|(&x, level)| x - made.made.steps[0] * *level as f32)
        .collect();
    let query = Query::new(&left, Metric::Dot).unwrap();
    let (most, score) = (made.most(&query)[1][0], query.score(&row, 0.0));
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
        let made = Sketched::without_heads(&rows);
        for (row, &slack) in rows.iter().zip(&made.made.slacks) {
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

#[test]
fn axes_that_are_no_numbers_are_refused() {
    let mean = [0.0_f32; 3];
    let mut axes = vec![0.5; HEAD * mean.len()];
    assert!(Sketcher::new(&mean, &axes).is_ok());
    for bad in [f32::NAN, f32::INFINITY] {
        axes[40] = bad;
        assert!(Sketcher::new(&mean, &axes).is_err());
    }
}
