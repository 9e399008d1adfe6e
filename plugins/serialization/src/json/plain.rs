//! The bytes of a string that JSON holds as they are: all but `"`, `\` and control characters.

/// Bytes that are looked through at a time.
pub(super) const BLOCK: usize = 16;

/// How many bytes each may become.
pub(super) const ESCAPED: usize = 6;

/// How many more [`copy_escaped`] may write behind what counts.
pub(super) const MARGIN: usize = 64;

/// Returns where the first byte stands that must be escaped; the length where there is none.
pub(super) fn plain_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for block in blocks {
        if let Some(place) = first_special_of_block(block) {
            return at + place;
        }
        at += BLOCK;
    }
    let mut rest = rest;
    if let Some((word, after)) = rest.split_first_chunk::<8>() {
        if let Some(place) = first_special(u64::from_le_bytes(*word)) {
            return at + place;
        }
        at += 8;
        rest = after;
    }
    at + rest
        .iter()
        .position(|&byte| special(byte))
        .unwrap_or(rest.len())
}

/// Copies bytes up to the first that must be escaped, or all, and returns how many those are. What is
/// then written behind them means nothing.
///
/// # Safety
///
/// At `to` there must be room for `bytes` and [`BLOCK`] more, none of which is part of `bytes`.
#[inline]
pub(super) unsafe fn copy_plain(bytes: &[u8], to: *mut u8) -> usize {
    // SAFETY: the caller's promise; `wide` is asked for processors that have what it takes.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if bytes.len() >= wide::BLOCK && is_x86_feature_detected!("avx2") {
            return wide::copy_plain(bytes, to);
        }
        copy_blocks(bytes, to)
    }
}

/// Copies a part of the bytes, at their beginning, and escapes what must be. Returns how many those are
/// and where what they became ends. It takes many, of which it leaves few, and knows of a quick way; else
/// none.
///
/// # Safety
///
/// At `to` there must be room for [`ESCAPED`] times as much as `bytes` and [`MARGIN`] more, none of which
/// is part of `bytes`.
pub(super) unsafe fn copy_escaped(bytes: &[u8], to: *mut u8) -> (usize, *mut u8) {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= 2 * wide::BLOCK && is_x86_feature_detected!("avx2") {
        // SAFETY: the caller's promise; the processor has what it takes.
        return unsafe { wide::copy_escaped(bytes, to) };
    }
    (0, to)
}

/// See [`copy_plain`]; for every processor.
#[inline]
pub(super) unsafe fn copy_blocks(bytes: &[u8], to: *mut u8) -> usize {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut at = 0;
    for block in blocks {
        // SAFETY: there is as much room as bytes.
        unsafe { put(*block, to.add(at)) };
        if let Some(place) = first_special_of_block(block) {
            return at + place;
        }
        at += BLOCK;
    }
    if rest.is_empty() {
        return at;
    }
    let Some(last) = bytes.last_chunk::<BLOCK>() else {
        // SAFETY: the caller's promise.
        return unsafe { copy_short(bytes, to) };
    };
    // It overlaps the one before it, of which nothing is special.
    let start = bytes.len() - BLOCK;
    // SAFETY: there is as much room as bytes.
    unsafe { put(*last, to.add(start)) };
    if let Some(place) = first_special_of_block(last) {
        return start + place;
    }
    bytes.len()
}

/// See [`copy_plain`]; for less than a block, and at least a byte.
#[inline]
unsafe fn copy_short(bytes: &[u8], to: *mut u8) -> usize {
    let length = bytes.len();
    // Two pieces that overlap where they must, and a block in which there is nothing else.
    // SAFETY: there is as much room as bytes.
    let block = unsafe {
        if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk()) {
            put(*first, to);
            put(*last, to.add(length - 8));
            [u64::from_le_bytes(*first), u64::from_le_bytes(*last)]
        } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk()) {
            put(*first, to);
            put(*last, to.add(length - 4));
            let [first, last] = [first, last].map(|word| u64::from(u32::from_le_bytes(*word)));
            [first | last << 32; 2]
        } else {
            let bytes = [bytes[0], bytes[length / 2], bytes[length - 1]];
            to.write(bytes[0]);
            to.add(length / 2).write(bytes[1]);
            to.add(length - 1).write(bytes[2]);
            let [a, b, c] = bytes.map(u64::from);
            let word = a | b << 8 | c << 16 | a << 24;
            [word | word << 32; 2]
        }
    };
    let [first, last] = block.map(u128::from);
    let block = (first | last << 64).to_le_bytes();
    if first_special_of_block(&block).is_some() {
        return plain_length(bytes);
    }
    length
}

/// Writes bytes.
///
/// # Safety
///
/// There must be room for them.
#[inline]
pub(super) unsafe fn put<const N: usize>(bytes: [u8; N], to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { to.cast::<[u8; N]>().write_unaligned(bytes) };
}

/// Blocks of AVX2's size.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set1_epi8, _mm256_storeu_si256,
    };

    use super::put;
    use crate::json::escape::Escape;

    pub(super) const BLOCK: usize = 32;

    /// Blocks with one branch for all of them.
    const STRIDE: usize = 4;

    /// See [`copy_plain`](super::copy_plain); for a block or more.
    ///
    /// # Safety
    ///
    /// As there.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn copy_plain(bytes: &[u8], to: *mut u8) -> usize {
        let mut at = 0;
        while at + STRIDE * BLOCK <= bytes.len() {
            let places = [0, 1, 2, 3].map(|block| at + block * BLOCK);
            // SAFETY: so many bytes and as much room there are.
            let special =
                places.map(|place| unsafe { copy(bytes.as_ptr().add(place), to.add(place)) });
            let [a, b, c, d] = special;
            let any = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
            if _mm256_movemask_epi8(any) != 0 {
                let first = |special| mask(special).trailing_zeros() as usize;
                return if mask(a) != 0 {
                    at + first(a)
                } else if mask(b) != 0 {
                    at + BLOCK + first(b)
                } else if mask(c) != 0 {
                    at + 2 * BLOCK + first(c)
                } else {
                    at + 3 * BLOCK + first(d)
                };
            }
            at += STRIDE * BLOCK;
        }
        while at < bytes.len() {
            // The last block overlaps the one before it, of which nothing is special.
            let start = at.min(bytes.len() - BLOCK);
            // SAFETY: as above.
            let special = mask(unsafe { copy(bytes.as_ptr().add(start), to.add(start)) });
            if special != 0 {
                return start + special.trailing_zeros() as usize;
            }
            at = start + BLOCK;
        }
        bytes.len()
    }

    /// See [`copy_escaped`](super::copy_escaped).
    ///
    /// What is to be escaped in a block is known before any of it is, and the next block is looked
    /// through meanwhile.
    ///
    /// # Safety
    ///
    /// As there.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn copy_escaped(bytes: &[u8], mut to: *mut u8) -> (usize, *mut u8) {
        let mut at = 0;
        // A block that begins in this one ends in the next.
        while at + 2 * BLOCK <= bytes.len() {
            let end = at + BLOCK;
            // SAFETY: so many bytes there are, and as much room if each before was escaped.
            unsafe {
                let mut special = mask(copy(bytes.as_ptr().add(at), to));
                while special != 0 {
                    let place = (end - BLOCK) + special.trailing_zeros() as usize;
                    let escape = Escape::of(bytes[place]);
                    to = to.add(place - at);
                    put(escape.bytes, to);
                    to = to.add(usize::from(escape.length));
                    at = place + 1;
                    copy(bytes.as_ptr().add(at), to);
                    special &= special - 1;
                }
                to = to.add(end - at);
            }
            at = end;
        }
        (at, to)
    }

    /// Copies a block, and marks what must be escaped.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn copy(bytes: *const u8, to: *mut u8) -> __m256i {
        // SAFETY: the callers'.
        let block = unsafe {
            let block = _mm256_loadu_si256(bytes.cast());
            _mm256_storeu_si256(to.cast(), block);
            block
        };
        let control = _mm256_cmpeq_epi8(_mm256_min_epu8(block, _mm256_set1_epi8(0x1f)), block);
        let quote = _mm256_cmpeq_epi8(block, _mm256_set1_epi8(b'"'.cast_signed()));
        let backslash = _mm256_cmpeq_epi8(block, _mm256_set1_epi8(b'\\'.cast_signed()));
        _mm256_or_si256(control, _mm256_or_si256(quote, backslash))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn mask(special: __m256i) -> u32 {
        _mm256_movemask_epi8(special).cast_unsigned()
    }
}

pub(super) fn special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Returns the place of the first special byte of eight, the first of which is the lowest.
#[inline]
pub(super) fn first_special(word: u64) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    // The highest bit of a byte that is less than `limit`. A byte above one that is may borrow from it,
    // so only the lowest that is found is one.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = (below(word, 0x20) | equal(b'"') | equal(b'\\')) & HIGHS;
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// Returns the place of the first special byte of a block.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn first_special_of_block(block: &[u8; BLOCK]) -> Option<usize> {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8,
    };

    // SAFETY: every x86-64 processor has SSE2, and the block is as long as what is loaded.
    let found = unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast());
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"'.cast_signed()));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\'.cast_signed()));
        _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(quote, backslash)))
    };
    (found != 0).then(|| found.trailing_zeros() as usize)
}

/// Returns the place of the first special byte of a block.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) fn first_special_of_block(block: &[u8; BLOCK]) -> Option<usize> {
    let (words, _) = block.as_chunks::<8>();
    words.iter().enumerate().find_map(|(number, word)| {
        first_special(u64::from_le_bytes(*word)).map(|place| number * 8 + place)
    })
}
