//! JSON, strict: what RFC 8259 allows, one value, no key twice, no number that would be infinite.

mod read;
mod write;

pub use read::read;
pub use write::{write_float, write_int, write_text};

/// Returns where the first byte stands that a JSON string cannot hold as it is: `"`, `\` or a
/// control character; the length where there is none.
fn plain_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    // Without a branch inside, a block becomes a handful of vector instructions.
    let (blocks, _) = bytes.as_chunks::<64>();
    for block in blocks {
        if any_special(block) {
            break;
        }
        at += 64;
    }
    let (blocks, _) = bytes[at..].as_chunks::<16>();
    for block in blocks {
        if any_special(block) {
            break;
        }
        at += 16;
    }
    if let Some(block) = bytes[at..].first_chunk::<8>()
        && !any_special(block)
    {
        at += 8;
    }
    at + bytes[at..]
        .iter()
        .position(|&byte| special(byte) != 0)
        .unwrap_or(bytes.len() - at)
}

fn any_special<const N: usize>(block: &[u8; N]) -> bool {
    block.iter().fold(0, |found, &byte| found | special(byte)) != 0
}

fn special(byte: u8) -> u8 {
    u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{plain_length, read, write_float, write_text};
    use crate::build::Sample;

    #[test]
    fn the_first_special_byte_is_found_at_every_place() {
        for length in 0..150 {
            assert_eq!(plain_length(&vec![b'a'; length]), length);
            for at in 0..length {
                for special in [b'"', b'\\', 0, 0x1f] {
                    let mut bytes = vec![0xc3; length];
                    bytes[at] = special;
                    assert_eq!(plain_length(&bytes), at);
                }
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
