//! What bytes become that a JSON string does not hold as they are.

/// How a byte is written: the first so many of these.
#[derive(Clone, Copy)]
pub(super) struct Escape {
    pub(super) bytes: [u8; 8],
    pub(super) length: u8,
}

impl Escape {
    /// Returns how a byte is written that must be escaped.
    #[inline]
    pub(super) fn of(byte: u8) -> &'static Self {
        &ESCAPES[usize::from(byte)]
    }
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
