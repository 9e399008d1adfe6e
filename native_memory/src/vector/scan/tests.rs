//! The search against computing every score.

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::vector::quantize::tests::hostile_vector;
use crate::vector::quantize::{Metric, norm};
use crate::vector::segment::{SealSource, Segment, Tail};
use crate::vector::{Bitmap, CodeBlock};

/// Id, vector, allowed by the filter, deleted.
type Row = (i64, Vec<f32>, bool, bool);
type Rows = Vec<Row>;

/// How a block keeps its vectors.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Tail { keep_vectors: bool },
    Segment { keep_vectors: bool },
}

/// Blocks of rows of one dimension, with many equal and near vectors among them.
fn blocks() -> impl Strategy<Value = (Vec<(Kind, Rows)>, Vec<f32>)> {
    let dimension = prop_oneof![19 => 1_usize..80, 1 => 256_usize..290];
    dimension.prop_flat_map(|dimension| {
        prop::collection::vec(hostile_vector(dimension), 1..6).prop_flat_map(move |seeds| {
            let last = seeds.len() - 1;
            let vector = (0..=last, -1.0_f32..1.0, prop::bool::weighted(0.4)).prop_map({
                let seeds = seeds.clone();
                move |(seed, noise, equal)| {
                    let mut vector = seeds[seed].clone();
                    if !equal {
                        vector[0] *= 1.0 + noise / 8.0;
                        vector[0] = vector[0].clamp(f32::MIN, f32::MAX);
                    }
                    vector
                }
            });
            let row = (
                any::<i64>(),
                vector.clone(),
                any::<bool>(),
                prop::bool::weighted(0.2),
            );
            let kind = any::<(bool, bool)>().prop_map(|(tail, keep_vectors)| {
                if tail {
                    Kind::Tail { keep_vectors }
                } else {
                    Kind::Segment { keep_vectors }
                }
            });
            let block = (kind, prop::collection::vec(row, 0..150));
            (prop::collection::vec(block, 0..4), vector)
        })
    })
}

fn by_id(a: &Hit, b: &Hit) -> Ordering {
    a.id.cmp(&b.id).then(a.at.cmp(&b.at))
}

enum Stored {
    Tail(Box<Tail>),
    Segment(Box<Segment>),
}

impl Stored {
    fn new(kind: Kind, rows: &Rows, dimension: usize, directory: &std::path::Path) -> Self {
        let keep = matches!(kind, Kind::Tail { keep_vectors: true });
        let mut tail = Tail::new(dimension, keep).unwrap();
        for (id, vector, ..) in rows {
            tail.append(*id, vector).unwrap();
        }
        match kind {
            Kind::Tail { .. } => Self::Tail(Box::new(tail)),
            Kind::Segment { keep_vectors } => {
                let source = SealSource {
                    block: tail.block(),
                    deleted: None,
                };
                let fetch = |id, out: &mut [f32]| {
                    let row = rows.iter().find(|row| row.0 == id);
                    out.copy_from_slice(&row.unwrap().1);
                    Ok(())
                };
                let path = directory.join("x.seg");
                let go_on = || true;
                let made = Segment::write(&path, dimension, &[source], keep_vectors, fetch, &go_on);
                Self::Segment(Box::new(made.unwrap()))
            }
        }
    }

    fn block(&self) -> CodeBlock<'_> {
        match self {
            Self::Tail(tail) => tail.block(),
            Self::Segment(segment) => segment.block(),
        }
    }
}

fn exhaustive(blocks: &[(Kind, Rows)], query: &Query, k: usize, min: Option<f64>) -> Vec<Hit> {
    let mut hits = Vec::new();
    for (number, (_, rows)) in blocks.iter().enumerate() {
        for (row, (id, vector, allowed, deleted)) in rows.iter().enumerate() {
            let norm = norm(vector);
            let score = query.score(vector, norm);
            if *allowed && !*deleted && min.is_none_or(|min| score >= min) {
                let at = RowRef {
                    block: number as u32,
                    row: row as u32,
                };
                hits.push(Hit { score, id: *id, at });
            }
        }
    }
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| by_id(a, b)));
    hits.truncate(k);
    hits
}

/// A minimum score: none, one between the scores, or exactly one of them.
fn minimum(scores: &[Hit], pick: (u8, usize)) -> Option<f64> {
    let score = scores.get(pick.1 % scores.len().max(1))?.score;
    match pick.0 % 4 {
        0 => Some(score),
        1 => Some(score.next_up()),
        2 => Some(score / 2.0),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn finds_what_an_exhaustive_search_finds(
        (rows, vector) in blocks(),
        k in prop_oneof![0_usize..20, Just(100_000)],
        metric in prop::sample::select(vec![Metric::L2, Metric::Cosine, Metric::Dot]),
        pick in any::<(u8, usize)>(),
        filtered in any::<bool>(),
        threads in 1_usize..4,
    ) {
        let mut rows = rows;
        if !filtered {
            rows.iter_mut().flat_map(|(_, rows)| rows).for_each(|row| row.2 = true);
        }
        for (_, rows) in &mut rows {
            (0..).zip(rows).for_each(|(at, row)| row.0 = row.0 << 8 | at);
        }
        let query = Query::new(&vector, metric).unwrap();
        let min = minimum(&exhaustive(&rows, &query, usize::MAX, None), pick);
        let directory = tempfile::tempdir().unwrap();
        let mut stored = Vec::new();
        for (i, (kind, rows)) in rows.iter_mut().enumerate() {
            let directory = directory.path().join(i.to_string());
            std::fs::create_dir(&directory).unwrap();
            let block = Stored::new(*kind, rows, vector.len(), &directory);
            // A segment has an order of its own.
            for (row, &id) in block.block().ids.iter().enumerate() {
                let found = rows.iter().position(|row| row.0 == id).unwrap();
                rows.swap(row, found);
                let is_tail = matches!(kind, Kind::Tail { .. });
                prop_assert!(is_tail || block.block().find(id) == Some(row));
            }
            stored.push(block);
        }
        let expected = exhaustive(&rows, &query, k, min);
        let set = |rows: &Rows, which: fn(&Row) -> bool| {
            rows.iter().enumerate().filter(|(_, r)| which(r)).map(|(i, _)| i).collect::<Bitmap>()
        };
        let sets: Vec<_> = rows.iter().map(|(_, r)| (set(r, |r| r.2), set(r, |r| r.3))).collect();
        let blocks: Vec<_> = stored.iter().zip(&sets).map(|(stored, (filter, deleted))| ScanBlock {
            block: stored.block(),
            filter: filtered.then(|| filter.words()),
            deleted: Some(deleted.words()),
        }).collect();

        let search = Search::new(&blocks, &query, k, min).unwrap();
        let found = scanned(&search, threads);
        let fetch = |at: RowRef, id: i64, out: &mut [f32]| {
            let row = &rows[at.block as usize].1[at.row as usize];
            assert_eq!(row.0, id);
            out.copy_from_slice(&row.1);
            Ok::<_, Infallible>(())
        };
        let Ok(result) = search.finish(found, fetch, by_id);
        prop_assert_eq!(&result.hits, &expected);

        let Ok(result) = Search::new(&blocks, &query, k, min).unwrap().run(fetch, by_id);
        prop_assert_eq!(&result.hits, &expected);
    }
}

/// A scan in some threads, if it is more than one from the last part to the first; what is found
/// at the beginning is the first thread's.
fn scanned(search: &Search<'_>, threads: usize) -> Vec<Candidates> {
    let mut chunks = search.chunks();
    if threads > 1 {
        chunks.reverse();
    }
    let mut weighed: Vec<_> = chunks
        .into_iter()
        .map(|chunk| search.weigh(chunk))
        .collect();
    let mut found = vec![search.begin(&mut weighed)];
    found.resize_with(threads, Candidates::default);
    for (i, part) in weighed.iter().enumerate() {
        search.scan(part, &mut found[i % threads]);
    }
    found
}

fn tail(vectors: impl IntoIterator<Item = Vec<f32>>, dimension: usize) -> Tail {
    let mut tail = Tail::new(dimension, true).unwrap();
    for (id, vector) in vectors.into_iter().enumerate() {
        tail.append(id as i64, &vector).unwrap();
    }
    tail
}

/// The best rows of one block, which has the vectors.
#[allow(
    clippy::large_types_passed_by_value,
    reason = "it goes into the search"
)]
fn alone(block: CodeBlock<'_>, query: &Query, k: usize) -> Found {
    let blocks = [ScanBlock {
        block,
        filter: None,
        deleted: None,
    }];
    let Ok(found) = Search::new(&blocks, query, k, None)
        .unwrap()
        .run(no_fetch, by_id);
    found
}

fn no_fetch(_: RowRef, _: i64, _: &mut [f32]) -> Result<(), Infallible> {
    panic!("the block has the vectors")
}

/// `n` numbers in `-1..1`, always the same ones.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn rescores_few_of_many() {
    let tail = tail((0..20_000).map(|i| noise(i, 32)), 32);
    let blocks = [ScanBlock {
        block: tail.block(),
        filter: None,
        deleted: None,
    }];
    let query = Query::new(&noise(7, 32), Metric::L2).unwrap();
    let Ok(found) = Search::new(&blocks, &query, 10, None)
        .unwrap()
        .run(no_fetch, by_id);
    assert_eq!(found.hits.len(), 10);
    assert_eq!(found.hits[0].id, 7);
    assert!(found.rescored < 100, "{}", found.rescored);
}

fn sealed(tail: &Tail, directory: &std::path::Path) -> Segment {
    let source = SealSource {
        block: tail.block(),
        deleted: None,
    };
    let (path, dimension) = (directory.join("x.seg"), tail.block().dimension);
    let no_fetch = |_, _: &mut [f32]| Err("the block has the vectors".into());
    Segment::write(&path, dimension, &[source], true, no_fetch, &|| true).unwrap()
}

#[test]
fn rows_that_are_told_off_by_their_sketches_are_not_missed() {
    const DIMENSION: usize = 192;
    const ROWS: u64 = 7000;
    // Each row is near one of some centres; with one centre at the origin, near nothing. In one
    // piece, the rows of a centre lie together; some rows are there twice, and eight are zero.
    let row = |centres: u64, piece: u64, id: u64| -> Vec<f32> {
        if id % 500 == 17 && id < 4000 {
            return vec![0.0; DIMENSION];
        }
        let centre = noise(100_000 + id / piece % centres, DIMENSION);
        let pull = if centres == 1 { 0.0 } else { 1.0 };
        let rest = noise(id - id % 100 % 2, DIMENSION);
        let pairs = centre.iter().zip(&rest);
        pairs.map(|(c, x)| pull * c + x / 2.0).collect()
    };
    let some: Bitmap = (0..ROWS as usize).filter(|id| id / 40 % 2 == 0).collect();
    let directory = tempfile::tempdir().unwrap();
    for (centres, piece, k) in [(1, 1, 700), (40, 1, 10), (40, 175, 10)] {
        // Of rows near nothing, many are about as near as the 700th.
        let told_off = centres > 1;
        let vectors: Vec<_> = (0..ROWS).map(|id| row(centres, piece, id)).collect();
        let segment = sealed(&tail(vectors.iter().cloned(), DIMENSION), directory.path());
        for (metric, filter) in [
            (Metric::L2, None),
            (Metric::Cosine, Some(some.words())),
            (Metric::Dot, None),
        ] {
            let blocks = [ScanBlock {
                block: segment.block(),
                filter,
                deleted: None,
            }];
            for seed in 0..2 {
                let query = row(centres, piece, ROWS + 40 + 200 * seed);
                let query = Query::new(&query, metric).unwrap();
                let search = Search::new(&blocks, &query, k, None).unwrap();
                let found = scanned(&search, 1);
                assert_eq!(found[0].trial.paid(), told_off, "{metric:?}");
                let Ok(found) = search.finish(found, no_fetch, by_id);
                let mut scores: Vec<(f64, i64)> = vectors
                    .iter()
                    .enumerate()
                    .filter(|&(id, _)| filter.is_none() || some.contains(id))
                    .map(|(id, vector)| (query.score(vector, norm(vector)), id as i64))
                    .collect();
                scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                let hits = found.hits.iter().map(|hit| (hit.score, hit.id));
                assert!(hits.eq(scores.into_iter().take(k)), "{metric:?}, {seed}");
            }
        }
    }
}

#[test]
fn what_lies_in_one_place_is_found_first() {
    const DIMENSION: usize = 256;
    const TOPICS: u64 = 60;
    const EACH: u64 = 40;
    // The rows of a topic lie together, and a topic is in one part of the search only.
    let row = |topic: u64, id: u64| -> Vec<f32> {
        let rest = noise(id, DIMENSION);
        let centre = noise(50_000 + topic, DIMENSION);
        centre.iter().zip(&rest).map(|(c, x)| c + x / 4.0).collect()
    };
    let rows = (0..TOPICS * EACH).map(|id| row(id / EACH, id));
    let directory = tempfile::tempdir().unwrap();
    let segment = sealed(&tail(rows, DIMENSION), directory.path());
    assert!(segment.block().sketches.unwrap().heads.is_some());
    let blocks = [ScanBlock {
        block: segment.block(),
        filter: None,
        deleted: None,
    }];
    for topic in [1, 30, 58] {
        let query = Query::new(&row(topic, 90_000 + topic), Metric::L2).unwrap();
        let search = Search::new(&blocks, &query, 10, None).unwrap();
        let found = scanned(&search, 1);
        // Hardly more than were looked at first are candidates, whatever came before them.
        let kept = found[0].rows.len();
        assert!(kept <= FIRST + 10, "{kept}");
        let Ok(found) = search.finish(found, no_fetch, by_id);
        let ids = found.hits.iter().map(|hit| hit.id as u64 / EACH);
        assert!(ids.eq([topic; 10]));
    }
}

proptest! {
    #[test]
    fn a_rank_that_reaches_a_limit_does_when_both_are_rounded(
        rank in any::<u64>(),
        limit in any::<u64>(),
        near in any::<bool>(),
    ) {
        let rank = f64::from_bits(rank);
        let limit = if near { rank.next_down() } else { f64::from_bits(limit) };
        prop_assert!(rounded(rank) > NONE);
        if !limit.is_nan() && (rank.is_nan() || rank >= limit) {
            prop_assert!(rounded(rank) >= limit as f32);
        }
    }
}

#[test]
fn the_parts_of_a_search_are_all_rows_once() {
    for rows in [0, 1, 64, 65, 4096, 4097, 10_000] {
        let tail = tail((0..rows).map(|_| vec![1.0]), 1);
        let blocks = [tail.block(), tail.block()].map(|block| ScanBlock {
            block,
            filter: None,
            deleted: None,
        });
        let query = Query::new(&[0.0], Metric::L2).unwrap();
        let search = Search::new(&blocks, &query, usize::MAX, None).unwrap();
        let mut at: Vec<_> = search
            .merge(scanned(&search, 1))
            .iter()
            .map(|row| row.at)
            .collect();
        at.sort_unstable();
        let all = (0..2).flat_map(|block| (0..rows).map(move |row| RowRef { block, row }));
        assert!(all.eq(at), "{rows}");
    }
}

#[test]
fn few_rows_of_many_parts_are_all_looked_at() {
    const ROWS: u64 = 20_000;
    let memory = tail((0..ROWS).map(|row| noise(row, 24)), 24);
    let directory = tempfile::tempdir().unwrap();
    let segment = sealed(&memory, directory.path());
    for step in [1, 63, 97, 5000] {
        let few: Bitmap = (0..ROWS as usize).step_by(step).collect();
        let blocks = [memory.block(), segment.block()].map(|block| ScanBlock {
            block,
            filter: Some(few.words()),
            deleted: None,
        });
        let query = Query::new(&noise(step as u64 + ROWS, 24), Metric::L2).unwrap();
        let search = Search::new(&blocks, &query, 10, None).unwrap();
        let fetch = |at: RowRef, _, into: &mut [f32]| {
            into.copy_from_slice(&noise(u64::from(at.row), 24));
            Ok::<_, Infallible>(())
        };
        let by_row = |a: &Hit, b: &Hit| a.at.cmp(&b.at);
        let mut expected: Vec<f64> = (0..ROWS)
            .step_by(step)
            .map(|row| noise(row, 24))
            .flat_map(|vector| [query.score(&vector, norm(&vector)); 2])
            .collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(10);
        let scores = |found: Found| found.hits.iter().map(|hit| hit.score).collect::<Vec<_>>();
        assert_eq!(scores(search.run(fetch, by_row).unwrap()), expected);
        // Parts in two threads, in another order.
        let found = scanned(&search, 2);
        assert_eq!(
            scores(search.finish(found, fetch, by_row).unwrap()),
            expected
        );
    }
}

#[test]
fn rows_that_get_better_and_better_do_not_pile_up() {
    let n = 30_000_u16;
    let tail = tail((0..n).map(|i| vec![f32::from(n - i), 1.0]), 2);
    let blocks = [ScanBlock {
        block: tail.block(),
        filter: None,
        deleted: None,
    }];
    let query = Query::new(&[0.0, 1.0], Metric::L2).unwrap();
    let search = Search::new(&blocks, &query, 3, None).unwrap();
    let found = scanned(&search, 1);
    let kept = found[0].rows.len();
    assert!(kept <= 2 * COMPACT_AT, "{kept}");
    let Ok(found) = search.finish(found, no_fetch, by_id);
    assert_eq!(
        found.hits.iter().map(|hit| hit.id).collect::<Vec<_>>(),
        [29_999, 29_998, 29_997]
    );
}

#[test]
fn as_many_as_there_are() {
    let tail = tail((0..100_u8).map(|i| vec![f32::from(i)]), 1);
    let all = Bitmap::all(100);
    let blocks = [ScanBlock {
        block: tail.block(),
        filter: Some(all.words()),
        deleted: None,
    }];
    let query = Query::new(&[0.0], Metric::L2).unwrap();
    for k in [99, 100, 101, usize::MAX] {
        let Ok(found) = Search::new(&blocks, &query, k, None)
            .unwrap()
            .run(no_fetch, by_id);
        assert_eq!(found.hits.len(), k.min(100));
        assert!(
            found
                .hits
                .iter()
                .enumerate()
                .all(|(i, hit)| hit.id == i as i64)
        );
    }
}

#[test]
fn the_error_of_a_fetch_ends_the_search() {
    let mut tail = Tail::new(1, false).unwrap();
    tail.append(5, &[1.0]).unwrap();
    let blocks = [ScanBlock {
        block: tail.block(),
        filter: None,
        deleted: None,
    }];
    let query = Query::new(&[0.0], Metric::L2).unwrap();
    let search = Search::new(&blocks, &query, 1, None).unwrap();
    assert_eq!(search.run(|_, id, _| Err(id), by_id), Err(5));
}

#[test]
fn a_query_of_another_dimension_is_refused() {
    let tail = Tail::new(3, true).unwrap();
    let blocks = [ScanBlock {
        block: tail.block(),
        filter: None,
        deleted: None,
    }];
    let query = Query::new(&[0.0], Metric::L2).unwrap();
    let error = Search::new(&blocks, &query, 1, None).err();
    assert_eq!(
        error,
        Some(VectorError::Dimension {
            expected: 3,
            found: 1
        })
    );
}

#[test]
fn rows_that_codes_cannot_tell_apart_are_told_apart_by_fine_codes() {
    // All far from the origin, and near one another.
    let far = |seed| {
        noise(seed, 64)
            .iter()
            .map(|x| 1.0 + x / 16.0)
            .collect::<Vec<f32>>()
    };
    let tail = tail((0..2000).map(far), 64);
    let directory = tempfile::tempdir().unwrap();
    let segment = sealed(&tail, directory.path());
    let query = Query::new(&far(5000), Metric::L2).unwrap();
    let coarse = |block| CodeBlock {
        fine: None,
        ..block
    };
    for block in [tail.block(), segment.block()] {
        let [with, without] = [block, coarse(block)].map(|block| alone(block, &query, 10));
        assert_eq!(with.hits, without.hits);
        let rescored = (with.rescored, without.rescored);
        assert!(10 * rescored.0 < rescored.1, "{rescored:?}");
    }
}

#[test]
fn damaged_columns_cost_rows_but_never_a_crash() {
    let tail = tail((0..200).map(|i| noise(i, 8)), 8);
    let nan = vec![f32::NAN; 200];
    let mut block = CodeBlock {
        residuals: &nan,
        ..tail.block()
    };
    let nearest = |block, metric| {
        let query = Query::new(&noise(7, 8), metric).unwrap();
        let found = alone(block, &query, 3);
        (found.hits[0].id, found.rescored)
    };
    assert_eq!(nearest(block, Metric::L2), (7, 3));
    if let Some(fine) = &mut block.fine {
        fine.residuals = &nan;
    }
    assert_eq!(nearest(block, Metric::L2), (7, 200));
    assert_eq!(nearest(block, Metric::Cosine), (7, 200));

    // Sketches that say nothing tell no row off.
    let directory = tempfile::tempdir().unwrap();
    let segment = sealed(&tail, directory.path());
    let mut block = segment.block();
    if let Some(sketches) = &mut block.sketches {
        sketches.slacks = &nan;
    }
    assert_eq!(nearest(block, Metric::L2).0, 7);
}
