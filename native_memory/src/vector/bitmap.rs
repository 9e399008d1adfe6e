//! One bit per row: which rows a search may see, and which are deleted.

/// Rows per word; the unit in which a scan skips filtered rows.
pub const WORD: usize = 64;

/// A growable set of row numbers. Bit `row % 64` of word `row / 64` stands for `row`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap(Vec<u64>);

impl Bitmap {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of the rows `0..rows`.
    pub fn all(rows: usize) -> Self {
        let mut words = vec![u64::MAX; rows.div_ceil(WORD)];
        if let (Some(last), 1..) = (words.last_mut(), rows % WORD) {
            *last = (1 << (rows % WORD)) - 1;
        }
        Self(words)
    }

    /// Adds a row.
    pub fn insert(&mut self, row: usize) {
        if row / WORD >= self.0.len() {
            self.0.resize(row / WORD + 1, 0);
        }
        self.0[row / WORD] |= 1 << (row % WORD);
    }

    /// Takes a row away.
    pub fn remove(&mut self, row: usize) {
        if let Some(word) = self.0.get_mut(row / WORD) {
            *word &= !(1 << (row % WORD));
        }
    }

    /// Whether a row is in the set.
    pub fn contains(&self, row: usize) -> bool {
        self.0
            .get(row / WORD)
            .is_some_and(|word| word >> (row % WORD) & 1 == 1)
    }

    /// The number of rows in the set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The number of rows in the set that are not in another one.
    pub fn count_without(&self, other: &Self) -> usize {
        let others = other.0.iter().chain(std::iter::repeat(&0));
        let words = self.0.iter().zip(others);
        words.map(|(a, b)| (a & !b).count_ones() as usize).sum()
    }

    /// The words, as [`super::ScanBlock`] takes them.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// The words, to be written in bulk.
    pub fn words_mut(&mut self) -> &mut Vec<u64> {
        &mut self.0
    }
}

impl FromIterator<usize> for Bitmap {
    fn from_iter<I: IntoIterator<Item = usize>>(rows: I) -> Self {
        let mut set = Self::new();
        rows.into_iter().for_each(|row| set.insert(row));
        set
    }
}

/// The rows of word `word` that are in `filter` (all, without one) and not in `deleted`.
///
/// `rows` is the number of rows that exist. A filter that is too short excludes the rows it does
/// not reach; a deletion set that is too short leaves them alive, so that rows can be appended
/// without touching it.
pub(crate) fn eligible(
    word: usize,
    rows: usize,
    filter: Option<&[u64]>,
    deleted: Option<&[u64]>,
) -> u64 {
    let existing = match rows.saturating_sub(word * WORD) {
        0 => 0,
        left @ 1..WORD => (1 << left) - 1,
        _ => u64::MAX,
    };
    let wanted = filter.map_or(u64::MAX, |words| words.get(word).copied().unwrap_or(0));
    let dead = deleted
        .and_then(|words| words.get(word).copied())
        .unwrap_or(0);
    existing & wanted & !dead
}

/// All rows that [`eligible`] gives, ascending.
pub(crate) fn eligible_rows<'a>(
    rows: usize,
    filter: Option<&'a [u64]>,
    deleted: Option<&'a [u64]>,
) -> impl Iterator<Item = usize> + 'a {
    (0..rows.div_ceil(WORD)).flat_map(move |word| {
        let mut bits = eligible(word, rows, filter, deleted);
        std::iter::from_fn(move || {
            let bit = bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            (bit < WORD).then_some(word * WORD + bit)
        })
    })
}
