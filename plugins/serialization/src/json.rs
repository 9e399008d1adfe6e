//! JSON, strict: what RFC 8259 allows, one value, no key twice, no number that would be infinite.

mod escape;
mod plain;
mod read;
mod write;

pub use read::read;
pub use write::{
    Name, write_float, write_int, write_key, write_name, write_named_text, write_text,
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::plain::{
        BLOCK, copy_blocks, copy_plain, first_special, first_special_of_block, plain_length,
        special,
    };
    use super::{
        Name, read, write_float, write_int, write_key, write_name, write_named_text, write_text,
    };
    use crate::build::Sample;
    use crate::output::Pen;

    /// Returns what there is and what is written behind it.
    fn written(before: &[u8], write: impl FnOnce(Pen<'_, Vec<u8>>) -> Pen<'_, Vec<u8>>) -> Vec<u8> {
        let mut out = before.to_vec();
        write(Pen::new(&mut out)).finish();
        out
    }

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
        // Up to two pieces for which room is made at once.
        for length in (0..100).chain(250..260).chain(510..520) {
            for step in (1..20).chain([31, 32, 33, 63, 64, 65]) {
                for special in ['"', '\\', '\n', '\u{1}'] {
                    let place = |at: usize| if at % step == step - 1 { special } else { 'é' };
                    let text: String = (0..length).map(place).collect();
                    let out = written(b"", |pen| write_text(pen, &text));
                    assert_eq!(out, serde_json::to_vec(&text).unwrap());
                }
            }
        }
    }

    #[test]
    fn what_is_plain_is_copied_whatever_its_length() {
        for length in 0..300 {
            let plain: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
            let copied = |bytes: &[u8]| {
                let [mut out, mut other] = [(); 2].map(|()| vec![0; length + BLOCK]);
                // SAFETY: there is room for the bytes and a block.
                let (plain, same) = unsafe {
                    let plain = copy_plain(bytes, out.as_mut_ptr());
                    (plain, copy_blocks(bytes, other.as_mut_ptr()))
                };
                assert_eq!(out[..plain], other[..same]);
                out.truncate(plain);
                out
            };
            assert_eq!(copied(&plain), plain);
            for at in 0..length {
                for special in [b'"', b'\\', 0, 0x1f] {
                    let mut bytes = plain.clone();
                    bytes[at] = special;
                    assert_eq!(copied(&bytes), plain[..at]);
                    bytes[at..].fill(special);
                    assert_eq!(copied(&bytes), plain[..at]);
                }
            }
        }
    }

    #[test]
    fn names_and_keys_are_written_with_what_is_around_them() {
        for name in ["", "id", "elevenbytes"] {
            let out = written(b"1", |pen| write_name(pen, Name::new(name)));
            assert_eq!(out, format!("1,{name:?}:").into_bytes());
            let out = written(b"1", |pen| write_named_text(pen, Name::new(name), "a\n"));
            assert_eq!(out, format!("1,{name:?}:\"a\\n\"").into_bytes());
        }
        for key in ["", "a", "quoted \" key"] {
            for first in [true, false] {
                let out = written(b"1", |pen| write_key(pen, key, first));
                let comma = if first { "" } else { "," };
                assert_eq!(out, format!("1{comma}{key:?}:").into_bytes());
            }
        }
    }

    #[test]
    fn whole_numbers_are_written_whatever_their_length() {
        let powers = (0..19).map(|digits| 10_i64.pow(digits));
        let near = powers.flat_map(|power| [power - 1, power, power + 1, power / 3, power / 7]);
        for number in near.chain([i64::MAX, i64::MIN, i64::MIN + 1]) {
            for number in [number, number.wrapping_neg()] {
                let out = written(b"", |pen| write_int(pen, number));
                assert_eq!(out, number.to_string().into_bytes());
            }
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
            let out = written(b"", |pen| write_text(pen, &text));
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }

        #[test]
        fn floats_come_back(number in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL) {
            let out = written(b"", |pen| write_float(pen, number));
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits());
            prop_assert_eq!(read(&text, &mut Sample).unwrap(), Value::from(number));
        }
    }
}
