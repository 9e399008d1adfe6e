//! The order is one of all rows, and brings together what is alike.

use std::collections::HashSet;

use super::*;
use crate::vector::scan::tests::noise;

/// Heads of one byte per coefficient, with a scale of one.
fn heads(rows: &[[i8; HEAD]]) -> MadeHeads {
    MadeHeads::of(
        rows.iter().flatten().copied().collect(),
        vec![1.0; rows.len()],
    )
}

fn numbered(count: usize) -> Vec<i64> {
    (0..count as i64).collect()
}

fn point(seed: u64, length: f32) -> [i8; HEAD] {
    let numbers = noise(seed, HEAD);
    std::array::from_fn(|at| (numbers[at] * length) as i8)
}

#[test]
fn rows_of_a_cluster_lie_together() {
    const CLUSTERS: u64 = 20;
    let row = |id: u64| -> [i8; HEAD] {
        let centre = point(7000 + id % CLUSTERS, 100.0);
        let rest = point(id, 20.0);
        std::array::from_fn(|at| centre[at].saturating_add(rest[at]))
    };
    for each in [64, 100] {
        let rows: Vec<_> = (0..CLUSTERS * each).map(row).collect();
        let order = arrange(&heads(&rows), &numbered(rows.len()), &|| true).unwrap();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..rows.len() as u32));
        let clusters = order.chunks(WORD).map(|word| {
            assert!(word.is_sorted());
            let of: HashSet<u64> = word.iter().map(|&row| u64::from(row) % CLUSTERS).collect();
            of.len()
        });
        // In any other order some 19.
        let (sum, words) = (clusters.sum::<usize>(), order.len().div_ceil(WORD));
        assert!(
            sum <= 3 * words,
            "{sum} in {words} words of clusters of {each}"
        );
    }
}

#[test]
fn rows_that_are_alike_or_far_from_all_others_are_ordered_too() {
    let mut rows = vec![[3; HEAD]; 1000];
    let ids: Vec<i64> = numbered(1000).into_iter().rev().collect();
    let order = arrange(&heads(&rows), &ids, &|| true).unwrap();
    for word in order.chunks(WORD) {
        assert!(word.is_sorted_by_key(|&row| ids[row as usize]));
    }
    // Each farther away than all before: what divides them takes one at a time.
    for (at, row) in rows.iter_mut().enumerate() {
        *row = [(at / 8) as i8; HEAD];
    }
    let scales = (0..1000).map(|at| 1.02_f32.powi(at)).collect();
    let made = MadeHeads::of(rows.iter().flatten().copied().collect(), scales);
    let mut order = arrange(&made, &ids, &|| true).unwrap();
    order.sort_unstable();
    assert!(order.into_iter().eq(0..1000));
}

#[test]
fn rows_without_heads_stay_where_they_are() {
    let none = MadeHeads::default();
    assert_eq!(arrange(&none, &[5, 3, 4], &|| false), Some(vec![0, 1, 2]));
    assert_eq!(arrange(&none, &[], &|| false), Some(vec![]));
}

#[test]
fn it_stops_when_told() {
    let rows: Vec<_> = (0..200).map(|id| point(id, 100.0)).collect();
    assert_eq!(arrange(&heads(&rows), &numbered(200), &|| false), None);
}

#[test]
fn a_hub_knows_the_farthest_of_its_rows() {
    let mut rows = vec![[10; HEAD]; 70];
    rows[3] = [-10; HEAD];
    let norms: Vec<f64> = (0..70).map(|row| 1.0 + f64::from(row)).collect();
    let (mut rests, errors) = (vec![0.5; 70], vec![0.25; 70]);
    rests[9] = 2.0;
    let made = heads(&rows);
    let of = Rows {
        heads: &made,
        rests: &rests,
        errors: &errors,
        norms: &norms,
    };
    let (codes, numbers) = hubs(&of);
    let hubs = Hubs {
        codes: &codes,
        numbers: &numbers,
    };
    assert_eq!(hubs.len(), 2);
    let numbers: Vec<Hub> = hubs.numbers().collect();
    // The middle is at 10 - 20 / 64 along each of 64 axes.
    assert!((numbers[0].reach - 8.0 * (20.0 - 20.0 / 64.0)).abs() < 1.0);
    assert_eq!((numbers[0].rest, numbers[0].error), (2.0, 0.25));
    assert_eq!((numbers[0].shortest, numbers[0].longest), (1.0, 64.0));
    assert!(numbers[1].reach < 0.01);
    assert_eq!(
        (numbers[1].rest, numbers[1].shortest, numbers[1].longest),
        (0.5, 65.0, 70.0)
    );

    let norms = vec![0.0; 70];
    let (_, numbers) = super::hubs(&Rows {
        norms: &norms,
        ..of
    });
    assert!(numbers[1].is_infinite());
}

#[test]
fn what_is_no_number_bounds_nothing() {
    let made = heads(&[[1; HEAD]; 3]);
    let (fine, bad) = ([0.5_f32; 3], [0.5, f32::NAN, 0.5]);
    for (rests, errors) in [(fine, bad), (bad, fine)] {
        let (_, numbers) = hubs(&Rows {
            heads: &made,
            rests: &rests,
            errors: &errors,
            norms: &[1.0; 3],
        });
        assert!(numbers[2].max(numbers[3]).is_infinite());
    }
}
