//! The pieces of JSON text.

use super::{BLOCK, first_special_of_block, plain_length};
use crate::output::Output;

/// Up to which length a string is copied block by block while it is looked through.
const SHORT: usize = 512;

/// Writes a string with its quotes. Only what must be escaped is.
pub fn write_text(out: &mut impl Output, text: &str) {
    let text = text.as_bytes();
    if text.len() > SHORT || !write_plain(out, text) {
        write_any(out, text);
    }
}

/// Writes a short string of which nothing must be escaped; others not at all.
///
/// One way through its bytes, in blocks, the last of which overlaps the one before.
#[inline]
fn write_plain(out: &mut impl Output, text: &[u8]) -> bool {
    let length = text.len();
    let room = out.room(length + 2).as_mut_ptr().cast::<u8>();
    let (blocks, mut last) = text.as_chunks::<BLOCK>();
    let mut at = 0;
    // Several at a time, with one branch for all of them.
    for blocks in blocks.chunks(4) {
        let special = |found, block| found | first_special_of_block(block).is_some();
        if blocks.iter().fold(false, special) {
            return false;
        }
        // SAFETY: there is room for the string and two quotes, one of which is before the block.
        unsafe { copy(blocks.as_flattened(), room.add(1 + at)) };
        at += blocks.len() * BLOCK;
    }
    if let Some(block) = text.last_chunk::<BLOCK>() {
        last = block;
    }
    if plain_length(last) < last.len() {
        return false;
    }
    // SAFETY: what is left, all of the string or its last block, ends a byte before the room that was
    // made. With it all of that room has been written.
    unsafe {
        room.write(b'"');
        copy(last, room.add(1 + length - last.len()));
        room.add(1 + length).write(b'"');
        out.advance(length + 2);
    }
    true
}

/// # Safety
///
/// There must be as much room as there are bytes, which are not part of it.
unsafe fn copy(bytes: &[u8], to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

#[inline(never)]
fn write_any(out: &mut impl Output, text: &[u8]) {
    let mut rest = text;
    out.push(b'"');
    loop {
        let plain = plain_length(rest);
        out.extend(&rest[..plain]);
        let Some(&byte) = rest.get(plain) else {
            break;
        };
        escape(out, byte);
        rest = &rest[plain + 1..];
    }
    out.push(b'"');
}

fn escape(out: &mut impl Output, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        b'"' | b'\\' => byte,
        _ => {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend(&[b'\\', b'u', b'0', b'0', high, low]);
            return;
        }
    };
    out.extend(&[b'\\', short]);
}

/// The key of an entry that is not the first, with what is around it.
#[derive(Clone, Copy)]
pub struct Key {
    bytes: [u8; BLOCK],
    length: usize,
}

impl Key {
    /// Of a name of at most 12 plain characters.
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
        (bytes[2 + at], bytes[3 + at]) = (b'"', b':');
        let length = 4 + at;
        Self { bytes, length }
    }
}

/// Writes a key with the comma before it and the colon after it.
pub fn write_key(out: &mut impl Output, key: Key) {
    // All of the block, which takes no call, and of that what is the key.
    let room = out.room(BLOCK).as_mut_ptr().cast();
    // SAFETY: there is room for the block, the key is in it, and both are then written.
    unsafe {
        copy(&key.bytes, room);
        out.advance(key.length);
    }
}

/// Writes a whole number.
pub fn write_int(out: &mut impl Output, number: i64) {
    out.extend(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes a finite number: the shortest digits that read back as the same one.
pub fn write_float(out: &mut impl Output, number: f64) {
    out.extend(zmij::Buffer::new().format_finite(number).as_bytes());
}
