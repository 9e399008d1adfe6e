//! The pieces of JSON text.

use super::escape::Escape;
use super::plain::{BLOCK, ESCAPED, MARGIN, copy_escaped, copy_plain, put};
use crate::output::{Output, Pen};

/// Writes a string with its quotes. Only what must be escaped is.
#[inline(never)]
pub fn write_text<'o, O: Output>(pen: Pen<'o, O>, text: &str) -> Pen<'o, O> {
    write_between(pen, Before::QUOTE, text, After::QUOTE)
}

/// Writes the key of an entry with the colon after it, and the comma before it unless it is the first.
#[inline(never)]
pub fn write_key<'o, O: Output>(pen: Pen<'o, O>, text: &str, first: bool) -> Pen<'o, O> {
    let before = if first { Before::QUOTE } else { Before::NEXT };
    write_between(pen, before, text, After::KEY)
}

/// The key of an entry that is not the first, with what is around it, of a name known beforehand.
#[derive(Clone, Copy)]
pub struct Name(Before);

impl Name {
    /// Of at most 11 plain characters.
    #[must_use]
    pub const fn new(name: &str) -> Self {
        let name = name.as_bytes();
        let mut bytes = [0; BLOCK];
        (bytes[0], bytes[1]) = (b',', b'"');
        let mut at = 0;
        while at < name.len() {
            bytes[2 + at] = name[at];
            at += 1;
        }
        // The quote after the colon is a text's.
        (bytes[2 + at], bytes[3 + at], bytes[4 + at]) = (b'"', b':', b'"');
        let length = 5 + at;
        Self(Before { bytes, length })
    }
}

/// Writes a name.
pub fn write_name<O: Output>(pen: Pen<'_, O>, name: Name) -> Pen<'_, O> {
    let pen = pen.room(BLOCK);
    // SAFETY: there is room for a block, of which what is then written is a part.
    unsafe {
        put(name.0.bytes, pen.at());
        pen.advance(name.0.length - 1)
    }
}

/// Writes a name and the string that is its value.
#[inline(never)]
pub fn write_named_text<'o, O: Output>(pen: Pen<'o, O>, name: Name, text: &str) -> Pen<'o, O> {
    write_between(pen, name.0, text, After::QUOTE)
}

/// What comes before a string, up to its quote: the first so many of these bytes.
#[derive(Clone, Copy)]
struct Before {
    bytes: [u8; BLOCK],
    length: usize,
}

impl Before {
    const QUOTE: Self = Self::new(b"\"");
    const NEXT: Self = Self::new(b",\"");

    const fn new(text: &[u8]) -> Self {
        let mut bytes = [0; BLOCK];
        let mut length = 0;
        while length < text.len() {
            bytes[length] = text[length];
            length += 1;
        }
        Self { bytes, length }
    }
}

/// What comes after a string, from its quote on: the first so many of these bytes.
#[derive(Clone, Copy)]
struct After {
    bytes: [u8; 2],
    length: usize,
}

impl After {
    const QUOTE: Self = Self {
        bytes: *b"\" ",
        length: 1,
    };
    const KEY: Self = Self {
        bytes: *b"\":",
        length: 2,
    };
}

/// Writes a string and what is around it, for all of which room is made once where nothing has to be
/// escaped.
#[allow(
    clippy::inline_always,
    reason = "what is around a string is known where this is called, and measured to be worth it"
)]
#[inline(always)]
fn write_between<'o, O: Output>(
    pen: Pen<'o, O>,
    before: Before,
    text: &str,
    after: After,
) -> Pen<'o, O> {
    let text = text.as_bytes();
    let pen = pen.room(text.len() + 2 * BLOCK);
    // SAFETY: there is room for a block before the string, which itself begins within that, and for a
    // block after it.
    unsafe {
        put(before.bytes, pen.at());
        let pen = pen.advance(before.length);
        let plain = copy_plain(text, pen.at());
        if plain < text.len() {
            let pen = write_escaped(pen.advance(plain), &text[plain..]);
            return pen.extend(&after.bytes[..after.length]);
        }
        let pen = pen.advance(text.len());
        put(after.bytes, pen.at());
        pen.advance(after.length)
    }
}

/// Writes what is left of a string in which there is something to be escaped.
#[inline(never)]
fn write_escaped<'o, O: Output>(mut pen: Pen<'o, O>, text: &[u8]) -> Pen<'o, O> {
    /// For so many bytes there is room made at once, as if all were escaped.
    const PIECE: usize = 512;
    let mut rest = text;
    loop {
        let piece = &rest[..rest.len().min(PIECE)];
        pen = pen.room(ESCAPED * piece.len() + MARGIN);
        // SAFETY: that is the room there must be, and what is then written.
        let read = unsafe {
            let (read, to) = copy_escaped(piece, pen.at());
            let written = to.offset_from_unsigned(pen.at());
            pen = pen.advance(written);
            read
        };
        if read == 0 {
            break;
        }
        rest = &rest[read..];
    }
    loop {
        pen = pen.room(rest.len() + 2 * BLOCK);
        // SAFETY: there is room for what is left, and for a block and half of one after it.
        unsafe {
            let plain = copy_plain(rest, pen.at());
            pen = pen.advance(plain);
            let Some((&byte, after)) = rest[plain..].split_first() else {
                return pen;
            };
            let escape = Escape::of(byte);
            put(escape.bytes, pen.at());
            pen = pen.advance(usize::from(escape.length));
            rest = after;
        }
    }
}

/// Writes a whole number.
///
/// How many digits it has decides on branches and not on addresses: a processor goes ahead with what
/// it expects, and numbers that stand together are often of one length.
pub fn write_int<O: Output>(pen: Pen<'_, O>, number: i64) -> Pen<'_, O> {
    const EIGHT: u64 = 100_000_000;
    const MOST: usize = 20;
    let pen = pen.room(MOST);
    let start = pen.at();
    let rest = number.unsigned_abs();
    // SAFETY: there is room for a sign and 19 digits, which are written one after the other.
    unsafe {
        let mut to = start;
        if number < 0 {
            to.write(b'-');
            to = to.add(1);
        }
        to = if rest < EIGHT {
            first_digits(rest, to)
        } else if rest < EIGHT * EIGHT {
            eight_digits(rest % EIGHT, first_digits(rest / EIGHT, to))
        } else {
            let to = first_digits(rest / (EIGHT * EIGHT), to);
            eight_digits(rest % EIGHT, eight_digits(rest / EIGHT % EIGHT, to))
        };
        pen.advance(to.offset_from_unsigned(start))
    }
}

/// Writes a number of eight digits or less, and returns where it ends.
///
/// # Safety
///
/// There must be room for it.
#[inline]
unsafe fn first_digits(number: u64, to: *mut u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        if number < 10_000 {
            first_four_digits(number, to)
        } else {
            four_digits(number % 10_000, first_four_digits(number / 10_000, to))
        }
    }
}

/// See [`first_digits`]; of four digits or less.
#[inline]
unsafe fn first_four_digits(number: u64, to: *mut u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            0..10 => {
                to.write(b'0' + number as u8);
                to.add(1)
            }
            10..100 => two_digits(number, to),
            100..1_000 => {
                to.write(b'0' + (number / 100) as u8);
                two_digits(number % 100, to.add(1))
            }
            _ => four_digits(number, to),
        }
    }
}

/// See [`first_digits`]; with zeros before it.
#[inline]
unsafe fn eight_digits(number: u64, to: *mut u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { four_digits(number % 10_000, four_digits(number / 10_000, to)) }
}

/// See [`eight_digits`].
#[inline]
unsafe fn four_digits(number: u64, to: *mut u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { two_digits(number % 100, two_digits(number / 100, to)) }
}

/// See [`eight_digits`].
#[inline]
unsafe fn two_digits(number: u64, to: *mut u8) -> *mut u8 {
    static DIGITS: [[u8; 2]; 100] = {
        let mut digits = [[0; 2]; 100];
        let mut number = 0;
        while number < 100 {
            digits[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
            number += 1;
        }
        digits
    };
    // SAFETY: the caller's promise.
    unsafe {
        put(DIGITS[number as usize], to);
        to.add(2)
    }
}

/// Writes a finite number: the shortest digits that read back as the same one.
pub fn write_float<O: Output>(pen: Pen<'_, O>, number: f64) -> Pen<'_, O> {
    const { assert!(align_of::<zmij::Buffer>() == 1) };
    let pen = pen.room(size_of::<zmij::Buffer>());
    let buffer = pen.at().cast::<zmij::Buffer>();
    // SAFETY: there is room for the buffer, anywhere, in which the digits are then written.
    unsafe {
        buffer.write(zmij::Buffer::new());
        let digits = (*buffer).format_finite(number);
        let (start, length) = (digits.as_ptr(), digits.len());
        if !std::ptr::eq(start, pen.at()) {
            std::ptr::copy(start, pen.at(), length);
        }
        pen.advance(length)
    }
}
