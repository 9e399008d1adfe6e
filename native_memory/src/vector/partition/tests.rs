//! The rows that matter are selected, and no others appear.

use super::*;
use crate::vector::scan::tests::noise;

/// `rows` vectors around `centres` centres, of 16 components.
fn clustered(rows: u64, centres: u64) -> Tail {
    let mut tail = Tail::new(16, true).unwrap();
    for row in 0..rows {
        let centre = noise(1 + row * 7 % centres, 16);
        let vector: Vec<f32> = centre
            .iter()
            .zip(noise(1000 + row, 16))
            .map(|(c, x)| c + x / 8.0)
            .collect();
        tail.append(row as i64, &vector).unwrap();
    }
    tail
}

fn best(block: &CodeBlock<'_>, filter: Option<&[u64]>, query: &Query, k: usize) -> Vec<i64> {
    let blocks = [ScanBlock {
        block: *block,
        filter,
        deleted: None,
    }];
    let search = Search::new(&blocks, query, k, None).unwrap();
    let found = hits(search.run(|_, _, _| Ok(()), by_row));
    found.iter().map(|hit| hit.id).collect()
}

fn top(blocks: &[ScanBlock<'_>], query: &Query) -> Vec<i64> {
    let search = Search::new(blocks, query, 10, None).unwrap();
    hits(search.run(|_, _, _| Ok(()), by_row))
        .iter()
        .map(|hit| hit.id)
        .collect()
}

#[test]
fn finds_nearly_all_true_neighbours_in_a_few_groups() {
    let tail = clustered(4000, 40);
    let all = [ScanBlock {
        block: tail.block(),
        filter: None,
        deleted: None,
    }];
    for metric in [Metric::L2, Metric::Cosine, Metric::Dot] {
        let partitions = Partitions::build(&tail.block(), None, metric, &|| true).unwrap();
        let (mut found, mut looked_at) = (0, 0);
        for trial in 0..100 {
            // Not a stored row, but like one.
            let row = tail.block().vector(trial * 37).unwrap();
            let vector: Vec<f32> = row
                .iter()
                .zip(noise(trial as u64, 16))
                .map(|(x, y)| x + y / 16.0)
                .collect();
            let query = Query::new(&vector, metric).unwrap();
            let selected = partitions.select(&query, tail.len()).unwrap();
            looked_at += selected.count();
            let some = [ScanBlock {
                filter: Some(selected.words()),
                ..all[0]
            }];
            let expected = top(&all, &query);
            found += top(&some, &query)
                .iter()
                .filter(|id| expected.contains(id))
                .count();
        }
        assert!(found >= 980, "{metric:?}: {found} of 1000");
        assert!(
            metric == Metric::Dot || looked_at < 100 * 1000,
            "{metric:?}: {looked_at}"
        );
    }
}

#[test]
fn without_clusters_it_is_exact() {
    let mut tail = Tail::new(16, true).unwrap();
    (0..2000).for_each(|row| {
        tail.append(row as i64, &noise(row, 16)).unwrap();
    });
    let partitions = Partitions::build(&tail.block(), None, Metric::L2, &|| true).unwrap();
    let all = [ScanBlock {
        block: tail.block(),
        filter: None,
        deleted: None,
    }];
    let mut found = 0;
    for trial in 0..50 {
        let query = Query::new(&noise(90_000 + trial, 16), Metric::L2).unwrap();
        let selected = partitions.select(&query, tail.len()).unwrap();
        let some = [ScanBlock {
            filter: Some(selected.words()),
            ..all[0]
        }];
        let expected = top(&all, &query);
        found += top(&some, &query)
            .iter()
            .filter(|id| expected.contains(id))
            .count();
    }
    assert_eq!(found, 500);
}

#[test]
fn recall_holds_at_other_dimensions_and_numbers_of_results() {
    for (dimension, centres, spread) in [(32, 20, 0.5), (64, 300, 0.3), (384, 50, 0.2)] {
        let vector = |seed: u64, centre: u64| -> Vec<f32> {
            noise(1 + centre, dimension)
                .iter()
                .zip(noise(1000 + seed, dimension))
                .map(|(c, x)| c + spread * x)
                .collect()
        };
        let mut tail = Tail::new(dimension, true).unwrap();
        (0..3000).for_each(|row| {
            tail.append(row as i64, &vector(row, row * 7 % centres))
                .unwrap();
        });
        let partitions = Partitions::build(&tail.block(), None, Metric::L2, &|| true).unwrap();
        for k in [10, NEIGHBOURS] {
            let (mut found, mut wanted) = (0, 0);
            for trial in 0..60 {
                // No stored row, and none that the groups were measured with.
                let query = Query::new(&vector(500_000 + trial, trial % centres), Metric::L2);
                let query = query.unwrap();
                let selected = partitions.select(&query, tail.len()).unwrap();
                let block = tail.block();
                let expected = best(&block, None, &query, k);
                let some = best(&block, Some(selected.words()), &query, k);
                found += some.iter().filter(|id| expected.contains(id)).count();
                wanted += expected.len();
            }
            assert!(
                found * 100 >= wanted * 98,
                "{dimension}, {k}: {found} of {wanted}"
            );
        }
    }
}

#[test]
fn building_stops_when_told() {
    let tail = clustered(500, 5);
    let left = std::cell::Cell::new(0);
    let go_on = || left.replace(left.get() - 1) > 0;
    for steps in [0, 1, 700, 3600] {
        left.set(steps);
        let stopped = Partitions::build(&tail.block(), None, Metric::L2, &go_on);
        assert!(matches!(stopped, Err(PartitionError::Stopped)), "{steps}");
    }
}

#[test]
fn groups_are_a_partition_of_the_living_rows() {
    let tail = clustered(700, 5);
    let dead: Bitmap = (0..700).step_by(3).collect();
    let partitions =
        Partitions::build(&tail.block(), Some(dead.words()), Metric::L2, &|| true).unwrap();
    let mut rows: Vec<u32> = partitions.groups.concat();
    rows.sort_unstable();
    let living: Vec<u32> = (0..700).filter(|row| row % 3 != 0).collect();
    assert_eq!(rows, living);
}

#[test]
fn rows_that_came_later_are_always_selected() {
    let tail = clustered(500, 50);
    let partitions = Partitions::build(&tail.block(), None, Metric::L2, &|| true).unwrap();
    let query = Query::new(&noise(3, 16), Metric::L2).unwrap();
    let selected = partitions.select(&query, 503).unwrap();
    assert!((500..503).all(|row| selected.contains(row)));
    assert!(!selected.contains(503));
}

#[test]
fn no_rows_and_one_row_are_fine() {
    let query = Query::new(&[1.0], Metric::L2).unwrap();
    let mut tail = Tail::new(1, true).unwrap();
    let none = Partitions::build(&tail.block(), None, Metric::L2, &|| true).unwrap();
    assert_eq!(none.select(&query, 0).unwrap().count(), 0);
    tail.append(1, &[0.5]).unwrap();
    let one = Partitions::build(&tail.block(), None, Metric::L2, &|| true).unwrap();
    assert_eq!(one.select(&query, 1).unwrap(), Bitmap::all(1));
}
