//! `MessagePack`, as far as JSON goes: no binary data, no time stamps, keys that are strings.
//!
//! A whole number beyond 64 bits is an extension of type 1 that holds its decimal digits.

use rmp::{Marker, encode};

use crate::build::{Build, MAX_DIGITS, ReadError, Stack, placed};

/// The type of the extension that holds a whole number's digits.
const BIG_INT: i8 = 1;

type Read<T> = Result<T, ReadError>;

/// Writes a whole number in the smallest form.
pub fn write_int(out: &mut Vec<u8>, number: i64) {
    // Writing to a vector cannot fail; so below.
    _ = encode::write_sint(out, number);
}

/// Writes a whole number beyond `i64`, of which only some are the format's own.
pub fn write_big_int(out: &mut Vec<u8>, digits: &str) {
    if let Ok(number) = digits.parse::<u64>() {
        _ = encode::write_uint(out, number);
        return;
    }
    _ = encode::write_ext_meta(out, digits.len() as u32, BIG_INT);
    out.extend_from_slice(digits.as_bytes());
}

/// Writes a finite number.
pub fn write_float(out: &mut Vec<u8>, number: f64) {
    _ = encode::write_f64(out, number);
}

/// Writes a string.
///
/// Returns `false` for one of 4 GiB or more, which the format cannot hold.
#[must_use]
pub fn write_text(out: &mut Vec<u8>, text: &str) -> bool {
    u32::try_from(text.len()).is_ok() && encode::write_str(out, text).is_ok()
}

/// Begins a list of so many values.
pub fn write_list(out: &mut Vec<u8>, length: u32) {
    _ = encode::write_array_len(out, length);
}

/// Begins a map of so many entries.
pub fn write_map(out: &mut Vec<u8>, length: u32) {
    _ = encode::write_map_len(out, length);
}

/// Writes nothing, as a value.
pub fn write_null(out: &mut Vec<u8>) {
    _ = encode::write_nil(out);
}

/// Writes a truth value.
pub fn write_truth(out: &mut Vec<u8>, truth: bool) {
    _ = encode::write_bool(out, truth);
}

/// Reads one value, which is all that the bytes may hold.
///
/// Lengths are checked against what is there before anything is made of them, so memory grows with
/// the bytes that were given and not with what they claim.
pub fn read<B: Build>(bytes: &[u8], builder: &mut B) -> Read<B::Value> {
    let mut reader = Reader { bytes, at: 0 };
    let mut stack = Stack::new();
    loop {
        reader.value(builder, &mut stack)?;
        while let Some(open) = stack.last() {
            if open.left > 0 {
                open.left -= 1;
                if open.is_map {
                    let at = reader.at;
                    let key = reader.text("a key that is a string")?;
                    let key = builder.key(key);
                    stack.key(at, key);
                }
                break;
            }
            stack.close(builder, reader.at)?;
        }
        if stack.last().is_none() {
            return match stack.values.pop() {
                Some(value) if reader.at == bytes.len() => Ok(value),
                _ => Err(ReadError::new(reader.at, "something after the end")),
            };
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads a scalar onto the stack, or opens a list or map.
    fn value<B: Build>(&mut self, builder: &mut B, stack: &mut Stack<B::Value>) -> Read<()> {
        let at = self.at;
        let value = match self.marker()? {
            Marker::Null => builder.null(),
            Marker::True => builder.truth(true),
            Marker::False => builder.truth(false),
            Marker::FixPos(number) => placed(builder.int(i64::from(number)), at)?,
            Marker::FixNeg(number) => placed(builder.int(i64::from(number)), at)?,
            Marker::U8 => placed(builder.int(i64::from(u8::from_be_bytes(self.array()?))), at)?,
            Marker::U16 => placed(
                builder.int(i64::from(u16::from_be_bytes(self.array()?))),
                at,
            )?,
            Marker::U32 => placed(
                builder.int(i64::from(u32::from_be_bytes(self.array()?))),
                at,
            )?,
            Marker::U64 => {
                let number = u64::from_be_bytes(self.array()?);
                let built = match i64::try_from(number) {
                    Ok(number) => builder.int(number),
                    Err(_) => builder.big_int(itoa::Buffer::new().format(number)),
                };
                placed(built, at)?
            }
            Marker::I8 => placed(builder.int(i64::from(i8::from_be_bytes(self.array()?))), at)?,
            Marker::I16 => placed(
                builder.int(i64::from(i16::from_be_bytes(self.array()?))),
                at,
            )?,
            Marker::I32 => placed(
                builder.int(i64::from(i32::from_be_bytes(self.array()?))),
                at,
            )?,
            Marker::I64 => placed(builder.int(i64::from_be_bytes(self.array()?)), at)?,
            Marker::F32 => {
                let number = f32::from_be_bytes(self.array()?);
                builder.float(finite(f64::from(number), at)?)
            }
            Marker::F64 => {
                let number = f64::from_be_bytes(self.array()?);
                builder.float(finite(number, at)?)
            }
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                self.at = at;
                let text = self.text("a string")?;
                builder.text(text)
            }
            Marker::FixArray(length) => return self.open(stack, at, false, usize::from(length)),
            Marker::Array16 => {
                let length = usize::from(u16::from_be_bytes(self.array()?));
                return self.open(stack, at, false, length);
            }
            Marker::Array32 => {
                let length = u32::from_be_bytes(self.array()?) as usize;
                return self.open(stack, at, false, length);
            }
            Marker::FixMap(length) => return self.open(stack, at, true, usize::from(length)),
            Marker::Map16 => {
                let length = usize::from(u16::from_be_bytes(self.array()?));
                return self.open(stack, at, true, length);
            }
            Marker::Map32 => {
                let length = u32::from_be_bytes(self.array()?) as usize;
                return self.open(stack, at, true, length);
            }
            Marker::FixExt1 => self.extension(builder, at, 1)?,
            Marker::FixExt2 => self.extension(builder, at, 2)?,
            Marker::FixExt4 => self.extension(builder, at, 4)?,
            Marker::FixExt8 => self.extension(builder, at, 8)?,
            Marker::FixExt16 => self.extension(builder, at, 16)?,
            Marker::Ext8 => {
                let length = usize::from(u8::from_be_bytes(self.array()?));
                self.extension(builder, at, length)?
            }
            Marker::Ext16 => {
                let length = usize::from(u16::from_be_bytes(self.array()?));
                self.extension(builder, at, length)?
            }
            Marker::Ext32 => {
                let length = u32::from_be_bytes(self.array()?) as usize;
                self.extension(builder, at, length)?
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                return Err(ReadError::new(at, "binary data, which no message holds"));
            }
            Marker::Reserved => return Err(ReadError::new(at, "a byte that means nothing")),
        };
        stack.values.push(value);
        Ok(())
    }

    fn open<V>(&self, stack: &mut Stack<V>, at: usize, is_map: bool, length: usize) -> Read<()> {
        // A value takes a byte at least.
        let needed = length.saturating_mul(if is_map { 2 } else { 1 });
        if needed > self.bytes.len() - self.at {
            return Err(ReadError::new(at, "more values than there are bytes"));
        }
        stack.open(at, is_map, length)
    }

    fn text(&mut self, expected: &str) -> Read<&'a str> {
        let at = self.at;
        let length = match self.marker()? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => usize::from(u8::from_be_bytes(self.array()?)),
            Marker::Str16 => usize::from(u16::from_be_bytes(self.array()?)),
            Marker::Str32 => u32::from_be_bytes(self.array()?) as usize,
            _ => return Err(ReadError::new(at, format!("expected {expected}"))),
        };
        let begin = self.at;
        let bytes = self.take(length)?;
        simdutf8::compat::from_utf8(bytes)
            .map_err(|error| ReadError::new(begin + error.valid_up_to(), "invalid UTF-8"))
    }

    fn extension<B: Build>(&mut self, builder: &mut B, at: usize, length: usize) -> Read<B::Value> {
        let [kind] = self.array()?;
        let digits = self.take(length)?;
        if i8::from_be_bytes([kind]) != BIG_INT {
            return Err(ReadError::new(at, "an unknown extension"));
        }
        let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
        match std::str::from_utf8(digits) {
            Ok(digits)
                if !unsigned.is_empty()
                    && unsigned.len() <= MAX_DIGITS
                    && unsigned.iter().all(u8::is_ascii_digit) =>
            {
                placed(builder.big_int(digits), at)
            }
            _ => Err(ReadError::new(at, "an extension that holds no number")),
        }
    }

    fn marker(&mut self) -> Read<Marker> {
        let [byte] = self.array()?;
        Ok(Marker::from_u8(byte))
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        match self.bytes[self.at..].first_chunk() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(self.cut_off()),
        }
    }

    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        match self.bytes[self.at..].get(..length) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(self.cut_off()),
        }
    }

    #[cold]
    fn cut_off(&self) -> ReadError {
        ReadError::new(self.bytes.len(), "the end in the middle of a value")
    }
}

fn finite(number: f64, at: usize) -> Read<f64> {
    if number.is_finite() {
        Ok(number)
    } else {
        Err(ReadError::new(at, "a number that is not finite"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::read;
    use crate::build::{MAX_DEPTH, Sample};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Err(error) = read(&bytes, &mut Sample) {
                prop_assert!(error.at <= bytes.len());
            }
        }

        #[test]
        fn any_text_comes_back(text: String) {
            let mut bytes = Vec::new();
            prop_assert!(super::write_text(&mut bytes, &text));
            prop_assert_eq!(read(&bytes, &mut Sample).unwrap(), serde_json::Value::from(text));
        }

        #[test]
        fn any_number_comes_back(number: i64) {
            let mut bytes = Vec::new();
            super::write_int(&mut bytes, number);
            prop_assert_eq!(read(&bytes, &mut Sample).unwrap(), serde_json::Value::from(number));
        }
    }

    #[test]
    fn depth_is_bounded() {
        let mut bytes = vec![0x91; MAX_DEPTH];
        bytes.push(0xc0);
        assert!(read(&bytes, &mut Sample).is_ok());
        bytes.insert(0, 0x91);
        assert_eq!(read(&bytes, &mut Sample).unwrap_err().at, MAX_DEPTH);
    }
}
