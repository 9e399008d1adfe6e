//! Approximate search: rows are grouped around centroids, and a query looks into some groups only.
//!
//! This is an inverted file (IVF). A group is a set of row numbers, so that nothing is stored
//! twice and no row moves: [`Partitions::select`] gives the rows worth looking at as a filter, and
//! the search among them is the exact one. How many groups to look into is not a setting. It is
//! measured when the groups are made, on rows of the block itself, as what finds [`RECALL`] of
//! their true neighbours. Where the vectors do not cluster, that is all groups, and the search is
//! the exact one. Queries unlike the rows may find fewer.

use std::cmp::Ordering;
use std::convert::Infallible;

use super::bitmap::{Bitmap, eligible_rows};
use super::quantize::{Metric, Query, VectorError};
use super::scan::{Found, Hit, RowRef, ScanBlock, Search};
use super::segment::{CodeBlock, Tail};

/// The share of the true neighbours that is to be found.
const RECALL: f64 = 0.99;
/// How many neighbours of a row are looked for to measure that. A search for more may find fewer
/// of them.
pub const NEIGHBOURS: usize = 32;
/// How many rows are looked up to measure it.
const TRIALS: usize = 128;
/// Rows per group that take part in finding the centroids.
const SAMPLE: usize = 32;
/// Rounds of k-means; more moves the centroids little.
const ROUNDS: usize = 6;

/// Why there are no groups.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// Told not to go on.
    #[error("stopped before all rows were grouped")]
    Stopped,
    /// Rows that no release writes.
    #[error(transparent)]
    Vector(#[from] VectorError),
}

/// Groups of the rows of one block.
pub struct Partitions {
    centroids: Tail,
    /// The rows of each group, ascending.
    groups: Vec<Vec<u32>>,
    /// How many groups a query looks into.
    probes: usize,
    rows: usize,
}

impl Partitions {
    /// Groups the rows of a block that are not deleted, in about the square root of their number.
    ///
    /// Takes some 30 µs per row at 1536 dimensions, and asks every few of them whether to `go_on`.
    /// Each call gives the same groups.
    pub fn build(
        block: &CodeBlock<'_>,
        deleted: Option<&[u64]>,
        metric: Metric,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Self, PartitionError> {
        let live: Vec<u32> = eligible_rows(block.len(), None, deleted)
            .map(|row| row as u32)
            .collect();
        // A group is a set of rows near each other: for inner products too, by distance.
        let nearness = if metric == Metric::Cosine {
            Metric::Cosine
        } else {
            Metric::L2
        };
        let count = live.len().isqrt();
        let sample: Vec<Query> = shuffled(&live)
            .take(count * SAMPLE)
            .map(|row| Query::new(&decode(block, row as usize), nearness))
            .collect::<Result<_, VectorError>>()?;
        let centroids = centroids(block.dimension, count, &sample, go_on)?;

        let mut groups = vec![Vec::new(); count];
        for &row in &live {
            may(go_on)?;
            let query = Query::new(&decode(block, row as usize), nearness)?;
            if let Some(group) = ranked(&centroids, &query, 1)?.first() {
                groups[group.id as usize].push(row);
            }
        }
        let mut partitions = Self {
            centroids,
            groups,
            probes: 0,
            rows: block.len(),
        };
        partitions.probes = partitions.measure(block, deleted, metric, &live, go_on)?;
        Ok(partitions)
    }

    /// The number of rows that the block had.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of groups, and how many of them a query looks into.
    pub fn probes(&self) -> (usize, usize) {
        (self.groups.len(), self.probes)
    }

    /// The rows to search, of a block that has grown to `rows` rows: those of the groups nearest
    /// to the query, and those that came after the groups were made.
    pub fn select(&self, query: &Query, rows: usize) -> Result<Bitmap, VectorError> {
        let mut selected: Bitmap = (self.rows..rows).collect();
        for group in ranked(&self.centroids, query, self.probes)? {
            for &row in &self.groups[group.id as usize] {
                selected.insert(row as usize);
            }
        }
        Ok(selected)
    }

    /// How many groups have to be looked into to find [`RECALL`] of the neighbours of some rows.
    fn measure(
        &self,
        block: &CodeBlock<'_>,
        deleted: Option<&[u64]>,
        metric: Metric,
        live: &[u32],
        go_on: &dyn Fn() -> bool,
    ) -> Result<usize, PartitionError> {
        let mut group_of = vec![0; block.len()];
        for (group, rows) in self.groups.iter().enumerate() {
            for &row in rows {
                group_of[row as usize] = group;
            }
        }
        let blocks = [ScanBlock {
            block: *block,
            filter: None,
            deleted,
        }];
        // The rank of the group of each neighbour, among the groups as a query visits them.
        let mut ranks = Vec::new();
        let mut rank_of = vec![0; self.groups.len()];
        for row in shuffled(live).take(TRIALS) {
            may(go_on)?;
            let query = Query::new(&decode(block, row as usize), metric)?;
            for (rank, group) in ranked(&self.centroids, &query, usize::MAX)?
                .iter()
                .enumerate()
            {
                rank_of[group.id as usize] = rank;
            }
            let search = Search::new(&blocks, &query, NEIGHBOURS + 1, None)?;
            let fetch = |at: RowRef, _, out: &mut [f32]| {
                out.copy_from_slice(&decode(block, at.row as usize));
                Ok(())
            };
            let hits = hits(search.run(fetch, by_row));
            // A row finds itself, in the first group.
            let others = hits.iter().filter(|hit| hit.at.row != row);
            ranks.extend(others.map(|hit| rank_of[group_of[hit.at.row as usize]]));
        }
        ranks.sort_unstable();
        let enough = (RECALL * ranks.len() as f64).ceil() as usize;
        let all = self.groups.len();
        let measured = ranks
            .get(enough.saturating_sub(1))
            .map_or(all, |rank| rank + 1);
        // Half as many again: a row has drawn its centroid to itself, and a query has not. Beyond
        // half of the groups little is saved, and the search may as well be exact.
        let probes = measured + measured.div_ceil(2);
        Ok(if probes <= all / 2 { probes } else { all })
    }
}

/// K-means: `count` centres of the rows in `sample`.
fn centroids(
    dimension: usize,
    count: usize,
    sample: &[Query],
    go_on: &dyn Fn() -> bool,
) -> Result<Tail, PartitionError> {
    let collect = |vectors: &mut dyn Iterator<Item = &[f32]>| {
        let mut tail = Tail::new(dimension, true)?;
        for (group, vector) in vectors.enumerate() {
            tail.append(group as i64, vector)?;
        }
        Ok::<_, VectorError>(tail)
    };
    let mut centroids = collect(&mut sample.iter().take(count).map(Query::vector))?;
    for _ in 0..ROUNDS {
        let mut sums = vec![vec![0.0_f64; dimension]; count];
        let mut members = vec![0_u32; count];
        for query in sample {
            may(go_on)?;
            if let Some(group) = ranked(&centroids, query, 1)?.first() {
                let group = group.id as usize;
                members[group] += 1;
                for (sum, &x) in sums[group].iter_mut().zip(query.vector()) {
                    *sum += f64::from(x);
                }
            }
        }
        let means: Vec<Vec<f32>> = sums
            .iter()
            .zip(&members)
            .enumerate()
            .map(|(group, (sums, &members))| match members {
                // A group that lost its rows starts again elsewhere.
                0 => sample[(group + count) % sample.len()].vector().to_vec(),
                _ => sums
                    .iter()
                    .map(|sum| (sum / f64::from(members)) as f32)
                    .collect(),
            })
            .collect();
        centroids = collect(&mut means.iter().map(Vec::as_slice))?;
    }
    Ok(centroids)
}

/// The `count` best centroids for a query, best first; the id of each is its group.
fn ranked(centroids: &Tail, query: &Query, count: usize) -> Result<Vec<Hit>, VectorError> {
    let blocks = [ScanBlock {
        block: centroids.block(),
        filter: None,
        deleted: None,
    }];
    // The tail has the vectors: nothing is fetched.
    Ok(hits(
        Search::new(&blocks, query, count, None)?.run(|_, _, _| Ok(()), by_row),
    ))
}

fn may(go_on: &dyn Fn() -> bool) -> Result<(), PartitionError> {
    if go_on() {
        Ok(())
    } else {
        Err(PartitionError::Stopped)
    }
}

fn hits(found: Result<Found, Infallible>) -> Vec<Hit> {
    let Ok(found) = found;
    found.hits
}

fn by_row(a: &Hit, b: &Hit) -> Ordering {
    a.at.cmp(&b.at)
}

/// A row as its codes have it, which is near enough to group it.
pub(crate) fn decode(block: &CodeBlock<'_>, row: usize) -> Vec<f32> {
    block
        .codes_of(row)
        .iter()
        .map(|&code| f32::from(code) * block.scales[row])
        .collect()
}

/// Rows drawn at random, the same ones in each call, each at most once: every `n`-th row would be
/// misled by data that comes in a pattern.
pub(crate) fn shuffled(rows: &[u32]) -> impl Iterator<Item = u32> {
    let mut order: Vec<u32> = rows.to_vec();
    // An odd multiplier permutes the numbers of 64 bits, so that no two keys are equal.
    order.sort_unstable_by_key(|&row| {
        let mixed = (u64::from(row) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93)
    });
    order.into_iter()
}

#[cfg(test)]
mod tests;
