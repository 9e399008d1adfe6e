//! The pieces of JSON text.

use super::{BLOCK, first_special_of_block, plain_length};

/// Up to which length a string is copied block by block while it is looked through.
const SHORT: usize = 512;

/// Writes a string with its quotes. Only what must be escaped is.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    let text = text.as_bytes();
    if text.len() > SHORT || !write_plain(out, text) {
        write_any(out, text);
    }
}

/// Writes a short string of which nothing must be escaped; others not at all.
///
/// One way through its bytes, in blocks, the last of which overlaps the one before.
#[inline]
fn write_plain(out: &mut Vec<u8>, text: &[u8]) -> bool {
    let length = text.len();
    out.reserve(length + 2);
    let room = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    let (blocks, rest) = text.as_chunks::<BLOCK>();
    let mut last = rest;
    for (number, block) in blocks.iter().enumerate() {
        if first_special_of_block(block).is_some() {
            return false;
        }
        // SAFETY: there is room for the string and two quotes, one of which is before the block.
        unsafe { copy(block, room.add(1 + number * BLOCK)) };
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
        out.set_len(out.len() + length + 2);
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
fn write_any(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    out.push(b'"');
    loop {
        let plain = plain_length(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(&byte) = rest.get(plain) else {
            break;
        };
        escape(out, byte);
        rest = &rest[plain + 1..];
    }
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, byte: u8) {
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
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Writes a whole number.
pub fn write_int(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes a finite number: the shortest digits that read back as the same one.
pub fn write_float(out: &mut Vec<u8>, number: f64) {
    out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
}
