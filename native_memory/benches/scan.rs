//! How near a search comes to the time of reading the codes once.
//!
//! `cargo bench -p crewai-native-memory --bench scan [-- <rows>...]` prints, for unit vectors in
//! clusters and spread evenly: the time of a search for 10 rows, rescoring included, per row; the
//! bandwidth at which it went through the codes; the same for a plain sum over their bytes, taken
//! in turn with it; the ratio of the two, which should be at most 1.5; with two threads, and with
//! every eighth row allowed; and how many true scores were computed. From 10,000 rows on, also the
//! approximate search: seconds to build its groups, how many of them it visits, time, recall. Times are lower quartiles.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crewai_native_memory::vector::kernels::kernels;
use crewai_native_memory::vector::{
    Bitmap, Candidates, Hit, Metric, Partitions, Query, RowRef, ScanBlock, SealSource, Search,
    Segment, Tail, Weighed,
};

const K: usize = 10;

/// A small generator of normally distributed numbers, always the same.
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f32 {
        // Four uniform numbers are near enough to a normal one.
        let sum: f32 = (0..4)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                (self.0 >> 40) as f32 / (1_u32 << 24) as f32
            })
            .sum();
        sum - 2.0
    }

    /// A unit vector around a centre; `spread` is how far from it, 0 to infinity.
    fn unit_vector(&mut self, centre: &[f32], spread: f32) -> Vec<f32> {
        let vector: Vec<f32> = centre.iter().map(|x| x + spread * self.next()).collect();
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| x / norm).collect()
    }
}

/// The rows, sealed, and some queries like them.
fn data(rows: usize, dimension: usize, clustered: bool) -> (Segment, Vec<Query>) {
    let mut random = Normal(0x2545_F491_4F6C_DD1D);
    let none = vec![0.0; dimension];
    let centres: Vec<Vec<f32>> = if clustered {
        (0..100).map(|_| random.unit_vector(&none, 1.0)).collect()
    } else {
        vec![none]
    };
    // Two vectors of a cluster have a cosine of about 0.7.
    let spread = if clustered {
        0.65 / (dimension as f32).sqrt() / 0.58
    } else {
        1.0
    };
    let mut vector = |i: usize| random.unit_vector(&centres[i * 7 % centres.len()], spread);
    let mut tail = Tail::new(dimension, true).unwrap();
    for i in 0..rows {
        tail.append(i as i64, &vector(i)).unwrap();
    }
    let queries = (0..100)
        .map(|i| Query::new(&vector(i), Metric::L2).unwrap())
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let source = SealSource {
        block: tail.block(),
        deleted: None,
    };
    let path = directory.path().join("rows");
    let fetch = |_, _: &mut [f32]| Ok(());
    let start = Instant::now();
    // It stays mapped when the directory goes.
    let segment = Segment::write(&path, dimension, &[source], true, fetch, &|| true).unwrap();
    println!("sealed in {:.2} s", start.elapsed().as_secs_f64());
    (segment, queries)
}

/// Reads every byte, as fast as one thread can.
fn read(codes: &[i8]) -> u64 {
    // SAFETY: any eight bytes are a u64.
    let (_, words, _) = unsafe { codes.align_to::<[u64; 16]>() };
    let mut sums = [0_u64; 16];
    for line in words {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |sum, lane| sum ^ lane)
}

fn by_id(a: &Hit, b: &Hit) -> std::cmp::Ordering {
    a.id.cmp(&b.id)
}

#[allow(clippy::unnecessary_wraps, reason = "the type is given")]
fn no_fetch(_: RowRef, _: i64, _: &mut [f32]) -> Result<(), Infallible> {
    Ok(())
}

fn search(blocks: &[ScanBlock<'_>], query: &Query) -> usize {
    let Ok(found) = Search::new(blocks, query, K, None)
        .unwrap()
        .run(no_fetch, by_id);
    assert_eq!(black_box(&found).hits.len(), K);
    found.rescored
}

fn in_threads<R: Send>(threads: usize, work: impl Fn() -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        std::iter::once(work())
            .chain(others.into_iter().map(|t| t.join().unwrap()))
            .collect()
    })
}

fn search_with_threads(blocks: &[ScanBlock<'_>], query: &Query, threads: usize) {
    let search = Search::new(blocks, query, K, None).unwrap();
    let chunks = search.chunks();
    let next = AtomicUsize::new(0);
    let mut weighed: Vec<Weighed> = in_threads(threads, || {
        let mut weighed = Vec::new();
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            weighed.push(search.weigh(chunk.clone()));
        }
        weighed
    })
    .into_iter()
    .flatten()
    .collect();
    let first = search.begin(&mut weighed);
    let next = AtomicUsize::new(0);
    let mut found = in_threads(threads, || {
        let mut found = Candidates::default();
        while let Some(part) = weighed.get(next.fetch_add(1, Ordering::Relaxed)) {
            search.scan(part, &mut found);
        }
        found
    });
    found.push(first);
    let Ok(found) = search.finish(found, no_fetch, by_id);
    assert_eq!(black_box(found).hits.len(), K);
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The lower quartile: what a run takes when other programs leave the machine alone.
fn quartile(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn measure(rows: usize, dimension: usize, clustered: bool) {
    let (segment, queries) = data(rows, dimension, clustered);
    let all = [ScanBlock {
        block: segment.block(),
        filter: None,
        deleted: None,
    }];
    let eighth: Bitmap = (0..rows).step_by(8).collect();
    let some = [ScanBlock {
        filter: Some(eighth.words()),
        ..all[0]
    }];
    let codes = segment.block().codes;

    let repeats = (2_000_000_000 / codes.len()).clamp(13, 1000);
    let mut times = [const { Vec::new() }; 4];
    let mut rescored = 0;
    for query in queries.iter().cycle().take(repeats) {
        times[0].push(seconds(|| {
            black_box(read(codes));
        }));
        times[1].push(seconds(|| rescored += search(&all, query)));
        times[2].push(seconds(|| search_with_threads(&all, query, 2)));
        times[3].push(seconds(|| {
            search(&some, query);
        }));
    }
    let [read, one, two, filtered] = times.map(quartile);
    let bandwidth = |seconds: f64| codes.len() as f64 / seconds / 1e9;
    println!(
        "{rows:>7} x {dimension:<4} {:<9} {:>8.3} ms {:>7.1} ns/row {:>6.1} GB/s   \
         read {:>6.1} GB/s   ratio {:>5.2}   2 threads {:>8.3} ms   1/8 {:>8.3} ms   rescored {:>4}",
        if clustered { "clustered" } else { "uniform" },
        one * 1e3,
        one * 1e9 / rows as f64,
        bandwidth(one),
        bandwidth(read),
        one / read,
        two * 1e3,
        filtered * 1e3,
        rescored / repeats,
    );
}

fn measure_approximate(rows: usize, dimension: usize, clustered: bool) {
    let (segment, queries) = data(rows, dimension, clustered);
    let all = [ScanBlock {
        block: segment.block(),
        filter: None,
        deleted: None,
    }];
    let start = Instant::now();
    let partitions = Partitions::build(&segment.block(), None, Metric::L2, &|| true).unwrap();
    let built = start.elapsed().as_secs_f64();
    let top = |blocks: &[ScanBlock<'_>], query: &Query| -> Vec<i64> {
        let Ok(found) = Search::new(blocks, query, K, None)
            .unwrap()
            .run(no_fetch, by_id);
        found.hits.iter().map(|hit| hit.id).collect()
    };
    let (mut exact, mut approximate, mut found) = (Vec::new(), Vec::new(), 0);
    for query in &queries {
        let (mut expected, mut some) = (Vec::new(), Vec::new());
        exact.push(seconds(|| expected = top(&all, query)));
        approximate.push(seconds(|| {
            let selected = partitions.select(query, rows).unwrap();
            some = top(
                &[ScanBlock {
                    filter: Some(selected.words()),
                    ..all[0]
                }],
                query,
            );
        }));
        found += some.iter().filter(|id| expected.contains(id)).count();
    }
    let (groups, probes) = partitions.probes();
    println!(
        "{rows:>7} x {dimension:<4} {:<9} approximate: build {built:>6.2} s   {probes:>4} of {groups} groups   \
         {:>8.3} ms   exact {:>8.3} ms   recall {:.3}",
        if clustered { "clustered" } else { "uniform" },
        quartile(approximate) * 1e3,
        quartile(exact) * 1e3,
        found as f64 / (K * queries.len()) as f64,
    );
}

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let sizes = if sizes.is_empty() {
        vec![1_000, 10_000, 100_000]
    } else {
        sizes
    };
    println!("kernels: {}", kernels().name);
    for rows in sizes {
        for dimension in [384, 1536, 3072] {
            for clustered in [true, false] {
                measure(rows, dimension, clustered);
                if rows >= 10_000 {
                    measure_approximate(rows, dimension, clustered);
                }
            }
        }
    }
}
