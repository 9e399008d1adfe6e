//! The search: codes first, float32 for the few rows that need it.
//!
//! [`Search::scan`] goes over the codes of the rows that a filter allows. It keeps the `k`-th best
//! *lower* bound seen so far, and every row whose *upper* bound reaches it. [`Search::finish`]
//! computes the true scores of those, best upper bound first, until the next upper bound cannot
//! reach the `k`-th best true score. Before that, fine codes narrow the bounds of what the codes left.
//! The result is that of computing every score. Where a row's head or sketch proves that its score
//! cannot reach, its codes are not read ([`super::sketch`]).
//!
//! Where rows are around hubs ([`super::hubs`]), the words whose hubs promise most say first what the
//! limit may be ([`Search::survey`]), and words that cannot reach it are passed over. The heads of all
//! others are read ([`Search::weigh`]), so that the rows which they speak best of are the next whose
//! codes are looked at ([`Search::begin`]), wherever they lie and however few there are: what these say
//! of the limit tells off the rest.
//!
//! One thread calls [`Search::run`]. Several divide [`Search::chunks`] among them in any way, and
//! then what has been weighed, each with [`Candidates`] of its own; a bound that one finds helps
//! the others at once.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering as Memory};

use super::aligned::Lines;
use super::bitmap::{WORD, eligible};
use super::kernels::{kernels, widely};
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

/// Rows that are looked at first: those with the best heads.
const FIRST: usize = 64;

/// Rows that are mostly told off together.
const TOGETHER: usize = 8;

/// In place of a bound: the row is not to be looked at, or has been.
const NONE: f32 = f32::NEG_INFINITY;

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
}

/// A part of a search, and what the heads of its rows say; see [`Search::weigh`].
pub struct Weighed {
    chunk: Chunk,
    /// At least the rank of each row, [`rounded`], or [`NONE`]. Empty if the rows have no heads.
    upper: Vec<f32>,
    /// The highest of each word.
    highest: Vec<f32>,
}

impl Weighed {
    /// Rows without heads that are looked at first.
    fn sample(&self) -> Chunk {
        let Range { start, end } = self.chunk.words;
        Chunk {
            words: start..end.min(start + 1),
            ..self.chunk
        }
    }

    /// The rows that are not in the sample.
    fn others(&self) -> Chunk {
        let Range { start, end } = self.chunk.words;
        Chunk {
            words: end.min(start + 1)..end,
            ..self.chunk
        }
    }
}

/// The highest bound of a word; in lanes, so that the compiler vectorises it.
#[inline]
fn highest_of(word: &[f32; WORD]) -> f32 {
    let higher = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [NONE; TOGETHER];
    for some in word.as_chunks::<TOGETHER>().0 {
        for (lane, &upper) in lanes.iter_mut().zip(some) {
            *lane = higher(upper, *lane);
        }
    }
    lanes.into_iter().fold(NONE, higher)
}

/// Leaves the `count` highest, in any order.
fn keep_best(count: usize, all: &mut Vec<(f32, usize, usize)>) {
    if count < all.len() {
        all.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0));
        all.truncate(count);
    }
}

/// A rank as f32, to be compared with a limit as f32: rounding keeps the order of numbers, so that
/// a rank that reaches the limit still does. NaN, which is below no limit, is above all.
fn rounded(rank: f64) -> f32 {
    let near = rank as f32;
    if near < f32::MIN {
        f32::MIN
    } else if near.is_nan() {
        f32::INFINITY
    } else {
        near
    }
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

    /// The best upper bound first.
    fn by_upper(&self, other: &Self) -> Ordering {
        other.bounds.upper.total_cmp(&self.bounds.upper)
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

    /// Adds those rows of a word whose bits are set. There must be room for all.
    fn add(&mut self, first: u32, mut bits: u64) {
        if bits == u64::MAX {
            let rows = &mut self.rows[self.len..][..WORD];
            rows.iter_mut()
                .zip(first..)
                .for_each(|(row, number)| *row = number);
            self.len += WORD;
            return;
        }
        while bits != 0 {
            self.rows[self.len] = first + bits.trailing_zeros();
            self.len += 1;
            bits &= bits - 1;
        }
    }

    /// Computes what heads say of the rows' products; see [`Probe::most_by_head`].
    fn by_heads(&mut self, probe: &Probe<'_>) {
        let rows = &self.rows[..self.len];
        let (partial, products) = (
            &mut self.partial[..self.len],
            &mut self.products[..self.len],
        );
        probe.most_by_head(rows, partial, products);
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
    /// Of the sketches of all rows, and of those that heads leave.
    trial: Trial,
    finer: Trial,
    /// Rows of a block that do not fill a batch yet: where few of many parts are looked at, they
    /// are read together, so that each is fetched from memory while others are looked at.
    pending: Option<(usize, Box<Batch>)>,
    /// Rows of a block that sketches left, to be read together for the same reason.
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
    /// At least the rank of each word of each block, [`rounded`]; empty for blocks without hubs.
    words: Vec<Vec<f32>>,
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
        let eligible: usize = counts.iter().sum();
        let probe = |(rows, &count): (&ScanBlock<'a>, &usize)| {
            // If not more rows are allowed than asked for, there is nothing to tell off.
            let sketches = rows.block.sketches.filter(|_| k < eligible)?;
            (sketches.heads.is_none() || PREPARED <= count)
                .then(|| Probe::new(query, sketches))
                .flatten()
        };
        let mut search = Self {
            blocks,
            query,
            probes: blocks.iter().zip(&counts).map(probe).collect(),
            words: Vec::new(),
            k,
            min_score,
            eligible,
            limit: AtomicU64::new(query.limit_for_score(min_score).to_bits()),
        };
        search.survey();
        Ok(search)
    }

    /// Sees what the hubs promise, and raises the limit by what the best rows around the best of them
    /// say.
    fn survey(&mut self) {
        self.words = (0..self.blocks.len())
            .map(|block| self.most_by_hub(block))
            .collect();
        let wanted = self.k.saturating_mul(2).max(FIRST);
        // Where much of everything is wanted, little can be told off.
        if self.k == 0 || wanted > self.eligible / 4 {
            return;
        }
        let mut best: Vec<(f32, usize, usize)> = Vec::new();
        for (block, words) in self.words.iter().enumerate() {
            let words = words.iter().enumerate();
            best.extend(words.map(|(word, &upper)| (upper, block, word)));
        }
        // Of their rows, which are many more than are wanted, the best are looked at.
        keep_best(wanted / 2, &mut best);
        best.sort_unstable_by_key(|&(_, block, word)| (block, word));
        let mut rows = Vec::new();
        let mut batch = Box::new(Batch::new());
        for words in best.chunk_by(|a, b| a.1 == b.1) {
            let number = words[0].1;
            let Some(probe) = self.heads(number) else {
                continue;
            };
            for words in words.chunks(BATCH / WORD) {
                for &(_, block, word) in words {
                    batch.add((word * WORD) as u32, self.blocks[block].eligible(word));
                }
                batch.by_heads(probe);
                self.rank(&self.blocks[number].block, &mut batch);
                let ranks = batch.rows.iter().zip(&batch.upper).take(batch.len);
                rows.extend(ranks.map(|(&row, &rank)| (rounded(rank), number, row as usize)));
                batch.len = 0;
            }
        }
        keep_best(wanted, &mut rows);
        rows.sort_unstable_by_key(|&(_, block, row)| (block, row));
        // What is found is not kept: each row is found again in its turn.
        let mut found = Candidates::default();
        for rows in rows.chunk_by(|a, b| a.1 == b.1) {
            for rows in rows.chunks(BATCH) {
                for (place, &(_, _, row)) in batch.rows.iter_mut().zip(rows) {
                    *place = row as u32;
                }
                batch.len = rows.len();
                self.keep(rows[0].1, &mut batch, &mut found);
            }
        }
    }

    /// At least the rank of each word of a block, if it has hubs.
    fn most_by_hub(&self, number: usize) -> Vec<f32> {
        let sketches = self.blocks[number].block.sketches;
        let hubs = sketches.and_then(|sketches| sketches.heads?.hubs);
        let (Some(probe), Some(hubs)) = (self.heads(number), hubs) else {
            return Vec::new();
        };
        let ranks = hubs.most(self.query, &probe.most_by_hub(&hubs));
        ranks.into_iter().map(rounded).collect()
    }

    /// Whether several threads weigh the parts sooner than one, if there are processors for them.
    pub fn is_large(&self) -> bool {
        let limit = self.limit() as f32;
        let told_off = self.words.iter().flatten().filter(|&&most| most < limit);
        self.large(self.eligible.saturating_sub(told_off.count() * WORD))
    }

    /// The same of scanning what has been weighed.
    pub fn is_large_yet(&self, weighed: &[Weighed]) -> bool {
        let limit = self.limit() as f32;
        let left = |part: &Weighed| {
            if part.upper.is_empty() {
                return part.chunk.words.len() * WORD;
            }
            let left = |&&upper: &&f32| upper >= limit;
            part.upper.iter().filter(left).count()
        };
        self.large(weighed.iter().map(left).sum())
    }

    fn large(&self, rows: usize) -> bool {
        rows * self.query.codes().stride() >= LARGE
    }

    /// The parts of the search, each to be passed to [`Search::weigh`] once, in any order.
    pub fn chunks(&self) -> Vec<Chunk> {
        const WORDS: usize = CHUNK_ROWS / WORD;
        let mut chunks = Vec::new();
        for (block, rows) in self.blocks.iter().enumerate() {
            let words = rows.words();
            chunks.extend((0..words).step_by(WORDS).map(|start| Chunk {
                block,
                words: start..words.min(start + WORDS),
            }));
        }
        chunks
    }

    /// The probe of a block, if it has heads.
    fn heads(&self, block: usize) -> Option<&Probe<'a>> {
        self.probes[block]
            .as_ref()
            .filter(|probe| probe.has_heads())
    }

    /// Reads the heads of one part's rows.
    pub fn weigh(&self, chunk: Chunk) -> Weighed {
        let (mut upper, mut highest) = (Vec::new(), Vec::new());
        if let Some(probe) = self.heads(chunk.block) {
            upper.resize(chunk.words.len() * WORD, NONE);
            let mut batch = Box::new(Batch::new());
            let start = (chunk.words.start * WORD) as u32;
            let (words, limit) = (&self.words[chunk.block], self.limit() as f32);
            self.each_word(&chunk, |first, bits| {
                let most = words.get(first as usize / WORD);
                if most.is_some_and(|&most| most < limit) {
                    return;
                }
                if batch.len + WORD > BATCH {
                    self.weigh_batch(chunk.block, probe, &mut batch, start, &mut upper);
                }
                batch.add(first, bits);
            });
            self.weigh_batch(chunk.block, probe, &mut batch, start, &mut upper);
            widely(|| highest.extend(upper.as_chunks().0.iter().map(highest_of)));
        }
        Weighed {
            chunk,
            upper,
            highest,
        }
    }

    /// Writes to `upper`, which begins with the row `start`, at least the ranks of a batch's rows.
    fn weigh_batch(
        &self,
        number: usize,
        probe: &Probe<'_>,
        batch: &mut Batch,
        start: u32,
        upper: &mut [f32],
    ) {
        let count = batch.len;
        batch.by_heads(probe);
        self.rank(&self.blocks[number].block, batch);
        let ranks = &batch.upper[..count];
        if let Some(rows) = in_a_row(&batch.rows[..count]) {
            let from = rows.start - start as usize;
            let upper = &mut upper[from..from + count];
            widely(|| {
                for (upper, &rank) in upper.iter_mut().zip(ranks) {
                    *upper = rounded(rank);
                }
            });
        } else {
            for (&row, &rank) in batch.rows[..count].iter().zip(ranks) {
                upper[(row - start) as usize] = rounded(rank);
            }
        }
        batch.len = 0;
    }

    /// Looks at the rows of all parts that heads speak best of, and at a sample of those without
    /// heads: the sooner a high limit is known, the more of everything else is told off.
    pub fn begin(&self, weighed: &mut [Weighed]) -> Candidates {
        let mut found = Candidates::default();
        if self.k == 0 {
            return found;
        }
        let mut batch = Box::new(Batch::new());
        let first = self.take_best(weighed);
        for rows in first.chunk_by(|a, b| a.block == b.block) {
            for rows in rows.chunks(BATCH) {
                for at in rows {
                    batch.rows[batch.len] = at.row;
                    batch.len += 1;
                }
                self.keep(rows[0].block as usize, &mut batch, &mut found);
            }
        }
        let mut block = 0;
        for part in weighed.iter().filter(|part| part.upper.is_empty()) {
            if part.chunk.block != block || batch.len + WORD > BATCH {
                self.tell_off(block, &mut batch, &mut found);
                block = part.chunk.block;
            }
            self.each_word(&part.sample(), |first, bits| batch.add(first, bits));
        }
        self.tell_off(block, &mut batch, &mut found);
        self.look_at_waiting(&mut batch, &mut found);
        found
    }

    /// The rows that heads speak best of, in storage order: so they are read faster. They are
    /// taken out of what has been weighed.
    fn take_best(&self, weighed: &mut [Weighed]) -> Vec<RowRef> {
        let wanted = self.k.saturating_mul(2).max(FIRST);
        // They lie in the words whose best rows are the best, and none is below all of these.
        let mut words: Vec<(f32, usize, usize)> = Vec::new();
        for (number, part) in weighed.iter().enumerate() {
            let highest = part.highest.iter().enumerate();
            words.extend(highest.map(|(word, &highest)| (highest, number, word)));
        }
        keep_best(wanted, &mut words);
        let least = words.iter().map(|word| word.0).fold(f32::MAX, f32::min);
        let mut rows: Vec<(f32, usize, usize)> = Vec::new();
        for (_, number, word) in words {
            let all = weighed[number].upper.iter().copied().enumerate();
            rows.extend(
                all.skip(word * WORD)
                    .take(WORD)
                    .filter(|&(_, upper)| upper >= least && upper > NONE)
                    .map(|(place, upper)| (upper, number, place)),
            );
        }
        keep_best(wanted, &mut rows);
        rows.sort_unstable_by_key(|&(_, number, place)| (number, place));
        rows.into_iter()
            .map(|(_, number, place)| {
                let part = &mut weighed[number];
                part.upper[place] = NONE;
                RowRef {
                    block: part.chunk.block as u32,
                    row: (part.chunk.words.start * WORD + place) as u32,
                }
            })
            .collect()
    }

    /// Goes over the codes of one part and adds the rows that may be in the result; the last few
    /// with the next part, or when the search is finished.
    pub fn scan(&self, part: &Weighed, found: &mut Candidates) {
        if self.k == 0 {
            return;
        }
        let block = part.chunk.block;
        let mut batch = match found.pending.take() {
            Some((other, mut batch)) => {
                if other != block {
                    self.tell_off(other, &mut batch, found);
                }
                batch
            }
            None => Box::new(Batch::new()),
        };
        if part.upper.is_empty() {
            self.each_word(&part.others(), |first, bits| {
                if batch.len + WORD > BATCH {
                    self.tell_off(block, &mut batch, found);
                }
                batch.add(first, bits);
            });
        } else {
            let words = part.upper.chunks_exact(WORD).zip(&part.highest);
            for (word, (upper, &highest)) in part.chunk.words.clone().zip(words) {
                let limit = self.limit() as f32;
                if highest < limit {
                    continue;
                }
                if batch.len >= ENOUGH {
                    self.tell_off(block, &mut batch, found);
                }
                let rows = ((word * WORD) as u32..).step_by(TOGETHER);
                for (first, upper) in rows.zip(upper.as_chunks::<TOGETHER>().0) {
                    let reaches = |upper: f32| upper >= limit;
                    if !upper.iter().fold(false, |any, &upper| any | reaches(upper)) {
                        continue;
                    }
                    for (row, &upper) in (first..).zip(upper) {
                        batch.rows[batch.len] = row;
                        // Without a branch: whether a row is left is hard to foresee.
                        batch.len += usize::from(reaches(upper) && upper > NONE);
                    }
                }
            }
        }
        found.pending = Some((block, batch));
    }

    /// Calls `each` with the first row of each word of a part, and the bits of those rows of the
    /// word that may be in the result.
    fn each_word(&self, chunk: &Chunk, mut each: impl FnMut(u32, u64)) {
        let source = &self.blocks[chunk.block];
        for word in chunk.words.clone() {
            each((word * WORD) as u32, source.eligible(word));
        }
    }

    /// Looks at those of a batch's rows that sketches leave, or lets them wait.
    fn tell_off(&self, number: usize, batch: &mut Batch, found: &mut Candidates) {
        if batch.len == 0 {
            return;
        }
        let known = self.limit();
        if let Some(probe) = &self.probes[number]
            && known > f64::NEG_INFINITY
        {
            let trial = if probe.has_heads() {
                &mut found.finer
            } else {
                &mut found.trial
            };
            if trial.next() {
                let before = batch.len;
                self.leave_out(&self.blocks[number].block, probe, batch, known);
                if trial.left(before, batch.len) {
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
            }
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

    /// Takes those rows out of a batch whose sketches prove that they cannot reach the limit.
    fn leave_out(&self, block: &CodeBlock<'_>, probe: &Probe<'_>, batch: &mut Batch, limit: f64) {
        batch.by_heads(probe);
        let count = batch.len;
        let (rows, partial) = (&batch.rows[..count], &batch.partial[..count]);
        probe.most(rows, partial, &mut batch.products[..count]);
        self.drop_below(block, batch, limit);
    }

    /// Takes those rows out of a batch that cannot reach the limit, given at least their products.
    fn drop_below(&self, block: &CodeBlock<'_>, batch: &mut Batch, limit: f64) {
        self.rank(block, batch);
        let count = std::mem::take(&mut batch.len);
        for start in (0..count).step_by(TOGETHER) {
            let end = count.min(start + TOGETHER);
            // NaN does not count as below; see `keep`.
            let below = |upper: f64| upper < limit;
            let told_off = |all, &upper: &f64| all & below(upper);
            if batch.upper[start..end].iter().fold(true, told_off) {
                continue;
            }
            for at in start..end {
                // Without a branch: whether a row is left is hard to foresee.
                batch.rows[batch.len] = batch.rows[at];
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
        if self.k < candidates.len() {
            self.refine(&mut candidates);
            candidates.sort_unstable_by(Candidate::by_upper);
        }
        let mut hits = Vec::with_capacity(self.k.min(candidates.len()));
        let mut best = Best::default();
        let mut enough: Option<f64> = None;
        let mut rescored = 0;
        let mut buffer = vec![0.0; self.query.dimension()];
        // NaN out of damaged columns does not count as below; see `keep`.
        let is_out = |candidate: &Candidate, enough: Option<f64>| {
            enough.is_some_and(|score| self.query.score_for_rank(candidate.bounds.upper) < score)
        };
        // What follows the first k in this order may not have to be computed. They do; in storage
        // order they are read faster. So are more and more of those that follow.
        let (mut start, mut count) = (0, self.k.max(1));
        while start < candidates.len() && !is_out(&candidates[start], enough) {
            let end = candidates.len().min(start.saturating_add(count));
            let some = &mut candidates[start..end];
            some.sort_unstable_by_key(|candidate| candidate.at);
            for candidate in some {
                if is_out(candidate, enough) {
                    continue;
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
            (start, count) = (end, count.saturating_mul(2));
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

    /// Narrows the bounds of candidates by their fine codes, those with the best upper bounds first,
    /// and drops those that can then not be in the result.
    fn refine(&self, candidates: &mut Vec<Candidate>) {
        candidates.sort_unstable_by(Candidate::by_upper);
        let mut limit = self.limit();
        let mut lower = Best::default();
        let (mut start, mut count) = (0, self.k.max(FIRST));
        loop {
            let left = &mut candidates[start..];
            let reach = left.partition_point(|candidate| !candidate.is_below(limit));
            if reach == 0 {
                break;
            }
            // In storage order they are read faster, and the more at a time the better.
            let some = &mut left[..reach.min(count)];
            some.sort_unstable_by_key(|candidate| candidate.at);
            for some in some.chunk_by_mut(|a, b| a.at.block == b.at.block) {
                some.chunks_mut(BATCH).for_each(|some| self.narrow(some));
            }
            for candidate in &*some {
                if let Some(rank) = lower.push(candidate.bounds.lower, self.k) {
                    limit = limit.max(self.query.limit_for_rank(rank));
                }
            }
            start += some.len();
            count = count.saturating_mul(2);
        }
        candidates.truncate(start);
        candidates.retain(|candidate| !candidate.is_below(limit));
    }

    /// Narrows the bounds of some candidates of one block, in storage order.
    fn narrow(&self, candidates: &mut [Candidate]) {
        let block = &self.blocks[candidates[0].at.block as usize].block;
        let Some(fine) = &block.fine else { return };
        let stride = self.query.codes().stride();
        let rows: Vec<u32> = candidates
            .iter()
            .map(|candidate| candidate.at.row)
            .collect();
        let mut codes = Lines::zeroed(rows.len() * stride);
        // Who cannot be narrowed is compared by its vector: a read that fails costs time only. What is
        // wrong with a file is for `Segment::verify` to say.
        if fine.read(&rows, stride, codes.as_mut_slice()).is_err() {
            return;
        }
        let mut products = [vec![0.0; rows.len()], vec![0.0; rows.len()]];
        let places: Vec<u32> = (0..rows.len() as u32).collect();
        (kernels().products)(self.query.codes(), block.codes, &rows, &mut products[0]);
        (kernels().products)(
            self.query.codes(),
            codes.as_slice(),
            &places,
            &mut products[1],
        );
        for (at, candidate) in candidates.iter_mut().enumerate() {
            let row = candidate.at.row as usize;
            candidate.bounds = self.query.fine_bounds(
                [products[0][at], products[1][at]],
                block.row_code(row),
                fine.row_code(row),
            );
        }
    }

    /// The whole search, in this thread; see [`Search::finish`].
    pub fn run<E>(
        &self,
        fetch: impl FnMut(RowRef, i64, &mut [f32]) -> Result<(), E>,
        ties: impl FnMut(&Hit, &Hit) -> Ordering,
    ) -> Result<Found, E> {
        let chunks = self.chunks().into_iter();
        let mut weighed: Vec<Weighed> = chunks.map(|chunk| self.weigh(chunk)).collect();
        let mut found = self.begin(&mut weighed);
        for part in &weighed {
            self.scan(part, &mut found);
        }
        self.finish([found], fetch, ties)
    }
}

#[cfg(test)]
pub(crate) mod tests;
