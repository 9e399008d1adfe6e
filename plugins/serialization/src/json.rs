//! JSON, strict: what RFC 8259 allows, one value, no key twice, no number that would be infinite.

mod read;
mod write;

pub use read::read;
pub use write::{Key, write_float, write_int, write_key, write_text};

/// Bytes that are looked through at a time.
const BLOCK: usize = 16;

/// Returns where the first byte stands that a JSON string cannot hold as it is: `"`, `\` or a
/// control character; the length where there is none.
fn plain_length(bytes: &[u8]) -> usize {
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

fn special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Returns the place of the first special byte of eight, the first of which is the lowest.
#[inline]
fn first_special(word: u64) -> Option<usize> {
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
fn first_special_of_block(block: &[u8; BLOCK]) -> Option<usize> {
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
fn first_special_of_block(block: &[u8; BLOCK]) -> Option<usize> {
    let (words, _) = block.as_chunks::<8>();
    words.iter().enumerate().find_map(|(number, word)| {
        first_special(u64::from_le_bytes(*word)).map(|place| number * 8 + place)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{
        BLOCK, Key, first_special, first_special_of_block, plain_length, read, special,
        write_float, write_key, write_text,
    };
    use crate::build::Sample;

    #[test]
    fn the_first_special_byte_is_found_at_every_place() {
        for length in 0..150 {
            assert_eq!(plain_length(&vec![b'a'; length]), length);
            for at in 0..length {
                for special in [b'"', b'\\', 0, 0x1f] {
                    for plain in [b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xc3, 0xff] {
                        let mut bytes = vec![plain; length];
                        bytes[at] = special;
                        assert_eq!(plain_length(&bytes), at);
                        // What comes after it makes no difference.
                        bytes[at..].fill(special);
                        assert_eq!(plain_length(&bytes), at);
                    }
                }
            }
        }
    }

    #[test]
    fn texts_are_written_right_wherever_something_is_escaped() {
        for length in 0..60 {
            for step in 1..20 {
                for special in ['"', '\\', '\n', '\u{1}'] {
                    let place = |at: usize| if at % step == step - 1 { special } else { 'é' };
                    let text: String = (0..length).map(place).collect();
                    let mut out = Vec::new();
                    write_text(&mut out, &text);
                    assert_eq!(out, serde_json::to_vec(&text).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_key_is_written_with_what_is_around_it() {
        for name in ["", "id", "twelve_bytes"] {
            let mut out = b"1".to_vec();
            write_key(&mut out, Key::new(name));
            assert_eq!(out, format!("1,{name:?}:").into_bytes());
        }
    }

    #[test]
    fn words_and_blocks_are_looked_through_alike() {
        for byte in 0..=255 {
            for at in 0..8 {
                let mut word = [b'a'; 8];
                word[at] = byte;
                let expected = special(byte).then_some(at);
                assert_eq!(first_special(u64::from_le_bytes(word)), expected);
                let mut block = [0xc3; BLOCK];
                block[8..].copy_from_slice(&word);
                assert_eq!(first_special_of_block(&block), expected.map(|at| at + 8));
            }
        }
    }

    /// JSON, and what nearly is some.
    fn texts() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            3 => prop::sample::select(vec![
                "[", "]", "{", "}", ",", ":", " ", "\n", "null", "true", "false", "0", "-1", "12.5", "1e3",
                "1e999", "\"a\"", "\"b\":1", "\"", "\\u0041", "\\ud83d\\ude00", "\\ud800", "é", "\u{1}",
                "99999999999999999999", "01", "-", "+", ".",
            ]).prop_map(str::to_owned),
            1 => any::<String>(),
        ];
        prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn what_is_accepted_is_what_serde_json_reads(text in texts()) {
            // A whole number, as Python has it; a float to serde_json.
            prop_assume!(!text.contains("-0"));
            match (read(&text, &mut Sample), serde_json::from_str::<Value>(&text)) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
                // It accepts a key twice.
                (Err(error), Ok(_)) => prop_assert!(error.what.contains("already has"), "{error}"),
                (Ok(ours), Err(error)) => prop_assert!(false, "{ours} is {error}"),
                (Err(error), Err(_)) => prop_assert!(error.at <= text.len()),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn whatever_serde_json_writes_is_read(value in values()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                prop_assert_eq!(read(&text, &mut Sample).unwrap(), value.clone());
            }
        }

        #[test]
        fn texts_are_written_as_serde_json_writes_them(text: String) {
            let mut out = Vec::new();
            write_text(&mut out, &text);
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }

        #[test]
        fn floats_come_back(number in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL) {
            let mut out = Vec::new();
            write_float(&mut out, number);
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits());
            prop_assert_eq!(read(&text, &mut Sample).unwrap(), Value::from(number));
        }
    }
}
