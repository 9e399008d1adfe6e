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
        let partitions = Partitions::build(&tail.block(), None, metric).unwrap();
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
    let partitions = Partitions::build(&tail.block(), None, Metric::L2).unwrap();
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
fn groups_are_a_partition_of_the_living_rows() {
    let tail = clustered(700, 5);
    let dead: Bitmap = (0..700).step_by(3).collect();
    let partitions = Partitions::build(&tail.block(), Some(dead.words()), Metric::L2).unwrap();
    let mut rows: Vec<u32> = partitions.groups.concat();
    rows.sort_unstable();
    let living: Vec<u32> = (0..700).filter(|row| row % 3 != 0).collect();
    assert_eq!(rows, living);
}

#[test]
fn rows_that_came_later_are_always_selected() {
    let tail = clustered(500, 50);
    let partitions = Partitions::build(&tail.block(), None, Metric::L2).unwrap();
    let query = Query::new(&noise(3, 16), Metric::L2).unwrap();
    let selected = partitions.select(&query, 503).unwrap();
    assert!((500..503).all(|row| selected.contains(row)));
    assert!(!selected.contains(503));
}

#[test]
fn no_rows_and_one_row_are_fine() {
    let query = Query::new(&[1.0], Metric::L2).unwrap();
    let mut tail = Tail::new(1, true).unwrap();
    let none = Partitions::build(&tail.block(), None, Metric::L2).unwrap();
    assert_eq!(none.select(&query, 0).unwrap().count(), 0);
    tail.append(1, &[0.5]).unwrap();
    let one = Partitions::build(&tail.block(), None, Metric::L2).unwrap();
    assert_eq!(one.select(&query, 1).unwrap(), Bitmap::all(1));
}
