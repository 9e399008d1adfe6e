//! The pieces of JSON text.

use super::plain::{BLOCK, copy_plain};
use crate::output::Output;

/// Writes a string with its quotes. Only what must be escaped is.
pub fn write_text(out: &mut impl Output, text: &str) {
    write_between(out, Before::QUOTE, text, After::QUOTE);
}

/// Writes the key of an entry with the colon after it, and the comma before it unless it is the first.
pub fn write_key(out: &mut impl Output, text: &str, first: bool) {
    let before = if first { Before::QUOTE } else { Before::NEXT };
    write_between(out, before, text, After::KEY);
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
pub fn write_name(out: &mut impl Output, name: Name) {
    let room = out.room(BLOCK).as_mut_ptr();
    // SAFETY: there is room for a block, of which what is then written is a part.
    unsafe {
        room.cast::<[u8; BLOCK]>().write_unaligned(name.0.bytes);
        out.advance(name.0.length - 1);
    }
}

/// Writes a name and the string that is its value.
pub fn write_named_text(out: &mut impl Output, name: Name, text: &str) {
    write_between(out, name.0, text, After::QUOTE);
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
#[inline]
fn write_between(out: &mut impl Output, before: Before, text: &str, after: After) {
    let text = text.as_bytes();
    let room = out.room(text.len() + 2 * BLOCK).as_mut_ptr().cast::<u8>();
    // SAFETY: there is room for a block before the string, which itself begins within that, and for a
    // block after it.
    unsafe {
        room.cast::<[u8; BLOCK]>().write_unaligned(before.bytes);
        let room = room.add(before.length);
        let plain = copy_plain(text, room);
        if plain == text.len() {
            let room = room.add(plain);
            room.cast::<[u8; 2]>().write_unaligned(after.bytes);
            out.advance(before.length + plain + after.length);
        } else {
            out.advance(before.length + plain);
            write_escaped(out, &text[plain..]);
            out.extend(&after.bytes[..after.length]);
        }
    }
}

/// Writes what is left of a string, from a byte on that must be escaped.
#[inline(never)]
fn write_escaped(out: &mut impl Output, text: &[u8]) {
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let room = out.room(after.len() + 2 * BLOCK).as_mut_ptr().cast::<u8>();
        let Escape { bytes, length } = ESCAPES[usize::from(byte)];
        // SAFETY: there is room for half a block before what is left, and for a block after it.
        unsafe {
            room.cast::<[u8; 8]>().write_unaligned(bytes);
            let length = usize::from(length);
            let plain = copy_plain(after, room.add(length));
            out.advance(length + plain);
            rest = &after[plain..];
        }
    }
}

/// How a byte is written: the first so many of these.
#[derive(Clone, Copy)]
struct Escape {
    bytes: [u8; 8],
    length: u8,
}

static ESCAPES: [Escape; 256] = {
    let mut escapes = [Escape {
        bytes: [0; 8],
        length: 0,
    }; 256];
    let mut byte = 0;
    while byte < 256 {
        escapes[byte] = escape(byte as u8);
        byte += 1;
    }
    escapes
};

const fn escape(byte: u8) -> Escape {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        b'"' | b'\\' => byte,
        _ => {
            let (high, low) = (HEX[byte as usize >> 4], HEX[byte as usize & 15]);
            let bytes = [b'\\', b'u', b'0', b'0', high, low, 0, 0];
            return Escape { bytes, length: 6 };
        }
    };
    let bytes = [b'\\', short, 0, 0, 0, 0, 0, 0];
    Escape { bytes, length: 2 }
}

/// Writes a whole number.
///
/// How many digits it has decides on branches and not on addresses: a processor goes ahead with what
/// it expects, and numbers that stand together are often of one length.
pub fn write_int(out: &mut impl Output, number: i64) {
    const EIGHT: u64 = 100_000_000;
    const MOST: usize = 20;
    let start = out.room(MOST).as_mut_ptr().cast::<u8>();
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
        out.advance(to.offset_from_unsigned(start));
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
        to.cast::<[u8; 2]>()
            .write_unaligned(DIGITS[number as usize]);
        to.add(2)
    }
}

/// Writes a finite number: the shortest digits that read back as the same one.
pub fn write_float(out: &mut impl Output, number: f64) {
    const { assert!(align_of::<zmij::Buffer>() == 1) };
    let room = out.room(size_of::<zmij::Buffer>()).as_mut_ptr();
    let buffer = room.cast::<zmij::Buffer>();
    // SAFETY: there is room for the buffer, anywhere, in which the digits are then written.
    unsafe {
        buffer.write(zmij::Buffer::new());
        let digits = (*buffer).format_finite(number);
        let (start, length) = (digits.as_ptr(), digits.len());
        if !std::ptr::eq(start, room.cast()) {
            std::ptr::copy(start, room.cast(), length);
        }
        out.advance(length);
    }
}
