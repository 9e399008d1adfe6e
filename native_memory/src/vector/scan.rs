//! The search: codes first, float32 for the few rows that need it.
//!
//! [`Search::scan`] goes over the codes of the rows that a filter allows. It keeps the `k`-th best
//! *lower* bound seen so far, and every row whose *upper* bound reaches it. [`Search::finish`]
//! computes the true scores of those, best upper bound first, until the next upper bound cannot
//! reach the `k`-th best true score. The result is that of computing every score. Where a row's
//! head or sketch proves that its score cannot reach, its codes are not read ([`super::sketch`]).
//!
//! One thread calls [`Search::run`]. Several divide [`Search::chunks`] among them in any way, each
//! with [`Candidates`] of its own; a bound that one finds helps the others at once.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering as Memory};

use super::bitmap::{WORD, eligible};
use super::kernels::kernels;
use super::quantize::{Bounds, Query, RowCode, VectorError};
use super::segment::CodeBlock;
use super::sketch::{Probe, Trial, in_a_row};

/// Rows of a chunk: enough to make its overhead vanish, few enough to share work evenly.
const CHUNK_ROWS: usize = 4096;

/// Bytes of codes from which on sharing a search among threads pays: what no cache holds and takes
/// a millisecond to read. Below, two threads were measured to be slower than one.
const LARGE: usize = 32 << 20;

/// Rows of a batch; see [`Batch`]. A multiple of [`WORD`].
const BATCH: usize = 512;

/// Rows whose codes take longer to read than preparing a query for their heads does.
const PREPARED: usize = if cfg!(test) { 1 } else { 512 };

/// Rows of a sample that are looked at first: those with the best heads.
const FIRST: usize = 64;

/// Rows that were not told off until they are looked at: enough to be fetched ahead, and few
/// enough that what they say of the limit is known soon.
const ENOUGH: usize = 64;

/// Candidates that are kept before those that the limit has overtaken are dropped.
const COMPACT_AT: usize = 4096;

/// The rows of one block that a search may return.
#[derive(Clone, Copy)]
pub struct ScanBlock<'a> {
    /// The rows.
    pub block: CodeBlock<'a>,
    /// The rows to consider, in words as [`super::Bitmap::words`] gives them; without one, all.
    /// Rows beyond its end are not considered.
    pub filter: Option<&'a [u64]>,
    /// The rows that are deleted, in the same form. Rows beyond its end are not.
    pub deleted: Option<&'a [u64]>,
}

impl ScanBlock<'_> {
    fn eligible(&self, word: usize) -> u64 {
        eligible(word, self.block.len(), self.filter, self.deleted)
    }

    fn count(&self) -> usize {
        (0..self.words())
            .map(|word| self.eligible(word).count_ones() as usize)
            .sum()
    }

    fn words(&self) -> usize {
        self.block.len().div_ceil(WORD)
    }
}

/// A row: the position of its block in the search, and its number in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowRef {
    /// The block.
    pub block: u32,
    /// The row.
    pub row: u32,
}

/// A row of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The true score.
    pub score: f64,
    /// The row's id in its block.
    pub id: i64,
    /// Where it is.
    pub at: RowRef,
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// At most `k` rows, best first.
    pub hits: Vec<Hit>,
    /// How many true scores had to be computed.
    pub rescored: usize,
}

/// A part of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    block: usize,
    words: Range<usize>,
    /// Every word in so many.
    step: usize,
}

#[derive(Clone, Copy)]
struct Candidate {
    bounds: Bounds,
    at: RowRef,
}

impl Candidate {
    /// Whether the row cannot reach the limit.
    fn is_below(&self, limit: f64) -> bool {
        self.bounds.upper < limit
    }
}

/// Rows whose codes are read together, and what is computed of them. Arrays and not vectors: they
/// stay in the first-level cache.
struct Batch {
    len: usize,
    rows: [u32; BATCH],
    products: [f64; BATCH],
    norms: [f64; BATCH],
    codes: [RowCode; BATCH],
    upper: [f64; BATCH],
    /// What heads tell of products.
    partial: [f64; BATCH],
}

impl Batch {
    fn new() -> Self {
        let code = RowCode {
            scale: 0.0,
            residual: 0.0,
            norm: 0.0,
        };
        Self {
            len: 0,
            rows: [0; BATCH],
            products: [0.0; BATCH],
            norms: [0.0; BATCH],
            codes: [code; BATCH],
            upper: [0.0; BATCH],
            partial: [0.0; BATCH],
        }
    }

    /// Takes other rows, at most [`BATCH`].
    fn set(&mut self, rows: &[u32]) {
        self.len = rows.len();
        self.rows[..rows.len()].copy_from_slice(rows);
    }
}

/// What one thread found.
#[derive(Default)]
pub struct Candidates {
    rows: Vec<Candidate>,
    compact_at: usize,
    lower: Best,
    trial: Trial,
    /// The same of sketches alone, for rows that heads leave.
    finer: Trial,
    /// Rows of a block that do not fill a batch yet: where a filter leaves few, those of many
    /// parts are read together, so that each is fetched from memory while others are looked at.
    pending: Option<(usize, Box<Batch>)>,
    /// Rows of a block that heads and sketches left, to be read together for the same reason.
    waiting: (usize, Vec<u32>),
}

/// The largest numbers pushed so far, at most `k` of them.
#[derive(Default)]
struct Best(BinaryHeap<Reverse<Total>>);

impl Best {
    /// Takes a number and returns the `k`-th largest, once there are `k`.
    fn push(&mut self, number: f64, k: usize) -> Option<f64> {
        if self.0.len() < k {
            self.0.push(Reverse(Total(number)));
        } else if let Some(mut least) = self.0.peek_mut()
            && Total(number) > least.0
        {
            *least = Reverse(Total(number));
        }
        if self.0.len() < k {
            None
        } else {
            self.0.peek().map(|least| least.0.0)
        }
    }
}

/// An f64 in the total order.
struct Total(f64);

impl Ord for Total {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl PartialOrd for Total {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Total {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Total {}

/// One search over some blocks.
pub struct Search<'a> {
    blocks: &'a [ScanBlock<'a>],
    query: &'a Query,
    /// For the sketches of each block.
    probes: Vec<Option<Probe<'a>>>,
    k: usize,
    min_score: f64,
    /// How many rows the filters allow.
    eligible: usize,
    /// The bits of the highest limit that any thread has found: see [`Query::limit_for_rank`].
    limit: AtomicU64,
}

impl<'a> Search<'a> {
    /// Prepares a search for the `k` best rows with at least `min_score`.
    pub fn new(
        blocks: &'a [ScanBlock<'a>],
        query: &'a Query,
        k: usize,
        min_score: Option<f64>,
    ) -> Result<Self, VectorError> {
        for ScanBlock { block, .. } in blocks {
            if block.dimension != query.dimension() {
                let (expected, found) = (block.dimension, query.dimension());
                return Err(VectorError::Dimension { expected, found });
            }
        }
        let min_score = min_score.unwrap_or(f64::NEG_INFINITY);
        let counts: Vec<usize> = blocks.iter().map(ScanBlock::count).collect();
        let probe = |(rows, &count): (&ScanBlock<'a>, &usize)| {
            let sketches = rows.block.sketches?;
            (sketches.heads.is_none() || PREPARED <= count)
                .then(|| Probe::new(query, sketches))
                .flatten()
        };
        Ok(Self {
            blocks,
            query,
            probes: blocks.iter().zip(&counts).map(probe).collect(),
            k,
            min_score,
            eligible: counts.iter().sum(),
            limit: AtomicU64::new(query.limit_for_score(min_score).to_bits()),
        })
    }

    /// Whether several threads finish sooner than one, if there are processors for them.
    pub fn is_large(&self) -> bool {
        self.eligible * self.query.codes().stride() >= LARGE
    }

    /// The parts of the search, each to be passed to [`Search::scan`] once, in any order.
    ///
    /// The first are a sample of each block: what is like the query may all lie in one place, and
    /// the sooner some of it is known, the more of everything else is told off.
    pub fn chunks(&self) -> Vec<Chunk> {
        const WORDS: usize = CHUNK_ROWS / WORD;
        let (mut samples, mut others) = (Vec::new(), Vec::new());
        for (block, rows) in self.blocks.iter().enumerate() {
            let words = rows.words();
            let chunk = |words, step| Chunk { block, words, step };
            samples.push(chunk(0..words, WORDS));
            others.extend((0..words).step_by(WORDS).map(|start| {
                let end = words.min(start + WORDS);
                chunk(start + 1..end, 1)
            }));
        }
        samples.extend(others);
        samples
    }

    /// Goes over the codes of one part and adds the rows that may be in the result; the last few
    /// with the next part, or when the search is finished.
    pub fn scan(&self, chunk: &Chunk, found: &mut Candidates) {
        if self.k == 0 {
            return;
        }
        let mut batch = match found.pending.take() {
            Some((block, mut batch)) => {
                if block != chunk.block {
                    self.tell_off(block, &mut batch, found);
                }
                batch
            }
            None => Box::new(Batch::new()),
        };
        if chunk.step > 1 {
            self.tell_off(chunk.block, &mut batch, found);
            // What a sample says is wanted before anything else is read. Nothing leaves out the
            // first rows, so they are no more than it takes to leave out others.
            let (rows, first) = self.best_first(chunk, &mut batch);
            let (first, others) = rows.split_at(first);
            for rows in first.chunks(BATCH).chain(others.chunks(BATCH)) {
                batch.set(rows);
                self.tell_off(chunk.block, &mut batch, found);
            }
            self.look_at_waiting(&mut batch, found);
        } else {
            self.words(chunk, |first, mut bits| {
                if batch.len + WORD > BATCH {
                    self.tell_off(chunk.block, &mut batch, found);
                }
                if bits == u64::MAX {
                    let rows = &mut batch.rows[batch.len..][..WORD];
                    rows.iter_mut()
                        .zip(first..)
                        .for_each(|(row, number)| *row = number);
                    batch.len += WORD;
                    return;
                }
                while bits != 0 {
                    batch.rows[batch.len] = first + bits.trailing_zeros();
                    batch.len += 1;
                    bits &= bits - 1;
                }
            });
        }
        found.pending = Some((chunk.block, batch));
    }

    /// Calls `each` with the first row of each word of a part, and the bits of those rows of the
    /// word that may be in the result.
    fn words(&self, chunk: &Chunk, mut each: impl FnMut(u32, u64)) {
        let source = &self.blocks[chunk.block];
        for word in chunk.words.clone().step_by(chunk.step) {
            each((word * WORD) as u32, source.eligible(word));
        }
    }

    /// The rows of a part, and how many of them, the best by their heads, come before all others.
    fn best_first(&self, chunk: &Chunk, batch: &mut Batch) -> (Vec<u32>, usize) {
        let mut rows = Vec::new();
        self.words(chunk, |first, bits| {
            rows.extend(
                (0..WORD as u32)
                    .filter(|bit| bits >> bit & 1 == 1)
                    .map(|bit| first + bit),
            );
        });
        let first = self.k.saturating_mul(2).max(FIRST);
        let heads = self.probes[chunk.block]
            .as_ref()
            .filter(|probe| probe.has_heads());
        let Some(probe) = heads.filter(|_| first < rows.len()) else {
            let first = first.min(rows.len());
            return (rows, first);
        };
        let block = &self.blocks[chunk.block].block;
        let mut ranked = Vec::with_capacity(rows.len());
        for rows in rows.chunks(BATCH) {
            batch.set(rows);
            probe.most_by_head(
                rows,
                &mut batch.partial[..rows.len()],
                &mut batch.products[..rows.len()],
            );
            self.rank(block, batch);
            ranked.extend(batch.upper.iter().copied().zip(rows.iter().copied()));
        }
        batch.len = 0;
        ranked.select_nth_unstable_by(first, |a, b| b.0.total_cmp(&a.0));
        // In storage order they are read faster.
        ranked[..first].sort_unstable_by_key(|&(_, row)| row);
        ranked[first..].sort_unstable_by_key(|&(_, row)| row);
        (ranked.into_iter().map(|(_, row)| row).collect(), first)
    }

    /// Looks at those of a batch's rows that heads and sketches leave, or lets them wait.
    fn tell_off(&self, number: usize, batch: &mut Batch, found: &mut Candidates) {
        if batch.len == 0 {
            return;
        }
        let known = self.limit();
        if let Some(probe) = &self.probes[number]
            && known > f64::NEG_INFINITY
            && found.trial.next()
        {
            let before = batch.len;
            let block = &self.blocks[number].block;
            self.leave_out(block, probe, batch, known, &mut found.finer);
            if found.trial.left(before, batch.len) {
                if found.waiting.0 != number {
                    let rows = (batch.len, batch.rows);
                    self.look_at_waiting(batch, found);
                    (batch.len, batch.rows) = rows;
                    found.waiting.0 = number;
                }
                found.waiting.1.extend_from_slice(&batch.rows[..batch.len]);
                batch.len = 0;
                if found.waiting.1.len() >= ENOUGH {
                    self.look_at_waiting(batch, found);
                }
                return;
            }
            // Next time, both are tried.
            found.finer = Trial::default();
        }
        self.keep(number, batch, found);
    }

    /// Looks at the rows that wait. The batch is used for that.
    fn look_at_waiting(&self, batch: &mut Batch, found: &mut Candidates) {
        let (number, mut waiting) = std::mem::take(&mut found.waiting);
        for rows in waiting.chunks(BATCH) {
            batch.set(rows);
            self.keep(number, batch, found);
        }
        waiting.clear();
        found.waiting = (number, waiting);
    }

    /// Adds those of a batch's rows whose upper bounds reach the limit, and raises the limit.
    fn keep(&self, number: usize, batch: &mut Batch, found: &mut Candidates) {
        let block = &self.blocks[number].block;
        let known = self.limit();
        let rows = &batch.rows[..batch.len];
        let (products, codes) = (
            &mut batch.products[..rows.len()],
            &mut batch.codes[..rows.len()],
        );
        let upper = &mut batch.upper[..rows.len()];
        batch.len = 0;
        (kernels().products)(self.query.codes(), block.codes, rows, products);
        for (code, &row) in codes.iter_mut().zip(rows) {
            *code = block.row_code(row as usize);
        }
        self.query.upper_bounds(products, codes, upper);

        let mut limit = known;
        for (i, &upper) in upper.iter().enumerate() {
            // NaN out of damaged columns does not count as below: then the true score decides.
            if upper < limit {
                continue;
            }
            let bounds = self.query.bounds(products[i], codes[i]);
            let at = RowRef {
                block: number as u32,
                row: rows[i],
            };
            found.rows.push(Candidate { bounds, at });
            // If not more rows are allowed than asked for, there is nothing to prune.
            if self.k < self.eligible
                && let Some(rank) = found.lower.push(bounds.lower, self.k)
            {
                limit = limit.max(self.query.limit_for_rank(rank));
            }
        }
        if limit > known {
            self.raise_limit(limit);
        }
        if found.rows.len() >= found.compact_at.max(COMPACT_AT) {
            found.rows.retain(|candidate| !candidate.is_below(limit));
            found.compact_at = 2 * found.rows.len();
        }
    }

    /// Takes those rows out of a batch whose heads or sketches prove that they cannot reach the
    /// limit.
    fn leave_out(
        &self,
        block: &CodeBlock<'_>,
        probe: &Probe<'_>,
        batch: &mut Batch,
        limit: f64,
        finer: &mut Trial,
    ) {
        let count = batch.len;
        let partial = &mut batch.partial[..count];
        probe.most_by_head(&batch.rows[..count], partial, &mut batch.products[..count]);
        if probe.has_heads() {
            self.drop_below(block, batch, limit);
            if batch.len == 0 || !finer.next() {
                return;
            }
        }
        let left = batch.len;
        let rows = &batch.rows[..left];
        probe.most(rows, &batch.partial[..left], &mut batch.products[..left]);
        self.drop_below(block, batch, limit);
        if probe.has_heads() {
            finer.left(left, batch.len);
        }
    }

    /// Takes those rows out of a batch that cannot reach the limit, given at least their products.
    fn drop_below(&self, block: &CodeBlock<'_>, batch: &mut Batch, limit: f64) {
        /// Rows that are mostly told off together.
        const SOME: usize = 8;
        self.rank(block, batch);
        let count = std::mem::take(&mut batch.len);
        for start in (0..count).step_by(SOME) {
            let end = count.min(start + SOME);
            // NaN does not count as below; see `keep`.
            let below = |upper: f64| upper < limit;
            let told_off = |all, &upper: &f64| all & below(upper);
            if batch.upper[start..end].iter().fold(true, told_off) {
                continue;
            }
            for at in start..end {
                // Without a branch: whether a row is left is hard to foresee.
                batch.rows[batch.len] = batch.rows[at];
                batch.partial[batch.len] = batch.partial[at];
                batch.len += usize::from(!below(batch.upper[at]));
            }
        }
    }

    /// Writes at least the rank of each row of a batch, given at least their products.
    fn rank(&self, block: &CodeBlock<'_>, batch: &mut Batch) {
        let (rows, norms) = (&batch.rows[..batch.len], &mut batch.norms[..batch.len]);
        if let Some(rows) = in_a_row(rows) {
            norms.copy_from_slice(&block.norms[rows]);
        } else {
            for (norm, &row) in norms.iter_mut().zip(rows) {
                *norm = block.norms[row as usize];
            }
        }
        let (dots, upper) = (&batch.products[..batch.len], &mut batch.upper[..batch.len]);
        self.query.most(dots, norms, upper);
    }

    fn limit(&self) -> f64 {
        // Relaxed: the number guards no other memory, and an old one is only less sharp.
        f64::from_bits(self.limit.load(Memory::Relaxed))
    }

    fn raise_limit(&self, limit: f64) {
        let higher = |bits| (limit > f64::from_bits(bits)).then_some(limit.to_bits());
        // An error says that another thread has found a higher one.
        let _ = self
            .limit
            .fetch_update(Memory::Relaxed, Memory::Relaxed, higher);
    }

    /// Computes the true scores that are needed and returns the result.
    ///
    /// `found` is what all scans together left. `fetch` writes the vector of a row, given where
    /// the row is and its id, for blocks that do not have the vectors themselves; its error ends
    /// the search. Rows with the same score are ordered by `ties`.
    pub fn finish<E>(
        &self,
        found: impl IntoIterator<Item = Candidates>,
        mut fetch: impl FnMut(RowRef, i64, &mut [f32]) -> Result<(), E>,
        mut ties: impl FnMut(&Hit, &Hit) -> Ordering,
    ) -> Result<Found, E> {
        let mut candidates = self.merge(found);
        // What follows the first k in this order may not have to be computed. They do; in storage
        // order they are read faster.
        let first = candidates.len().min(self.k);
        if first < candidates.len() {
            candidates.sort_unstable_by(|a, b| {
                b.bounds
                    .upper
                    .total_cmp(&a.bounds.upper)
                    .then(a.at.cmp(&b.at))
            });
        }
        candidates[..first].sort_unstable_by_key(|candidate| candidate.at);

        let mut hits = Vec::with_capacity(first);
        let mut best = Best::default();
        let mut enough = None;
        let mut rescored = 0;
        let mut buffer = vec![0.0; self.query.dimension()];
        for candidate in candidates {
            if enough.is_some_and(|score| self.query.score_for_rank(candidate.bounds.upper) < score)
            {
                break;
            }
            let at = candidate.at;
            let (block, row) = (&self.blocks[at.block as usize].block, at.row as usize);
            let id = block.ids[row];
            let vector = if let Some(vector) = block.vector(row) {
                vector
            } else {
                fetch(at, id, &mut buffer)?;
                &buffer
            };
            let score = self.query.score(vector, block.norms[row]);
            rescored += 1;
            if score >= self.min_score && enough.is_none_or(|enough| score >= enough) {
                hits.push(Hit { score, id, at });
                enough = best.push(score, self.k);
            }
        }

        let mut order = |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then_with(|| ties(a, b));
        if hits.len() > self.k {
            hits.select_nth_unstable_by(self.k, &mut order);
            hits.truncate(self.k);
        }
        hits.sort_unstable_by(order);
        Ok(Found { hits, rescored })
    }

    /// All candidates that the common limit leaves.
    fn merge(&self, found: impl IntoIterator<Item = Candidates>) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = Vec::new();
        for mut part in found {
            if let Some((block, mut batch)) = part.pending.take() {
                self.tell_off(block, &mut batch, &mut part);
                self.look_at_waiting(&mut batch, &mut part);
            }
            if all.is_empty() {
                all = part.rows;
            } else {
                all.extend(part.rows);
            }
        }
        let mut limit = self.limit();
        if 0 < self.k && self.k < all.len() {
            let mut lower: Vec<f64> = all.iter().map(|candidate| candidate.bounds.lower).collect();
            let (_, rank, _) = lower.select_nth_unstable_by(self.k - 1, |a, b| b.total_cmp(a));
            limit = limit.max(self.query.limit_for_rank(*rank));
        }
        all.retain(|candidate| !candidate.is_below(limit));
        all
    }

    /// The whole search, in this thread; see [`Search::finish`].
    pub fn run<E>(
        &self,
        fetch: impl FnMut(RowRef, i64, &mut [f32]) -> Result<(), E>,
        ties: impl FnMut(&Hit, &Hit) -> Ordering,
    ) -> Result<Found, E> {
        let mut found = Candidates::default();
        for chunk in self.chunks() {
            self.scan(&chunk, &mut found);
        }
        self.finish([found], fetch, ties)
    }
}

#[cfg(test)]
pub(crate) mod tests;
