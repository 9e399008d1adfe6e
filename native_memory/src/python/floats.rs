//! Reading a list of floats where Python keeps them.
//!
//! An embedding is a list of thousands of floats. The stable ABI has a call for each item and
//! another for its number, which were measured to take four times as long as reading both. What
//! is read is laid out alike in every release that is supported; on any other, the calls are made.

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyFloat, PyList};

/// The releases of Python whose layout this is.
const KNOWN: std::ops::RangeInclusive<(u8, u8)> = (3, 11)..=(3, 13);

/// How many items are looked at before their numbers are read.
const PIECE: usize = 16;

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
    items: *const *const Float,
    allocated: ffi::Py_ssize_t,
}

/// The components of a list that holds floats alone, at least one, all of which are finite as
/// float32. `None` for any other list, to be looked at item by item.
pub(super) fn floats(list: &Bound<'_, PyList>) -> Option<Box<[f32]>> {
    if !is_laid_out(list.py()) {
        return None;
    }
    // SAFETY: the layout is the one above, and the list is alive. This thread is attached, and
    // nothing below runs Python, so that neither the list nor its items change meanwhile.
    let items = unsafe {
        let list = &*list.as_ptr().cast_const().cast::<List>();
        match usize::try_from(list.length) {
            Ok(length @ 1..) => std::slice::from_raw_parts(list.items, length),
            _ => return None,
        }
    };
    let exact = &raw mut ffi::PyFloat_Type;
    // SAFETY: an item of a list is an object.
    let is_float = |&item: &*const Float| unsafe { ptr::eq((*item).head.kind, exact) };
    // SAFETY: only called for objects of this type, which have a float's layout.
    let narrow = |(to, &item): (&mut f32, &*const Float)| *to = unsafe { (*item).value } as f32;
    let mut numbers = vec![0.0; items.len()];
    // In pieces that are still at hand when their numbers are read, without a branch for each.
    for (into, from) in numbers.chunks_mut(PIECE).zip(items.chunks(PIECE)) {
        if !from.iter().all(is_float) {
            return None;
        }
        into.iter_mut().zip(from).for_each(narrow);
    }
    numbers
        .iter()
        .fold(true, |finite, number| finite & number.is_finite())
        .then(|| numbers.into())
}

/// Whether the first item of a list is a float, and [`floats`] can read it.
pub(super) fn seem_floats(list: &Bound<'_, PyList>) -> bool {
    is_laid_out(list.py())
        && list
            .get_item(0)
            .is_ok_and(|first| first.is_exact_instance_of::<PyFloat>())
}

/// Whether lists and floats of this interpreter have the layout above.
fn is_laid_out(py: Python<'_>) -> bool {
    static LAID_OUT: PyOnceLock<bool> = PyOnceLock::new();
    let asked = || {
        let version = py.version_info();
        // A debug build, or one without the GIL, has more in each object.
        let size = |kind: Bound<'_, PyAny>| kind.getattr("__basicsize__")?.extract::<usize>();
        let sizes = (
            size(py.get_type::<PyList>().into_any())?,
            size(py.get_type::<PyFloat>().into_any())?,
        );
        Ok::<_, PyErr>(
            KNOWN.contains(&(version.major, version.minor))
                && sizes == (size_of::<List>(), size_of::<Float>()),
        )
    };
    // What cannot be asked is not known.
    *LAID_OUT.get_or_init(py, || asked().unwrap_or(false))
}
