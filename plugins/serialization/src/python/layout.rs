//! Reading values where Python keeps them.
//!
//! The stable ABI has a call for each of them, which together were measured to take longer than
//! writing JSON. How they are laid out is part of each release, and known of the supported ones; on
//! any other, the calls are made.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyList, PyString};

/// The layout of this interpreter's values, as one of the numbers below.
static LAYOUT: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
/// As in Python 3.11.
const OLD: u8 = 1;
/// As in Python 3.12 and 3.13: what a `str` kept for `wchar_t` is gone, and an `int` has its sign in
/// other bits.
const NEW: u8 = 2;

#[repr(C)]
struct Head {
    references: ffi::Py_ssize_t,
    kind: *mut ffi::PyTypeObject,
}

#[repr(C)]
struct Float {
    head: Head,
    value: f64,
}

#[repr(C)]
struct List {
    head: Head,
    length: ffi::Py_ssize_t,
    items: *const *mut ffi::PyObject,
    allocated: ffi::Py_ssize_t,
}

#[repr(C)]
struct Int {
    head: Head,
    size: isize,
    digits: [u32; 1],
}

/// A `str` whose characters follow it where they are ASCII.
#[repr(C)]
struct Text {
    head: Head,
    length: ffi::Py_ssize_t,
    hash: isize,
    /// Bits, of which only the first byte has some.
    state: u32,
}

impl Text {
    /// It has its characters with it, and all of them are ASCII.
    const COMPACT_ASCII: u32 = 0b11 << 5;
    const OLD_SIZE: usize = size_of::<Self>() + size_of::<*mut ()>();
    const NEW_SIZE: usize = size_of::<Self>();
}

/// Finds out how values are laid out, once.
pub(super) fn find(py: Python<'_>) -> PyResult<()> {
    let version = py.version_info();
    let (layout, text) = match (version.major, version.minor) {
        (3, 11) => (OLD, Text::OLD_SIZE + 4 * size_of::<*mut ()>()),
        (3, 12 | 13) => (NEW, Text::NEW_SIZE + 3 * size_of::<*mut ()>()),
        _ => return Ok(()),
    };
    // A debug build, or one without the GIL, has more in each object.
    let size = |kind: Bound<'_, PyAny>| kind.getattr("__basicsize__")?.extract::<usize>();
    let sizes = (
        size(py.get_type::<PyString>().into_any())?,
        size(py.get_type::<PyInt>().into_any())?,
        size(py.get_type::<PyFloat>().into_any())?,
        size(py.get_type::<PyList>().into_any())?,
    );
    let expected = (
        text,
        std::mem::offset_of!(Int, digits),
        size_of::<Float>(),
        size_of::<List>(),
    );
    if sizes == expected && cfg!(all(target_endian = "little", target_pointer_width = "64")) {
        LAYOUT.store(layout, Relaxed);
    }
    Ok(())
}

/// Returns the text of a `str` if it can be read as it is.
///
/// # Safety
///
/// `text` must be a `str`, which is alive as long as what is returned.
#[inline]
pub(super) unsafe fn ascii<'a>(text: *mut ffi::PyObject) -> Option<&'a str> {
    let size = match LAYOUT.load(Relaxed) {
        OLD => Text::OLD_SIZE,
        NEW => Text::NEW_SIZE,
        _ => return None,
    };
    // SAFETY: the layout is the one above, and the characters follow the object where the state says
    // so. Nobody changes a `str`.
    unsafe {
        let head = &*text.cast_const().cast::<Text>();
        if head.state & Text::COMPACT_ASCII != Text::COMPACT_ASCII {
            return None;
        }
        let bytes = text.cast_const().cast::<u8>().add(size);
        let bytes = std::slice::from_raw_parts(bytes, head.length.cast_unsigned());
        Some(std::str::from_utf8_unchecked(bytes))
    }
}

/// Returns the number of an `int` if it can be read as it is, which a small one can.
///
/// # Safety
///
/// `int` must be an `int`.
#[inline]
pub(super) unsafe fn small_int(int: *mut ffi::PyObject) -> Option<i64> {
    let layout = LAYOUT.load(Relaxed);
    if layout == UNKNOWN {
        return None;
    }
    // SAFETY: the layout is the one above.
    let int = unsafe { &*int.cast_const().cast::<Int>() };
    let sign = match (layout, int.size) {
        // The number of digits, less than zero for a negative number. None are those of zero.
        (OLD, 0) => return Some(0),
        (OLD, -1 | 1) => int.size as i64,
        // The number of digits after three bits, which hold 1 less the sign.
        (NEW, 0..16) => 1 - (int.size as i64 & 3),
        _ => return None,
    };
    Some(sign * i64::from(int.digits[0]))
}

/// Returns the number of a `float` if it can be read as it is.
///
/// # Safety
///
/// `float` must be a `float`.
#[inline]
pub(super) unsafe fn float(float: *mut ffi::PyObject) -> Option<f64> {
    // SAFETY: the layout is the one above.
    (LAYOUT.load(Relaxed) != UNKNOWN)
        .then(|| unsafe { (*float.cast_const().cast::<Float>()).value })
}

/// Returns the items of a `list` if they can be read as they are.
///
/// # Safety
///
/// `list` must be a `list` that nothing changes as long as what is returned is there.
#[inline]
pub(super) unsafe fn items<'a>(list: *mut ffi::PyObject) -> Option<&'a [*mut ffi::PyObject]> {
    if LAYOUT.load(Relaxed) == UNKNOWN {
        return None;
    }
    // SAFETY: the layout is the one above.
    unsafe {
        let list = &*list.cast_const().cast::<List>();
        match list.length {
            0 => Some(&[]),
            length => Some(std::slice::from_raw_parts(
                list.items,
                length.cast_unsigned(),
            )),
        }
    }
}
